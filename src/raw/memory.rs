//! Which pages of a process have something to say: read from `pagemap` (kernel: `admin-guide/mm/pagemap.rst`), absent ones
//! passed over.
//!
//! | mapping | what is stored |
//! |---|---|
//! | private, of no file | what is in memory or swapped out |
//! | private, of a file | the pages the process has changed; the first, if it is in memory and begins an ELF file |
//! | the same, the file has no name any more | all that the file has besides |
//! | shared, of memory or a file without a name | what that holds, whoever has it in memory |
//! | shared, of a file | nothing: the file has it |
//! | a device's | nothing: to read it may do something |

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use rustix::fs::fstatfs;

use super::files::{self, Known};
use crate::{elf, error::Result, host::Host, interrupt, procfs::map::Map, sparse};

/// Where two runs of pages are closer, what is between them is stored as well: fewer program headers than there were pages.
const GAP: u64 = 64 << 10;

/// More runs than this, and only wider gaps part them: memory in a million pieces is still told in megabytes.
const MANY: usize = 1 << 20;

/// What is read of `pagemap` at once: for 256 MiB of memory, with pages of 4 KiB.
const ENTRIES: usize = 64 << 10;

/// How much of one process's memory is looked through page by page; it takes the kernel a second for a TiB.
const MAX_LOOK: u64 = 2 << 40;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// Of a file, or shared.
const FILE: u64 = 1 << 61;

/// `TMPFS_MAGIC`, `HUGETLBFS_MAGIC` (`include/uapi/linux/magic.h`): their files are memory.
const MEMORY: [i64; 2] = [0x0102_1994, 0x9584_58f6];

/// What is stored of one mapping.
#[derive(Debug)]
pub struct Part {
    /// The mapping.
    pub map: Map,
    /// First address and the one after the last, in order.
    pub runs: Vec<(u64, u64)>,
    /// It is read from the file it maps, not from the process's memory.
    pub by_file: bool,
}

/// The memory of one process, as it is to be stored.
#[derive(Debug, Default)]
pub struct Plan {
    /// By address.
    pub parts: Vec<Part>,
    /// What is not stored that somebody may miss.
    pub notes: Vec<String>,
}

/// Looks through the memory of `pid`.
pub fn plan(host: &Host, pid: i32, maps: Vec<Map>, known: &Known) -> Result<Plan> {
    let pagemap = File::open(host.proc_of(pid, "pagemap"));
    let mut look = Look { host, pid, known, pagemap, page: page_size(), looked: 0, total: 0, plan: Plan::default() };
    for map in maps {
        interrupt::check()?;
        look.take(map)?;
    }
    if let Err(e) = &look.pagemap {
        look.plan.notes.push(format!("pagemap cannot be read ({e}): memory is stored as far as it is mapped"));
    }
    if look.looked > MAX_LOOK {
        look.plan.notes.push(format!("more than {} TiB are mapped: the rest was not looked through", MAX_LOOK >> 40));
    }
    Ok(look.plan)
}

struct Look<'a> {
    host: &'a Host,
    pid: i32,
    known: &'a Known,
    pagemap: io::Result<File>,
    page: u64,
    looked: u64,
    total: usize,
    plan: Plan,
}

/// Runs of one mapping; near ones become one.
struct Runs {
    all: Extents,
    gap: u64,
}

impl Runs {
    fn push(&mut self, start: u64, end: u64) {
        match self.all.last_mut() {
            Some(last) if start.saturating_sub(last.1) < self.gap => last.1 = last.1.max(end),
            _ if start < end => self.all.push((start, end)),
            _ => {}
        }
    }
}

