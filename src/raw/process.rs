//! One held process: its texts, its open files, its core.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
};

use super::{
    Capture, core, escaped, memory, mounts_of,
    registers::{self, MACHINE},
};
use crate::{
    elf::core as elf,
    error::Result,
    host::Host,
    interrupt,
    name::AnyText,
    oci::raw::{Memory, OpenFile, Process, Processes, Thread},
    procfs::{
        map::{Map, Maps},
        process::{Descriptor, Stat, Status, pointers},
    },
};

/// Texts of a process, under their own names.
const TEXTS: [&str; 17] = [
    "maps",
    "status",
    "stat",
    "statm",
    "cmdline",
    "environ",
    "auxv",
    "limits",
    "io",
    "cgroup",
    "mountinfo",
    "oom_score_adj",
    "uid_map",
    "gid_map",
    "sessionid",
    "loginuid",
    "timers",
];

/// Texts of a thread.
const THREAD: [&str; 6] = ["comm", "status", "stat", "wchan", "syscall", "stack"];

/// What of a text is looked at here.
const MAX_KEPT: usize = 1 << 20;

/// A thread of the kernel that works for a process, and is shown among its own (`include/linux/sched.h`, `PF_IO_WORKER`,
/// `PF_USER_WORKER`): it has no registers of user space.
const WORKER: u64 = 0x10 | 0x4000;

