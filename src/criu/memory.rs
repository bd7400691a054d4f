//! Memory in CRIU's images: which mappings a process has, and where the bytes of a page stand.
//!
//! ```text
//! mm-<pid>.img        mappings, and where the command line and the environment are
//! pagemap-<pid>.img   head: which pages file; then runs of pages, in order of address
//! pages-<n>.img       the pages that are present, one after the other, in the order of the runs
//! ```
//! Source: CRIU `images/{mm,vma,pagemap}.proto`, `criu/include/{image,pagemap}.h`. Newer CRIUs may compress pages (`--compress`):
//! their runs have further fields, and the pages file is not as long as the runs say. Then nothing can be looked up by
//! address, which is said; what stands there is never taken for pages.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::image::{self, Kind, PagemapHead};
use crate::{corrupt::Corrupt, proto};

/// `mm_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct Mm {
    /// Where the command line begins.
    #[prost(uint64, tag = "8")]
    pub arg_start: u64,
    /// Where it ends.
    #[prost(uint64, tag = "9")]
    pub arg_end: u64,
    /// Where the environment begins.
    #[prost(uint64, tag = "10")]
    pub env_start: u64,
    /// Where it ends.
    #[prost(uint64, tag = "11")]
    pub env_end: u64,
    /// The program, a file.
    #[prost(uint32, tag = "12")]
    pub exe: u32,
}

/// The field of `mm_entry` that has a mapping.
const MAPPING: u32 = 14;

/// Calls `each` with every mapping of an `mm_entry`: a forged one may have millions.
pub fn for_each_mapping(message: &[u8], mut each: impl FnMut(Mapping)) -> Result<(), Corrupt> {
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, kind, field) = field(&mut rest)?;
        if tag == MAPPING && kind == WireType::LengthDelimited {
            let mut field = field;
            decode_varint(&mut field).map_err(malformed)?;
            each(proto::decode(field)?);
        }
    }
    Ok(())
}

fn malformed(_: prost::DecodeError) -> Corrupt {
    Corrupt { at: 0, why: "not a protobuf message" }
}

/// The next field of a message: its number, its type, and its bytes with the length before them.
fn field<'m>(rest: &mut &'m [u8]) -> Result<(u32, WireType, &'m [u8]), Corrupt> {
    let (tag, kind) = decode_key(rest).map_err(malformed)?;
    let whole = *rest;
    skip_field(kind, tag, rest, DecodeContext::default()).map_err(malformed)?;
    Ok((tag, kind, &whole[..whole.len() - rest.len()]))
}

/// `vma_entry`: what we read of it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Mapping {
    /// First address.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// The address behind.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// A file's id, where a file is mapped.
    #[prost(uint64, tag = "4")]
    pub file: u64,
    /// What may be done with it.
    #[prost(uint32, tag = "5")]
    pub protection: u32,
    /// As mmap(2) has them.
    #[prost(uint32, tag = "6")]
    pub flags: u32,
    /// What it is: CRIU's own bits.
    #[prost(uint32, tag = "7")]
    pub status: u32,
}

/// `MAP_GROWSDOWN`: only a first thread's stack has it.
const GROWS_DOWN: u32 = 0x100;

impl Mapping {
    /// How long it is; nothing if it is malformed.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True of one without any byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What kind it is, the most telling of its bits first (`criu/include/image.h`).
    pub fn kind(&self) -> &'static str {
        const KINDS: [(u32, &str); 15] = [
            (1, "stack"),
            (16, "guard"),
            (15, "shadow stack"),
            (13, "aio ring"),
            (11, "packet socket"),
            (5, "heap"),
            (3, "vdso"),
            (12, "vdso"),
            (2, "vdso"),
            (14, "memfd"),
            (10, "sysv shared memory"),
            (6, "private file"),
            (7, "shared file"),
            (8, "shared memory"),
            (9, "anonymous"),
        ];
        if self.flags & GROWS_DOWN != 0 {
            return "stack";
        }
        KINDS.iter().find(|(bit, _)| self.status >> bit & 1 != 0).map_or("other", |(_, name)| name)
    }

    /// The id of the file that is mapped.
    pub fn mapped_file(&self) -> Option<u32> {
        (self.status >> 6 & 3 != 0).then(|| u32::try_from(self.file).ok()).flatten()
    }
}

/// Which pages of a process are where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pages {
    /// The number of the pages file.
    pub file: u32,
    /// Those that are present, in the order of the file.
    runs: Vec<Run>,
    /// How many are in an image of an earlier dump.
    pub elsewhere: u64,
    /// Every field and flag is one that is known here: then, and only then, pages stand one after the other.
    pub is_plain: bool,
}

/// Pages one after the other, in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    address: u64,
    pages: u64,
    /// How many pages of the file stand before.
    before: u64,
}

/// The fields of `pagemap_entry`, and its flags: 1 in an earlier image, 2 lazy, 4 present.
const FIELDS: std::ops::RangeInclusive<u32> = 1..=5;
const FLAGS: u32 = 7;

