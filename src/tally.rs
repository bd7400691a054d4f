//! How far the work at hand is: counted by the loops that do it, read by whoever shows it. Like the wish to stop
//! ([`crate::interrupt`]) there is one for the whole process, which does one thing at a time.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

static BYTES: AtomicU64 = AtomicU64::new(0);
static FILES: AtomicU64 = AtomicU64::new(0);

/// Where another program writes, whose loops do not count for us.
static WATCHED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// What was done since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Bytes of content that were read, hashed or stored.
    pub bytes: u64,
    /// Entries of trees.
    pub files: u64,
}

/// So many bytes more are done.
pub fn bytes(n: usize) {
    BYTES.fetch_add(n as u64, Ordering::Relaxed);
}

/// One entry more is done.
pub fn file() {
    files(1);
}

/// So many entries more are done.
pub fn files(n: u64) {
    FILES.fetch_add(n, Ordering::Relaxed);
}

/// Counts what lies in `dir` too, until the next call: CRIU writes there.
pub fn watch(dir: Option<&Path>) {
    *WATCHED.lock().unwrap_or_else(PoisonError::into_inner) = dir.map(Path::to_owned);
}

/// How far it is.
pub fn now() -> Tally {
    let watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let entries = watched.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    let theirs: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
    Tally { bytes: BYTES.load(Ordering::Relaxed) + theirs, files: FILES.load(Ordering::Relaxed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_program_writes_is_seen_while_it_is_watched() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("pages-1.img"), vec![0; 1 << 40 >> 20]).unwrap();
        watch(Some(temp.path()));
        assert!(now().bytes >= 1 << 20);
        watch(None);
    }
}
