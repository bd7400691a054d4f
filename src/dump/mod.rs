//! The memory of a held container, by CRIU: [`prepare`] and [`start`] while it runs, [`dump`] while it is frozen.
//!
//! ```text
//! images/   pstree.img core-1.img pages-1.img …  descriptors.json     what a restore needs; 0700, files 0600
//! work/     dump.log  stats-dump                                      what only people and reports need
//! ```

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{BufRead, BufReader, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

pub mod follow;
pub mod hints;
pub mod masks;
pub mod pack;
pub mod plan;
pub mod swrk;

use follow::Follower;
use plan::{Dirs, LOG};
use swrk::{Ended, Swrk};

use crate::{
    criu::rpc::{self, Features, Kind, LockMethod, Opts, Request, Response},
    error::{At, Error, Result},
    freeze::{Frozen, Still, netlock::search_path},
    host::Host,
    oci::runtime::Spec,
    runtime::Task,
    shares,
};

/// How the container's network is kept quiet during the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkLock {
    /// Not at all if nobody is connected, else by nftables, else by iptables.
    #[default]
    Auto,
    /// Not at all.
    Skip,
    /// By nftables.
    Nftables,
    /// By iptables.
    Iptables,
}

/// What the user may ask of a dump. What a restore by containerd does not pass on is off by default.
#[derive(Debug, Clone)]
pub struct Options {
    /// Dump live TCP connections.
    pub tcp_established: bool,
    /// Dump unix datagram sockets that are connected to the outside.
    pub ext_unix_sk: bool,
    /// Dump file locks.
    pub file_locks: bool,
    /// The container uses a terminal of a shell outside.
    pub shell_job: bool,
    /// How its network is kept quiet.
    pub network_lock: NetworkLock,
    /// CRIU's log level: 1 errors, 2 warnings, 4 everything; each line costs time in which the container stands still.
    pub log_level: i32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tcp_established: false,
            ext_unix_sk: false,
            // As `ctr containers checkpoint` does.
            file_locks: true,
            shell_job: false,
            network_lock: NetworkLock::Auto,
            log_level: 2,
        }
    }
}

/// The version of a CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32, pub i32, pub i32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, sublevel) = self;
        if *sublevel == 0 { write!(f, "{major}.{minor}") } else { write!(f, "{major}.{minor}.{sublevel}") }
    }
}

impl From<rpc::Version> for Version {
    fn from(v: rpc::Version) -> Self {
        // A build from git is ahead of its number: runc counts 4.2 with an id as 4.3.
        match v.gitid {
            Some(id) if !id.is_empty() => Self(v.major, v.minor + 1, 0),
            _ => Self(v.major, v.minor, v.sublevel.unwrap_or(0)),
        }
    }
}

/// The least that can be asked as we ask: `network_lock` came with 3.16, the v2 freezer with 3.14.
const OLDEST: Version = Version(3, 16, 0);

/// Kernels, and the CRIU without which every dump on them fails (3.16 vvar/vDSO layout; socket options).
const KERNELS: [((u32, u32), Version); 2] = [((6, 16), Version(4, 2, 0)), ((6, 13), Version(4, 1, 0))];

/// Errors by name, and none by nature: CRIU goes on after them. First in the log, they would pass for the reason.
const HARMLESS: [&str; 2] = [
    "rlimit: Can't setup RLIMIT_NOFILE", // util.c: without CAP_SYS_RESOURCE
    "tun: Unable to create tun",         // tun.c: when it first looks at a kernel without that device
];

/// How many lines of a log an error quotes.
const MAX_LINES: usize = 20;

/// A CRIU that answers, and is new enough to be asked.
#[derive(Debug, Clone)]
pub struct Criu {
    /// Its version.
    pub version: Version,
    /// Why it may fail all the same: it is older than this kernel needs, unless its distribution has mended it.
    pub warning: Option<String>,
    /// It can lock a network by nftables.
    pub has_nftables: bool,
    host: Host,
}

/// The images of a task.
#[derive(Debug)]
pub struct Images {
    /// The directory with the images and `descriptors.json`, nothing else.
    pub dir: PathBuf,
    /// CRIU's statistics.
    pub stats: PathBuf,
    /// CRIU's log.
    pub log: PathBuf,
    /// The CRIU that wrote them.
    pub version: Version,
    /// How the network was locked.
    pub network_lock: LockMethod,
    /// Bytes of memory that were hashed meanwhile; known once they are packed.
    pub hashed_ahead: u64,
    /// Whoever has hashed them.
    follower: Follower,
}

