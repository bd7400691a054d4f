//! Files whose inodes do not tell whether they were written to: what is mapped for sharing, and what the kernel writes on its
//! own account (`behind`).
//!
//! A store through a shared mapping changes a time only when it makes a page dirty; a page that is dirty already takes any
//! number of them in silence. Such a file was mapped when it was read, and before the last change that its inode tells of; so
//! the mappings are looked at now and then, and once more when all is held still. Of a file whose inode tells of no change
//! since a look began, and which was read after it, that look has seen whatever may write to it in silence, and so has the one
//! after it. One that changed since is read again (`record`).
//!
//! ```text
//! ── mapped ── last change ── a look ── read ── a store ──>     the look has seen the mapping
//! ── last change ── a look ── mapped ── read ── a store ──>     the first store of a mapping changes the time again
//! ── a look ── last change ── read ──────────────────────>     in doubt, unless others come before it is read
//! ```
//!
//! `/proc/<pid>/maps` tells a mapped file's inode and path. Under overlay the inode may be overlay's or the upperdir's own,
//! by the kernel's version, so both are gone by: any file with one of those numbers is in doubt, on whatever device.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, BufRead, BufReader},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, Instant},
};

mod behind;

use behind::{Work, is_named};
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags};

use super::clock;
use crate::{
    error::Result,
    freeze::cgroup::Freezer,
    host::{Host, mounts},
    pax::Time,
    procfs::map::Map,
    runtime::Task,
    tree::{Meta, Node},
};

/// While files are read, the mappings are looked at this often.
const OFTEN: Duration = Duration::from_millis(700);

/// And this often if a file has changed since.
const SOON: Duration = Duration::from_millis(100);

/// A look takes no more of the time than one part in so many: thousands of processes have millions of mappings.
const SHARE: u32 = 10;

/// So long after its file's time has moved, what goes past the page cache is taken to have reached the disk, unless somebody is
/// still seen to have the file open.
const BEHIND: Duration = Duration::from_secs(2);

/// So many times new processes are looked for; a container that forks faster is believed nothing.
const MAX_ROUNDS: usize = 32;

/// Mapped, and in no tree.
const NO_FILES: [&[u8]; 4] = [b"/memfd:", b"/dev/zero", b"/SYSV", b"/[aio]"];

/// What is in doubt.
#[derive(Debug, Default)]
pub struct Doubt {
    inodes: HashSet<u64>,
    /// Nothing is sure.
    all: bool,
    /// Somebody writes past the page cache: to what is closed meanwhile, too.
    is_behind: bool,
}

/// Looks at those who may write while files are read.
pub struct Watcher<'w> {
    watch: &'w Watch<'w>,
    /// What was seen so far.
    pub doubt: Doubt,
    last: Option<Look>,
    /// What the clock of files said when the look before that began.
    before: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    began: Instant,
    took: Duration,
    /// What the clock of files said when it began.
    then: Time,
}

impl<'w> Watcher<'w> {
    /// One who has not looked yet.
    pub fn begin(watch: &'w Watch<'w>) -> Self {
        Self { watch, doubt: Doubt::default(), last: None, before: None }
    }

    /// Looks, unless that was done a short while ago.
    pub fn keep_up(&mut self) {
        self.look_after(OFTEN);
    }

    /// The same, sooner if it makes a file sure that has `changed`.
    pub fn keep_up_for(&mut self, changed: Time) {
        let is_sure = self.before.is_some_and(|then| clock::is_past(changed, then));
        self.look_after(if !is_sure && clock::is_past(changed, clock::now()) { SOON } else { OFTEN });
    }

    /// What changed before this, and is read from `now` on, is in doubt only if a look has seen it. Two had the chance: a mapping
    /// that was moved while the list of them was read may stand nowhere in it.
    pub fn sure_before(&self, now: Time) -> Time {
        let never = Time { secs: i64::MIN, nanos: 0 };
        let (Some(last), Some(then)) = (self.last, self.before) else { return never };
        // A clock that was set back.
        if clock::before(now, last.began.elapsed().saturating_sub(SOON)) < last.then {
            return never;
        }
        if self.doubt.is_behind { then.min(clock::before(now, BEHIND)) } else { then }
    }

