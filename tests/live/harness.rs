//! `Lab`: one instance of the lab, alive as long as the value.
//!
//! The instance hangs on a pipe that only this process holds: when the test ends, by whatever means, the kernel closes
//! the pipe and `lab hold` takes the instance down, with all that runs in it.
//!
//! ```no_run
//! let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
//! lab.start_containerd();
//! lab.import("redis");
//! lab.run("redis", "redis", &["/usr/bin/redis-server"], &[]);
//! ```
#![allow(dead_code, reason = "a vocabulary for tests that are still to come")]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The script that makes, holds and enters instances.
const LAB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/lab");

/// Stands in for runc where cgroup v2 has no controllers to give; see `guest/runc-no-limits`.
const RUNC_NO_LIMITS: &str = "/opt/lab/bin/runc-no-limits";

/// Which release of containerd an instance runs. runc and CRIU are the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containerd {
    V1_6,
    V1_7,
    V2_1,
}

impl Containerd {
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    fn name(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
        }
    }
}

/// Which version of cgroups an instance sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    V1,
    V2,
}

impl Cgroup {
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// What the kernel says of a container's freezer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrozenState {
    Thawed,
    Freezing,
    Frozen,
}

/// A running instance. Dropping it ends everything in it, and waits until it is gone.
pub struct Lab {
    pub containerd: Containerd,
    pub cgroup: Cgroup,
    holder: Child,
    lifeline: Option<ChildStdin>,
    init: u32,
    _turn: File,
}

// The instance itself.
impl Lab {
    /// Starts an instance. `None`, said aloud, where that is not possible; a panic if `DEWAR_LIVE=1` insists on it.
    pub fn start(containerd: Containerd, cgroup: Cgroup) -> Option<Self> {
        Self::start_if_able(containerd, cgroup, &[], File::lock_shared)
    }

    /// The same, with loop devices and the programs that make file systems.
    pub fn start_with_disks(containerd: Containerd, cgroup: Cgroup) -> Option<Self> {
        Self::start_if_able(containerd, cgroup, &["--disks"], File::lock_shared)
    }

    /// The same, but no other instance runs meanwhile on this machine: for tests that measure time.
    pub fn start_alone(containerd: Containerd, cgroup: Cgroup) -> Option<Self> {
        Self::start_if_able(containerd, cgroup, &[], File::lock)
    }

    fn start_if_able(
        containerd: Containerd,
        cgroup: Cgroup,
        more: &[&str],
        lock: fn(&File) -> io::Result<()>,
    ) -> Option<Self> {
        let options = [&["--containerd", containerd.name(), "--cgroup", cgroup.name()], more].concat();
        let check = Command::new(LAB).arg("check").args(&options).output().expect("bash runs the lab script");
        if !check.status.success() {
            cannot_run(&String::from_utf8_lossy(&check.stderr));
            return None;
        }

        let turn = File::create(cache().join("turn")).expect("the lab's cache is writable");
        lock(&turn).expect("a lock is a matter of waiting");

        let mut holder = Command::new(LAB)
            .arg("hold")
            .args(&options)
            .args(["--bind", concat!(env!("CARGO_BIN_EXE_dewar"), ":/usr/local/bin/dewar")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs the lab script");
        let lifeline = holder.stdin.take();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("the holder speaks UTF-8");
        let init = line.trim().parse().expect("lab hold prints the pid of its init, or says on stderr why not");
        Some(Self { containerd, cgroup, holder, lifeline, init, _turn: turn })
    }

    /// The instance's init, as this process counts pids.
    pub fn init(&self) -> u32 {
        self.init
    }

    /// The process that holds the instance; its pid names the instance's cgroup and directory.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        if let Err(error) = self.holder.wait() {
            say(&format!("the lab's holder was not waited for: {error}"));
        }
    }
}

