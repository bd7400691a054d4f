//! Files that change in every way, as fast as they can, while they are checkpointed: after each restore a program compares
//! every one with what its restored memory says it must hold (`programs/churn.c`).
//!
//! What is restored is what is checkpointed next. `DEWAR_ROUNDS` asks for more rounds.

use crate::{
    harness::{Cgroup, Containerd, Lab, dewar_json, until},
    snapshotters::Scene,
};

/// Where the files lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    RwLayer,
    Bind,
}

/// What is mounted, on a file system that tells when files change.
const SOURCE: &str = "/var/lib/data";

/// Bytes that do not compress: to copy them takes a while, where every processor has other things to do.
const BEFORE: u64 = 4 << 20;

fn rounds() -> u32 {
    std::env::var("DEWAR_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}

/// Puts back what was mounted, by GNU tar, where the spec names it.
fn put_back(lab: &Lab, reference: &str) {
    let shown = dewar_json(lab, &["inspect", "/tmp/layout", reference, "--json"]);
    let members = shown[0]["members"].as_array().expect("members");
    let mount = members.iter().find(|member| member["destination"] == "/data").expect("the mount is in the bundle");
    let blob = mount["digest"].as_str().expect("a digest").replace(':', "/");
    lab.sh(&format!(
        "rm -r {SOURCE}; mkdir {SOURCE}; tar -C {SOURCE} --xattrs --xattrs-include='*' --numeric-owner -xpf /tmp/layout/blobs/{blob}"
    ));
}

/// Checkpoints the container, ends it, and restores it under the next name by the same containerd; what it then says.
fn carry_on(lab: &Lab, place: Place, import: &dyn Fn(), round: u32) -> String {
    let (old, new) = (format!("churn-{round}"), format!("churn-{}", round + 1));
    let reference = format!("localhost/churn:{round}");
    let args = ["--daemon-running", "checkpoint", &old, "-o", "/tmp/layout", "--ref", &reference, "--binds"];
    let args = &args[..if place == Place::Bind { 8 } else { 7 }];
    // CRIU refuses a file that was made without a name, has got one, and is still open for a moment: then once more.
    while let taken = lab.dewar(args)
        && !taken.status.success()
    {
        let said = String::from_utf8_lossy(&taken.stderr);
        assert!(said.contains("link remap"), "round {round}: {said}");
        lab.sh("rm -r /tmp/layout");
    }
    // It has gone on since, and its cgroup is wanted.
    lab.sh(&format!(
        "ctr task kill -s KILL {old}; while ! ctr task rm {old}; do sleep 0.1; done 2>/dev/null; ctr containers rm {old}"
    ));
    if place == Place::Bind {
        put_back(lab, &reference);
    }
    import();
    lab.restore(&new, &reference);
    let asked = lab.inside(&new, &["/bin/churn", "ask"]);
    lab.sh("rm -r /tmp/layout; ctr images ls -q | grep localhost/churn | xargs ctr images rm --sync");
    String::from_utf8_lossy(&asked.stdout).into_owned()
}

fn churns(cgroup: Cgroup, place: Place, rounds: u32) {
    let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.sh(&format!("mkdir {SOURCE}"));
    let mount = format!("type=bind,src={SOURCE},dst=/data,options=rbind:rw");
    match place {
        Place::RwLayer => lab.run("churn-0", "programs", &["/bin/churn", "/var/lib/churn"], &[]),
        Place::Bind => lab.run("churn-0", "programs", &["/bin/churn", "/data/churn"], &["--mount", &mount]),
    }
    if (cgroup, place) == (Cgroup::V1, Place::RwLayer) {
        // It is read before the others, so that files change between a look at the mappings and their turn.
        lab.sh(&format!("head -c {BEFORE} /dev/urandom > /proc/{}/root/var/lib/a", lab.pid("churn-0")));
    }
    goes_on(&lab, place, &|| lab.import_layout("/tmp/layout"), rounds, &format!("{cgroup:?}, {place:?}"));
}

/// The container that has begun is carried on so many times.
fn goes_on(lab: &Lab, place: Place, import: &dyn Fn(), rounds: u32, on: &str) {
    until("it answers", || lab.inside("churn-0", &["/bin/churn", "ask"]).status.success());
    for round in 0..rounds {
        // Some files must be old enough to be believed.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let answer = carry_on(lab, place, import, round);
        assert!(answer.starts_with("ok "), "round {round} of {rounds} on {on}: {answer}");
    }
    eprintln!("{rounds} rounds on {on}: memory and files agreed in each");
}

#[test]
fn what_is_restored_is_of_one_moment_however_fast_it_changes_on_v1() {
    churns(Cgroup::V1, Place::RwLayer, rounds());
}

#[test]
fn what_is_restored_is_of_one_moment_however_fast_it_changes_on_v2() {
    churns(Cgroup::V2, Place::RwLayer, rounds().div_ceil(2));
}

#[test]
fn what_is_mounted_is_of_the_same_moment_however_fast_it_changes() {
    churns(Cgroup::V1, Place::Bind, rounds());
}

#[test]
fn what_two_trees_hold_is_of_one_moment_however_fast_it_changes() {
    for snapshotter in ["native", "blockfile"] {
        let Some(scene) = Scene::start(Containerd::V2_1, snapshotter) else { return };
        scene.run("churn-0", &["/bin/churn", "/var/lib/churn"]);
        let import = || scene.import("tar -C /tmp/layout -cf - .");
        goes_on(&scene.lab, Place::RwLayer, &import, rounds().div_ceil(2), snapshotter);
    }
}
