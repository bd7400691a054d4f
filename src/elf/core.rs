//! Core files, as the kernel writes them for gdb (`fs/binfmt_elf.c`, `include/linux/elfcore.h`), of 64-bit machines.
//!
//! ```text
//! header │ section header 0, if there are many program headers │ PT_NOTE, PT_LOAD … │ notes │ to the next page │ memory …
//! notes of the first thread: PRSTATUS PRPSINFO AUXV FILE FPREGSET     of each further: PRSTATUS FPREGSET
//! ```
//! Section header 0 stands in front, so that a reader of a stream knows how many program headers follow.

use super::{CORE, HEADER, MANY, NOTE, PROGRAM, Program, SECTION};

/// What memory is counted in, in the file: of a machine with larger pages it is a part of one.
pub const PAGE: u64 = 4096;

/// `NT_PRSTATUS`: a thread's state and general registers.
pub const PRSTATUS: u32 = 1;
/// `NT_FPREGSET`: its floating point registers.
pub const FPREGSET: u32 = 2;
/// `NT_PRPSINFO`: the process.
pub const PRPSINFO: u32 = 3;
/// `NT_AUXV`: what the kernel told it at the start.
pub const AUXV: u32 = 6;
/// `NT_FILE`: which files are mapped where.
pub const FILE: u32 = 0x4649_4c45;

/// One thread.
#[derive(Debug, Clone, Default)]
pub struct Thread {
    /// Its id.
    pub tid: i32,
    /// Signals waiting for it, and those it blocks.
    pub signals: (u64, u64),
    /// Its general registers, as the kernel has them (`NT_PRSTATUS`).
    pub general: Vec<u8>,
    /// Its floating point registers; empty: not known.
    pub float: Vec<u8>,
}

/// What is said of the process.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent's.
    pub ppid: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// One letter.
    pub state: u8,
    /// How nice it is.
    pub nice: i64,
    /// The kernel's flags.
    pub flags: u64,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Processor time, in microseconds: user, system, children's user, children's system.
    pub times: [u64; 4],
    /// The command's name.
    pub name: Vec<u8>,
    /// The command line, its words parted by spaces.
    pub args: Vec<u8>,
    /// `/proc/<pid>/auxv`.
    pub auxv: Vec<u8>,
}

/// A file that is mapped.
#[derive(Debug, Clone)]
pub struct Mapped<'a> {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Its path.
    pub path: &'a [u8],
}

/// All notes of a core.
pub fn notes(process: &Process, threads: &[Thread], files: &[Mapped<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, thread) in threads.iter().enumerate() {
        note(&mut out, PRSTATUS, &prstatus(process, thread));
        if n == 0 {
            about(&mut out, process, files);
        }
        if !thread.float.is_empty() {
            note(&mut out, FPREGSET, &thread.float);
        }
    }
    if threads.is_empty() {
        about(&mut out, process, files);
    }
    out
}

