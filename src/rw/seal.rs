//! The captured layer becomes a blob: read once, hashed plain (diff id), compressed, hashed as stored (digest).
//!
//! Blocks of zeros, which is what the holes of a sparse file are, are not compressed anew: deflate's blocks can be put
//! together as long as each begins at a byte and refers to nothing before it (RFC 1951), so such a block always becomes the
//! same bytes. The file stays one gzip member (RFC 1952), which every reader takes.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
};

use flate2::{Compress, Compression as Level, Crc, FlushCompress};

use super::Captured;
use crate::{
    digest::{Digest, Hasher},
    error::{At, Result},
    interrupt,
    layout::{Blob, BlobWriter, Staging},
    oci::names,
    sparse::{is_zero, next_data},
    tree::Summary,
};

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// The only one `ctr containers restore --rw` takes.
    #[default]
    Gzip,
    /// Smaller and faster; for other tools.
    Zstd,
    /// As it is.
    None,
}

impl Compression {
    /// The media type of a layer stored so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => names::LAYER_GZIP,
            Self::Zstd => names::LAYER_ZSTD,
            Self::None => names::LAYER_TAR,
        }
    }
}

/// A layer in the layout.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As stored.
    pub blob: Blob,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// How it is stored.
    pub media_type: &'static str,
    /// What no layer can hold, as a plain tar; `None` if there is nothing of it that has content.
    pub beside: Option<Blob>,
    /// What is in it, and what could not be.
    pub summary: Summary,
}

/// Level 1 of zlib-rs: a node in trouble has no time, and layers are read once.
const GZIP_LEVEL: u32 = 1;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// The layer is looked at in blocks of this size, counted from its beginning: the same layer gives the same blob.
const BLOCK: usize = 1 << 20;

/// Stores a captured layer.
pub fn seal(captured: Captured, how: Compression, staging: &Staging) -> Result<Layer> {
    let Captured { tar, beside, summary } = captured;
    let mut hasher = Hasher::default();
    let mut packed = Packed::begin(how, staging.blob()?).at("compress into", staging.path("blobs"))?;
    each_block(&tar, |block| {
        hasher.update(block);
        packed.block(block)
    })?;
    let blob = packed.finish().at("compress into", staging.path("blobs"))?.complete()?;
    let beside = if summary.beside > 0 { Some(store(beside, staging)?) } else { None };
    Ok(Layer { blob, diff_id: hasher.finish(), media_type: how.media_type(), beside, summary })
}

/// A file of the staging as a blob, as it is.
fn store(file: File, staging: &Staging) -> Result<Blob> {
    let mut blob = staging.blob()?;
    each_block(&file, |block| blob.write_all(block))?;
    blob.complete()
}

/// Calls `each` with all of `from`, block by block; only the last is shorter. Holes are not read.
fn each_block(from: &File, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
    let place = "the captured rw layer";
    let (mut block, size) = (vec![0; BLOCK], from.metadata().at("read", place)?.len());
    let (mut at, mut data) = (0, 0);
    while at < size {
        interrupt::check()?;
        // Fits: a block's length at most.
        let len = (size - at).min(BLOCK as u64) as usize;
        if data < at + len as u64 {
            data = next_data(from, at.max(data));
        }
        let block = &mut block[..len];
        if data >= at + len as u64 {
            block.fill(0);
        } else {
            from.read_exact_at(block, at).at("read", place)?;
        }
        let written = each(block);
        interrupt::check()?;
        written.at("write", "the layer")?;
        at += len as u64;
    }
    Ok(())
}

/// A layer being compressed.
enum Packed {
    Gzip(Box<Gzip>),
    Zstd(zstd::Encoder<'static, BlobWriter>),
    None(BlobWriter),
}

impl Packed {
    fn begin(how: Compression, blob: BlobWriter) -> io::Result<Self> {
        Ok(match how {
            Compression::Gzip => Self::Gzip(Box::new(Gzip::begin(blob)?)),
            Compression::Zstd => Self::Zstd(zstd::Encoder::new(blob, ZSTD_LEVEL)?),
            Compression::None => Self::None(blob),
        })
    }

    fn block(&mut self, block: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(gzip) => gzip.block(block),
            Self::Zstd(zstd) => zstd.write_all(block),
            Self::None(blob) => blob.write_all(block),
        }
    }

