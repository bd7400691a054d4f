//! How a segment is compressed: by libdeflate or ISA-L into a gzip member, by libzstd into a frame.
//!
//! Bytes of libdeflate and libzstd depend on the segment alone. Those of ISA-L depend, besides, on the vector instructions the
//! processor has (seen with 2.31, level 3, in three kinds: AVX-512, AVX2, neither; level 1 has two).

use std::io;

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use super::bytes::Bytes;
use crate::oci::names;

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// The only one `ctr containers restore --rw` takes.
    #[default]
    Gzip,
    /// The same format, in less time; which bytes come of it depends on the processor.
    #[cfg(feature = "isal")]
    QuickGzip,
    /// Smaller and faster; for other tools.
    Zstd,
    /// As it is.
    None,
}

impl Compression {
    /// gzip in the least time; if it must be `the_same` on every machine, by every build, by what does not depend on them.
    pub fn gzip(the_same: bool) -> Self {
        match the_same {
            #[cfg(feature = "isal")]
            false => Self::QuickGzip,
            _ => Self::Gzip,
        }
    }

    /// The media type of a layer stored so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => names::LAYER_GZIP,
            #[cfg(feature = "isal")]
            Self::QuickGzip => names::LAYER_GZIP,
            Self::Zstd => names::LAYER_ZSTD,
            Self::None => names::LAYER_TAR,
        }
    }

    /// Every one there is.
    #[cfg(test)]
    pub const ALL: &[Self] = &[
        Self::Gzip,
        #[cfg(feature = "isal")]
        Self::QuickGzip,
        Self::Zstd,
        Self::None,
    ];
}

/// libdeflate's fastest: a node in trouble has no time, and layers are read once.
const GZIP_LEVEL: i32 = 1;

/// Of what is much the same over and over, once for all segments.
const SMALLEST_GZIP_LEVEL: i32 = 12;

/// Takes two thirds of the time of zstd's own default, 3, for a twentieth more bytes; 1 is only a tenth faster, and a fifteenth
/// larger.
const ZSTD_LEVEL: i32 = 2;

/// One worker's means.
pub enum Codec {
    /// Of gzip.
    Gzip(Box<Compressor>, Box<Decompressor>),
    /// Of gzip in less time; it keeps no state.
    #[cfg(feature = "isal")]
    QuickGzip(Box<Decompressor>),
    /// Of zstd.
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    /// Of nothing.
    None,
}

impl Codec {
    /// What is needed for this way to store.
    pub fn new(how: Compression) -> io::Result<Self> {
        Ok(match how {
            Compression::Gzip => Self::Gzip(Box::new(gzip(GZIP_LEVEL)?), Box::new(Decompressor::new())),
            #[cfg(feature = "isal")]
            Compression::QuickGzip => Self::QuickGzip(Box::new(Decompressor::new())),
            Compression::Zstd => Self::Zstd(Box::new(zstd::bulk::Compressor::new(ZSTD_LEVEL)?)),
            Compression::None => Self::None,
        })
    }

    /// True if what is stored are the bytes themselves.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Compresses a segment.
    pub fn press(&mut self, bytes: &[u8], out: &mut Bytes) -> io::Result<()> {
        out.clear();
        let len = match self {
            Self::Gzip(gzip, _) => pressed(gzip, bytes, out)?,
            #[cfg(feature = "isal")]
            Self::QuickGzip(_) => quick::pressed(bytes, out)?,
            Self::Zstd(zstd) => {
                zstd.compress_to_buffer(bytes, out.room(zstd::zstd_safe::compress_bound(bytes.len())))?
            }
            Self::None => {
                out.extend(bytes);
                return Ok(());
            }
        };
        out.take(len);
        Ok(())
    }

    /// The same, as small as can be, whatever time it takes.
    pub fn press_small(&mut self, bytes: &[u8], out: &mut Bytes) -> io::Result<()> {
        let (Self::Zstd(_) | Self::None) = self else {
            out.clear();
            let len = pressed(&mut gzip(SMALLEST_GZIP_LEVEL)?, bytes, out)?;
            out.take(len);
            return Ok(());
        };
        self.press(bytes, out)
    }

