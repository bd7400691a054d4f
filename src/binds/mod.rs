//! What is mounted into a container: the content of each as one plain tar, as `tar -x` restores it.
//!
//! A directory becomes `./` (its own owner, mode and attributes) and all below it; anything else becomes one entry with the
//! last name of the destination. Nothing is interpreted: a file called `.wh.x` is a file. What is mounted inside a mount is
//! another mount, and symbolic links are stored, not followed.
//!
//! [`view`] tells which mount is the one that the spec asked for, [`path`] walks to it, [`log`] takes the container's log.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::Path,
};

pub mod log;
mod path;
mod view;

pub use path::open_in_root;
use view::{Found, HostView, View};

use crate::{
    ahead::{self, Compression, Draft, Probe, Tar, Watch},
    error::{At, Error, Result},
    freeze::Still,
    host::Host,
    interrupt,
    layout::{Blob, Staging},
    oci::runtime::{Mount, Spec},
    runtime::Task,
    tree::{FileId, Held, Kind, LeftOut, Meta, Node, Packer, Sink, Summary, Why, plain},
};

/// One mount as it was while nobody wrote.
pub struct Captured {
    /// What was mounted: [`BIND`] or [`TMPFS`].
    pub kind: &'static str,
    /// Where it was mounted in the container.
    pub destination: String,
    /// What is in it, and what could not be.
    pub summary: Summary,
    /// Its content.
    pub tar: Tar,
}

impl Captured {
    /// How it is called in messages.
    pub fn name(&self) -> String {
        name_of(self.kind, &self.destination)
    }
}

/// How the mount of this kind there is called.
pub fn name_of(kind: &str, destination: &str) -> String {
    format!("{} {destination}", if kind == BIND { "bind mount" } else { kind })
}

/// What became of a container's mounts.
#[derive(Default)]
pub struct Mounts {
    /// Those that are captured, in the spec's order.
    pub captured: Vec<Captured>,
    /// What is as it must be.
    pub notes: Vec<String>,
    /// What is not in the bundle, or not from where it should be.
    pub findings: Vec<String>,
}

/// A bind mount, as annotations call it.
pub const BIND: &str = "bind";
/// Memory that is mounted, as annotations call it.
pub const TMPFS: &str = "tmpfs";

/// File systems that are views of the kernel: nothing in them is the container's (statfs(2), `f_type`).
const KERNEL_VIEWS: [(&str, i64); 14] = [
    ("proc", 0x9fa0),
    ("sysfs", 0x6265_6572),
    ("cgroup", 0x0027_e0eb),
    ("cgroup2", 0x6367_7270),
    ("devpts", 0x1cd1),
    ("debugfs", 0x6462_6720),
    ("tracefs", 0x7472_6163),
    ("securityfs", 0x7363_6673),
    ("bpf", 0xcafe_4a11),
    ("mqueue", 0x1980_0202),
    ("configfs", 0x6265_6570),
    ("pstore", 0x6165_676c),
    ("efivarfs", 0xde5e_81e4),
    ("fusectl", 0x6573_5543),
];

/// What a runtime makes in `/dev` (runc `libcontainer/rootfs_linux.go`, `setupDevSymlinks`, and `specconv`).
const DEV: [&str; 15] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fd", "stdin", "stdout", "stderr", "core",
    "pts", "shm",
];

/// So many names stand in one finding.
const MAX_NAMES: usize = 10;

/// What was copied of bind mounts while the container ran: by number in the spec, with the directory or file it is of.
#[derive(Default)]
pub struct Ahead(BTreeMap<usize, (FileId, Draft)>);

