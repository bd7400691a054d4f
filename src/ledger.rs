//! What was read of other people's files: noted where it is read, with its digest, for whoever has to account for it
//! ([`crate::evidence`]). Like the tally ([`crate::tally`]) there is one for the whole process; until somebody opens it,
//! noting costs nothing.
//!
//! Two kinds of notes: files read one by one ([`look`], then [`read`] or [`hashed`]), kept in memory and bounded; and the
//! entries of trees ([`tree`], [`entry`]), of which there may be millions, written to a file as they are met. Their content
//! is hashed later, from the tar that has the same bytes: nothing is hashed while a container stands still.

use std::{
    collections::BTreeSet,
    fs::{File, Metadata},
    io::{BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, name::AnyPath};

/// So many files read one by one are listed; a store where one has to look at more is counted beyond.
const MAX_LISTED: usize = 100_000;

/// One file that was read: a line of the list of sources (media type [`crate::oci::names::EVIDENCE_SOURCES`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Source {
    /// What it is: `database`, `document`, `configuration`, `blob`; or the tree that it is an entry of: `rw layer`,
    /// `bind mount <destination>`, `log <path>`.
    pub of: String,
    /// Where it was read; for an entry of a tree, from the root of that tree.
    #[serde(flatten)]
    pub path: AnyPath,
    /// What its inode said before it was read; absent where only a stored copy tells of it.
    #[serde(flatten)]
    pub stat: Option<Stat>,
    /// SHA-256 of its content, in hex; absent for what has none (directories, links, devices).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The transaction numbers of a database's two meta pages, in their order; `null` for one that is not valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactions: Option<[Option<u64>; 2]>,
}

/// What an inode says (statx(2)). Times are seconds since 1970 with nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stat {
    /// Type and permissions, in octal, as `st_mode` has them.
    pub mode: String,
    /// Bytes of content.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// `major:minor` of the device of its file system.
    pub device: String,
    /// Its number there.
    pub inode: u64,
    /// Last modification of the content.
    pub mtime: String,
    /// Last change of the inode.
    pub ctime: String,
    /// Last access, as it was before we came.
    pub atime: String,
    /// Birth, where the file system keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub btime: Option<String>,
}

/// Seconds and nanoseconds since 1970; before it the seconds are negative and the nanoseconds count upwards.
pub fn decimal(seconds: i64, nanos: u32) -> String {
    match nanos {
        _ if seconds >= 0 || nanos == 0 => format!("{seconds}.{nanos:09}"),
        _ => format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos.min(1_000_000_000)),
    }
}

impl Stat {
    fn of(meta: &Metadata) -> Self {
        let time = |seconds, nanos| decimal(seconds, u32::try_from(nanos).unwrap_or_default());
        let born = meta.created().ok().map(|time| match time.duration_since(UNIX_EPOCH) {
            Ok(after) => decimal(after.as_secs().cast_signed(), after.subsec_nanos()),
            Err(before) => {
                let (seconds, nanos) = (before.duration().as_secs().cast_signed(), before.duration().subsec_nanos());
                if nanos == 0 { decimal(-seconds, 0) } else { decimal(-seconds - 1, 1_000_000_000 - nanos) }
            }
        });
        Self {
            mode: format!("{:06o}", meta.mode()),
            size: meta.len(),
            uid: meta.uid(),
            gid: meta.gid(),
            device: device(meta.dev()),
            inode: meta.ino(),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            atime: time(meta.atime(), meta.atime_nsec()),
            btime: born,
        }
    }
}

fn device(dev: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev))
}

/// All that was noted of files read one by one.
#[derive(Debug, Default)]
struct Ledger {
    sources: BTreeSet<Source>,
    unlisted: u64,
    /// Where the entries of trees go.
    entries: Option<BufWriter<File>>,
    /// The first entry that could not be written there: then the list is not whole.
    failed: Option<String>,
}

static IS_OPEN: AtomicBool = AtomicBool::new(false);
static TAKES_ENTRIES: AtomicBool = AtomicBool::new(false);
static LEDGER: Mutex<Option<Ledger>> = Mutex::new(None);

