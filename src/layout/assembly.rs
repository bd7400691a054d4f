//! A tar made of files that lie on the disk already, written once where the file system allows it.
//!
//! ```text
//! a, b                   small files
//! P ════════             the largest: its file becomes the tar
//!
//! │a│b│P's header│       inserted before its first byte, in whole blocks (`FALLOC_FL_INSERT_RANGE`: ext4, XFS, f2fs)
//!               ════════│c│end│      appended
//! ```
//! Where nothing can be inserted, a new file takes it all by copy_file_range(2), which shares blocks on btrfs and copies
//! elsewhere. For both, large content begins at a multiple of [`ALIGN`] whatever the file system, so that the bytes are the
//! same everywhere.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use rustix::fs::{FallocateFlags, fallocate};

use super::{
    copy::{self, PIECE, is_unable},
    open_regular, private_dirs,
};
use crate::{
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    interrupt,
    pax::{END, Header, padding},
    shares, tally,
};

/// A block of nearly every file system, or a multiple of it.
const ALIGN: u64 = 4096;

/// Content from this size on is aligned, and worth not being copied.
const LARGE: u64 = 1 << 20;

/// A tar to be made.
#[derive(Debug, Default, Clone)]
pub struct Assembly {
    members: Vec<Member>,
    /// Where the next header goes.
    at: u64,
    /// Its beginning, as far as it is hashed.
    hashed: Hashed,
}

/// The beginning of something: how long it is, and its digest in the making.
#[derive(Debug, Default, Clone)]
struct Hashed {
    len: u64,
    hasher: Hasher,
}

/// One entry: its header, and the file that has its content.
#[derive(Debug, Clone)]
struct Member {
    at: u64,
    head: Vec<u8>,
    content: Option<PathBuf>,
    size: u64,
}

impl Member {
    /// Where the content begins.
    fn body(&self) -> u64 {
        self.at + self.head.len() as u64
    }

    /// Where the next entry begins.
    fn end(&self) -> u64 {
        self.body() + self.size + padding(self.size) as u64
    }

    /// The file with the content, which may have become another since it was looked at.
    fn open(&self, path: &Path) -> Result<File> {
        let file = open_regular(path)?;
        match file.metadata().at("read", path)?.len() {
            len if len == self.size => Ok(file),
            _ => Err(Error::malformed(path, "its size changes while it is read")),
        }
    }
}

/// A tar that was made.
#[derive(Debug)]
pub struct Assembled {
    /// Its file, synced.
    pub path: PathBuf,
    /// Of all its bytes, if that was wanted.
    pub digest: Option<Digest>,
    /// In bytes.
    pub size: u64,
}

impl Assembly {
    /// Adds an entry; `header.size` bytes of `content` follow it.
    pub fn push(&mut self, header: &Header, content: Option<PathBuf>) {
        let head = if header.size < LARGE { header.encode() } else { header.encode_aligned(self.at, ALIGN) };
        let member = Member { at: self.at, head, content, size: header.size };
        self.at = member.end();
        self.members.push(member);
    }

    /// Takes in, of the last entry's content, the first `len` bytes: they are there for good, though their file may still grow.
    /// What is hashed so early is not read again for the digest. It does not count as work done: whoever writes the file is seen
    /// to do it.
    pub fn hash_ahead(&mut self, len: u64) -> Result<()> {
        let Some(last) = self.members.last() else { return Ok(()) };
        let end = last.body() + len.min(last.size);
        let mut hashed = std::mem::take(&mut self.hashed);
        let taken = self.each_piece(hashed.len..end, &mut |piece| {
            hashed.hasher.update(piece);
            hashed.len += piece.len() as u64;
            Ok(())
        });
        self.hashed = hashed;
        taken
    }

    /// How many bytes of it are hashed.
    pub fn hashed(&self) -> u64 {
        self.hashed.len
    }

    /// Adds an entry whose content is another tar, of `header.size` bytes.
    pub fn push_tar(&mut self, header: &Header, inner: Self) {
        self.push(&Header { size: inner.size(), ..*header }, None);
        // Its members follow the header as they are: nothing tells them from content.
        let start = self.at - inner.size();
        let end = Member { at: inner.at, head: END.to_vec(), content: None, size: 0 };
        self.members.extend(inner.members.into_iter().chain([end]).map(|m| Member { at: start + m.at, ..m }));
    }

    /// Moves its files into `dir`, which is made, on the same file system.
    pub fn moved_to(mut self, dir: &Path) -> Result<Self> {
        private_dirs(dir)?;
        for (n, member) in self.members.iter_mut().enumerate() {
            let Some(path) = &mut member.content else { continue };
            let target = dir.join(n.to_string());
            fs::rename(&*path, &target).at("move a file to", &target)?;
            *path = target;
        }
        Ok(self)
    }

