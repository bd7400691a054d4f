//! `fsck` and `whois` on nodes that real containerds wrote, with containers that live, and with real accidents.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, until};
use crate::pod;

const STAY: [&str; 3] = ["/bin/sh", "-c", "while :; do sleep 1; done"];
const BLOBS: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";
const OVERLAY: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
const META: &str = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task";

/// Three containers: one lives on overlayfs, one on native, one was never started.
fn node(containerd: Containerd, cgroup: Cgroup) -> Option<Lab> {
    let lab = Lab::start(containerd, cgroup)?;
    lab.start_containerd();
    lab.import("busybox");
    lab.run("over", "busybox", &STAY, &[]);
    lab.run("flat", "busybox", &STAY, &["--snapshotter", "native"]);
    lab.sh("ctr containers create localhost/busybox:lab made");
    Some(lab)
}

/// Exit status and report.
fn fsck(lab: &Lab, args: &[&str]) -> (i32, Value) {
    let ran = lab.dewar(&[&["--root", "/var/lib/containerd"], args, &["fsck", "--json"]].concat());
    let stderr = String::from_utf8_lossy(&ran.stderr);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    (ran.status.code().expect("it was not killed"), report[0].clone())
}

/// Code and place of everything of a severity.
fn found(report: &Value, severity: &str) -> BTreeSet<(String, String)> {
    let text = |f: &Value, key: &str| f[key].as_str().expect("a text").to_owned();
    let all = report["findings"].as_array().expect("a list").iter().filter(|f| f["severity"] == severity);
    all.map(|f| (text(f, "code"), text(f, "place"))).collect()
}

fn pairs(all: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    all.iter().map(|(code, place)| ((*code).to_owned(), (*place).to_owned())).collect()
}

#[track_caller]
fn errors(lab: &Lab, right: &[(&str, &str)]) -> Value {
    let (code, report) = fsck(lab, &[]);
    assert_eq!(found(&report, "error"), pairs(right), "{report:#}");
    assert_eq!(found(&report, "warning"), BTreeSet::new(), "{report:#}");
    assert_eq!(code, i32::from(!right.is_empty()));
    report
}

fn outcome(report: &Value, id: &str) -> (String, bool) {
    let all = report["home"].as_array().expect("a list");
    let one = all.iter().find(|h| h["container"] == format!("default/{id}")).expect("it is on record");
    (one["outcome"].as_str().expect("a word").to_owned(), one["lives"].as_bool().expect("yes or no"))
}

/// What is wrong with it is nothing, before and after the daemon dies.
#[test]
fn a_healthy_node_is_sound() {
    for containerd in Containerd::ALL {
        let cgroup = if containerd == Containerd::V1_7 { Cgroup::V2 } else { Cgroup::V1 };
        let Some(lab) = node(containerd, cgroup) else { return };
        assert_eq!(lab.dewar(&["fsck"]).status.code(), Some(2), "a running daemon is refused");
        let (code, report) = fsck(&lab, &["--daemon-running"]);
        assert_eq!((code, report["beside_daemon"].as_bool()), (0, Some(true)), "{report:#}");
        lab.kill_containerd();
        let report = errors(&lab, &[]);
        assert_eq!(found(&report, "note"), BTreeSet::new(), "{containerd:?}");
        let whole = |lives| ("whole".to_owned(), lives);
        assert_eq!([outcome(&report, "over"), outcome(&report, "flat")], [whole(true), whole(true)], "{report:#}");
        assert_eq!(outcome(&report, "made"), whole(false));

        // A paused one, one that has ended.
        lab.start_containerd();
        lab.sh("ctr tasks pause flat; ctr tasks kill -s KILL over");
        until("it has ended", || {
            lab.sh("ctr tasks ls").lines().any(|l| l.starts_with("over") && l.contains("STOPPED"))
        });
        lab.kill_containerd();
        let report = errors(&lab, &[]);
        let codes: Vec<_> = found(&report, "note").into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, ["shim-idle", "task-paused"], "{report:#}");
    }
}

