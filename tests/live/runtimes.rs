//! Runtimes: crun; one that nobody knows; runc with a state that is damaged. Frozen, dumped, carried to a fresh node all the
//! same, or refused, but never copied while it runs.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, dewar_ok, until};

const BUNDLE: &str = "/run/containerd/io.containerd.runtime.v2.task/default/redis";
const STATE: &str = "/run/containerd/runc/default/redis/state.json";

fn redis(lab: &Lab, command: &[&str]) -> String {
    lab.ask("redis", &[&["/usr/bin/redis-cli", "-s", "/tmp/r.sock"], command].concat()).trim().to_owned()
}

/// redis with keys and a file under the runtime `program`; the daemon is dead.
fn running(lab: &Lab, flags: &[&str]) {
    lab.start_containerd();
    lab.import("redis");
    let args = ["/usr/bin/redis-server", "--save", "", "--unixsocket", "/tmp/r.sock", "--enable-debug-command", "yes"];
    // Not by `Lab::run`, which on cgroup v2 names a program of its own.
    lab.sh(&format!(
        "ctr run -d {} localhost/redis:lab redis {}",
        flags.join(" "),
        args.join(" ").replace("  ", " '' ")
    ));
    until("redis answers", || {
        lab.inside("redis", &["/usr/bin/redis-cli", "-s", "/tmp/r.sock", "ping"]).status.success()
    });
    redis(lab, &["debug", "populate", "1000"]);
    lab.ask("redis", &["/bin/sh", "-c", "echo written > /data/file"]);
    lab.kill_containerd();
}

/// The report of a checkpoint that ends with `status`; the container goes on, and the bundle is sound.
#[track_caller]
fn checkpoint(lab: &Lab, status: i32, more: &[&str]) -> Value {
    let args = [&["checkpoint", "redis", "-o", "/tmp/layout", "--ref", "localhost/c:1", "--json"], more].concat();
    let done = lab.dewar(&args);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(status), "{said}");
    let report: Value = serde_json::from_slice(&done.stdout).expect("--json prints JSON");
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    report[0].clone()
}

#[track_caller]
fn comes_back(lab: &Lab) {
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("redis", "localhost/c:1");
    assert_eq!(redis(lab, &["dbsize"]), "1000");
    assert_eq!(lab.ask("redis", &["/bin/cat", "/data/file"]), "written\n");
}

fn says(report: &Value, list: &str, what: &str) -> bool {
    report[list].as_array().is_some_and(|all| all.iter().any(|line| line.as_str().is_some_and(|l| l.contains(what))))
}

/// crun's own restore does not understand containerd's shim, so the bundle names no program: stock `ctr` restores it with runc.
fn crun_is_carried(containerd: Containerd, cgroup: Cgroup) {
    let Some(lab) = Lab::start(containerd, cgroup) else { return };
    let crun = match cgroup {
        Cgroup::V1 => "/usr/bin/crun",
        // As runc-no-limits, for crun.
        Cgroup::V2 => {
            lab.sh("sed 's/exec runc/exec crun/' /opt/lab/bin/runc-no-limits > /tmp/crun; chmod +x /tmp/crun");
            "/tmp/crun"
        }
    };
    running(&lab, &["--runc-binary", crun]);
    lab.sh("test -s /run/containerd/runc/default/redis/status");
    let row = dewar_ok(&lab, &["ls"]);
    assert!(row.contains("running"), "{row}");

    let report = checkpoint(&lab, 0, &[]);
    assert_eq!(report["memory"], "dumped", "{report:#}");
    assert!(says(&report, "notes", "ran under crun"), "{report:#}");
    assert_eq!(redis(&lab, &["dbsize"]), "1000", "it goes on where it was");
    assert_eq!(lab.freezer_state("redis"), FrozenState::Thawed);
    if cgroup == Cgroup::V2 {
        // There `runc` must drop limits as well.
        lab.sh("runc=$(command -v runc); cp $runc /tmp/runc; rm $runc; sed 's#exec runc#exec /tmp/runc#' /opt/lab/bin/runc-no-limits > $runc; chmod +x $runc");
    }
    comes_back(&lab);
    // What crun hid is hidden still: an empty directory, the null device.
    lab.ask("redis", &["/bin/sh", "-c", "test -z \"$(ls -A /proc/acpi)$(ls -A /sys/firmware)\" && test -c /proc/keys"]);
}

#[test]
fn crun_is_carried_by_containerd_2_1_on_cgroup_v1() {
    crun_is_carried(Containerd::V2_1, Cgroup::V1);
}

#[test]
fn crun_is_carried_by_containerd_2_1_on_cgroup_v2() {
    crun_is_carried(Containerd::V2_1, Cgroup::V2);
}

#[test]
fn crun_is_carried_by_containerd_1_7() {
    crun_is_carried(Containerd::V1_7, Cgroup::V1);
}

