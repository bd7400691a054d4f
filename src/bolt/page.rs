//! The raw layout of pages: meta, branch, leaf.
//!
//! ```text
//! page    0 id u64 │ 8 flags u16 │ 10 count u16 │ 12 overflow u32 │ 16 elements…, then data
//! meta   16 magic u32 │ 20 version u32 │ 24 page size u32 │ 28 flags u32 │ 32 root pgid u64 │ 40 sequence u64
//!        48 freelist pgid u64 │ 56 high-water pgid u64 │ 64 txid u64 │ 72 checksum u64 (FNV-1a of 16..72)
//! leaf element    flags u32 │ pos u32 │ ksize u32 │ vsize u32     pos counts from the element's own start
//! branch element  pos u32 │ ksize u32 │ pgid u64
//! ```
//! Integers have the byte order of the machine that wrote them; we read little-endian.

use crate::corrupt::Corrupt;

/// Length of a page's header, and of each element.
pub(super) const HEADER: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const META_END: usize = 80;

/// Kinds of page we walk.
pub(super) const BRANCH: u16 = 0x01;
pub(super) const LEAF: u16 = 0x02;

/// Set on a leaf element whose value is a bucket.
const BUCKET: u32 = 0x01;

fn array_at<const N: usize>(buf: &[u8], at: usize) -> Result<[u8; N], Corrupt> {
    buf.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Corrupt { at, why: "ends too soon" })
}

