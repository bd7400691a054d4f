//! The main job, as a user does it: containerd is killed, `dewar` checkpoints, the node is lost, a fresh containerd
//! imports and restores; memory and files are there, and of one instant.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, dewar_json, dewar_ok, until};

/// What one checkpoint's report must say, whatever the container.
#[track_caller]
fn checkpoint(lab: &Lab, containers: &[&str], more: &[&str]) -> Vec<Value> {
    let args = [&["checkpoint"], containers, &["-o", "/tmp/layout", "--json"], more].concat();
    let reports = dewar_json(lab, &args);
    let reports = reports.as_array().expect("a report for each container").clone();
    assert_eq!(reports.len(), containers.len());
    for report in &reports {
        assert_eq!(report["findings"], serde_json::json!([]), "{report}");
    }
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"), "a finished layout verifies");
    reports
}

fn reference(report: &Value) -> &str {
    report["ref"].as_str().expect("a report has a ref")
}

/// The node is lost; a fresh containerd takes the layout in and restores each container.
fn carry(lab: &Lab, containers: &[(&str, &str)]) {
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    for (container, reference) in containers {
        lab.restore(container, reference);
    }
}

fn redis(lab: &Lab, command: &[&str]) -> String {
    lab.ask("redis", &[&["/usr/bin/redis-cli", "-s", "/tmp/r.sock"], command].concat()).trim().to_owned()
}

/// redis with 100,000 keys; nobody writes a thing of the daemon's, and the daemon is dead.
fn redis_is_carried(containerd: Containerd, cgroup: Cgroup) {
    let Some(lab) = Lab::start(containerd, cgroup) else { return };
    lab.start_containerd();
    lab.import("redis");
    let args = ["--save", "", "--port", "6379", "--unixsocket", "/tmp/r.sock", "--enable-debug-command", "yes"];
    lab.run("redis", "redis", &[&["/usr/bin/redis-server"], &args[..]].concat(), &[]);
    until("redis answers", || {
        lab.inside("redis", &["/usr/bin/redis-cli", "-s", "/tmp/r.sock", "ping"]).status.success()
    });
    redis(&lab, &["debug", "populate", "100000"]);
    lab.ask("redis", &["/bin/sh", "-c", "echo written > /data/file; rm -rf /etc/passwd"]);
    lab.kill_containerd();

    let reports = checkpoint(&lab, &["redis"], &[]);
    assert_eq!(reports[0]["memory"], "dumped");
    assert!(reports[0]["frozen_ms"].as_f64().is_some_and(|ms| ms > 0.0));
    assert_eq!(redis(&lab, &["dbsize"]), "100000", "it goes on where it was");
    assert_eq!(lab.freezer_state("redis"), FrozenState::Thawed);
    assert_no_network_lock(&lab, "redis");

    carry(&lab, &[("redis", reference(&reports[0]))]);
    assert_eq!(redis(&lab, &["dbsize"]), "100000");
    assert_eq!(lab.ask("redis", &["/bin/cat", "/data/file"]), "written\n");
    assert!(!lab.inside("redis", &["/bin/cat", "/etc/passwd"]).status.success(), "what was deleted stays deleted");
}

/// CRIU's firewall rules are gone.
#[track_caller]
pub fn assert_no_network_lock(lab: &Lab, container: &str) {
    let pid = lab.pid(container);
    let rules = lab.sh(&format!(
        "nsenter -t {pid} --net sh -c 'iptables-save 2>/dev/null; ip6tables-save 2>/dev/null; nft list ruleset 2>/dev/null || true'"
    ));
    assert!(!rules.contains("CRIU"), "{rules}");
}

macro_rules! carried {
    ($($name:ident: $containerd:ident, $cgroup:ident;)*) => {$(
        #[test]
        fn $name() {
            redis_is_carried(Containerd::$containerd, Cgroup::$cgroup);
        }
    )*};
}

carried! {
    redis_is_carried_to_a_fresh_containerd_1_6_on_cgroup_v1: V1_6, V1;
    redis_is_carried_to_a_fresh_containerd_1_6_on_cgroup_v2: V1_6, V2;
    redis_is_carried_to_a_fresh_containerd_1_7_on_cgroup_v1: V1_7, V1;
    redis_is_carried_to_a_fresh_containerd_1_7_on_cgroup_v2: V1_7, V2;
    redis_is_carried_to_a_fresh_containerd_2_1_on_cgroup_v1: V2_1, V1;
    redis_is_carried_to_a_fresh_containerd_2_1_on_cgroup_v2: V2_1, V2;
}

