//! The Sleuth Kit's body file, version 3: one line a file.
//!
//! ```text
//! MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime
//! ```
//! Times are whole seconds since 1970, negative before; what is not known is 0. `mactime` splits at every `|`, undoes `%NN`,
//! and passes over negative times (sleuthkit `tools/timeline/mactime.base`); `fls` adds ` (deleted)` to names and ` -> ` and the
//! target to links (`tsk/fs/fs_name.c`, `tsk_fs_name_print_mac`). Here names are written as [`names`](super::names) has it, with
//! `|`, `%`, and the marks within names escaped too: so each mark is one.
//!
//! A deletion has the letter `w` (whiteout); it took place between its birth and its other times. What is no file stands in
//! brackets, where a file has its slash, with one moment for all four times; so does a finding, at the time of the last change.

use super::{Entry, Event, Fate, Format, Head, Kind, Record, names};
use crate::pax::Time;

/// This format.
pub const FORMAT: Format = Format { name: "bodyfile", begin: |_| String::new(), record, end: String::new };

fn record(_: &Head, record: &Record) -> String {
    match record {
        Record::Entry(entry) => {
            let mut lines = line_of(entry);
            for finding in &entry.findings {
                let message = format!("/{}: {}", plain(&entry.path), plain(finding.text.as_bytes()));
                let time = entry.times.changed.unwrap_or_default();
                lines += &event_line(&format!("[{}] {message}", finding.code), entry.inode, time);
            }
            lines
        }
        Record::Event(Event { time, source, message, .. }) => {
            event_line(&format!("[{source}] {}", plain(message.as_bytes())), 0, *time)
        }
    }
}

fn line_of(entry: &Entry) -> String {
    let Entry { inode, uid, gid, size, times, .. } = entry;
    let md5 = entry.md5.as_deref().unwrap_or("0");
    let mut name = format!("/{}", unmarked(&entry.path));
    if let Some(target) = &entry.target {
        name += " -> ";
        name += &unmarked(target);
    }
    if entry.fate == Fate::Deleted {
        name += DELETED;
    }
    let mode = mode(entry.kind, entry.mode);
    let [atime, mtime, ctime, crtime] =
        [times.accessed, times.modified, times.changed, times.born].map(|time| time.unwrap_or_default().secs);
    format!("{md5}|{name}|{inode}|{mode}|{uid}|{gid}|{size}|{atime}|{mtime}|{ctime}|{crtime}\n")
}

fn event_line(name: &str, inode: u64, time: Time) -> String {
    let secs = time.secs;
    format!("0|{name}|{inode}|-/----------|0|0|0|{secs}|{secs}|{secs}|{secs}\n")
}

const DELETED: &str = " (deleted)";

fn plain(bytes: &[u8]) -> String {
    names::escaped(bytes, |c| matches!(c, '|' | '%'))
}

/// A name in which nothing looks like a mark.
fn unmarked(bytes: &[u8]) -> String {
    let name = plain(bytes).replace("->", r"-\x3e");
    match name.strip_suffix(DELETED) {
        Some(rest) => format!(r"{rest} \x28deleted)"),
        None => name,
    }
}

/// `r/rrwxr-xr-x`: the letter of the name, that of the inode, and the permissions as `ls` has them.
fn mode(kind: Kind, mode: u32) -> String {
    let letter = kind.letter();
    let mut text = format!("{letter}/{letter}");
    for (shift, special, mark) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => mark,
            (false, true) => mark.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_as_ls_has_it() {
        assert_eq!(mode(Kind::File, 0o4755), "r/rrwsr-xr-x");
        assert_eq!(mode(Kind::Directory, 0o1776), "d/drwxrwxrwT");
        assert_eq!(mode(Kind::Socket, 0o2640), "h/hrw-r-S---");
        assert_eq!(mode(Kind::Whiteout, 0), "w/w---------");
    }

    #[test]
    fn a_name_never_looks_like_a_mark() {
        for (name, text) in [
            ("a -> b", r"a -\x3e b"),
            ("gone (deleted)", r"gone \x28deleted)"),
            ("100%41|", r"100\x2541\x7c"),
            ("a -> -> b", r"a -\x3e -\x3e b"),
        ] {
            assert_eq!(unmarked(name.as_bytes()), text);
            assert_eq!(names::unescaped(text).unwrap(), name.as_bytes());
        }
    }
}
