//! From a tree into a tar stream: entries with all their metadata, hard links, holes, and an account of what did not fit.

use std::{collections::HashMap, io, io::Write};

use super::{
    node::{Dir, FileId, Kind, Meta, Node},
    plain,
    sink::{END_KEY, Entry, Sink},
    summary::{LeftOut, MAX_PATH, Summary, Warning, Why},
};
use crate::{
    error::{At, Result},
    interrupt,
    pax::{self, Header, Time, Type},
    sparse::SparseFile,
    tally,
};

mod attributes;
mod content;

/// Content is read in pieces of this size.
const PIECE: usize = 256 << 10;

/// Where things lie in the tar beside.
const BESIDE_FILES: &[u8] = b"files/";

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What is to become of an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It is written.
    Kept,
    /// It is a tool's mark and not content: it is not written, and nothing is lost.
    Dropped,
    /// It is content that must not be written: it is left out by name.
    LeftOut,
}

/// What is told of one path when a tree is listed and not written.
#[derive(Debug, Clone)]
pub struct Listed<'e> {
    /// From the root of the tree.
    pub path: &'e [u8],
    /// What is there now; `None`: it is deleted.
    pub meta: Option<&'e Meta>,
    /// Something of this name was there before.
    pub existed: bool,
    /// Why it would not be written.
    pub left_out: Option<&'e Why>,
}

/// Where entries go.
enum Out<'a> {
    Tar(&'a mut dyn Write),
    Sink(&'a mut dyn Sink),
    Sparse(&'a mut SparseFile),
    List(&'a mut dyn FnMut(Listed<'_>) -> Result<()>),
}

/// Writes a tree's entries into a tar stream, or lists them, and keeps the account.
pub struct Packer<'a> {
    out: Out<'a>,
    judge: fn(&[u8]) -> Held,
    /// Takes what the tar cannot hold, as far as it has content.
    beside: Option<Box<Packer<'a>>>,
    /// How many values of extended attributes it took.
    values: u64,
    /// The first name of every inode that has several.
    first_names: HashMap<FileId, Vec<u8>>,
    buf: Vec<u8>,
    /// Passed over as if it were not there.
    ignored: Option<FileId>,
    /// Directories that were looked at before, with the names that they had, until they are asked for.
    listed: Vec<(Meta, Option<Vec<Vec<u8>>>)>,
    /// The header at hand lacks an attribute.
    is_lacking: bool,
    summary: Summary,
}

impl<'a> Packer<'a> {
    /// A packer that writes into `out` and asks `judge` about the names of extended attributes.
    pub fn new(out: &'a mut dyn Write, judge: fn(&[u8]) -> Held) -> Self {
        Self::into(Out::Tar(out), judge)
    }