    fn look_after(&mut self, pause: Duration) {
        let is_due = |last: Look| last.began.elapsed() >= last.took + pause.max(last.took * SHARE);
        if self.last.is_none_or(is_due) {
            // At first nothing is known.
            if self.last.is_none() {
                self.look();
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let (began, then) = (Instant::now(), clock::now());
        self.doubt.look_at(self.watch, true);
        self.before = self.last.map(|last| last.then);
        self.last = Some(Look { began, took: began.elapsed(), then });
    }
}

/// Whose mappings are looked at, and where their files lie.
pub struct Watch<'w> {
    /// The machine.
    pub host: &'w Host,
    /// The container.
    pub task: &'w Task,
    /// The tree that the container writes to: its paths begin there.
    pub root: Option<&'w Node>,
    /// Every process of the machine is looked at: others may write to the files too.
    pub everyone: bool,
}

impl Doubt {
    /// True if the file's inode tells nothing.
    pub fn is_about(&self, file: &Meta) -> bool {
        self.all || self.inodes.contains(&file.id.ino)
    }

    /// Looks at all processes of the container. What is found is added: a mapping that has gone may have been stored to.
    /// Where nobody can look, all is in doubt.
    pub fn look(&mut self, watch: &Watch) {
        self.look_at(watch, false);
    }

    /// `is_running`: nobody waits for it.
    fn look_at(&mut self, watch: &Watch, is_running: bool) {
        self.loops(watch);
        let (freezer, mut seen) = (Freezer::of(watch.task), BTreeSet::new());
        for _ in 0..MAX_ROUNDS {
            // One that ends may have handed its mappings to a child that is younger than the list.
            let listed = if watch.everyone { Ok(ids(&watch.host.proc).collect()) } else { freezer.pids() };
            let Ok(pids): Result<Vec<i32>> = listed else {
                self.all = true;
                return;
            };
            let new: Vec<i32> = pids.into_iter().filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                return;
            }
            for pid in new {
                self.process(watch, pid, is_running);
            }
        }
        // Somewhere on a machine somebody forks all the time; and whoever is outside of the container is not held still anyhow.
        self.all |= !watch.everyone;
    }

    fn process(&mut self, watch: &Watch, pid: i32, is_running: bool) {
        let mut work = Work::default();
        match self.maps(watch, pid, &mut work) {
            // Of a first thread that has ended nothing is told; the others still have it all.
            Ok(false) => {
                let mut others = ids(&watch.host.proc_of(pid, "task")).filter(|tid| *tid != pid);
                others.any(|tid| matches!(self.maps(watch, tid, &mut work), Ok(true)));
            }
            Ok(true) => {}
            Err(e) if is_gone(&e) => return,
            Err(_) => self.all = true,
        }
        self.descriptors(watch, pid, &work, is_running);
    }

    /// What is mapped; false if nothing is.
    fn maps(&mut self, watch: &Watch, pid: i32, work: &mut Work) -> io::Result<bool> {
        let mut lines = BufReader::with_capacity(1 << 16, fs::File::open(watch.host.proc_of(pid, "maps"))?);
        let (mut line, mut has_any) = (Vec::new(), false);
        while lines.read_until(b'\n', &mut line)? > 0 {
            has_any = true;
            match Map::of_line(line.strip_suffix(b"\n").unwrap_or(&line)) {
                Some(map) => {
                    work.see(&map);
                    self.mapped(watch, pid, &map);
                }
                // A mapping that is not understood may be of any file.
                None => self.all = true,
            }
            line.clear();
        }
        Ok(has_any)
    }

    /// What may be written to later counts too, so the permissions of now do not matter.
    fn mapped(&mut self, watch: &Watch, pid: i32, map: &Map) {
        if !map.shared || map.inode == 0 {
            return;
        }
        self.inodes.insert(map.inode);
        if is_no_file(map) {
            return;
        }
        // Whatever is called so now.
        let path = unescaped(&map.path);
        let has_file = self.path(watch, &path);
        if !has_file || map.is_deleted() {
            // Perhaps it has another name. Unlike in `maps`, no zeros stand before the addresses.
            let link = watch.host.proc_of(pid, "map_files").join(format!("{:x}-{:x}", map.start, map.end));
            match known(&link, AtFlags::empty()) {
                Ok(meta) if meta.stx_nlink == 0 || !is_of_overlay(watch.host, pid, map.device_id) => {
                    self.inodes.insert(meta.stx_ino);
                }
                // Of the image, where nobody can write to it.
                Ok(meta) if !has_file && !map.write && is_named(watch, pid, &path, &meta) => {}
                Err(e) if is_gone(&e) => {}
                _ => self.all = true,
            }
        }
    }

