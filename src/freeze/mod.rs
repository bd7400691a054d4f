//! Holding a container still: from [`hold`] to [`Released::finish`].
//!
//! ```text
//! hold ──▶ Still ──release(Resume)──▶ Released        thawed; `frozen` says how long it stood still
//!            └────release(Exit)────▶ Released ──finish──▶ killed     frozen all the while the bundle is sealed
//! ```
//! Three things see to it that a container never stays frozen: the guard in [`Still`] and [`Released`] (errors, panics,
//! Ctrl-C), the [`watchdog`] (SIGKILL, the memory killer), and the [`marker`] for `dewar thaw` (everything else).

use std::{
    fs, thread,
    time::{Duration, Instant},
};

pub mod cgroup;
mod fork;
pub mod marker;
pub mod netlock;
pub mod recover;
pub mod watchdog;

use cgroup::{Former, Freezer};
use marker::{Marker, MarkerFile};
use watchdog::Watchdog;

use crate::{
    error::{At, Error, Result},
    host::Host,
    id::{ContainerRef, TaskPid},
    runtime::Task,
};

/// How long a freeze may take: runc's own patience (`fs2/freezer.go`, 10 s).
const FREEZE: Duration = Duration::from_secs(10);

/// CRIU asks for the freeze again and lets go of the tasks without waiting for it.
const SETTLE: Duration = Duration::from_secs(5);

/// How long a killed container may take to end; one that writes back a lot takes seconds.
const END: Duration = Duration::from_secs(30);

/// How often a container is let go again because a process waits for its child to begin a program, and for how long: twice as
/// long each time. Together a quarter of a second.
const FORKS: u32 = 8;
const FORK: Duration = Duration::from_millis(1);

/// How many processes an error names.
const MAX_CULPRITS: usize = 5;

/// What becomes of the container after its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It goes on as before: a paused one stays paused.
    Resume,
    /// It is killed, once everything is safe.
    Exit,
}

/// Proof that nobody writes: the container is frozen, or has no live task. Dropped, it lets the container go on.
#[derive(Debug)]
pub struct Still(Option<Frozen>);

/// What is left to do after [`Still::release`]. Dropped, it lets the container go on, if it is still held.
#[derive(Debug)]
#[must_use = "a container to be ended is ended by `finish`"]
pub struct Released {
    /// How long the container stood still, from the write that froze it, the last one, to the write that thawed it. `None` if
    /// it was paused before we came, had no task, or is to be ended.
    pub frozen: Option<Duration>,
    held: Option<Frozen>,
}

/// Freezes the container of `task`, after arming the watchdog.
pub fn hold(host: &Host, who: &ContainerRef, task: &Task) -> Result<Still> {
    let freezer = Freezer::of(task);
    check_holds(host, who, task, &freezer)?;
    clear_stale(host, who, task)?;
    let former = freezer.state()?.former();
    let mut frozen = Frozen::arm(host, who, task, freezer, former)?;
    frozen.freeze_apart_from_forks()?;
    if !host.is_alive(task.init)? {
        return Err(not_held(who, "its first process ended meanwhile", ""));
    }
    Ok(Still(Some(frozen)))
}

/// True if the container is paused: somebody froze its cgroup, or one above it.
pub fn is_frozen(task: &Task) -> Result<bool> {
    Ok(Freezer::of(task).state()?.frozen)
}

/// Proves that a container without a live task needs no freeze.
pub fn stopped(host: &Host, task: Option<&Task>) -> Result<Still> {
    match task {
        Some(task) if host.is_alive(task.init)? => Err(Error::Freeze {
            what: format!("the task of process {}", task.init.pid),
            why: "it was taken for stopped, and lives".into(),
            hint: "run the same command again".into(),
        }),
        _ => Ok(Still(None)),
    }
}

impl Still {
    /// The task that is held; `None` if there is none.
    pub fn task(&self) -> Option<&Task> {
        self.0.as_ref().map(|f| &f.task)
    }

    /// True if the container was paused before we came.
    pub fn was_paused(&self) -> bool {
        self.0.as_ref().is_some_and(|f| f.former == Former::Paused)
    }