    /// A packer that tells `each` what it would write, and reads no content.
    pub fn listing(each: &'a mut dyn FnMut(Listed<'_>) -> Result<()>, judge: fn(&[u8]) -> Held) -> Self {
        Self::into(Out::List(each), judge)
    }

    /// A packer into a file, where holes cost nothing.
    pub fn into_sparse(out: &'a mut SparseFile, judge: fn(&[u8]) -> Held) -> Self {
        Self::into(Out::Sparse(out), judge)
    }

    /// A packer that hands its entries to `sink`.
    pub fn into_sink(sink: &'a mut dyn Sink, judge: fn(&[u8]) -> Held) -> Self {
        Self::into(Out::Sink(sink), judge)
    }

    fn into(out: Out<'a>, judge: fn(&[u8]) -> Held) -> Self {
        let (first_names, buf, summary) = (HashMap::new(), vec![0; PIECE], Summary::default());
        Self {
            out,
            judge,
            beside: None,
            values: 0,
            first_names,
            buf,
            ignored: None,
            listed: Vec::new(),
            is_lacking: false,
            summary,
        }
    }

    /// The same; what has content, and no place in the tar, goes into a second tar stream: `files/<path>`, and the values
    /// of extended attributes as `xattrs/<number>`.
    pub fn with_beside(self, beside: &'a mut SparseFile) -> Self {
        let judge = self.judge;
        Self { beside: Some(Box::new(Self::into_sparse(beside, judge))), ..self }
    }

    /// Ends the archive and hands over the account.
    pub fn finish(mut self) -> Result<Summary> {
        self.begin(Entry { key: END_KEY, head: &pax::END, body: 0, data: None, meta: None, is_whiteout: false })?;
        if let Some(beside) = self.beside.take() {
            self.summary.take_beside(beside.finish()?);
        }
        self.summary.sort();
        Ok(self.summary)
    }

    /// The account so far.
    pub fn summary(&mut self) -> &mut Summary {
        &mut self.summary
    }

    /// Notes that something is not in the tar.
    pub fn leave_out(&mut self, path: &[u8], meta: Option<&Meta>, why: Why) {
        self.left_out(LeftOut { path: path.to_vec(), meta: meta.cloned(), why, kept: None });
    }

    fn left_out(&mut self, lost: LeftOut) {
        self.odd(&lost.path);
        self.summary.leave_out(lost);
    }

    /// Whoever catches up must come by this path, whatever its inode says.
    pub fn odd(&mut self, path: &[u8]) {
        if let Out::Sink(sink) = &mut self.out {
            sink.odd(path);
        }
    }

    /// Notes that something is not in the tar, and keeps it beside: all below it too, if it is a directory.
    pub fn keep_beside(&mut self, path: &[u8], node: &Node, data: &Node, why: Why) -> Result<()> {
        let kept = match &mut self.beside {
            Some(beside) => {
                let name = [BESIDE_FILES, path].concat();
                plain::pack_under(&name, node, data, beside)?.then_some(name)
            }
            None => None,
        };
        if let Out::List(each) = &mut self.out {
            each(Listed { path, meta: Some(&node.meta), existed: false, left_out: Some(&why) })?;
        }
        self.left_out(LeftOut { path: path.to_vec(), meta: Some(node.meta.clone()), why, kept });
        Ok(())
    }

    /// Notes that something is not as it should be.
    pub fn warn(&mut self, path: &[u8], what: impl Into<String>) {
        self.odd(path);
        self.summary.warn(Warning { path: path.to_vec(), what: what.into() });
    }

    /// Passes `ours` over, and all below it: what we write ourselves into the tree that we read.
    pub fn ignore(&mut self, ours: FileId) {
        self.ignored = Some(ours);
    }

    /// Believes that the directory `dir` has these names, in order, and no others; and these times.
    pub fn with_listed(mut self, dir: Meta, names: Vec<Vec<u8>>) -> Self {
        self.listed.push((dir, Some(names)));
        self
    }

    /// The names in `dir`, which is `id`.
    pub(super) fn names(&mut self, id: FileId, dir: &Dir) -> io::Result<Vec<Vec<u8>>> {
        // There may be millions: they are not had twice. No directory is listed twice.
        let before = self.listed.iter_mut().find(|(listed, _)| listed.id == id).and_then(|(_, names)| names.take());
        before.map_or_else(|| dir.names(), Ok)
    }

    /// What the inode said when it was listed.
    pub fn as_listed(&self, now: &Meta) -> Meta {
        let times =
            |(dir, _): &(Meta, Option<_>)| Meta { mtime: dir.mtime, ctime: dir.ctime, atime: dir.atime, ..now.clone() };
        self.listed.iter().find(|(dir, _)| dir.id == now.id).map_or_else(|| now.clone(), times)
    }

    /// True if something of this path and kind may be written; if not, that is noted. A directory that is a mount point may,
    /// but without what is mounted there.
    pub fn admits(&mut self, path: &[u8], meta: &Meta, root: &Meta) -> bool {
        if self.ignored == Some(meta.id) {
            return false;
        }
        let is_long = path.len() > MAX_PATH;
        if is_long {
            self.leave_out(path, Some(meta), Why::PathTooLong(MAX_PATH));
        } else if !meta.is_on_mount_of(root) {
            self.leave_out(path, Some(meta), Why::Mount);
        }
        !is_long && (meta.is_on_mount_of(root) || meta.kind == Kind::Directory)
    }

    /// True if nothing has happened to what would be written under `path`, nor to anything below it, since it was drafted: then
    /// all that is written.
    pub fn rests(&mut self, path: &[u8]) -> Result<bool> {
        let Out::Sink(sink) = &mut self.out else { return Ok(false) };
        let Some(resting) = sink.rests(path)? else { return Ok(false) };
        interrupt::check()?;
        tally::files(resting.entries());
        self.summary.add(&resting);
        Ok(true)
    }

    /// True if nothing has happened to what lies at `path`, nor to anything below it, of one who walks through the tree before it
    /// is written.
    pub fn rests_beforehand(&mut self, path: &[u8]) -> Result<bool> {
        if let Out::Sink(sink) = &mut self.out { sink.rests_beforehand(path) } else { Ok(false) }
    }

    /// `node` will be written with its content: where that has to be read anyhow it is opened now, for who asks next what
    /// attributes it has.
    pub fn expect(&self, node: &Node) {
        let is_read = match &self.out {
            Out::Sink(sink) => sink.reads_all(),
            Out::Tar(_) | Out::Sparse(_) => true,
            Out::List(_) => false,
        };
        if is_read && node.meta.kind == Kind::File && node.meta.links == 1 {
            // Why it cannot be opened is told by whoever needs it.
            let _ = node.opened();
        }
    }

    /// Content will be read to see whether it is to be written.
    pub fn about_to_read(&mut self) {
        if let Out::Sink(sink) = &mut self.out {
            sink.about_to_read();
        }
    }

    /// `node`, which lies at `path`, is not written, and need not be as long as nothing happens to it.
    pub fn pass(&mut self, path: &[u8], node: &Node) -> Result<()> {
        if let Out::Sink(sink) = &mut self.out { sink.passes(path, &node.meta) } else { Ok(()) }
    }

    /// Writes `node` under `path`; false if it could not, which is noted.
    pub fn entry(&mut self, path: &[u8], node: &Node) -> Result<bool> {
        self.entry_from(path, node, node)
    }

    /// Writes `node` under `path` with the content of `data`; false if it could not, which is noted.
    pub fn entry_from(&mut self, path: &[u8], node: &Node, data: &Node) -> Result<bool> {
        self.entry_over(path, node, data, || false)
    }

    /// The same; `existed` says whether something of this name was there before, and is asked only where that is told.
    pub fn entry_over(
        &mut self,
        path: &[u8],
        node: &Node,
        data: &Node,
        existed: impl FnOnce() -> bool,
    ) -> Result<bool> {
        interrupt::check()?;
        tally::file();
        let is_written = self.write_entry(path, node, data)?;
        let left_out = (node.meta.kind == Kind::Socket).then_some(&Why::Socket);
        if let (Out::List(each), true) = (&mut self.out, is_written || left_out.is_some()) {
            each(Listed { path, meta: Some(&node.meta), existed: existed(), left_out })?;
        }
        Ok(is_written)
    }

    fn write_entry(&mut self, path: &[u8], node: &Node, data: &Node) -> Result<bool> {
        let has_names = node.meta.links > 1 && node.meta.kind != Kind::Directory;
        if has_names && let Some(first) = self.first_names.get(&node.meta.id).cloned() {
            self.summary.hard_links += 1;
            self.header(path, node, Type::HardLink, &first, None)?;
            return Ok(true);
        }
        let is_written = match node.meta.kind {
            Kind::File => self.file(path, node, data)?,
            Kind::Symlink => self.symlink(path, node)?,
            _ => self.simple(path, node)?,
        };
        if is_written && has_names {
            self.first_names.insert(node.meta.id, path.to_vec());
        }
        Ok(is_written)
    }

    /// Writes the mark that deletes `path`, because of what lies there, if something does.
    pub fn delete(&mut self, path: &[u8], mark: &[u8], whiteout: Option<&Node>) -> Result<()> {
        self.summary.whiteouts += 1;
        if let Out::List(each) = &mut self.out {
            each(Listed { path, meta: None, existed: true, left_out: None })?;
        }
        let (head, meta) = (plain_file(mark).encode(), whiteout.map(|node| &node.meta));
        self.begin(Entry { key: path, head: &head, body: 0, data: None, meta, is_whiteout: true })
    }

    /// Writes an empty file that belongs to nobody: the form of a layer's marks (OCI image spec, layer.md, "Whiteouts").
    pub fn mark(&mut self, path: &[u8]) -> Result<()> {
        let head = plain_file(path).encode();
        self.begin(Entry { key: path, head: &head, body: 0, data: None, meta: None, is_whiteout: false })
    }

    /// What needs a header only.
    fn simple(&mut self, path: &[u8], node: &Node) -> Result<bool> {
        let (kind, count) = match node.meta.kind {
            Kind::Directory => (Type::Directory, &mut self.summary.directories),
            Kind::Char => (Type::Char, &mut self.summary.devices),
            Kind::Block => (Type::Block, &mut self.summary.devices),
            Kind::Fifo => (Type::Fifo, &mut self.summary.devices),
            Kind::Socket | Kind::File | Kind::Symlink => {
                self.leave_out(path, Some(&node.meta), Why::Socket);
                return Ok(false);
            }
        };
        *count += 1;
        self.header(path, node, kind, b"", None)?;
        Ok(true)
    }

    fn symlink(&mut self, path: &[u8], node: &Node) -> Result<bool> {
        match node.target() {
            Ok(target) => {
                self.summary.symlinks += 1;
                self.header(path, node, Type::Symlink, &target, None)?;
                Ok(true)
            }
            Err(e) => self.unreadable(path, node, &e),
        }
    }

    /// A file is opened before its header is written: what cannot be opened leaves no empty file behind.
    fn file(&mut self, path: &[u8], node: &Node, data: &Node) -> Result<bool> {
        if matches!(self.out, Out::List(_)) {
            self.summary.files += 1;
            self.summary.bytes += node.meta.size;
            return Ok(true);
        }
        let padding = pax::padding(node.meta.size) as u64;
        let is_had = match &mut self.out {
            Out::Sink(sink) => sink.has(path, &data.meta, node.meta.size + padding)?,
            _ => false,
        };
        let file = match if is_had { None } else { Some(data.opened()) } {
            Some(Err(e)) => return self.unreadable(path, node, &e),
            Some(Ok(file)) => Some(file),
            None => None,
        };
        self.summary.files += 1;
        self.summary.bytes += node.meta.size;
        self.header(path, node, Type::File, b"", Some(&data.meta))?;
        let Some(file) = file else {
            self.summary.written += node.meta.size + padding;
            return Ok(true);
        };
        self.content(path, node.meta.size, file)?;
        self.write_zeros(padding)?;
        let is_same = |now: Meta| now.size == data.meta.size && now.mtime == data.meta.mtime;
        if !data.meta_now().is_ok_and(is_same) {
            self.distrusted(path, "changed while it was read; what is stored may be of two moments");
        }
        Ok(true)
    }

    /// Warns of content that is not as it should be.
    fn distrusted(&mut self, path: &[u8], what: impl Into<String>) {
        if let Out::Sink(sink) = &mut self.out {
            sink.distrust();
        }
        self.warn(path, what);
    }

    fn unreadable(&mut self, path: &[u8], node: &Node, e: &io::Error) -> Result<bool> {
        self.leave_out(path, Some(&node.meta), Why::Unreadable(e.to_string()));
        Ok(false)
    }

    fn header(&mut self, path: &[u8], node: &Node, kind: Type, link: &[u8], data: Option<&Meta>) -> Result<()> {
        if matches!(self.out, Out::List(_)) {
            return Ok(());
        }
        let meta = &self.as_listed(&node.meta);
        let Meta { mode, uid, gid, mtime, device, .. } = *meta;
        let device = if matches!(kind, Type::Char | Type::Block) { device } else { (0, 0) };
        let size = if kind == Type::File { node.meta.size } else { 0 };
        // A link repeats everything, its attributes too: unpackers set owner and mode again, and a change of owner
        // takes `security.capability` away (containerd pkg/archive/tar.go, createTarFile).
        let xattrs = self.xattrs(path, node, kind != Type::HardLink)?;
        let mut name = path.to_vec();
        if kind == Type::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let header = Header { kind, path: &name, link, mode, uid, gid, size, mtime, device, xattrs: &xattrs };
        let (head, body) = (header.encode(), size + pax::padding(size) as u64);
        self.begin(Entry { key: path, head: &head, body, data, meta: Some(meta), is_whiteout: false })
    }

    /// Writes a file that is on no disk.
    fn bytes(&mut self, path: &[u8], content: &[u8]) -> Result<()> {
        let header = Header { size: content.len() as u64, mode: 0o600, ..plain_file(path) };
        self.summary.files += 1;
        self.write(&header.encode())?;
        self.write(content)?;
        self.write_zeros(pax::padding(content.len() as u64) as u64)
    }

    fn write_zeros(&mut self, mut len: u64) -> Result<()> {
        match &mut self.out {
            Out::Sparse(out) => {
                self.summary.written += len;
                return out.skip(len).at("write", "the tar stream");
            }
            Out::Sink(sink) => {
                self.summary.written += len;
                return sink.zeros(len);
            }
            _ => {}
        }
        while len > 0 {
            interrupt::check()?;
            let take = usize::try_from(len).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.write(&ZEROS[..take])?;
            len -= take as u64;
        }
        Ok(())
    }

    /// An entry's header; its content follows.
    fn begin(&mut self, entry: Entry<'_>) -> Result<()> {
        let is_lacking = std::mem::take(&mut self.is_lacking);
        if let Out::Sink(sink) = &mut self.out {
            self.summary.written += entry.head.len() as u64;
            sink.begin(entry)?;
            if is_lacking {
                sink.distrust();
            }
            return Ok(());
        }
        self.write(entry.head)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.out {
            Out::Tar(out) => out.write_all(bytes),
            Out::Sparse(out) => out.write_all(bytes),
            Out::Sink(sink) => {
                self.summary.written += bytes.len() as u64;
                return sink.bytes(bytes);
            }
            Out::List(_) => return Ok(()),
        };
        self.summary.written += bytes.len() as u64;
        written.at("write", "the tar stream")
    }
}

