//! The lab proves itself: containers make the round trip by stock tools alone, and nothing survives an instance.
//! When these fail, no failure of the other live tests says anything about `dewar`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, cache};

/// Packs containerd's whole content store, and two of its images by name, as an OCI layout in /tmp/layout.
/// (`ctr images export` cannot: it takes the layers of a checkpoint index for manifests.) Images come before checkpoints,
/// so that they are unpacked even when a checkpoint then fails to be.
const PACK: &str = r#"
    mkdir /tmp/layout
    cp -r /var/lib/containerd/io.containerd.content.v1.content/blobs /tmp/layout
    echo '{"imageLayoutVersion":"1.0.0"}' > /tmp/layout/oci-layout
    ctr images ls | awk 'NR > 1 { print $1, $2, $3 }' | while read -r name type digest; do
        jq -nc --arg name "$name" --arg type "$type" --arg digest "$digest" \
            --argjson size "$(stat -c %s "/tmp/layout/blobs/${digest/:/\/}")" \
            '{mediaType: $type, digest: $digest, size: $size,
              annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $name}}'
    done | jq -s '{schemaVersion: 2, manifests: sort_by(.mediaType | contains("index"))}' > /tmp/layout/index.json
"#;

/// Fails in containerd 1.6 and 1.7 after all is imported: they unpack, and a stock checkpoint's base has no platform.
const IMPORT: &str = "tar -C /tmp/layout -cf - . | ctr images import - || true";

/// Redis with keys, checkpointed by a containerd that was killed in between, restored on a lost node.
fn round_trip(containerd: Containerd, cgroup: Cgroup) {
    let Some(lab) = Lab::start(containerd, cgroup) else { return };
    lab.start_containerd();
    lab.import("redis");
    let server =
        ["/usr/bin/redis-server", "--save", "", "--unixsocket", "/tmp/r.sock", "--enable-debug-command", "yes"];
    lab.run("redis", "redis", &server, &[]);
    let redis = |lab: &Lab, command: &[&str]| {
        lab.ask("redis", &[&["/usr/bin/redis-cli", "-s", "/tmp/r.sock"], command].concat())
    };
    until("redis answers", || {
        lab.inside("redis", &["/usr/bin/redis-cli", "-s", "/tmp/r.sock", "ping"]).status.success()
    });
    redis(&lab, &["debug", "populate", "20000"]);
    lab.ask("redis", &["/bin/sh", "-c", "echo written > /data/file"]);

    lab.kill_containerd();
    assert_eq!(redis(&lab, &["dbsize"]).trim(), "20000", "the container lives on without its daemon");
    lab.start_containerd();
    lab.sh("ctr containers checkpoint --rw --image --task redis localhost/checkpoint:1");
    assert_eq!(lab.freezer_state("redis"), FrozenState::Thawed);
    lab.sh(PACK);

    lab.lose_node();
    lab.start_containerd();
    assert_eq!(lab.sh("ctr images ls -q"), "", "a fresh node knows nothing");
    lab.sh(IMPORT);
    lab.restore("redis", "localhost/checkpoint:1");
    assert_eq!(redis(&lab, &["dbsize"]).trim(), "20000");
    assert_eq!(lab.ask("redis", &["/bin/cat", "/data/file"]), "written\n");
}

macro_rules! round_trips {
    ($($name:ident: $containerd:ident, $cgroup:ident;)*) => {$(
        #[test]
        fn $name() {
            round_trip(Containerd::$containerd, Cgroup::$cgroup);
        }
    )*};
}

round_trips! {
    stock_tools_make_the_round_trip_with_containerd_1_6_on_cgroup_v1: V1_6, V1;
    stock_tools_make_the_round_trip_with_containerd_1_6_on_cgroup_v2: V1_6, V2;
    stock_tools_make_the_round_trip_with_containerd_1_7_on_cgroup_v1: V1_7, V1;
    stock_tools_make_the_round_trip_with_containerd_1_7_on_cgroup_v2: V1_7, V2;
    stock_tools_make_the_round_trip_with_containerd_2_1_on_cgroup_v1: V2_1, V1;
    stock_tools_make_the_round_trip_with_containerd_2_1_on_cgroup_v2: V2_1, V2;
}

