//! One process's memory as a core in the tar, written in one pass.

use std::{fs::File, os::unix::fs::FileExt};

use super::{
    memory::{self, Part, Plan},
    registers::MACHINE,
    tar::Tar,
};
use crate::{
    elf::{
        self, Program,
        core::{self, Mapped, Process, Thread},
    },
    error::{At, Result},
    host::Host,
    interrupt, tally,
};

/// What is read at once.
const PIECE: u64 = 1 << 20;

/// What became of it.
#[derive(Debug, Default)]
pub struct Stored {
    /// Bytes of memory in it.
    pub bytes: u64,
    /// What is in it that is not memory.
    pub notes: Vec<String>,
}

/// Writes the member `name`. `Ok(Err)`: the memory of the process may not be read, and there is no such member.
pub fn write(
    host: &Host,
    pid: i32,
    name: &str,
    (process, threads): (&Process, &[Thread]),
    plan: &Plan,
    tar: &mut Tar,
) -> Result<std::io::Result<Stored>> {
    let mem = match File::open(host.proc_of(pid, "mem")) {
        Ok(mem) => mem,
        Err(e) => return Ok(Err(e)),
    };
    let notes = core::notes(process, threads, &mapped(plan));
    let programs = 1 + plan.parts.iter().map(segments).sum::<usize>();
    let programs = u32::try_from(programs).map_err(|e| crate::error::Error::malformed(name, e))?;
    let notes_at = core::head_len(programs.into());
    let data_at = (notes_at + notes.len() as u64).next_multiple_of(core::PAGE);
    let stored: u64 = plan.parts.iter().flat_map(|part| &part.runs).map(|run| run.1 - run.0).sum();
    let size = data_at + stored;

    tar.begin(name, size)?;
    tar.write(&core::head(MACHINE, programs))?;
    tar.write(&core::note_program(notes_at, notes.len() as u64).encode())?;
    let mut at = data_at;
    for part in &plan.parts {
        for program in programs_of(part, &mut at) {
            tar.write(&program.encode())?;
        }
    }
    tar.write(&notes)?;
    tar.skip(data_at - notes_at - notes.len() as u64)?;
    let mut copy = Copy { host, pid, mem, tar, buffer: vec![0; PIECE as usize], unreadable: 0 };
    plan.parts.iter().try_for_each(|part| copy.part(part))?;
    let unreadable = copy.unreadable;
    tar.end(size)?;
    let note = format!("{unreadable} bytes of its memory cannot be read, and are zeros in the core");
    Ok(Ok(Stored { bytes: stored, notes: (unreadable > 0).then_some(note).into_iter().collect() }))
}

fn mapped(plan: &Plan) -> Vec<Mapped<'_>> {
    let files = plan.parts.iter().map(|part| &part.map).filter(|map| map.inode != 0);
    files.map(|map| Mapped { start: map.start, end: map.end, offset: map.offset, path: &map.path }).collect()
}

/// How many program headers a part takes: one for each run, which reaches to the next, and one for what is before the first.
fn segments(part: &Part) -> usize {
    part.runs.len() + usize::from(part.runs.first().is_none_or(|first| first.0 > part.map.start))
}

fn programs_of<'p>(part: &'p Part, at: &'p mut u64) -> impl Iterator<Item = Program> + 'p {
    let map = &part.map;
    let flags = u32::from(map.execute) | u32::from(map.write) << 1 | u32::from(map.read) << 2;
    let first = part.runs.first().map_or(map.end, |run| run.0);
    let head = (first > map.start).then_some((map.start, map.start, first));
    let nexts = part.runs.iter().skip(1).map(|run| run.0).chain([map.end]);
    let runs = part.runs.iter().zip(nexts).map(|(run, next)| (run.0, run.1, next));
    head.into_iter().chain(runs).map(move |(start, stored_to, next)| {
        let program = Program {
            kind: elf::LOAD,
            flags,
            offset: *at,
            address: start,
            stored: stored_to - start,
            size: next - start,
        };
        *at += program.stored;
        program
    })
}

struct Copy<'a, 'b> {
    host: &'a Host,
    pid: i32,
    mem: File,
    tar: &'a mut Tar<'b>,
    buffer: Vec<u8>,
    unreadable: u64,
}

impl Copy<'_, '_> {
    fn part(&mut self, part: &Part) -> Result<()> {
        let file = if part.by_file { memory::open_mapped(self.host, self.pid, &part.map) } else { None };
        for &(start, end) in &part.runs {
            let mut at = start;
            while at < end {
                interrupt::check()?;
                let len = (end - at).min(PIECE);
                match &file {
                    Some(file) => self.copy_file(file, at - part.map.start + part.map.offset, len)?,
                    None => self.copy_memory(at, len)?,
                }
                at += len;
                // Fits: no more than a piece.
                tally::bytes(len as usize);
            }
        }
        Ok(())
    }

    /// The end of a file need not be the end of a page.
    fn copy_file(&mut self, file: &File, at: u64, len: u64) -> Result<()> {
        let piece = &mut self.buffer[..len as usize];
        let mut done = 0;
        while done < piece.len() {
            match file.read_at(&mut piece[done..], at + done as u64).at("read", "a file that is mapped")? {
                0 => break,
                n => done += n,
            }
        }
        piece[done..].fill(0);
        self.tar.write(piece)
    }

    fn copy_memory(&mut self, at: u64, len: u64) -> Result<()> {
        let piece = &mut self.buffer[..len as usize];
        let mut done = 0;
        while done < piece.len() {
            match self.mem.read_at(&mut piece[done..], at + done as u64) {
                Ok(n) if n > 0 => done += n,
                // A guard page, or one behind the end of its file: the next may be there.
                _ => {
                    let rest = core::PAGE as usize - done % core::PAGE as usize;
                    let end = (done + rest).min(piece.len());
                    piece[done..end].fill(0);
                    self.unreadable += (end - done) as u64;
                    done = end;
                }
            }
        }
        self.tar.write(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::map::Map;

    #[test]
    fn every_address_of_a_mapping_is_in_one_segment() {
        let map = Map { start: 0x1000, end: 0x9000, read: true, ..Map::default() };
        for (runs, right) in [
            (vec![], vec![(0x1000, 0, 0x8000)]),
            (vec![(0x1000, 0x2000)], vec![(0x1000, 0x1000, 0x8000)]),
            (
                vec![(0x2000, 0x3000), (0x7000, 0x9000)],
                vec![(0x1000, 0, 0x1000), (0x2000, 0x1000, 0x5000), (0x7000, 0x2000, 0x2000)],
            ),
        ] {
            let part = Part { map: map.clone(), runs, by_file: false };
            let mut at = 0x100;
            let all: Vec<_> = programs_of(&part, &mut at).map(|p| (p.address, p.stored, p.size)).collect();
            assert_eq!(all, right);
            assert_eq!((all.len(), at), (segments(&part), 0x100 + right.iter().map(|s| s.1).sum::<u64>()));
        }
    }
}