/// Asks CRIU for its version and has it look at the kernel: what it learns it keeps for the dump. Before the freeze.
pub fn prepare(host: &Host) -> Result<Criu> {
    let mut swrk = Swrk::start(&host.criu)?;
    let request = Request { kind: Kind::Version.into(), keep_open: Some(true), ..Request::default() };
    let answer = swrk.ask(&request, &mut |_| Ok(()))?;
    let Some(version) = answer.and_then(|a| a.version).map(Version::from) else {
        let Ended { how, said, .. } = swrk.end();
        return Err(explain(&format!("{}: {how}", host.criu.display()), &said, &[]));
    };
    if version < OLDEST {
        return Err(too_old(host, version));
    }
    let features = Some(Features { mem_track: Some(true) });
    let request = Request { kind: Kind::FeatureCheck.into(), features, ..Request::default() };
    // Only for its side effect: /run/criu.kdat. What stands in the way of it will be said by the dump.
    let _ = swrk.ask(&request, &mut |_| Ok(()))?;
    drop(swrk);
    let warning = kernel(host).and_then(|k| needed(k).filter(|n| version < *n).map(|n| warning(k, version, n)));
    Ok(Criu { version, warning, has_nftables: has_nftables(host), host: host.clone() })
}

/// A CRIU that has started and waits for what it is to dump.
#[derive(Debug)]
pub struct Ready<'a> {
    criu: &'a Criu,
    swrk: Swrk,
    images: Folder,
    work: Folder,
    follows: bool,
}

impl Ready<'_> {
    /// Where the images will be.
    pub fn images(&self) -> &Path {
        &self.images.path
    }
}

/// A private directory, open.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    file: File,
}

/// Starts the CRIU that will dump `task` into `images`; log and statistics go to `work`. Both are made if they are not
/// there. Before the freeze: it takes CRIU milliseconds to load its libraries, and a file may wait for a journal. If it
/// `follows`, the memory is hashed while it is written.
pub fn start<'a>(criu: &'a Criu, task: &Task, images: &Path, work: &Path, follows: bool) -> Result<Ready<'a>> {
    let swrk = Swrk::start_steady(&criu.host.criu)?;
    let (images, work) = (private_dir(images)?, private_dir(work)?);
    write_descriptors(&images.path, &plan::descriptors(&criu.host, task))?;
    Ok(Ready { criu, swrk, images, work, follows })
}

/// Dumps the held task. After an error the container is held as before.
pub fn dump(ready: Ready<'_>, still: &Still, spec: &Spec, opts: &Options) -> Result<Images> {
    let Some(frozen) = still.frozen() else {
        return Err(Error::Unsupported { what: "there is no live task to dump".into(), hint: String::new() });
    };
    if let Some(above) = frozen.frozen_above() {
        return Err(explain_frozen_above(&above));
    }
    if let Some(tid) = frozen.waits_for_child() {
        return Err(explain_waiting(tid, still.was_paused()));
    }
    let Ready { criu, swrk, images, work, follows } = ready;
    let follower = if follows { Follower::start(&criu.host, frozen.task(), &images.path) } else { Follower::default() };
    let dump = Dump { criu, frozen, spec, opts, images: &images, work: &work };
    let result = dump.run(swrk);
    if result.is_err() {
        // Also after an interrupt: the guard that thaws it knows of one state only.
        frozen.refreeze()?;
    }
    let network_lock = result?;
    still.is_still()?;
    let (stats, log) = (work.path.join("stats-dump"), work.path.join(LOG));
    Ok(Images { dir: images.path, stats, log, version: criu.version, network_lock, hashed_ahead: 0, follower })
}

/// One dump, with everything it needs.
struct Dump<'a> {
    criu: &'a Criu,
    frozen: &'a Frozen,
    spec: &'a Spec,
    opts: &'a Options,
    images: &'a Folder,
    work: &'a Folder,
}

