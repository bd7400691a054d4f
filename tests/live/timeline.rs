//! Timelines of a container in which somebody was: what was planted is found, and nothing else is.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_ok, until};

/// What somebody did, in the container's own mounts.
const INTRUSION: &str = r#"
    echo payload > /tmp/dropped
    echo backdoor > /usr/stomped; touch -d "2001-09-09 01:46:40" /usr/stomped
    cp /bin/busybox /usr/future; touch -d "2037-01-01 00:00:00" /usr/future
    rm /etc/group
    echo intruder >> /etc/passwd; touch -d "1999-01-01 00:00:00" /etc/passwd
    chmod 700 /bin/busybox
    mv /bin/many /bin/moved; echo new > /bin/many
    rm -r /home; mkdir /home; echo note > /home/note
    echo odd > "/tmp/pipe|new
line%41"
    echo odd > "$(printf '/tmp/esc\033[31m\377')"
    ln -s /nowhere "/tmp/link -> here"
    sleep 1
    rm -r /root
"#;

/// Every path of the container's layer with what was done to it, and what was found in its times.
const PLANTED: &[(&str, &str, &str)] = &[
    ("/bin", "changed", ""),
    ("/bin/busybox", "changed", ""),
    ("/bin/many", "changed", ""),
    ("/bin/moved", "added", ""),
    ("/etc", "changed", ""),
    ("/etc/group", "deleted", ""),
    ("/etc/passwd", "changed", "mtime-before-birth"),
    ("/home", "replaced", ""),
    ("/home/note", "added", ""),
    ("/root", "deleted", ""),
    ("/tmp", "changed", ""),
    ("/tmp/dropped", "added", ""),
    ("/tmp/esc\u{1b}[31m\\xff", "added", ""),
    ("/tmp/link -> here", "added", ""),
    ("/tmp/pipe|new\nline%41", "added", ""),
    ("/usr", "changed", ""),
    ("/usr/future", "added", "mtime-after-change"),
    ("/usr/stomped", "added", "mtime-before-birth"),
];

fn start(containerd: Containerd) -> Option<Lab> {
    let lab = Lab::start(containerd, Cgroup::V1)?;
    lab.start_containerd();
    lab.import("programs");
    lab.run("c", "programs", &["/bin/witness", "16", "/var/lib/witness", "1000"], &[]);
    until("the witness answers", || lab.inside("c", &["/bin/witness", "ask"]).status.success());
    Some(lab)
}

/// The planted container, and the daemon gone.
fn intruded(containerd: Containerd) -> Option<Lab> {
    let lab = start(containerd)?;
    lab.ask("c", &["/bin/sh", "-ec", INTRUSION]);
    lab.kill_containerd();
    Some(lab)
}

/// What `dewar timeline` prints, which must find something.
fn timeline(lab: &Lab, args: &[&str]) -> String {
    let ran = lab.dewar(&[&["timeline", "c"], args].concat());
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("/usr/stomped: modified 2001-09-09T01:46:40"), "{stderr}");
    String::from_utf8(ran.stdout).expect("every format is UTF-8")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// By path: what was done, and what was found.
fn told(lines: &[Value]) -> BTreeMap<String, (String, String)> {
    let of_files = lines.iter().filter(|line| line["data_type"] == "dewar:file");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of_files.map(|line| (text(&line["path"]), (text(&line["fate"]), text(&line["tag"][0])))).collect()
}

fn planted() -> BTreeMap<String, (String, String)> {
    PLANTED.iter().map(|(path, fate, tag)| ((*path).to_owned(), ((*fate).to_owned(), (*tag).to_owned()))).collect()
}

