//! Reading a bolt file that a daemon may own: a copy in memory, under a lock held no longer than the copy takes; or one piece
//! after another without a lock, which counts if no commit was made meanwhile.
//!
//! containerd holds `LOCK_EX` on meta.db from start to end, and waits without limit for a lock of ours
//! (bbolt `bolt_unix.go`, `flock`; containerd `plugins/metadata/plugin.go`).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, IoSliceMut, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::{
    io::{ReadWriteFlags, preadv2},
    system,
};

use super::{Host, memory::Memory};
use crate::{
    bolt::{self, Db, Piecemeal},
    corrupt::Corrupt,
    error::{At, Error, Result},
    ledger, shares,
};

/// A busy daemon commits a few times a second; so many failures in a row mean something else.
const TRIES: usize = 200;

/// How long a daemon that was just killed may take to let go of its lock: until the last of its threads has ended.
const DYING: Duration = Duration::from_millis(500);

/// A meta page is written in one go: so many looks at half of one mean that it is no meta page.
const UNREADABLE: usize = 20;

/// The bytes of the database at `path`.
///
/// While a daemon holds it, other than one that was killed and is about to let go: [`Error::DaemonRunning`], or, with
/// `host.daemon_running`, a consistent copy taken without the lock.
pub fn read(host: &Host, path: &Path) -> Result<Bytes> {
    let path = &host.inside(path)?;
    let mut file = open(path)?;
    let seen = ledger::look(&file);
    let bytes = locked(host, &mut file, path)?;
    ledger::database(path, seen, &bytes, bolt::transactions(&bytes));
    Ok(bytes)
}

/// The database at `path`, of which pieces are read without a lock when they are asked for: while the commit that was read
/// is the newest, nothing of it is written to. `None` if it is not in the page cache, where it is at hand in any order, or not
/// plain to read.
///
/// While a daemon holds it: [`Error::DaemonRunning`], unless `host.daemon_running`.
pub fn in_pieces(host: &Host, path: &Path) -> Result<Option<Piecemeal>> {
    let path = &host.inside(path)?;
    let file = open(path)?;
    match lock(host, &file) {
        Ok(()) => file.unlock().at("unlock", path)?,
        Err(TryLockError::WouldBlock) if host.daemon_running => {}
        Err(TryLockError::WouldBlock) => return Err(Error::DaemonRunning { db: path.to_owned() }),
        Err(TryLockError::Error(_)) => return Ok(None),
    }
    let len = file.metadata().at("look at", path)?.len();
    // Nothing of such a length is a database, and whoever reads it whole says so.
    if len > all_memory() {
        return Ok(None);
    }
    Ok(Piecemeal::open(Box::new(move |at, bytes| read_cached(&file, at, bytes)), len))
}

/// Fills `bytes` from byte `from` on; false unless all of them are in the page cache.
fn read_cached(file: &File, from: u64, bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut [IoSliceMut::new(&mut bytes[done..])];
        match preadv2(file, rest, from + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) | Err(_) => return false,
            Ok(n) => done += n,
        }
    }
    true
}

/// Locks `file` as readers do, if it is free or about to be.
fn lock(host: &Host, file: &File) -> Result<(), TryLockError> {
    let since = Instant::now();
    let mut lock = file.try_lock_shared();
    while matches!(lock, Err(TryLockError::WouldBlock)) && !host.daemon_running && since.elapsed() < DYING {
        thread::sleep(Duration::from_millis(5));
        lock = file.try_lock_shared();
    }
    lock
}

fn locked(host: &Host, file: &mut File, path: &Path) -> Result<Bytes> {
    match lock(host, file) {
        Ok(()) => copy(file, path),
        Err(TryLockError::WouldBlock) if host.daemon_running => consistent_copy(file, path),
        Err(TryLockError::WouldBlock) => Err(Error::DaemonRunning { db: path.to_owned() }),
        // A file system without flock (some network mounts): nobody can hold the lock there either.
        Err(TryLockError::Error(e)) if e.raw_os_error() == Some(nix::libc::ENOLCK) => consistent_copy(file, path),
        Err(TryLockError::Error(e)) => Err(e).at("lock", path),
    }
}

/// The first `max` bytes of a small file that is known to be a regular one; `of` says what it is.
pub fn bounded(of: &str, path: &Path, max: u64) -> Result<Vec<u8>> {
    let (file, mut bytes) = (open(path)?, Vec::new());
    let seen = ledger::look(&file);
    file.take(max).read_to_end(&mut bytes).at("read", path)?;
    ledger::read(of, path, seen, &bytes);
    Ok(bytes)
}

/// What is wrong with the database at `path`, for its user: the first places, and how many more.
pub fn damage(path: &Path, places: &[Corrupt]) -> Vec<Error> {
    const SHOWN: usize = 3;
    let first = places.iter().take(SHOWN).map(|source| Error::Corrupt { path: path.to_owned(), source: *source });
    let more = places.len().saturating_sub(SHOWN);
    let rest = (more > 0).then(|| Error::malformed(path, format!("{more} more places are damaged")));
    first.chain(rest).collect()
}

