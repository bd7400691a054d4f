//! Memory without CRIU: captured raw, opened by gdb, whole; and what else is volatile. The container runs on, untraced.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, dewar_json, dewar_ok, until};

/// A node with a suspect on it, which CRIU refuses, and an exec session in its container.
fn scene(cgroup: Cgroup) -> Option<Lab> {
    let lab = Lab::start(Containerd::V2_1, cgroup)?;
    lab.start_containerd();
    lab.import("programs");
    lab.run("suspect", "programs", &["/bin/suspect"], &[]);
    until("the suspect answers", || answers(&lab));
    lab.sh("ctr task exec -d --exec-id intruder suspect /bin/suspect linger");
    until("the session is there", || pids(&lab, "linger").len() == 1);
    lab.kill_containerd();
    Some(lab)
}

fn answers(lab: &Lab) -> bool {
    lab.inside("suspect", &["/bin/suspect", "check"]).status.success()
}

/// The processes, as the lab counts, whose command line has this word.
fn pids(lab: &Lab, word: &str) -> Vec<String> {
    let found = lab.sh(&format!("pgrep -f '^/bin/suspect.*{word}' || true"));
    found.split_whitespace().map(str::to_owned).collect()
}

/// It runs, is not frozen, and nobody holds it by ptrace.
#[track_caller]
fn assert_free(lab: &Lab) {
    assert_eq!(lab.freezer_state("suspect"), FrozenState::Thawed);
    assert!(answers(lab), "it runs");
    let traced = lab.sh("grep -h TracerPid /proc/[0-9]*/task/*/status 2>/dev/null | grep -v '\\s0$' || true");
    assert_eq!(traced, "", "nobody is left traced");
}