/// Copies the bind mounts of a running container, as far as it can be told later what has changed. What cannot be read is
/// told when it is captured.
pub fn copy_ahead(host: &Host, task: &Task, spec: &Spec, staging: &Staging) -> Result<Ahead> {
    let mut all = Ahead::default();
    let Ok(source) = View::of(host, task, spec).map(Source::Live) else { return Ok(all) };
    for (i, mount) in spec.mounts.iter().enumerate().filter(|(_, mount)| mount.is_bind()) {
        interrupt::check()?;
        let place = &source.places()[i];
        if place == "/" || covering(source.places(), i).is_some() {
            continue;
        }
        let Ok(Found { node, .. }) = source.find(spec, i) else { continue };
        if matches!(node.meta.kind, Kind::File | Kind::Directory) && ahead::can_tell(&node) {
            let watch = Watch { host, task, root: None, everyone: true };
            let what = What::of(&node, mount, place, staging)?;
            let draft = Draft::make(Compression::None, staging, &watch, |sink| what.write(sink).map(drop))?;
            all.0.insert(i, (node.meta.id, draft));
        }
    }
    Ok(all)
}

/// Captures every bind mount of the spec, in its order; and, of a live container whose memory was not dumped
/// (`is_dumped`), every tmpfs.
///
/// A live container's are read as it has them, so an over-mounted or since-moved source is still right; a stopped one's
/// from their sources on the host. Its tmpfs went with it.
pub fn capture(
    host: &Host,
    still: &Still,
    spec: &Spec,
    is_dumped: bool,
    mut ahead: Ahead,
    staging: &Staging,
) -> Result<Mounts> {
    let mut all = Mounts::default();
    let source = match Source::of(host, still, spec) {
        Ok(source) => source,
        Err(e) => {
            let cause = std::error::Error::source(&e).map_or_else(String::new, |cause| format!(": {cause}"));
            all.findings.push(format!("what is mounted is not in the bundle: {e}{cause}"));
            return Ok(all);
        }
    };
    for (i, mount) in spec.mounts.iter().enumerate() {
        interrupt::check()?;
        let is_lost_tmpfs = mount.is_tmpfs() && !is_dumped && still.task().is_some();
        if mount.is_bind() || is_lost_tmpfs {
            let draft = ahead.0.remove(&i);
            all.take(&source, spec, i, draft, staging)?;
        }
    }
    Ok(all)
}

/// The tmpfs mounts of a live container that hold something, for one whose memory is not dumped.
pub fn filled_tmpfs(host: &Host, still: &Still, spec: &Spec) -> Result<Vec<String>> {
    let source = Source::of(host, still, spec)?;
    let holds = |i: &usize| {
        let (mount, places) = (&spec.mounts[*i], source.places());
        let Ok(Found { node, .. }) = source.find(spec, *i) else { return false };
        let Ok(names) = node.dir().and_then(|dir| dir.names()) else { return false };
        let is_place = |name: &[u8]| places.contains(&path::join(&places[*i], name));
        match places[*i] == "/dev" {
            true => has_more_than_a_runtime_makes(&node, spec),
            false => mount.is_tmpfs() && names.iter().any(|name| !is_place(name)),
        }
    };
    let tmpfs = (0..spec.mounts.len()).filter(|&i| spec.mounts[i].is_tmpfs() && covering(source.places(), i).is_none());
    Ok(tmpfs.filter(holds).map(|i| spec.mounts[i].destination.clone()).collect())
}

/// Where mounts are read.
#[allow(clippy::large_enum_variant, reason = "there is only ever one of it")]
enum Source {
    /// As the live container has them.
    Live(View),
    /// From their sources; with the places they had in the container, as far as the spec tells.
    Stopped(HostView, Vec<OsString>),
}

impl Source {
    fn of(host: &Host, still: &Still, spec: &Spec) -> Result<Self> {
        match still.task() {
            Some(task) => Ok(Self::Live(View::of(host, task, spec)?)),
            None => {
                let places = spec.mounts.iter().map(|m| path::clean(&m.destination)).collect();
                Ok(Self::Stopped(HostView::of(host)?, places))
            }
        }
    }

    /// Where each mount of the spec lies in the container.
    fn places(&self) -> &[OsString] {
        match self {
            Self::Live(view) => view.places(),
            Self::Stopped(_, places) => places,
        }
    }

    fn find(&self, spec: &Spec, i: usize) -> Result<Found, String> {
        match self {
            Self::Live(view) => view.find(spec, i),
            Self::Stopped(host, _) => host.open(&spec.mounts[i].source).map(|node| Found { node, caveat: None }),
        }
    }

