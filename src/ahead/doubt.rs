//! Files whose inodes do not tell whether they were written to: what is mapped for sharing, and what the kernel writes on its
//! own account.
//!
//! A store through a shared mapping changes a time only when it makes a page dirty; a page that is dirty already takes any
//! number of them in silence. Such a file was mapped when it was read, or had been shortly before; so whoever reads looks
//! at the mappings at least every [`OFTEN`], and once more when all is held still. A file whose inode changed within the
//! last two seconds before it was read is read again in any case (`record`): a mapping that no look saw is younger than that.
//!
//! `/proc/<pid>/maps` tells a mapped file's inode and path. Under overlay the inode may be overlay's or the upperdir's own,
//! by the kernel's version, so both are gone by: any file with one of those numbers is in doubt, on whatever device.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, BufRead, BufReader},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::Result,
    freeze::cgroup::Freezer,
    host::Host,
    runtime::Task,
    tree::{Meta, Node},
};

/// While files are read, the mappings are looked at this often, well within the two seconds.
const OFTEN: Duration = Duration::from_millis(700);

/// So many times new processes are looked for; a container that forks faster is believed nothing.
const MAX_ROUNDS: usize = 32;

/// Mapped, and in no tree.
const NO_FILES: [&[u8]; 5] = [b"/memfd:", b"/dev/zero", b"/SYSV", b"anon_inode:", b"/[aio]"];

/// What is in doubt.
#[derive(Debug, Default)]
pub struct Doubt {
    inodes: HashSet<u64>,
    /// Nothing is sure.
    all: bool,
    last: Option<Instant>,
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

    /// Looks, unless it has just looked.
    pub fn keep_up(&mut self, watch: &Watch) -> Result<()> {
        if self.last.is_some_and(|last| last.elapsed() < OFTEN) { Ok(()) } else { self.look(watch) }
    }

    /// Looks at all processes of the container. What is found is added: a mapping that has gone may have been stored to.
    pub fn look(&mut self, watch: &Watch) -> Result<()> {
        self.last = Some(Instant::now());
        self.loops(watch);
        let (freezer, mut seen) = (Freezer::of(watch.task), BTreeSet::new());
        for _ in 0..MAX_ROUNDS {
            // One that ends may have handed its mappings to a child that is younger than the list.
            let pids = if watch.everyone { ids(&watch.host.proc).collect() } else { freezer.pids()? };
            let new: Vec<i32> = pids.into_iter().filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                self.process(watch, pid);
            }
        }
        // Somewhere on a machine somebody forks all the time; and whoever is outside of the container is not held still anyhow.
        self.all |= !watch.everyone;
        Ok(())
    }

    fn process(&mut self, watch: &Watch, pid: i32) {
        let mut writes_behind = false;
        match self.maps(watch, pid, &mut writes_behind) {
            // Of a first thread that has ended nothing is told; the others still have it all.
            Ok(false) => {
                for tid in ids(&watch.host.proc_of(pid, "task")).filter(|tid| *tid != pid) {
                    let _ = self.maps(watch, tid, &mut writes_behind);
                }
            }
            Ok(true) => {}
            Err(e) if is_gone(&e) => return,
            Err(_) => self.all = true,
        }
        self.descriptors(watch, pid, writes_behind);
    }

    /// What is mapped; false if nothing is.
    fn maps(&mut self, watch: &Watch, pid: i32, writes_behind: &mut bool) -> io::Result<bool> {
        let mut lines = BufReader::with_capacity(1 << 16, fs::File::open(watch.host.proc_of(pid, "maps"))?);
        let (mut line, mut has_any) = (Vec::new(), false);
        while lines.read_until(b'\n', &mut line)? > 0 {
            has_any = true;
            if let Some(mapped) = Mapped::parse(&line) {
                *writes_behind |= mapped.path == b"/[aio]";
                self.mapped(watch, pid, &mapped);
            }
            line.clear();
        }
        Ok(has_any)
    }

    fn mapped(&mut self, watch: &Watch, pid: i32, mapped: &Mapped) {
        if !mapped.is_shared || mapped.inode == 0 || NO_FILES.iter().any(|none| mapped.path.starts_with(none)) {
            return;
        }
        self.inodes.insert(mapped.inode);
        // Whatever is called so now.
        let has_file = self.path(watch, mapped.path);
        if !has_file || mapped.path.ends_with(b" (deleted)") {
            // Perhaps it has another name.
            let link = watch.host.proc_of(pid, "map_files").join(mapped.range);
            match fs::metadata(&link) {
                Ok(meta) if meta.nlink() == 0 || !is_of_overlay(watch.host, pid, mapped.device) => {
                    self.inodes.insert(meta.ino());
                }
                Err(e) if is_gone(&e) => {}
                _ => self.all = true,
            }
        }
    }

    /// Adds the file that the container knows as `path`; false if there is none below the root.
    fn path(&mut self, watch: &Watch, path: &[u8]) -> bool {
        let Some(Ok(root)) = watch.root.map(Node::again) else { return true };
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let found = names.map(unescaped).try_fold(root, |dir, name| dir.child(&name));
        found.inspect(|node| _ = self.inodes.insert(node.meta.id.ino)).is_ok()
    }

    /// Who hands the kernel work and does not wait for it (io_uring, aio) may have files written to later than their times say.
    fn descriptors(&mut self, watch: &Watch, pid: i32, mut writes_behind: bool) {
        let folder = watch.host.proc_of(pid, "fd");
        let links: Vec<_> = ids(&folder)
            .filter_map(|fd| {
                let at = folder.join(fd.to_string());
                Some((fs::read_link(&at).ok()?, at))
            })
            .collect();
        writes_behind |= links.iter().any(|(to, _)| to.as_os_str().as_bytes().starts_with(b"anon_inode:[io_uring]"));
        for (to, at) in links.iter().filter(|(to, _)| writes_behind && to.is_absolute()) {
            self.inodes.extend(fs::metadata(at).map(|meta| meta.ino()));
            self.path(watch, to.as_os_str().as_bytes());
        }
    }

    /// Files that are block devices: who writes to those writes to them, at the kernel's leisure.
    fn loops(&mut self, watch: &Watch) {
        let backing = |entry: fs::DirEntry| fs::read(entry.path().join("loop/backing_file")).ok();
        for file in fs::read_dir("/sys/block").into_iter().flatten().flatten().filter_map(backing) {
            let path = file.trim_ascii_end();
            self.inodes.extend(fs::metadata(Path::new(std::ffi::OsStr::from_bytes(path))).map(|meta| meta.ino()));
            self.path(watch, path);
        }
    }
}

fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH)
}

fn ids(folder: &Path) -> impl Iterator<Item = i32> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// True unless the process has a mount of this device that is no overlay: only under overlay a file's inode has several
/// numbers.
fn is_of_overlay(host: &Host, pid: i32, device: &[u8]) -> bool {
    let mounts = fs::read(host.proc_of(pid, "mountinfo")).unwrap_or_default();
    // maps has hexadecimal numbers, mountinfo decimal ones.
    let number = |text: &[u8], radix| u32::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok();
    let pair = |text: &[u8], radix| {
        let (major, minor) = (text.split(|&byte| byte == b':').next()?, text.split(|&byte| byte == b':').nth(1)?);
        Some((number(major, radix)?, number(minor, radix)?))
    };
    let Some(device) = pair(device, 16) else { return true };
    let mut kinds = mounts.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let of = pair(fields.nth(2)?, 10)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (of == device).then_some(kind)
    });
    // Of a device without a mount (System V memory, what was unmounted) nothing is known, and it is in no tree of ours.
    kinds.next().is_some_and(|kind| kind == b"overlay")
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

/// A line of `/proc/<pid>/maps`: `55d0-55d1 rw-s 00000000 08:01 1234   /a/path` (proc(5)).
struct Mapped<'l> {
    range: &'l str,
    is_shared: bool,
    device: &'l [u8],
    inode: u64,
    path: &'l [u8],
}

impl<'l> Mapped<'l> {
    /// What may be written to later counts too, so the permissions of now do not matter.
    fn parse(line: &'l [u8]) -> Option<Self> {
        let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
        let mut field = || {
            let at = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
            let (field, more) = rest.split_at(at);
            rest = more.get(1..).unwrap_or_default();
            field
        };
        let (range, permissions, _, device, inode) = (field(), field(), field(), field(), field());
        let range = std::str::from_utf8(range).ok()?;
        let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
        Some(Self { range, is_shared: permissions.ends_with(b"s"), device, inode, path: rest.trim_ascii_start() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_read_to_its_last_byte() {
        let line = b"7f00-7f01 rw-s 00000000 fd:0a 1234                       /var/lib/a b\\012c\n";
        let mapped = Mapped::parse(line).unwrap();
        assert_eq!(
            (mapped.range, mapped.is_shared, mapped.device, mapped.inode),
            ("7f00-7f01", true, &b"fd:0a"[..], 1234)
        );
        assert_eq!(unescaped(mapped.path), b"/var/lib/a b\nc");
        assert!(!Mapped::parse(b"7f00-7f01 rw-p 00000000 00:00 0 \n").unwrap().is_shared);
        assert!(Mapped::parse(b"garbage").is_none());
    }
}
