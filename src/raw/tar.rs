//! The tar of a raw capture while it is being written: headers, texts, and content whose holes stay holes.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::Path,
};

use crate::{
    error::{At, Result},
    layout::Staging,
    pax::{self, Header, Time, Type},
    sparse::SparseFile,
};

/// Texts up to this length are held in memory, longer ones on the disk, until their length is known.
const SMALL: usize = 1 << 20;

/// No text of procfs is longer that has anything to do with a container; what is, is cut.
pub const MAX_TEXT: u64 = 1 << 30;

/// Content from this size on begins at a multiple of it.
const PAGE: u64 = 4096;

/// The tar, and where it is.
pub struct Tar<'a> {
    out: SparseFile,
    at: u64,
    staging: &'a Staging,
}

/// The tar's name in the staging.
const NAME: &str = "raw.tar";
/// What is on its way into it.
const SCRATCH: &str = "raw-scratch";

impl<'a> Tar<'a> {
    /// A new one in the staging.
    pub fn new(staging: &'a Staging) -> Result<Self> {
        Ok(Self { out: staging.sparse(NAME)?, at: 0, staging })
    }

    /// Announces a member of `size` bytes, which must follow.
    pub fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        let (path, link) = (name.as_bytes(), &b""[..]);
        let (kind, mode, mtime) = (Type::File, 0o600, Time::default());
        let header = Header { kind, path, link, mode, uid: 0, gid: 0, size, mtime, device: (0, 0), xattrs: &[] };
        let head = if size < PAGE { header.encode() } else { header.encode_aligned(self.at, PAGE) };
        self.write(&head)
    }

    /// Content.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).at("write", self.staging.path(NAME))
    }

    /// So many zeros.
    pub fn skip(&mut self, len: u64) -> Result<()> {
        self.at += len;
        self.out.skip(len).at("write", self.staging.path(NAME))
    }

    /// Ends a member of `size` bytes.
    pub fn end(&mut self, size: u64) -> Result<()> {
        self.skip(pax::padding(size) as u64)
    }

    /// A whole member.
    pub fn bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.begin(name, content.len() as u64)?;
        self.write(content)?;
        self.end(content.len() as u64)
    }

    /// A member whose length shows only when it was read; each piece is also told to `each`. False: there is nothing to
    /// read. An error of the source is `Ok(Err)`, and leaves no member behind.
    pub fn stream(&mut self, name: &str, from: &Path, mut each: impl FnMut(&[u8])) -> Result<io::Result<()>> {
        let mut file = match File::open(from) {
            Ok(file) => file.take(MAX_TEXT),
            Err(e) => return Ok(Err(e)),
        };
        let mut head = Vec::new();
        if let Err(e) = file.by_ref().take(SMALL as u64).read_to_end(&mut head) {
            return Ok(Err(e));
        }
        each(&head);
        if head.len() < SMALL {
            return self.bytes(name, &head).map(Ok);
        }
        let path = self.staging.path(SCRATCH);
        let mut scratch = self.staging.file(SCRATCH)?;
        let _ = std::fs::remove_file(&path);
        let mut buffer = vec![0; SMALL];
        loop {
            scratch.write_all(&head).at("write", &path)?;
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    head.clear();
                    head.extend_from_slice(buffer.get(..n).unwrap_or_default());
                    each(&head);
                }
                Err(e) => return Ok(Err(e)),
            }
        }
        let size = scratch.stream_position().at("write", &path)?;
        scratch.rewind().at("read", &path)?;
        self.begin(name, size)?;
        loop {
            let n = scratch.read(&mut buffer).at("read", &path)?;
            if n == 0 {
                break;
            }
            self.write(buffer.get(..n).unwrap_or_default())?;
        }
        self.end(size).map(Ok)
    }

    /// Ends the archive: its file and its length.
    pub fn finish(mut self) -> Result<(File, u64)> {
        self.write(&pax::END)?;
        Ok((self.out.complete()?, self.at))
    }
}

/// Where it lies in the staging.
pub fn path(staging: &Staging) -> std::path::PathBuf {
    staging.path(NAME)
}