fn with<T>(change: impl FnOnce(&mut Ledger) -> T) -> T {
    change(LEDGER.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// From now on what is read is noted.
pub fn open() {
    IS_OPEN.store(true, Ordering::SeqCst);
}

/// What `file` says of itself before it is read; `None` while nobody wants to know.
pub fn look(file: &File) -> Option<Stat> {
    let meta = IS_OPEN.load(Ordering::Relaxed).then(|| file.metadata().ok())??;
    Some(Stat::of(&meta))
}

/// Notes that the file at `path`, looked at before, was read, and had this content.
pub fn read(of: &str, path: &Path, seen: Option<Stat>, bytes: &[u8]) {
    if seen.is_some() {
        hashed(of, path, seen, Digest::of(bytes));
    }
}

/// The same, for content that was hashed on its way.
pub fn hashed(of: &str, path: &Path, seen: Option<Stat>, digest: Digest) {
    note(of, path, seen, digest, None);
}

/// The same for a database, with the transaction numbers of its two meta pages.
pub fn database(path: &Path, seen: Option<Stat>, bytes: &[u8], transactions: [Option<u64>; 2]) {
    if seen.is_some() {
        note("database", path, seen, Digest::of(bytes), Some(transactions));
    }
}

fn note(of: &str, path: &Path, stat: Option<Stat>, digest: Digest, transactions: Option<[Option<u64>; 2]>) {
    if stat.is_none() {
        return;
    }
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = AnyPath::from(path.into_os_string().into_encoded_bytes());
    let source = Source { of: of.into(), path, stat, sha256: Some(digest.to_hex()), transactions };
    with(|ledger| match ledger.sources.len() {
        MAX_LISTED.. if !ledger.sources.contains(&source) => ledger.unlisted += 1,
        _ => _ = ledger.sources.insert(source),
    });
}

/// Calls `each` with every file that was noted so far, in order; yields how many more there are.
pub fn each<E>(mut each: impl FnMut(&Source) -> Result<(), E>) -> Result<u64, E> {
    with(|ledger| {
        ledger.sources.iter().try_for_each(&mut each)?;
        Ok(ledger.unlisted)
    })
}

/// Entries of trees are written to `file` from now on, one JSON document a line; `None`: no more.
pub fn entries_into(file: Option<File>) {
    TAKES_ENTRIES.store(file.is_some(), Ordering::SeqCst);
    with(|ledger| {
        ledger.failed = None;
        ledger.entries = file.map(BufWriter::new);
    });
}

/// Ends it. An error says why the list is not whole.
pub fn end_entries() -> Result<(), String> {
    TAKES_ENTRIES.store(false, Ordering::SeqCst);
    with(|ledger| {
        let flushed = ledger.entries.take().map_or(Ok(()), |mut out| out.flush());
        ledger.failed.take().map_or(flushed.map_err(|e| e.to_string()), Err)
    })
}

/// True if entries of trees are wanted.
pub fn takes_entries() -> bool {
    TAKES_ENTRIES.load(Ordering::Relaxed)
}

/// The entries that follow are of the tree called so.
pub fn tree(of: &str) {
    if takes_entries() {
        line(&serde_json::json!({ "tree": of }));
    }
}

/// An entry of a tree: its path there, and what its inode says.
pub fn entry(path: &[u8], stat: Stat) {
    let path = AnyPath::from(path.to_vec());
    line(&Source { of: String::new(), path, stat: Some(stat), sha256: None, transactions: None });
}

fn line(document: &impl Serialize) {
    with(|ledger| {
        let Some(out) = &mut ledger.entries else { return };
        let written = serde_json::to_writer(&mut *out, document).map_err(std::io::Error::from);
        if let Err(e) = written.and_then(|()| out.write_all(b"\n")) {
            // Whoever asked for the list hears of it at the end; the checkpoint itself goes on.
            ledger.failed.get_or_insert(e.to_string());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_any_sign_are_told_exactly() {
        for (seconds, nanos, right) in [
            (0, 0, "0.000000000"),
            (1_700_000_000, 5, "1700000000.000000005"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 0, "-2.000000000"),
            (-158_000_000, 876_543_211, "-157999999.123456789"),
        ] {
            assert_eq!(decimal(seconds, nanos), right);
        }
    }

    /// One test for the process' one ledger: others must not open it meanwhile.
    #[test]
    fn what_is_read_is_noted_once_open_and_nothing_before() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state.json");
        std::fs::write(&path, b"{}").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(look(&file), None);
        open();
        for _ in 0..2 {
            read("document", &path, look(&file), b"{}");
        }
        let mut found = Vec::new();
        let unlisted = each(|source| {
            found.extend(Some(source.clone()).filter(|s| s.path.path == path.to_string_lossy()));
            Ok::<_, ()>(())
        });
        assert_eq!((unlisted, found.len()), (Ok(0), 1));
        let stat = found[0].stat.as_ref().unwrap();
        assert_eq!((stat.size, &stat.mode[..2]), (2, "10"));
        assert_eq!(found[0].sha256.as_deref(), Some(Digest::of(b"{}").to_hex().as_str()));
    }
}