/// Opens for reading without moving the access time, where we may (`O_NOATIME` is the owner's and root's).
pub fn open(path: &Path) -> Result<File> {
    let with = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    match with(nix::libc::O_NOATIME | nix::libc::O_CLOEXEC) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => with(nix::libc::O_CLOEXEC).at("open", path),
        opened => opened.at("open", path),
    }
}

/// Where reading in two parts begins to pay.
const LARGE: usize = 8 << 20;

/// Bytes of memory that this machine has.
fn all_memory() -> u64 {
    let memory = system::sysinfo();
    (memory.totalram as u64).saturating_mul(memory.mem_unit.max(1).into())
}

fn copy(file: &File, path: &Path) -> Result<Bytes> {
    let most = all_memory();
    let mut len = file.metadata().at("look at", path)?.len();
    loop {
        if len > most {
            return Err(Error::malformed(path, format!("has {len} bytes, more than this machine has memory")));
        }
        let room = usize::try_from(len).unwrap_or(usize::MAX).saturating_add(1);
        let bytes = Memory::filled(room, |bytes| fill(file, bytes)).at("read", path)?;
        // One byte is left, or it grew meanwhile.
        if bytes.as_ref().len() < room {
            return Ok(Bytes::from_owner(bytes));
        }
        // What says nothing of its size is read in so many steps, not one a page.
        let more = len.saturating_add(len / 4).saturating_add(LARGE as u64);
        len = file.metadata().at("look at", path)?.len().max(more);
    }
}

/// Fills `bytes` from the start of `file`; how many there were. A large file is read by two threads.
fn fill(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    if bytes.len() < LARGE {
        return read_from(file, bytes, 0);
    }
    let half = bytes.len() / 2;
    let (front, back) = bytes.split_at_mut(half);
    let (front, back) = thread::scope(|scope| {
        let back = shares::beside(scope, || read_from(file, back, half as u64));
        (read_from(file, front, 0), back.join())
    });
    let front = front?;
    // A file that was cut meanwhile has nothing behind the cut.
    if front < half { Ok(front) } else { Ok(half + back?) }
}

/// Reads from byte `from` on until `bytes` is full or the file ends.
fn read_from(file: &File, bytes: &mut [u8], from: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], from + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// A commit writes pages that are free in the commit before, and its meta page last. So a copy whose newest meta
/// is still the newest in the file afterwards was not written into (bbolt `tx.go`, `Commit`).
fn consistent_copy(file: &mut File, path: &Path) -> Result<Bytes> {
    let mut unreadable = 0;
    for tries in 0..TRIES {
        let bytes = copy(file, path)?;
        match Db::open(&bytes) {
            Ok(db) if is_newest(file, path, &db)? => return Ok(bytes),
            Ok(_) => unreadable = 0,
            // A meta page may be met while it is written; if it stays so, the file is damaged, and nobody commits to it.
            Err(_) => unreadable += 1,
        }
        if unreadable >= UNREADABLE {
            return Ok(bytes);
        }
        // Not in step with the commits.
        thread::sleep(Duration::from_micros(200 * (tries % 17) as u64));
    }
    Err(Error::malformed(path, "changes faster than it can be read: stop the daemon for a moment"))
}

