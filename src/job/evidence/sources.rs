//! The list of all that was read: what the ledger has, and the entries of trees with the digests of their content.
//!
//! Entries were written down with what their inodes said when they were read; their content is hashed now, from the tars that
//! hold it. Both are in one order, and read side by side: memory does not grow with them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, Write},
};

use tar::EntryType;

use crate::{
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    evidence::{Document, Source, Sources},
    layout::{BlobWriter, Staging, untar},
    ledger,
    name::AnyPath,
};

/// A tree, and the tar that holds it.
pub struct Tree {
    /// As its entries are marked.
    pub of: String,
    /// The tar.
    pub tar: Digest,
}

/// Where the entries of trees are written down meanwhile.
const ENTRIES: &str = "entries.jsonl";

/// Begins to write entries of trees down.
pub fn begin(staging: &Staging) -> Result<()> {
    ledger::entries_into(Some(staging.file(ENTRIES)?));
    Ok(())
}

/// The list so far, as a blob. Of `trees`, in the order in which they were read, each entry is listed.
pub fn write(staging: &Staging, trees: &[Tree], mut limits: Vec<String>) -> Result<Sources> {
    if let Err(why) = ledger::end_entries() {
        limits.push(format!("what inodes said of entries of trees is not whole: {why}"));
    }
    let mut list = List { out: staging.blob()?, count: 0 };
    let unlisted = ledger::each(|source| list.put(source))?;
    let mut entries = Entries::open(staging)?;
    for tree in trees {
        entries.seek(&tree.of)?;
        list.tree(staging, tree, &mut entries)?;
    }
    let List { out, count } = list;
    let blob = out.complete()?;
    Ok(Sources { list: Document { digest: blob.digest, size: blob.size }, count, unlisted, limits })
}

struct List {
    out: BlobWriter,
    count: u64,
}

impl List {
    fn put(&mut self, source: &Source) -> Result<()> {
        let mut line = serde_json::to_vec(source).map_err(io::Error::from).at("write", "the list of sources")?;
        line.push(b'\n');
        self.count += 1;
        self.out.write_all(&line).at("write", "the list of sources")
    }

    fn tree(&mut self, staging: &Staging, tree: &Tree, entries: &mut Entries) -> Result<()> {
        untar::walk_in(staging.open(&tree.tar)?, &staging.blob_path(&tree.tar), |entry| {
            let name = entry.name.strip_suffix(b"/").unwrap_or(&entry.name);
            let stat = entries.take(name).map_err(io::Error::other)?.and_then(|told| told.stat);
            let is_mark = stat.is_none() && name.rsplit(|&b| b == b'/').next().is_some_and(|n| n.starts_with(b".wh."));
            if is_mark {
                return Ok(());
            }
            let sha256 = match entry.kind {
                EntryType::Regular | EntryType::Continuous => Some(digest_of(entry.content)?.to_hex()),
                _ => None,
            };
            let path = AnyPath::from_root(name);
            self.put(&Source { of: tree.of.clone(), path, stat, sha256, transactions: None }).map_err(io::Error::other)
        })?;
        Ok(())
    }
}

fn digest_of(content: &mut dyn io::Read) -> io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 64 << 10]);
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// What was written down, line by line.
struct Entries {
    lines: Option<BufReader<File>>,
    /// The next line, looked at and not yet taken.
    next: Option<Vec<u8>>,
}

/// How a line begins that names the tree of those below it.
const TREE: &[u8] = b"{\"tree\":";

impl Entries {
    fn open(staging: &Staging) -> Result<Self> {
        let path = staging.path(ENTRIES);
        let lines = match File::open(&path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).at("open", path),
        };
        Ok(Self { lines, next: None })
    }

    fn advance(&mut self) -> Result<()> {
        let mut line = Vec::new();
        if let Some(lines) = &mut self.lines {
            lines.read_until(b'\n', &mut line).at("read", ENTRIES)?;
        }
        self.next = Some(line).filter(|line| !line.is_empty());
        Ok(())
    }

    /// Goes to the entries of the tree called so. Trees are written down in the order in which they are stored.
    fn seek(&mut self, of: &str) -> Result<()> {
        let wanted = serde_json::json!({ "tree": of }).to_string();
        if let Some(lines) = &mut self.lines {
            lines.rewind().at("read", ENTRIES)?;
        }
        loop {
            self.advance()?;
            match &self.next {
                Some(line) if line.trim_ascii_end() == wanted.as_bytes() => return self.advance(),
                Some(_) => {}
                None => return Ok(()),
            }
        }
    }

    /// What was written down of the entry called `name`, if that comes next.
    fn take(&mut self, name: &[u8]) -> Result<Option<Source>> {
        let Some(line) = self.next.as_deref().filter(|line| !line.starts_with(TREE)) else { return Ok(None) };
        let told: Source = serde_json::from_slice(line).map_err(|e| Error::malformed(ENTRIES, e))?;
        let path = told.path.to_bytes().unwrap_or_default();
        if path.strip_suffix(b"/").unwrap_or(&path) != name {
            return Ok(None);
        }
        self.advance()?;
        Ok(Some(told))
    }
}
