//! Processes and cgroups: whose they are.
//!
//! A container's cgroup has all its processes, those of `exec` and their children too. One that was moved out of it is
//! still in the container's pid namespace, or below its first process; its shim is the first process' parent.
//! Source: cgroups(7), `/proc/<pid>/cgroup`; pid_namespaces(7).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Place, Process, What, Who,
    atlas::{Atlas, Known},
};
use crate::{
    containerd::shim::{self, Shim},
    error::Result,
    host::Host,
};

/// The process is a thread's way up to its container's first process at most so long.
const MAX_ANCESTORS: usize = 1000;

/// Whose process `pid` is.
pub fn ask(atlas: &Atlas<'_>, pid: i32) -> Result<Option<What>> {
    let host = atlas.host();
    if host.sysroot.is_some() || pid <= 0 || host.proc_stat(pid)?.is_none() {
        return Ok(None);
    }
    let found = owner(atlas, pid)?;
    let command = shim::command(host, pid)?;
    Ok(found.map(|container| What::Process(Process { pid, command: command.join(" "), container })))
}

fn owner(atlas: &Atlas<'_>, pid: i32) -> Result<Option<Who>> {
    let host = atlas.host();
    let live = || atlas.containers.iter().filter_map(|k| k.task(host).live().map(|task| (k, task)));
    if let Some((known, _)) = live().find(|(_, task)| task.init.pid == pid) {
        return Ok(Some(known.who("its first process")));
    }
    let paths = cgroups(host, pid)?;
    if let Some(known) = paths.iter().find_map(|path| by_cgroup(atlas, path)) {
        return Ok(Some(known.who("in its cgroup")));
    }
    let mut at = pid;
    for _ in 0..MAX_ANCESTORS {
        let Some(above) = shim::parent(host, at)?.filter(|pid| *pid > 1) else { break };
        if let Some((known, _)) = live().find(|(_, task)| task.init.pid == above) {
            return Ok(Some(known.who(format!("below its first process {above}"))));
        }
        at = above;
    }
    let ours = pid_namespace(host, "self".as_ref());
    let its = pid_namespace(host, pid.to_string().as_ref()).filter(|its| Some(its) != ours.as_ref());
    let same = live().find(|(_, task)| its.is_some() && pid_namespace(host, task.init.pid.to_string().as_ref()) == its);
    if let Some((known, _)) = same {
        return Ok(Some(known.who("in its pid namespace")));
    }
    let Some(shim) = Shim::of(host, pid)? else { return Ok(None) };
    let named = atlas.containers.iter().find(|known| serves(&shim, known));
    let served = || live().find(|(_, task)| shim::parent(host, task.init.pid).is_ok_and(|parent| parent == Some(pid)));
    Ok(named.or_else(|| served().map(|(known, _)| known)).map(|known| known.who("its shim")))
}

/// True if the shim was started for this container.
pub fn serves(shim: &Shim, known: &Known) -> bool {
    let name = &known.container.name;
    shim.namespace == name.namespace.as_str() && shim.id == name.id.as_str()
}

fn pid_namespace(host: &Host, pid: &Path) -> Option<PathBuf> {
    fs::read_link(host.proc.join(pid).join("ns/pid")).ok()
}

/// The paths of a process' cgroups, without the root ones.
fn cgroups(host: &Host, pid: i32) -> Result<Vec<PathBuf>> {
    let table = shim::of_process(host, pid, "cgroup")?;
    let table = String::from_utf8_lossy(&table);
    let mut paths: Vec<PathBuf> =
        table.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(PathBuf::from).collect();
    paths.retain(|path| path.parent().is_some());
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

/// The container whose cgroup `path` is, or is below: the nearest one.
pub fn by_cgroup<'k>(atlas: &'k Atlas<'_>, path: &Path) -> Option<&'k Known> {
    let depth = |known: &Known| {
        let own = known_cgroups(atlas.host(), known).into_iter().filter(|own| path.starts_with(own));
        own.map(|own| own.components().count()).max()
    };
    let found = atlas.containers.iter().filter_map(|known| depth(known).map(|depth| (depth, known)));
    found.max_by_key(|(depth, _)| *depth).map(|(_, known)| known).or_else(|| by_name(atlas, path))
}

/// What a container's cgroup is called: by its runtime, by its first process, and by its spec.
fn known_cgroups(host: &Host, known: &Known) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Some(task) = known.task(host).live() {
        all.extend(cgroups(host, task.init.pid).unwrap_or_default());
        all.extend(in_hierarchy(host, &task.cgroup));
    }
    let path = Path::new(&known.spec().linux.cgroups_path);
    if path.is_absolute() && path.parent().is_some() {
        all.push(path.to_owned());
    }
    all.retain(|path| path.parent().is_some());
    all
}

/// A cgroup's path within its hierarchy; in version 1 the first name below the mount point is the controller's.
pub fn in_hierarchy(host: &Host, dir: &Path) -> Vec<PathBuf> {
    let Ok(below) = dir.strip_prefix(&host.cgroup) else { return Vec::new() };
    let mut parts = below.components();
    let whole = Path::new("/").join(below);
    parts.next();
    vec![whole, Path::new("/").join(parts.as_path())]
}

/// systemd's names hold the id: `cri-containerd-<id>.scope` (`slice:prefix:name` in the spec). Only ids that are no words.
fn by_name<'k>(atlas: &'k Atlas<'_>, path: &Path) -> Option<&'k Known> {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    atlas.containers.iter().find(|known| {
        let id = known.container.name.id.as_str();
        id.len() >= 32
            && parts.iter().any(|part| part == id || part.strip_suffix(".scope").is_some_and(|p| p.ends_with(id)))
    })
}

/// Whose cgroup a path is: below `/sys/fs/cgroup`, or as `/proc/<pid>/cgroup` has it.
pub fn ask_cgroup(atlas: &Atlas<'_>, path: &Path) -> Option<What> {
    let host = atlas.host();
    let candidates = match path.starts_with(&host.cgroup) {
        true => in_hierarchy(host, path),
        false => vec![path.to_owned()],
    };
    let known = candidates.iter().filter(|path| path.parent().is_some()).find_map(|path| by_cgroup(atlas, path))?;
    let containers = vec![known.who("its cgroup")];
    Some(What::Place(Place { place: "cgroup".into(), path: path.display().to_string(), containers }))
}