/// True if no commit was made since `db` was copied: both meta pages are read anew.
fn is_newest(file: &mut File, path: &Path, db: &Db<'_>) -> Result<bool> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0)).at("read", path)?;
    file.take(2 * db.page_size() as u64).read_to_end(&mut head).at("read", path)?;
    Ok(Db::open(&head).is_ok_and(|now| now.commit() == db.commit()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    const PAGE: usize = 4096;
    /// The tree is at the end of the file: a copy takes a while from the meta pages to there.
    const PAGES: u64 = 1024;

    /// Commits as bbolt does: a page that is free in the commit before, then the other meta page (`tx.go`, `Commit`).
    fn commit(file: &File, txid: u64) {
        let root = PAGES - 2 + txid % 2;
        let mut page = vec![0; PAGE];
        page[..8].copy_from_slice(&root.to_le_bytes());
        page[8..12].copy_from_slice(&[2, 0, 1, 0]);
        page[20..32].copy_from_slice(&[16, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0]);
        page[32..36].copy_from_slice(b"txid");
        page[36..44].copy_from_slice(&txid.to_le_bytes());
        // In two parts, so that a reader may come between.
        file.write_all_at(&page[..40], root * PAGE as u64).unwrap();
        thread::yield_now();
        file.write_all_at(&page[40..], root * PAGE as u64 + 40).unwrap();
        let mut meta = vec![0; 80];
        meta[..8].copy_from_slice(&(txid % 2).to_le_bytes());
        meta[16..24].copy_from_slice(&[0xed, 0xda, 0x0c, 0xed, 2, 0, 0, 0]);
        meta[24..28].copy_from_slice(&(PAGE as u32).to_le_bytes());
        for (at, field) in [(32, root), (48, u64::MAX), (56, PAGES), (64, txid)] {
            meta[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        let sum = meta[16..72]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        meta[72..].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&meta, (txid % 2) * PAGE as u64).unwrap();
    }

    #[test]
    fn a_copy_beside_a_daemon_at_work_is_of_one_commit() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("meta.db");
        let daemon = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        daemon.set_len(PAGES * PAGE as u64).unwrap();
        (0..2).for_each(|txid| commit(&daemon, txid));
        daemon.lock().unwrap();
        let host = Host { daemon_running: true, ..Host::default() };
        let refused = read(&Host::default(), &path);
        assert!(matches!(refused, Err(Error::DaemonRunning { .. })));

        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for txid in 2.. {
                    commit(&daemon, txid);
                    // Between bursts a daemon pauses; without a pause nobody could read.
                    if txid % 8 == 0 {
                        thread::sleep(Duration::from_millis(2));
                    }
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let end = std::time::Instant::now() + Duration::from_millis(300);
            let mut copies = Vec::new();
            while std::time::Instant::now() < end {
                copies.push(read(&host, &path).map_err(|e| e.to_string()));
            }
            done.store(true, Ordering::Relaxed);
            let mut seen = std::collections::HashSet::new();
            for copy in copies {
                let copy = copy.unwrap();
                let db = Db::open(&copy).unwrap();
                let value = db.root().value("txid").unwrap().unwrap();
                assert_eq!(u64::from_le_bytes(value.try_into().unwrap()), db.commit().0);
                seen.insert(db.commit().0);
            }
            assert!(seen.len() > 3, "the daemon was not at work");
        });
    }

    #[test]
    fn what_was_read_in_pieces_counts_while_no_commit_is_made() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("meta.db");
        let daemon = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        daemon.set_len(PAGES * PAGE as u64).unwrap();
        (0..2).for_each(|txid| commit(&daemon, txid));
        let txid = |pieces: &Piecemeal| {
            let value = pieces.db().root().value("txid").unwrap().unwrap().try_into().unwrap();
            u64::from_le_bytes(value)
        };
        let pieces = in_pieces(&Host::default(), &path).unwrap().unwrap();
        daemon.try_lock().expect("no lock is kept");
        assert!(matches!(in_pieces(&Host::default(), &path), Err(Error::DaemonRunning { .. })));
        assert!(txid(&pieces) == 1 && pieces.is_sound());
        commit(&daemon, 2);
        assert!(!pieces.is_sound(), "the page it was on may be written to");
        let host = Host { daemon_running: true, ..Host::default() };
        let pieces = in_pieces(&host, &path).unwrap().unwrap();
        assert!(txid(&pieces) == 2 && pieces.is_sound());
        // Neither meta page may be in doubt.
        daemon.write_all_at(&[0; 8], PAGE as u64 + 64).unwrap();
        assert!(in_pieces(&host, &path).unwrap().is_none());
    }

    #[test]
    fn what_is_not_in_the_page_cache_is_not_read_in_pieces() {
        let temp = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = temp.path().join("file");
        fs::write(&path, [7; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        let mut bytes = vec![0; 1 << 20];
        if !read_cached(&file, 0, &mut bytes) {
            return; // This file system does not say what is in the cache.
        }
        assert!(bytes.iter().all(|byte| *byte == 7) && !read_cached(&file, 1, &mut bytes), "it ends");
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(!read_cached(&file, 0, &mut bytes));
    }

    #[test]
    fn a_large_file_is_read_whole_and_an_absurd_one_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("meta.db");
        let bytes: Vec<u8> = (0..LARGE as u32 / 4 + 1234).flat_map(u32::to_le_bytes).chain([7; 3]).collect();
        fs::write(&path, &bytes).unwrap();
        assert!(read(&Host::default(), &path).unwrap() == bytes);
        let mut short = vec![0; bytes.len() + 4096];
        assert_eq!(fill(&File::open(&path).unwrap(), &mut short).unwrap(), bytes.len());
        assert!(short.starts_with(&bytes));
        // One hole, and more than any machine has memory.
        File::create(&path).unwrap().set_len(1 << 43).unwrap();
        let refused = read(&Host::default(), &path).unwrap_err().to_string();
        assert!(refused.contains("more than this machine has memory"), "{refused}");
    }

    #[test]
    fn a_file_that_is_longer_than_it_says_is_read_whole() {
        let path = Path::new("/proc/self/cmdline");
        let file = File::open(path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert_eq!(copy(&file, path).unwrap(), fs::read(path).unwrap());
    }

    #[test]
    fn a_daemon_that_is_dying_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("meta.db");
        fs::write(&path, "bytes").unwrap();
        let daemon = File::open(&path).unwrap();
        daemon.lock().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(50));
                drop(daemon);
            });
            assert_eq!(read(&Host::default(), &path).unwrap(), b"bytes"[..]);
        });
    }

    #[test]
    fn a_reader_leaves_no_lock_and_no_trace() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("meta.db");
        fs::write(&path, "bytes").unwrap();
        assert_eq!(read(&Host::default(), &path).unwrap(), b"bytes"[..]);
        File::open(&path).unwrap().try_lock().unwrap();
        assert!(read(&Host::default(), &temp.path().join("none")).unwrap_err().is_missing_file());
    }
}
