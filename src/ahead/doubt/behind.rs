//! Files that the kernel may still be writing to though their times have moved long ago: a write tells its time when it
//! begins. The page cache is written to under a lock that whoever looks for the file's holes waits for, too (`draft`). What goes
//! past it, to the disk, lands when the disk has taken it: of aio, io_uring and O_DIRECT nobody knows how long that is. So where
//! anybody is seen to have these, no file is sure for two seconds after its last change.
//!
//! ```text
//! /proc/<pid>/fd                    the files of a process, if it has aio or a ring; else those that are open for O_DIRECT
//! /proc/<pid>/task/<tid>/fd         threads may have their own (`CLONE_FILES`): seen while nobody waits, and what is written
//!                                   later than it was read was under way then
//! /proc/<pid>/fdinfo/<ring>         files that only the ring holds (kernel: `io_uring/fdinfo.c`)
//! UserFiles:      2
//!     0: /var/lib/a\040b
//! ```
//! What was closed while it was written to is found as long as a ring holds it; of a process that has ended with its ring, nothing
//! is. Of a ring that nobody has a descriptor of,
//! that is not told, so all is in doubt.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Statx};

use super::{Doubt, Watch, ids, known};
use crate::{host::mounts, procfs::map::Map};

/// What the kernel calls a ring.
const RING: &[u8] = b"anon_inode:[io_uring]";

/// What it calls the queue of aio, and then that it is deleted.
const AIO: &[u8] = b"/[aio]";

/// Where in a ring its queue of entries is mapped, once for each ring (`IORING_OFF_SQES`).
const ENTRIES: u64 = 0x1000_0000;

/// The kernel tells nothing of a ring that is being used at that moment: so often it is asked again.
const MAX_ASKED: usize = 100;

/// A process with more open files than this, counted for each of its threads, is told to share them among all: what changes
/// while a look is under way has to wait for the next.
const MAX_OPEN: usize = 50_000;

/// What its mappings tell of the work that a process hands the kernel.
#[derive(Debug, Default)]
pub(super) struct Work {
    has_aio: bool,
    rings: usize,
}

impl Work {
    /// One more mapping.
    pub(super) fn see(&mut self, map: &Map) {
        self.has_aio |= map.path.starts_with(AIO);
        self.rings += usize::from(map.path.starts_with(RING) && map.offset == ENTRIES);
    }
}

/// An open file of a process.
struct Open {
    /// Its link in `/proc`.
    link: PathBuf,
    /// What that says.
    to: PathBuf,
}

impl Open {
    fn is_ring(&self) -> bool {
        self.to.as_os_str().as_bytes().starts_with(RING)
    }

    fn info(&self) -> io::Result<Vec<u8>> {
        let (table, fd) = (self.link.parent().and_then(Path::parent), self.link.file_name());
        fs::read(table.unwrap_or(Path::new("/")).join("fdinfo").join(fd.unwrap_or_default()))
    }
}

impl Doubt {
    /// Looks at what a process has open.
    pub(super) fn descriptors(&mut self, watch: &Watch, pid: i32, work: &Work, is_running: bool) {
        let all = open_files(watch, pid, is_running);
        let mut rings = BTreeSet::new();
        for ring in all.iter().filter(|open| open.is_ring()) {
            self.ring(watch, pid, ring);
            rings.insert(ring.link.file_name());
        }
        let known = rings.len();
        self.all |= work.rings > known;
        self.is_behind |= work.has_aio || known > 0 || work.rings > 0;
        let is_behind = work.has_aio || known > 0 || work.rings > 0;
        for open in all.iter().filter(|open| open.to.is_absolute()) {
            let info = if is_behind { Ok(Vec::new()) } else { open.info() };
            let access = info.as_deref().ok().and_then(direct);
            // What is read past the page cache may go into what is mapped.
            self.is_behind |= is_behind || access.is_some();
            if is_behind || access.is_some_and(|access| access != nix::libc::O_RDONLY) {
                self.held(watch, pid, open);
            }
        }
    }

    fn held(&mut self, watch: &Watch, pid: i32, open: &Open) {
        let Ok(meta) = known(&open.link, AtFlags::empty()) else { return };
        self.inodes.insert(meta.stx_ino);
        let has_name = self.path(watch, open.to.as_os_str().as_bytes());
        let is_file = FileType::from_raw_mode(meta.stx_mode.into()) == FileType::RegularFile;
        if !has_name && meta.stx_nlink > 0 && is_file && is_on_overlay(watch, pid, open) {
            // Perhaps another name of it is in the tree, under another number.
            self.all |= !is_named(watch, pid, open.to.as_os_str().as_bytes(), &meta);
        }
    }

    /// The files that a ring holds.
    fn ring(&mut self, watch: &Watch, pid: i32, ring: &Open) {
        for _ in 0..MAX_ASKED {
            let Ok(info) = ring.info() else { return };
            if let Some(files) = user_files(&info) {
                files.iter().for_each(|path| self.registered(watch, pid, path));
                return;
            }
        }
        self.all = true;
    }

