//! ELF files of 64 bits, little-endian: the header, program headers and notes (System V ABI, "Object Files"; elf(5)).
//!
//! ```text
//!  0 16 ident   16 2 type   18 2 machine   32 8 phoff   40 8 shoff   54 2 phentsize   56 2 phnum   58 2 shentsize   60 2 shnum
//! ```
//! A file with 65535 program headers or more says so by `phnum` 0xffff, and has the number in `info` of section header 0.

use crate::corrupt::Corrupt;

pub mod core;

/// How long the header is.
pub const HEADER: usize = 64;
/// How long a program header is.
pub const PROGRAM: usize = 56;
/// How long a section header is.
pub const SECTION: usize = 64;

/// `e_phnum` of a file whose number of program headers does not fit.
const MANY: u16 = 0xffff;

/// `ET_CORE`.
pub const CORE: u16 = 4;
/// `PT_LOAD`.
pub const LOAD: u32 = 1;
/// `PT_NOTE`.
pub const NOTE: u32 = 4;

/// The class of an ELF file, 1 for 32 bits and 2 for 64; `None` if it is none.
pub fn class(bytes: &[u8]) -> Option<u8> {
    bytes.strip_prefix(b"\x7fELF")?.first().copied().filter(|class| matches!(class, 1 | 2))
}

/// What a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// `ET_*`.
    pub kind: u16,
    /// `EM_*`.
    pub machine: u16,
    /// Where the program headers begin.
    pub programs_at: u64,
    /// Where the section headers begin; 0: there are none.
    pub sections_at: u64,
    count: u16,
}

impl Head {
    /// Reads the first [`HEADER`] bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        match bytes.get(..7) {
            Some([0x7f, b'E', b'L', b'F', 2, 1, 1]) => {}
            Some([0x7f, b'E', b'L', b'F', ..]) => return Err(Corrupt::new(4, "is no ELF of 64 bits, little-endian")),
            _ => return Err(Corrupt::new(0, "is no ELF")),
        }
        let head = Self {
            kind: u16_at(bytes, 16)?,
            machine: u16_at(bytes, 18)?,
            programs_at: u64_at(bytes, 32)?,
            sections_at: u64_at(bytes, 40)?,
            count: u16_at(bytes, 56)?,
        };
        if head.count != 0 && usize::from(u16_at(bytes, 54)?) != PROGRAM {
            return Err(Corrupt::new(54, "its program headers are of another size"));
        }
        Ok(head)
    }

    /// How many program headers there are; `None`: section header 0 says so, by [`many`].
    pub fn programs(&self) -> Option<u32> {
        (self.count != MANY).then_some(self.count.into())
    }
}

/// The number of program headers, as section header 0 has it.
pub fn many(section: &[u8]) -> Result<u32, Corrupt> {
    u32_at(section, 44)
}

/// One program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Program {
    /// `PT_*`.
    pub kind: u32,
    /// May be executed (1), written (2), read (4).
    pub flags: u32,
    /// Where its bytes lie in the file.
    pub offset: u64,
    /// Where they lay in memory.
    pub address: u64,
    /// How many bytes the file has of it.
    pub stored: u64,
    /// How many there were in memory.
    pub size: u64,
}

impl Program {
    /// Reads [`PROGRAM`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Corrupt> {
        Ok(Self {
            kind: u32_at(bytes, 0)?,
            flags: u32_at(bytes, 4)?,
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 16)?,
            stored: u64_at(bytes, 32)?,
            size: u64_at(bytes, 40)?,
        })
    }

    /// The bytes of it.
    pub fn encode(&self) -> [u8; PROGRAM] {
        let align: u64 = if self.kind == LOAD { core::PAGE } else { 4 };
        let mut bytes = [0; PROGRAM];
        let words = [self.offset, self.address, 0, self.stored, self.size, align];
        let head = [self.kind.to_le_bytes(), self.flags.to_le_bytes()].concat();
        let all = head.into_iter().chain(words.into_iter().flat_map(u64::to_le_bytes));
        bytes.iter_mut().zip(all).for_each(|(byte, new)| *byte = new);
        bytes
    }

    /// Why it cannot be one of a file of `len` bytes.
    pub fn objection(&self, len: u64) -> Option<&'static str> {
        match self.offset.checked_add(self.stored) {
            Some(end) if end > len && self.stored > 0 => Some("lies beyond the end of the file"),
            None => Some("lies beyond the end of the file"),
            _ if self.kind == LOAD && self.stored > self.size => Some("has more bytes in the file than in memory"),
            _ if self.address.checked_add(self.size).is_none() => Some("lies beyond the end of memory"),
            _ => None,
        }
    }
}

