//! What of a held task is gone with it, besides memory and files, in the order in which it vanishes (RFC 3227): sockets,
//! routes, neighbours, interfaces, processes, namespaces, mounts, cgroups. Read while the container stands still, and while
//! its memory is being dumped, so that it stands still no longer for it.
//!
//! The tables of a network are the kernel's, and go on changing as packets come in. While CRIU is at work, a socket of its own
//! may stand among those of the container: [`Socket::local`] begins with `@/crtools-pr-` then, and a note says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
    str::FromStr,
    thread,
};

mod cgroups;

use crate::{
    error::{Error, Result},
    freeze::{Still, netlock},
    host::Host,
    layout::{Blob, Staging},
    name::AnyText,
    oci::volatile::{Held, Holder, MAX_ROWS, MAX_TEXT, Network, Process, Text, Volatile},
    procfs::{
        net::{self, Socket},
        process::{Stat, Status},
    },
    shares,
};

/// One kind of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Sockets and connections.
    Sockets,
    /// Routes.
    Routes,
    /// Neighbours on the links.
    Neighbours,
    /// Interfaces and their addresses.
    Interfaces,
    /// Processes, those outside init's tree too.
    Processes,
    /// Namespaces of the processes.
    Namespaces,
    /// Mounts.
    Mounts,
    /// Limits and use of the cgroups.
    Cgroups,
}

/// All kinds, by name, in their order.
const KINDS: [(&str, Kind); 8] = [
    ("sockets", Kind::Sockets),
    ("routes", Kind::Routes),
    ("neighbours", Kind::Neighbours),
    ("interfaces", Kind::Interfaces),
    ("processes", Kind::Processes),
    ("namespaces", Kind::Namespaces),
    ("mounts", Kind::Mounts),
    ("cgroups", Kind::Cgroups),
];

/// Which kinds are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted(BTreeSet<Kind>);

impl Default for Wanted {
    fn default() -> Self {
        Self(KINDS.into_iter().map(|(_, kind)| kind).collect())
    }
}

impl Wanted {
    /// True if nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, kind: Kind) -> bool {
        self.0.contains(&kind)
    }
}

impl FromStr for Wanted {
    type Err = Error;

    /// `all`, `none`, or names with commas between them.
    fn from_str(text: &str) -> Result<Self> {
        let one = |name: &str| {
            let found = KINDS.iter().find(|(known, _)| *known == name.trim());
            found.map(|(_, kind)| *kind).ok_or_else(|| Error::Unsupported {
                what: format!("{name:?} is nothing volatile that is known"),
                hint: format!("all, none, or of these: {}", KINDS.map(|(name, _)| name).join(",")),
            })
        };
        match text {
            "all" => Ok(Self::default()),
            "none" => Ok(Self(BTreeSet::new())),
            list => list.split(',').map(one).collect::<Result<_>>().map(Self),
        }
    }
}

/// Files of a network namespace that are read for each kind, and kept as they are.
const ROUTES: [&str; 2] = ["route", "ipv6_route"];
const INTERFACES: [&str; 3] = ["dev", "if_inet6", "fib_trie"];

/// No table is read further; the rows beyond are not listed anyway.
const MAX_TABLE: u64 = 16 << 20;

/// The beginning of the name by which CRIU talks to what it puts into a process (`criu/parasite-syscall.c`).
const PARASITE: &str = "@/crtools-pr-";

/// Reads what is wanted of the held task. What cannot be read is a note; `None`: there is no task, or nothing is wanted.
pub fn capture(host: &Host, still: &Still, wanted: &Wanted) -> Option<Volatile> {
    let frozen = still.frozen().filter(|_| !wanted.is_empty())?;
    let mut look = Look { host, wanted, volatile: Volatile::default() };
    match frozen.pids() {
        Ok(pids) => look.all(&pids, frozen.task().init.pid),
        Err(e) => look.note(&format!("the container's processes: {e}")),
    }
    Some(look.volatile)
}

