//! The watchdog: our own program, started anew before a container is frozen, which undoes the freeze when we cannot.
//!
//! ```text
//! dewar ──stdin──▶  {"marker":…,"path":…,"proc":…}      one line of JSON: what there is to undo
//!       ◀─stdout──  armed                                the control file is open; only now dewar freezes
//!       ──stdin──▶  criu 4711                            CRIU is at work under this pid
//!       ──stdin──▶  criu gone                            it has ended, and its network lock with it
//!       ──stdin──▶  done                                 nothing is left to undo: it exits
//!       ──(EOF)──▶                                       dewar has died: end CRIU, thaw, unlock the network
//! ```
//! There is no deadline: a large dump takes long, and the end of `dewar` closes the pipe, whatever ended it. Nobody
//! else has the write end: it is close-on-exec like every descriptor that the standard library opens.

use std::{
    fmt, fs,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::SigSet,
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use super::{
    marker::Marker,
    netlock,
    recover::{Watched, recover},
};
use crate::{
    error::{At, Error, Result},
    host::{Host, shield},
    id::TaskPid,
};

/// The hidden subcommand under which our program is the watchdog.
pub const SUBCOMMAND: &str = "__watchdog";

/// What the process is called: not `dewar`, so that `pkill dewar` ends what is to be watched and not who watches.
const NAME: &str = "thaw-guard";

/// How long the watchdog may take to start. It takes milliseconds; a machine short of memory needs longer.
const START: Duration = Duration::from_secs(10);

/// So many bytes of what it complains of are told.
const MAX_SAID: u64 = 1024;

/// The first line on its stdin.
#[derive(Debug, Serialize, Deserialize)]
struct Params {
    marker: Marker,
    path: PathBuf,
    proc: PathBuf,
}

/// A running watchdog, seen from the process it watches. Dropped without [`Watchdog::done`], it goes to work.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    input: ChildStdin,
}

impl Watchdog {
    /// Starts one for what the marker describes, and waits until it is armed.
    pub fn arm(host: &Host, marker: &Marker, path: PathBuf) -> Result<Self> {
        let mut command = Command::new(&host.dewar);
        command.arg0(NAME).arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = shield::outside(move || command.spawn()).at("start the watchdog", &host.dewar)?;
        let Some(input) = child.stdin.take() else { return Err(unarmed("it has no stdin")) };
        let watchdog = Self { child, input };
        let params = Params { marker: marker.clone(), path, proc: host.proc.clone() };
        let line = serde_json::to_string(&params).map_err(|e| unarmed(&e))?;
        match watchdog.tell(&line) {
            Ok(()) => watchdog.wait_armed(),
            Err(e) => Err(watchdog.failed().unwrap_or(e)),
        }
    }

    fn wait_armed(mut self) -> Result<Self> {
        let Some(mut output) = self.child.stdout.take() else { return Err(unarmed("it has no stdout")) };
        let timeout = PollTimeout::try_from(START).unwrap_or(PollTimeout::MAX);
        let is_ready = poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0);
        let mut word = [0; 6];
        if is_ready && output.read_exact(&mut word).is_ok() && &word == b"armed\n" {
            return Ok(self);
        }
        Err(self.failed().unwrap_or_else(|| unarmed("it did not say that it is armed")))
    }

    /// Ends one that did not come to work; what it complained of.
    fn failed(mut self) -> Option<Error> {
        self.end();
        let mut said = Vec::new();
        self.child.stderr.take()?.take(MAX_SAID).read_to_end(&mut said).ok()?;
        let said = String::from_utf8_lossy(&said);
        let said = said.trim();
        (!said.is_empty()).then(|| unarmed(said.strip_prefix("dewar: ").unwrap_or(said)))
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Tells it of the CRIU that is at work: it is ended before the container is thawed.
    pub fn criu_is(&self, pid: i32) -> Result<()> {
        self.tell(&format!("criu {pid}"))
    }

    /// Tells it that CRIU has ended and left no lock.
    pub fn criu_is_gone(&self) -> Result<()> {
        self.tell("criu gone")
    }

    /// One line, one write: it is never read by halves.
    fn tell(&self, line: &str) -> Result<()> {
        (&self.input).write_all(format!("{line}\n").as_bytes()).map_err(|e| unarmed(&e))
    }

    /// Nothing is left to undo.
    pub fn done(mut self) {
        let _ = self.tell("done");
        self.end();
    }

    /// Killed rather than waited for: it has nothing more to do, and a stopped one would keep us.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unarmed(why: impl fmt::Display) -> Error {
    Error::Freeze {
        what: "anything".into(),
        why: format!("the watchdog that would thaw the container after a crash is not there: {why}"),
        hint: String::new(),
    }
}