    /// Adds the file that the container knows as `path`; false if there is none below the root.
    fn path(&mut self, watch: &Watch, path: &[u8]) -> bool {
        let Some(Ok(root)) = watch.root.map(Node::again) else { return true };
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let found = names.try_fold(root, |dir, name| dir.child(name));
        found.inspect(|node| _ = self.inodes.insert(node.meta.id.ino)).is_ok()
    }

    /// Files that are block devices: who writes to those writes to them, at the kernel's leisure.
    fn loops(&mut self, watch: &Watch) {
        let backing = |entry: fs::DirEntry| fs::read(entry.path().join("loop/backing_file")).ok();
        for file in fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(backing) {
            let path = file.trim_ascii_end();
            self.inodes
                .extend(known(Path::new(std::ffi::OsStr::from_bytes(path)), AtFlags::empty()).map(|meta| meta.stx_ino));
            self.path(watch, path);
        }
    }
}

/// A name that no directory holds. One that was not taken away yet is a file's, whatever it looks like.
fn is_no_file(map: &Map) -> bool {
    !map.path.starts_with(b"/") || map.is_deleted() && NO_FILES.iter().any(|none| map.path.starts_with(none))
}

/// What the kernel itself knows of a file: who serves a file system may be held still, and is
/// not asked.
fn known(path: &Path, flags: AtFlags) -> io::Result<Statx> {
    let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS)?)
}

fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH)
}

fn ids(folder: &Path) -> impl Iterator<Item = i32> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// True unless the process has a mount of this device that is no overlay: only under overlay a file's inode has several
/// numbers. Of a device without a mount (System V memory, what was unmounted) nothing is known, and it is in no tree of ours.
fn is_of_overlay(host: &Host, pid: i32, device: (u32, u32)) -> bool {
    let mounts = mounts::read(&host.proc_of(pid, "mountinfo")).unwrap_or_default();
    mounts.iter().find(|mount| mount.dev == device).is_some_and(|mount| mount.fs == "overlay")
}

