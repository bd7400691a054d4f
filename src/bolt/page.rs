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
/// The page that lists free pages.
pub(super) const FREELIST: u16 = 0x10;

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
    /// The page that lists free pages; all ones if none does.
    pub freelist: u64,
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
        Self::fields(file, start)
    }

    /// The one of two that counts: the valid one with the higher txid (`db.go`, `meta`).
    pub fn newest(a: Result<Self, Corrupt>, b: Result<Self, Corrupt>) -> Option<Self> {
        match (a, b) {
            (Ok(a), Ok(b)) if b.txid > a.txid => Some(b),
            (Ok(meta), _) | (Err(_), Ok(meta)) => Some(meta),
            (Err(_), Err(_)) => None,
        }
    }

    /// The fields of the meta whose page starts at `start`, whether its checksum is right or not.
    pub fn fields(file: &[u8], start: usize) -> Result<Self, Corrupt> {
        let word = |offset: usize| {
            let at = start.checked_add(offset).ok_or(Corrupt { at: start, why: "ends too soon" })?;
            u64_at(file, at)
        };
        let page_size = index(word(24)? & u64::from(u32::MAX), start)?;
        if !is_page_size(page_size) {
            return Err(Corrupt { at: start, why: "the page size is no power of two in 512..16 MiB" });
        }
        let (root, freelist, high_water) = (word(32)?, word(48)?, word(56)?);
        Ok(Self { page_size, root, freelist, high_water, txid: word(64)?, checksum: word(72)? })
    }
}

/// True for the page sizes that a bolt file may have.
pub(super) fn is_page_size(size: usize) -> bool {
    size.is_power_of_two() && (512..=16 << 20).contains(&size)
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
    pub at: usize,
    pub flags: u16,
    pub count: usize,
}

/// Where in its page an element's key and value lie; a branch's element has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    start: usize,
    value: usize,
    end: usize,
}

impl<'a> Page<'a> {
    /// Page `id` of a file; its header must carry its own number (`page.go`, `FastCheck`).
    pub fn of_file(file: &'a [u8], page_size: usize, id: u64) -> Result<Self, Corrupt> {
        let at = index(id, 0)?.checked_mul(page_size).ok_or(Corrupt { at: 0, why: "page number beyond the file" })?;
        if u64_at(file, at)? != id {
            return Err(Corrupt { at, why: "the page does not carry its own number" });
        }
        Self::at(file, page_size, at)
    }

    /// Page `id`, of which these are all bytes, those it runs on to included.
    pub fn of_run(bytes: &'a [u8], page_size: usize, id: u64) -> Result<Self, Corrupt> {
        let at = index(id, 0)?.checked_mul(page_size).ok_or(Corrupt { at: 0, why: "page number beyond the file" })?;
        if u64_at(bytes, 0) != Ok(id) {
            return Err(Corrupt { at, why: "the page does not carry its own number" });
        }
        Self::parse(bytes, at)
    }

    /// The page that starts at byte `at`, whatever number it carries.
    pub fn at(file: &'a [u8], page_size: usize, at: usize) -> Result<Self, Corrupt> {
        let pages = at.checked_add(12).map_or(Ok(0), |at| u32_at(file, at)).and_then(|n| index(n, at))?.checked_add(1);
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

    /// Bytes it takes in the file, overflow included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    fn extent(&self, i: usize) -> Result<Extent, Corrupt> {
        let element = HEADER + i * HEADER;
        let outside = Corrupt { at: self.at + element, why: "an element points outside its page" };
        let word = |offset: usize| u32_at(self.bytes, element + offset).map_err(|_| outside);
        let (pos, ksize, vsize) = match self.flags {
            BRANCH => (word(0)?, word(4)?, 0),
            _ => (word(4)?, word(8)?, word(12)?),
        };
        let add = |at: usize, len: u32| at.checked_add(index(len, element)?).ok_or(outside);
        let start = add(element, pos)?;
        let value = add(start, ksize)?;
        let end = add(value, vsize)?;
        if end <= self.bytes.len() { Ok(Extent { start, value, end }) } else { Err(outside) }
    }