/// A program that knows what its memory and its files must be ticks on after the restore, or stops at a mismatch.
#[test]
fn memory_and_files_are_of_one_instant() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        // Files in the rw layer, changed every millisecond.
        lab.run("witness", "programs", &["/bin/witness", "64", "/var/lib/witness", "1"], &[]);
        until("the witness answers", || lab.inside("witness", &["/bin/witness", "ask"]).status.success());
        lab.kill_containerd();
        let before = lab.ask("witness", &["/bin/witness", "ask"]);
        let reports: Vec<_> =
            (0..5).flat_map(|i| checkpoint(&lab, &["witness"], &["--ref", &format!("localhost/w:{i}")])).collect();
        lab.ask("witness", &["/bin/witness", "ask"]);
        // How much depends on what else the machine has to do.
        let hashed = reports.iter().filter_map(|report| report["hashed_ahead"].as_u64());
        assert!(hashed.max() > Some(16 << 20), "its memory is hashed while CRIU writes it: {reports:#?}");
        for (i, report) in reports.iter().enumerate() {
            carry(&lab, &[("witness", reference(report))]);
            std::thread::sleep(std::time::Duration::from_millis(50));
            let after = lab.ask("witness", &["/bin/witness", "ask"]);
            assert_eq!(word(&after, "id="), word(&before, "id="), "restored, not started anew");
            assert!(number(&after, "tick=") > number(&before, "tick="), "round {i}: {before} {after}");
        }
    }
}

fn word<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    answer.split_whitespace().find_map(|word| word.strip_prefix(key))
}

fn number(answer: &str, key: &str) -> u64 {
    word(answer, key).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {key} in {answer:?}"))
}

/// Threads, sockets of both kinds, a pipe to a child, an unlinked open file, a shared file mapping, timers.
#[test]
fn a_program_that_holds_many_kinds_of_state_is_carried() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.run("many", "programs", &["/bin/many"], &[]);
        until("it answers", || lab.inside("many", &["/bin/many", "check"]).status.success());
        let before = lab.ask("many", &["/bin/many", "check"]);
        lab.kill_containerd();
        let reports = checkpoint(&lab, &["many"], &[]);
        lab.ask("many", &["/bin/many", "check"]);
        carry(&lab, &[("many", reference(&reports[0]))]);
        let after = lab.ask("many", &["/bin/many", "check"]);
        assert_eq!(word(&after, "id="), word(&before, "id="), "restored, not started anew");
    }
}

/// A parent that waits for its child to begin a program can be stopped by nobody: the checkpoint comes in between; and where
/// there is no in between, that is said soon, and memory is captured raw.
#[test]
fn a_program_that_begins_others_all_the_time_is_carried() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.run("spawn", "programs", &["/bin/spawn", "3"], &[]);
        lab.run("ever", "programs", &["/bin/spawn", "ever"], &[]);
        let count = || lab.inside("spawn", &["/bin/cat", "/var/lib/spawn"]).stdout;
        let count = || String::from_utf8_lossy(&count()).trim().parse::<u64>().unwrap_or(0);
        until("programs end", || count() > 10);
        lab.kill_containerd();

        let never = lab.dewar(&["checkpoint", "ever", "-o", "/tmp/raw", "--json"]);
        let report: Value = serde_json::from_slice(&never.stdout).expect("a report");
        assert_eq!((never.status.code(), &report[0]["memory"]), (Some(1), &"raw".into()), "{report:#}");
        let findings = report[0]["findings"].as_array().expect("findings");
        let is_told = |text: &Value| text.as_str().is_some_and(|text| text.contains("begin a program (vfork)"));
        assert!(findings.iter().any(is_told), "{report:#}");
        // CRIU would wait for ten seconds, with the container frozen.
        assert!(report[0]["frozen_ms"].as_f64().is_some_and(|ms| ms < 8000.0), "{report:#}");

        let mut reports = Vec::new();
        for _ in 0..8 {
            reports = checkpoint(&lab, &["spawn"], &[]);
            assert_eq!(reports[0]["memory"], "dumped");
        }
        let before = count();
        carry(&lab, &[("spawn", reference(&reports[0]))]);
        until("it goes on", || count() > before);
        assert!(count() < before + 2000, "it began anew");
    }
}

/// A live connection needs the flag, and says so; with it the network is locked for the dump and unlocked again.
#[test]
fn established_connections_are_dumped_when_asked_and_never_left_locked() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("many", "programs", &["/bin/many", "established"], &[]);
    until("it answers", || lab.inside("many", &["/bin/many", "check"]).status.success());
    lab.kill_containerd();

    let refused = lab.dewar(&["checkpoint", "many", "-o", "/tmp/layout", "--task", "always"]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--tcp-established"), "{said}");
    assert_no_network_lock(&lab, "many");
    lab.ask("many", &["/bin/many", "check"]);

    for method in ["auto", "iptables", "nftables"] {
        checkpoint(&lab, &["many"], &["--tcp-established", "--network-lock", method]);
        assert_no_network_lock(&lab, "many");
        lab.ask("many", &["/bin/many", "check"]);
    }
}