#[test]
fn real_accidents_are_told_one_by_one() {
    for containerd in Containerd::ALL {
        let Some(lab) = node(containerd, Cgroup::V1) else { return };
        lab.kill_containerd();
        let (over, flat) = (format!("{TASKS}/default/over"), format!("{TASKS}/default/flat"));
        // The shim is the first process' parent.
        let shim = |id: &str| {
            let whois = dewar_json(&lab, &["whois", "--json", id]);
            whois[0]["found"][0]["shim"]["pid"].as_i64().expect("its shim lives")
        };
        lab.sh(&format!("kill -KILL {}", shim("over")));
        until("the shim is gone", || found(&fsck(&lab, &[]).1, "error").len() == 1);
        errors(&lab, &[("shim-dead", &over)]);

        // The bundle goes out of the way; what is mounted in it goes along.
        lab.sh(&format!("mv {flat} /run/elsewhere"));
        errors(&lab, &[("shim-dead", &over), ("process-without-bundle", &flat)]);
        lab.sh(&format!("mv /run/elsewhere {flat}"));

        // The files of a container, by hand.
        let made = dewar_json(&lab, &["whois", "--json", "made"])[0]["found"][0]["snapshots"].clone();
        let dir = made[0]["directory"].as_str().expect("it has files").to_owned();
        lab.sh(&format!("mv $(dirname {dir}) /tmp/kept"));
        let report = errors(&lab, &[("shim-dead", &over), ("snapshot-directory-missing", &dir)]);
        assert_eq!(outcome(&report, "made").0, "nothing");
        lab.sh(&format!("mv /tmp/kept {OVERLAY}/snapshots/rm-4711"));
        let (_, report) = fsck(&lab, &[]);
        let left = format!("{OVERLAY}/snapshots/rm-4711");
        assert_eq!(found(&report, "note"), pairs(&[("snapshot-directory-left", &left)]));
        lab.sh(&format!("mv {left} $(dirname {dir})"));

        // A layer's blob, by hand: files come home all the same.
        let layer = made[1]["layer"]["digest"].as_str().expect("the image has layers")[7..].to_owned();
        let blob = format!("{BLOBS}/{layer}");
        lab.sh(&format!("chmod +w {blob}; printf x | dd of={blob} bs=1 seek=200 conv=notrunc status=none"));
        let report = errors(&lab, &[("shim-dead", &over), ("blob-damaged", &blob)]);
        assert_eq!(outcome(&report, "over"), ("image-recreated".into(), true), "{report:#}");
    }
}

/// An old copy of the database comes back: what was started since runs without a record.
#[test]
fn a_process_without_a_record_is_found() {
    for containerd in Containerd::ALL {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        lab.import("busybox");
        lab.kill_containerd();
        // What starts anew collects what the import no longer needs: the copy must not remember that.
        lab.start_containerd();
        lab.sh("sleep 2");
        lab.kill_containerd();
        lab.sh(&format!("cp {META} /tmp/old"));
        lab.start_containerd();
        lab.run("late", "busybox", &STAY, &[]);
        lab.kill_containerd();
        errors(&lab, &[]);
        lab.sh(&format!("cp /tmp/old {META}"));
        let report = errors(&lab, &[("process-without-record", &format!("{TASKS}/default/late"))]);
        let notes: Vec<_> = found(&report, "note").into_iter().map(|(code, _)| code).collect();
        assert_eq!(notes, ["snapshot-unreferenced"], "{report:#}");
    }
}

#[test]
fn layers_that_were_discarded_are_a_note() {
    for containerd in [Containerd::V1_7, Containerd::V2_1] {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        let local = if containerd == Containerd::V2_1 { "--local" } else { "" };
        lab.sh(&format!("ctr images import {local} --discard-unpacked-layers /images/busybox.tar"));
        lab.run("over", "busybox", &STAY, &[]);
        until("the layers are collected", || {
            // What starts anew collects.
            lab.kill_containerd();
            lab.start_containerd();
            let (_, report) = fsck(&lab, &["--daemon-running"]);
            found(&report, "note").iter().any(|(code, _)| code == "image-layers-discarded")
        });
        lab.kill_containerd();
        let report = errors(&lab, &[]);
        let notes: BTreeSet<_> = found(&report, "note").into_iter().map(|(code, _)| code).collect();
        assert!(notes.contains("image-layers-discarded"), "{report:#}");
        assert_eq!(outcome(&report, "over").0, "image-recreated", "{report:#}");
    }
}

/// Killed at any instant of an import, containerd leaves rubbish and halves, but no error: so do not cry wolf.
#[test]
fn a_daemon_killed_at_work_leaves_no_error() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    let mut codes = BTreeSet::new();
    for round in 0..12 {
        lab.start_containerd();
        let image = ["redis", "busybox", "programs"][round % 3];
        let wait = 0.02 + 0.05 * round as f64;
        let script = format!(
            "ctr images rm $(ctr images ls -q) 2>/dev/null || true
             (ctr images import /images/{image}.tar >/dev/null 2>&1; ctr run -d localhost/{image}:lab r{round} /bin/true >/dev/null 2>&1) & sleep {wait}"
        );
        lab.sh(&format!("{script}; containerd-kill; wait"));
        let (code, report) = fsck(&lab, &[]);
        assert_eq!(found(&report, "error"), BTreeSet::new(), "round {round}: {report:#}");
        assert!(code == 0 || code == 1);
        for severity in ["warning", "note"] {
            codes.extend(found(&report, severity).into_iter().map(|(code, _)| code));
        }
    }
    eprintln!("left by a daemon killed at work: {codes:?}");
}

