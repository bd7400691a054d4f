//! A raw capture, checked while its tar streams by: each core's headers and notes, and the document that tells of them.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use crate::{
    corrupt::Corrupt,
    elf::{self, Head, Program},
    layout::untar,
    oci::raw::{MAX_PROCESSES, PROCESSES, Processes},
};

/// Notes tell of threads and mapped files: of a million threads, some gigabytes; of what is looked at here, less.
const MAX_NOTES: u64 = 256 << 20;

/// Findings of one capture that are told.
const MAX_FINDINGS: usize = 100;

/// What is known of a capture so far.
#[derive(Default)]
pub(super) struct RawTar {
    cores: BTreeSet<String>,
    processes: Option<Vec<u8>>,
    findings: Vec<String>,
}

impl RawTar {
    pub(super) fn take(&mut self, entry: untar::Entry<'_>) -> io::Result<()> {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if !name.starts_with("raw/") {
            self.find(format!("{name} is no member of a raw capture"));
        } else if name == PROCESSES {
            if entry.size > MAX_PROCESSES {
                self.find(format!("{name} is larger than {} MiB", MAX_PROCESSES >> 20));
                return Ok(());
            }
            let mut bytes = Vec::new();
            entry.content.read_to_end(&mut bytes)?;
            self.processes = Some(bytes);
        } else if name.ends_with("/core") {
            if let Err(why) = core(entry.content, entry.size)? {
                self.find(format!("{name}: {why}"));
            }
            self.cores.insert(name);
        }
        Ok(())
    }

    fn find(&mut self, what: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(what);
        }
    }

    pub(super) fn findings(mut self) -> Vec<String> {
        let parsed = match &self.processes {
            None => Err(format!("{PROCESSES} is missing")),
            Some(bytes) => serde_json::from_slice::<Processes>(bytes).map_err(|e| format!("{PROCESSES}: {e}")),
        };
        match parsed {
            Err(why) => self.find(why),
            Ok(document) => {
                if document.restorable {
                    self.find(format!("{PROCESSES} says that it can be restored, and it cannot"));
                }
                let named: Vec<String> = document.processes.into_iter().filter_map(|p| p.core).collect();
                let missing: Vec<_> = named.into_iter().filter(|core| !self.cores.contains(core)).collect();
                missing.into_iter().for_each(|core| self.find(format!("{core} is missing")));
            }
        }
        self.findings
    }
}

/// Why a core of `len` bytes is none, if so.
fn core(content: &mut dyn Read, len: u64) -> io::Result<Result<(), Corrupt>> {
    let mut bytes = [0; elf::HEADER];
    if len < bytes.len() as u64 {
        return Ok(Err(Corrupt::new(0, "is too short to be a core")));
    }
    content.read_exact(&mut bytes)?;
    let head = match Head::parse(&bytes) {
        Ok(head) => head,
        Err(e) => return Ok(Err(e)),
    };
    if head.kind != elf::CORE {
        return Ok(Err(Corrupt::new(16, "is an ELF file of another type")));
    }
    let mut at = elf::HEADER as u64;
    let count = match head.programs() {
        Some(count) => count,
        None if len < at + elf::SECTION as u64 => return Ok(Err(Corrupt::new(0, "is too short for its sections"))),
        None => {
            let mut section = [0; elf::SECTION];
            content.read_exact(&mut section)?;
            at += section.len() as u64;
            elf::many(&section).unwrap_or(0)
        }
    };
    if head.programs_at != at || u64::from(count).saturating_mul(elf::PROGRAM as u64) > len - at {
        return Ok(Err(Corrupt::new(32, "its program headers are not where they belong")));
    }
    programs(content, at, count, len)
}