    /// The plain bytes of a segment that was stored, which are `len`.
    pub fn plain(&mut self, stored: &[u8], len: usize, out: &mut Bytes) -> io::Result<()> {
        out.clear();
        let room = out.room(len);
        let found = match self {
            Self::Gzip(_, gunzip) => gunzip.gzip_decompress(stored, room).map_err(io::Error::other)?,
            #[cfg(feature = "isal")]
            Self::QuickGzip(gunzip) => gunzip.gzip_decompress(stored, room).map_err(io::Error::other)?,
            Self::Zstd(_) => zstd::bulk::decompress_to_buffer(stored, room)?,
            Self::None => {
                room.copy_from_slice(stored.get(..len).ok_or(io::ErrorKind::UnexpectedEof)?);
                len
            }
        };
        out.take(found);
        if found == len { Ok(()) } else { Err(io::Error::other("a stored segment is not as long as it was")) }
    }
}

fn gzip(level: i32) -> io::Result<Compressor> {
    let level = CompressionLvl::new(level).map_err(|_| io::Error::other("libdeflate has no such level"))?;
    Ok(Compressor::new(level))
}

fn pressed(gzip: &mut Compressor, bytes: &[u8], out: &mut Bytes) -> io::Result<usize> {
    let room = out.room(gzip.gzip_compress_bound(bytes.len()));
    gzip.gzip_compress(bytes, room).map_err(io::Error::other)
}

/// ISA-L.
#[cfg(feature = "isal")]
mod quick {
    use std::io;

    use isal::{Codec, CompressionLevel, compress_into};

    use super::Bytes;

    /// What cannot be compressed is stored, in blocks of 65535 bytes at most with five before each (RFC 1951, 3.2.4), between
    /// ten and eight of gzip (RFC 1952).
    fn bound(len: usize) -> usize {
        len + 5 * (len / 65535 + 1) + 18
    }

    /// By level 1 where that serves, else by level 3. Text takes half the time so, and is no larger than zlib's first level
    /// makes it. Of programs level 1 makes a fortieth more than that does, which level 3 does not. What repeats itself takes a
    /// third of the time, and level 1 makes a twenty-fifth less of it than level 3. Level 3 takes 340 KiB while it works, and
    /// leaves none.
    pub fn pressed(bytes: &[u8], out: &mut Bytes) -> io::Result<usize> {
        // Room for all of it at once, not first for a part.
        out.room(bound(bytes.len()));
        let is_quick = is_text(bytes) || repeats_itself(bytes, out)?;
        compressed(bytes, if is_quick { CompressionLevel::One } else { CompressionLevel::Three }, out)
    }

    fn compressed(bytes: &[u8], level: CompressionLevel, out: &mut Bytes) -> io::Result<usize> {
        let done = compress_into(bytes, out.room(bound(bytes.len())), level, Codec::Gzip);
        done.map_err(|e| io::Error::other(format!("ISA-L: {e}")))
    }

    /// True if few bytes are none that a text of ASCII has, as far as a sample shows. Zeros fill the gaps of a tar.
    fn is_text(bytes: &[u8]) -> bool {
        // Prime to the lengths of which records are.
        let sample = || bytes.iter().step_by(127).filter(|byte| **byte != 0);
        let strange = sample().filter(|byte| !matches!(byte, b'\t'..=b'\r' | b' '..=b'~')).count();
        strange * 16 < sample().count()
    }

    /// True if a sixteenth, from the middle, becomes less than a sixth of itself. `out` is used for it.
    fn repeats_itself(bytes: &[u8], out: &mut Bytes) -> io::Result<bool> {
        let len = bytes.len() / 16;
        let part = bytes.get(bytes.len() / 2..).and_then(|rest| rest.get(..len)).unwrap_or_default();
        Ok(compressed(part, CompressionLevel::One, out)? < len / 6)
    }

    #[cfg(test)]
    mod tests {
        use super::{Bytes, is_text, repeats_itself};

