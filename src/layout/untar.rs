//! Reading a layer or another tar blob: decompressed on the fly, every header checked, nothing unpacked.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use tar::{EntryType, Header};

use super::{open_regular, told::Told};
use crate::{
    digest::{Digest, Hasher},
    error::{At, Result},
    interrupt,
    pax::{BLOCK, padding},
};

/// Extended headers hold names and xattrs; the kernel bounds both far below this.
const MAX_EXTENSION: u64 = 16 << 20;

/// What a tar holds, entry by entry; the names are as they stand in the tar.
pub struct Entry<'a> {
    /// The name, from the extended header where there is one.
    pub name: Vec<u8>,
    /// Its type.
    pub kind: EntryType,
    /// Bytes of content.
    pub size: u64,
    /// The content.
    pub content: &'a mut dyn Read,
}

/// Reads the tar in the blob at `path`, plain, gzip or zstd by its first bytes; calls `each` with every entry.
///
/// Yields the digest of the plain tar (the diff id). Trailing bytes after the end marker are read and hashed too.
pub fn walk(path: &Path, each: impl FnMut(Entry<'_>) -> io::Result<()>) -> Result<Digest> {
    walk_in(open_regular(path)?, path, each)
}

/// The same of a tar that is read from elsewhere; `path` is its name in errors.
pub fn walk_in(from: impl Read, path: &Path, mut each: impl FnMut(Entry<'_>) -> io::Result<()>) -> Result<Digest> {
    let mut plain = Hashing { from: plain(from, path)?, hasher: Hasher::default() };
    let walked = entries(&mut plain, skip, &mut |entry, _| each(entry));
    let walked = walked.and_then(|()| io::copy(&mut plain, &mut io::sink()));
    interrupt::check()?;
    walked.at("read the tar in", path)?;
    Ok(plain.hasher.finish())
}

/// As [`walk`]; `each` also gets all that the tar says of the inode.
pub fn inodes(path: &Path, mut each: impl FnMut(Entry<'_>, Told) -> io::Result<()>) -> Result<Digest> {
    let mut plain = Hashing { from: plain(open_regular(path)?, path)?, hasher: Hasher::default() };
    let walked = entries(&mut plain, skip, &mut |entry, stood| {
        let told = Told::of(stood.header, &stood.said.records, stood.said.link.as_deref())?;
        each(entry, told)
    });
    let walked = walked.and_then(|()| io::copy(&mut plain, &mut io::sink()));
    interrupt::check()?;
    walked.at("read the tar in", path)?;
    Ok(plain.hasher.finish())
}

/// Where an entry stood, and what stood before its content.
struct Stood<'a> {
    /// Where in the stream its content begins.
    at: u64,
    header: &'a Header,
    said: &'a Extended,
}

/// The members of the uncompressed tar at `path`: calls `each` with every entry, and where in the file its content begins.
/// What `each` does not read is not read at all.
pub fn members(path: &Path, mut each: impl FnMut(Entry<'_>, u64) -> io::Result<()>) -> Result<()> {
    let file = open_regular(path)?;
    let len = file.metadata().at("look at", path)?.len();
    let mut file = Seekable { file: BufReader::new(file), at: 0, len };
    let walked = entries(&mut file, Seekable::pass, &mut |entry, stood| each(entry, stood.at));
    interrupt::check()?;
    walked.at("read the tar in", path)
}

/// A plain file in which nothing need be read to come past it.
struct Seekable {
    file: BufReader<File>,
    at: u64,
    len: u64,
}

impl Read for Seekable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seekable {
    fn pass(&mut self, n: u64) -> io::Result<()> {
        let to = self.at.checked_add(n).filter(|&to| to <= self.len).ok_or_else(cut)?;
        self.file.seek_relative(i64::try_from(n).map_err(io::Error::other)?)?;
        self.at = to;
        Ok(())
    }
}

fn plain<'r>(mut from: impl Read + 'r, path: &Path) -> Result<Box<dyn Read + 'r>> {
    let mut head = Vec::new();
    from.by_ref().take(4).read_to_end(&mut head).at("read", path)?;
    let whole = io::Cursor::new(head.clone()).chain(BufReader::with_capacity(1 << 18, from));
    Ok(match head.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::with_buffer(whole).at("read", path)?),
        _ => Box::new(whole),
    })
}

