//! Paths: whose they are. Nothing is opened and no link is followed below a store; the names alone tell.

use std::path::{Component, Path, PathBuf};

use super::{
    Ingest, Place, Snapshot, What, Who,
    atlas::{Atlas, Known},
    content, process,
};
use crate::{containerd::content::Content, digest::Digest, error::Result, host::mounts, snapshotter::all};

/// Everything a path may be.
pub fn ask(atlas: &Atlas<'_>, thing: &str) -> Result<Vec<What>> {
    let mut found = Vec::new();
    for path in readings(atlas, Path::new(thing)) {
        found.extend(of_store(atlas, &path)?);
        if found.is_empty() {
            found.extend(process_of(atlas, &path)?);
            found.extend(process::ask_cgroup(atlas, &path));
            found.extend(named(atlas, &path));
        }
        if found.is_empty() {
            found.extend(mounted(atlas, &path)?);
        }
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// What may be meant: the path as it stands, without its `.` and `..`; below the mounted file system; with links resolved.
fn readings(atlas: &Atlas<'_>, path: &Path) -> Vec<PathBuf> {
    let plain = lexical(path);
    let mut all = vec![plain.clone()];
    match &atlas.host().sysroot {
        Some(sysroot) => all.push(sysroot.join(plain.strip_prefix("/").unwrap_or(&plain))),
        None => all.extend(path.canonicalize().ok().filter(|real| *real != plain)),
    }
    all
}

fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The part of `path` below `dir`, however either is written.
fn below(path: &Path, dir: &Path) -> Option<PathBuf> {
    let within = |dir: &Path| path.strip_prefix(dir).ok().map(Path::to_owned);
    within(dir).or_else(|| within(&dir.canonicalize().ok()?))
}

fn parts(path: &Path) -> Vec<String> {
    path.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

/// What lies in the directories of one containerd.
fn of_store(atlas: &Atlas<'_>, path: &Path) -> Result<Vec<What>> {
    let host = atlas.host();
    let mut found = snapshots(atlas, path)?;
    if let Some(within) = below(path, &host.root.join("io.containerd.content.v1.content")) {
        found.extend(content_of(atlas, &parts(&within))?);
    }
    for (dir, place) in [
        (host.state.join("io.containerd.runtime.v2.task"), "bundle"),
        (host.root.join("io.containerd.runtime.v2.task"), "work directory"),
        (host.runc_root.clone(), "runtime state"),
    ] {
        if let [namespace, id, ..] = parts(&below(path, &dir).unwrap_or_default()).as_slice() {
            let is_it =
                |k: &Known| k.container.name.namespace.as_str() == namespace && k.container.name.id.as_str() == id;
            found.extend(place_of(atlas, place, path, is_it));
        }
    }
    for dir in [&host.root, &host.state].map(|dir| dir.join("io.containerd.grpc.v1.cri")) {
        if let [kind, id, ..] = parts(&below(path, &dir).unwrap_or_default()).as_slice() {
            let place = format!("CRI's directory ({kind})");
            found.extend(place_of(atlas, &place, path, |k| k.container.name.id.as_str() == id));
        }
    }
    Ok(found)
}

fn place_of(atlas: &Atlas<'_>, place: &str, path: &Path, is_it: impl Fn(&Known) -> bool) -> Option<What> {
    let containers: Vec<Who> = atlas.containers.iter().filter(|k| is_it(k)).map(|k| k.who(place)).collect();
    let place = Place { place: place.into(), path: path.display().to_string(), containers };
    (!place.containers.is_empty()).then_some(What::Place(place))
}

/// `snapshots/12/fs/etc/passwd` below a snapshotter's directory; or below none that is named, then of each that has it.
fn snapshots(atlas: &Atlas<'_>, path: &Path) -> Result<Vec<What>> {
    let mut found = Vec::new();
    for (snapshotter, (dir, _)) in &atlas.backends {
        let Some(shape) = all::shape(snapshotter) else { continue };
        let within = if path.is_absolute() { below(path, dir) } else { Some(path.to_owned()) };
        let words = parts(&within.unwrap_or_default());
        let [folder, number, rest @ ..] = words.as_slice() else { continue };
        let (true, Ok(number)) = (shape.folders.contains(&folder.as_str()), number.parse()) else { continue };
        // Beside the files lies what overlay works with.
        let rest = match rest {
            [first, rest @ ..] if first == "fs" => rest,
            [first, ..] if first == "work" => &[],
            rest => rest,
        };
        let file = (!rest.is_empty()).then(|| format!("/{}", rest.join("/")));
        match atlas.name_of(snapshotter, number) {
            Some(name) => found.push(What::Snapshot(atlas.snapshot(snapshotter, name, file)?)),
            None => found.extend(left(snapshotter, &dir.join(folder).join(number.to_string()), number, file)),
        }
    }
    Ok(found)
}

/// A directory that no record names.
fn left(snapshotter: &str, dir: &Path, number: u64, file: Option<String>) -> Option<What> {
    let is_there = std::fs::symlink_metadata(dir).is_ok();
    let nothing = Snapshot { snapshotter: snapshotter.to_owned(), number, file, ..Snapshot::default() };
    is_there.then(|| What::Snapshot(Snapshot { directory: Some(dir.display().to_string()), ..nothing }))
}

fn content_of(atlas: &Atlas<'_>, words: &[String]) -> Result<Option<What>> {
    match words {
        [blobs, algorithm, hex, ..] if blobs == "blobs" => match format!("{algorithm}:{hex}").parse::<Digest>() {
            Ok(digest) => content::blob(atlas, &digest),
            Err(_) => Ok(None),
        },
        [ingest, name, ..] if ingest == "ingest" => {
            let all = Content::of(atlas.host()).ingests()?;
            let one = all.into_iter().find(|one| one.path.file_name().is_some_and(|n| n.to_string_lossy() == *name));
            Ok(one.map(|one| {
                What::Ingest(Ingest { path: one.path.display().to_string(), name: one.name, size: one.size })
            }))
        }
        _ => Ok(None),
    }
}

/// `/proc/<pid>` and all below it.
fn process_of(atlas: &Atlas<'_>, path: &Path) -> Result<Option<What>> {
    let within = below(path, &atlas.host().proc).unwrap_or_default();
    match within.iter().next().and_then(|pid| pid.to_str()?.parse().ok()) {
        Some(pid) => process::ask(atlas, pid),
        None => Ok(None),
    }
}

/// What the containers' records name: log, network namespace, the sources of bind mounts.
fn named(atlas: &Atlas<'_>, path: &Path) -> Vec<What> {
    let mut found = Vec::new();
    let is_log = |k: &Known| k.log(atlas.store).is_some_and(|log| log_matches(path, Path::new(log)));
    found.extend(place_of(atlas, "log", path, is_log));
    for kind in ["network", "ipc", "uts", "pid", "user", "time", "mount", "cgroup"] {
        let is_it =
            |k: &Known| k.spec().linux.namespaces.iter().any(|n| n.kind == kind && same(path, Path::new(&n.path)));
        found.extend(place_of(atlas, &format!("{kind} namespace"), path, is_it));
    }
    // The longest source is the mount that is meant: others may be mounted of directories above.
    let sources = |k: &Known| -> Option<usize> {
        let binds = k.spec().mounts.iter().filter(|mount| mount.is_bind() && mount.source.len() > 1);
        binds.filter(|m| path.starts_with(&m.source)).map(|m| m.source.len()).max()
    };
    let longest = atlas.containers.iter().filter_map(sources).max();
    found.extend(place_of(atlas, "mounted into it", path, |k| longest.is_some() && sources(k) == longest));
    found
}

/// Two ways of writing one path; `/var/run` is `/run`.
fn same(a: &Path, b: &Path) -> bool {
    let plain =
        |path: &Path| path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest)).unwrap_or(path.into());
    !b.as_os_str().is_empty() && plain(a) == plain(b)
}

/// The log itself, or one that was rotated away: `0.log.20261125-101112.gz`.
fn log_matches(path: &Path, log: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path == log || (path.parent() == log.parent() && name(path).starts_with(&format!("{}.", name(log))))
}

/// A place where an overlay is mounted: its upperdir tells the snapshot.
fn mounted(atlas: &Atlas<'_>, path: &Path) -> Result<Vec<What>> {
    let host = atlas.host();
    if host.sysroot.is_some() {
        return Ok(Vec::new());
    }
    let table = host.proc.join("self/mountinfo");
    let Ok(bytes) = std::fs::read(&table) else { return Ok(Vec::new()) };
    // The last of those mounted over one another is what is seen.
    let over = bytes.split(|&b| b == b'\n').filter_map(|line| {
        let mount = mounts::parse(line).pop()?;
        path.starts_with(&mount.at).then_some((mount, line))
    });
    let Some((mount, line)) = over.max_by_key(|(mount, _)| mount.at.len()) else { return Ok(Vec::new()) };
    if mount.fs != "overlay" {
        return Ok(Vec::new());
    }
    let options = String::from_utf8_lossy(line.rsplit(|&b| b == b' ').next().unwrap_or_default()).into_owned();
    let Some(upper) = options.split(',').find_map(|option| option.strip_prefix("upperdir=")) else {
        return Ok(Vec::new());
    };
    let within = path.strip_prefix(&mount.at).unwrap_or(Path::new(""));
    snapshots(atlas, &Path::new(upper).join(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_without_its_detours() {
        assert_eq!(lexical(Path::new("/a/./b/../c//d/")), Path::new("/a/c/d"));
        assert_eq!(lexical(Path::new("/../../etc")), Path::new("/etc"));
    }

    #[test]
    fn a_rotated_log_is_still_the_log() {
        let log = Path::new("/var/log/pods/x/0.log");
        assert!(log_matches(log, log) && log_matches(Path::new("/var/log/pods/x/0.log.20261125-101112.gz"), log));
        assert!(!log_matches(Path::new("/var/log/pods/x/10.log"), log) && !log_matches(Path::new("/tmp/0.log"), log));
        assert!(
            same(Path::new("/run/netns/cni-1"), Path::new("/var/run/netns/cni-1"))
                && !same(Path::new(""), Path::new(""))
        );
    }
}