impl Look<'_> {
    fn take(&mut self, map: Map) -> Result<()> {
        // What the kernel gives to all alike, and what may not be read.
        if [&b"[vvar]"[..], b"[vvar_vclock]", b"[vsyscall]"].contains(&map.path.as_slice()) {
            return Ok(());
        }
        let is_device = map.path.starts_with(b"/dev/")
            && !map.path.starts_with(b"/dev/shm/")
            && !map.path.starts_with(b"/dev/zero");
        if map.device || is_device {
            let path = map.path.escape_ascii();
            self.plan
                .notes
                .push(format!("{:x}-{:x} {path} is a device's memory, which is not read", map.start, map.end));
            self.plan.parts.push(Part { map, runs: Vec::new(), by_file: false });
            return Ok(());
        }
        let gap = GAP << (4 * (self.total / MANY)).min(40);
        let mut runs = Runs { all: Vec::new(), gap };
        let mut by_file = false;
        match (map.shared, map.inode != 0) {
            (true, true) => match self.shared(&map)? {
                Shared::Data(extents) => {
                    extents.into_iter().for_each(|(start, end)| runs.push(start, end));
                    by_file = true;
                }
                Shared::Elsewhere => {}
                Shared::Unknown => self.pages(&map, |entry| entry & (PRESENT | SWAPPED) != 0, &mut runs)?,
            },
            (false, true) => self.private_file(&map, &mut runs)?,
            (_, false) => {
                // A mapping that was never touched is not even looked at: there may be terabytes.
                if map.rss > 0 || map.swap > 0 || self.pagemap.is_err() {
                    self.pages(&map, |entry| entry & (PRESENT | SWAPPED) != 0, &mut runs)?;
                }
            }
        }
        self.total += runs.all.len();
        self.plan.parts.push(Part { map, runs: runs.all, by_file });
        Ok(())
    }

    fn private_file(&mut self, map: &Map, runs: &mut Runs) -> Result<()> {
        let begins_elf = map.offset == 0 && {
            let mem = File::open(self.host.proc_of(self.pid, "mem"));
            let mut magic = [0; 5];
            // Only if it is in memory: what is not may have to be asked of a server.
            let is_there = self.entry(map.start).is_some_and(|entry| entry & PRESENT != 0);
            is_there
                && mem.is_ok_and(|mem| mem.read_exact_at(&mut magic, map.start).is_ok())
                && elf::class(&magic).is_some()
        };
        let mut whole = Vec::new();
        if map.is_deleted() && self.known.may_read_device(map.device_id) {
            whole = self.data_of(map)?.map_or(Vec::new(), |(_, extents)| extents);
        }
        if begins_elf {
            whole.push((map.start, map.start + self.page));
        }
        let mut changed = Runs { all: Vec::new(), gap: runs.gap };
        self.pages(map, |e| e & SWAPPED != 0 || e & PRESENT != 0 && e & FILE == 0, &mut changed)?;
        whole.extend(changed.all);
        whole.sort_unstable();
        whole.into_iter().for_each(|(start, end)| runs.push(start, end));
        Ok(())
    }

    /// What a shared mapping of a file shows.
    fn shared(&mut self, map: &Map) -> Result<Shared> {
        if !self.known.may_read_device(map.device_id) {
            // Perhaps no file at all: the rings of an io_uring, the buffer of a perf event.
            return Ok(Shared::Unknown);
        }
        Ok(match self.data_of(map)? {
            Some((is_memory, extents)) if is_memory || map.is_deleted() => Shared::Data(extents),
            Some(_) => Shared::Elsewhere,
            None => Shared::Unknown,
        })
    }

    /// Where the file below a mapping has data; and whether it is memory. `None`: it cannot be opened.
    fn data_of(&self, map: &Map) -> Result<Option<(bool, Extents)>> {
        let Some(file) = open_mapped(self.host, self.pid, map) else { return Ok(None) };
        let is_memory = fstatfs(&file).is_ok_and(|fs| MEMORY.contains(&fs.f_type));
        let size = file.metadata().map_or(0, |meta| meta.size());
        let end = map.offset.saturating_add(map.len()).min(size);
        let (mut at, mut extents) = (map.offset, Runs { all: Vec::new(), gap: GAP });
        while at < end {
            interrupt::check()?;
            let data = sparse::next_data(&file, at);
            if data >= end {
                break;
            }
            at = sparse::next_hole(&file, data).min(end);
            let address = |at: u64| map.start + (at - map.offset);
            let page = self.page;
            extents.push(address(data - data % page).max(map.start), address(at.next_multiple_of(page)).min(map.end));
        }
        Ok(Some((is_memory, extents.all)))
    }

    fn entry(&self, address: u64) -> Option<u64> {
        let mut entry = [0; 8];
        self.pagemap.as_ref().ok()?.read_exact_at(&mut entry, address / self.page * 8).ok()?;
        Some(u64::from_ne_bytes(entry))
    }

    /// The runs of pages that `wanted` says yes to, by their entry.
    fn pages(&mut self, map: &Map, wanted: impl Fn(u64) -> bool, runs: &mut Runs) -> Result<()> {
        let Ok(pagemap) = &self.pagemap else {
            runs.push(map.start, map.end);
            return Ok(());
        };
        let (mut at, mut buffer) = (map.start, vec![0; ENTRIES * 8]);
        while at < map.end && self.looked <= MAX_LOOK {
            interrupt::check()?;
            let count = ((map.end - at) / self.page).min(ENTRIES as u64);
            // Fits: no more than the buffer.
            let bytes = &mut buffer[..count as usize * 8];
            let read = pagemap.read_at(bytes, at / self.page * 8).unwrap_or(0);
            let entries = bytes.get(..read).unwrap_or_default().as_chunks::<8>().0;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let entry = u64::from_ne_bytes(*entry);
                if wanted(entry) {
                    runs.push(at, at + self.page);
                }
                at += self.page;
            }
            self.looked += entries.len() as u64 * self.page;
        }
        Ok(())
    }
}