/// The numbers of a directory's entries, in order.
fn numbers<T: std::str::FromStr + Ord>(host: &Host, pid: i32, dir: &str) -> Vec<T> {
    let entries = fs::read_dir(host.proc_of(pid, dir)).into_iter().flatten().flatten();
    let mut all: Vec<T> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// All threads of these processes that have registers.
pub fn threads(host: &Host, pids: &[i32]) -> Vec<i32> {
    let all = pids.iter().flat_map(|&pid| numbers::<i32>(host, pid, "task").into_iter().map(move |tid| (pid, tid)));
    let is_worker = |(pid, tid): &(i32, i32)| {
        let text = fs::read(host.proc_of(*pid, format!("task/{tid}/stat"))).unwrap_or_default();
        Stat::parse(&text).is_some_and(|stat| stat.flags & WORKER != 0 || stat.state == b'Z')
    };
    all.filter(|thread| !is_worker(thread)).map(|(_, tid)| tid).collect()
}

/// Says of each process whether it descends from the first.
pub fn mark_tree(document: &mut Processes) {
    let mut tree = BTreeSet::from([document.init]);
    loop {
        let before = tree.len();
        tree.extend(document.processes.iter().filter(|p| tree.contains(&p.ppid)).map(|p| p.pid).collect::<Vec<_>>());
        if tree.len() == before {
            break;
        }
    }
    document.processes.iter_mut().for_each(|process| process.in_tree = tree.contains(&process.pid));
}

/// Captures one process.
pub fn capture(capture: &mut Capture, pid: i32) -> Result<()> {
    let mut one = One { capture, pid, process: Process { pid, ..Process::default() }, links: String::new() };
    let texts = one.texts()?;
    let (status, stat) = (Status::parse(texts.of("status")), Stat::parse(texts.of("stat")).unwrap_or_default());
    let maps = one.smaps()?;
    one.about(&status, &stat, &texts);
    one.namespaces()?;
    one.capture.known.learn(&mounts_of(one.capture.host, pid));
    let known_threads = one.threads()?;
    one.places(&maps)?;
    one.files()?;
    let links = std::mem::take(&mut one.links);
    one.capture.tar.bytes(&format!("raw/{pid}/links"), links.as_bytes())?;
    one.core(maps, &about_core(pid, &status, &stat, &texts), &known_threads)?;
    let One { capture, process, .. } = one;
    capture.document.processes.push(process);
    Ok(())
}

/// The texts that are looked at.
#[derive(Default)]
struct Texts(BTreeMap<&'static str, Vec<u8>>);

impl Texts {
    fn of(&self, name: &str) -> &[u8] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn words(&self, name: &str) -> Vec<&[u8]> {
        let text = self.of(name);
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        if text.is_empty() { Vec::new() } else { text.split(|&b| b == 0).collect() }
    }
}

fn about_core(pid: i32, status: &Status, stat: &Stat, texts: &Texts) -> elf::Process {
    let times = stat.times.map(|ticks| ticks.saturating_mul(10_000));
    elf::Process {
        pid,
        ppid: stat.ppid,
        group: stat.group,
        session: stat.session,
        state: stat.state,
        nice: stat.nice,
        flags: stat.flags,
        uid: status.uids.first().copied().unwrap_or(0),
        gid: status.gids.first().copied().unwrap_or(0),
        times,
        name: texts.of("comm").trim_ascii_end().to_vec(),
        args: texts.words("cmdline").join(&b' '),
        auxv: texts.of("auxv").to_vec(),
    }
}

/// One process under way.
struct One<'c, 'a> {
    capture: &'c mut Capture<'a>,
    pid: i32,
    process: Process,
    links: String,
}

impl One<'_, '_> {
    /// A text into the tar, under its own name; yields its beginning.
    fn text(&mut self, name: &str) -> Result<Vec<u8>> {
        let (path, member) = (self.capture.host.proc_of(self.pid, name), format!("raw/{}/{name}", self.pid));
        let mut kept = Vec::new();
        let keep = |piece: &[u8]| {
            let room = MAX_KEPT.saturating_sub(kept.len());
            kept.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        };
        let read = self.capture.tar.stream(&member, &path, keep)?;
        if let Err(e) = read {
            self.missing(name, &e);
        }
        Ok(kept)
    }

    /// Not every kernel has every file, and a process that has ended has few.
    fn missing(&mut self, name: &str, e: &io::Error) {
        let is_gone = e.raw_os_error() == Some(nix::libc::ESRCH) || e.kind() == io::ErrorKind::NotFound;
        if !is_gone && self.process.notes.len() < 100 {
            self.process.notes.push(format!("{name} could not be read: {e}"));
        }
    }

    fn texts(&mut self) -> Result<Texts> {
        let mut texts = Texts::default();
        for name in TEXTS.into_iter().chain(["comm"]) {
            texts.0.insert(name, self.text(name)?);
        }
        Ok(texts)
    }

    fn smaps(&mut self) -> Result<Vec<Map>> {
        let (path, member) = (self.capture.host.proc_of(self.pid, "smaps"), format!("raw/{}/smaps", self.pid));
        let mut maps = Maps::default();
        let read = self.capture.tar.stream(&member, &path, |piece| maps.push(piece))?;
        if let Err(e) = read {
            self.missing("smaps", &e);
        }
        Ok(maps.finish())
    }

    fn about(&mut self, status: &Status, stat: &Stat, texts: &Texts) {
        let cmdline = texts.words("cmdline").into_iter().map(|word| AnyText::from(word.to_vec())).collect();
        let process = &mut self.process;
        process.ppid = stat.ppid;
        process.pids.clone_from(&status.pids);
        process.comm = AnyText::from(texts.of("comm").trim_ascii_end().to_vec());
        process.cmdline = cmdline;
        process.uids.clone_from(&status.uids);
        process.gids.clone_from(&status.gids);
        process.state.clone_from(&status.state);
        process.started_ticks = stat.started;
        process.tracer = status.tracer;
        let used = texts.of("cmdline").len() as u64;
        self.capture.room = self.capture.room.saturating_sub(used + 1024);
        if status.state == "Z" {
            process.notes.push("it has ended, and its parent has not asked for it: it has no memory any more".into());
        }
    }

    fn link(&mut self, name: &str) -> Option<Vec<u8>> {
        let target = fs::read_link(self.capture.host.proc_of(self.pid, name)).ok()?.into_os_string().into_vec();
        self.links.push_str(name);
        self.links.push_str(" -> ");
        escaped(&mut self.links, &target);
        self.links.push('\n');
        Some(target)
    }

    fn namespaces(&mut self) -> Result<()> {
        let entries = fs::read_dir(self.capture.host.proc_of(self.pid, "ns")).into_iter().flatten().flatten();
        let names: BTreeSet<OsString> = entries.map(|entry| entry.file_name()).collect();
        for name in names {
            let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
            let target = self.link(&format!("ns/{name}")).unwrap_or_default();
            // `net:[4026531840]`
            let inode = String::from_utf8_lossy(&target);
            let inode = inode.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                self.process.namespaces.insert(name, inode);
            }
        }
        match self.process.namespaces.get("net").copied() {
            Some(inode) => self.capture.network(self.pid, inode),
            None => Ok(()),
        }
    }

    /// Each thread's texts; and its registers, as far as they are known.
    fn threads(&mut self) -> Result<Vec<elf::Thread>> {
        let mut known = Vec::new();
        for tid in numbers::<i32>(self.capture.host, self.pid, "task") {
            interrupt::check()?;
            let mut texts = Texts::default();
            for name in THREAD {
                let text = self.text(&format!("task/{tid}/{name}"))?;
                texts.0.insert(name, text);
            }
            let status = Status::parse(texts.of("status"));
            let (registers, how, why) = self.registers(tid, &status, &texts);
            let comm = AnyText::from(texts.of("comm").trim_ascii_end().to_vec());
            self.capture.room = self.capture.room.saturating_sub(256);
            self.process.threads.push(Thread { tid, comm, state: status.state, registers: how.into(), why });
            known.extend(registers.map(|registers| elf::Thread {
                tid,
                signals: (status.pending, status.blocked),
                general: registers.general,
                float: registers.float,
            }));
        }
        // gdb shows the first thread first, and that is the process's own.
        known.sort_by_key(|thread| thread.tid != self.pid);
        Ok(known)
    }

    fn registers(
        &mut self,
        tid: i32,
        status: &Status,
        texts: &Texts,
    ) -> (Option<registers::Registers>, &'static str, String) {
        let why = match self.capture.registers.remove(&tid) {
            Some(Ok(registers)) => return (Some(registers), "all", String::new()),
            Some(Err(_)) if status.tracer != 0 => format!("traced by pid {}", status.tracer),
            Some(Err(why)) => why,
            None => return (None, "none", "it has none: it ended, or works for the kernel".into()),
        };
        match pointers(texts.of("syscall")) {
            Some((sp, pc)) => {
                let general = registers::of_pointers(sp, pc);
                (Some(registers::Registers { general, float: Vec::new() }), "pointers", why)
            }
            None => (None, "none", why),
        }
    }

    /// Program, working directory and root.
    fn places(&mut self, maps: &[Map]) -> Result<()> {
        let text = |target: Option<Vec<u8>>| target.map(AnyText::from);
        let exe = self.link("exe");
        (self.process.cwd, self.process.root) = (text(self.link("cwd")), text(self.link("root")));
        if let Some(target) = &exe
            && target.ends_with(b" (deleted)")
        {
            let device = maps.iter().find(|map| map.path == *target).map(|map| map.device_id);
            let whose = format!("the program of process {}, which has no name any more,", self.pid);
            if device.is_some_and(|device| self.capture.known.may_read_device(device)) {
                let link = self.capture.host.proc_of(self.pid, "exe");
                self.process.exe_saved = self.capture.save(&link, format!("raw/deleted/{}-exe", self.pid), &whose)?;
                self.process.exe_deleted = self.process.exe_saved.is_some();
            } else {
                self.process.exe_deleted = true;
                self.capture
                    .findings
                    .push(format!("{whose} was not saved: its file system may wait for the container"));
            }
        }
        self.process.exe = text(exe);
        Ok(())
    }

    fn files(&mut self) -> Result<()> {
        for fd in numbers::<u32>(self.capture.host, self.pid, "fd") {
            interrupt::check()?;
            let info = self.text(&format!("fdinfo/{fd}"))?;
            let Some(target) = self.link(&format!("fd/{fd}")) else { continue };
            let Descriptor { position, flags, mount } = Descriptor::parse(&info);
            let (deleted, saved) = self.nameless(fd, &target, mount)?;
            let inode = target.strip_prefix(b"socket:[").and_then(|rest| rest.strip_suffix(b"]"));
            let inode = inode.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u64>().ok());
            let socket = inode.and_then(|inode| self.capture.sockets.get(&inode)).cloned();
            let cost = 256 + target.len() as u64 + if socket.is_some() { 512 } else { 0 };
            if self.capture.room < cost {
                self.process.files_unlisted += 1;
                continue;
            }
            self.capture.room -= cost;
            let flags = flags.map(|flags| format!("{flags:07o}"));
            self.process.files.push(OpenFile { fd, target: target.into(), flags, position, deleted, saved, socket });
        }
        Ok(())
    }

    /// If the file behind a descriptor has no name any more: true, and where it was saved.
    fn nameless(&mut self, fd: u32, target: &[u8], mount: Option<u64>) -> Result<(bool, Option<String>)> {
        if !target.ends_with(b" (deleted)") {
            return Ok((false, None));
        }
        let name = target.escape_ascii();
        let whose = format!("{name}, descriptor {fd} of process {},", self.pid);
        if !mount.is_some_and(|id| self.capture.known.may_read_mount(id)) {
            self.capture.findings.push(format!("{whose} was not saved: its file system may wait for the container"));
            return Ok((true, None));
        }
        let link = self.capture.host.proc_of(self.pid, format!("fd/{fd}"));
        let saved = self.capture.save(&link, format!("raw/deleted/{}-fd{fd}", self.pid), &whose)?;
        Ok((saved.is_some(), saved))
    }

    fn core(&mut self, maps: Vec<Map>, about: &elf::Process, threads: &[elf::Thread]) -> Result<()> {
        let sum = |of: fn(&Map) -> u64| maps.iter().fold(0, |sum: u64, map| sum.saturating_add(of(map)));
        let mut memory = Memory {
            mappings: maps.len() as u64,
            size: sum(Map::len),
            resident: sum(|map| map.rss),
            swapped: sum(|map| map.swap),
            stored: 0,
        };
        if maps.is_empty() || MACHINE == 0 {
            self.process.memory = memory;
            return Ok(());
        }
        let host = self.capture.host;
        let plan = memory::plan(host, self.pid, maps, &self.capture.known)?;
        let name = format!("raw/{}/core", self.pid);
        match core::write(host, self.pid, &name, (about, threads), &plan, &mut self.capture.tar)? {
            Ok(stored) => {
                memory.stored = stored.bytes;
                self.capture.memory += stored.bytes;
                self.process.notes.extend(plan.notes.into_iter().take(100).chain(stored.notes));
                self.process.core = Some(name);
            }
            Err(e) => {
                let (pid, comm) = (self.pid, &self.process.comm.text);
                self.capture.findings.push(format!("the memory of process {pid} ({comm}) could not be read: {e}"));
            }
        }
        self.process.memory = memory;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_started_from_outside_is_no_descendant() {
        let process = |pid, ppid| Process { pid, ppid, ..Process::default() };
        let processes = vec![process(3, 9), process(4, 3), process(7, 1), process(9, 5), process(5, 2)];
        let mut document = Processes { init: 5, processes, ..Processes::default() };
        mark_tree(&mut document);
        let inside: Vec<_> = document.processes.iter().filter(|p| p.in_tree).map(|p| p.pid).collect();
        assert_eq!(inside, [3, 4, 9, 5]);
    }
}