/// Calls `each` with every entry and what stood before it; `pass` comes past what was not read.
fn entries<R: Read>(
    plain: &mut R,
    pass: fn(&mut R, u64) -> io::Result<()>,
    each: &mut dyn FnMut(Entry<'_>, Stood<'_>) -> io::Result<()>,
) -> io::Result<()> {
    // Not by the `tar` crate's own loop: it would read an extended header of any size into memory, or else overlook
    // sizes beyond a header's own field.
    let (mut said, mut at) = (Extended::default(), 0_u64);
    while let Some(header) = header(plain)? {
        interrupt::check().map_err(io::Error::other)?;
        at = at.saturating_add(BLOCK as u64);
        let kind = header.entry_type();
        let size = said.size.filter(|_| !is_extension(kind)).map_or_else(|| header.entry_size(), Ok)?;
        let size = if has_no_content(kind) { 0 } else { size };
        let mut content = plain.by_ref().take(size);
        if is_extension(kind) {
            let bytes = extension(&mut content, size)?;
            match kind {
                EntryType::XHeader => said = Extended { link: said.link.take(), ..Extended::of(bytes)? },
                EntryType::GNULongLink => {
                    said.link = Some(bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec())
                }
                EntryType::GNULongName => {
                    said.name = Some(bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec())
                }
                _ => {}
            }
        } else {
            let name = said.name.take().unwrap_or_else(|| header.path_bytes().into_owned());
            each(Entry { name, kind, size, content: &mut content }, Stood { at, header: &header, said: &said })?;
            said = Extended::default();
        }
        let left = content.limit();
        pass(plain, left)?;
        pass(plain, padding(size) as u64)?;
        at = at.saturating_add(size).saturating_add(padding(size) as u64);
    }
    Ok(())
}

/// The next header; `None` at a block of zeros, or where the file ends instead.
fn header(plain: &mut impl Read) -> io::Result<Option<Header>> {
    let mut block = Vec::new();
    plain.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
    if block.iter().all(|&b| b == 0) {
        return if matches!(block.len(), 0 | BLOCK) { Ok(None) } else { Err(cut()) };
    }
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(block.first_chunk::<BLOCK>().ok_or_else(cut)?);
    // Its own field counts as spaces (POSIX.1, ustar, `chksum`).
    let sum: u32 =
        block.iter().enumerate().map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
    if header.cksum()? == sum { Ok(Some(header)) } else { Err(malformed("a header does not match its checksum")) }
}

fn is_extension(kind: EntryType) -> bool {
    use EntryType::{GNULongLink, GNULongName, XGlobalHeader, XHeader};
    matches!(kind, XHeader | XGlobalHeader | GNULongName | GNULongLink)
}

/// Whatever size such an entry states, no content follows (Go's archive/tar, `isHeaderOnly`; hence containerd).
fn has_no_content(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    matches!(kind, Link | Symlink | Char | Block | Directory | Fifo)
}

fn extension(content: &mut dyn Read, size: u64) -> io::Result<Vec<u8>> {
    if size > MAX_EXTENSION {
        return Err(malformed("an extended header is larger than 16 MiB"));
    }
    let mut bytes = Vec::new();
    content.read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(cut()) }
}

/// Reads so many bytes, which must be there.
fn skip(plain: &mut impl Read, n: u64) -> io::Result<()> {
    let mut part = plain.take(n);
    io::copy(&mut part, &mut io::sink())?;
    if part.limit() == 0 { Ok(()) } else { Err(cut()) }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it ends in the middle of an entry")
}

pub(super) fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What an extended header says of the next entry (POSIX.1, "pax Interchange Format").
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// By GNU's entry for long ones.
    link: Option<Vec<u8>>,
    /// All of its records, as they stand there.
    records: Vec<u8>,
}

impl Extended {
    /// An empty value means the header's own; of several the last counts.
    fn of(bytes: Vec<u8>) -> io::Result<Self> {
        let mut said = Self::default();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, after) =
                record(rest).ok_or_else(|| malformed("an extended header has a broken record"))?;
            let number = || std::str::from_utf8(value).ok()?.parse().ok();
            match key {
                b"path" => said.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
                b"size" if value.is_empty() => said.size = None,
                b"size" => said.size = Some(number().ok_or_else(|| malformed("an extended header has a broken size"))?),
                _ => {}
            }
            rest = after;
        }
        Ok(Self { records: bytes, ..said })
    }
}

/// The first record, `<length> <key>=<value>\n`, and what follows it. Its length says where it ends: a name, or the value of
/// an attribute, may hold any byte, a newline too.
pub(super) fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|&b| b == b' ')?;
    let len: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let (whole, rest) = bytes.split_at_checked(len)?;
    let pair = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|&b| b == b'=')?;
    Some((pair.get(..equals)?, pair.get(equals + 1..)?, rest))
}

