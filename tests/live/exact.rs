//! What makes a rw layer exact where containerd's own differ, or another tool's applier, would lose something.

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok, until};

/// A running container of the image `programs`, whose shell did `script`, and which then sleeps: again and again, since
/// CRIU lets a sleep end early.
fn after(lab: &Lab, script: &str, ctr_flags: &[&str]) {
    lab.run(
        "c",
        "programs",
        &["/bin/sh", "-c", &format!("{script}; touch /done; while :; do sleep 1; done")],
        ctr_flags,
    );
    // For a hundred thousand files a loaded machine needs a while.
    lab.sh("for n in $(seq 900); do find /var/lib/containerd/*/snapshots -maxdepth 3 -name done | grep -q . && exit; sleep 0.1; done; exit 1");
    lab.kill_containerd();
}

/// The lines of a listing of the rw layer by GNU tar.
fn listed(lab: &Lab) -> Vec<String> {
    let find = r#"jq -r '.manifests[] | select(.mediaType | endswith("tar+gzip")) | .digest' "$index" | tr : /"#;
    let all = lab.sh(&format!(
        "cd /tmp/layout/blobs; index=$(jq -r '[.manifests[] | select(.mediaType | test(\"index\"))][-1].digest' ../index.json | tr : /)
         tar --numeric-owner --full-time -tvzf $({find})"
    ));
    all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// CRIU makes a directory in the container's /tmp for a moment, to see what a mount covers: the time of /tmp on the disk tells
/// of it afterwards. The layer is of the moment before.
#[test]
fn what_criu_does_to_the_files_while_it_dumps_is_not_captured() {
    for cgroup in [Cgroup::V1, Cgroup::V2] {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        after(&lab, "mkdir -p /tmp/kept; touch -d '2020-01-02 03:04:05' /tmp", &[]);
        // What has just changed is read again in any case.
        std::thread::sleep(std::time::Duration::from_secs(4));
        let time = || lab.sh("stat -c %Y /var/lib/containerd/*overlayfs/snapshots/*/fs/tmp");
        let before = time();
        dewar_ok(&lab, &["checkpoint", "c", "-o", "/tmp/layout", "--task", "always"]);
        assert_ne!(time(), before, "CRIU has left /tmp alone, so this shows nothing");
        let listed = listed(&lab);
        let tmp: Vec<_> = listed.iter().filter(|line| line.contains(" tmp/")).collect();
        assert!(
            tmp.len() == 2 && tmp[0].ends_with(" 2020-01-02 03:04:05 tmp/") && tmp[1].ends_with(" tmp/kept/"),
            "{tmp:?}"
        );
    }
}

/// A snapshotter without an upperdir: the trees are compared, and what comes home is restored by `ctr`.
#[test]
fn a_container_on_the_native_snapshotter_is_carried() {
    for containerd in [Containerd::V1_6, Containerd::V2_1] {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        // The transfer service of 2.1 unpacks for its own snapshotter only.
        let local = if containerd == Containerd::V1_6 { "" } else { "--local" };
        lab.start_containerd();
        lab.sh(&format!("ctr images import {local} --snapshotter native /images/programs.tar"));
        let args = ["/bin/witness", "16", "/var/lib/witness", "1"];
        lab.run("witness", "programs", &args, &["--snapshotter", "native"]);
        until("the witness answers", || lab.inside("witness", &["/bin/witness", "ask"]).status.success());
        lab.ask("witness", &["/bin/sh", "-c", "echo changed > /etc/passwd; rm -r /home; ln /etc/group /etc/linked"]);
        lab.kill_containerd();
        let changes = dewar_ok(&lab, &["diff", "witness"]);
        for line in ["C /etc/passwd  (file, 8 B)", "D /home", "A /etc/linked"] {
            assert!(changes.lines().any(|found| found.starts_with(line)), "{line} in {changes}");
        }
        let unchanged = changes.lines().filter(|line| line.contains("/bin"));
        assert_eq!(unchanged.count(), 0, "{changes}");

        let report =
            dewar_json(&lab, &["checkpoint", "witness", "-o", "/tmp/layout", "--ref", "localhost/w:1", "--json"]);
        assert_eq!(report[0]["findings"], serde_json::json!([]));
        lab.lose_node();
        lab.start_containerd();
        lab.sh(&format!("tar -C /tmp/layout -cf - . | ctr images import {local} --snapshotter native -"));
        lab.restore("witness", "localhost/w:1");
        lab.ask("witness", &["/bin/witness", "ask"]);
        assert_eq!(lab.ask("witness", &["/bin/cat", "/etc/passwd"]), "changed\n");
        let same = lab.ask("witness", &["/bin/stat", "-c", "%h", "/etc/linked"]);
        assert_eq!(same, "2\n");
        assert!(!lab.inside("witness", &["/bin/ls", "/home"]).status.success());
    }
}

/// An idmapped snapshot's upperdir carries the host's ids; in the bundle are the container's.
#[test]
fn owners_of_an_idmapped_snapshot_are_those_that_the_container_sees() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    let map = "0:100000:65536";
    let flags = ["--remap-labels", "--uidmap", map, "--gidmap", map];
    after(&lab, "echo x > /f; chown 1000:1001 /f; chown 5 /etc; mkdir /d", &flags);
    let on_disk = lab.sh("stat -c %u:%g /var/lib/containerd/*overlayfs/snapshots/*/fs/f");
    assert_eq!(on_disk, "101000:101001\n", "the snapshot is idmapped");
    dewar_ok(&lab, &["checkpoint", "c", "-o", "/tmp/layout", "--task", "never"]);
    let listed = listed(&lab);
    for (owner, name) in [("1000/1001", "f"), ("5/0", "etc/"), ("0/0", "d/")] {
        let is_so = |line: &&String| line.contains(&format!(" {owner} ")) && line.ends_with(&format!(" {name}"));
        assert!(listed.iter().any(|line| is_so(&line)), "{name}: {listed:?}");
    }
}