impl Dump<'_> {
    /// All of this is time in which the container stands still.
    fn run(&self, swrk: Swrk) -> Result<LockMethod> {
        let (host, task) = (&self.criu.host, self.frozen.task());
        let dirs = Dirs { images: self.images.file.as_raw_fd(), work: self.work.file.as_raw_fd() };
        let (lock, opts) = thread::scope(|scope| {
            let lock = shares::beside(scope, || plan::lock(host, self.criu, task, self.opts.network_lock));
            let opts = plan::plan(host, self.spec, task, self.opts, dirs);
            (lock.join(), opts)
        });
        self.ask(swrk, Opts { network_lock: Some(lock.into()), ..opts? })?;
        masks::settle(&self.images.path)?;
        Ok(lock)
    }

    fn ask(&self, mut swrk: Swrk, opts: Opts) -> Result<()> {
        self.frozen.criu_is(swrk.pid())?;
        let request = Request { kind: Kind::Dump.into(), opts: Some(opts), ..Request::default() };
        let answer = swrk.ask(&request, &mut |_| Ok(()));
        let ended = swrk.end();
        self.frozen.criu_is_gone(ended.in_order)?;
        match answer? {
            Some(answer) if answer.success => Ok(()),
            answer => Err(self.failure(answer, &ended)),
        }
    }

    fn failure(&self, answer: Option<Response>, ended: &Ended) -> Error {
        let log = error_lines(&self.work.path.join(LOG));
        let message =
            answer.as_ref().and_then(|a| a.cr_errmsg.clone()).filter(|m| !m.trim().is_empty() && !is_harmless(m));
        let errno = answer.as_ref().and_then(|a| a.cr_errno).filter(|&e| e != 0);
        let reason = message.or_else(|| log.first().cloned()).unwrap_or_else(|| match (answer, errno) {
            (None, _) => ended.how.clone(),
            (Some(_), Some(errno)) => std::io::Error::from_raw_os_error(errno).to_string(),
            (Some(_), None) => "it gives no reason".into(),
        });
        let mut error = explain(&reason, &ended.said, &log);
        if let (Error::Criu { hint, .. }, Some(warning)) = (&mut error, &self.criu.warning)
            && hint.is_empty()
        {
            hint.clone_from(warning);
        }
        error
    }
}

/// The error for what CRIU said: its reason, what is known of it, and the lines it stands in.
fn explain(reason: &str, said: &str, log: &[String]) -> Error {
    let said = said.lines().map(printable).filter(|l| !l.trim().is_empty());
    let lines: Vec<_> = std::iter::once(printable(reason)).chain(log.iter().cloned()).chain(said).collect();
    let hint = hints::find(&lines).unwrap_or_default().to_owned();
    let from = lines.len().saturating_sub(MAX_LINES).max(1);
    Error::Criu { reason: bare(&lines[0]).to_owned(), hint, log: lines.into_iter().skip(from).collect() }
}

fn explain_frozen_above(above: &Path) -> Error {
    Error::Criu {
        reason: format!(
            "the cgroup {} above it is frozen, so its processes cannot run even under CRIU",
            above.display()
        ),
        hint: "thaw that cgroup, or checkpoint without memory (--task never)".into(),
        log: Vec::new(),
    }
}

fn explain_waiting(tid: i32, was_paused: bool) -> Error {
    let hint = match was_paused {
        true => "it was paused just then: resume it and pause it again, or run the same command while it runs",
        false => "it lasts unusually long: see what the child waits for, then run the same command again",
    };
    Error::Criu {
        reason: format!("thread {tid} waits for its child to begin a program (vfork), and cannot be stopped meanwhile"),
        hint: hint.into(),
        log: Vec::new(),
    }
}

/// What stands after `Error (file:line): `.
fn bare(line: &str) -> &str {
    let text = line.split_once("Error (").and_then(|(_, rest)| rest.split_once("): ")).map_or(line, |(_, text)| text);
    text.trim().trim_end_matches('.')
}

/// The first errors of a log: later ones follow from them. Names in it are the container's, so of any bytes.
fn error_lines(path: &Path) -> Vec<String> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).split(b'\n').map_while(std::result::Result::ok);
    let texts = lines.map(|l| printable(&String::from_utf8_lossy(&l)));
    texts.filter(|l| l.contains("Error (") && !is_harmless(l)).take(MAX_LINES).collect()
}

fn is_harmless(line: &str) -> bool {
    HARMLESS.iter().any(|text| line.contains(text))
}

fn printable(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn private_dir(path: &Path) -> Result<Folder> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at("create", path)?;
    let dir = File::open(path).at("open", path)?;
    // The images hold every secret of the container's memory. A directory that was there before may be open to all.
    dir.set_permissions(Permissions::from_mode(0o700)).at("close to others", path)?;
    Ok(Folder { path: path.to_owned(), file: dir })
}