#[test]
fn each_instance_has_the_containerd_and_the_cgroup_it_asked_for() {
    for (containerd, cgroup, version, file) in [
        (Containerd::V1_6, Cgroup::V1, " 1.6.", "/sys/fs/cgroup/freezer/tasks"),
        (Containerd::V1_7, Cgroup::V2, " 1.7.", "/sys/fs/cgroup/cgroup.controllers"),
        (Containerd::V2_1, Cgroup::V1, " 2.1.", "/sys/fs/cgroup/freezer/tasks"),
    ] {
        let Some(lab) = Lab::start(containerd, cgroup) else { return };
        let said = lab.sh("containerd --version");
        assert!(said.contains(version), "{said}");
        lab.sh(&format!("test -e {file}"));
        lab.sh("criu check");
    }
}

#[test]
fn the_programs_are_well_before_and_after_a_stock_restore() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("witness", "programs", &["/bin/witness", "16", "/var/lib/witness", "2"], &[]);
    lab.run("many", "programs", &["/bin/many"], &[]);
    let id = |answer: &str| answer.split_whitespace().find(|word| word.starts_with("id=")).map(str::to_owned);
    for (container, question) in [("witness", ["/bin/witness", "ask"]), ("many", ["/bin/many", "check"])] {
        let before = lab.ask(container, &question);
        lab.sh(&format!("ctr containers checkpoint --rw --image --task {container} localhost/{container}:1"));
        lab.ask(container, &question);
        remove(&lab, container);
        lab.restore(container, &format!("localhost/{container}:1"));
        assert_eq!(id(&lab.ask(container, &question)), id(&before), "restored, not started anew");
    }
}

#[test]
fn the_witness_tells_files_of_another_instant() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    for (container, damage) in [
        ("file", "dd if=/tmp/old/witness of=$root/var/lib/witness conv=notrunc"),
        ("map", "dd if=/tmp/old/witness.map of=$root/var/lib/witness.map conv=notrunc"),
    ] {
        lab.run(container, "programs", &["/bin/witness", "1", "/var/lib/witness", "2"], &[]);
        lab.ask(container, &["/bin/witness", "ask"]);
        let root = format!("root=/proc/{}/root", lab.pid(container));
        lab.sh(&format!("{root}; mkdir -p /tmp/old; cp $root/var/lib/witness* /tmp/old"));
        lab.ask(container, &["/bin/witness", "ask"]);
        // Again and again: one between its reading and its writing is overwritten unseen.
        until("the witness speaks", || {
            lab.try_sh(&format!("{root}; {damage}; test -s $root/var/lib/witness.MISMATCH")).status.success()
        });
        assert!(!lab.inside(container, &["/bin/witness", "ask"]).status.success());
    }
}

#[test]
fn the_freezer_is_read_on_both_versions() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("busybox");
        lab.run("sleeper", "busybox", &["sleep", "1000"], &[]);
        assert_eq!(lab.freezer_state("sleeper"), FrozenState::Thawed);
        lab.sh("ctr task pause sleeper");
        assert_eq!(lab.freezer_state("sleeper"), FrozenState::Frozen);
        lab.sh("ctr task resume sleeper");
        assert_eq!(lab.freezer_state("sleeper"), FrozenState::Thawed);
    }
}

#[test]
fn killing_a_command_kills_what_runs_inside() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    let runs = || lab.try_sh("pgrep -x busybox").status.success();
    let start = || {
        let child = lab.command("busybox").args(["sleep", "1000"]).spawn().expect("bash runs the lab script");
        until("it runs", runs);
        child
    };

    lab.kill(start());
    assert!(!runs());

    let mut child = start();
    assert!(lab.signal(&child, "INT"));
    child.wait().expect("nobody else waits for it");
    assert!(!runs());

    // As when the test process is killed: nsenter goes first, what it started follows.
    let mut child = start();
    child.kill().expect("it is there");
    child.wait().expect("nobody else waits for it");
    until("it is gone", || !runs());
}