    fn registered(&mut self, watch: &Watch, pid: i32, path: &[u8]) {
        if !path.starts_with(b"/") {
            return; // a socket, a pipe
        }
        let is_in_tree = watch.root.is_some() && self.path(watch, path);
        match seen_by(watch, pid, path) {
            Ok(meta) => _ = self.inodes.insert(meta.stx_ino),
            Err(_) => self.all |= !is_in_tree,
        }
    }
}

/// True if the process finds this very file at `path`: then it is not known by another name, but lies below the tree.
pub(super) fn is_named(watch: &Watch, pid: i32, path: &[u8], file: &Statx) -> bool {
    let id = |meta: &Statx| (meta.stx_dev_major, meta.stx_dev_minor, meta.stx_ino);
    seen_by(watch, pid, path).is_ok_and(|meta| id(&meta) == id(file))
}

fn seen_by(watch: &Watch, pid: i32, path: &[u8]) -> io::Result<Statx> {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    known(&watch.host.proc_of(pid, "root").join(std::ffi::OsStr::from_bytes(below)), AtFlags::SYMLINK_NOFOLLOW)
}

/// All that a process has open, by any of its threads; of those that have as many as another only if there is time.
fn open_files(watch: &Watch, pid: i32, has_time: bool) -> Vec<Open> {
    let (mut all, mut sizes) = (Vec::new(), BTreeSet::new());
    let threads = ids(&watch.host.proc_of(pid, "task")).filter(|tid| *tid != pid);
    let tables = threads.map(|tid| watch.host.proc_of(pid, format!("task/{tid}/fd")));
    for table in std::iter::once(watch.host.proc_of(pid, "fd")).chain(tables) {
        // The size is how many there are, since Linux 6.2; of a thread that has ended there are none.
        let size = fs::metadata(&table).map_or(0, |meta| meta.len());
        if all.is_empty() || !sizes.contains(&size) || has_time && all.len() < MAX_OPEN {
            let links = ids(&table).map(|fd| table.join(fd.to_string()));
            all.extend(links.filter_map(|link| Some(Open { to: fs::read_link(&link).ok()?, link })));
            sizes.insert(size);
        }
    }
    all
}

/// How a file may be accessed, if that goes past the page cache.
fn direct(info: &[u8]) -> Option<i32> {
    let flags = i32::from_str_radix(value(info, "flags:")?, 8).ok()?;
    (flags & nix::libc::O_DIRECT != 0).then_some(flags & nix::libc::O_ACCMODE)
}

fn is_on_overlay(watch: &Watch, pid: i32, open: &Open) -> bool {
    let info = open.info().unwrap_or_default();
    let mount: Option<u64> = value(&info, "mnt_id:").and_then(|id| id.parse().ok());
    let mounts = mounts::read(&watch.host.proc_of(pid, "mountinfo")).unwrap_or_default();
    // A mount that is not to be found may be one.
    mounts.iter().find(|is| Some(is.id) == mount).is_none_or(|mount| mount.fs == "overlay")
}

fn value<'i>(info: &'i [u8], name: &str) -> Option<&'i str> {
    let line = info.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()));
    line.and_then(|line| std::str::from_utf8(line).ok()).map(str::trim)
}

/// The paths of files that a ring holds; `None` if it does not say.
fn user_files(info: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut lines = info.split(|&b| b == b'\n').skip_while(|line| !line.starts_with(b"UserFiles:"));
    lines.next()?;
    let path = |line: &[u8]| {
        let colon = line.iter().position(|&b| b == b':')?;
        let (number, path) = (line.get(..colon)?.trim_ascii(), line.get(colon + 1..)?.trim_ascii_start());
        (!number.is_empty() && number.iter().all(u8::is_ascii_digit)).then(|| mounts::unescape(path))
    };
    Some(lines.map_while(path).filter(|path| path != b"<none>").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_tells_its_files_or_that_it_tells_nothing() {
        let info = b"pos:\t0\nSqThread:\t-1\nUserFiles:\t3\n    0: /a\\040b\\134c\n    1: <none>\n    2: socket:[5]\nUserBufs:\t1\n    0: 0x7f/4096\n";
        assert_eq!(user_files(info), Some(vec![b"/a b\\c".to_vec(), b"socket:[5]".to_vec()]));
        assert_eq!(user_files(b"pos:\t0\nUserFiles:\t0\nUserBufs:\t0\n"), Some(Vec::new()));
        assert_eq!(user_files(b"pos:\t0\nflags:\t02000002\n"), None);
    }

    #[test]
    fn what_is_open_past_the_page_cache_is_known_by_its_flags() {
        let info = |flags: i32| format!("pos:\t0\nflags:\t0{flags:o}\nmnt_id:\t17\n").into_bytes();
        let direct = nix::libc::O_DIRECT;
        for (flags, access) in
            [(direct | 1, Some(1)), (direct | 2, Some(2)), (direct, Some(0)), (1, None), (2 | 0o2000, None)]
        {
            assert_eq!(super::direct(&info(flags)), access, "{flags:o}");
        }
        assert_eq!(super::direct(b""), None);
    }
}
