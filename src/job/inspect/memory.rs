//! The processes in a CRIU tar: each image that is asked for is read where it stands, and of the pages those alone that hold
//! command lines and environments.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    os::unix::fs::FileExt,
};

use prost::Message;

use super::process::{Mapped, OpenFile, Process, Processes, Socket, words};
use crate::{
    criu::{
        files::{self, Descriptor, Fs, Ids, Remap},
        image::{self, Core, Kind},
        memory::{Mm, Pages, for_each_mapping},
    },
    error::{At, Error, Result},
    interrupt,
    layout::{Layout, untar},
    name::AnyText,
    oci::image::Descriptor as Member,
    procfs::net,
    proto,
};

/// An image of metadata larger than this is not CRIU's.
const MAX_IMAGE: u64 = 16 << 20;

/// A container's files, and one process's, that are remembered: thousands are usual.
const MAX_FILES: usize = 200_000;

/// So many processes are told.
const MAX_PROCESSES: usize = 100_000;

/// All descriptors that are listed.
const MAX_LISTED: usize = 400_000;

/// What is told of a command line or an environment; Linux itself allows more, programs rarely use it.
const MAX_WORDS: u64 = 256 << 10;

/// So many members of a tar are remembered; each process has some ten.
const MAX_MEMBERS: usize = 1 << 20;

/// Reads the processes in the CRIU tar `member`; environments only if they are asked for.
pub fn processes(layout: &Layout, member: &Member, environment: bool) -> Result<Processes> {
    let path = layout.blob_path(&member.digest);
    let mut images = Images { file: layout.open_blob(&member.digest)?, members: HashMap::new(), path };
    if images.is_compressed()? {
        let notes = vec!["the tar of CRIU's images is compressed: no part of it can be looked up".into()];
        return Ok(Processes { source: "criu", processes: Vec::new(), notes });
    }
    let mut unlisted = 0_u64;
    untar::members(&images.path.clone(), |entry, at| {
        match images.members.len() {
            MAX_MEMBERS.. => unlisted += 1,
            _ => drop(images.members.insert(entry.name, (at, entry.size))),
        }
        Ok(())
    })?;
    let mut notes = Vec::new();
    if unlisted > 0 {
        notes.push(format!("{unlisted} images are not read: no dump has so many"));
    }
    let known = Known::read(&images, &mut notes);
    let mut tree: Vec<image::Process> = images.messages(Kind::Pstree, "pstree.img", usize::MAX)?;
    if tree.len() > MAX_PROCESSES {
        notes.push(format!("of {} processes only {MAX_PROCESSES} are told", tree.len()));
        tree.truncate(MAX_PROCESSES);
    }
    let mut reader =
        Reader { images: &images, known, environment, listed: 0, told: HashSet::new(), tables: HashMap::new() };
    let processes = tree.into_iter().map(|one| {
        interrupt::check()?;
        Ok(reader.process(one))
    });
    let processes = processes.collect::<Result<_>>()?;
    Ok(Processes { source: "criu", processes, notes })
}

/// The images in a tar, by name.
struct Images {
    path: std::path::PathBuf,
    file: File,
    members: HashMap<Vec<u8>, (u64, u64)>,
}

impl Images {
    /// By its first bytes, gzip or zstd.
    fn is_compressed(&self) -> Result<bool> {
        let mut head = [0; 4];
        let got = self.file.read_at(&mut head, 0).at("read", &self.path)?;
        Ok(matches!(head.get(..got), Some([0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])))
    }