/// containerd refuses a whole image for one path that is too long: it must not cost the container.
#[test]
fn a_path_too_long_does_not_cost_the_restore() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    let deep =
        "i=0; while [ $i -lt 24 ]; do d=$(printf %0200d $i); mkdir $d; cd $d; i=$((i+1)); done; echo hi > end; cd /";
    after(&lab, &format!("{deep}; echo kept > /near"), &[]);
    let ran = lab.dewar(&["checkpoint", "c", "-o", "/tmp/layout", "--ref", "localhost/c:1", "--json"]);
    assert_eq!(ran.status.code(), Some(1), "a finding: it does not come back by itself");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("too long to be unpacked; kept beside the layer as files/"), "{said}");
    dewar_ok(&lab, &["verify", "/tmp/layout"]);
    let tar = r#"jq -r '.manifests[] | select(.annotations["org.dewar.beside"]) | .digest' "$index" | tr : /"#;
    let beside = lab.sh(&format!(
        "cd /tmp/layout/blobs; index=$(jq -r '[.manifests[] | select(.mediaType | test(\"index\"))][-1].digest' ../index.json | tr : /); bsdtar -xOf $({tar}) '*/end'"
    ));
    assert_eq!(beside, "hi\n");
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("c", "localhost/c:1");
    assert_eq!(lab.ask("c", &["/bin/cat", "/near"]), "kept\n");
}

/// A file of more than eight gibibytes with a few bytes in it: no ustar field holds its size, and nobody has time to
/// read its zeros.
#[test]
fn a_huge_sparse_file_costs_next_to_nothing() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    const SIZE: u64 = (9 << 30) + 5;
    after(&lab, &format!("dd if=/dev/zero of=/big bs=1 count=0 seek={}; echo tail >> /big", SIZE - 5), &[]);
    let args = ["checkpoint", "c", "-o", "/tmp/layout", "--task", "never", "--json"];
    let report = &dewar_json(&lab, &args)[0];
    assert_eq!(report["files"]["bytes"], SIZE);
    let stored = report["sizes"]["rw_layer"].as_u64().expect("a size");
    assert!(stored < SIZE / 900, "{stored} bytes");
    let frozen = report["frozen_ms"].as_f64().expect("it lives");
    assert!(frozen < 5000.0, "{frozen} ms frozen: copying the zeros takes longer");
    let listed = listed(&lab);
    assert!(listed.iter().any(|line| line.contains(&format!(" {SIZE} ")) && line.ends_with(" big")), "{listed:?}");
}

/// What is known of each file while the container runs lies on the disk, not in memory: of 150,000 as of few.
#[test]
fn many_files_take_no_more_memory_than_few() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    let files = "mkdir /many; for d in $(seq 150); do mkdir /many/$d; for n in $(seq 1000); do echo $d.$n > /many/$d/$n; done; done";
    after(&lab, &format!("echo few > /few; {files}"), &[]);
    // The memory of the program itself, as often as it can be asked for: a peak never sinks.
    let peak = lab.sh("dewar checkpoint c -o /tmp/layout --task always > /tmp/said 2>&1 & pid=$!
         while found=$(grep VmHWM /proc/$pid/status 2> /dev/null); do peak=$found; sleep 0.005; done
         wait $pid || { cat /tmp/said >&2; exit 1; }
         echo $peak | tr -dc 0-9");
    let peak: u64 = peak.trim().parse().unwrap();
    assert!((8 << 10..128 << 10).contains(&peak), "{peak} KiB");
    let listed = listed(&lab);
    let many = listed.iter().filter(|line| line.contains(" many/") && !line.ends_with('/')).count();
    assert_eq!(many, 150_000);
    dewar_ok(&lab, &["verify", "/tmp/layout"]);
}
