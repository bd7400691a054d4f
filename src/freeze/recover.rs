//! Undoing a freeze whose owner is gone: what the watchdog does, and `dewar thaw` when the watchdog is gone as well.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, prlimit},
};

use super::{
    marker::{self, Marker},
    netlock::{self, Netns},
};
use crate::{error::Result, host::Host, id::TaskPid};

/// How long CRIU may take to end by itself. Then it lets go of the tasks in good order, TCP connections and network
/// lock included. Killed, it cannot, and worse: a task in which it was just executing a system call dies of the trap
/// that CRIU planted there (seen twice in 114 kills). So patience, but within the 3 s after which all must be well.
pub const GRACE: Duration = Duration::from_secs(2);

/// How long a CRIU whose end we did not see may yet freeze the cgroup again: it does so as the last thing before it
/// lets go of a tree that it found frozen.
const RELAPSE: Duration = Duration::from_millis(2500);

/// A process of which we learn for sure when it has ended, whatever becomes of its pid.
#[derive(Debug)]
pub struct Watched {
    pid: Pid,
    fd: OwnedFd,
}

impl Watched {
    /// Watches the process that has this pid now; `None` if there is none.
    pub fn pid(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(|fd| Self { pid, fd })
    }

    /// Watches exactly this process.
    pub fn exactly(host: &Host, who: TaskPid) -> Option<Self> {
        let watched = Self::pid(who.pid)?;
        // Asked after the descriptor is open: if the answer is yes, the descriptor is of that process.
        host.is_alive(who).unwrap_or(false).then_some(watched)
    }

    /// True if it ends within `limit`.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
                Ok(n) => return n > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Has it end by itself, as soon as may be, and after a while kills it; and in any case what is left of its process
    /// group. True once it has ended. To be asked before it is reaped, or at once thereafter: then its pid is its own.
    pub fn end(&self) -> bool {
        let by_itself = self.ends_within(Duration::ZERO) || {
            self.refuse_writes();
            self.ends_within(GRACE)
        };
        // CRIU starts helpers, some of which sleep for ever when it is killed. An error means that none is left.
        let _ = kill_process_group(self.pid, Signal::KILL);
        by_itself || self.ends_within(GRACE)
    }

    /// CRIU looks at its socket only between the parts of its work, which may be minutes. What it does all the time is
    /// to write images: a write that fails makes it give up. Best effort.
    fn refuse_writes(&self) {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        let _ = prlimit(Some(self.pid), Resource::Fsize, none);
    }
}

impl AsFd for Watched {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Ends CRIU, restores the freezer, unlocks the network, removes the marker, in this order. Every step is tried even
/// if one before it fails; the marker stays when the freezer could not be restored.
pub fn recover(path: &Path, marker: &Marker, criu: Option<&Watched>, netns: Option<&Netns>) -> Result<()> {
    let is_over = criu.is_none_or(Watched::end);
    let restored = restore(marker, if is_over { Duration::ZERO } else { RELAPSE });
    // Without a CRIU there was no lock; one that ended in good order has none left, and this finds none.
    let unlocked = if marker.criu.is_some() || criu.is_some() { netns.map_or(Ok(()), Netns::unlock) } else { Ok(()) };
    restored?;
    marker::remove(path)?;
    unlocked
}

/// Restores the former state and sees to it that it stays for a while. A cgroup that has gone holds nobody.
fn restore(marker: &Marker, watch: Duration) -> Result<()> {
    let freezer = marker.freezer();
    let start = Instant::now();
    loop {
        match freezer.restore(marker.former) {
            Err(_) if !freezer.exists() => return Ok(()),
            result => result?,
        }
        let is_back = freezer.state().map_or(true, |s| s.former() == marker.former);
        let is_stable = is_back && start.elapsed() >= watch;
        // Whoever freezes it time and again for so long means it.
        if is_stable || start.elapsed() > watch + RELAPSE {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What is held frozen by a process that has gone is restored. The watchdog of that process comes first: while it
/// lives, the work is its own, and it is waited for.
pub fn take_over(host: &Host, path: &Path, marker: &Marker) -> Result<()> {
    if let Some(watchdog) = marker.watchdog.and_then(|w| Watched::exactly(host, w))
        && watchdog.ends_within(GRACE * 2 + RELAPSE)
    {
        return Ok(());
    }
    let criu = marker.criu.and_then(|c| Watched::exactly(host, c));
    let netns = if host.is_alive(marker.init)? { netlock::of(host, marker.init.pid) } else { None };
    recover(path, marker, criu.as_ref(), netns.as_ref())
}
