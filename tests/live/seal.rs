//! A live checkpoint that is sealed: no plaintext is ever on the disk, not even where nothing points to it any more; and the
//! container comes back on another node.

use crate::{
    harness::{Cgroup, Containerd, Lab, dewar_ok, until},
    readme::{AGE_KEY, AGE_RECIPIENT},
};

/// What redis holds in memory, and a file of the container's.
const IN_MEMORY: &str = "planted-in-memory-2f1c9e7a5b";
const IN_A_FILE: &str = "planted-in-a-file-8d03c6b1fa";

fn redis(lab: &Lab, command: &[&str]) -> String {
    lab.ask("redis", &[&["/usr/bin/redis-cli", "-s", "/tmp/r.sock"], command].concat()).trim().to_owned()
}

/// A file system on a disk of its own, at `/mnt/<name>`, on which all is written at once: what is short-lived would else never
/// come to the disk. And memory at `/mnt/memory`.
fn disk(lab: &Lab, name: &str) {
    lab.sh(&format!(
        "mkdir -p /mnt/{name} /mnt/memory; truncate -s 512M /var/lib/{name}.img; mkfs.ext4 -q /var/lib/{name}.img
         mount -o loop,sync /var/lib/{name}.img /mnt/{name}; mountpoint -q /mnt/memory || mount -t tmpfs none /mnt/memory"
    ));
}

/// How many of the planted texts stand anywhere on the disk, whether or not a file has the place; names of the file's, too.
fn planted(lab: &Lab, name: &str) -> usize {
    lab.sh(&format!("sync; umount /mnt/{name}"));
    let is_there = |text: &str| lab.try_sh(&format!("grep -aqF {text} /var/lib/{name}.img")).status.success();
    [IN_MEMORY, IN_A_FILE].iter().filter(|text| is_there(text)).count()
}

#[test]
fn no_plaintext_is_ever_on_the_disk_and_redis_comes_back() {
    let Some(lab) = Lab::start_with_disks(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("redis");
    let args = ["--save", "", "--unixsocket", "/tmp/r.sock"];
    lab.run("redis", "redis", &[&["/usr/bin/redis-server"], &args[..]].concat(), &[]);
    until("redis answers", || {
        lab.inside("redis", &["/usr/bin/redis-cli", "-s", "/tmp/r.sock", "ping"]).status.success()
    });
    redis(&lab, &["set", "key", IN_MEMORY]);
    lab.ask("redis", &["/bin/sh", "-c", &format!("echo {IN_A_FILE} > /data/file")]);
    lab.kill_containerd();
    lab.sh(&format!("echo '{AGE_KEY}' > /key.txt"));
    for name in ["plain", "unstaged", "sealed", "raw"] {
        disk(&lab, name);
    }

    // The other way: where it is not sealed, what is looked for is found.
    dewar_ok(&lab, &["checkpoint", "redis", "-o", "/mnt/plain/layout", "--compression", "none"]);
    assert_eq!(planted(&lab, "plain"), 2);
    // And where it is staged on the disk, it is found in what has been removed.
    dewar_ok(
        &lab,
        &["checkpoint", "redis", "-o", "/mnt/unstaged/layout", "--compression", "none", "--seal", AGE_RECIPIENT],
    );
    assert!(!lab.try_sh(&format!("grep -rqF {IN_MEMORY} /mnt/unstaged")).status.success());
    assert_eq!(planted(&lab, "unstaged"), 2);

    let seal = ["--seal", AGE_RECIPIENT, "--staging", "/mnt/memory", "--ref", "localhost/r:1"];
    dewar_ok(&lab, &[&["checkpoint", "redis", "-o", "/mnt/sealed/layout"], &seal[..]].concat());
    dewar_ok(&lab, &[&["checkpoint", "redis", "--task", "raw", "-o", "/mnt/raw/layout"], &seal[..]].concat());
    assert_eq!(lab.sh("ls -A /mnt/memory"), "", "nothing is left in the staging");
    assert!(dewar_ok(&lab, &["verify", "/mnt/sealed/layout"]).starts_with("sound"));
    for name in ["sealed", "raw"] {
        let identity = format!("/mnt/{name}/layout");
        assert!(dewar_ok(&lab, &["verify", &identity, "-i", "/key.txt"]).starts_with("sound"));
        assert_eq!(planted(&lab, name), 0, "{name}");
        lab.sh(&format!("mount -o loop /var/lib/{name}.img /mnt/{name}"));
    }
    assert_eq!(redis(&lab, &["get", "key"]), IN_MEMORY, "it goes on where it was");

    lab.lose_node();
    lab.start_containerd();
    // A sealed bundle is nothing to others; they take the base image from it.
    lab.import_layout("/mnt/sealed/layout");
    assert!(!lab.sh("ctr images ls -q").contains("localhost/r:1"));
    dewar_ok(&lab, &["unseal", "/mnt/sealed/layout", "-i", "/key.txt", "-o", "/mnt/memory/layout"]);
    lab.import_layout("/mnt/memory/layout");
    lab.restore("redis", "localhost/r:1");
    assert_eq!(redis(&lab, &["get", "key"]), IN_MEMORY);
    assert_eq!(lab.ask("redis", &["/bin/cat", "/data/file"]).trim(), IN_A_FILE);
}
