//! Bind mounts: the content of each as one plain tar, as `tar -x` restores it.
//!
//! A directory becomes `./` (its own owner, mode and attributes) and all below it; anything else becomes one entry with the
//! last name of the destination. Nothing is interpreted: a file called `.wh.x` is a file. What is mounted inside a mount is
//! another mount, and symbolic links are stored, not followed.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufWriter, IntoInnerError, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use crate::{
    error::{At, Error, Result},
    freeze::Still,
    host::Host,
    interrupt,
    layout::{Blob, Staging},
    oci::runtime::{Mount, Spec},
    tree::{Held, Kind, Node, Packer, Summary, plain},
};

/// One bind mount as it was while nobody wrote: a plain tar in the staging.
pub struct Captured {
    /// Where it was mounted in the container.
    pub destination: String,
    /// What is in it, and what could not be.
    pub summary: Summary,
    tar: File,
}

/// File systems that are views of the kernel: nothing in them is the container's (statfs(2), `f_type`).
const KERNEL_VIEWS: [(&str, i64); 6] = [
    ("proc", 0x9fa0),
    ("sysfs", 0x6265_6572),
    ("cgroup", 0x0027_e0eb),
    ("cgroup2", 0x6367_7270),
    ("devpts", 0x1cd1),
    ("debugfs", 0x6462_6720),
];

/// Captures every bind mount of the spec, in its order, and says which could not be, and why.
///
/// A live container's are read as its processes see them, so an over-mounted or since-moved source is still right; a
/// stopped one's from their sources on the host.
pub fn capture(host: &Host, still: &Still, spec: &Spec, staging: &Staging) -> Result<(Vec<Captured>, Vec<String>)> {
    let (mut all, mut findings) = (Vec::new(), Vec::new());
    for (i, mount) in spec.mounts.iter().filter(|mount| mount.is_bind()).enumerate() {
        interrupt::check()?;
        let lost = |why: String| format!("bind mount {} is not in the bundle: {why}", mount.destination);
        let source = match open(host, still, mount) {
            Ok(source) => source,
            Err(e) => {
                let cause = std::error::Error::source(&e).map_or_else(String::new, |c| format!(": {c}"));
                findings.push(lost(format!("{e}{cause}")));
                continue;
            }
        };
        if let Some(view) = kernel_view(&source) {
            findings.push(lost(format!("it is a view of the kernel ({view})")));
            continue;
        }
        all.push(pack(&source, &mount.destination, &format!("bind-{i}.tar"), staging)?);
    }
    Ok((all, findings))
}

fn open(host: &Host, still: &Still, mount: &Mount) -> Result<Node> {
    match (still.task(), &host.sysroot) {
        (Some(task), _) => open_in_root(&host.proc_of(task.init.pid, "root"), &mount.destination),
        (None, Some(sysroot)) => open_in_root(sysroot, &mount.source),
        (None, None) => open_in_root(Path::new("/"), &mount.source),
    }
}

fn kernel_view(source: &Node) -> Option<&'static str> {
    let kind = source.file_system().ok()?;
    KERNEL_VIEWS.iter().find(|(_, magic)| *magic == kind).map(|(name, _)| *name)
}

fn pack(source: &Node, destination: &str, name: &str, staging: &Staging) -> Result<Captured> {
    let path = staging.path(name);
    let mut out = BufWriter::with_capacity(1 << 20, staging.file(name)?);
    let summary = write_bind(source, destination, &mut out)?;
    let tar = out.into_inner().map_err(IntoInnerError::into_error).at("write", path)?;
    Ok(Captured { destination: destination.to_owned(), summary, tar })
}

/// Stores a captured mount as a blob.
pub fn seal(captured: &mut Captured, staging: &Staging) -> Result<Blob> {
    let mut blob = staging.blob()?;
    captured.tar.seek(SeekFrom::Start(0)).at("read", "a captured bind mount")?;
    let copied = io::copy(&mut captured.tar, &mut blob);
    interrupt::check()?;
    copied.at("store bind mount", &captured.destination)?;
    blob.complete()
}

/// As many symbolic links as the kernel follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What `dest` names for a process whose root directory is `root`, as it sees it: links are followed, none leads out.
///
/// `root` may be `/proc/<pid>/root`; then mounts are crossed as the process would, and what is found is what it has there
/// now. Every step is one name below an open directory, so nobody can swap a link in between (and it needs no `openat2`,
/// which older kernels do not have).
pub fn open_in_root(root: &Path, dest: &str) -> Result<Node> {
    let place = root.join(dest.trim_start_matches('/'));
    // The directory itself, should the path be a link as `/proc/<pid>/root` is.
    let top = Node::open(&root.join(".")).at("open", root)?;
    resolve(&top, dest.as_bytes())
        .and_then(|found| found.map_or_else(|| Node::open(&root.join(".")), Ok))
        .at("open", place)
}

/// Walks down from `top`; `None` if the path ends there.
fn resolve(top: &Node, dest: &[u8]) -> io::Result<Option<Node>> {
    let mut todo: VecDeque<Vec<u8>> = dest.split(|&b| b == b'/').map(<[u8]>::to_vec).collect();
    let (mut way, mut links): (Vec<Node>, usize) = (Vec::new(), 0);
    while let Some(name) = todo.pop_front() {
        match name.as_slice() {
            b"" | b"." => continue,
            // Up is where we came from: `..` of a directory that was moved could lead outside.
            b".." => {
                way.pop();
                continue;
            }
            _ => {}
        }
        let node = way.last().unwrap_or(top).child(&name)?;
        if node.meta.kind != Kind::Symlink {
            way.push(node);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        let target = node.target()?;
        if target.starts_with(b"/") {
            way.clear();
        }
        target.split(|&b| b == b'/').rev().for_each(|part| todo.push_front(part.to_vec()));
    }
    Ok(way.pop())
}

/// Writes the content of a bind mount as a tar stream. `dest` is where the container sees it: a mount that is a single file
/// gets its name from there.
pub fn write_bind(source: &Node, dest: &str, out: &mut dyn Write) -> Result<Summary> {
    let mut packer = Packer::new(out, |_| Held::Kept);
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