    /// Element `i` of a leaf.
    pub fn leaf(&self, i: usize) -> Result<Leaf<'a>, Corrupt> {
        let Extent { start, value, end } = self.extent(i)?;
        let flags = u32_at(self.bytes, HEADER + i * HEADER)?;
        let (key, bytes) = (&self.bytes[start..value], &self.bytes[value..end]);
        Ok(Leaf { is_bucket: flags & BUCKET != 0, key, value: bytes, at: self.at + value })
    }

    /// Element `i` of a branch: the lower bound of the child's keys, and the child's page.
    pub fn branch(&self, i: usize) -> Result<(&'a [u8], u64), Corrupt> {
        let Extent { start, value, .. } = self.extent(i)?;
        Ok((&self.bytes[start..value], u64_at(self.bytes, HEADER + i * HEADER + 8)?))
    }

    /// The key of element `i`, of whatever kind the page is.
    pub fn key(&self, i: usize) -> Option<&'a [u8]> {
        let Extent { start, value, .. } = self.extent(i).ok()?;
        self.bytes.get(start..value)
    }

    /// Why this is no page as bbolt writes it: all elements' data follow one another without gap or overlap, keys
    /// are never empty and ascend (`inode.go`, `WriteInodeToPage`). A page that passes holds no more data than bytes.
    pub fn defect(&self) -> Option<Corrupt> {
        let mut end = HEADER + self.count * HEADER;
        let mut last: &[u8] = &[];
        if self.flags == BRANCH && self.count == 0 {
            return Some(Corrupt { at: self.at, why: "a branch page has no children" });
        }
        for i in 0..self.count {
            let place = self.at + HEADER + i * HEADER;
            let extent = match self.extent(i) {
                Ok(extent) => extent,
                Err(e) => return Some(e),
            };
            let key = &self.bytes[extent.start..extent.value];
            if extent.start != end {
                return Some(Corrupt { at: place, why: "an element overlaps another or leaves a gap" });
            }
            if !self.has_known_flags(i) {
                return Some(Corrupt { at: place, why: "an element has unknown flags" });
            }
            if key.is_empty() || key <= last {
                return Some(Corrupt { at: place, why: "keys are out of order" });
            }
            (end, last) = (extent.end, key);
        }
        None
    }

    fn has_known_flags(&self, i: usize) -> bool {
        self.flags == BRANCH || u32_at(self.bytes, HEADER + i * HEADER).is_ok_and(|flags| flags <= BUCKET)
    }

    /// True if element `i` of a page with defects can be believed: its data meet those of its neighbours, and its key
    /// stands in order with theirs. One wrong length shifts one boundary, one wrong position two.
    pub fn is_sound(&self, i: usize) -> bool {
        // The boundary before element n; behind the last there is nothing to meet.
        let boundary = |n: usize| match (n.checked_sub(1), self.extent(n)) {
            _ if n >= self.count => true,
            (None, Ok(first)) => first.start == HEADER + self.count * HEADER,
            (Some(before), Ok(own)) => self.extent(before).is_ok_and(|before| before.end == own.start),
            (_, Err(_)) => false,
        };
        if i >= self.count || self.extent(i).is_err() || !self.has_known_flags(i) {
            return false;
        }
        let (before, behind) = (boundary(i), boundary(i + 1));
        let moved = |n: usize| n < self.count && !boundary(n) && n + 1 < self.count && !boundary(n + 1);
        let data = match (before, behind) {
            (true, true) => true,
            (true, false) => moved(i + 1),
            (false, true) => i > 0 && (i + 1 < self.count || moved(i - 1)),
            (false, false) => false,
        };
        data && self.is_in_order(i)
    }

    fn is_in_order(&self, i: usize) -> bool {
        let key = |i: usize| self.key(i).filter(|key| !key.is_empty());
        let Some(own) = key(i) else { return false };
        let (before, behind) = (i.checked_sub(1).and_then(key), key(i + 1).filter(|_| i + 1 < self.count));
        match (before, behind) {
            (Some(a), Some(b)) => a < own && own < b || a >= b && (a < own || own < b),
            (Some(a), None) => a < own || i.checked_sub(2).and_then(key).is_some_and(|x| x >= a && x < own),
            (None, Some(b)) => own < b || key(i + 2).filter(|_| i + 2 < self.count).is_some_and(|x| x <= b && own < x),
            (None, None) => true,
        }
    }
}
