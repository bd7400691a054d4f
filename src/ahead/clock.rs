//! The clock by which file systems tell the time, and when a change is certainly past.
//!
//! An inode's times are read off the kernel's coarse clock, or since 6.13 off a fine one when somebody has looked at the inode
//! since (kernel: `fs/inode.c`, `current_time` and `inode_set_ctime_current`), and a coarse one never falls behind what was
//! given out before. So what changes after a reading of the coarse clock never has a time before that reading, however
//! long a tick lasts or a virtual machine's processors were not run.

use std::time::Duration;

use nix::time::ClockId;

use crate::pax::Time;

/// Before Linux 6.13 some changes take the time and are made an instant later; where that shows in what an inode says it is
/// compared as well (`record`).
const MARGIN: Duration = Duration::from_millis(100);

/// What the clock says. One that cannot be read makes every change look new, which is safe.
pub fn now() -> Time {
    let now = ClockId::CLOCK_REALTIME_COARSE.now().ok();
    now.map_or_else(Time::default, |now| Time {
        secs: now.tv_sec(),
        // Below 10⁹.
        nanos: u32::try_from(now.tv_nsec()).unwrap_or(0),
    })
}

/// So long before `time`.
pub fn before(time: Time, so_long: Duration) -> Time {
    let (secs, nanos) = (i64::try_from(so_long.as_secs()).unwrap_or(i64::MAX), so_long.subsec_nanos());
    let (borrowed, nanos) = match time.nanos.checked_sub(nanos) {
        Some(nanos) => (0, nanos),
        None => (1, time.nanos + 1_000_000_000 - nanos),
    };
    Time { secs: time.secs.saturating_sub(secs).saturating_sub(borrowed), nanos }
}

/// True if an inode that says `changed` had changed so before the clock said `then`. Old file systems count whole seconds.
pub fn is_past(changed: Time, then: Time) -> bool {
    let latest = if changed.nanos == 0 { Time { secs: changed.secs.saturating_add(1), nanos: 0 } } else { changed };
    latest < before(then, MARGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(secs: i64, nanos: u32) -> Time {
        Time { secs, nanos }
    }

    #[test]
    fn time_is_told_in_two_parts() {
        let (second, most) = (Duration::from_secs(1), Duration::from_millis(1_900));
        assert_eq!(before(time(5, 7), second), time(4, 7));
        assert_eq!(before(time(5, 950_000_000), most), time(4, 50_000_000));
        assert_eq!(before(time(5, 800_000_000), most), time(3, 900_000_000));
        assert_eq!(before(time(i64::MIN, 0), most).secs, i64::MIN);
    }

    #[test]
    fn only_what_is_past_for_certain_is_past() {
        assert!(is_past(time(5, 1), time(5, 100_000_002)) && !is_past(time(5, 1), time(5, 100_000_001)));
        // Of whole seconds nobody knows when in it.
        assert!(!is_past(time(5, 0), time(6, 100_000_000)) && is_past(time(5, 0), time(6, 100_000_001)));
        assert!(!is_past(time(9, 1), time(5, 0)));
    }

    #[test]
    fn what_changes_after_the_clock_was_read_does_not_look_past() {
        let temp = tempfile::tempdir().unwrap();
        for n in 0..2000 {
            let (then, path) = (now(), temp.path().join(n.to_string()));
            std::fs::write(&path, "new").unwrap();
            let changed = crate::tree::Node::open(&path).unwrap().meta.ctime;
            assert!(!is_past(changed, then), "{changed:?} {then:?}");
            assert!(changed.nanos == 0 || changed >= then, "{changed:?} {then:?}");
        }
    }
}