/// Stores the document, short enough to be read as one: texts go first, then rows.
pub fn seal(mut volatile: Volatile, max: u64, staging: &Staging) -> Result<Blob> {
    loop {
        let bytes = serde_json::to_vec(&volatile).map_err(|e| Error::malformed("what is volatile", e))?;
        if bytes.len() as u64 <= max || !shorten(&mut volatile) {
            return staging.blob_of(&bytes);
        }
    }
}

/// Leaves something out, and says so; false if nothing is left.
fn shorten(volatile: &mut Volatile) -> bool {
    let texts = volatile.networks.iter_mut().map(|network| &mut network.texts);
    let texts = texts.chain(&mut volatile.mounts).chain(volatile.cgroups.iter_mut().flatten().map(|c| &mut c.files));
    let longest = texts.flatten().max_by_key(|text| text.text.text.len()).filter(|text| text.text.text.len() > 256);
    if let Some(text) = longest {
        text.text = AnyText::from(String::from("(left out: the document would be too long)"));
        return true;
    }
    let rows =
        volatile.networks.iter_mut().filter_map(|network| network.sockets.as_mut()).max_by_key(|rows| rows.len());
    let halved = match (rows, volatile.processes.as_mut()) {
        (Some(rows), processes) if rows.len() >= processes.as_ref().map_or(1, |p| p.len().max(1)) => {
            rows.truncate(rows.len() / 2);
            true
        }
        (_, Some(processes)) if !processes.is_empty() => {
            processes.truncate(processes.len() / 2);
            true
        }
        _ => false,
    };
    let note = "rows were left out: the document would be too long";
    if halved && !volatile.notes.iter().any(|n| n == note) {
        volatile.notes.push(note.into());
    }
    halved
}

struct Look<'a> {
    host: &'a Host,
    wanted: &'a Wanted,
    volatile: Volatile,
}

