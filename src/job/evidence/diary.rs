//! What a run does to the world, and when: steps and changes, written down as they happen.

use std::cell::RefCell;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use super::super::report::Stage;
use crate::{
    criu::rpc::LockMethod,
    dump::Images,
    evidence::{Change, Step},
    freeze::{After, Frozen, Still, cgroup::Freezer, marker},
    host::Host,
    id::ContainerRef,
    runtime::{CgroupVersion, Task},
};

/// One run's steps and changes.
#[derive(Debug, Default)]
pub struct Diary {
    steps: RefCell<Vec<Step>>,
    changes: RefCell<Vec<Change>>,
}

/// Nanoseconds of one of the kernel's clocks.
pub(super) fn clock(id: ClockId) -> u64 {
    let nanos = |t: nix::sys::time::TimeSpec| t.tv_sec().unsigned_abs() * 1_000_000_000 + t.tv_nsec().unsigned_abs();
    clock_gettime(id).map_or(0, nanos)
}

impl Diary {
    /// Begins one.
    pub fn begin() -> Self {
        let diary = Self::default();
        diary.step("the checkpoint begins: the records are read");
        diary
    }

    /// Writes down that something begins, or was done.
    pub fn step(&self, what: impl Into<String>) -> u64 {
        let (utc, monotonic_ns) = (Timestamp::now().to_string(), clock(ClockId::CLOCK_MONOTONIC));
        self.steps.borrow_mut().push(Step { utc, monotonic_ns, what: what.into() });
        monotonic_ns
    }

    /// The same for a stage.
    pub fn stage(&self, stage: Stage) {
        self.step(match stage {
            Stage::Image => "the base image is copied; the container runs",
            Stage::Ahead => "files are copied ahead; the container runs",
            Stage::Freeze => "the container is to be held still",
            Stage::Dump => "memory and process state are dumped by CRIU",
            Stage::Files { held: true } => "files are copied; the container is frozen",
            Stage::Files { held: false } => "files are copied; the container has no live task",
            Stage::Seal { held: true } => {
                "what was copied is hashed and stored; the container is frozen until it is ended"
            }
            Stage::Seal { held: false } => "what was copied is hashed and stored; the container is as it was",
        });
    }

    /// The container is held.
    pub fn held(&self, still: &Still, host: &Host, who: &ContainerRef) {
        let now = self.step(if still.task().is_some() { "nobody writes" } else { "there is nothing to hold still" });
        let Some(task) = still.task() else { return };
        let from = self.steps.borrow().iter().rev().nth(1).map_or(now, |step| step.monotonic_ns);
        let mut changes = self.changes.borrow_mut();
        changes.push(Change {
            what: "freeze".into(),
            how: format!(
                "cgroup {} by {}{}{}",
                task.cgroup.display(),
                control(task),
                match still.was_paused() {
                    true => "; it was frozen before, and stays so",
                    false => "",
                },
                match still.frozen().map_or(0, Frozen::let_go) {
                    0 => String::new(),
                    n => format!("; frozen and let go {n} times before, for a thread waited for its child (vfork)"),
                }
            ),
            from_ns: Some(from),
            until_ns: None,
            pids: Freezer::of(task).pids().unwrap_or_default(),
        });
        changes.push(Change {
            what: "marker".into(),
            how: format!(
                "the file {} tells for as long as the freeze lasts what `dewar thaw` has to undo",
                marker::path(host, who, task.init).display()
            ),
            from_ns: Some(from),
            ..Change::default()
        });
    }

    /// The memory was dumped, or that was tried.
    pub fn dumped(&self, still: &Still, tried: bool, images: Option<&Images>) {
        let (true, Some(task)) = (tried, still.task()) else { return };
        let until =
            self.step(if images.is_some() { "CRIU has let go" } else { "CRIU did not dump it, and has let go" });
        let from = self.steps.borrow().iter().rev().find(|s| s.what.contains("by CRIU")).map(|s| s.monotonic_ns);
        let change = |what: &str, how: String, pids| {
            let change = Change { what: what.into(), how, from_ns: from, until_ns: Some(until), pids };
            self.changes.borrow_mut().push(change);
        };
        let pids = Freezer::of(task).pids().unwrap_or_default();
        let how = "CRIU seized them by ptrace(2), ran code of its own in them to read their memory and state, and took it out";
        change("parasite", how.into(), pids);
        let how = "CRIU makes directories for a moment in the container's /tmp to look into its mounts: the times of /tmp move";
        change("criu", how.into(), Vec::new());
        match images.map(|images| images.network_lock) {
            Some(LockMethod::Iptables) => change("network lock", lock("iptables"), Vec::new()),
            Some(LockMethod::Nftables) => change("network lock", lock("nftables"), Vec::new()),
            Some(LockMethod::Skip) | None => {}
        }
    }

    /// The memory was captured raw.
    pub fn captured(&self, still: &Still, is_raw: bool) {
        let (true, Some(task)) = (is_raw, still.task()) else { return };
        let until = self.step("the raw capture is done, and nothing is held by ptrace(2) any more");
        let from = self.steps.borrow().iter().rev().nth(1).map(|step| step.monotonic_ns);
        let thawed = match task.cgroup_version {
            CgroupVersion::V1 => "; the freezer was let go until each had stopped, and froze them again",
            CgroupVersion::V2 => "",
        };
        let how = format!(
            "each thread was seized and stopped by ptrace(2) to read its registers, and ran no instruction{thawed}"
        );
        let pids = Freezer::of(task).pids().unwrap_or_default();
        self.changes.borrow_mut().push(Change {
            what: "ptrace".into(),
            how,
            from_ns: from,
            until_ns: Some(until),
            pids,
        });
    }

    /// The container goes on, or is kept to be ended.
    pub fn released(&self, after: After) {
        let now = self.step(match after {
            After::Resume => "the container is as it was",
            After::Exit => "the container stays frozen until the bundle is on disk, and is then ended (--exit)",
        });
        let mut changes = self.changes.borrow_mut();
        let open = changes.iter_mut().filter(|change| change.until_ns.is_none());
        open.for_each(|change| change.until_ns = (after == After::Resume).then_some(now));
    }

    /// What was written down.
    pub fn told(&self) -> (Vec<Step>, Vec<Change>) {
        (self.steps.borrow().clone(), self.changes.borrow().clone())
    }
}

fn control(task: &Task) -> &'static str {
    match task.cgroup_version {
        CgroupVersion::V1 => "freezer.state",
        CgroupVersion::V2 => "cgroup.freeze",
    }
}

fn lock(how: &str) -> String {
    format!("all packets of the container's network namespace were dropped meanwhile ({how}, by CRIU)")
}