    /// What holds the task.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.0.as_ref()
    }

    /// Looks again: an error if the container may have run.
    pub fn is_still(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Frozen::is_still)
    }

    /// Lets the container go on, or keeps it for [`Released::finish`].
    pub fn release(self, after: After) -> Result<Released> {
        let Some(mut held) = self.0 else { return Ok(Released { frozen: None, held: None }) };
        if after == After::Exit {
            return Ok(Released { frozen: None, held: Some(held) });
        }
        let frozen = held.thaw()?;
        Ok(Released { frozen, held: None })
    }
}

impl Released {
    /// Ends a container that was kept for it; otherwise nothing is left to do.
    pub fn finish(self) -> Result<()> {
        self.held.map_or(Ok(()), Frozen::kill)
    }
}

/// A container that we hold frozen. Dropped, it brings back the former state.
#[derive(Debug)]
pub struct Frozen {
    host: Host,
    what: String,
    task: Task,
    freezer: Freezer,
    former: Former,
    since: Option<Instant>,
    waiting: Option<i32>,
    let_go: u32,
    marker: MarkerFile,
    /// `None` once nothing is left to undo.
    watchdog: Option<Watchdog>,
}

impl Frozen {
    /// Watchdog first, then the marker: from then on a freeze is undone whatever happens to us.
    fn arm(host: &Host, who: &ContainerRef, task: &Task, freezer: Freezer, former: Former) -> Result<Self> {
        let path = marker::path(host, who, task.init);
        let path = std::path::absolute(&path).at("find", &path)?;
        let mut marker = describe(host, who, task, former)?;
        let watchdog = Watchdog::arm(host, &marker, path.clone())?;
        marker.watchdog = process(host, watchdog.pid())?;
        let marker = match MarkerFile::create(&path, marker) {
            Ok(marker) => marker,
            Err(e) => {
                watchdog.done();
                return Err(e);
            }
        };
        let (host, task, watchdog) = (host.clone(), task.clone(), Some(watchdog));
        let (since, waiting, let_go) = (None, None, 0);
        let what = who.to_string();
        Ok(Self { host, what, task, freezer, former, since, waiting, let_go, marker, watchdog })
    }

    /// Freezes it while no process waits for its child, if such an instant comes soon. One that was paused stays as it is.
    fn freeze_apart_from_forks(&mut self) -> Result<()> {
        self.freeze()?;
        loop {
            self.waiting = fork::waiting(&self.host, &self.pids()?);
            if self.waiting.is_none() || self.former == Former::Paused || self.let_go == FORKS {
                return Ok(());
            }
            self.freezer.open()?.thaw()?;
            thread::sleep(FORK * 2_u32.pow(self.let_go));
            self.let_go += 1;
            self.freeze()?;
        }
    }

    /// A thread that waits for its child to begin a program, and that nothing can stop meanwhile.
    pub fn waits_for_child(&self) -> Option<i32> {
        self.waiting
    }

    /// How often it was frozen and let go again, before it was frozen to stay so, because a thread waited for its child.
    pub fn let_go(&self) -> u32 {
        self.let_go
    }

    fn freeze(&mut self) -> Result<()> {
        self.since = Some(Instant::now());
        if self.freezer.freeze(FREEZE)? {
            return Ok(());
        }
        let why = format!("the kernel did not freeze it within {} s{}", FREEZE.as_secs(), self.culprits());
        let hint =
            "a process waiting for a device or a network file system cannot be frozen: mend that, then try again";
        Err(self.error(why, hint))
    }

    /// The task that is held.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Freezes again if CRIU left the cgroup thawed, as it may when it fails or is killed.
    pub fn refreeze(&self) -> Result<()> {
        if self.freezer.freeze(FREEZE)? { Ok(()) } else { Err(self.error("it did not freeze again", "")) }
    }