impl Look<'_> {
    /// What vanishes first comes first. The tables of a network take as long as all the rest, so that is read beside.
    fn all(&mut self, pids: &[i32], init: i32) {
        let (host, wanted) = (self.host, self.wanted);
        let rest = thread::scope(|scope| {
            let beside = shares::beside(scope, || {
                let mut look = Look { host, wanted, volatile: Volatile::default() };
                look.slow(pids, init);
                look.volatile
            });
            self.networks(pids);
            beside.join()
        });
        let Volatile { processes, mounts, cgroups, notes, .. } = rest;
        (self.volatile.processes, self.volatile.mounts, self.volatile.cgroups) = (processes, mounts, cgroups);
        notes.iter().for_each(|note| self.note(note));
    }

    /// Who holds which socket costs little, and is asked before the tables are read.
    fn networks(&mut self, pids: &[i32]) {
        let kinds = [Kind::Sockets, Kind::Routes, Kind::Neighbours, Kind::Interfaces];
        if !kinds.into_iter().any(|kind| self.wanted.has(kind)) {
            return;
        }
        let mut networks: BTreeMap<u64, i32> = BTreeMap::new();
        for &pid in pids {
            if let Some(inode) = self.namespace(pid, "net") {
                networks.entry(inode).or_insert(pid);
            }
        }
        let holders = if self.wanted.has(Kind::Sockets) { self.holders(pids) } else { BTreeMap::new() };
        for (inode, pid) in networks {
            self.network(inode, pid, &holders);
        }
    }

    /// What changes only when a process of the container does something, or somebody from outside.
    fn slow(&mut self, pids: &[i32], init: i32) {
        if self.wanted.has(Kind::Processes) || self.wanted.has(Kind::Namespaces) {
            self.processes(pids, init);
        }
        if self.wanted.has(Kind::Mounts) {
            self.mounts(pids);
        }
        if self.wanted.has(Kind::Cgroups) {
            let (cgroups, notes) = cgroups::read(self.host, pids);
            self.volatile.cgroups = Some(cgroups);
            notes.iter().for_each(|note| self.note(note));
        }
    }

    fn note(&mut self, what: &str) {
        if self.volatile.notes.len() < MAX_ROWS {
            self.volatile.notes.push(what.to_owned());
        }
    }

    fn namespace(&self, pid: i32, kind: &str) -> Option<u64> {
        let target = fs::read_link(self.host.proc_of(pid, format!("ns/{kind}"))).ok()?;
        target.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()
    }

    /// Who holds each socket, by its inode.
    fn holders(&self, pids: &[i32]) -> BTreeMap<u64, Vec<Holder>> {
        let mut all: BTreeMap<u64, Vec<Holder>> = BTreeMap::new();
        for &pid in pids {
            let entries = fs::read_dir(self.host.proc_of(pid, "fd")).into_iter().flatten().flatten();
            let mut fds: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
            fds.sort_unstable();
            for fd in fds {
                let target = fs::read_link(self.host.proc_of(pid, format!("fd/{fd}"))).unwrap_or_default();
                let inode = target.to_str().and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
                if let Some(inode) = inode {
                    all.entry(inode).or_default().push(Holder { pid, fd });
                }
            }
        }
        all
    }

    fn network(&mut self, inode: u64, pid: i32, holders: &BTreeMap<u64, Vec<Holder>>) {
        let is_host = !netlock::is_private(self.host, pid);
        let mut network = Network { namespace: inode, pid, host: is_host, ..Network::default() };
        if self.wanted.has(Kind::Sockets) {
            network.sockets = Some(self.sockets(pid, is_host, holders, &mut network.texts));
        }
        let mut text = |name: &str| self.text(pid, &format!("net/{name}"), &mut network.texts);
        if self.wanted.has(Kind::Routes) {
            let [four, six] = ROUTES.map(&mut text);
            network.routes = Some(first(net::routes(&four).into_iter().chain(net::routes6(&six))));
        }
        if self.wanted.has(Kind::Neighbours) {
            network.neighbours = Some(first(net::neighbours(&text("arp")).into_iter()));
        }
        if self.wanted.has(Kind::Interfaces) {
            let [dev, six, trie] = INTERFACES.map(&mut text);
            network.interfaces = Some(first(net::interfaces(&dev).into_iter()));
            network.addresses = Some(first(net::addresses(&trie).into_iter().chain(net::addresses6(&six))));
        }
        if self.wanted.has(Kind::Neighbours) {
            self.note(&format!("network {inode}: neighbours of IPv6 are in no file of procfs, and not listed"));
        }
        self.volatile.networks.push(network);
    }

    /// The tables of sockets. Those of TCP cost milliseconds however few there are, for the kernel walks a table of the whole
    /// machine; so they are passed over where its counters say that there is none.
    fn sockets(
        &mut self,
        pid: i32,
        is_host: bool,
        holders: &BTreeMap<u64, Vec<Holder>>,
        texts: &mut Vec<Text>,
    ) -> Vec<Held> {
        let counted = ["net/sockstat", "net/sockstat6"].map(|name| self.text(pid, name, texts));
        let has_none = |text: &[u8], words: &[&str]| {
            let text = String::from_utf8_lossy(text).into_owned();
            text.lines().any(|line| words.iter().all(|word| line.contains(word)))
        };
        let quiet = [
            ("tcp", has_none(&counted[0], &["TCP: inuse 0 ", " tw 0 "])),
            ("tcp6", has_none(&counted[1], &["TCP6: inuse 0"]) && has_none(&counted[0], &["TCP: ", " tw 0 "])),
        ];
        let wanted: Vec<&'static str> =
            net::TABLES.into_iter().filter(|table| !quiet.contains(&(*table, true))).collect();
        let mut all: Vec<Held> = Vec::new();
        for (table, text) in self.tables(pid, wanted) {
            let rows = net::sockets(table, &text).into_iter();
            let ours = rows.filter(|socket| !is_host || holders.contains_key(&socket.inode));
            all.extend(ours.map(|socket| held(socket, holders)));
            keep(&format!("net/{table}"), &text, texts);
        }
        if is_host {
            // The tables of the host are not the container's to tell.
            texts.clear();
        }
        if all.iter().any(|held| held.socket.local.text.starts_with(PARASITE)) {
            self.note(&format!("sockets whose name begins with {PARASITE} are CRIU's, for the time of its dump"));
        }
        if all.len() > MAX_ROWS {
            self.note(&format!("of {} sockets {MAX_ROWS} are listed", all.len()));
        }
        all.truncate(MAX_ROWS);
        all
    }

    /// These tables, by name: the slow ones side by side, and the others meanwhile.
    fn tables(&self, pid: i32, wanted: Vec<&'static str>) -> Vec<(&'static str, Vec<u8>)> {
        let host = self.host;
        let read = move |table: &str| bounded(host.proc_of(pid, format!("net/{table}")), MAX_TABLE).unwrap_or_default();
        let (slow, quick): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|table| table.starts_with("tcp"));
        thread::scope(|scope| {
            let slow: Vec<_> =
                slow.into_iter().map(|table| (table, shares::beside(scope, move || read(table)))).collect();
            let mut all: Vec<_> = quick.into_iter().map(|table| (table, read(table))).collect();
            all.extend(slow.into_iter().map(|(table, read)| (table, read.join())));
            all.sort_by_key(|(table, _)| net::TABLES.iter().position(|known| known == table));
            all
        })
    }

    /// A text of procfs; kept among `texts`, up to a length.
    fn text(&self, pid: i32, name: &str, texts: &mut Vec<Text>) -> Vec<u8> {
        let bytes = bounded(self.host.proc_of(pid, name), MAX_TABLE).unwrap_or_default();
        keep(name, &bytes, texts);
        bytes
    }

    fn processes(&mut self, pids: &[i32], init: i32) {
        let mut all: Vec<Process> = pids.iter().take(MAX_ROWS).filter_map(|&pid| self.process(pid)).collect();
        if pids.len() > MAX_ROWS {
            self.note(&format!("of {} processes {MAX_ROWS} are listed", pids.len()));
        }
        let mut tree = BTreeSet::from([init]);
        while let Some(more) = all.iter().find(|p| tree.contains(&p.ppid) && !tree.contains(&p.pid)) {
            tree.insert(more.pid);
        }
        all.iter_mut().for_each(|process| process.in_tree = tree.contains(&process.pid));
        self.volatile.processes = Some(all);
    }

    fn process(&self, pid: i32) -> Option<Process> {
        let read = |name: &str| bounded(self.host.proc_of(pid, name), 64 << 10).unwrap_or_default();
        let (status, stat) = (Status::parse(&read("status")), Stat::parse(&read("stat"))?);
        let cmdline = read("cmdline");
        let words = cmdline.strip_suffix(b"\0").unwrap_or(&cmdline).split(|&b| b == 0);
        let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
        let namespaces = || kinds.iter().filter_map(|kind| Some(((*kind).to_owned(), self.namespace(pid, kind)?)));
        Some(Process {
            pid,
            ppid: stat.ppid,
            pids: status.pids,
            in_tree: false,
            comm: AnyText::from(read("comm").trim_ascii_end().to_vec()),
            cmdline: words.map(|word| AnyText::from(word.to_vec())).filter(|_| !cmdline.is_empty()).collect(),
            uid: status.uids.first().copied().unwrap_or(0),
            state: status.state,
            started_ticks: stat.started,
            namespaces: self.wanted.has(Kind::Namespaces).then(|| namespaces().collect()),
        })
    }

    /// The mount table of each mount namespace.
    fn mounts(&mut self, pids: &[i32]) {
        let (mut seen, mut tables) = (BTreeSet::new(), Vec::new());
        for &pid in pids {
            if self.namespace(pid, "mnt").is_some_and(|inode| seen.insert(inode)) && tables.len() < 64 {
                let bytes = bounded(self.host.proc_of(pid, "mountinfo"), MAX_TEXT as u64).unwrap_or_default();
                tables.push(Text { name: format!("{pid}/mountinfo"), text: AnyText::from(bytes) });
            }
        }
        self.volatile.mounts = Some(tables);
    }
}