// Commands inside.
impl Lab {
    /// A command that will run inside. The child is its `nsenter`; signals for the command itself go by `signal` and `kill`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(LAB);
        command.arg("exec").arg(self.init.to_string()).arg(program);
        command
    }

    /// Sends a signal to the process that a spawned `command` has become inside; false when it is not there yet, or no more.
    pub fn signal(&self, child: &Child, signal: &str) -> bool {
        let outer = child.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
        // Before nsenter has entered, its children are the lab script's own helpers.
        let pid_namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = pid_namespace(&self.init.to_string());
        let inner = children.split_whitespace().find(|pid| pid_namespace(pid) == ours);
        inner.is_some_and(|pid| {
            Command::new("kill").args(["-s", signal, pid]).status().is_ok_and(|status| status.success())
        })
    }

    /// SIGKILL to what a spawned `command` has become, and waits for its end. (Killing the child instead works too, but
    /// leaves a zombie to the host's init, which may be slow to take it away: its pid still looks alive inside.)
    pub fn kill(&self, mut child: Child) {
        while !self.signal(&child, "KILL") && child.try_wait().is_ok_and(|ended| ended.is_none()) {
            sleep(Duration::from_millis(1));
        }
        child.wait().expect("nobody else waits for it");
    }

    /// Runs a bash script inside and returns what it printed. Panics with all its output when it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        succeeded(script, self.try_sh(script))
    }

    /// Runs a bash script inside.
    pub fn try_sh(&self, script: &str) -> Output {
        self.command("bash").args(["-euo", "pipefail", "-c", script]).output().expect("bash runs the lab script")
    }

    /// Runs it until it succeeds, but not for ever: then its last failure is told.
    #[track_caller]
    pub fn sh_until(&self, script: &str) {
        let start = Instant::now();
        loop {
            let output = self.try_sh(script);
            if output.status.success() || start.elapsed() >= PATIENCE {
                succeeded(script, output);
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// Runs the binary under test inside.
    pub fn dewar(&self, args: &[&str]) -> Output {
        self.command("dewar").args(args).output().expect("bash runs the lab script")
    }
}

// containerd and its containers, by stock tools.
impl Lab {
    pub fn start_containerd(&self) {
        self.sh("containerd-up");
    }

    /// SIGKILL, and waits until it is gone. Shims and containers live on; `start_containerd` starts it again.
    pub fn kill_containerd(&self) {
        self.sh("containerd-kill");
    }

    /// Kills containerd, shims and containers and removes all they kept: what is left is a fresh node.
    pub fn lose_node(&self) {
        self.sh("lose-node");
    }

    /// Imports one of the lab's images, `localhost/<image>:lab`.
    pub fn import(&self, image: &str) {
        self.sh(&format!("ctr images import /images/{image}.tar"));
    }

    /// Starts a container; `ctr_flags` are further flags of `ctr run`.
    #[track_caller]
    pub fn run(&self, id: &str, image: &str, args: &[&str], ctr_flags: &[&str]) {
        let mut command = self.command("ctr");
        command.args(["run", "-d"]).args(ctr_flags);
        if self.cgroup == Cgroup::V2 {
            command.args(["--runc-binary", RUNC_NO_LIMITS]);
        }
        command.arg(format!("localhost/{image}:lab")).arg(id).args(args);
        succeeded("ctr run", command.output().expect("bash runs the lab script"));
    }

    /// The pid of a container's init, as the lab counts. Asks the shim's state, so containerd may be down.
    #[track_caller]
    pub fn pid(&self, id: &str) -> u32 {
        let pid = self.sh(&format!("cat /run/containerd/io.containerd.runtime.v2.task/*/{id}/init.pid"));
        pid.trim().parse().expect("init.pid holds a number")
    }

    /// Runs a command of the container's own, in its file system and network, but not in its pid namespace or cgroup:
    /// it is not frozen with the container and no dump sees it.
    pub fn inside(&self, id: &str, command: &[&str]) -> Output {
        let pid = self.pid(id).to_string();
        let mut nsenter = self.command("nsenter");
        nsenter.args(["-t", &pid, "--mount", "--net", "--root", "--wd"]).args(command);
        nsenter.output().expect("bash runs the lab script")
    }

    /// Asks a container's program (`witness ask`, `many check`, `redis-cli …`): what it answers. Panics when it is not well.
    #[track_caller]
    pub fn ask(&self, id: &str, command: &[&str]) -> String {
        succeeded(&command.join(" "), self.inside(id, command))
    }

    /// What the kernel says of the container's freezer, whoever froze it.
    pub fn freezer_state(&self, id: &str) -> FrozenState {
        let pid = self.pid(id);
        let state = match self.cgroup {
            Cgroup::V1 => self.sh(&format!(
                "cat /sys/fs/cgroup/freezer$(sed -n 's/^[0-9]*:freezer://p' /proc/{pid}/cgroup)/freezer.state"
            )),
            Cgroup::V2 => self.sh(&format!(
                "cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup); cat cgroup.freeze; sed -n 's/^frozen //p' cgroup.events"
            )),
        };
        match state.split_whitespace().collect::<Vec<_>>()[..] {
            ["THAWED"] | ["0", _] => FrozenState::Thawed,
            ["FREEZING"] | ["1", "0"] => FrozenState::Freezing,
            ["FROZEN"] | ["1", "1"] => FrozenState::Frozen,
            _ => panic!("the freezer of {id} says {state:?}"),
        }
    }

    /// Imports an OCI layout that lies inside the lab.
    #[track_caller]
    pub fn import_layout(&self, layout: &str) {
        self.sh(&format!("tar -C {layout} -cf - . | ctr images import -"));
    }

    /// Restores a container from a checkpoint, running. runc restores it into an empty network, so its loopback, which
    /// runc brought up when the container was new, is brought up here.
    #[track_caller]
    pub fn restore(&self, id: &str, reference: &str) {
        self.sh(&format!("ctr containers restore --rw --live {id} {reference}"));
        self.sh(&format!("nsenter -t {} --net ip link set lo up", self.pid(id)));
    }
}

/// Where `lab make` put everything.
pub fn cache() -> PathBuf {
    std::env::var_os("DEWAR_LAB").map_or_else(|| "/var/cache/dewar-lab".into(), PathBuf::from)
}

/// stdout of a command that must not fail.
#[track_caller]
fn succeeded(what: &str, output: Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {what}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", output.status);
    stdout
}

/// Says why a test cannot run here; with `DEWAR_LIVE=1` it fails instead.
pub fn cannot_run(why: &str) {
    assert!(std::env::var("DEWAR_LIVE").as_deref() != Ok("1"), "DEWAR_LIVE=1, but the lab cannot run: {why}");
    say(&format!("live test skipped (DEWAR_LIVE=1 would fail it): {}", why.trim()));
}

/// Past the test runner, which keeps to itself what a passing test prints.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "{what}"); // a closed stderr is nobody's to tell
}

/// Runs the binary under test, which must end with 0, and returns its stdout.
#[track_caller]
pub fn dewar_ok(lab: &Lab, args: &[&str]) -> String {
    succeeded(&format!("dewar {}", args.join(" ")), lab.dewar(args))
}

/// The same, for a JSON result.
#[track_caller]
pub fn dewar_json(lab: &Lab, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&dewar_ok(lab, args)).expect("--json prints JSON")
}

/// How long what must come to be is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what must come to be, but not for ever.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        sleep(Duration::from_millis(20));
    }
}