    /// The first `most` messages of an image; none if it is not there.
    fn messages<M: Message + Default>(&self, kind: Kind, name: &str, most: usize) -> Result<Vec<M>> {
        let Some(bytes) = self.read(name)? else { return Ok(Vec::new()) };
        let entries = image::entries(kind, &bytes).map_err(|e| self.malformed(name, e))?;
        let found: std::result::Result<_, _> = entries.into_iter().take(most).map(proto::decode).collect();
        found.map_err(|e| self.malformed(name, e))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(&(at, size)) = self.members.get(name.as_bytes()) else { return Ok(None) };
        if size > MAX_IMAGE {
            return Err(self.malformed(name, format!("is of {size} bytes, more than any such image")));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, at).at("read", &self.path)?;
        Ok(Some(bytes))
    }

    fn malformed(&self, name: &str, why: impl ToString) -> Error {
        Error::malformed(&self.path, format!("{name}: {}", why.to_string()))
    }
}

/// What is open, by id, in short: CRIU numbers files of all kinds together.
struct Known {
    files: HashMap<u32, OpenFile>,
    deleted: HashSet<u32>,
}

impl Known {
    /// What cannot be read is said, and hides no process.
    fn read(images: &Images, notes: &mut Vec<String>) -> Self {
        let mut known = Self { files: HashMap::new(), deleted: HashSet::new() };
        match images.messages::<files::File>(Kind::Files, "files.img", MAX_FILES) {
            Ok(all) => {
                if all.len() == MAX_FILES {
                    notes.push(format!("only {MAX_FILES} files are told"));
                }
                known.files.extend(all.iter().map(|file| (file.id, open_file(file))));
            }
            Err(e) => notes.push(format!("{e}: open files are not told")),
        }
        match images.messages::<Remap>(Kind::Remaps, "remap-fpath.img", MAX_FILES) {
            // Files of procfs that went with their process are no files of the container's.
            Ok(all) => known.deleted.extend(all.iter().filter(|r| r.kind != Some(2)).map(|r| r.file)),
            Err(e) => notes.push(format!("{e}: which files have no name any more is not told")),
        }
        known
    }

    fn path(&self, id: u32) -> Option<AnyText> {
        self.files.get(&id).map(|file| file.target.clone()).filter(|target| !target.is_empty())
    }
}

fn open_file(file: &files::File) -> OpenFile {
    let kind = files::kind_name(file.kind).to_owned();
    let blank = OpenFile { kind, ..OpenFile::default() };
    if let Some(regular) = &file.regular {
        let target = regular.name.clone().into();
        return OpenFile { target, position: Some(regular.position), size: regular.size, ..blank };
    }
    let socket = if let Some(inet) = &file.inet {
        Socket {
            protocol: inet.protocol_name(),
            kind: files::type_name(inet.kind).into(),
            local: inet.local().into(),
            remote: inet.remote(),
            state: net::state_name(inet.state).into(),
        }
    } else if let Some(unix) = &file.unix {
        Socket {
            protocol: "unix".into(),
            kind: files::type_name(unix.kind).into(),
            local: unix.local().into(),
            remote: String::new(),
            state: net::state_name(unix.state).into(),
        }
    } else if let Some(pipe) = file.pipe {
        return OpenFile { target: format!("pipe:[{}]", pipe.pipe).into(), ..blank };
    } else {
        return blank;
    };
    let deleted = file.unix.as_ref().is_some_and(|unix| unix.deleted == Some(true));
    OpenFile { target: socket.local.clone(), deleted, socket: Some(socket), ..blank }
}

struct Reader<'a> {
    images: &'a Images,
    known: Known,
    environment: bool,
    /// How many descriptors are listed so far.
    listed: usize,
    /// The processes, and by table of files the first that has it: nothing is read twice, however often an image names it.
    told: HashSet<u32>,
    tables: HashMap<u32, u32>,
}

/// `task_state` (CRIU `criu/include/pstree.h`).
fn state_name(state: u32) -> &'static str {
    match state {
        1 => "alive",
        2 => "dead",
        3 => "stopped",
        6 => "zombie",
        _ => "",
    }
}

/// A command's name has at most 15 bytes (Linux, `TASK_COMM_LEN`).
pub const COMM: usize = 15;

