//! The freezer of one cgroup, both versions (kernel: `cgroup-v1/freezer-subsystem.rst`, `cgroup-v2.rst`).
//!
//! | | asked for here | really frozen | ask |
//! |---|---|---|---|
//! | v1 | `freezer.self_freezing` | `freezer.state` is `FROZEN` | `FROZEN`, `THAWED` to `freezer.state` |
//! | v2 | `cgroup.freeze` | `frozen 1` in `cgroup.events` | `1`, `0` to `cgroup.freeze` |

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::{
    error::{At, Error, Result},
    interrupt,
    runtime::{CgroupVersion, Task},
};

/// What a freezer was found doing, and is to be left doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Former {
    /// Nobody had asked for a freeze.
    Running,
    /// Somebody had (`ctr task pause`): it stays frozen whatever we do.
    Paused,
}

/// What a freezer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Somebody asked for a freeze of this very cgroup; one of an ancestor does not count.
    pub asked: bool,
    /// No task of it runs.
    pub frozen: bool,
}

impl State {
    /// What to go back to.
    pub fn former(self) -> Former {
        if self.asked { Former::Paused } else { Former::Running }
    }
}

/// The freezer of one cgroup.
#[derive(Debug, Clone)]
pub struct Freezer {
    dir: PathBuf,
    version: CgroupVersion,
}

impl Freezer {
    /// The freezer that holds this task.
    pub fn of(task: &Task) -> Self {
        Self::new(&task.cgroup, task.cgroup_version)
    }

    /// The freezer of the cgroup at `dir`.
    pub fn new(dir: &Path, version: CgroupVersion) -> Self {
        Self { dir: dir.to_owned(), version }
    }

    /// The cgroup's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// True if the cgroup is still there.
    pub fn exists(&self) -> bool {
        self.control().exists()
    }

    fn control(&self) -> PathBuf {
        self.dir.join(match self.version {
            CgroupVersion::V1 => "freezer.state",
            CgroupVersion::V2 => "cgroup.freeze",
        })
    }

    /// Reads what it is doing. On v1 the read itself moves `FREEZING` on to `FROZEN`.
    pub fn state(&self) -> Result<State> {
        match self.version {
            CgroupVersion::V1 => self.state_v1(),
            CgroupVersion::V2 => self.state_v2(),
        }
    }

    fn state_v1(&self) -> Result<State> {
        let state = read_word(&self.control())?;
        // Linux before 3.8 has no such file; a freeze is then taken to be of this cgroup.
        let here = read_word(&self.dir.join("freezer.self_freezing")).map_or(true, |w| w == "1");
        match state.as_str() {
            "THAWED" => Ok(State { asked: false, frozen: false }),
            "FREEZING" => Ok(State { asked: here, frozen: false }),
            "FROZEN" => Ok(State { asked: here, frozen: true }),
            other => Err(Error::malformed(self.control(), format!("unknown state {other:?}"))),
        }
    }

    fn state_v2(&self) -> Result<State> {
        let asked = read_word(&self.control())? == "1";
        let events = self.dir.join("cgroup.events");
        let text = fs::read_to_string(&events).at("read", &events)?;
        Ok(State { asked, frozen: text.lines().any(|l| l == "frozen 1") })
    }

    /// The nearest ancestor that is frozen itself: then nothing we write here makes a task run.
    pub fn frozen_above(&self) -> Option<PathBuf> {
        let above = self.dir.ancestors().skip(1).map(|dir| Self::new(dir, self.version));
        // The root of a hierarchy has no freezer: there the walk ends.
        above.take_while(Self::exists).find(|a| a.state().is_ok_and(|s| s.asked)).map(|a| a.dir)
    }

    /// Opens the control file for writing, ahead of the moment when opening could fail.
    pub fn open(&self) -> Result<Control> {
        let path = self.control();
        let file = OpenOptions::new().write(true).open(&path).at("open", &path)?;
        Ok(Control { file, path, version: self.version })
    }

    /// Freezes, and waits until the kernel says so. False: it did not within `limit`, and is still being asked to.
    pub fn freeze(&self, limit: Duration) -> Result<bool> {
        let control = self.open()?;
        let start = Instant::now();
        control.freeze()?;
        for turn in 1_u32.. {
            if self.state()?.frozen {
                return Ok(true);
            }
            if start.elapsed() > limit {
                return Ok(false);
            }
            interrupt::check()?;
            self.nudge(&control, turn)?;
            thread::sleep(pause(turn));
        }
        Ok(false)
    }