        #[test]
        fn a_tar_of_texts_is_text_and_a_program_is_none() {
            let text = [&b"fn main() {}\r\n\tgreetings to K\xc3\xb6ln, and so on, for a line or two\n"[..], &[0; 900]]
                .concat();
            assert!(is_text(&text.repeat(300)));
            let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
            let share = program.chunks_exact(1 << 18).filter(|segment| !is_text(segment)).count();
            assert!(share > 3, "{share}");
            assert!(!is_text(&[]) && !is_text(&[0; 4096]));
        }

        #[test]
        fn a_table_repeats_itself_and_a_program_does_not() {
            let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
            let mut out = Bytes::default();
            let share =
                program.chunks_exact(1 << 18).filter(|segment| repeats_itself(segment, &mut out).unwrap()).count();
            assert!(share < program.len() >> 19, "{share}");
            let table: Vec<u8> =
                (0_u32..1 << 16).flat_map(|n| [n / 5000, 0xcafe_babe, n % 7]).flat_map(u32::to_le_bytes).collect();
            assert!(!is_text(&table) && repeats_itself(&table, &mut out).unwrap());
            assert!(!repeats_itself(&[], &mut out).unwrap());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpacked(how: Compression, stored: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match how.media_type() {
            names::LAYER_GZIP => {
                flate2::read::MultiGzDecoder::new(stored).read_to_end(&mut plain).unwrap();
            }
            names::LAYER_ZSTD => plain = zstd::decode_all(stored).unwrap(),
            _ => plain = stored.to_vec(),
        }
        plain
    }

    /// What cannot be compressed, text, and runs, of every length that is near to one where something changes.
    fn segments() -> impl Iterator<Item = Vec<u8>> {
        let mut state = 7_u64;
        let mut noise = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let lens = [0, 1, 2, 100, 8191, 65534, 65535, 65536, 131_070, 131_071, (1 << 20) - 1, 1 << 20];
        let kinds = lens.into_iter().flat_map(|len| (0..3).map(move |kind| (len, kind)));
        kinds.map(move |(len, kind)| match kind {
            0 => (0..len).map(|_| noise()).collect(),
            1 => (0..len).map(|n| b"a text is written line by line\n"[n % 31]).collect(),
            _ => (0..len).map(|n| if n % 1000 < 700 { b'x' } else { noise() % 16 }).collect(),
        })
    }

    #[test]
    fn others_and_we_read_what_is_stored_whatever_it_is() {
        for &how in Compression::ALL {
            let (mut codec, mut stored, mut plain) = (Codec::new(how).unwrap(), Bytes::default(), Bytes::default());
            for segment in segments() {
                codec.press(&segment, &mut stored).unwrap();
                assert!(unpacked(how, stored.as_slice()) == segment, "{how:?}, {} bytes", segment.len());
                codec.plain(stored.as_slice(), segment.len(), &mut plain).unwrap();
                assert!(plain.as_slice() == segment, "{how:?}, {} bytes", segment.len());
                assert!(codec.plain(stored.as_slice(), segment.len() + 1, &mut plain).is_err(), "{how:?}");
                codec.press_small(&segment, &mut stored).unwrap();
                assert!(unpacked(how, stored.as_slice()) == segment, "{how:?}, {} bytes", segment.len());
            }
        }
    }

    #[test]
    fn where_the_bytes_must_be_the_same_everywhere_the_processor_has_no_say() {
        assert_eq!(Compression::gzip(true), Compression::Gzip);
        assert_eq!(Compression::gzip(false) == Compression::Gzip, cfg!(not(feature = "isal")));
        assert_eq!(Compression::gzip(false).media_type(), names::LAYER_GZIP);
    }

    #[test]
    fn what_was_compressed_before_is_not_seen_in_what_comes_after() {
        for &how in Compression::ALL {
            let (mut used, mut into) = (Codec::new(how).unwrap(), Bytes::default());
            for segment in segments() {
                used.press(&segment, &mut into).unwrap();
                let (mut fresh, mut once) = (Codec::new(how).unwrap(), Bytes::default());
                fresh.press(&segment, &mut once).unwrap();
                assert!(once.as_slice() == into.as_slice(), "{how:?}, {} bytes", segment.len());
            }
        }
    }
}