    /// The type of the file system that was met at `place` in the container, in the mount that `meta` is of.
    fn fs(&self, place: &OsStr, meta: Option<&Meta>) -> Option<&OsStr> {
        match self {
            Self::Live(view) => view.fs_at(place),
            Self::Stopped(host, _) => host.fs_of(meta?.mount),
        }
    }
}

impl Mounts {
    fn take(
        &mut self,
        source: &Source,
        spec: &Spec,
        i: usize,
        draft: Option<(FileId, Draft)>,
        staging: &Staging,
    ) -> Result<()> {
        let (mount, place) = (&spec.mounts[i], &source.places()[i]);
        let name = label(mount);
        if place == "/" {
            self.findings.push(format!("{name} is not in the bundle: its destination names no place of its own"));
            return Ok(());
        }
        if let Some(over) = covering(source.places(), i) {
            let over = label(&spec.mounts[over]);
            self.notes.push(format!("{name} is not in the bundle: the spec mounts {over} over it"));
            return Ok(());
        }
        let Found { node, caveat } = match source.find(spec, i) {
            Ok(found) => found,
            Err(why) => {
                self.findings.push(format!("{name} is not in the bundle: {why}"));
                return Ok(());
            }
        };
        if node.meta.kind == Kind::Socket {
            self.notes.push(format!("{name} is a socket, which has no content"));
            return Ok(());
        }
        if let Some(view) = kernel_view(&node) {
            self.findings.push(format!("{name} is not in the bundle: it is a view of the kernel ({view})"));
            return Ok(());
        }
        if mount.is_tmpfs() && place == "/dev" && !has_more_than_a_runtime_makes(&node, spec) {
            return Ok(());
        }
        self.findings.extend(caveat.map(|caveat| format!("{name}: {caveat}")));
        let what = What::of(&node, mount, place, staging)?;
        let kind = if mount.is_bind() { BIND } else { TMPFS };
        let (tar, summary) = match draft {
            Some((id, draft)) if id == node.meta.id => {
                let is_tree = node.meta.kind == Kind::Directory;
                let probe = is_tree.then_some(Probe { root: &node, before: None });
                draft.catch_up(staging, probe, |sink| what.write(sink))?
            }
            _ => ahead::whole(Compression::None, staging, |sink| what.write(sink))?,
        };
        let mut captured = Captured { kind, destination: mount.destination.clone(), summary, tar };
        self.findings.extend(inner_mounts(&mut captured.summary, source, spec, i));
        self.captured.push(captured);
        Ok(())
    }
}

/// How a mount is called in messages.
fn label(mount: &Mount) -> String {
    let kind = if mount.is_bind() { "bind mount" } else { &mount.kind };
    format!("{kind} {}", mount.destination)
}

/// The mount of the spec that was made later and hides this one: at its place or above.
fn covering(places: &[OsString], i: usize) -> Option<usize> {
    (i + 1..places.len()).find(|&later| places[later] != "/" && path::below(&places[i], &places[later]).is_some())
}

fn kernel_view(source: &Node) -> Option<&'static str> {
    let kind = source.file_system().ok()?;
    KERNEL_VIEWS.iter().find(|(_, magic)| *magic == kind).map(|(name, _)| *name)
}

/// True if a program has put something into `/dev`. What cannot be listed may hold anything.
fn has_more_than_a_runtime_makes(dev: &Node, spec: &Spec) -> bool {
    let first = |path: &str| path.strip_prefix("/dev/").and_then(|rest| rest.split('/').next()).map(str::to_owned);
    let devices = spec.linux.devices.iter().map(|device| device.path.as_str());
    let of_spec: BTreeSet<_> =
        spec.mounts.iter().map(|m| m.destination.as_str()).chain(devices).filter_map(first).collect();
    let is_known =
        |name: &Vec<u8>| std::str::from_utf8(name).is_ok_and(|name| DEV.contains(&name) || of_spec.contains(name));
    dev.dir().and_then(|dir| dir.names()).map_or(true, |names| !names.iter().all(is_known))
}