    /// How long the tar will be.
    pub fn size(&self) -> u64 {
        self.at + END.len() as u64
    }

    /// Writes it as a stream, and leaves all as it is.
    pub fn stream(&self, out: &mut dyn Write) -> Result<()> {
        self.each_piece(0..self.size(), &mut |piece| {
            tally::bytes(piece.len());
            out.write_all(piece)
        })?;
        out.flush().at("write", "the tar")
    }

    /// Removes the files of its content.
    pub fn remove_content(&self) -> Result<()> {
        let paths = self.members.iter().filter_map(|member| member.content.as_ref());
        paths.into_iter().try_for_each(|path| fs::remove_file(path).at("remove", path))
    }

    /// Makes it a file in `dir`, which lies on the same file system as the content. The files of the content are used up,
    /// also after an error.
    pub fn into_file(self, dir: &Path, wants_digest: bool) -> Result<Assembled> {
        let largest = self.members.iter().enumerate().filter(|(_, m)| m.size >= LARGE).max_by_key(|(_, m)| m.size);
        let (path, digest) = match largest.map(|(at, _)| at) {
            Some(host) if can_insert(dir) => self.grow(host, dir, wants_digest)?,
            _ => self.copy(dir, wants_digest)?,
        };
        Ok(Assembled { path, digest, size: self.size() })
    }
}

impl Assembly {
    /// Lets the file of one member become the tar. It is read before anything is inserted, for the kernel then forgets
    /// what it has of it in memory; and written to the disk meanwhile, which inserting requires.
    fn grow(&self, host: usize, dir: &Path, wants_digest: bool) -> Result<(PathBuf, Option<Digest>)> {
        let (host, others) = (&self.members[host], self.members.iter().enumerate().filter(|(at, _)| *at != host));
        let Some(path) = &host.content else { return self.copy(dir, wants_digest) };
        host.open(path)?;
        let file = OpenOptions::new().read(true).write(true).open(path).at("open", path)?;
        let digest = thread::scope(|scope| {
            let synced = shares::beside(scope, || file.sync_data());
            let digest = wants_digest.then(|| self.hash()).transpose();
            synced.join().at("sync", path)?;
            digest
        })?;
        if let Err(e) = fallocate(&file, FallocateFlags::INSERT_RANGE, 0, host.body()) {
            // It is as it was: only what stands before it would have changed its place.
            return if is_unable(e) { self.copy(dir, wants_digest) } else { Err(io::Error::from(e)).at("write", path) };
        }
        file.write_all_at(&host.head, host.at).at("write", path)?;
        for (_, member) in others {
            member.place(&file, path, &mut |_| {})?;
        }
        self.finish(&file, path)?;
        Ok((path.clone(), digest))
    }

    /// A new file takes it all, and what has been copied is removed at once. The digest is made of the copy, on another
    /// core.
    fn copy(&self, dir: &Path, wants_digest: bool) -> Result<(PathBuf, Option<Digest>)> {
        let path = dir.join("assembled");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path).at("create", &path)?;
        let digest = thread::scope(|scope| {
            let (tell, copied) = mpsc::channel();
            let begun = (self.hashed.len, self.hashed.hasher.clone());
            let hashed = wants_digest.then(|| shares::beside(scope, || copy::hash_behind(&file, begun, copied)));
            for member in &self.members {
                // Nobody listens if no digest is wanted, or if it could not be made, which will be said below.
                member.place(&file, &path, &mut |end| _ = tell.send(end))?;
            }
            file.write_all_at(&END, self.at).at("write", &path)?;
            let _ = tell.send(self.size());
            drop(tell);
            let digest = hashed.map(|hashed| hashed.join().at("read", &path)).transpose();
            self.finish(&file, &path)?;
            digest
        })?;
        Ok((path, digest))
    }

    /// Cuts it where it ends as well: XFS keeps room behind a file that grew.
    fn finish(&self, file: &File, path: &Path) -> Result<()> {
        let written = file.write_all_at(&END, self.at).and_then(|()| file.set_len(self.size()));
        written.and_then(|()| file.sync_all()).at("write", path)
    }

    /// The digest that it will have.
    pub fn hash(&self) -> Result<Digest> {
        let Hashed { len, mut hasher } = self.hashed.clone();
        self.each_piece(len..self.size(), &mut |piece| {
            tally::bytes(piece.len());
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }

    /// Calls `each` with the bytes of the tar that lie in `range`, in order.
    fn each_piece(&self, range: Range<u64>, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let mut buffer = Vec::new();
        for member in self.members.iter().filter(|member| member.at < range.end && range.start < member.end()) {
            each(within(&member.head, member.at, &range)).at("write", "the tar")?;
            let Some(path) = &member.content else { continue };
            member.each_piece(path, &range, &mut buffer, each)?;
            let end = member.body() + member.size;
            each(within(&END[..padding(member.size)], end, &range)).at("write", "the tar")?;
        }
        each(within(&END, self.at, &range)).at("write", "the tar")
    }
}

/// Of bytes that lie at `at`, those in `range`.
fn within<'b>(bytes: &'b [u8], at: u64, range: &Range<u64>) -> &'b [u8] {
    // No more than the bytes there are.
    let offset = |end: u64| end.saturating_sub(at).min(bytes.len() as u64) as usize;
    bytes.get(offset(range.start)..offset(range.end)).unwrap_or_default()
}