/// Runs a checkpoint that must end with `code`: its report, and what it said.
#[track_caller]
fn checkpoint(lab: &Lab, more: &[&str], code: i32) -> (Value, String) {
    let args = [&["checkpoint", "suspect", "-o", "/tmp/layout", "--json"], more].concat();
    let output = lab.dewar(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    (report[0].clone(), said)
}

/// A member of the last checkpoint, by the end of its media type: its path inside.
fn member(lab: &Lab, kind: &str) -> String {
    // As README.md has it.
    let digests = lab.sh(&format!(
        r#"dewar inspect /tmp/layout --json | jq -r '.[].members[] | select(.media_type | contains("{kind}")).digest'"#
    ));
    let last = digests.lines().last().expect("a checkpoint has it");
    format!("/tmp/layout/blobs/sha256/{}", last.trim_start_matches("sha256:"))
}

/// Unpacks the raw capture to `/tmp/raw`; its document.
fn unpacked(lab: &Lab) -> Value {
    let tar = member(lab, "memory.raw");
    lab.sh(&format!("rm -rf /tmp/raw; tar -C /tmp -xf {tar}"));
    serde_json::from_str(&lab.sh("cat /tmp/raw/processes.json")).unwrap()
}

/// A path of the lab's as this machine sees it.
fn from_here(lab: &Lab, path: &str) -> PathBuf {
    format!("/proc/{}/root{path}", lab.init()).into()
}

/// What gdb says to these commands about a core.
#[track_caller]
fn gdb(lab: &Lab, pid: &Value, program: &str, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set auto-load off"]);
    gdb.args(commands.iter().flat_map(|command| ["-ex", command]));
    gdb.arg(from_here(lab, program)).arg(from_here(lab, &format!("/tmp/raw/{pid}/core")));
    let output = gdb.output().expect("gdb is installed (.ci/run)");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    said
}

fn process(document: &Value, is: impl Fn(&Value) -> bool) -> &Value {
    document["processes"].as_array().unwrap().iter().find(|p| is(p)).unwrap_or_else(|| panic!("{document:#}"))
}

fn rows(from: u32, to: u32) -> String {
    (from..to).map(|n| format!("line {n}\n")).collect()
}

#[track_caller]
fn assert_gdb_opens_the_cores(lab: &Lab, document: &Value) {
    let main = process(document, |p| p["comm"]["text"] == ".hidden");
    let program = format!("/tmp/{}", main["exe_saved"].as_str().unwrap());
    let said = gdb(
        lab,
        &main["pid"],
        &program,
        &[
            "info threads",
            "x/s *(char**)&secret",
            "x/s *(char**)&desert",
            "x/s *(char**)&desert + (32UL << 30)",
            "x/s *(char**)&desert + (64UL << 30) - 100",
            "x/s *(char**)&shared + (600 << 10)",
            "p/x *(long*)&known",
            "thread apply all -q p/x $r12",
            "thread apply all bt",
            "info auxv",
        ],
    );
    assert!(said.matches("LWP").count() >= 4, "{said}");
    for text in
        ["\".24/elpats_yrettab.esroh-tcerroc", "\"first\"", "\"an oasis\"", "\"last\"", "\"written by the child\""]
    {
        assert!(said.contains(text), "{text}: {said}");
    }
    // In memory, and in the register of the one thread that waits with it.
    assert_eq!(said.matches("0x5ec2e7c0ffee1234").count(), 2, "{said}");
    assert!(said.contains("in wait_only") && said.contains("in main"), "the stacks are walked: {said}");
    let session = process(document, |p| p["in_tree"] == false);
    let said = gdb(lab, &session["pid"], "/bin/true", &["p/x $r12", "info threads"]);
    assert!(said.contains("0x5ec2e7c0ffee1234"), "{said}");
}

#[track_caller]
fn assert_files_without_a_name_are_whole(lab: &Lab, main: &Value) {
    let saved = |name: &str| {
        let files = main["files"].as_array().unwrap();
        let file = files.iter().find(|f| f["target"]["text"].as_str().unwrap().contains(name)).unwrap();
        assert_eq!(file["deleted"], true, "{file}");
        std::fs::read(from_here(lab, &format!("/tmp/{}", file["saved"].as_str().unwrap()))).unwrap()
    };
    let mut gone = rows(0, 5000).into_bytes();
    gone.resize(8 << 20, 0);
    gone.extend(rows(5000, 5010).into_bytes());
    assert!(saved("/var/lib/gone") == gone, "the unlinked file, with its hole");
    assert!(saved("/memfd:payload") == rows(0, 3000).into_bytes(), "the memfd");
    let program = main["exe_saved"].as_str().unwrap();
    lab.sh(&format!("pid=$(cat /run/containerd/io.containerd.runtime.v2.task/*/suspect/init.pid); cmp /tmp/{program} /proc/$pid/root/bin/suspect"));
}

#[track_caller]
fn assert_the_document_tells_all(document: &Value) {
    assert_eq!(document["restorable"], false);
    let all = document["processes"].as_array().unwrap();
    assert_eq!(all.len(), 3, "{document:#}");
    let main = process(document, |p| p["comm"]["text"] == ".hidden");
    assert_eq!(main["threads"].as_array().unwrap().len(), 4);
    assert!(all.iter().flat_map(|p| p["threads"].as_array().unwrap()).all(|t| t["registers"] == "all"), "{document:#}");
    assert_eq!((&main["in_tree"], &main["exe_deleted"], &main["pids"][1]), (&true.into(), &true.into(), &1.into()));
    assert!(
        main["memory"]["size"].as_u64().unwrap() > 64 << 30 && main["memory"]["stored"].as_u64().unwrap() < 8 << 20
    );
    let socket = |text: &str| {
        let files = main["files"].as_array().unwrap().iter();
        files.filter(|f| f["socket"]["local"]["text"] == text && f["socket"]["state"] == "LISTEN").count()
    };
    assert_eq!((socket("127.0.0.1:4444"), socket("/run/suspect.sock")), (1, 1), "{main:#}");
    // A name of any bytes: readable, and exact.
    let child = process(document, |p| p["ppid"] == main["pid"]);
    assert_eq!(child["comm"]["hex"], "6f646420ff0a6e616d65", "{child:#}");
}

#[track_caller]
fn assert_what_is_volatile(lab: &Lab, document: &Value) {
    let volatile: Value = serde_json::from_str(&lab.sh(&format!("cat {}", member(lab, "volatile")))).unwrap();
    let network = &volatile["networks"][0];
    assert_eq!((&network["host"], volatile["networks"].as_array().unwrap().len()), (&false.into(), 1));
    let main = process(document, |p| p["comm"]["text"] == ".hidden");
    for (local, protocol) in [("127.0.0.1:4444", "tcp"), ("/run/suspect.sock", "unix")] {
        let rows = network["sockets"].as_array().unwrap();
        let row = rows.iter().find(|row| row["local"]["text"] == local).unwrap_or_else(|| panic!("{network:#}"));
        assert_eq!(
            (&row["protocol"], &row["state"], &row["holders"][0]["pid"]),
            (&protocol.into(), &"LISTEN".into(), &main["pid"])
        );
    }
    assert!(network["interfaces"].as_array().unwrap().iter().any(|i| i["name"]["text"] == "lo"));
    assert!(network["addresses"].as_array().unwrap().iter().any(|a| a["address"] == "127.0.0.1"));
    let session = process(&volatile, |p| p["in_tree"] == false);
    assert_eq!(session["cmdline"][1]["text"], "linger");
    assert!(volatile["mounts"][0]["text"].as_str().unwrap().contains(" - overlay "));
    let files = volatile["cgroups"].as_array().unwrap().iter().flat_map(|c| c["files"].as_array().unwrap());
    assert!(files.into_iter().any(|file| file["name"] == "cgroup.procs"), "{:#}", volatile["cgroups"]);
}

/// `ctr` takes such a checkpoint, and brings back what can be: the files.
#[track_caller]
fn assert_ctr_restores_the_files(lab: &Lab, reference: &Value) {
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.sh(&format!("ctr containers restore --rw suspect {}", reference.as_str().unwrap()));
    assert!(lab.sh("ctr containers ls").contains("suspect"));
    lab.sh("mkdir -p /tmp/mnt; ctr snapshots mounts /tmp/mnt suspect | sh");
    assert_eq!(lab.sh("cat /tmp/mnt/var/lib/left; umount /tmp/mnt"), rows(0, 3));
}

fn what_criu_refuses_is_captured_raw(cgroup: Cgroup) {
    let Some(lab) = scene(cgroup) else { return };
    let (report, said) = checkpoint(&lab, &[], 1);
    assert_free(&lab);
    assert_eq!(report["memory"], "raw", "{report:#}");
    assert!(
        said.contains("NOT restorable") && said.contains("io_uring") && said.contains("io_uring_disabled"),
        "{said}"
    );
    assert!(report["sizes"]["raw"].as_u64().unwrap() < 64 << 20, "64 GiB untouched cost nothing: {report:#}");
    assert!(dewar_ok(&lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    assert!(dewar_ok(&lab, &["inspect", "/tmp/layout"]).contains("raw, NOT restorable: 3 processes"));
    let told = dewar_json(&lab, &["inspect", "/tmp/layout", "--env", "--json"]);
    assert_eq!(told[0]["memory"]["restorable"], false);
    let processes = told[0]["processes"]["processes"].as_array().expect("processes");
    assert_eq!((&told[0]["processes"]["source"], processes.len()), (&"raw".into(), 3));
    let has = |field: &str, wanted: &str| processes.iter().any(|process| process[field].to_string().contains(wanted));
    assert!(has("environment", "\"PATH=") && has("files", "LISTEN"), "{:#}", told[0]["processes"]);
    assert!(
        lab.sh(&format!("du -k {} | cut -f1", member(&lab, "memory.raw"))).trim().parse::<u64>().unwrap() < 32 << 10
    );

    let document = unpacked(&lab);
    assert_the_document_tells_all(&document);
    assert_gdb_opens_the_cores(&lab, &document);
    assert_files_without_a_name_are_whole(&lab, process(&document, |p| p["comm"]["text"] == ".hidden"));
    assert_what_is_volatile(&lab, &document);
    assert!(lab.sh("cat /tmp/raw/README").starts_with("NOT RESTORABLE"));
    let left = lab.sh("find /tmp/layout -name '.dewar-*'; ls -A /run/dewar/frozen 2>/dev/null || true");
    assert_eq!(left, "", "nothing is left behind");
    assert_ctr_restores_the_files(&lab, &report["ref"]);
}

#[test]
fn what_criu_refuses_is_captured_raw_on_cgroup_v1() {
    what_criu_refuses_is_captured_raw(Cgroup::V1);
}

#[test]
fn what_criu_refuses_is_captured_raw_on_cgroup_v2() {
    what_criu_refuses_is_captured_raw(Cgroup::V2);
}

#[test]
fn what_is_asked_for_is_what_comes() {
    let Some(lab) = scene(Cgroup::V1) else { return };
    // No CRIU at all.
    let (report, said) = checkpoint(&lab, &["--criu", "/nonexistent/criu"], 1);
    assert_eq!(report["memory"], "raw");
    assert!(said.contains("NOT restorable") && said.contains("--criu"), "{said}");
    // CRIU insisted on.
    let always = lab.dewar(&["checkpoint", "suspect", "-o", "/tmp/always", "--task", "always"]);
    assert_eq!(always.status.code(), Some(2));
    // Not asked for, a raw capture is not enough to end the container.
    let (report, said) = checkpoint(&lab, &["--exit"], 1);
    assert!(report["exited"] == false && said.contains("left running in spite of --exit"), "{said}");
    assert_free(&lab);
    // A file without a name that is too large is cut, and that is said.
    let (report, said) = checkpoint(&lab, &["--task", "raw", "--deleted-files-max", "64K", "--volatile", "sockets"], 1);
    assert_eq!(report["memory"], "raw");
    assert!(said.contains("/var/lib/gone (deleted)") && said.contains("was cut to 65536"), "{said}");
    let gone = lab.sh(&format!("tar -tvf {} | grep fd3", member(&lab, "memory.raw")));
    assert!(gone.contains(" 65536 "), "{gone}");
    let volatile: Value = serde_json::from_str(&lab.sh(&format!("cat {}", member(&lab, "volatile")))).unwrap();
    assert!(volatile["networks"][0]["sockets"].is_array() && volatile["mounts"].is_null(), "{volatile:#}");
    // Asked for, it is no finding, and enough.
    let (report, _) = checkpoint(&lab, &["--task", "raw", "--exit", "--volatile", "none"], 0);
    assert_eq!((&report["memory"], &report["exited"]), (&"raw".into(), &true.into()));
    assert_eq!(report["sizes"]["volatile"], 0);
    until("it has ended", || lab.sh("pgrep -f '^/bin/suspect' || true").is_empty());
}

/// A debugger has the process already: its registers are not to be had, its memory is.
#[test]
fn a_process_that_is_traced_gives_its_memory_and_says_who_traces_it() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = scene(cgroup) else { return };
        let [session] = &pids(&lab, "linger")[..] else { panic!("one session") };
        let mut strace = lab.command("strace").args(["-o", "/dev/null", "-p", session]).spawn().unwrap();
        until("it is traced", || !lab.sh(&format!("grep TracerPid /proc/{session}/status")).contains("\t0\n"));
        let (report, said) = checkpoint(&lab, &["--task", "raw"], 0);
        assert!(report["memory"] == "raw" && said.contains("of 1 threads not all registers are known"), "{said}");
        let document = unpacked(&lab);
        let traced = process(&document, |p| p["pid"].as_u64() == session.parse().ok());
        assert_eq!(traced["threads"][0]["registers"], "pointers", "{traced:#}");
        assert!(traced["threads"][0]["why"].as_str().unwrap().starts_with("traced by pid "), "{traced:#}");
        let said = gdb(&lab, &traced["pid"], "/bin/true", &["info threads", "p/x $sp", "p/x $pc"]);
        assert!(said.contains("LWP") && said.matches("= 0x").count() == 2, "{said}");
        lab.signal(&strace, "INT");
        strace.wait().unwrap();
        assert_free(&lab);
    }
}

/// On v1 the freezer is let go for an instant; what was paused is paused again.
#[test]
fn a_paused_container_is_paused_after_a_raw_capture() {
    for cgroup in Cgroup::ALL {
        let Some(lab) = scene(cgroup) else { return };
        lab.start_containerd();
        lab.sh("ctr task pause suspect");
        lab.kill_containerd();
        let (report, _) = checkpoint(&lab, &["--task", "raw"], 0);
        assert!(report["memory"] == "raw" && report["frozen_ms"].is_null(), "{report:#}");
        assert_eq!(lab.freezer_state("suspect"), FrozenState::Frozen);
        let document = unpacked(&lab);
        let mut threads =
            document["processes"].as_array().unwrap().iter().flat_map(|p| p["threads"].as_array().unwrap());
        assert!(threads.all(|thread| thread["registers"] == "all"), "{document:#}");
        lab.start_containerd();
        lab.sh("ctr task resume suspect");
        assert_free(&lab);
    }
}

/// A dump by CRIU has it beside, too.
#[test]
fn what_is_volatile_goes_along_with_a_dump() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("programs");
    lab.run("many", "programs", &["/bin/many"], &[]);
    until("it answers", || lab.inside("many", &["/bin/many", "check"]).status.success());
    lab.kill_containerd();
    let report = dewar_json(&lab, &["checkpoint", "many", "-o", "/tmp/layout", "--json"]);
    assert_eq!(report[0]["memory"], "dumped");
    let volatile: Value = serde_json::from_str(&lab.sh(&format!("cat {}", member(&lab, "volatile")))).unwrap();
    let sockets = volatile["networks"][0]["sockets"].as_array().unwrap();
    assert!(sockets.iter().any(|s| s["state"] == "LISTEN" && s["protocol"] == "tcp"), "{volatile:#}");
    assert!(volatile["processes"].as_array().unwrap().iter().all(|p| p["in_tree"] == true));
    assert!(dewar_ok(&lab, &["verify", "/tmp/layout"]).starts_with("sound"));
}