/// Takes what is mounted inside a mount out of the account, and tells it, unless that says nothing: another mount of the
/// spec, a view of the kernel, a device that the runtime put there, a place that the spec hides.
fn inner_mounts(summary: &mut Summary, source: &Source, spec: &Spec, i: usize) -> Option<String> {
    let place = &source.places()[i];
    let (inner, rest): (Vec<LeftOut>, _) = summary.left_out.drain(..).partition(|lost| lost.why == Why::Mount);
    summary.left_out = rest;
    let is_known = |lost: &LeftOut| {
        let at = path::join(place, &lost.path);
        let fs = source.fs(&at, lost.meta.as_ref());
        let is_device = place == "/dev" && lost.meta.as_ref().is_some_and(|meta| meta.kind != Kind::Directory);
        source.places().contains(&at)
            || is_device
            || fs.is_some_and(|fs| KERNEL_VIEWS.iter().any(|(name, _)| *name == fs))
            || spec.linux.masked_paths.iter().any(|masked| path::clean(masked) == at)
    };
    let names: Vec<String> =
        inner.iter().filter(|lost| !is_known(lost)).map(|lost| lost.path.escape_ascii().to_string()).collect();
    let more =
        names.len().checked_sub(MAX_NAMES).filter(|&n| n > 0).map_or_else(String::new, |n| format!(" and {n} more"));
    (!names.is_empty()).then(|| {
        format!(
            "{}: what is mounted inside it is not in the bundle, as the spec does not name it: {}{more}; copy it by hand",
            label(&spec.mounts[i]),
            names[..names.len().min(MAX_NAMES)].join(", ")
        )
    })
}

/// What is to be packed.
struct What<'w> {
    source: &'w Node,
    /// Where the container sees it.
    destination: OsString,
    /// A mount may hold the layout that is being written: it must not hold itself.
    ours: FileId,
}

impl<'w> What<'w> {
    fn of(source: &'w Node, mount: &Mount, place: &OsStr, staging: &Staging) -> Result<Self> {
        // A destination that ends in `..` has no last name of its own.
        let destination =
            Some(path::clean(&mount.destination)).filter(|d| d != "/").unwrap_or_else(|| place.to_owned());
        let ours = Node::open(&staging.path(".")).at("open", staging.path("."))?.meta.id;
        Ok(Self { source, destination, ours })
    }

    fn write(&self, sink: &mut dyn Sink) -> Result<Summary> {
        let packer = Packer::into_sink(sink, |_| Held::Kept);
        write(self.source, &self.destination.to_string_lossy(), Some(self.ours), packer)
    }
}

/// Stores a captured mount, which the ledger calls `of`, as a blob.
pub fn seal(tar: Tar, staging: &Staging, of: &str) -> Result<Blob> {
    tar.store(staging, of).map(|stored| stored.blob)
}

/// Writes the content of a mount as a tar stream. `dest` is where the container sees it: a mount that is a single file
/// gets its name from there.
pub fn write_bind(source: &Node, dest: &str, out: &mut dyn Write) -> Result<Summary> {
    write(source, dest, None, Packer::new(out, |_| Held::Kept))
}

