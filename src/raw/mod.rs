//! A held task as it is, without CRIU: what procfs tells of every process, an ELF core of each, and files that only a
//! process holds any more. To be looked at, not to be restored; [`crate::oci::raw`] says what lies where.
//!
//! ```text
//! registers ─ texts, cores, files without a name, network tables │ (thaw) │ hash
//!                              held                              │     running
//! ```
//! Everything is streamed into one tar in the staging. Pages that are not there are neither read nor written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

pub mod core;
pub mod files;
pub mod memory;
pub mod process;
pub mod registers;
pub mod tar;

use files::Known;
use tar::Tar;

use crate::{
    error::{Error, Result},
    freeze::{Frozen, Still},
    host::{Host, mounts},
    interrupt,
    layout::{Blob, Staging},
    oci::{
        image::Platform,
        raw::{MAX_PROCESSES, PROCESSES, Processes},
    },
    procfs::net::{self, Socket},
    sparse, tally,
};

/// What the user may ask of a raw capture.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of a file without a name, so much is saved at most, in bytes.
    pub deleted_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { deleted_max: 1 << 30 }
    }
}

/// What the README in the tar says.
const README: &str = "\
NOT RESTORABLE: this is a container's memory to be looked at. No program can start it again.

<pid>/core            ELF core: gdb -c core PROGRAM. What was never touched, and what the files have, has no bytes in it.
<pid>/maps, smaps, status, stat, cmdline, environ, auxv, limits, io, cgroup, mountinfo, …   as /proc/<pid> had them
<pid>/links           where exe, cwd, root, ns/* and fd/* point; odd bytes as \\ooo
<pid>/fdinfo/<fd>     positions and flags of open files
<pid>/task/<tid>/     comm, status, stat, wchan, syscall, stack of each thread
deleted/              files that have no name any more: <pid>-fd<n>, <pid>-exe
net/<inode>/          tables of each network namespace
processes.json        all this in short
";

/// A table of a network is read up to this length.
const MAX_TABLE: u64 = 64 << 20;

/// Sockets that are looked up for open files.
const MAX_SOCKETS: usize = 1 << 18;

/// What is read of a network namespace besides its sockets.
const NETWORK: [&str; 9] = ["sockstat", "route", "ipv6_route", "arp", "dev", "if_inet6", "fib_trie", "snmp", "netstat"];

/// A capture that lies in the staging, not hashed yet.
#[derive(Debug)]
pub struct Captured {
    file: File,
    path: PathBuf,
    size: u64,
    /// How many processes it has.
    pub processes: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// What is not in it, and ought to be.
    pub findings: Vec<String>,
}

/// Captures the held task into `staging`. After an error nothing of it is left there: it may have been for want of room.
pub fn capture(host: &Host, still: &Still, options: Options, staging: &Staging) -> Result<Captured> {
    let captured = whole(host, still, options, staging);
    if captured.is_err() {
        let _ = fs::remove_file(tar::path(staging));
    }
    captured
}

fn whole(host: &Host, still: &Still, options: Options, staging: &Staging) -> Result<Captured> {
    let Some(frozen) = still.frozen() else {
        return Err(Error::Unsupported { what: "there is no live task to capture".into(), hint: String::new() });
    };
    let pids = frozen.pids()?;
    let registers = registers::read(frozen, &process::threads(host, &pids))?;
    still.is_still()?;
    let mut capture = Capture::new(host, frozen, options, staging, registers)?;
    capture.tar.bytes("raw/README", README.as_bytes())?;
    for &pid in &pids {
        interrupt::check()?;
        process::capture(&mut capture, pid)?;
    }
    capture.finish(&pids, staging)
}

/// Hashes and syncs a capture, and makes it a blob. The container runs again.
pub fn seal(captured: &Captured, staging: &Staging) -> Result<Blob> {
    staging.take_in(&captured.file, &captured.path, captured.size)
}

/// A capture under way.
pub struct Capture<'a> {
    host: &'a Host,
    tar: Tar<'a>,
    known: Known,
    options: Options,
    registers: registers::All,
    document: Processes,
    /// What `document` may still take, in bytes.
    room: u64,
    /// Network namespaces that were read, by inode.
    networks: BTreeSet<u64>,
    sockets: BTreeMap<u64, Socket>,
    /// Files that were saved, by device and inode: the member each is.
    saved: BTreeMap<(u64, u64), String>,
    memory: u64,
    findings: Vec<String>,
}

impl<'a> Capture<'a> {
    fn new(
        host: &'a Host,
        frozen: &Frozen,
        options: Options,
        staging: &'a Staging,
        registers: registers::All,
    ) -> Result<Self> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
        let stat = fs::read_to_string(host.proc.join("stat")).unwrap_or_default();
        let boot_time = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let document = Processes {
            restorable: false,
            architecture: Platform::local().architecture,
            ticks_per_second: ticks.and_then(|ticks| ticks.try_into().ok()).unwrap_or(100),
            boot_time: boot_time.unwrap_or(0),
            init: frozen.task().init.pid,
            ..Processes::default()
        };
        Ok(Self {
            host,
            tar: Tar::new(staging)?,
            known: Known::new(host),
            options,
            registers,
            document,
            // JSON writes one byte as six at most.
            room: MAX_PROCESSES / 6,
            networks: BTreeSet::new(),
            sockets: BTreeMap::new(),
            saved: BTreeMap::new(),
            memory: 0,
            findings: Vec::new(),
        })
    }

    /// Reads the tables of the network namespace `inode` by way of process `pid`, if they were not read yet.
    fn network(&mut self, pid: i32, inode: u64) -> Result<()> {
        if !self.networks.insert(inode) {
            return Ok(());
        }
        for name in net::TABLES.iter().chain(&NETWORK) {
            let path = self.host.proc_of(pid, format!("net/{name}"));
            let mut text = Vec::new();
            let keep = |piece: &[u8]| {
                if net::TABLES.contains(name) && (text.len() + piece.len()) as u64 <= MAX_TABLE {
                    text.extend_from_slice(piece);
                }
            };
            let read = self.tar.stream(&format!("raw/net/{inode}/{name}"), &path, keep)?;
            if let Some(e) = read.err().filter(|e| e.kind() != io::ErrorKind::NotFound) {
                self.document.notes.push(format!("net/{name} of namespace {inode} could not be read: {e}"));
            }
            let room = MAX_SOCKETS.saturating_sub(self.sockets.len());
            self.sockets.extend(net::sockets(name, &text).into_iter().take(room).map(|s| (s.inode, s)));
        }
        Ok(())
    }

    /// Saves the file without a name behind a link as the member `name`, unless it is saved already or larger than was
    /// asked for. Yields the member that has it. `None`: it has a name, or is no regular file.
    fn save(&mut self, link: &Path, name: String, whose: &str) -> Result<Option<String>> {
        let (file, meta) = match files::regular(link) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(e) => {
                self.findings.push(format!("{whose} could not be saved: {e}"));
                return Ok(None);
            }
        };
        if meta.nlink() > 0 {
            return Ok(None);
        }
        if let Some(member) = self.saved.get(&(meta.dev(), meta.ino())) {
            return Ok(Some(member.clone()));
        }
        if meta.len() > self.options.deleted_max {
            let (len, max) = (meta.len(), self.options.deleted_max);
            self.findings.push(format!("{whose} has {len} bytes and was cut to {max} (--deleted-files-max)"));
        }
        let size = meta.len().min(self.options.deleted_max);
        self.tar.begin(&name, size)?;
        self.content(&file, size, whose)?;
        self.tar.end(size)?;
        self.saved.insert((meta.dev(), meta.ino()), name.clone());
        Ok(Some(name))
    }

    /// Exactly `size` bytes of a file, holes not read.
    fn content(&mut self, file: &File, size: u64, whose: &str) -> Result<()> {
        let (mut at, mut buffer) = (0, vec![0; sparse::BLOCK]);
        while at < size {
            interrupt::check()?;
            let data = sparse::next_data(file, at).min(size);
            self.tar.skip(data - at)?;
            at = data;
            let end = sparse::next_hole(file, data).min(size);
            while at < end {
                // Fits: no more than a block.
                let len = (end - at).min(buffer.len() as u64) as usize;
                match file.read_at(&mut buffer[..len], at) {
                    Ok(n) if n > 0 => {
                        self.tar.write(buffer.get(..n).unwrap_or_default())?;
                        at += n as u64;
                        tally::bytes(n);
                    }
                    result => {
                        let why = result.err().map_or("it ends".into(), |e| e.to_string());
                        self.findings.push(format!("{whose} could not be read from byte {at} on: {why}"));
                        return self.tar.skip(size - at);
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, pids: &[i32], staging: &Staging) -> Result<Captured> {
        process::mark_tree(&mut self.document);
        let bytes = serde_json::to_vec(&self.document).map_err(|e| Error::malformed(PROCESSES, e))?;
        self.tar.bytes(PROCESSES, &bytes)?;
        let (file, size) = self.tar.finish()?;
        let blind: usize =
            self.document.processes.iter().flat_map(|p| &p.threads).filter(|t| t.registers != "all").count();
        let mut notes = self.document.notes;
        notes.extend((blind > 0).then(|| {
            format!("of {blind} threads not all registers are known; raw/processes.json in the capture says why")
        }));
        let (path, processes) = (tar::path(staging), pids.len());
        Ok(Captured { file, path, size, processes, memory: self.memory, notes, findings: self.findings })
    }
}

/// A link's target in a text of lines: control characters, spaces and backslashes as `\ooo`, in octal.
fn escaped(out: &mut String, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | ' ' => octal(out, c as u8),
                c if c.is_control() => c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| octal(out, b)),
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|&b| octal(out, b));
    }
}

fn octal(out: &mut String, byte: u8) {
    // Writing into a string does not fail.
    let _ = write!(out, "\\{byte:03o}");
}

/// What is mounted for a process; nothing if that cannot be read.
fn mounts_of(host: &Host, pid: i32) -> Vec<mounts::Mount> {
    mounts::read(&host.proc_of(pid, "mountinfo")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_links_has_no_odd_byte_in_it() {
        let mut out = String::new();
        escaped(&mut out, b"/a b\\c\n\xff\xc3\xbc\x7f");
        assert_eq!(out, "/a\\040b\\134c\\012\\377ü\\177");
    }
}