/// `seq_file` writes a line break in a name as `\012`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, more)) = rest.split_first() {
        let is_break = rest.starts_with(b"\\012");
        out.push(if is_break { b'\n' } else { *first });
        rest = if is_break { &rest[4..] } else { more };
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is in doubt about a container of process 7, whose `/proc` is made up: its `maps`, and a file under a name that
    /// they do not have, mapped from 0x400000 on.
    fn doubted(maps: &str, cgroup: Option<&str>) -> (Doubt, u64) {
        let temp = tempfile::tempdir().unwrap();
        let (proc, files) = (temp.path().join("proc"), temp.path().join("proc/7/map_files"));
        fs::create_dir_all(&files).unwrap();
        fs::write(proc.join("7/maps"), maps).unwrap();
        fs::write(proc.join("7/mountinfo"), "36 35 8:1 / / rw - ext4 /dev/sda1 rw\n").unwrap();
        fs::write(temp.path().join("renamed"), "").unwrap();
        symlink(temp.path().join("renamed"), files.join("400000-401000")).unwrap();
        let procs = temp.path().join("cgroup.procs");
        cgroup.map_or_else(|| fs::create_dir(&procs), |text| fs::write(&procs, text)).unwrap();
        let task = Task::stand_in(7, temp.path());
        let (host, root) = (Host { proc, ..Host::default() }, Node::open(temp.path()).unwrap());
        let mut doubt = Doubt::default();
        doubt.look(&Watch { host: &host, task: &task, root: Some(&root), everyone: false });
        (doubt, std::os::unix::fs::MetadataExt::ino(&fs::metadata(temp.path().join("renamed")).unwrap()))
    }

    fn watched(test: impl FnOnce(Watcher<'_>)) {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("cgroup.procs"), "").unwrap();
        let (host, task) = (Host::default(), Task::stand_in(7, temp.path()));
        test(Watcher::begin(&Watch { host: &host, task: &task, root: None, everyone: false }));
    }

    #[test]
    fn what_changed_since_a_look_began_is_not_sure_before_another() {
        let seconds = |n| Duration::from_secs(n);
        watched(|mut watcher| {
            let now = clock::now();
            let is_sure = |watcher: &Watcher, changed| clock::is_past(changed, watcher.sure_before(clock::now()));
            assert!(!is_sure(&watcher, clock::before(now, seconds(9))), "nobody has looked");
            let look = |ago| Look {
                began: Instant::now().checked_sub(seconds(ago)).unwrap(),
                took: Duration::ZERO,
                then: clock::before(now, seconds(ago)),
            };
            (watcher.before, watcher.last) = (Some(look(6).then), Some(look(5)));
            assert!(is_sure(&watcher, clock::before(now, seconds(7))));
            assert!(!is_sure(&watcher, clock::before(now, Duration::from_millis(5500))), "one look may not see it");
            watcher.keep_up_for(clock::before(now, seconds(4)));
            assert_eq!(watcher.before, Some(look(5).then));
            (watcher.before, watcher.last) = (Some(clock::before(now, seconds(1))), Some(look(0)));
            assert!(is_sure(&watcher, clock::before(now, seconds(2))));
            // Who is behind has two seconds.
            watcher.doubt.is_behind = true;
            assert!(
                is_sure(&watcher, clock::before(now, seconds(3)))
                    && !is_sure(&watcher, clock::before(now, Duration::from_millis(1500)))
            );
            // A clock that was set back, by more than the time since, or by less.
            for (ago, then) in [(0, Time { secs: now.secs + 9, ..now }), (9, clock::before(now, seconds(8)))] {
                watcher.last = Some(Look { then, ..look(ago) });
                assert!(!is_sure(&watcher, clock::before(now, seconds(20))), "{ago} s ago");
            }
        });
    }

    #[test]
    fn nothing_is_sure_before_the_first_two_looks() {
        watched(|mut watcher| {
            watcher.keep_up();
            assert!(watcher.before.is_some_and(|before| watcher.last.is_some_and(|last| before <= last.then)));
        });
    }

    #[test]
    fn looks_are_no_more_frequent_than_they_are_short() {
        let ago = |millis| Instant::now().checked_sub(Duration::from_millis(millis)).unwrap();
        let (old, new) = (Time { secs: 1, nanos: 1 }, clock::before(clock::now(), Duration::from_millis(200)));
        // When the last look began, how long it took, what the next file says, and whether there is another look.
        for (began, took, changed, looks) in [
            (200, 1, old, false),
            (200, 1, new, true),
            (150, 40, new, false),
            (800, 1, old, true),
            (500, 80, old, false),
            (2_000, 300, new, false),
            (3_500, 300, new, true),
        ] {
            watched(|mut watcher| {
                let then = clock::before(clock::now(), Duration::from_millis(began));
                let last = Look { began: ago(began), took: Duration::from_millis(took), then };
                (watcher.before, watcher.last) = (Some(last.then), Some(last));
                watcher.keep_up_for(changed);
                assert_eq!(watcher.last != Some(last), looks, "{began} ms ago, {took} ms long, {changed:?}");
            });
        }
    }

    #[test]
    fn a_file_that_was_renamed_since_it_was_mapped_is_found_by_its_mapping() {
        let shared = "00400000-00401000 rw-s 00000000 08:01 5                          /gone\n";
        let (doubt, ino) = doubted(shared, Some("7\n"));
        assert!(doubt.inodes.contains(&ino) && doubt.inodes.contains(&5) && !doubt.all);
        let (doubt, ino) = doubted(&shared.replace("rw-s", "rw-p"), Some("7\n"));
        assert!(!doubt.inodes.contains(&ino) && !doubt.inodes.contains(&5) && !doubt.all);
    }

    #[test]
    fn a_file_may_be_called_like_what_is_none() {
        for (name, is_file) in
            [("/memfd:x", true), ("/memfd:x (deleted)", false), ("/SYSV0", true), ("anon_inode:x", false)]
        {
            let (doubt, ino) = doubted(&format!("400000-401000 rw-s 00000000 08:01 12 {name}\n"), Some("7\n"));
            assert_eq!(doubt.inodes.contains(&ino), is_file, "{name}");
            assert!(doubt.inodes.contains(&12) && !doubt.all, "{name}");
        }
    }

    #[test]
    fn where_nobody_can_look_all_is_in_doubt() {
        assert!(doubted("garbage\n", Some("7\n")).0.all);
        assert!(doubted("", None).0.all, "the processes cannot be listed");
    }

    #[test]
    fn a_line_break_in_a_name_is_one_again() {
        assert_eq!(unescaped(b"/var/lib/a b\\012c\\0"), b"/var/lib/a b\nc\\0");
    }
}
