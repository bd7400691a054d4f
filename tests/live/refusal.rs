//! When something stands in the way: said in words, the rest comes home, the container runs.

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, dewar_json, dewar_ok, until};

fn witness(containerd: Containerd) -> Option<Lab> {
    let lab = Lab::start(containerd, Cgroup::V1)?;
    lab.start_containerd();
    lab.import("programs");
    lab.run("witness", "programs", &["/bin/witness", "8", "/var/lib/witness", "2"], &[]);
    until("the witness answers", || lab.inside("witness", &["/bin/witness", "ask"]).status.success());
    Some(lab)
}

/// Exit status and stderr of a refused run.
#[track_caller]
fn refused(lab: &Lab, args: &[&str], code: i32) -> String {
    let output = lab.dewar(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(lab.freezer_state("witness"), FrozenState::Thawed);
    lab.ask("witness", &["/bin/witness", "ask"]);
    said
}

#[test]
fn a_running_daemon_is_named_and_refused_or_read_beside() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    let said = refused(&lab, &["ls"], 2);
    assert!(said.contains("containerd daemon is running") && said.contains("--daemon-running"), "{said}");
    let said = refused(&lab, &["checkpoint", "witness", "-o", "/tmp/layout"], 2);
    assert!(said.contains("systemctl stop containerd"), "{said}");
    assert!(!lab.try_sh("test -e /tmp/layout").status.success(), "nothing was written");
    assert!(dewar_ok(&lab, &["ls", "--daemon-running"]).contains("witness"));
    dewar_ok(&lab, &["checkpoint", "witness", "-o", "/tmp/layout", "--daemon-running"]);
    // Our lock is gone: the daemon starts again at once.
    lab.kill_containerd();
    dewar_ok(&lab, &["ls"]);
    lab.start_containerd();
}

#[test]
fn memory_that_cannot_fit_is_refused_before_anything_is_frozen_and_the_files_come_home() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    lab.kill_containerd();
    lab.sh("mkdir /tmp/small; mount -t tmpfs -o size=6m tmpfs /tmp/small");
    let always = ["checkpoint", "witness", "-o", "/tmp/small/layout", "--task", "always", "--progress", "plain"];
    let said = refused(&lab, &always, 2);
    assert!(
        said.contains("its memory needs") && said.contains("MiB are free") && said.contains("/tmp/small"),
        "{said}"
    );
    assert!(!said.contains("freezing"), "{said}");
    let said = refused(&lab, &["checkpoint", "witness", "-o", "/tmp/small/layout"], 1);
    assert!(said.contains("memory is not in the bundle: its memory needs"), "{said}");
    dewar_ok(&lab, &["verify", "/tmp/small/layout"]);
}

#[test]
fn without_criu_memory_comes_home_raw() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    lab.kill_containerd();
    let said = refused(&lab, &["checkpoint", "witness", "-o", "/tmp/layout", "--criu", "/nonexistent/criu"], 1);
    assert!(
        said.contains("memory was captured raw") && said.contains("NOT restorable") && said.contains("--criu"),
        "{said}"
    );
    let shown = dewar_json(&lab, &["inspect", "/tmp/layout", "--json"]);
    assert!(shown[0]["files"].is_object() && shown[0]["memory"]["restorable"] == false, "{shown}");
    dewar_ok(&lab, &["verify", "/tmp/layout"]);

    let always = ["checkpoint", "witness", "-o", "/tmp/always", "--task", "always", "--criu", "/nonexistent/criu"];
    refused(&lab, &always, 2);
    assert!(!lab.try_sh("test -e /tmp/always").status.success(), "nothing is written");
    // What would be lost is not killed.
    let exit = ["checkpoint", "witness", "-o", "/tmp/layout", "--exit", "--criu", "/nonexistent/criu"];
    let said = refused(&lab, &exit, 1);
    assert!(said.contains("left running"), "{said}");
}