impl Pages {
    /// Reads a `pagemap-<pid>.img`.
    pub fn read(bytes: &[u8]) -> Result<Self, Corrupt> {
        let entries = image::entries(Kind::Pagemap, bytes)?;
        let (head, entries) = entries.split_first().ok_or(Corrupt { at: 0, why: "a pagemap without its head" })?;
        let head: PagemapHead = proto::decode(head)?;
        let mut all = Self { file: head.pages_id, runs: Vec::new(), elsewhere: 0, is_plain: true };
        let mut before = 0_u64;
        for entry in entries {
            let run: image::Pagemap = proto::decode(entry)?;
            all.is_plain &= has_only(entry, &FIELDS)? && run.flags.unwrap_or(0) & !FLAGS == 0;
            let pages = run.pages_here();
            if pages > 0 {
                all.runs.push(Run { address: run.vaddr, pages, before });
                before = before.checked_add(pages).ok_or(Corrupt { at: 0, why: "more pages than there can be" })?;
            } else {
                let of_parent = run.flags.map_or(run.in_parent == Some(true), |flags| flags & 1 != 0);
                let count = run.nr_pages.unwrap_or(u64::from(run.compat_nr_pages));
                all.elsewhere = all.elsewhere.saturating_add(if of_parent { count } else { 0 });
            }
        }
        Ok(all)
    }

    /// How many pages stand in the file.
    pub fn present(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.before + run.pages)
    }

    /// Where in the pages file the byte at `address` stands, and how many follow it there without a gap.
    pub fn find(&self, address: u64, page: u64) -> Option<(u64, u64)> {
        self.runs.iter().find_map(|run| {
            let inside = address.checked_sub(run.address)?;
            let len = run.pages.checked_mul(page)?;
            let left = len.checked_sub(inside).filter(|&left| left > 0)?;
            Some((run.before.checked_mul(page)?.checked_add(inside)?, left))
        })
    }
}

/// True if a message has no fields but these.
fn has_only(message: &[u8], known: &std::ops::RangeInclusive<u32>) -> Result<bool, Corrupt> {
    let mut rest = message;
    while !rest.is_empty() {
        if !known.contains(&field(&mut rest)?.0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::image::Pagemap;

    fn run(vaddr: u64, pages: u64, flags: u32) -> Vec<u8> {
        Pagemap { vaddr, compat_nr_pages: 0, in_parent: None, flags: Some(flags), nr_pages: Some(pages) }
            .encode_to_vec()
    }

    fn pagemap(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [0x5456_4319_u32, 0x5608_4025].iter().flat_map(|magic| magic.to_le_bytes()).collect();
        let head = PagemapHead { pages_id: 3 }.encode_to_vec();
        for message in std::iter::once(&head).chain(entries) {
            bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    #[test]
    fn a_byte_is_found_where_the_runs_before_it_end() {
        let read = Pages::read(&pagemap(&[run(0x1000, 2, 4), run(0x9000, 5, 1), run(0xf000, 1, 4)])).unwrap();
        assert_eq!((read.file, read.present(), read.elsewhere, read.is_plain), (3, 3, 5, true));
        assert_eq!(read.find(0x1000, 4096), Some((0, 8192)));
        assert_eq!(read.find(0x2fff, 4096), Some((8191, 1)));
        assert_eq!(read.find(0xf010, 4096), Some((8208, 4080)));
        for nowhere in [0, 0xfff, 0x3000, 0x9000, u64::MAX] {
            assert_eq!(read.find(nowhere, 4096), None, "{nowhere:x}");
        }
    }

    /// What newer CRIUs write of compressed pages: a message in field 6, or a flag of its own.
    #[test]
    fn what_is_not_known_is_not_taken_for_pages() {
        let more = [run(0x1000, 2, 4), vec![6 << 3 | 2, 2, 8, 1]].concat();
        assert!(!Pages::read(&pagemap(&[more])).unwrap().is_plain);
        assert!(!Pages::read(&pagemap(&[run(0x1000, 2, 4 | 8)])).unwrap().is_plain);
        assert!(Pages::read(&pagemap(&[run(0, u64::MAX, 4), run(0, 2, 4)])).is_err());
    }

    #[test]
    fn mappings_are_found_among_all_fields() {
        let mapping = |start| Mapping { start, end: start + 4096, ..Mapping::default() }.encode_to_vec();
        let mut message = Mm { arg_start: 7, exe: 3, ..Mm::default() }.encode_to_vec();
        for start in [4096, 1 << 40] {
            message.extend([14 << 3 | 2, u8::try_from(mapping(start).len()).unwrap()]);
            message.extend(mapping(start));
        }
        // A field of a later version.
        message.extend([17 << 3 & 0x7f | 0x80, 1, 1]);
        let mut found = Vec::new();
        for_each_mapping(&message, |mapping| found.push(mapping.start)).unwrap();
        assert_eq!(found, [4096, 1 << 40]);
        for cut in 0..message.len() {
            let _ = for_each_mapping(&message[..cut], |_| ());
        }
    }

    #[test]
    fn a_mapping_is_what_its_bits_say() {
        let mapping = |status| Mapping { start: 1, end: 5, file: 9, status, ..Mapping::default() };
        for (status, kind, file) in [
            (1 | 1 << 9, "anonymous", None),
            (1 | 1 << 5 | 1 << 9, "heap", None),
            (1 | 1 << 6, "private file", Some(9)),
            (1 | 1 << 7, "shared file", Some(9)),
            (1 << 3, "vdso", None),
            (0, "other", None),
        ] {
            assert_eq!((mapping(status).kind(), mapping(status).mapped_file()), (kind, file));
        }
        assert_eq!(Mapping { flags: 0x122, ..mapping(1 | 1 << 9) }.kind(), "stack");
        assert_eq!(Mapping { start: 5, end: 1, ..mapping(0) }.len(), 0);
    }
}