#[test]
fn bind_mounts_go_along_as_the_container_sees_them() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.sh("mkdir -p /srv/data/sub /srv/other; echo one > /srv/data/sub/file; ln -s /etc/shadow /srv/data/link; echo conf > /srv/conf");
    let mount = |from: &str, to: &str| format!("type=bind,src={from},dst={to},options=rbind:rw");
    // /var/run leads to /run in the image of many distributions; here a link of our own does the same.
    lab.run(
        "binds",
        "programs",
        &["/bin/witness", "1", "/data/witness", "5"],
        &["--mount", &mount("/srv/data", "/data"), "--mount", &mount("/srv/conf", "/etc/app.conf")],
    );
    until("the witness answers", || lab.inside("binds", &["/bin/witness", "ask"]).status.success());
    lab.kill_containerd();
    // The source moves away; what the container has mounted is still the old one.
    lab.sh("mv /srv/data /srv/moved; mkdir /srv/data; echo wrong > /srv/data/file");
    let reports = checkpoint(&lab, &["binds"], &["--binds"]);
    lab.ask("binds", &["/bin/witness", "ask"]);

    let inspected = dewar_json(&lab, &["inspect", "/tmp/layout", reference(&reports[0]), "--json"]);
    let members = inspected[0]["members"].as_array().expect("members").clone();
    let tar_of = |destination: &str| {
        let member = members
            .iter()
            .find(|m| m["destination"] == destination)
            .unwrap_or_else(|| panic!("{destination} is a member"));
        let digest = member["digest"].as_str().expect("a digest");
        format!("/tmp/layout/blobs/{}", digest.replace(':', "/"))
    };
    let data = tar_of("/data");
    lab.sh(&format!("mkdir /tmp/data; tar -C /tmp/data -xf {data}"));
    assert_eq!(
        lab.sh("cat /tmp/data/sub/file; readlink /tmp/data/link; ls /tmp/data"),
        "one\n/etc/shadow\nlink\nsub\nwitness\nwitness.map\n"
    );
    assert_eq!(lab.sh(&format!("tar -xOf {}", tar_of("/etc/app.conf"))), "conf\n");

    // On the new node the mounts are there again, with their contents of that instant.
    lab.sh("rm -rf /srv/data; mv /tmp/data /srv/data");
    carry(&lab, &[("binds", reference(&reports[0]))]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    lab.ask("binds", &["/bin/witness", "ask"]);
}

#[test]
fn a_paused_container_stays_paused_and_is_carried() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.run("paused", "programs", &["/bin/witness", "4", "/var/lib/witness", "1"], &[]);
        until("the witness answers", || lab.inside("paused", &["/bin/witness", "ask"]).status.success());
        lab.sh("ctr task pause paused");
        lab.kill_containerd();
        assert!(dewar_ok(&lab, &["ls"]).contains("paused"));
        let reports = checkpoint(&lab, &["paused"], &[]);
        assert_eq!(lab.freezer_state("paused"), FrozenState::Frozen, "as it was found");
        lab.start_containerd();
        lab.sh("ctr task resume paused");
        lab.ask("paused", &["/bin/witness", "ask"]);
        carry(&lab, &[("paused", reference(&reports[0]))]);
        lab.ask("paused", &["/bin/witness", "ask"]);
    }
}

#[test]
fn a_container_with_a_terminal_is_carried() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("busybox");
    // `-t` needs a terminal on ctr's side; detached, the shim keeps the master.
    lab.sh("script -qec 'ctr run -d -t localhost/busybox:lab tty sh -c \"tty; i=0; while :; do i=\\$((i+1)); echo \\$i > /count; sleep 0.05; done\"' /dev/null");
    until("it counts", || lab.inside("tty", &["/bin/cat", "/count"]).status.success());
    lab.kill_containerd();
    let reports = checkpoint(&lab, &["tty"], &[]);
    let before: u64 = lab.ask("tty", &["/bin/cat", "/count"]).trim().parse().expect("a number");
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    // `ctr containers restore --live` attaches to a terminal: it stays in the foreground as long as the container runs.
    lab.sh(&format!(
        "setsid script -qfec 'ctr containers restore --rw --live tty {}' /tmp/typescript > /dev/null 2>&1 < /dev/null &",
        reference(&reports[0])
    ));
    let exists = "test -s /run/containerd/io.containerd.runtime.v2.task/default/tty/init.pid";
    until("it is restored", || lab.try_sh(exists).status.success());
    until("it counts on", || {
        let now = lab.inside("tty", &["/bin/cat", "/count"]);
        String::from_utf8_lossy(&now.stdout).trim().parse::<u64>().is_ok_and(|now| now > before)
    });
}