fn write(source: &Node, dest: &str, ignored: Option<FileId>, mut packer: Packer) -> Result<Summary> {
    if let Some(ours) = ignored {
        packer.ignore(ours);
    }
    if source.meta.kind == Kind::Directory {
        packer.entry(b".", source)?;
        plain::pack(source, &mut packer, |_| None)?;
    } else {
        let name =
            Path::new(dest).file_name().ok_or_else(|| Error::malformed(dest, "a mount's destination needs a name"))?;
        packer.entry(name.as_bytes(), source)?;
    }
    packer.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{freeze, layout::Layout};

    /// Destinations and names in their tars, notes, findings.
    type Answer = (Vec<(String, Vec<String>)>, Vec<String>, Vec<String>);

    /// What becomes of these mounts of a stopped container of the machine whose files are in `sysroot`.
    fn captured(sysroot: &Path, mounts: &str) -> Answer {
        let host = Host { sysroot: Some(sysroot.to_owned()), ..Host::default() };
        let spec: Spec = serde_json::from_str(&format!(r#"{{"mounts":[{mounts}]}}"#)).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(&temp.path().join("layout")).unwrap();
        let staging = layout.stage().unwrap();
        let still = freeze::stopped(&host, None).unwrap();
        let mounts = capture(&host, &still, &spec, false, Ahead::default(), &staging).unwrap();
        let names = |captured: Captured| {
            let tar = staging.read_blob(&seal(captured.tar, &staging, "").unwrap().digest).unwrap();
            let mut archive = tar::Archive::new(&tar[..]);
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            (captured.destination, names.collect())
        };
        (mounts.captured.into_iter().map(names).collect(), mounts.notes, mounts.findings)
    }

    fn mount(source: &str, destination: &str) -> String {
        format!(r#"{{"source":"{source}","destination":"{destination}","type":"","options":["bind","ro"]}}"#)
    }

    #[test]
    fn unusual_specs_give_mounts_or_findings_and_never_an_error() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("srv/data")).unwrap();
        fs::write(temp.path().join("srv/data/f"), "").unwrap();
        fs::write(temp.path().join("srv/file"), "").unwrap();
        std::os::unix::fs::symlink("/../../srv/data", temp.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("srv/sock")).unwrap();
        for (source, destination, names) in [
            ("/srv/data", "/data", &["./", "f"][..]),
            ("/srv/data/", "data/", &["./", "f"]),
            ("/link", "/a/../data", &["./", "f"]),
            ("/srv/../srv/file", "/etc/./hosts/", &["hosts"]),
            ("/srv/file", "/x/../hosts", &["hosts"]),
        ] {
            let (all, notes, findings) = captured(temp.path(), &mount(source, destination));
            assert_eq!(all, [(destination.to_owned(), names.iter().map(|n| n.to_string()).collect())], "{source}");
            assert_eq!((notes.len(), findings.len()), (0, 0));
        }
        for (source, destination, why) in [
            ("/srv/data", "", "names no place"),
            ("/srv/data", "/", "names no place"),
            ("/srv/file", "/x/..", "names no place"),
            ("", "/data", "no absolute path"),
            ("data", "/data", "no absolute path"),
            ("/srv/gone", "/data", "is gone"),
            ("/srv/file/below", "/data", "Not a directory"),
        ] {
            let (all, _, findings) = captured(temp.path(), &mount(source, destination));
            assert_eq!((all.len(), findings.len()), (0, 1), "{source:?} {destination:?}");
            assert!(findings[0].contains(why) && findings[0].contains(destination), "{findings:?}");
        }
        let (all, notes, findings) = captured(temp.path(), &mount("/srv/sock", "/run/sock"));
        assert_eq!(
            (all.len(), notes.as_slice(), findings.len()),
            (0, &["bind mount /run/sock is a socket, which has no content".to_owned()][..], 0)
        );
    }

    #[test]
    fn what_the_spec_hides_itself_is_a_note_and_no_bind_mount_is_not_looked_at() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("srv/data")).unwrap();
        let tmpfs = r#"{"source":"tmpfs","destination":"/run","type":"tmpfs"}"#;
        let none = r#"{"source":"/srv/data","destination":"/b","type":"none","options":["rbind","rw"]}"#;
        let all = [&mount("/srv/data", "/a/sub"), &mount("/srv/data", "/a"), tmpfs, none].map(str::to_owned).join(",");
        let (all, notes, findings) = captured(temp.path(), &all);
        let destinations: Vec<_> = all.iter().map(|(destination, _)| destination.as_str()).collect();
        assert_eq!(destinations, ["/a", "/b"]);
        assert_eq!((notes.len(), findings.len()), (1, 0), "{notes:?} {findings:?}");
        assert!(
            notes[0].contains("/a/sub") && notes[0].ends_with("the spec mounts bind mount /a over it"),
            "{notes:?}"
        );
    }
}