impl Reader<'_> {
    fn process(&mut self, one: image::Process) -> Process {
        let pid = one.pid;
        let mut process = Process {
            pid,
            ppid: one.ppid,
            pgid: Some(one.pgid),
            sid: Some(one.sid),
            threads: one.threads,
            ..Process::default()
        };
        if !self.told.insert(pid) {
            process.notes.push("the image has two processes of this number".into());
            return process;
        }
        let core: Option<Core> = self.first(&mut process, Kind::Core, &format!("core-{pid}.img"));
        let ids = core.as_ref().and_then(|core| core.ids);
        let ids: Option<Ids> = ids.or_else(|| self.first(&mut process, Kind::Ids, &format!("ids-{pid}.img")));
        if let Some(task) = core.as_ref().and_then(|core| core.task.as_ref()) {
            process.state = state_name(task.state).to_owned();
            process.command = task.comm.iter().copied().take(COMM).collect::<Vec<u8>>().into();
        }
        let creds = core.and_then(|core| core.thread).and_then(|thread| thread.creds);
        (process.uid, process.gid) = (creds.map(|c| c.euid), creds.map(|c| c.egid));
        let fs: Option<Fs> = self.first(&mut process, Kind::Fs, &format!("fs-{pid}.img"));
        process.cwd = fs.and_then(|fs| self.known.path(fs.cwd));
        if let Some(ids) = ids {
            self.files(&mut process, ids.files);
        }
        self.memory(&mut process);
        process
    }

    /// The only message of an image; what cannot be read is said.
    fn first<M: Message + Default>(&self, process: &mut Process, kind: Kind, name: &str) -> Option<M> {
        let found = self.images.messages(kind, name, 1).map_err(|e| process.notes.push(e.to_string())).ok()?;
        found.into_iter().next()
    }

    fn files(&mut self, process: &mut Process, table: u32) {
        if let Some(other) = self.tables.insert(table, process.pid) {
            self.tables.insert(table, other);
            return process.notes.push(format!("its open files are those of process {other}"));
        }
        let found = self.images.messages::<Descriptor>(Kind::Fdinfo, &format!("fdinfo-{table}.img"), usize::MAX);
        let Ok(found) = found.map_err(|e| process.notes.push(e.to_string())) else { return };
        for descriptor in found {
            if self.listed >= MAX_LISTED {
                process.files_unlisted += 1;
                continue;
            }
            self.listed += 1;
            let known = self.known.files.get(&descriptor.id).cloned();
            let mut file = known.unwrap_or_else(|| OpenFile {
                kind: files::kind_name(descriptor.kind).to_owned(),
                ..OpenFile::default()
            });
            file.fd = descriptor.fd;
            file.deleted |= self.known.deleted.contains(&descriptor.id);
            process.files.push(file);
        }
        process.files.sort_by_key(|file| file.fd);
    }

    fn memory(&self, process: &mut Process) {
        let pid = process.pid;
        let mm = match self.mappings(pid) {
            Ok(Some((mm, kinds))) => {
                process.memory = kinds;
                mm
            }
            Ok(None) => return,
            Err(e) => return process.notes.push(e.to_string()),
        };
        process.exe = self.known.path(mm.exe);
        let pages = match self.pages(pid) {
            Ok(Some(pages)) => pages,
            Ok(None) => return process.notes.push("none of its pages are in the image".into()),
            Err(why) => return process.notes.push(why),
        };
        process.stored = pages.map.present().saturating_mul(pages.page);
        process.args = self.range(process, &pages, "command line", mm.arg_start, mm.arg_end);
        if self.environment {
            process.environment = self.range(process, &pages, "environment", mm.env_start, mm.env_end);
        }
    }

    /// Where its command line is, and its mappings, summed up.
    fn mappings(&self, pid: u32) -> Result<Option<(Mm, Vec<Mapped>)>> {
        let name = format!("mm-{pid}.img");
        let Some(bytes) = self.images.read(&name)? else { return Ok(None) };
        let malformed = |e| self.images.malformed(&name, e);
        let entries = image::entries(Kind::Mm, &bytes).map_err(malformed)?;
        let Some(message) = entries.first() else { return Ok(None) };
        let mut kinds: BTreeMap<&str, Mapped> = BTreeMap::new();
        let sum = for_each_mapping(message, |mapping| {
            let sum = kinds.entry(mapping.kind()).or_default();
            sum.mappings += 1;
            sum.size = sum.size.saturating_add(mapping.len());
        });
        sum.map_err(malformed)?;
        let kinds = kinds.into_iter().map(|(kind, sum)| Mapped { kind: kind.to_owned(), ..sum }).collect();
        Ok(Some((proto::decode(message).map_err(malformed)?, kinds)))
    }

    /// The pages of a process, if they stand in the tar one after the other; else why nothing can be looked up in them.
    fn pages(&self, pid: u32) -> Result<Option<Held>, String> {
        let name = format!("pagemap-{pid}.img");
        let Some(bytes) = self.images.read(&name).map_err(|e| e.to_string())? else { return Ok(None) };
        let map = Pages::read(&bytes).map_err(|e| self.images.malformed(&name, e).to_string())?;
        let file = format!("pages-{}.img", map.file);
        let Some(&(at, size)) = self.images.members.get(file.as_bytes()) else {
            return if map.present() == 0 {
                Ok(None)
            } else {
                Err(format!("{file}, which has its pages, is not in the tar"))
            };
        };
        let page = PAGES.into_iter().find(|page| map.present().checked_mul(*page) == Some(size));
        match page.filter(|_| map.is_plain) {
            Some(page) => Ok(Some(Held { map, at, page })),
            None => Err(format!(
                "{file} is not what {name} says of uncompressed pages: they are compressed, or in a form of a newer CRIU; \
                 nothing is read from them"
            )),
        }
    }

    /// The words between two addresses, as far as the image has them.
    fn range(&self, process: &mut Process, pages: &Held, what: &str, start: u64, end: u64) -> Option<Vec<AnyText>> {
        let wanted = end.saturating_sub(start);
        let taken = wanted.min(MAX_WORDS);
        match pages.bytes(&self.images.file, start, taken) {
            Ok(Some(bytes)) => {
                if taken < wanted {
                    process.notes.push(format!("of its {what}, {wanted} bytes, the first {taken} are told"));
                }
                Some(words(&bytes))
            }
            Ok(None) => {
                let where_ = if pages.map.elsewhere > 0 { ": they may be in an earlier dump" } else { "" };
                process.notes.push(format!("the pages of its {what} are not in the image{where_}"));
                None
            }
            Err(e) => {
                process.notes.push(format!("its {what}: {e}"));
                None
            }
        }
    }
}

/// Sizes of pages on the machines that CRIU knows.
const PAGES: [u64; 3] = [4 << 10, 16 << 10, 64 << 10];

/// A process's pages in the tar.
struct Held {
    map: Pages,
    /// Where the pages file begins.
    at: u64,
    /// How large a page is.
    page: u64,
}

impl Held {
    /// The bytes from `address` on; `None` if not all of them are there.
    fn bytes(&self, file: &File, address: u64, len: u64) -> std::io::Result<Option<Vec<u8>>> {
        let (mut bytes, mut address, mut left) = (Vec::new(), address, len);
        while left > 0 {
            let Some((at, run)) = self.map.find(address, self.page) else { return Ok(None) };
            let part = run.min(left);
            let before = bytes.len();
            bytes.resize(before + usize::try_from(part).map_err(std::io::Error::other)?, 0);
            file.read_exact_at(&mut bytes[before..], self.at.saturating_add(at))?;
            address = address.saturating_add(part);
            left -= part;
        }
        Ok(Some(bytes))
    }
}