/// CRIU makes its files 0644, less a umask that we cannot set for it alone. Their directory is closed to others, so
/// there is time until the container runs again.
fn make_private(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        if entry.file_type().at("stat", entry.path())?.is_file() {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o600)).at("close to others", entry.path())?;
        }
    }
    Ok(())
}

/// `descriptors.json` as runc writes it: a JSON array of three strings, mode 0600.
fn write_descriptors(images: &Path, descriptors: &[String]) -> Result<()> {
    let path = images.join("descriptors.json");
    let bytes = serde_json::to_vec(descriptors).map_err(|e| Error::malformed(&path, e))?;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).at("create", &path)?;
    file.write_all(&bytes).at("write", &path)
}

/// Major and minor number of the running kernel.
fn kernel(host: &Host) -> Option<(u32, u32)> {
    let text = fs::read_to_string(host.proc.join("sys/kernel/osrelease")).ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The CRIU that a kernel needs, if it needs a particular one.
fn needed(kernel: (u32, u32)) -> Option<Version> {
    KERNELS.iter().find(|(since, _)| kernel >= *since).map(|(_, version)| *version)
}

fn warning((major, minor): (u32, u32), is: Version, needed: Version) -> String {
    format!(
        "Linux {major}.{minor} needs CRIU {needed} or later and this is {is}: install a newer one and name it with \
         --criu PATH"
    )
}

fn too_old(host: &Host, version: Version) -> Error {
    let needed = kernel(host).and_then(needed).unwrap_or(OLDEST);
    Error::Unsupported {
        what: format!("{} is CRIU {version}, too old to dump a container", host.criu.display()),
        hint: format!("this machine needs CRIU {needed} or later: install one and name it with --criu PATH"),
    }
}

/// There is no RPC for it, but a check of its own (CRIU 3.17).
fn has_nftables(host: &Host) -> bool {
    let mut command = Command::new(&host.criu);
    command.args(["check", "--feature", "network_lock_nftables"]).env("PATH", search_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Criu {
        pub(super) fn stand_in() -> Self {
            Self { version: Version(4, 2, 0), warning: None, has_nftables: false, host: Host::default() }
        }
    }

    #[test]
    fn a_kernel_says_which_criu_it_needs() {
        for (kernel, version) in [
            ((6, 18), Some(Version(4, 2, 0))),
            ((6, 16), Some(Version(4, 2, 0))),
            ((6, 15), Some(Version(4, 1, 0))),
            ((6, 13), Some(Version(4, 1, 0))),
            ((6, 12), None),
            ((5, 10), None),
            ((7, 0), Some(Version(4, 2, 0))),
        ] {
            assert_eq!(needed(kernel), version, "{kernel:?}");
        }
    }

    #[test]
    fn a_build_from_git_counts_as_the_next_version() {
        let version = |gitid| rpc::Version { major: 4, minor: 2, gitid, sublevel: Some(1) };
        assert_eq!(Version::from(version(None)).to_string(), "4.2.1");
        assert_eq!(Version::from(version(Some("v4.2-7".into()))).to_string(), "4.3");
        assert!(Version(3, 9, 5) < OLDEST);
    }

    #[test]
    fn the_first_errors_of_a_log_are_quoted_and_say_nothing_to_a_terminal() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(LOG);
        let log = b"Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self\n(00.2) Error (criu/sk-inet.c:200): inet: Connected TCP socket \x1b[2J\xff\n(00.3) \
                    Warn  (criu/x.c:1): no\n(00.4) Error (criu/cr-dump.c:2): Dumping FAILED.\n";
        fs::write(&path, log).unwrap();
        let lines = error_lines(&path);
        assert_eq!(lines.len(), 2);
        assert!(!lines[0].contains('\x1b'));
        let Error::Criu { reason, hint, log } = explain(&lines[0], "", &lines) else { panic!() };
        assert!(reason.starts_with("inet: Connected TCP socket"), "{reason}");
        assert!(hint.contains("--tcp-established"));
        assert_eq!(log, lines);
    }

    #[test]
    fn images_are_for_their_owner_only() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("images");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("pages-1.img"), "secret").unwrap();
        private_dir(&dir).unwrap();
        write_descriptors(&dir, &["/dev/null".into(), "pipe:[1]".into()]).unwrap();
        make_private(&dir).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            [mode(&dir), mode(&dir.join("pages-1.img")), mode(&dir.join("descriptors.json"))],
            [0o700, 0o600, 0o600]
        );
        assert_eq!(fs::read(dir.join("descriptors.json")).unwrap(), br#"["/dev/null","pipe:[1]"]"#);
    }
}