impl Member {
    /// Calls `each` with the bytes of the content that lie in `range` of the tar. Where more follows, the file must be no longer
    /// than the header says.
    fn each_piece(
        &self,
        path: &Path,
        range: &Range<u64>,
        buffer: &mut Vec<u8>,
        each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<()> {
        let body = self.body();
        let (mut at, end) = (range.start.saturating_sub(body), range.end.saturating_sub(body).min(self.size));
        let file = if range.end <= body + self.size { open_regular(path)? } else { self.open(path)? };
        buffer.resize(PIECE, 0);
        while at < end {
            interrupt::check()?;
            // Fits: a piece's length at most.
            let piece = &mut buffer[..(end - at).min(PIECE as u64) as usize];
            file.read_exact_at(piece, at).at("read", path)?;
            each(piece).at("write", "the tar")?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl Member {
    /// Puts header and content into their place in `out` and removes the content's own file. Calls `told` with the offset
    /// up to which all is there; what lies between two entries is zeros because nobody writes it.
    fn place(&self, out: &File, out_path: &Path, told: &mut dyn FnMut(u64)) -> Result<()> {
        out.write_all_at(&self.head, self.at).at("write", out_path)?;
        let Some(path) = &self.content else { return Ok(()) };
        let file = self.open(path)?;
        copy::range(&file, out, self.body(), self.size, told).at("copy", path)?;
        fs::remove_file(path).at("remove", path)
    }
}

/// True if the file system of `dir` can insert blocks before others: tried on a file of two.
fn can_insert(dir: &Path) -> bool {
    let tried = tempfile::tempfile_in(dir).and_then(|file| {
        file.write_all_at(&[0; 2 * ALIGN as usize], 0)?;
        Ok(fallocate(&file, FallocateFlags::INSERT_RANGE, 0, ALIGN)?)
    });
    tried.is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::pax::{Time, Type};

    const SIZES: [(&str, usize); 5] =
        [("a", 5), ("b", LARGE as usize + 1), ("c", 3 * LARGE as usize), ("d", 0), ("e", 70_000)];

    fn header(path: &str, size: u64) -> Header<'_> {
        let (path, mtime) = (path.as_bytes(), Time::default());
        let (kind, link, mode) = (Type::File, &b""[..], 0o600);
        Header { kind, path, link, mode, uid: 0, gid: 0, size, mtime, device: (0, 0), xattrs: &[] }
    }

    fn content(name: &str, size: usize) -> Vec<u8> {
        (0..size).map(|n| (n / 7) as u8 ^ name.as_bytes()[0]).collect()
    }

    fn assembly(dir: &Path) -> Assembly {
        let mut assembly = Assembly::default();
        for (name, size) in SIZES {
            fs::write(dir.join(name), content(name, size)).unwrap();
            assembly.push(&header(name, size as u64), Some(dir.join(name)));
        }
        let link = Header { kind: Type::Symlink, link: b"a", ..header("parent", 0) };
        assembly.push(&link, None);
        assembly
    }

    fn check(bytes: &[u8], assembled: &Assembled) {
        assert_eq!((assembled.size, assembled.digest), (bytes.len() as u64, Some(Digest::of(bytes))));
        let mut archive = tar::Archive::new(bytes);
        let mut found = archive.entries().unwrap().map(Result::unwrap);
        for (name, size) in SIZES {
            let mut entry = found.next().unwrap();
            let mut read = Vec::new();
            assert_eq!(entry.path_bytes().as_ref(), name.as_bytes());
            assert!(size < LARGE as usize || entry.raw_file_position() % ALIGN == 0, "{name}");
            entry.read_to_end(&mut read).unwrap();
            assert!(read == content(name, size), "{name}");
        }
        assert_eq!(found.next().unwrap().header().entry_type(), tar::EntryType::Symlink);
        assert!(found.next().is_none());
    }

    #[test]
    fn grown_copied_and_streamed_it_is_the_same() {
        for base in [concat!(env!("CARGO_MANIFEST_DIR"), "/target"), "/dev/shm"] {
            let Ok(temp) = tempfile::tempdir_in(base) else { continue };
            let mut streamed = Vec::new();
            assembly(temp.path()).stream(&mut streamed).unwrap();
            let made = assembly(temp.path()).into_file(temp.path(), true).unwrap();
            check(&streamed, &made);
            assert!(fs::read(&made.path).unwrap() == streamed, "{base}");
            let grown = made.path.file_name().unwrap() == "c";
            assert_eq!(grown, can_insert(temp.path()), "{base}");
            let left = fs::read_dir(temp.path()).unwrap().count();
            assert_eq!(left, 1, "the files that went in are gone");
            fs::remove_file(&made.path).unwrap();
            let (path, digest) = assembly(temp.path()).copy(temp.path(), true).unwrap();
            assert!(fs::read(path).unwrap() == streamed && digest == made.digest, "{base}");
        }
    }

    #[test]
    fn a_tar_in_a_tar_is_as_if_it_were_a_file() {
        let temp = tempfile::tempdir().unwrap();
        let (mut inner, mut outer, mut nested) = (Vec::new(), Vec::new(), Vec::new());
        assembly(temp.path()).stream(&mut inner).unwrap();
        fs::write(temp.path().join("inner"), &inner).unwrap();
        let build = |middle: &dyn Fn(&mut Assembly, &Header)| {
            let mut whole = Assembly::default();
            fs::write(temp.path().join("x"), "x").unwrap();
            for name in ["first", "middle", "last"] {
                match name {
                    "middle" => middle(&mut whole, &header(name, inner.len() as u64)),
                    _ => whole.push(&header(name, 1), Some(temp.path().join("x"))),
                }
            }
            whole
        };
        let plain = build(&|whole, header| whole.push(header, Some(temp.path().join("inner"))));
        plain.stream(&mut outer).unwrap();
        let tar = assembly(temp.path()).moved_to(&temp.path().join("parts")).unwrap();
        assert_eq!(tar.hash().unwrap(), Digest::of(&inner));
        let whole = build(&|whole, header| whole.push_tar(header, tar.clone()));
        whole.stream(&mut nested).unwrap();
        assert!(outer == nested);
        assert_eq!(whole.size(), outer.len() as u64);
    }

    #[test]
    fn what_is_hashed_while_it_grows_is_not_read_again() {
        for base in [concat!(env!("CARGO_MANIFEST_DIR"), "/target"), "/dev/shm"] {
            let Ok(temp) = tempfile::tempdir_in(base) else { continue };
            let (path, size) = (temp.path().join("grows"), 3 * LARGE as usize + 5);
            let content = content("g", size);
            let mut tar = Assembly::default();
            tar.push(&header("grows", size as u64), Some(path.clone()));
            for len in [1, PIECE, PIECE + 1, size - 1, size - 1, size] {
                fs::write(&path, &content[..len]).unwrap();
                tar.hash_ahead(len as u64).unwrap();
            }
            // More than there will be, and more than there is.
            tar.hash_ahead(size as u64 + 1).unwrap();
            // It is not for who hashes ahead to say that it has become too long.
            fs::write(&path, [&content[..], b"more"].concat()).unwrap();
            tar.hash_ahead(size as u64).unwrap();
            fs::write(&path, &content).unwrap();
            fs::write(temp.path().join("late"), "late").unwrap();
            tar.push(&header("late", 4), Some(temp.path().join("late")));
            let mut whole = Vec::new();
            tar.stream(&mut whole).unwrap();
            assert_eq!(tar.hash().unwrap(), Digest::of(&whole), "{base}");
            // Other bytes of the same length: the digest is that of those that were hashed.
            fs::write(&path, vec![0; size]).unwrap();
            let (_, copied) = tar.clone().copy(temp.path(), true).unwrap();
            assert_eq!(copied, Some(Digest::of(&whole)), "{base}");
            fs::write(temp.path().join("late"), "late").unwrap();
            fs::write(&path, "short").unwrap();
            assert!(tar.hash().is_err(), "{base}: it is not as long as its header says");
        }
    }

    #[test]
    fn what_changes_meanwhile_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let whole = assembly(temp.path());
        fs::write(temp.path().join("a"), "longer than it was").unwrap();
        assert!(whole.stream(&mut io::sink()).is_err());
        assert!(whole.into_file(temp.path(), true).is_err());
    }
}