/// First addresses, and those after the last.
type Extents = Vec<(u64, u64)>;

/// What is known of a shared mapping.
enum Shared {
    /// Its file has data there, and no other place to be.
    Data(Extents),
    /// Its file has a name, and is stored with the files or not at all.
    Elsewhere,
    /// Its file cannot be opened.
    Unknown,
}

/// The file below a mapping.
pub fn open_mapped(host: &Host, pid: i32, map: &Map) -> Option<File> {
    let link = host.proc_of(pid, format!("map_files/{:x}-{:x}", map.start, map.end));
    files::regular(&link).ok().flatten().map(|(file, _)| file)
}

/// The size of a page.
pub fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(elf::core::PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::map::maps;

    fn of_ourselves(wanted: u64) -> Part {
        let pid = i32::try_from(std::process::id()).unwrap();
        let host = Host::default();
        let all = maps(&std::fs::read("/proc/self/smaps").unwrap());
        let mut known = Known::new(&host);
        known.learn(&crate::host::mounts::read(std::path::Path::new("/proc/self/mountinfo")).unwrap());
        let plan = plan(&host, pid, all, &known).unwrap();
        plan.parts.into_iter().find(|part| part.map.start <= wanted && wanted < part.map.end).unwrap()
    }

    #[test]
    fn only_what_was_touched_is_stored() {
        let mut block = vec![0_u8; 1 << 30];
        block[700 << 20] = 7;
        let touched = block.as_ptr() as u64 + (700 << 20);
        let part = of_ourselves(touched);
        assert!(part.runs.iter().any(|run| run.0 <= touched && touched < run.1));
        let stored: u64 = part.runs.iter().map(|run| run.1 - run.0).sum();
        assert!(part.map.len() >= 1 << 30 && stored < 64 << 20, "{stored}");
        assert!(!part.by_file && block[700 << 20] == 7);
    }

    #[test]
    fn near_runs_become_one() {
        let mut runs = Runs { all: Vec::new(), gap: GAP };
        for (start, end) in [(0, 4096), (8192, 12288), (12288 + GAP, 20480 + GAP), (0, 0)] {
            runs.push(start, end);
        }
        assert_eq!(runs.all, [(0, 12288), (12288 + GAP, 20480 + GAP)]);
    }
}
