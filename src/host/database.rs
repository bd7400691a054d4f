//! Reading a bolt file that a daemon may own: a copy in memory, under a lock held no longer than the copy takes.
//!
//! containerd holds `LOCK_EX` on meta.db from start to end, and waits without limit for a lock of ours
//! (bbolt `bolt_unix.go`, `flock`; containerd `plugins/metadata/plugin.go`).

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use super::Host;
use crate::{
    bolt::Db,
    error::{At, Error, In, Result},
};

/// A busy daemon commits a few times a second; so many failures in a row mean something else.
const TRIES: usize = 200;

/// The bytes of the database at `path`.
///
/// While a daemon holds it: [`Error::DaemonRunning`], or, with `host.daemon_running`, a consistent copy taken
/// without the lock.
pub fn read(host: &Host, path: &Path) -> Result<Vec<u8>> {
    let mut file = open(path)?;
    match file.try_lock_shared() {
        Ok(()) => copy(&mut file, path),
        Err(TryLockError::WouldBlock) if host.daemon_running => consistent_copy(&mut file, path),
        Err(TryLockError::WouldBlock) => Err(Error::DaemonRunning { db: path.to_owned() }),
        // A file system without flock (some network mounts): nobody can hold the lock there either.
        Err(TryLockError::Error(e)) if e.raw_os_error() == Some(nix::libc::ENOLCK) => consistent_copy(&mut file, path),
        Err(TryLockError::Error(e)) => Err(e).at("lock", path),
    }
}

/// Opens for reading without moving the access time, where we may (`O_NOATIME` is the owner's and root's).
pub fn open(path: &Path) -> Result<File> {
    let with = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    match with(nix::libc::O_NOATIME | nix::libc::O_CLOEXEC) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EPERM) => with(nix::libc::O_CLOEXEC).at("open", path),
        opened => opened.at("open", path),
    }
}

fn copy(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).at("read", path)?;
    file.read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// A commit writes pages that are free in the commit before, and its meta page last. So a copy whose newest meta
/// is still the newest in the file afterwards was not written into (bbolt `tx.go`, `Commit`).
fn consistent_copy(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut last = None;
    for _ in 0..TRIES {
        let bytes = copy(file, path)?;
        let before = Db::open(&bytes).map(|db| db.commit());
        let again = copy_head(file, path)?;
        let after = Db::open(&again).map(|db| db.commit());
        match (before, after) {
            (Ok(before), Ok(after)) if before == after => return Ok(bytes),
            (Err(e), _) | (_, Err(e)) => last = Some(e),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match last {
        Some(e) => Err(e).within(path),
        None => Err(Error::malformed(path, "changes faster than it can be read: stop the daemon for a moment")),
    }
}

/// Enough of the file's start to hold both meta pages, whatever the page size.
fn copy_head(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).at("read", path)?;
    file.take(33 << 20).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}
