//! What is mounted where: `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//! id parent dev root at        options    …        - fs   source    …
//! ```

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use crate::error::{At, Result};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as statx(2) tells it of a file.
    pub id: u64,
    /// The mount it is mounted on.
    pub parent: u64,
    /// The file system's device number.
    pub dev: (u32, u32),
    /// Which directory or file of its file system is mounted; ends in `//deleted` when that has no name any more.
    pub root: OsString,
    /// Where, for the process that was asked about.
    pub at: OsString,
    /// The file system's type.
    pub fs: OsString,
    /// What it was mounted from: a device, a dataset, a file, or any word.
    pub source: OsString,
    /// The options of this mount alone.
    pub own: OsString,
    /// Nothing can be written through this mount, or to the file system at all.
    pub is_read_only: bool,
    /// The file system's own options, as it wrote them (overlay: `lowerdir=…,upperdir=…`).
    pub options: OsString,
}

/// All that is mounted, in the kernel's order: as they were mounted, first to last. A line that cannot be understood is
/// left out.
pub fn read(path: &Path) -> Result<Vec<Mount>> {
    Ok(parse(&fs::read(path).at("read", path)?))
}

/// The mounts in the bytes of a mountinfo file.
pub fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|&b| b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let mut next = || fields.next();
    let (id, parent, dev) = (number(next()?)?, number(next()?)?, device(next()?)?);
    let (root, at, own) = (text(next()?), text(next()?), text(next()?));
    let mut rest = fields.skip_while(|f| *f != b"-").skip(1);
    let (fs, source) = (text(rest.next()?), text(rest.next().unwrap_or_default()));
    let options = text(rest.next().unwrap_or_default());
    let is_ro = |options: &[u8]| options.split(|&b| b == b',').any(|option| option == b"ro");
    let is_read_only = is_ro(own.as_bytes()) || is_ro(options.as_bytes());
    Some(Mount { id, parent, dev, root, at, fs, source, own, is_read_only, options })
}

/// The mount that has the absolute path, which is free of links: the innermost, and of several at one place the last.
pub fn of<'m>(mounts: &'m [Mount], path: &Path) -> Option<&'m Mount> {
    let holds = |mount: &&Mount| path.starts_with(Path::new(&mount.at));
    mounts.iter().filter(holds).max_by_key(|mount| Path::new(&mount.at).components().count())
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn text(field: &[u8]) -> OsString {
    OsStr::from_bytes(&unescape(field)).to_owned()
}

/// Space, tab, newline and backslash stand as three octal digits, here and wherever the kernel tells paths so (`seq_file`).
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_where_the_manual_says() {
        let info = b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 36 0:52 / /x rw - tmpfs tmpfs rw\nnonsense\n38 36 0:52\n";
        let mounts = parse(info);
        assert_eq!(mounts.len(), 2);
        let (root, at, fs) = ("/mnt1".into(), "/mnt/a b".into(), "ext3".into());
        let (source, options) = ("/dev/root".into(), "rw".into());
        let own = "rw,noatime".into();
        let first = Mount { id: 36, parent: 35, dev: (98, 0), root, at, fs, source, own, is_read_only: false, options };
        assert_eq!((&mounts[0], mounts[1].fs.as_bytes()), (&first, &b"tmpfs"[..]));
    }

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\011\134c\9\04"), b"/a b\t\\c\\9\\04");
    }
}