pub(super) fn u16_at(buf: &[u8], at: usize) -> Result<u16, Corrupt> {
    array_at(buf, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(buf: &[u8], at: usize) -> Result<u32, Corrupt> {
    array_at(buf, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(buf: &[u8], at: usize) -> Result<u64, Corrupt> {
    array_at(buf, at).map(u64::from_le_bytes)
}

/// A size or position of the file as an index; on a 32-bit machine it may not fit.
pub(super) fn index(value: impl TryInto<usize>, at: usize) -> Result<usize, Corrupt> {
    value.try_into().map_err(|_| Corrupt { at, why: "number too large for this machine" })
}

/// What a valid meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub page_size: usize,
    pub root: u64,
    /// First page that was never allocated.
    pub high_water: u64,
    pub txid: u64,
    pub checksum: u64,
}

impl Meta {
    /// Reads the meta whose page starts at `start`, with bbolt's own checks (`meta.go`, `Validate`).
    pub fn read(file: &[u8], start: usize) -> Result<Self, Corrupt> {
        let field = |offset: usize| start.checked_add(offset).ok_or(Corrupt { at: start, why: "ends too soon" });
        let magic = u32_at(file, field(16)?)?;
        if magic == MAGIC.swap_bytes() {
            return Err(Corrupt { at: start, why: "was written on a big-endian machine, which is not supported" });
        }
        if magic != MAGIC {
            return Err(Corrupt { at: start, why: "no bbolt magic in the meta page" });
        }
        if u32_at(file, field(20)?)? != VERSION {
            return Err(Corrupt { at: start, why: "unknown bbolt version (only 2 is known)" });
        }
        let checksum = u64_at(file, field(72)?)?;
        let summed = file.get(field(16)?..field(META_END - 8)?).unwrap_or_default();
        if fnv1a(summed) != checksum {
            return Err(Corrupt { at: start, why: "the meta page's checksum is wrong" });
        }
        let page_size = index(u32_at(file, field(24)?)?, start)?;
        if !page_size.is_power_of_two() || !(512..=16 << 20).contains(&page_size) {
            return Err(Corrupt { at: start, why: "the page size is no power of two in 512..16 MiB" });
        }
        let (root, high_water) = (u64_at(file, field(32)?)?, u64_at(file, field(56)?)?);
        Ok(Self { page_size, root, high_water, txid: u64_at(file, field(64)?)?, checksum })
    }
}

/// FNV-1a, 64 bits, as Go's `hash/fnv` computes it.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// One element of a leaf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf<'a> {
    pub is_bucket: bool,
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// Where the value starts in the file.
    pub at: usize,
}

/// A branch or leaf page with its overflow, or an inline leaf within a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'a> {
    bytes: &'a [u8],
    /// Where `bytes` starts in the file, for error messages.
    at: usize,
    pub flags: u16,
    pub count: usize,
}

impl<'a> Page<'a> {
    /// Page `id` of a file; its header must carry its own number (`page.go`, `FastCheck`).
    pub fn of_file(file: &'a [u8], page_size: usize, id: u64) -> Result<Self, Corrupt> {
        let at = index(id, 0)?.checked_mul(page_size).ok_or(Corrupt { at: 0, why: "page number beyond the file" })?;
        if u64_at(file, at)? != id {
            return Err(Corrupt { at, why: "the page does not carry its own number" });
        }
        let pages = index(u32_at(file, at + 12)?, at)?.checked_add(1);
        let len = pages.and_then(|n| n.checked_mul(page_size)).and_then(|len| at.checked_add(len));
        let bytes = len.and_then(|end| file.get(at..end)).ok_or(Corrupt { at, why: "the page runs past the file" })?;
        Self::parse(bytes, at)
    }

    /// The leaf page inside an inline bucket's value; `at` is its place in the file.
    pub fn inline(bytes: &'a [u8], at: usize) -> Result<Self, Corrupt> {
        let page = Self::parse(bytes, at)?;
        if page.flags == LEAF { Ok(page) } else { Err(Corrupt { at, why: "an inline bucket is no leaf page" }) }
    }

    fn parse(bytes: &'a [u8], at: usize) -> Result<Self, Corrupt> {
        let place = |e: Corrupt| Corrupt { at: at + e.at, ..e };
        let (flags, count) = (u16_at(bytes, 8).map_err(place)?, u16_at(bytes, 10).map_err(place)?);
        if flags != BRANCH && flags != LEAF {
            return Err(Corrupt { at, why: "neither a branch nor a leaf page" });
        }
        Ok(Self { bytes, at, flags, count: usize::from(count) })
    }

    fn slice(&self, from: usize, len: u32, element: usize) -> Result<&'a [u8], Corrupt> {
        let outside = Corrupt { at: self.at + element, why: "an element points outside its page" };
        let end = index(len, element)?.checked_add(from).ok_or(outside)?;
        self.bytes.get(from..end).ok_or(outside)
    }

    /// Element `i` of a leaf.
    pub fn leaf(&self, i: usize) -> Result<Leaf<'a>, Corrupt> {
        let element = HEADER + i * HEADER;
        let place = |e: Corrupt| Corrupt { at: self.at + e.at, ..e };
        let word = |offset: usize| u32_at(self.bytes, element + offset).map_err(place);
        let (flags, ksize, vsize) = (word(0)?, word(8)?, word(12)?);
        let key_at = element.saturating_add(index(word(4)?, element)?);
        let key = self.slice(key_at, ksize, element)?;
        let value_at = key_at + key.len();
        let value = self.slice(value_at, vsize, element)?;
        Ok(Leaf { is_bucket: flags & BUCKET != 0, key, value, at: self.at + value_at })
    }

    /// Element `i` of a branch: the lower bound of the child's keys, and the child's page.
    pub fn branch(&self, i: usize) -> Result<(&'a [u8], u64), Corrupt> {
        let element = HEADER + i * HEADER;
        let place = |e: Corrupt| Corrupt { at: self.at + e.at, ..e };
        let pos = u32_at(self.bytes, element).map_err(place)?;
        let ksize = u32_at(self.bytes, element + 4).map_err(place)?;
        let child = u64_at(self.bytes, element + 8).map_err(place)?;
        let key_at = element.saturating_add(index(pos, element)?);
        Ok((self.slice(key_at, ksize, element)?, child))
    }
}