#[test]
fn a_disk_that_fills_meanwhile_ends_the_run_and_the_container_goes_on() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    lab.kill_containerd();
    lab.sh("mkdir /tmp/small; mount -t tmpfs -o size=32m tmpfs /tmp/small");
    // There was room when it was asked: the disk is filled by the CRIU that is to dump, the second one to be asked.
    lab.sh(
        r#"printf '#!/bin/bash\nif [[ $1 == swrk ]]; then [[ ! -e /tmp/asked ]] || cat /dev/zero > /tmp/small/full; touch /tmp/asked; fi\nexec criu "$@"\n' > /tmp/filling-criu; chmod +x /tmp/filling-criu"#,
    );
    let output = lab.dewar(&["checkpoint", "witness", "-o", "/tmp/small/layout", "--criu", "/tmp/filling-criu"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "nothing fits any more");
    assert!(said.contains("space"), "{said}");
    assert_eq!(lab.freezer_state("witness"), FrozenState::Thawed);
    lab.ask("witness", &["/bin/witness", "ask"]);
    assert!(dewar_ok(&lab, &["verify", "/tmp/small/layout"]).starts_with("sound"));
    let left = lab.sh("find /tmp/small/layout -name '.dewar-*'");
    assert_eq!(left, "", "no staging stays");
}

#[test]
fn missing_blobs_are_made_again_or_named_and_the_rest_is_written() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    lab.kill_containerd();
    let store = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";
    let holds_all = |layout: &str| {
        let shown = dewar_json(&lab, &["inspect", layout, "--json"]);
        assert!(shown[0]["memory"].is_object() && shown[0]["files"].is_object(), "{shown}");
    };
    // A layer: its committed snapshot is there, so nothing is lacking.
    lab.sh(&format!("rm {store}/$(ls -S {store} | head -1)"));
    let said = refused(&lab, &["checkpoint", "witness", "-o", "/tmp/again"], 0);
    assert!(said.contains("made again from their snapshots, byte for byte"), "{said}");
    holds_all("/tmp/again");
    // All blobs, the manifest too: what cannot be had from snapshots is a finding.
    lab.sh(&format!("rm {store}/*"));
    let said = refused(&lab, &["checkpoint", "witness", "-o", "/tmp/layout"], 1);
    assert!(said.contains("localhost/programs:lab"), "{said}");
    holds_all("/tmp/layout");
}

/// A machine gives so many processes and threads, and not one more.
#[test]
fn a_node_that_is_out_of_processes_is_told_so_and_the_container_runs() {
    let Some(lab) = witness(Containerd::V2_1) else { return };
    lab.kill_containerd();
    lab.sh("mkdir /sys/fs/cgroup/pids/few");
    let (mut refused, mut came_home) = (0, 0);
    for task in ["auto", "raw"] {
        for few in 1..=16 {
            let ran = lab.try_sh(&format!(
                "rm -rf /tmp/layout; echo {few} > /sys/fs/cgroup/pids/few/pids.max; echo $$ > /sys/fs/cgroup/pids/few/cgroup.procs
                 exec dewar checkpoint witness -o /tmp/layout --task {task}"
            ));
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            let code = ran.status.code();
            assert!(matches!(code, Some(0..=2)) && !said.contains("panicked"), "{task}, {few}: {code:?} {said}");
            until("it runs", || lab.freezer_state("witness") == FrozenState::Thawed);
            lab.ask("witness", &["/bin/witness", "ask"]);
            if code == Some(2) {
                assert!(
                    said.contains("temporarily unavailable") || said.contains("limit of processes"),
                    "{few}: {said}"
                );
                refused += 1;
            } else {
                dewar_ok(&lab, &["verify", "/tmp/layout"]);
                came_home += 1;
            }
        }
    }
    assert!(refused > 0 && came_home > 0, "{refused} refused, {came_home} came home");
}