/// The watchdog's whole life. `output` is read up to the word `armed` and closed thereafter.
pub fn main(input: impl Read, mut output: impl Write) -> Result<()> {
    detach();
    let mut lines = BufReader::new(input).lines().map_while(std::result::Result::ok);
    let Some(first) = lines.next() else { return Ok(()) };
    let params: Params = serde_json::from_str(&first).map_err(|e| Error::malformed("stdin", e))?;
    let Params { mut marker, path, proc } = params;
    let host = Host { proc, ..Host::default() };
    // Held open, so that nothing that happens to paths or to the container's processes gets in the way later.
    let control = marker.freezer().open()?;
    let netns = netlock::of(&host, marker.init.pid);
    output.write_all(b"armed\n").and_then(|()| output.flush()).at("write", "stdout")?;
    let End::Orphaned(criu) = listen(lines, &host, &mut marker) else { return Ok(()) };
    if Marker::read(&path).is_ok_and(|m| m.owner != marker.owner) {
        // Another dewar holds it by now, so ours had not begun.
        return Ok(());
    }
    let result = recover(&path, &marker, criu.as_ref(), netns.as_ref());
    if result.is_err() && marker.former == super::cgroup::Former::Running {
        control.thaw()?;
    }
    result
}

/// How the listening ended.
enum End {
    /// With the word `done`.
    Done,
    /// With the end of `dewar`; perhaps a CRIU was at work.
    Orphaned(Option<Watched>),
}

fn listen(lines: impl Iterator<Item = String>, host: &Host, marker: &mut Marker) -> End {
    let mut criu = None;
    for line in lines {
        match line.split_once(' ') {
            Some(("criu", "gone")) => (criu, marker.criu) = (None, None),
            Some(("criu", pid)) => {
                let Ok(pid) = pid.parse() else { continue };
                criu = Watched::pid(pid);
                marker.criu = host.proc_stat(pid).ok().flatten().map(|s| TaskPid { pid, started: s.started });
            }
            _ if line == "done" => return End::Done,
            _ => {}
        }
    }
    End::Orphaned(criu)
}

/// Leaves everything that could end it together with `dewar`: the session, the terminal's signals, the process group,
/// the name, the working directory; and asks the memory killer to look elsewhere. Each of these may fail harmlessly.
fn detach() {
    let _ = setsid();
    // Blocked, which needs no handler.
    let _ = SigSet::all().thread_block();
    let _ = fs::write("/proc/self/comm", NAME);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::env::set_current_dir("/");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{freeze::cgroup::Former, runtime::CgroupVersion};

    fn marker() -> Marker {
        Marker {
            container: "default/web".into(),
            cgroup: "/nowhere".into(),
            cgroup_version: CgroupVersion::V1,
            former: Former::Running,
            boot_id: String::new(),
            init: TaskPid { pid: i32::MAX, started: 1 },
            owner: TaskPid { pid: i32::MAX, started: 1 },
            watchdog: None,
            criu: None,
        }
    }

    fn heard(text: &str) -> (End, Marker) {
        let mut marker = marker();
        let end = listen(text.lines().map(str::to_owned), &Host::default(), &mut marker);
        (end, marker)
    }

    #[test]
    fn it_goes_to_work_at_the_end_of_the_pipe_unless_it_was_told_that_all_is_done() {
        assert!(matches!(heard("done\n").0, End::Done));
        assert!(matches!(heard("").0, End::Orphaned(None)));
        assert!(matches!(heard("criu 1\nhm\ndone").0, End::Done));
        let (end, marker) = heard(&format!("criu {}\n", std::process::id()));
        assert!(matches!(end, End::Orphaned(Some(_))));
        assert!(marker.criu.is_some());
        let (end, marker) = heard(&format!("criu {}\ncriu gone\n", std::process::id()));
        assert!(matches!(end, End::Orphaned(None)));
        assert!(marker.criu.is_none());
    }

    #[test]
    fn a_watchdog_that_never_says_armed_is_an_error_before_anything_is_frozen() {
        let temp = tempfile::tempdir().unwrap();
        let host = Host { dewar: "/bin/true".into(), ..Host::default() };
        let error = Watchdog::arm(&host, &marker(), temp.path().join("m.json")).unwrap_err();
        assert!(matches!(error, Error::Freeze { .. }), "{error}");
        let host = Host { dewar: temp.path().join("absent"), ..Host::default() };
        assert!(Watchdog::arm(&host, &marker(), temp.path().join("m.json")).is_err());
    }
}