/// Keeps the beginning of a text among `texts`.
fn keep(name: &str, text: &[u8], texts: &mut Vec<Text>) {
    if !text.is_empty() {
        let kept = text.get(..text.len().min(MAX_TEXT)).unwrap_or_default().to_vec();
        texts.push(Text { name: name.into(), text: AnyText::from(kept) });
    }
}

fn held(socket: Socket, holders: &BTreeMap<u64, Vec<Holder>>) -> Held {
    let holders = holders.get(&socket.inode).into_iter().flatten().copied().take(MAX_ROWS).collect();
    Held { socket, holders }
}

fn first<T>(rows: impl Iterator<Item = T>) -> Vec<T> {
    rows.take(MAX_ROWS).collect()
}

/// The first `max` bytes of a file.
fn bounded(path: PathBuf, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The name of a directory's entry, as text.
fn entry_name(entry: &fs::DirEntry) -> AnyText {
    AnyText::from(entry.file_name().into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_chosen_by_name() {
        assert_eq!("all".parse::<Wanted>().unwrap(), Wanted::default());
        assert!("none".parse::<Wanted>().unwrap().is_empty());
        let some: Wanted = "mounts,sockets".parse().unwrap();
        assert!(some.has(Kind::Sockets) && some.has(Kind::Mounts) && !some.has(Kind::Routes));
        let error = "sockets,memory".parse::<Wanted>().unwrap_err().to_string();
        assert!(error.contains("memory"), "{error}");
    }

    #[test]
    fn our_own_process_is_told() {
        let (host, wanted) = (Host::default(), Wanted::default());
        let pid = i32::try_from(std::process::id()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
        let mut look = Look { host: &host, wanted: &wanted, volatile: Volatile::default() };
        look.all(&[pid], pid);
        let Volatile { networks, processes, mounts, cgroups, .. } = look.volatile;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&listener).cast_unsigned();
        let rows = networks[0].sockets.as_ref().unwrap();
        let ours = rows.iter().find(|row| row.holders.contains(&Holder { pid, fd })).unwrap();
        assert_eq!((ours.socket.protocol.as_str(), ours.socket.state.as_str()), ("unix", "LISTEN"));
        let process = &processes.unwrap()[0];
        assert!(process.in_tree && process.namespaces.as_ref().unwrap().contains_key("net"));
        assert!(mounts.unwrap()[0].text.text.contains("/proc ") && !cgroups.unwrap().is_empty());
    }

    #[test]
    fn a_document_too_long_is_shortened_and_says_so() {
        let text = |name: &str, len| Text { name: name.into(), text: AnyText::from("x".repeat(len)) };
        let row = Held { socket: Socket { protocol: "tcp".into(), ..Socket::default() }, holders: Vec::new() };
        let network = Network {
            sockets: Some(vec![row; 2000]),
            texts: vec![text("net/tcp", 100_000), text("net/udp", 300)],
            ..Network::default()
        };
        let temp = tempfile::tempdir().unwrap();
        let staging = crate::layout::Layout::open_or_create(&temp.path().join("l")).unwrap().stage().unwrap();
        let volatile = Volatile { networks: vec![network], ..Volatile::default() };
        let blob = seal(volatile, 20_000, &staging).unwrap();
        let read: Volatile = serde_json::from_slice(&staging.read_blob(&blob.digest).unwrap()).unwrap();
        assert!(blob.size <= 20_000 && read.networks[0].sockets.as_ref().unwrap().len() >= 125);
        assert!(read.networks[0].texts[0].text.text.contains("left out") && read.notes[0].contains("rows"));
    }
}
