//! Markers: what we hold frozen, written where it outlives us, so that somebody else can undo it.
//!
//! ```text
//! <host.run>/frozen/<namespace>-<id>-<pid of init>.json      one per container held; on a tmpfs, so gone after a boot
//! ```
//! A marker is also a lock: it is made only where none is, so two of us never hold one container.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::cgroup::{Former, Freezer};
use crate::{
    error::{At, Error, Result},
    host::Host,
    id::{ContainerRef, TaskPid},
    runtime::CgroupVersion,
};

/// What is held, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// `<namespace>/<id>`, for people.
    pub container: String,
    /// The cgroup that is frozen.
    pub cgroup: PathBuf,
    /// Its interface.
    pub cgroup_version: CgroupVersion,
    /// What it goes back to.
    pub former: Former,
    /// The boot it happened in; a marker of an earlier one means nothing.
    pub boot_id: String,
    /// The container's first process.
    pub init: TaskPid,
    /// The `dewar` that holds it.
    pub owner: TaskPid,
    /// The process that undoes it when the owner is gone.
    pub watchdog: Option<TaskPid>,
    /// The CRIU at work on it.
    pub criu: Option<TaskPid>,
}

impl Marker {
    /// The freezer it speaks of.
    pub fn freezer(&self) -> Freezer {
        Freezer::new(&self.cgroup, self.cgroup_version)
    }

    /// Reads one.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).at("read", path)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))
    }
}

/// A marker on disk, ours.
#[derive(Debug)]
pub struct MarkerFile {
    path: PathBuf,
    marker: Mutex<Marker>,
}

impl MarkerFile {
    /// Writes it; an error of kind `AlreadyExists` if there is one.
    pub fn create(path: &Path, marker: Marker) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)?;
        sweep(dir);
        written(dir, &marker)?.persist_noclobber(path).map_err(|e| e.error).at("create", path)?;
        Ok(Self { path: path.to_owned(), marker: Mutex::new(marker) })
    }

    /// Changes what it says.
    pub fn update(&self, change: impl FnOnce(&mut Marker)) -> Result<()> {
        let mut marker = self.marker.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut marker);
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        written(dir, &marker)?.persist(&self.path).map_err(|e| e.error).at("write", &self.path)?;
        Ok(())
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path)
    }
}

/// Removes a marker; it is no error if it is gone.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

/// Where the marker of a container lies.
pub fn path(host: &Host, who: &ContainerRef, init: TaskPid) -> PathBuf {
    dir(host).join(format!("{}-{}-{}.json", who.namespace, who.id, init.pid))
}

/// Every marker there is, in the order of their names.
pub fn all(host: &Host) -> Result<Vec<PathBuf>> {
    let dir = dir(host);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).at("read", dir),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.at("read", &dir)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// This boot's id (`random(4)`).
pub fn boot_id(host: &Host) -> Result<String> {
    let path = host.proc.join("sys/kernel/random/boot_id");
    Ok(fs::read_to_string(&path).at("read", &path)?.trim_end().to_owned())
}

fn dir(host: &Host) -> PathBuf {
    host.run.join("frozen")
}

/// How the names of files begin that are to become markers.
const UNFINISHED: &str = ".new-";

/// Between its creation and its lock a file is empty, for less than this.
const BIRTH: Duration = Duration::from_millis(100);

/// Removes what a `dewar` that was killed while it wrote a marker has left. It is in nobody's way, so no failure is told.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_unfinished = entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
        let Some(file) = is_unfinished.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        let is_born = file.metadata().is_ok_and(|meta| {
            meta.len() > 0 || meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > BIRTH))
        });
        if is_born && file.try_lock().is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whole or not at all: a reader never sees half a marker. No sync: the directory does not outlive the machine.
fn written(dir: &Path, marker: &Marker) -> Result<NamedTempFile> {
    let mut temp = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).at("create a file in", dir)?;
    // Held until it has its name: nobody takes it for left behind.
    let _ = temp.as_file().try_lock_shared();
    let bytes = serde_json::to_vec(marker).map_err(|e| Error::malformed(dir, e))?;
    temp.write_all(&bytes).at("write", temp.path())?;
    Ok(temp)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn marker() -> Marker {
        Marker {
            container: "default/web".into(),
            cgroup: "/sys/fs/cgroup/web".into(),
            cgroup_version: CgroupVersion::V2,
            former: Former::Running,
            boot_id: "b".into(),
            init: TaskPid { pid: 7, started: 70 },
            owner: TaskPid { pid: 8, started: 80 },
            watchdog: None,
            criu: None,
        }
    }

    #[test]
    fn a_container_is_marked_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("frozen/default-web-7.json");
        let file = MarkerFile::create(&path, marker()).unwrap();
        assert!(MarkerFile::create(&path, marker()).is_err());
        file.update(|m| m.criu = Some(TaskPid { pid: 9, started: 90 })).unwrap();
        assert_eq!(Marker::read(&path).unwrap().criu.unwrap().pid, 9);
        file.remove().unwrap();
        file.remove().unwrap();
        MarkerFile::create(&path, marker()).unwrap();
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("frozen");
        fs::create_dir(&dir).unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let lives = written(&dir, &marker()).unwrap();
        let born = dir.join(".new-born");
        fs::write(&born, "").unwrap();
        fs::write(dir.join(".new-dead"), "half").unwrap();
        let file = MarkerFile::create(&dir.join("a.json"), marker()).unwrap();
        let mut left = [born.file_name().unwrap(), lives.path().file_name().unwrap(), "a.json".as_ref()];
        left.sort();
        assert_eq!(names(), left);
        std::thread::sleep(2 * BIRTH);
        drop(lives);
        file.remove().unwrap();
        MarkerFile::create(&dir.join("a.json"), marker()).unwrap();
        assert_eq!(names(), ["a.json"]);
    }

    #[test]
    fn only_whole_markers_are_listed() {
        let temp = tempfile::tempdir().unwrap();
        let host = Host { run: temp.path().to_owned(), ..Host::default() };
        assert!(all(&host).unwrap().is_empty());
        MarkerFile::create(&temp.path().join("frozen/a.json"), marker()).unwrap();
        fs::write(temp.path().join("frozen/.new-X"), "half").unwrap();
        assert_eq!(all(&host).unwrap(), [temp.path().join("frozen/a.json")]);
    }
}