fn about(out: &mut Vec<u8>, process: &Process, files: &[Mapped<'_>]) {
    note(out, PRPSINFO, &prpsinfo(process));
    note(out, AUXV, &process.auxv);
    if !files.is_empty() {
        note(out, FILE, &file(files));
    }
}

fn note(out: &mut Vec<u8>, kind: u32, content: &[u8]) {
    let name = b"CORE\0";
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend([len(name), len(content), kind.to_le_bytes()].concat());
    for part in [name, content] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// `struct elf_prstatus`: signals, ids and times, then the registers, and whether there are those of floating point.
fn prstatus(process: &Process, thread: &Thread) -> Vec<u8> {
    // si_signo, si_code, si_errno, cursig.
    let mut out = vec![0; 16];
    out.extend([thread.signals.0, thread.signals.1].into_iter().flat_map(u64::to_le_bytes));
    out.extend([thread.tid, process.ppid, process.group, process.session].into_iter().flat_map(i32::to_le_bytes));
    out.extend(process.times.iter().flat_map(|time| [time / 1_000_000, time % 1_000_000]).flat_map(u64::to_le_bytes));
    out.extend_from_slice(&thread.general);
    out.extend(i32::from(!thread.float.is_empty()).to_le_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// `struct elf_prpsinfo`.
fn prpsinfo(process: &Process) -> Vec<u8> {
    let state = b"RSDTZW".iter().position(|&letter| letter == process.state).unwrap_or(6);
    // Below 7, so it fits.
    let mut out = vec![state as u8, process.state, u8::from(process.state == b'Z'), process.nice.to_le_bytes()[0]];
    out.resize(8, 0);
    out.extend(process.flags.to_le_bytes());
    out.extend([process.uid, process.gid].into_iter().flat_map(u32::to_le_bytes));
    out.extend([process.pid, process.ppid, process.group, process.session].into_iter().flat_map(i32::to_le_bytes));
    for (text, room) in [(&process.name, 16), (&process.args, 80)] {
        let end = out.len() + room;
        // The last byte stays zero: both are strings.
        out.extend(text.iter().take(room - 1));
        out.resize(end, 0);
    }
    out
}

/// `fill_files_note`: how many, the unit of offsets, a row for each, then the names.
fn file(files: &[Mapped<'_>]) -> Vec<u8> {
    let rows = files.iter().flat_map(|file| [file.start, file.end, file.offset / PAGE]);
    let head = [files.len() as u64, PAGE];
    let mut out: Vec<u8> = head.into_iter().chain(rows).flat_map(u64::to_le_bytes).collect();
    for file in files {
        out.extend(file.path.iter().filter(|&&byte| byte != 0));
        out.push(0);
    }
    out
}

/// How long the part before the notes is, for so many program headers.
pub fn head_len(programs: u64) -> u64 {
    let section = if programs >= MANY.into() { SECTION } else { 0 };
    (HEADER + section) as u64 + programs * PROGRAM as u64
}

/// The header of a core, and section header 0 if it takes one; the program headers follow.
pub fn head(machine: u16, programs: u32) -> Vec<u8> {
    let is_many = programs >= MANY.into();
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([CORE.to_le_bytes(), machine.to_le_bytes()].concat());
    out.extend(1_u32.to_le_bytes());
    let programs_at = (HEADER + if is_many { SECTION } else { 0 }) as u64;
    let sections_at = if is_many { HEADER as u64 } else { 0 };
    out.extend([0, programs_at, sections_at].into_iter().flat_map(u64::to_le_bytes));
    out.extend(0_u32.to_le_bytes());
    let count = u16::try_from(programs).unwrap_or(MANY);
    let section = if is_many { SECTION as u16 } else { 0 };
    let shorts = [HEADER as u16, PROGRAM as u16, count, section, u16::from(is_many), 0];
    out.extend(shorts.into_iter().flat_map(u16::to_le_bytes));
    if is_many {
        let mut section = [0; SECTION];
        section.iter_mut().skip(44).zip(programs.to_le_bytes()).for_each(|(byte, new)| *byte = new);
        out.extend(section);
    }
    out
}

/// The program header of the notes.
pub fn note_program(offset: u64, len: u64) -> Program {
    Program { kind: NOTE, offset, stored: len, ..Program::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::{self, Head};

    #[test]
    fn the_notes_are_of_the_kernels_sizes() {
        let process = Process { name: b"a name that is too long".to_vec(), pid: 7, ..Process::default() };
        let thread = Thread { tid: 8, general: vec![1; 216], float: vec![2; 512], ..Thread::default() };
        let file = Mapped { start: 0x1000, end: 0x2000, offset: 0x3000, path: b"/x" };
        let bytes = notes(&process, &[thread.clone(), thread], &[file]);
        let all: Vec<_> = elf::notes(&bytes).map(|note| (note.unwrap().kind, note.unwrap().content.len())).collect();
        // What `readelf -n` shows of the kernel's own, x86_64.
        let [status, info, float] = [(PRSTATUS, 336), (PRPSINFO, 136), (FPREGSET, 512)];
        assert_eq!(all, [status, info, (AUXV, 0), (FILE, 43), float, status, float]);
    }

    #[test]
    fn more_headers_than_a_field_can_count_stand_in_a_section() {
        for (count, len) in
            [(3, 64 + 3 * 56), (65534, 64 + 65534 * 56), (65535, 128 + 65535 * 56), (100_000, 128 + 5_600_000)]
        {
            assert_eq!(head_len(count.into()), len);
            let bytes = head(62, count);
            let head = Head::parse(&bytes).unwrap();
            assert_eq!((head.kind, head.machine, head.programs_at), (CORE, 62, bytes.len() as u64));
            assert_eq!(head.programs().unwrap_or_else(|| elf::many(&bytes[64..]).unwrap()), count);
        }
        let program = Program { kind: 1, flags: 5, offset: 1, address: 2, stored: 3, size: 4 };
        assert_eq!(Program::parse(&program.encode()).unwrap(), program);
    }
}