/// One note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'a> {
    /// Whose it is, without its final zero: `CORE`.
    pub name: &'a [u8],
    /// `NT_*`.
    pub kind: u32,
    /// What it says.
    pub content: &'a [u8],
}

/// The notes of a segment, up to the first that is cut.
pub fn notes(bytes: &[u8]) -> impl Iterator<Item = Result<Note<'_>, Corrupt>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let note = note(bytes, at);
        at = note.as_ref().map_or(bytes.len(), |(_, next)| *next);
        Some(note.map(|(note, _)| note))
    })
}

fn note(bytes: &[u8], at: usize) -> Result<(Note<'_>, usize), Corrupt> {
    let cut = Corrupt::new(at, "a note ends too soon");
    let (name, content) = (u32_at(bytes, at)? as usize, u32_at(bytes, at + 4)? as usize);
    let name_at = at + 12;
    let name_end = name_at.checked_add(name).ok_or(cut)?;
    let content_at = name_end.checked_next_multiple_of(4).ok_or(cut)?;
    let content_end = content_at.checked_add(content).ok_or(cut)?;
    let name = bytes.get(name_at..name_end).ok_or(cut)?;
    let note = Note {
        name: name.strip_suffix(b"\0").unwrap_or(name),
        kind: u32_at(bytes, at + 8)?,
        content: bytes.get(content_at..content_end).ok_or(cut)?,
    };
    Ok((note, content_end.checked_next_multiple_of(4).ok_or(cut)?))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Corrupt> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Corrupt::new(at, "ends too soon"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Corrupt> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Corrupt> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Corrupt> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_program_is_read() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let head = Head::parse(&bytes).unwrap();
        assert!(matches!(head.kind, 2 | 3) && class(&bytes) == Some(2));
        let at = usize::try_from(head.programs_at).unwrap();
        let count = head.programs().unwrap() as usize;
        let all: Vec<_> = bytes[at..].chunks(PROGRAM).take(count).map(|chunk| Program::parse(chunk).unwrap()).collect();
        assert!(all.iter().any(|program| program.kind == LOAD && program.flags & 1 != 0));
        assert!(all.iter().all(|program| program.objection(bytes.len() as u64).is_none()));
        assert_eq!(all[0].objection(10).is_some(), all[0].offset + all[0].stored > 10);
        for program in all.iter().filter(|program| program.kind == NOTE) {
            let (from, len) = (program.offset as usize, program.stored as usize);
            assert!(notes(&bytes[from..from + len]).all(|note| note.is_ok_and(|note| note.name == b"GNU")));
        }
    }

    #[test]
    fn what_is_no_elf_or_cut_is_refused() {
        assert_eq!(Head::parse(b"#!/bin/sh").unwrap_err().why, "is no ELF");
        assert_eq!(Head::parse(b"\x7fELF\x01\x01\x01").unwrap_err().at, 4);
        assert!(Head::parse(b"\x7fELF\x02\x01\x01").is_err() && class(b"\x7fELF\x03").is_none());
        assert!(Program::parse(&[0; PROGRAM - 20]).is_err());
        let wild = Program { kind: LOAD, offset: u64::MAX, stored: 2, ..Program::default() };
        assert!(wild.objection(u64::MAX).is_some());
        assert!(Program { kind: LOAD, stored: 2, size: 1, ..Program::default() }.objection(9).is_some());
        let all: Vec<_> = notes(&[1, 0, 0, 0, 255, 255, 255, 255, 1, 0, 0, 0, 0]).collect();
        assert!(matches!(all.as_slice(), [Err(_)]));
    }
}
