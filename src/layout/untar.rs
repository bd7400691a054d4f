//! Reading a layer or another tar blob: decompressed on the fly, every header checked, nothing unpacked.

use std::{
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType, PaxExtensions};

use super::open_regular;
use crate::{
    digest::{Digest, Hasher},
    error::{At, Result},
    interrupt,
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
pub fn walk(path: &Path, mut each: impl FnMut(Entry<'_>) -> io::Result<()>) -> Result<Digest> {
    let mut plain = Hashing { from: plain(path)?, hasher: Hasher::default() };
    let walked = entries(&mut plain, &mut each).and_then(|()| io::copy(&mut plain, &mut io::sink()));
    interrupt::check()?;
    walked.at("read the tar in", path)?;
    Ok(plain.hasher.finish())
}

fn plain(path: &Path) -> Result<Box<dyn Read>> {
    let mut head = [0; 4];
    let mut file = open_regular(path)?;
    let got = file.read(&mut head).at("read", path)?;
    file.rewind().at("read", path)?;
    let file = BufReader::with_capacity(1 << 18, file);
    Ok(match head.get(..got) {
        Some([0x1f, 0x8b, ..]) => Box::new(MultiGzDecoder::new(file)),
        Some([0x28, 0xb5, 0x2f, 0xfd]) => Box::new(zstd::Decoder::with_buffer(file).at("read", path)?),
        _ => Box::new(file),
    })
}

fn entries(plain: &mut dyn Read, each: &mut dyn FnMut(Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut archive = Archive::new(plain);
    let (mut name, mut size) = (None, None);
    // Raw: the crate would read an extended header of any size into memory.
    for entry in archive.entries()?.raw(true) {
        interrupt::check().map_err(io::Error::other)?;
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink => {
                let bytes = extension(&mut entry)?;
                match kind {
                    EntryType::XHeader => (name, size) = pax(&bytes)?,
                    EntryType::GNULongName => name = Some(bytes.split(|&b| b == 0).next().unwrap_or_default().to_vec()),
                    _ => {}
                }
            }
            _ => {
                let short = || entry.header().path_bytes().into_owned();
                let full = name.take().unwrap_or_else(short);
                let size = size.take().unwrap_or(entry.size());
                each(Entry { name: full, kind, size, content: &mut entry })?;
            }
        }
    }
    Ok(())
}

fn extension(entry: &mut tar::Entry<'_, &mut dyn Read>) -> io::Result<Vec<u8>> {
    if entry.size() > MAX_EXTENSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an extended header is larger than 16 MiB"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Name and size of the next entry, where the extended header has them (POSIX pax).
fn pax(bytes: &[u8]) -> io::Result<(Option<Vec<u8>>, Option<u64>)> {
    let (mut name, mut size) = (None, None);
    for record in PaxExtensions::new(bytes) {
        let record = record?;
        match record.key_bytes() {
            b"path" => name = Some(record.value_bytes().to_vec()),
            b"size" => size = record.value().ok().and_then(|v| v.parse().ok()),
            _ => {}
        }
    }
    Ok((name, size))
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

    #[test]
    fn bytes_behind_the_end_belong_to_the_diff_id() {
        let padded = [tar(), vec![0; 10240]].concat();
        assert_eq!(names(&padded).1, Digest::of(&padded));
    }
}
