//! The commands of README.md's examples for a live node, as they stand there.
//!
//! What differs on each node is filled in: the time in a checkpoint's name, a pid. `systemctl stop containerd` kills this
//! lab's containerd, so nothing of it is left to help.

use std::{fs, path::Path, process::Command};

use crate::{
    evidence::disk_of_a_node,
    harness::{Cgroup, Containerd, Lab, until},
};

/// RFC 8410, section 10.3.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
    -----END PRIVATE KEY-----";

/// A key of the age project's own tests.
pub const AGE_KEY: &str = "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
pub const AGE_RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

/// A block fenced ```` ```console ````: its heading, which of that heading's it is, and its commands.
struct Block {
    heading: String,
    nth: usize,
    commands: Vec<String>,
}

fn blocks() -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("README.md is there");
    let (mut found, mut heading, mut lines) = (Vec::<Block>::new(), String::new(), text.lines());
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        }
        if line == "```console" {
            let commands = lines.by_ref().take_while(|line| *line != "```").map(str::to_owned).collect();
            let nth = found.iter().filter(|block| block.heading == heading).count();
            found.push(Block { heading: heading.clone(), nth, commands });
        }
    }
    found
}

/// Redis with keys and a file, as the examples have it; a medium to carry is mounted.
fn node() -> Option<Lab> {
    let lab = Lab::start(Containerd::V2_1, Cgroup::V1)?;
    lab.sh("mkdir -p /mnt/usb; printf '#!/bin/sh\\nexec containerd-kill\\n' > /usr/local/bin/systemctl; chmod +x /usr/local/bin/systemctl");
    lab.start_containerd();
    lab.import("redis");
    let args = ["--save", "", "--unixsocket", "/tmp/r.sock", "--enable-debug-command", "yes"];
    lab.run("redis", "redis", &[&["/usr/bin/redis-server"], &args[..]].concat(), &[]);
    until("redis answers", || redis(&lab, "ping").is_some_and(|told| told == "PONG"));
    redis(&lab, "debug populate 1000");
    lab.ask("redis", &["/bin/sh", "-c", "echo written > /data/file"]);
    Some(lab)
}

fn redis(lab: &Lab, command: &str) -> Option<String> {
    let words: Vec<&str> = ["/usr/bin/redis-cli", "-s", "/tmp/r.sock"].into_iter().chain(command.split(' ')).collect();
    let output = lab.inside("redis", &words);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a block line by line; what each printed. `most` is the highest exit status that is right.
#[track_caller]
fn run(lab: &Lab, block: &Block, most: i32, fill: impl Fn(&str) -> String) -> Vec<String> {
    let run = |command: &String| {
        let output = lab.try_sh(&fill(command));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let exit = output.status.code().unwrap_or(-1);
        assert!((0..=most).contains(&exit), "{exit}: {command}\n--- stdout\n{out}\n--- stderr\n{err}");
        out.into_owned()
    };
    block.commands.iter().map(run).collect()
}

fn as_it_stands(command: &str) -> String {
    command.to_owned()
}

#[test]
fn the_examples_of_readme_md_bring_redis_home() {
    let Some(mut lab) = node() else { return };
    for block in blocks() {
        match (block.heading.as_str(), block.nth) {
            // How the tests themselves are run.
            ("dewar" | "", 0) => assert_eq!(block.commands, ["cargo test"]),
            ("containerd is dead, the container still runs", 0) => {
                let told = run(&lab, &block, 0, as_it_stands);
                assert!(told[1].contains("redis") && told[1].contains("running"), "{told:?}");
                assert!(told[2].contains("A /data/file") && told[4].starts_with("sound"), "{told:?}");
            }
            ("containerd is dead, the container still runs", 1) => {
                lab.lose_node();
                lab.start_containerd();
                // The name is the one that `inspect` shows behind `checkpoint`, as the text says.
                let told = lab.sh("dewar inspect /mnt/usb/rescue | awk '$1 == \"checkpoint\" { print $2; exit }'");
                run(&lab, &block, 0, |command| match command.rsplit_once(' ') {
                    Some((restore, _)) if command.contains("restore") => format!("{restore} {}", told.trim()),
                    _ => command.to_owned(),
                });
                assert_eq!(redis(&lab, "dbsize").as_deref(), Some("1000"));
                assert_eq!(lab.ask("redis", &["/bin/cat", "/data/file"]), "written\n");
            }
            ("The database is damaged, or gone", 0) => {
                let Some(other) = node() else { return };
                lab = other;
                lab.kill_containerd();
                lab.sh("truncate -s 8K /var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db");
                assert!(!lab.try_sh("containerd-up").status.success(), "with such a database it does not start");
                lab.kill_containerd();
                let pid = lab.pid("redis").to_string();
                let told = run(&lab, &block, 1, |command| command.replace("4711", &pid));
                assert!(told[1].contains("redis") && told[3].contains("redis"), "{told:?}");
                lab.sh("dewar verify /mnt/usb/rescue");
            }
            ("Memory to be looked at", 0) => {
                let Some(other) = node() else { return };
                lab = other;
                lab.kill_containerd();
                let (gdb, inside) = block.commands.split_last().expect("it has commands");
                let inside = Block { heading: block.heading.clone(), nth: 0, commands: inside.to_vec() };
                run(&lab, &inside, 0, |command| command.replace("tar -xf", "tar -C /tmp -xf"));
                // gdb is the machine's, not the lab's.
                let gdb = gdb.replace("4711", &lab.pid("redis").to_string());
                let there = format!("/proc/{}/root/tmp", lab.init());
                let told = Command::new("bash").args(["-c", &gdb]).current_dir(there).output().expect("bash runs gdb");
                let told = String::from_utf8_lossy(&told.stdout).into_owned();
                assert!(told.matches("LWP").count() >= 2 && told.contains(":\t0x"), "{told}");
            }
            ("Evidence", 0) => {
                let Some(other) = disk_of_a_node(Containerd::V2_1) else { return };
                lab = other;
                lab.sh(&format!("mkdir -p /mnt/image /mnt/usb; umask 077; echo '{KEY}' > /tmp/key.pem"));
                let fill =
                    |command: &str| command.replace("disk.img", "/var/lib/disk.img").replace("key.pem", "/tmp/key.pem");
                run(&lab, &block, 0, |command| fill(command).replace(" web ", " app "));
                let told = lab.sh("dewar verify /mnt/usb/case && dewar inspect /mnt/usb/case --evidence");
                assert!(told.starts_with("sound") && told.contains("A. Doe") && told.contains("Ed25519 key"), "{told}");
                lab.sh("umount /mnt/image");
            }
            ("Secrets", 0) => {
                let Some(other) = node() else { return };
                lab = other;
                lab.kill_containerd();
                // age is not the lab's.
                lab.sh(&format!("mkdir -p /dev/shm; echo '{AGE_KEY}' > key.txt"));
                let fill = |command: &str| match command.starts_with("age-keygen") {
                    true => "true".to_owned(),
                    false => command.replace("$(age-keygen -y key.txt)", AGE_RECIPIENT),
                };
                run(&lab, &block, 0, fill);
                let told = lab.sh("dewar verify /mnt/usb/rescue -i key.txt; ls -A /dev/shm");
                assert!(told.starts_with("sound") && told.lines().count() == 1, "{told}");
            }
            (heading, nth) => panic!("README.md: nothing runs block {nth} under {heading:?}: {:?}", block.commands),
        }
    }
}