/// An empty file of nobody's.
fn plain_file(path: &[u8]) -> Header<'_> {
    let (mode, uid, gid, size) = (0, 0, 0, 0);
    Header {
        kind: Type::File,
        path,
        link: b"",
        mode,
        uid,
        gid,
        size,
        mtime: Time::default(),
        device: (0, 0),
        xattrs: &[],
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn packed(path: &Path, between: impl FnOnce()) -> (Vec<u8>, Summary) {
        let node = Node::open(path).unwrap();
        between();
        let mut out = Vec::new();
        let mut packer = Packer::new(&mut out, |_| Held::Kept);
        assert!(packer.entry(b"f", &node).unwrap());
        let summary = packer.finish().unwrap();
        (out, summary)
    }

    fn content(tar: &[u8]) -> Vec<u8> {
        let mut archive = tar::Archive::new(tar);
        let mut entries = archive.entries().unwrap();
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut entries.next().unwrap().unwrap(), &mut bytes).unwrap();
        assert!(entries.next().is_none());
        bytes
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_keeps_its_announced_length_and_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        for (now, stored) in [(&b"short"[..], b"short\0\0\0\0\0"), (b"0123456789 and more", b"0123456789")] {
            fs::write(&path, b"0123456789").unwrap();
            let (tar, summary) = packed(&path, || fs::write(&path, now).unwrap());
            assert_eq!(content(&tar), stored);
            assert!(summary.warnings.iter().any(|w| w.what.starts_with("changed")), "{:?}", summary.warnings);
        }
        fs::write(&path, b"0123456789").unwrap();
        // Held by its descriptor, it cannot vanish; and what takes its name meanwhile is not read.
        let (tar, summary) = packed(&path, || {
            fs::remove_file(&path).unwrap();
            fs::write(&path, b"impostor!!").unwrap();
        });
        assert_eq!((content(&tar).as_slice(), summary.warnings.len()), (&b"0123456789"[..], 0));
    }

    #[test]
    fn a_link_repeats_owner_mode_and_attributes() {
        let temp = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| temp.path().join(name));
        fs::write(&first, b"").unwrap();
        fs::hard_link(&first, &second).unwrap();
        let can_hold = rustix::fs::setxattr(&first, "user.k", b"v", rustix::fs::XattrFlags::empty()).is_ok();
        let mut out = Vec::new();
        let mut packer = Packer::new(&mut out, |_| Held::Kept);
        for (name, path) in [(b"a", &first), (b"b", &second)] {
            packer.entry(name, &Node::open(path).unwrap()).unwrap();
        }
        assert_eq!(packer.finish().unwrap().hard_links, 1);
        let mut archive = tar::Archive::new(&out[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let records = entry.pax_extensions().unwrap().into_iter().flatten();
            let has_xattr = records.filter(|r| r.as_ref().unwrap().key() == Ok("SCHILY.xattr.user.k")).count() == 1;
            seen.push((entry.header().mode().unwrap(), entry.header().uid().unwrap(), has_xattr));
        }
        assert_eq!((seen[0], seen[0].2), (seen[1], can_hold));
    }
}
