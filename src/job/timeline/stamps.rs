//! Times that nobody has who only writes: they were set, or the clock was.
//!
//! A file that is written has its birth first, then its modification, and its inode's last change with or after both. utimes(2)
//! sets the time of modification to anything, and that of the last change to now; nothing sets a birth. So a modification
//! before the birth, or after the last change, was set: by `touch -d`, `cp -p`, `mv` across file systems, tar, a package
//! manager, rsync; or by somebody who wants a file to look old. Which of them nothing tells; that the fractions of the second
//! are all zero hints at a text that was parsed or an archive. Copied-up files of the image, and what was unpacked before the
//! container was made, are not asked about: there old times are natural.

use jiff::Timestamp;

use crate::{
    pax::Time,
    timeline::{Finding, moment},
    tree::Meta,
};

/// The kernel's form of a database's time.
pub fn time(at: Timestamp) -> Time {
    let nanos = i128::from(at.as_second()) * 1_000_000_000 + i128::from(at.subsec_nanosecond());
    let secs = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default();
    Time { secs, nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default() }
}

/// What is odd about an inode's times.
pub fn findings(meta: &Meta) -> Vec<Finding> {
    let Meta { mtime, ctime, btime, .. } = *meta;
    let text = |time: Time| moment::iso(time, 9).0;
    let whole = if mtime.nanos == 0 { " (to the second)" } else { "" };
    let mut found = Vec::new();
    if let Some(born) = btime.filter(|born| mtime < *born) {
        found.push(Finding {
            code: "mtime-before-birth",
            text: format!(
                "modified {}{whole}, before its birth {}: a program set the time, at the latest {} (touch -d, cp -p, mv, \
                 tar, a package manager; or timestomping)",
                text(mtime),
                text(born),
                text(ctime)
            ),
        });
    }
    if mtime > ctime {
        found.push(Finding {
            code: "mtime-after-change",
            text: format!(
                "modified {}{whole}, after the last change of its inode {}: a program set a time yet to come, or the clock \
                 was set back",
                text(mtime),
                text(ctime)
            ),
        });
    }
    if let Some(born) = btime.filter(|born| ctime < *born) {
        found.push(Finding {
            code: "change-before-birth",
            text: format!(
                "its inode changed last {}, before its birth {}: no system call does that; the clock was set back, or the \
                 disk was written directly",
                text(ctime),
                text(born)
            ),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Node;

    fn codes(mtime: (i64, u32), ctime: i64, born: Option<i64>) -> Vec<&'static str> {
        let at = |secs| Time { secs, nanos: 0 };
        let mut meta = Node::open("/".as_ref()).unwrap().meta;
        (meta.mtime, meta.ctime, meta.btime) = (Time { secs: mtime.0, nanos: mtime.1 }, at(ctime), born.map(at));
        findings(&meta).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn only_times_that_were_set_are_found() {
        let none: [&str; 0] = [];
        assert_eq!(codes((100, 0), 100, Some(100)), none);
        assert_eq!(codes((150, 0), 200, Some(100)), none);
        assert_eq!(codes((99, 999_999_999), 200, Some(100)), ["mtime-before-birth"]);
        assert_eq!(codes((99, 0), 200, None), none);
        assert_eq!(codes((201, 0), 200, Some(100)), ["mtime-after-change"]);
        assert_eq!(codes((50, 0), 50, Some(100)), ["mtime-before-birth", "change-before-birth"]);
    }

    #[test]
    fn a_time_before_1970_counts_forward_from_its_second() {
        let at: Timestamp = "1969-12-31T23:59:59.25Z".parse().unwrap();
        assert_eq!(time(at), Time { secs: -1, nanos: 250_000_000 });
    }
}