fn programs(content: &mut dyn Read, mut at: u64, count: u32, len: u64) -> io::Result<Result<(), Corrupt>> {
    let mut note = None;
    for _ in 0..count {
        let mut bytes = [0; elf::PROGRAM];
        content.read_exact(&mut bytes)?;
        let place = usize::try_from(at).unwrap_or(usize::MAX);
        let program = match Program::parse(&bytes) {
            Ok(program) => program,
            Err(e) => return Ok(Err(Corrupt::new(place, e.why))),
        };
        if let Some(why) = program.objection(len) {
            return Ok(Err(Corrupt::new(place, why)));
        }
        at += bytes.len() as u64;
        if program.kind == elf::NOTE && note.is_none() {
            note = Some(program);
        }
    }
    match note {
        // A core of ours has its notes right behind the headers; those of others are not looked at.
        Some(note) if note.offset == at && note.stored <= MAX_NOTES => {
            let mut bytes = Vec::new();
            content.take(note.stored).read_to_end(&mut bytes)?;
            Ok(elf::notes(&bytes).find_map(Result::err).map_or(Ok(()), |e| {
                Err(Corrupt::new(e.at.saturating_add(usize::try_from(at).unwrap_or(usize::MAX)), e.why))
            }))
        }
        Some(_) => Ok(Ok(())),
        None => Ok(Err(Corrupt::new(elf::HEADER, "has no notes, and so no threads"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::core as writer;

    fn sound() -> Vec<u8> {
        let process = writer::Process::default();
        let notes = writer::notes(&process, &[writer::Thread::default()], &[]);
        let at = writer::head_len(2);
        let data = at + notes.len() as u64;
        let load = Program { kind: elf::LOAD, offset: data, stored: 4096, size: 8192, ..Program::default() };
        let mut bytes = writer::head(62, 2);
        bytes.extend(writer::note_program(at, notes.len() as u64).encode());
        bytes.extend(load.encode());
        bytes.extend(notes);
        bytes.resize(bytes.len() + 4096, 7);
        bytes
    }

    fn judged(bytes: &[u8]) -> Option<&'static str> {
        core(&mut &bytes[..], bytes.len() as u64).unwrap().err().map(|e| e.why)
    }

    #[test]
    fn a_core_is_sound_only_as_long_as_all_is_within_it() {
        let sound = sound();
        assert_eq!(judged(&sound), None);
        assert_eq!(judged(&sound[..sound.len() - 1]), Some("lies beyond the end of the file"));
        assert!((0..sound.len()).step_by(7).all(|len| judged(&sound[..len]).is_some()));
        let changed = |at: usize, to: u8| {
            let mut bytes = sound.clone();
            bytes[at] = to;
            bytes
        };
        assert_eq!(judged(&changed(16, 2)), Some("is an ELF file of another type"));
        assert_eq!(judged(&changed(56, 200)), Some("its program headers are not where they belong"));
        // The length of the first note's name.
        assert_eq!(judged(&changed(64 + 2 * 56 + 2, 255)), Some("a note ends too soon"));
    }

    #[test]
    fn the_document_and_the_cores_it_names_must_be_there() {
        let take = |entries: &[(&str, Vec<u8>)]| {
            let mut raw = RawTar::default();
            for (name, content) in entries {
                let (size, mut content) = (content.len() as u64, content.as_slice());
                let entry = untar::Entry {
                    name: name.as_bytes().to_vec(),
                    kind: tar::EntryType::Regular,
                    size,
                    content: &mut content,
                };
                raw.take(entry).unwrap();
            }
            raw.findings()
        };
        let document = |restorable, core: &str| {
            let process = crate::oci::raw::Process { core: Some(core.into()), ..Default::default() };
            serde_json::to_vec(&Processes { restorable, processes: vec![process], ..Default::default() }).unwrap()
        };
        assert_eq!(take(&[("raw/7/core", sound()), (PROCESSES, document(false, "raw/7/core"))]), [""; 0]);
        assert_eq!(take(&[]), [format!("{PROCESSES} is missing")]);
        assert_eq!(take(&[(PROCESSES, document(false, "raw/8/core"))]), ["raw/8/core is missing"]);
        assert_eq!(take(&[("raw/7/core", sound()), (PROCESSES, document(true, "raw/7/core"))]).len(), 1);
        assert_eq!(take(&[("etc/passwd", Vec::new()), (PROCESSES, b"{".to_vec())]).len(), 2);
    }
}
