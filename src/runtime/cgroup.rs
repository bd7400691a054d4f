//! The freezer that holds a process: `/proc/<pid>/cgroup` (cgroups(7)), and where its hierarchy is mounted.
//!
//! ```text
//! 6:freezer:/default/redis      v1    <cgroups>/freezer/default/redis/freezer.state
//! 0::/default/redis             v2    <cgroups>/default/redis/cgroup.freeze      (hybrid: <cgroups>/unified/…)
//! ```

use std::path::{Component, Path, PathBuf};

use super::CgroupVersion;
use crate::{
    error::{At, Result},
    host::Host,
};

/// A cgroup that can be frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory with its freezer.
    pub dir: PathBuf,
    /// Which interface that directory has.
    pub version: CgroupVersion,
    /// Its path within the hierarchy, without the first `/`; empty for the root.
    pub path: PathBuf,
}

impl Place {
    /// True of the cgroup that holds every process of the machine.
    pub fn is_root(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// Every process in it, those in cgroups below it left out.
    pub fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// The freezer that holds `pid`; `None` if there is no such process, or none can be found.
pub fn of(host: &Host, pid: i32) -> Result<Option<Place>> {
    let path = host.proc_of(pid, "cgroup");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => {
            return Ok(None);
        }
        Err(e) => return Err(e).at("read", path),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let freezer = lines().find(|(names, _)| names.split(',').any(|name| name == "freezer"));
    let unified = lines().find(|(names, _)| names.is_empty());
    // A machine may have a version 1 freezer that is not mounted here: then version 2 is what the runtime used, too.
    Ok(freezer.and_then(|(_, path)| v1(host, Path::new(path))).or_else(|| v2(host, Path::new(unified?.1))))
}

/// The freezer of the cgroup that a runtime calls `path`.
pub fn called(host: &Host, path: &Path) -> Option<Place> {
    v1(host, path).or_else(|| v2(host, path))
}

fn v1(host: &Host, path: &Path) -> Option<Place> {
    let path = within(path)?;
    let place = Place { dir: host.cgroup.join("freezer").join(&path), version: CgroupVersion::V1, path };
    place.dir.join("cgroup.procs").exists().then_some(place)
}

fn v2(host: &Host, path: &Path) -> Option<Place> {
    let path = within(path)?;
    let tops = [host.cgroup.clone(), host.cgroup.join("unified")];
    let top = tops.into_iter().find(|top| top.join("cgroup.controllers").exists())?;
    let place = Place { dir: top.join(&path), version: CgroupVersion::V2, path };
    place.dir.join("cgroup.procs").exists().then_some(place)
}

/// The path without its first `/`; `None` where it leads up, as it does for a cgroup outside of our cgroup namespace.
fn within(path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix("/").unwrap_or(path);
    path.components().all(|c| matches!(c, Component::Normal(_))).then(|| path.to_owned())
}