#[test]
fn whois_says_what_ctr_says() {
    for containerd in Containerd::ALL {
        let cgroup = if containerd == Containerd::V1_6 { Cgroup::V2 } else { Cgroup::V1 };
        let Some(lab) = node(containerd, cgroup) else { return };
        lab.sh("mkdir -p /srv/data/deep");
        lab.run("bound", "busybox", &STAY, &["--mount", "type=bind,src=/srv/data,dst=/data,options=rbind:rw"]);
        // A process of exec, and a child of it.
        lab.sh("ctr tasks exec --exec-id one over /bin/sh -c 'sleep 1000 & echo $! > /child; wait' >/dev/null 2>&1 & sleep 1");
        // The loop's own `sleep 1` comes and goes.
        let pids = lab.sh(r#"for pid in $(ctr tasks ps over | awk 'NR > 1 { print $1 }'); do
                   [ "$(tr '\0' ' ' < /proc/$pid/cmdline)" = "sleep 1 " ] || echo "$pid"
               done 2>/dev/null"#);
        let mut pids: Vec<i64> = pids.lines().map(|pid| pid.parse().expect("a pid")).collect();
        pids.sort_unstable();
        let chain = lab.sh("ctr snapshots info over | jq -r .Parent").trim().to_owned();
        let mounts = lab.sh("ctr snapshots mounts /x over");
        let upper = mounts.split([',', ' ']).find_map(|o| o.strip_prefix("upperdir=")).expect("an overlay").to_owned();
        lab.kill_containerd();

        let one = |thing: &str| dewar_json(&lab, &["whois", "--json", thing])[0]["found"].clone();
        let place = one("over")[0].clone();
        let mut ours: Vec<i64> = place["pids"].as_array().expect("a list").iter().filter_map(Value::as_i64).collect();
        ours.retain(|pid| pids.contains(pid));
        assert!(ours.len() >= 3 && ours == pids, "{containerd:?}: {ours:?}, ctr says {pids:?}");
        for pid in &ours {
            let found = one(&pid.to_string());
            let process = found.as_array().expect("a list").iter().find(|f| f["is"] == "process").expect("it lives");
            assert_eq!(process["container"]["container"], "default/over", "{process:#}");
        }
        assert_eq!(place["snapshots"][0]["directory"], upper.as_str());
        assert_eq!(place["snapshots"][1]["key"], chain.as_str());
        assert!(place["runtime_state"].as_str().is_some_and(|path| path.ends_with("over/state.json")), "{place:#}");
        let shim = place["shim"]["pid"].to_string();
        assert_eq!(one(&shim)[0]["container"]["how"], "its shim", "{containerd:?}");
        let cgroup = place["cgroup"].as_str().expect("it lives").to_owned();
        for (thing, right) in [
            (cgroup.as_str(), "default/over"),
            (&format!("{TASKS}/default/over/rootfs/etc"), "default/over"),
            (&format!("{upper}/child"), "default/over"),
            ("/srv/data/deep", "default/bound"),
            ("/proc/PID/root", "default/over"),
        ] {
            let thing = thing.replace("PID", &ours[0].to_string());
            let found = one(&thing)[0].clone();
            let who = if found["is"] == "process" { &found["container"] } else { &found["containers"][0] };
            assert_eq!(who["container"], right, "{containerd:?}: {thing}: {found:#}");
        }
        // A layer: by its blob's digest, all three that stand on it, whatever the snapshotter.
        let layer = place["snapshots"][1]["layer"]["digest"].as_str().expect("a layer").to_owned();
        let users = one(&layer)[0]["containers"].clone();
        let users: Vec<_> = users.as_array().expect("a list").iter().map(|c| c["container"].clone()).collect();
        assert_eq!(users, ["default/bound", "default/flat", "default/made", "default/over"], "{containerd:?}");
        lab.sh(&format!("test -f {BLOBS}/{}", &layer[7..]));
    }
}

#[test]
fn a_pod_is_told_by_pid_and_log() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    if !pod::start_containerd(&lab) {
        return;
    }
    let id = pod::run(&lab, "shop", "web", "while :; do echo hi; sleep 1; done", &[]);
    until("it has said something", || lab.try_sh("test -s /var/log/pods/shop/web/0.log").status.success());
    lab.kill_containerd();
    let report = errors(&lab, &[]);
    assert_eq!(report["home"].as_array().map(Vec::len), Some(2), "pause and web: {report:#}");
    let pid = lab.sh(&format!("cat {TASKS}/k8s.io/{id}/init.pid"));
    let found = dewar_json(&lab, &["whois", "--json", pid.trim(), "/var/log/pods/shop/web/0.log", &id[..12]]);
    let right = format!("k8s.io/{id}");
    assert_eq!(found[0]["found"][0]["container"]["name"], "shop/web", "{found:#}");
    assert_eq!(found[0]["found"][0]["container"]["container"], right, "{found:#}");
    assert_eq!(found[1]["found"][0]["containers"][0]["container"], right, "{found:#}");
    assert_eq!(found[2]["found"][0]["container"], right, "{found:#}");
    // One shim serves the pod.
    let shim = found[2]["found"][0]["shim"]["pid"].to_string();
    let whose = dewar_json(&lab, &["whois", "--json", &shim]);
    assert_eq!(whose[0]["found"][0]["container"]["how"], "its shim", "{whose:#}");
}