    /// The v1 freezer can stay `FREEZING` for ever when a task forks or is stopped at the wrong moment. runc
    /// (`cgroups/fs/freezer.go`) and CRIU (`seize.c`) ask again, and now and then let go for a moment; so do we.
    fn nudge(&self, control: &Control, turn: u32) -> Result<()> {
        if self.version == CgroupVersion::V2 {
            return Ok(());
        }
        if turn.is_multiple_of(50) {
            control.thaw()?;
            thread::sleep(Duration::from_millis(10));
        }
        control.freeze()
    }

    /// Waits for a freeze that was asked for already. False: nobody asks for one, or `limit` is over.
    pub fn settle(&self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        for turn in 1_u32.. {
            let state = self.state()?;
            if state.frozen && state.asked {
                return Ok(true);
            }
            if !state.asked || start.elapsed() > limit {
                return Ok(false);
            }
            thread::sleep(pause(turn));
        }
        Ok(false)
    }

    /// Every process in the cgroup and those below it.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in WalkDir::new(&self.dir).into_iter().filter_entry(|e| e.file_type().is_dir()) {
            match entry {
                Ok(entry) => read_pids(&entry.path().join("cgroup.procs"), &mut pids)?,
                // A child cgroup may go at any time.
                Err(e) if e.depth() > 0 => {}
                Err(e) => return Err(io::Error::from(e)).at("read", &self.dir),
            }
        }
        Ok(pids)
    }

    /// Ends every process in it, frozen or not, and leaves it thawed: a v1 task dies only then, and in a v2 cgroup
    /// that stays frozen nothing can be started any more, while the shim keeps it and a restore would use it.
    pub fn kill(&self) -> Result<()> {
        let whole = self.dir.join("cgroup.kill");
        if self.version == CgroupVersion::V2 && whole.exists() {
            write_word(&OpenOptions::new().write(true).open(&whole).at("open", &whole)?, &whole, "1")?;
        } else {
            self.kill_each()?;
        }
        self.open()?.thaw()
    }

    /// What is frozen neither forks nor ends, so the pids are still theirs.
    fn kill_each(&self) -> Result<()> {
        for pid in self.pids()? {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => return Err(e).at("kill", format!("process {pid}")),
            }
        }
        Ok(())
    }

    /// Brings back the former state, if it is another now.
    pub fn restore(&self, former: Former) -> Result<()> {
        let control = self.open()?;
        match (former, self.state()?.asked) {
            // Thawed even if it reads as thawed: who asked a moment ago may not be seen yet, and it costs nothing.
            (Former::Running, _) => control.thaw(),
            (Former::Paused, false) => control.freeze(),
            (Former::Paused, true) => Ok(()),
        }
    }
}

/// An open control file of a freezer.
#[derive(Debug)]
pub struct Control {
    file: File,
    path: PathBuf,
    version: CgroupVersion,
}

impl Control {
    /// Asks for a freeze; it is not there yet when this returns.
    pub fn freeze(&self) -> Result<()> {
        write_word(&self.file, &self.path, if self.version == CgroupVersion::V1 { "FROZEN" } else { "1" })
    }

    /// Ends a freeze.
    pub fn thaw(&self) -> Result<()> {
        write_word(&self.file, &self.path, if self.version == CgroupVersion::V1 { "THAWED" } else { "0" })
    }
}

/// Most cgroups freeze within a millisecond, and each one we wait longer is one more that the container stands still.
fn pause(turn: u32) -> Duration {
    Duration::from_micros(if turn < 40 { 50 } else { 2000 })
}

fn read_word(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).at("read", path)?.trim_end().to_owned())
}

fn write_word(file: &File, path: &Path, word: &str) -> Result<()> {
    file.write_all_at(word.as_bytes(), 0).at("write", path)
}