    fn finish(self) -> io::Result<BlobWriter> {
        match self {
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(zstd) => zstd.finish(),
            Self::None(blob) => Ok(blob),
        }
    }
}

/// One gzip member. No name and no time in its header: same bytes in, same bytes out.
struct Gzip {
    blob: BlobWriter,
    deflate: Compress,
    crc: Crc,
    /// What a whole block of zeros becomes, and its checksum.
    zeros: (Vec<u8>, Crc),
}

/// RFC 1952: magic, deflate, no flags, no time, fastest, system unknown.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

impl Gzip {
    fn begin(mut blob: BlobWriter) -> io::Result<Self> {
        let (block, mut crc, mut zeros) = (vec![0; BLOCK], Crc::new(), Vec::new());
        crc.update(&block);
        // Once for all, so as small as can be: a thousandth.
        drain(&mut Compress::new(Level::best(), false), &block, FlushCompress::Sync, &mut zeros)?;
        blob.write_all(&GZIP_HEADER)?;
        let deflate = Compress::new(Level::new(GZIP_LEVEL), false);
        Ok(Self { blob, deflate, crc: Crc::new(), zeros: (zeros, crc) })
    }

    fn block(&mut self, block: &[u8]) -> io::Result<()> {
        if block.len() < BLOCK || !is_zero(block) {
            self.crc.update(block);
            return drain(&mut self.deflate, block, FlushCompress::None, &mut self.blob);
        }
        self.crc.combine(&self.zeros.1);
        if self.deflate.total_in() > 0 {
            // Ends at a byte; and what comes later must not refer to what is before the zeros.
            drain(&mut self.deflate, &[], FlushCompress::Sync, &mut self.blob)?;
            self.deflate.reset();
        }
        self.blob.write_all(&self.zeros.0)
    }

    fn finish(mut self) -> io::Result<BlobWriter> {
        drain(&mut self.deflate, &[], FlushCompress::Finish, &mut self.blob)?;
        self.blob.write_all(&self.crc.sum().to_le_bytes())?;
        self.blob.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.blob)
    }
}

/// Takes in all of `bytes` and puts out what they yield.
fn drain(deflate: &mut Compress, bytes: &[u8], flush: FlushCompress, out: &mut dyn Write) -> io::Result<()> {
    let (start, mut buffer) = (deflate.total_in(), Vec::with_capacity(1 << 16));
    loop {
        // It took no more than it was given.
        let taken = usize::try_from(deflate.total_in() - start).unwrap_or(bytes.len());
        buffer.clear();
        deflate.compress_vec(bytes.get(taken..).unwrap_or_default(), &mut buffer, flush)?;
        out.write_all(&buffer)?;
        let is_all_in = deflate.total_in() - start == bytes.len() as u64;
        if is_all_in && buffer.len() < buffer.capacity() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::layout::Layout;

    #[test]
    fn zeros_cost_next_to_nothing_and_every_reader_gives_them_back() {
        let temp = tempfile::tempdir().unwrap();
        let staging = Layout::open_or_create(&temp.path().join("l")).unwrap().stage().unwrap();
        let mut plain = vec![0; 40 * BLOCK + 5];
        plain[..6].copy_from_slice(b"before");
        plain[20 * BLOCK + 7] = 1;
        *plain.last_mut().unwrap() = 2;
        for how in [Compression::Gzip, Compression::Zstd, Compression::None] {
            for plain in [&plain[..], b""] {
                let mut packed = Packed::begin(how, staging.blob().unwrap()).unwrap();
                plain.chunks(BLOCK).for_each(|block| packed.block(block).unwrap());
                let blob = packed.finish().unwrap().complete().unwrap();
                let bytes = staging.read_blob(&blob.digest).unwrap();
                let mut found = Vec::new();
                match how {
                    Compression::Gzip => {
                        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut found).unwrap();
                    }
                    Compression::Zstd => found = zstd::decode_all(&bytes[..]).unwrap(),
                    Compression::None => found.clone_from(&bytes),
                }
                assert!(found == plain, "{how:?}");
                assert!(how == Compression::None || bytes.len() < 64 << 10, "{how:?}: {} bytes", bytes.len());
                assert!(bytes.len() >= plain.len().min(1) && (how != Compression::Gzip || bytes.len() > 19));
            }
        }
    }
}