#[test]
fn nothing_survives_an_instance() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        let traces = occupy(&lab);
        assert!(traces.left().len() > 9, "there is something to be removed");
        drop(lab);
        assert_eq!(traces.left(), Vec::<String>::new());
    }
}

/// The worst case: the holder killed, a container frozen. The kernel ends what it can at once, the next instance the rest.
#[test]
fn what_a_killed_holder_leaves_is_swept_by_the_next() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    let traces = occupy(&lab);
    Command::new("kill").args(["-s", "KILL", &lab.holder().to_string()]).status().expect("kill is a program");
    drop(lab);
    drop(Lab::start(Containerd::V2_1, Cgroup::V1));
    until("all is gone", || traces.left().is_empty());
}

/// Fills an instance with what is hard to remove: a daemon, a running container, a frozen one, a mount, a detached process.
fn occupy(lab: &Lab) -> Traces {
    lab.start_containerd();
    lab.import("busybox");
    lab.run("runs", "busybox", &["sleep", "1000"], &[]);
    lab.run("frozen", "busybox", &["sleep", "1000"], &[]);
    lab.sh("ctr task pause frozen");
    lab.sh("mkdir /tmp/mount; mount -t tmpfs tmpfs /tmp/mount");
    lab.sh("setsid sleep 1000 > /dev/null 2>&1 &");
    Traces::of(lab)
}

/// What an instance has on the host.
struct Traces {
    /// Each with its start time: a pid, or a namespace's number, may be another's a moment later.
    processes: Vec<(PathBuf, String)>,
    places: Vec<PathBuf>,
    name: String,
}

impl Traces {
    fn of(lab: &Lab) -> Self {
        let pid_namespace = |process: &Path| fs::read_link(process.join("ns/pid")).ok();
        let theirs = pid_namespace(format!("/proc/{}", lab.init()).as_ref());
        let processes = entries("/proc").into_iter().filter(|process| pid_namespace(process) == theirs);
        let processes = processes
            .filter_map(|process| Some((start_time(&process)?, process)))
            .map(|(time, process)| (process, time));
        let name = format!("dewar-lab-{}", lab.holder());
        let hierarchies = entries("/sys/fs/cgroup").into_iter().chain(["/sys/fs/cgroup".into()]);
        let cgroups = hierarchies.map(|hierarchy| hierarchy.join(&name)).filter(|cgroup| cgroup.exists());
        let places = cgroups.chain([cache().join("instances").join(&name)]);
        Self { processes: processes.collect(), places: places.collect(), name }
    }

    fn left(&self) -> Vec<String> {
        let alive = self.processes.iter().filter(|(process, time)| start_time(process).as_ref() == Some(time));
        let places = self.places.iter().filter(|place| place.exists());
        let mut left: Vec<_> =
            alive.map(|(process, _)| process).chain(places).map(|path| path.display().to_string()).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
        left.extend(mounts.lines().filter(|mount| mount.contains(&self.name)).map(|mount| format!("mount {mount}")));
        left
    }
}

/// Field 22 of a process' stat; the name before it is the only field with spaces, and ends with the last parenthesis.
fn start_time(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}

fn entries(dir: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("a directory of the kernel's");
    entries.map(|entry| entry.expect("it lists").path()).collect()
}

/// Kills a container and has containerd forget it.
fn remove(lab: &Lab, id: &str) {
    lab.sh(&format!("ctr task rm -f {id} || true; ctr containers rm {id}"));
}

/// Waits for what must come to be, but not for ever.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited 10 s in vain until {what}");
        sleep(Duration::from_millis(20));
    }
}