struct Hashing<R> {
    from: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hasher.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind: EntryType, name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        };
        add(EntryType::Regular, "plain", b"1");
        // Longer than a header's name field: a GNU long name goes before.
        add(EntryType::Regular, &"long/".repeat(40), b"22");
        add(EntryType::XHeader, "pax", b"16 path=caf\xc3\xa9/x\n");
        add(EntryType::Regular, "short", b"333");
        add(EntryType::XGlobalHeader, "global", b"20 path=never/seen\n\n");
        add(EntryType::Directory, "last/", b"");
        builder.into_inner().unwrap()
    }

    fn names(bytes: &[u8]) -> (Vec<String>, Digest) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("blob");
        fs::write(&path, bytes).unwrap();
        let mut names = Vec::new();
        let digest = walk(&path, |entry| {
            let mut content = Vec::new();
            entry.content.read_to_end(&mut content)?;
            assert_eq!(content.len() as u64, entry.size);
            names.push(String::from_utf8_lossy(&entry.name).into_owned());
            Ok(())
        });
        (names, digest.unwrap())
    }

    #[test]
    fn a_tar_is_the_same_in_every_wrapping() {
        let plain = tar();
        let half = plain.len() / 2;
        let mut gzip = Vec::new();
        // Two members, one after the other, are one gzip file.
        for part in [&plain[..half], &plain[half..]] {
            let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            member.write_all(part).unwrap();
            gzip.extend(member.finish().unwrap());
        }
        let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
        let right = (vec!["plain".into(), "long/".repeat(40), "café/x".into(), "last/".into()], Digest::of(&plain));
        for bytes in [&plain, &gzip, &zstd] {
            assert_eq!(names(bytes), right);
        }
    }

    /// One entry with this extended header and this size in its own field, and its content.
    fn extended(records: &[u8], size: u64, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        builder.append_data(&mut header, "pax", records).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(2 * BLOCK);
        let mut header = tar::Header::new_ustar();
        header.set_path("short").unwrap();
        header.set_size(size);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len() + padding(content.len() as u64) + 2 * BLOCK, 0);
        bytes
    }

    #[test]
    fn a_record_ends_where_its_length_says() {
        // A newline in a name, and in an attribute what looks like another record.
        let records = b"17 path=new\nline\n41 SCHILY.xattr.user.k=\n16 path=impostor\n";
        assert_eq!(names(&extended(records, 3, b"333")).0, ["new\nline"]);
    }

    #[test]
    fn a_size_too_large_for_its_field_is_the_extended_headers() {
        let bytes = extended(b"12 size=700\n", 0, &[7; 700]);
        assert_eq!(names(&bytes).0, ["short"]);
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), &bytes).unwrap();
        let mut sizes = Vec::new();
        walk(path.path(), |entry| {
            sizes.push(entry.size);
            Ok(())
        })
        .unwrap();
        assert_eq!(sizes, [700]);
    }

    #[test]
    fn what_is_cut_anywhere_is_no_tar() {
        let whole = tar();
        let end = whole.len() - 2 * BLOCK;
        for len in (1..end).step_by(61).filter(|len| len % BLOCK != 0) {
            let path = tempfile::NamedTempFile::new().unwrap();
            fs::write(path.path(), &whole[..len]).unwrap();
            assert!(walk(path.path(), |_| Ok(())).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn members_are_found_where_they_stand() {
        let whole = [extended(b"12 size=700\n", 0, &[7; 700])[..BLOCK * 5].to_vec(), tar()].concat();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &whole).unwrap();
        let mut found = Vec::new();
        members(file.path(), |entry, at| {
            let at = usize::try_from(at).unwrap();
            found.push(whole[at..at + usize::try_from(entry.size).unwrap()].to_vec());
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [vec![7; 700], b"1".to_vec(), b"22".to_vec(), b"333".to_vec(), Vec::new()]);
        for len in (1..whole.len() - 2 * BLOCK).step_by(61).filter(|len| len % BLOCK != 0) {
            fs::write(file.path(), &whole[..len]).unwrap();
            assert!(members(file.path(), |_, _| Ok(())).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn bytes_behind_the_end_belong_to_the_diff_id() {
        let padded = [tar(), vec![0; 10240]].concat();
        assert_eq!(names(&padded).1, Digest::of(&padded));
    }
}
