//! `timeline`: all times that the stores keep of a container: its files', its records', its image's, its processes'.
//!
//! Only reads: it works on a container that runs, with the daemon stopped, and on another machine's disk.

use std::io::Read;

use md5::{Digest as _, Md5};

use super::{
    locate::{self, Files},
    store::Store,
};
use crate::{
    containerd::meta::Container,
    digest::Hasher,
    error::Result,
    interrupt,
    pax::Time,
    rw::{self, Seen},
    snapshotter::RwLayer,
    timeline::{Entry, Fate, Finding, Kind, Record, Times},
    tree::{self, Meta, Node},
};

mod log;
mod records;
mod stamps;

/// What is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Read every file of the container's own layer, for its digests.
    pub hash: bool,
    /// Only files whose times are odd.
    pub only_findings: bool,
    /// Removed containers of the same namespace too, as far as their records are still found.
    pub deleted: bool,
}

/// What a timeline left out, and what was found on the way.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many files have odd times.
    pub odd: u64,
    /// The first of them, each with its path.
    pub first: Vec<(Vec<u8>, Finding)>,
    /// What could not be looked at, each with its consequence.
    pub unseen: Vec<String>,
}

/// So many findings are kept to be told in words.
const MAX_TOLD: usize = 10;

/// Tells `each` record of `container`'s timeline: first its files, parents first, then its records.
pub fn timeline(
    store: &Store,
    container: &Container,
    options: Options,
    each: &mut dyn FnMut(&Record) -> Result<()>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    match locate::files(store, container) {
        Ok(files) => inodes(files, container, options, &mut outcome, each)?,
        Err(e) => outcome.unseen.push(format!("{}: its files are not in the timeline", locate::with_causes(&e))),
    }
    if !options.only_findings {
        for event in records::events(store, container, options.deleted, &mut outcome.unseen) {
            each(&Record::Event(event))?;
        }
    }
    Ok(outcome)
}

fn inodes(
    files: Files,
    container: &Container,
    options: Options,
    outcome: &mut Outcome,
    each: &mut dyn FnMut(&Record) -> Result<()>,
) -> Result<()> {
    outcome.unseen.extend(files.findings);
    if let RwLayer::Overlay { lowers, .. } = &files.rw
        && lowers.iter().any(|lower| lower.why_absent().is_some())
    {
        outcome.unseen.push("a layer below is not here: what was copied up from it looks set by a program".into());
    }
    let made = container.created_at.map(stamps::time);
    let summary = rw::inodes(&files.rw, &mut |seen| {
        let mut entry = entry(seen, made);
        if options.only_findings && entry.findings.is_empty() {
            return Ok(());
        }
        if options.hash && entry.kind == Kind::File {
            hash(seen, &mut entry, &mut outcome.unseen)?;
        }
        outcome.take(&entry);
        each(&Record::Entry(Box::new(entry)))
    })?;
    outcome.unseen.extend(summary.left_out.iter().map(ToString::to_string));
    outcome.unseen.extend(summary.warnings.iter().map(ToString::to_string));
    if summary.unlisted > 0 {
        outcome.unseen.push(format!("{} more that could not be looked at", summary.unlisted));
    }
    Ok(())
}

impl Outcome {
    fn take(&mut self, entry: &Entry) {
        self.odd += u64::from(!entry.findings.is_empty());
        if self.first.len() < MAX_TOLD {
            self.first.extend(entry.findings.first().map(|finding| (entry.path.clone(), finding.clone())));
        }
    }
}

/// What an inode says; `made` is when the container's record was.
fn entry(seen: &Seen<'_>, made: Option<Time>) -> Entry {
    let meta = seen.node.map(|node| &node.meta);
    let fate = match (seen.is_deleted, seen.below.is_some()) {
        (true, _) => Fate::Deleted,
        (false, false) => Fate::Added,
        (false, true) if seen.is_opaque => Fate::Replaced,
        (false, true) => Fate::Changed,
    };
    let number = |of: fn(&Meta) -> u32| meta.map_or(0, of);
    let is_unpacked = meta.and_then(|meta| meta.btime).is_some_and(|born| made.is_some_and(|made| born < made));
    let findings = match meta {
        Some(meta) if !seen.is_deleted && !is_unpacked && !seen.is_copied_up => stamps::findings(meta),
        _ => Vec::new(),
    };
    Entry {
        path: seen.path.to_vec(),
        kind: if seen.is_deleted { Kind::Whiteout } else { meta.map_or(Kind::Whiteout, |meta| kind(meta.kind)) },
        fate,
        target: seen.node.filter(|node| node.meta.kind == tree::Kind::Symlink).and_then(|node| node.target().ok()),
        inode: meta.map_or(0, |meta| meta.id.ino),
        mode: number(|meta| meta.mode),
        uid: number(|meta| meta.uid),
        gid: number(|meta| meta.gid),
        links: number(|meta| meta.links),
        size: seen.data.map_or(meta, |data| Some(&data.meta)).map_or(0, |meta| meta.size),
        times: times(seen, meta),
        md5: None,
        sha256: None,
        is_unpacked: is_unpacked && !seen.is_deleted,
        findings,
    }
}

fn times(seen: &Seen<'_>, meta: Option<&Meta>) -> Times {
    if seen.is_deleted {
        // The directory's last change alone is later than all deletions in it.
        let changed = meta.map_or(seen.directory_changed, |meta| meta.ctime.min(seen.directory_changed));
        let born = meta.and_then(|meta| meta.btime);
        // A directory whose own time was set back says nothing.
        let changed = if born.is_some_and(|born| changed < born) { meta.map(|meta| meta.ctime) } else { Some(changed) };
        return Times { changed, born, ..Times::default() };
    }
    meta.map_or_else(Times::default, |meta| Times {
        modified: Some(meta.mtime),
        accessed: Some(meta.atime),
        changed: Some(meta.ctime),
        born: meta.btime,
    })
}

fn kind(kind: tree::Kind) -> Kind {
    match kind {
        tree::Kind::File => Kind::File,
        tree::Kind::Directory => Kind::Directory,
        tree::Kind::Symlink => Kind::Symlink,
        tree::Kind::Char => Kind::Char,
        tree::Kind::Block => Kind::Block,
        tree::Kind::Fifo => Kind::Fifo,
        tree::Kind::Socket => Kind::Socket,
    }
}

/// Reads the content once, for both digests. What cannot be read has none.
fn hash(seen: &Seen<'_>, entry: &mut Entry, unseen: &mut Vec<String>) -> Result<()> {
    let Some(node) = seen.data.or(seen.node) else { return Ok(()) };
    let digests = digests(node);
    interrupt::check()?;
    match digests {
        Ok((md5, sha256)) => (entry.md5, entry.sha256) = (Some(md5), Some(sha256)),
        Err(e) => unseen.push(format!("{}: has no digest: {e}", seen.path.escape_ascii())),
    }
    Ok(())
}

/// Content is read in pieces of this size.
const PIECE: usize = 256 << 10;

fn digests(node: &Node) -> std::io::Result<(String, String)> {
    let (mut file, mut md5, mut sha256) = (node.data()?, Md5::new(), Hasher::default());
    let mut piece = vec![0; PIECE];
    loop {
        let len = file.read(&mut piece)?;
        if len == 0 || interrupt::check().is_err() {
            return Ok((hex::encode(md5.finalize()), sha256.finish().to_hex()));
        }
        md5.update(&piece[..len]);
        sha256.update(&piece[..len]);
    }
}