#[test]
fn what_was_planted_is_found_and_nothing_else() {
    for containerd in [Containerd::V1_7, Containerd::V2_1] {
        let Some(lab) = intruded(containerd) else { return };
        let all = lines(&timeline(&lab, &["--format", "jsonl", "--hash"]));
        let mut found = told(&all);
        // The witness's own files.
        found.retain(|path, _| !path.starts_with("/var"));
        assert_eq!(found, planted(), "{containerd:?}");
        let of = |path: &str, what: &str| {
            let is_it = |line: &&Value| line["path"] == path && line["timestamp_desc"] == what;
            all.iter().find(is_it).unwrap_or_else(|| panic!("no {what} of {path}")).clone()
        };
        let stomped = of("/usr/stomped", "Content Modification Time");
        assert_eq!(stomped["datetime"], "2001-09-09T01:46:40.000000000+00:00");
        let sum = lab.ask("c", &["/bin/sha256sum", "/usr/stomped"]);
        assert_eq!(stomped["sha256"].as_str(), sum.split(' ').next());
        // The kernel gives all deletions one inode; the directories they are in still tell them apart.
        let latest = |path: &str| of(path, "Deletion Time (at the latest)")["timestamp"].as_i64().unwrap();
        let earliest = |path: &str| of(path, "Deletion Time (at the earliest)")["timestamp"].as_i64().unwrap();
        let dropped = of("/tmp/dropped", "Creation Time")["timestamp"].as_i64().unwrap();
        assert!(dropped <= earliest("/etc/group") && earliest("/etc/group") <= latest("/etc/group"));
        assert!(latest("/root") - latest("/etc/group") > 900_000, "a second was between them");
        let created = |source: &str| {
            let found =
                all.iter().find(|line| line["data_type"] == source && line["timestamp_desc"] == "Creation Time");
            found.unwrap_or_else(|| panic!("no {source}"))["timestamp"].as_i64().unwrap()
        };
        assert!(created("dewar:containerd:snapshot") <= created("dewar:containerd:container"));
        let started = all.iter().find(|line| line["data_type"] == "dewar:process").expect("it lives");
        assert!(started["message"].as_str().unwrap().contains("/bin/witness 16"), "{started}");
        // A tick, and the clock's own corrections.
        assert!(started["timestamp"].as_i64().unwrap() > created("dewar:containerd:container") - 50_000);
        let odd = told(&lines(&timeline(&lab, &["--format", "jsonl", "--findings"])));
        assert_eq!(odd.into_keys().collect::<Vec<_>>(), ["/etc/passwd", "/usr/future", "/usr/stomped"]);
        lab.sh("mkdir -p /tmp/disk/var/lib /tmp/disk/run; mount --bind /var/lib /tmp/disk/var/lib");
        let ran = lab.dewar(&["--sysroot", "/tmp/disk", "timeline", "c", "--format", "jsonl"]);
        let mut found = told(&lines(&String::from_utf8_lossy(&ran.stdout)));
        found.retain(|path, _| !path.starts_with("/var"));
        assert_eq!(found, planted(), "of a disk");
        for (format, mark) in [("bodyfile", "/usr/stomped|"), ("dfxml", "<filename>usr/stomped</filename>")] {
            assert!(timeline(&lab, &["--format", format]).contains(mark));
        }
    }
}

/// mactime of The Sleuth Kit, which splits lines at pipes and undoes percents.
#[test]
fn mactime_loads_the_body_file() {
    let Some(lab) = intruded(Containerd::V2_1) else { return };
    let body = timeline(&lab, &["--hash"]);
    let mut mactime = Command::new("mactime")
        .args(["-b", "-", "-d", "-y", "-z", "UTC"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sleuthkit is installed (.ci/run)");
    mactime.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
    let printed = mactime.wait_with_output().unwrap();
    assert!(printed.status.success());
    let table = String::from_utf8_lossy(&printed.stdout).into_owned();
    let names: std::collections::BTreeSet<&str> = body.lines().filter_map(|line| line.split('|').nth(1)).collect();
    for name in names {
        assert!(table.contains(&format!("\"{}\"", name.replace('"', "\"\""))), "{name}: {table}");
    }
    assert!(table.contains("2001-09-09T01:46:40Z,"), "{table}");
    let is_deletion = |line: &&str| line.contains("w/w---------") && line.contains("/etc/group (deleted)");
    assert!(table.lines().any(|line| is_deletion(&line)), "{table}");
}

/// What a restore unpacks has old times and a new birth, every file of it: none is a finding.
#[test]
fn a_restored_container_is_not_full_of_findings() {
    let Some(lab) = start(Containerd::V2_1) else { return };
    lab.ask("c", &["/bin/sh", "-ec", "cp -p /bin/busybox /usr/copy; echo x > /usr/new"]);
    lab.kill_containerd();
    dewar_ok(&lab, &["checkpoint", "c", "-o", "/tmp/layout", "--ref", "localhost/c:1"]);
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("c", "localhost/c:1");
    lab.ask("c", &["/bin/sh", "-ec", "echo y > /usr/after; touch -d '2001-09-09 01:46:40' /usr/stomped"]);
    lab.kill_containerd();
    let found = told(&lines(&timeline(&lab, &["--format", "jsonl"])));
    let tag = |path: &str| found[path].1.as_str();
    assert_eq!((tag("/usr/copy"), tag("/usr/new"), tag("/usr/after")), ("unpacked", "unpacked", ""));
    let odd: Vec<_> = found.iter().filter(|(_, (_, tag))| tag.starts_with("mtime")).map(|(path, _)| path).collect();
    assert_eq!(odd, ["/usr/stomped"]);
}