/// The old shim, which keeps its state elsewhere, is gone since 2.0, and never could restore: its successor does.
#[test]
fn a_task_of_runtime_v1_is_carried_to_a_fresh_containerd_1_6() {
    let Some(lab) = Lab::start(Containerd::V1_6, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run(
        "w",
        "programs",
        &["/bin/witness", "8", "/var/lib/witness", "5"],
        &["--runtime", "io.containerd.runtime.v1.linux"],
    );
    let bundle = "/run/containerd/io.containerd.runtime.v1.linux/default/w";
    let ask = |lab: &Lab, bundle: &str| {
        lab.try_sh(&format!("nsenter -t $(cat {bundle}/init.pid) --mount --root /bin/witness ask"))
    };
    until("it answers", || ask(&lab, bundle).status.success());
    lab.kill_containerd();
    let before = String::from_utf8(ask(&lab, bundle).stdout).expect("it answers in words");
    dewar_ok(&lab, &["checkpoint", "w", "-o", "/tmp/layout", "--ref", "localhost/c:1"]);
    assert!(ask(&lab, bundle).status.success(), "it goes on");
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("w", "localhost/c:1");
    let back = lab.inside("w", &["/bin/witness", "ask"]);
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let id = |answer: &str| answer.split_whitespace().find(|word| word.starts_with("id=")).map(str::to_owned);
    assert_eq!(id(&String::from_utf8_lossy(&back.stdout)), id(&before), "restored, not started anew");
}

/// Its state lies where nobody looks: procfs says what there is to know.
#[test]
fn a_task_of_an_unknown_runtime_is_frozen_by_its_cgroup_and_carried() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = Lab::start(Containerd::V2_1, cgroup) else { return };
        let real = if cgroup == Cgroup::V1 { "runc" } else { "/opt/lab/bin/runc-no-limits" };
        lab.sh(&format!(
            r#"printf '#!/bin/bash\na=("$@"); [[ $1 == --root ]] && a[1]=/run/strange\nexec {real} "${{a[@]}}"\n' > /tmp/strange; chmod +x /tmp/strange"#
        ));
        running(&lab, &["--runc-binary", "/tmp/strange"]);
        lab.sh("test -s /run/strange/redis/state.json && test ! -e /run/containerd/runc/default/redis/state.json");
        let report = checkpoint(&lab, 1, &[]);
        assert_eq!(report["memory"], "dumped", "{report:#}");
        assert!(report["frozen_ms"].as_f64().is_some_and(|ms| ms > 0.0));
        assert!(says(&report, "findings", "/tmp/strange left no state that is known"), "{report:#}");
        assert_eq!(redis(&lab, &["dbsize"]), "1000");
        assert_eq!(lab.freezer_state("redis"), FrozenState::Thawed);
        lab.lose_node();
        lab.sh("rm -rf /run/strange");
        comes_back(&lab);
    }
}

#[test]
fn a_damaged_state_of_runc_takes_nothing_away() {
    let damages = [
        "truncate -s 100 STATE",
        "rm STATE",
        "rm STATE; mkfifo STATE",
        "rm STATE; ln -s /dev/zero STATE",
        "truncate -s 1T STATE",
        r#"sed -i 's/"init_process_pid":[0-9]*/"init_process_pid":1/' STATE"#,
        "rm STATE PID",
        "rm STATE; printf 1 > PID",
        "rm STATE PID; mkfifo PID",
    ];
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    running(&lab, &[]);
    lab.sh(&format!("cp {STATE} /tmp/state"));
    let pid = format!("{BUNDLE}/init.pid");
    lab.sh(&format!("cp {pid} /tmp/pid"));
    for damage in damages {
        lab.sh(&damage.replace("STATE", STATE).replace("PID", &pid));
        let report = checkpoint(&lab, 1, &[]);
        assert_eq!(report["memory"], "dumped", "{damage}: {report:#}");
        assert_eq!(report["findings"].as_array().map(Vec::len), Some(1), "{damage}: {report:#}");
        assert!(report["frozen_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{damage}");
        lab.sh(&format!("rm -f {STATE} {pid}; cp /tmp/state {STATE}; cp /tmp/pid {pid}"));
    }
    comes_back(&lab);
}

/// gVisor's and Kata's first process is a sandbox: here a process of the host, in the container's cgroup.
#[test]
fn a_sandbox_is_frozen_for_its_files_and_captured_raw() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    running(&lab, &[]);
    lab.sh(&format!(
        "rm {STATE}; cd {BUNDLE}; setsid sleep 1000 < /dev/null > /dev/null 2>&1 & echo $! > /sys/fs/cgroup/freezer/default/redis/cgroup.procs; printf $! > {BUNDLE}/init.pid"
    ));
    let report = checkpoint(&lab, 1, &[]);
    assert_eq!(report["memory"], "raw", "{report:#}");
    assert!(says(&report, "findings", "in a sandbox of its own"), "{report:#}");
    assert!(report["frozen_ms"].as_f64().is_some_and(|ms| ms > 0.0), "its files are of one moment");
    assert!(report["files"]["regular"].as_u64() > Some(0), "{report:#}");
}

/// A process that shares its cgroup with others cannot be frozen; its files would be of no one moment.
#[test]
fn what_cannot_be_frozen_is_refused_until_it_has_stopped() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    running(&lab, &[]);
    lab.sh(&format!("rm {STATE}; echo $(cat {BUNDLE}/init.pid) > /sys/fs/cgroup/freezer/cgroup.procs"));
    let refused = lab.dewar(&["checkpoint", "redis", "-o", "/tmp/layout"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("cannot be frozen") && said.contains("stop the container first"), "{said}");
    lab.sh(&format!("kill -KILL $(cat {BUNDLE}/init.pid)"));
    until("it has ended", || lab.dewar(&["checkpoint", "redis", "-o", "/tmp/layout"]).status.code() == Some(0));
}