#[test]
fn with_exit_the_container_is_killed_last_and_carried() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        lab.start_containerd();
        lab.import("programs");
        lab.run("exits", "programs", &["/bin/many"], &[]);
        until("it answers", || lab.inside("exits", &["/bin/many", "check"]).status.success());
        let before = lab.ask("exits", &["/bin/many", "check"]);
        let pid = lab.pid("exits");
        lab.kill_containerd();
        let reports = checkpoint(&lab, &["exits"], &["--exit"]);
        assert_eq!(reports[0]["exited"], true);
        assert!(!lab.try_sh(&format!("test -d /proc/{pid}")).status.success(), "it has ended");
        assert!(dewar_ok(&lab, &["ls"]).contains("stopped"));
        carry(&lab, &[("exits", reference(&reports[0]))]);
        let after = lab.ask("exits", &["/bin/many", "check"]);
        assert_eq!(word(&after, "id="), word(&before, "id="));
    }
}

#[test]
fn a_stopped_container_comes_home_without_memory() {
    let Some(lab) = Lab::start(Containerd::V1_7, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("busybox");
    lab.run("stopped", "busybox", &["sh", "-c", "echo kept > /kept; rm /etc/passwd; exec sleep 1000"], &[]);
    until("it has written", || lab.inside("stopped", &["/bin/cat", "/kept"]).status.success());
    lab.sh("ctr task kill -s KILL stopped");
    lab.kill_containerd();
    let reports = checkpoint(&lab, &["stopped"], &[]);
    assert_eq!(reports[0]["memory"], "none");
    let refused = lab.dewar(&["checkpoint", "stopped", "-o", "/tmp/none", "--task", "always"]);
    assert_eq!(refused.status.code(), Some(2));

    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    // Without --live the container is started anew on its old files.
    lab.sh(&format!("ctr containers restore --rw stopped {}", reference(&reports[0])));
    lab.sh("ctr snapshots mounts /tmp/m stopped > /tmp/mount; mkdir /tmp/m; sh /tmp/mount");
    assert_eq!(lab.sh("cat /tmp/m/kept; ls /tmp/m/etc/passwd 2>/dev/null || echo gone"), "kept\ngone\n");
    // The committed image holds the same files for any tool.
    let committed = format!("{}-rootfs", reference(&reports[0]));
    let seen =
        lab.sh(&format!("ctr run --rm {committed} again sh -c 'cat /kept; ls /etc/passwd 2>/dev/null || echo gone'"));
    assert_eq!(seen, "kept\ngone\n");
}

#[test]
fn two_containers_share_one_layout_and_its_tar_form() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("one", "programs", &["/bin/witness", "1", "/var/lib/witness", "2"], &[]);
    lab.run("two", "programs", &["/bin/many"], &[]);
    until("both answer", || {
        lab.inside("one", &["/bin/witness", "ask"]).status.success()
            && lab.inside("two", &["/bin/many", "check"]).status.success()
    });
    lab.kill_containerd();
    let reports = checkpoint(&lab, &["one", "two"], &[]);
    let names =
        lab.sh(r#"jq -r '.manifests[].annotations["io.containerd.image.name"] // empty' /tmp/layout/index.json"#);
    let (one, two) = (reference(&reports[0]), reference(&reports[1]));
    assert_eq!(
        names,
        format!("{one}-rootfs\nlocalhost/programs:lab\n{one}\n{two}-rootfs\n{two}\n"),
        "one base image serves both"
    );
    carry(&lab, &[("one", one), ("two", two)]);
    lab.ask("one", &["/bin/witness", "ask"]);
    lab.ask("two", &["/bin/many", "check"]);

    // The same again as one tar through a pipe.
    lab.kill_containerd();
    lab.sh("dewar checkpoint one two -o - > /tmp/both.tar");
    lab.lose_node();
    lab.start_containerd();
    lab.sh("ctr images import /tmp/both.tar");
    let refs = lab.sh("ctr images ls -q | grep /checkpoint/ | grep -v -- -rootfs");
    for (container, reference) in ["one", "two"].iter().zip(refs.lines()) {
        lab.restore(container, reference);
    }
    lab.ask("one", &["/bin/witness", "ask"]);
    lab.ask("two", &["/bin/many", "check"]);
}