fn read_pids(path: &Path, pids: &mut Vec<i32>) -> Result<()> {
    match fs::read_to_string(path) {
        // 0 stands for a process outside our pid namespace.
        Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid: &i32| pid > 0)),
        // Gone meanwhile (ENODEV on an open file), or a threaded cgroup: its processes are listed further up.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::EOPNOTSUPP)) => {}
        Err(e) => return Err(e).at("read", path),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(version: CgroupVersion, files: &[(&str, &str)]) -> (tempfile::TempDir, Freezer) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("c");
        fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let freezer = Freezer::new(&dir, version);
        (temp, freezer)
    }

    #[test]
    fn a_v1_state_tells_our_own_freeze_from_an_ancestors() {
        for (state, own, asked, frozen) in [
            ("THAWED", "0", false, false),
            ("FREEZING", "1", true, false),
            ("FROZEN", "1", true, true),
            ("FROZEN", "0", false, true),
        ] {
            let (_temp, freezer) = fake(CgroupVersion::V1, &[("freezer.state", state), ("freezer.self_freezing", own)]);
            assert_eq!(freezer.state().unwrap(), State { asked, frozen }, "{state} {own}");
        }
        let (_temp, freezer) = fake(CgroupVersion::V1, &[("freezer.state", "MELTED")]);
        assert!(freezer.state().is_err());
    }

    #[test]
    fn a_v2_state_is_frozen_only_when_the_events_say_so() {
        for (word, events, asked, frozen) in [
            ("0\n", "populated 1\nfrozen 0\n", false, false),
            ("1\n", "populated 1\nfrozen 0\n", true, false),
            ("1\n", "populated 1\nfrozen 1\n", true, true),
            ("0\n", "populated 1\nfrozen 1\n", false, true),
        ] {
            let (_temp, freezer) = fake(CgroupVersion::V2, &[("cgroup.freeze", word), ("cgroup.events", events)]);
            assert_eq!(freezer.state().unwrap(), State { asked, frozen }, "{word} {events}");
        }
    }

    #[test]
    fn freeze_returns_when_the_kernel_says_frozen_and_gives_up_when_it_never_does() {
        let (_temp, freezer) =
            fake(CgroupVersion::V2, &[("cgroup.freeze", "0\n"), ("cgroup.events", "populated 1\nfrozen 0\n")]);
        assert!(!freezer.freeze(Duration::from_millis(5)).unwrap());
        let events = freezer.dir().join("cgroup.events");
        let kernel = thread::spawn(move || {
            thread::sleep(Duration::from_millis(5));
            fs::write(events, "populated 1\nfrozen 1\n").unwrap();
        });
        assert!(freezer.freeze(Duration::from_secs(10)).unwrap());
        kernel.join().unwrap();
        assert!(freezer.state().unwrap().asked);
    }

    #[test]
    fn what_was_paused_stays_paused_and_what_ran_runs() {
        for (former, before, after) in [
            (Former::Running, "FROZEN", "THAWED"),
            (Former::Running, "THAWED", "THAWED"),
            (Former::Paused, "THAWED", "FROZEN"),
            (Former::Paused, "FROZEN", "FROZEN"),
        ] {
            let (_temp, freezer) = fake(CgroupVersion::V1, &[("freezer.state", before)]);
            freezer.restore(former).unwrap();
            assert_eq!(fs::read_to_string(freezer.control()).unwrap(), after, "{former:?} {before}");
        }
    }

    #[test]
    fn a_killed_v2_cgroup_is_left_thawed_for_whoever_uses_it_next() {
        let (_temp, freezer) =
            fake(CgroupVersion::V2, &[("cgroup.freeze", "1"), ("cgroup.kill", ""), ("cgroup.procs", "")]);
        freezer.kill().unwrap();
        assert_eq!(fs::read_to_string(freezer.dir().join("cgroup.kill")).unwrap(), "1");
        assert_eq!(fs::read_to_string(freezer.control()).unwrap(), "0");
    }

    #[test]
    fn processes_of_child_cgroups_are_listed_too() {
        let (_temp, freezer) = fake(CgroupVersion::V2, &[("cgroup.procs", "12\n0\n")]);
        fs::create_dir_all(freezer.dir().join("init.scope/deep")).unwrap();
        fs::write(freezer.dir().join("init.scope/deep/cgroup.procs"), "13\n").unwrap();
        let mut pids = freezer.pids().unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [12, 13]);
    }

    #[test]
    fn a_frozen_ancestor_is_named() {
        let (temp, freezer) = fake(CgroupVersion::V2, &[("cgroup.freeze", "0\n"), ("cgroup.events", "frozen 1\n")]);
        assert_eq!(freezer.frozen_above(), None);
        fs::write(temp.path().join("cgroup.freeze"), "1\n").unwrap();
        fs::write(temp.path().join("cgroup.events"), "frozen 1\n").unwrap();
        assert_eq!(freezer.frozen_above().as_deref(), Some(temp.path()));
    }
}