    /// Every process of the container, by pid; nobody comes or goes while it is frozen.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = self.freezer.pids()?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// Lets the cgroup go for as long as `work` takes, and freezes it again: for whoever holds its threads otherwise
    /// meanwhile. If we are killed in between, the watchdog brings back what was before, as at any other time.
    pub fn thawed<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        self.freezer.open()?.thaw()?;
        let done = work();
        self.refreeze()?;
        Ok(done)
    }

    fn is_still(&self) -> Result<()> {
        if !self.freezer.settle(SETTLE)? {
            return Err(self.error("it was thawed while we held it", "see that nothing else resumes it meanwhile"));
        }
        if !self.host.is_alive(self.task.init)? {
            return Err(self.error("its first process has ended", ""));
        }
        Ok(())
    }

    /// The ancestor that keeps the container frozen, if there is one. CRIU cannot dump it then: it must let the
    /// processes run under its control.
    pub fn frozen_above(&self) -> Option<std::path::PathBuf> {
        self.freezer.frozen_above()
    }

    /// CRIU is at work on the container: whoever undoes the freeze ends it first.
    pub fn criu_is(&self, pid: i32) -> Result<()> {
        if let Some(watchdog) = &self.watchdog {
            watchdog.criu_is(pid)?;
        }
        let criu = process(&self.host, pid)?;
        self.marker.update(|m| m.criu = criu)
    }

    /// CRIU has ended. If it could not say goodbye, its network lock is taken away.
    pub fn criu_is_gone(&self, in_order: bool) -> Result<()> {
        if !in_order && let Some(netns) = netlock::of(&self.host, self.task.init.pid) {
            netns.unlock()?;
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.criu_is_gone()?;
        }
        self.marker.update(|m| m.criu = None)
    }

    /// Brings back the former state, and dismisses the watchdog. If that fails, `Drop` tries again, then the watchdog.
    fn thaw(&mut self) -> Result<Option<Duration>> {
        self.restore()?;
        let frozen = if self.former == Former::Running { self.since.map(|s| s.elapsed()) } else { None };
        self.dismiss()?;
        Ok(frozen)
    }

    /// A cgroup that has gone holds nobody: its processes were killed meanwhile.
    fn restore(&self) -> Result<()> {
        match self.freezer.restore(self.former) {
            Err(_) if !self.freezer.exists() => Ok(()),
            result => result,
        }
    }

    /// The marker goes before the watchdog: one that is left alone with no marker only thaws what is thawed.
    fn dismiss(&mut self) -> Result<()> {
        let removed = self.marker.remove();
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.done();
        }
        removed
    }

    fn kill(mut self) -> Result<()> {
        match self.freezer.kill() {
            Err(e) if self.freezer.exists() => return Err(e),
            _ => {}
        }
        let start = Instant::now();
        while self.host.is_alive(self.task.init)? {
            if start.elapsed() > END {
                return Err(self.error("it was killed and did not end", "see what its processes wait for"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.dismiss()
    }

    /// Who keeps the cgroup from freezing: those that sleep uninterruptibly, and not in the freezer itself.
    fn culprits(&self) -> String {
        let pids = self.freezer.pids().unwrap_or_default();
        let stuck = pids.into_iter().flat_map(|pid| stuck_threads(&self.host, pid));
        let names: Vec<_> = stuck.take(MAX_CULPRITS).collect();
        if names.is_empty() { String::new() } else { format!("; these do not let go: {}", names.join(", ")) }
    }

    fn error(&self, why: impl Into<String>, hint: &str) -> Error {
        Error::Freeze { what: self.what.clone(), why: why.into(), hint: hint.into() }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // If it fails, the watchdog tries as well: it sees the pipe close, and was not told "done".
        if self.watchdog.is_some() && self.restore().is_ok() {
            let _ = self.dismiss();
        }
    }
}

/// That the cgroup holds the container, all of it, and not us.
fn check_holds(host: &Host, who: &ContainerRef, task: &Task, freezer: &Freezer) -> Result<()> {
    if !host.is_alive(task.init)? {
        return Err(not_held(who, "its task has ended", "run the same command again"));
    }
    let pids = freezer.pids()?;
    if !pids.contains(&task.init.pid) {
        let why = format!("process {} is not in {}", task.init.pid, freezer.dir().display());
        return Err(not_held(who, &why, "its processes were moved; only its files can be taken, with --task never"));
    }
    if pids.contains(&std::process::id().cast_signed()) {
        return Err(not_held(who, "dewar runs in its cgroup and would freeze itself", "run it from outside"));
    }
    Ok(())
}

/// A freeze that a killed `dewar` left behind would pass for a pause by somebody, so it is undone first.
fn clear_stale(host: &Host, who: &ContainerRef, task: &Task) -> Result<()> {
    let path = marker::path(host, who, task.init);
    let marker = match Marker::read(&path) {
        Ok(marker) => marker,
        Err(e) if e.is_missing_file() => return Ok(()),
        Err(e) => return Err(e),
    };
    if marker.boot_id != marker::boot_id(host)? {
        return marker::remove(&path);
    }
    if host.is_alive(marker.owner)? {
        let why = format!("another dewar, process {}, holds it", marker.owner.pid);
        return Err(not_held(who, &why, "wait for its end"));
    }
    recover::take_over(host, &path, &marker)
}

fn describe(host: &Host, who: &ContainerRef, task: &Task, former: Former) -> Result<Marker> {
    let ourselves = process(host, std::process::id().cast_signed())?;
    let Some(owner) = ourselves else { return Err(not_held(who, "we are not in this procfs", "")) };
    Ok(Marker {
        container: who.to_string(),
        cgroup: task.cgroup.clone(),
        cgroup_version: task.cgroup_version,
        former,
        boot_id: marker::boot_id(host)?,
        init: task.init,
        owner,
        watchdog: None,
        criu: None,
    })
}

fn process(host: &Host, pid: i32) -> Result<Option<TaskPid>> {
    Ok(host.proc_stat(pid)?.map(|s| TaskPid { pid, started: s.started }))
}

fn not_held(who: &ContainerRef, why: &str, hint: &str) -> Error {
    Error::Freeze { what: who.to_string(), why: why.into(), hint: hint.into() }
}

/// `pid (name) in <kernel function>` for each thread that sleeps uninterruptibly.
fn stuck_threads(host: &Host, pid: i32) -> Vec<String> {
    let threads = fs::read_dir(host.proc_of(pid, "task")).into_iter().flatten().flatten();
    let tids = threads.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    tids.filter_map(|tid| stuck(host, tid)).collect()
}

fn stuck(host: &Host, tid: i32) -> Option<String> {
    let stat = host.proc_stat(tid).ok()??;
    let wchan = fs::read_to_string(host.proc_of(tid, "wchan")).unwrap_or_default();
    // What is frozen on v1 sleeps so as well.
    if stat.state != 'D' || wchan.contains("refrigerator") {
        return None;
    }
    let name = fs::read_to_string(host.proc_of(tid, "comm")).unwrap_or_default();
    Some(format!("{tid} ({}) in {wchan}", name.trim_end().escape_debug()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A container made of one `sleep` and a v1 freezer made of plain files, with a watchdog that only says `armed`.
    struct Scene {
        temp: tempfile::TempDir,
        host: Host,
        who: ContainerRef,
        task: Task,
        child: std::process::Child,
    }

    impl Scene {
        fn new(state: &str) -> Self {
            let temp = tempfile::tempdir().unwrap();
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            let dewar = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stand-in/watchdog").into();
            let host = Host { run: temp.path().join("run"), dewar, ..Host::default() };
            let pid = child.id().cast_signed();
            let cgroup = temp.path().join("cgroup");
            fs::create_dir(&cgroup).unwrap();
            fs::write(cgroup.join("freezer.state"), state).unwrap();
            fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
            let task = Task { init: process(&host, pid).unwrap().unwrap(), ..Task::stand_in(pid, &cgroup) };
            let who = ContainerRef { namespace: "default".parse().unwrap(), id: "web".parse().unwrap() };
            Self { temp, host, who, task, child }
        }

        fn state(&self) -> String {
            fs::read_to_string(self.task.cgroup.join("freezer.state")).unwrap()
        }

        fn markers(&self) -> usize {
            marker::all(&self.host).unwrap().len()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn a_running_container_is_frozen_marked_and_thawed() {
        let scene = Scene::new("THAWED");
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        assert_eq!((scene.state().as_str(), scene.markers()), ("FROZEN", 1));
        still.is_still().unwrap();
        let released = still.release(After::Resume).unwrap();
        assert!(released.frozen.is_some());
        assert_eq!((scene.state().as_str(), scene.markers()), ("THAWED", 0));
    }

    #[test]
    fn a_paused_container_stays_paused() {
        let scene = Scene::new("FROZEN");
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        assert!(still.was_paused());
        assert_eq!(still.release(After::Resume).unwrap().frozen, None);
        assert_eq!((scene.state().as_str(), scene.markers()), ("FROZEN", 0));
    }

    #[test]
    fn an_error_or_a_panic_on_the_way_thaws() {
        let scene = Scene::new("THAWED");
        drop(hold(&scene.host, &scene.who, &scene.task).unwrap());
        assert_eq!((scene.state().as_str(), scene.markers()), ("THAWED", 0));
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        let panic = std::panic::catch_unwind(move || {
            let _still = still;
            panic!("on the way");
        });
        assert!(panic.is_err());
        assert_eq!((scene.state().as_str(), scene.markers()), ("THAWED", 0));
    }

    #[test]
    fn a_container_to_be_ended_stays_frozen_until_finish_and_then_dies() {
        let mut scene = Scene::new("THAWED");
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        let released = still.release(After::Exit).unwrap();
        assert_eq!((scene.state().as_str(), scene.markers()), ("FROZEN", 1));
        assert!(scene.child.try_wait().unwrap().is_none());
        released.finish().unwrap();
        assert!(!scene.host.is_alive(scene.task.init).unwrap());
        assert_eq!((scene.state().as_str(), scene.markers()), ("THAWED", 0));
    }

    #[test]
    fn a_bundle_that_fails_keeps_alive_what_was_to_be_ended() {
        let scene = Scene::new("THAWED");
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        drop(still.release(After::Exit).unwrap());
        assert!(scene.host.is_alive(scene.task.init).unwrap());
        assert_eq!(scene.state(), "THAWED");
    }

    #[test]
    fn a_thaw_by_somebody_else_is_noticed() {
        let scene = Scene::new("THAWED");
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        fs::write(scene.task.cgroup.join("freezer.state"), "THAWED").unwrap();
        assert!(still.is_still().is_err());
    }

    #[test]
    fn one_container_is_held_once() {
        let scene = Scene::new("THAWED");
        let _still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        let error = hold(&scene.host, &scene.who, &scene.task).unwrap_err();
        assert!(error.to_string().contains("another dewar"), "{error}");
    }

    #[test]
    fn a_freeze_left_behind_is_not_taken_for_a_pause() {
        let scene = Scene::new("FROZEN");
        let mut left = describe(&scene.host, &scene.who, &scene.task, Former::Running).unwrap();
        left.owner.started -= 1;
        MarkerFile::create(&marker::path(&scene.host, &scene.who, scene.task.init), left).unwrap();
        let still = hold(&scene.host, &scene.who, &scene.task).unwrap();
        assert!(!still.was_paused());
        drop(still);
        assert_eq!(scene.state(), "THAWED");
    }

    #[test]
    fn nothing_is_frozen_that_is_not_the_container_or_is_ourselves() {
        let scene = Scene::new("THAWED");
        let procs = scene.task.cgroup.join("cgroup.procs");
        fs::write(&procs, "1\n").unwrap();
        assert!(hold(&scene.host, &scene.who, &scene.task).is_err());
        fs::write(&procs, format!("{}\n{}\n", scene.task.init.pid, std::process::id())).unwrap();
        assert!(hold(&scene.host, &scene.who, &scene.task).is_err());
        let mut later = scene.task.clone();
        later.init.started += 1;
        assert!(hold(&scene.host, &scene.who, &later).is_err());
        assert_eq!((scene.state().as_str(), scene.markers()), ("THAWED", 0));
    }

    #[test]
    fn a_live_task_is_no_stopped_one() {
        let mut scene = Scene::new("THAWED");
        assert!(stopped(&scene.host, None).unwrap().task().is_none());
        assert!(stopped(&scene.host, Some(&scene.task)).is_err());
        scene.child.kill().unwrap();
        scene.child.wait().unwrap();
        let still = stopped(&scene.host, Some(&scene.task)).unwrap();
        still.is_still().unwrap();
        still.release(After::Exit).unwrap().finish().unwrap();
        assert!(scene.temp.path().exists());
    }
}
