//! No runtime's record: what the state directory and procfs say of a container's first process.
//!
//! ```text
//! <bundle>/init.pid           a pid that may be another's by now
//! <bundle>/rootfs             the container's root, as the host has it mounted
//! /proc/<pid>/cgroup          names the container, and where its freezer is
//! /proc/<pid>/root            the same directory as <bundle>/rootfs for an ordinary container
//! ```
//! A pid proves nothing, so the process must be the container's by its cgroup or by its root. And its cgroup must hold the
//! container only: whatever is in it will be frozen.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Task,
    cgroup::{self, Place},
};
use crate::{
    error::{At, Error, Result},
    host::{Host, document},
    id::{ContainerRef, TaskPid},
};

/// The task whose first process is `pid`, as far as procfs tells. `None` if there is no such process, or it is not the
/// container's; an error if it is, and cannot be held still.
pub fn read(host: &Host, who: &ContainerRef, pid: i32, bundle: &Path) -> Result<Option<Task>> {
    let Some(stat) = host.proc_stat(pid)?.filter(|stat| !matches!(stat.state, 'Z' | 'X' | 'x')) else {
        return Ok(None);
    };
    let (names, rootfs) = (cgroup_names(host, pid)?, bundle.join("rootfs"));
    let in_rootfs = is_root_of(host, pid, &rootfs);
    if !in_rootfs && !names.iter().any(|name| belongs(name, who, bundle)) {
        return Ok(None);
    }
    if !in_rootfs && !is_below_shim(host, pid, bundle) {
        return Err(not_held(
            who,
            pid,
            "it may be the container of that name in another store: no shim of this one started it",
        ));
    }
    let place = cgroup::of(host, pid)?.ok_or_else(|| not_held(who, pid, "no freezer of its cgroup can be found"))?;
    is_its_own(host, who, pid, bundle, &place).map_err(|why| not_held(who, pid, why))?;
    Ok(Some(Task {
        runtime: "",
        init: TaskPid { pid, started: stat.started },
        cgroup: place.dir,
        cgroup_version: place.version,
        runtime_bundle: bundle.to_owned(),
        rootfs,
        external_descriptors: Vec::new(),
        undumpable: (!in_rootfs).then(|| {
            format!(
                "process {pid} does not run on the container's file system but holds it in a sandbox of its own (gVisor, \
                 Kata, …): CRIU cannot dump that as a container, and what it had not yet written to the host's files is \
                 not in the bundle either"
            )
        }),
    }))
}

/// The oldest process that is the container's beyond doubt, where no record names one: its root is the bundle's, or its cgroup
/// the one the spec asked for. `None` if no such process lives.
pub fn search(host: &Host, who: &ContainerRef, bundle: &Path) -> Option<i32> {
    let rootfs = bundle.join("rootfs");
    let asked = asked(bundle).filter(|path| path.ends_with(who.id.as_str()) && path.components().count() > 1);
    let is_asked = |pid| {
        let names = cgroup_names(host, pid).unwrap_or_default();
        asked.as_ref().is_some_and(|asked| names.iter().any(|name| name.ends_with(asked)))
    };
    let entries = fs::read_dir(&host.proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let theirs =
        pids.filter(|&pid| is_root_of(host, pid, &rootfs) || is_asked(pid) && is_below_shim(host, pid, bundle));
    theirs.filter_map(|pid| Some((host.proc_stat(pid).ok()??.started, pid))).min().map(|(_, pid)| pid)
}

fn not_held(who: &ContainerRef, pid: i32, why: &str) -> Error {
    Error::Unsupported {
        what: format!("the task of {who} lives (process {pid}) and cannot be frozen: {why}"),
        hint: "stop the container first; then its files come home".into(),
    }
}

/// The paths of all its cgroups, whatever the hierarchy.
fn cgroup_names(host: &Host, pid: i32) -> Result<Vec<PathBuf>> {
    let path = host.proc_of(pid, "cgroup");
    match fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().filter_map(|line| Some(line.splitn(3, ':').nth(2)?.into())).collect())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e).at("read", path),
    }
}

/// True of a cgroup that carries the container's id, or the path its spec asked for.
fn belongs(cgroup: &Path, who: &ContainerRef, bundle: &Path) -> bool {
    let id = who.id.as_str();
    // `<id>`; `docker-<id>.scope`, `cri-containerd-<id>.scope`; `kubepods-…:cri-containerd:<id>`. A short id is a part of
    // many a name, so it must stand between marks.
    let carries = |name: &str| {
        let bare = name.strip_suffix(".scope").unwrap_or(name);
        bare == id || bare.strip_suffix(id).is_some_and(|before| before.ends_with(['-', ':', '_']))
    };
    let named = cgroup.components().any(|part| part.as_os_str().to_str().is_some_and(carries));
    named || asked(bundle).is_some_and(|asked| !asked.as_os_str().is_empty() && cgroup.ends_with(asked))
}

/// The spec's `cgroupsPath`, without its first `/`.
fn asked(bundle: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Spec {
        linux: Linux,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Linux {
        cgroups_path: PathBuf,
    }
    let bytes = document::read(bundle, &["config.json"]).ok()??;
    let path = serde_json::from_slice::<Spec>(&bytes).ok()?.linux.cgroups_path;
    Some(path.strip_prefix("/").map(Path::to_owned).unwrap_or(path))
}

/// True if the process' root directory is the root of the container's file system.
pub fn is_root_of(host: &Host, pid: i32, rootfs: &Path) -> bool {
    let of = |path: PathBuf| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let theirs = of(host.proc_of(pid, "root/."));
    theirs.is_some() && theirs == of(rootfs.to_owned()) && theirs != of(host.proc.join("self/root/."))
}

/// More generations lie between no shim and what it starts.
const MAX_GENERATIONS: usize = 16;

/// True if it, or what started it, works in a bundle of this store's: a shim does, in the first of those it serves
/// (containerd `core/runtime/v2/shim.go`, `shim/util.go`, `Command`). A copy of a store has the same names in it, and the same
/// pids, but not the same directories.
fn is_below_shim(host: &Host, pid: i32, bundle: &Path) -> bool {
    let of = |path: PathBuf| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let Some(tasks) = of(bundle.join("..")) else { return false };
    let line = std::iter::successors(Some(pid), |&pid| parent(host, pid).filter(|&above| above > 1));
    line.take(MAX_GENERATIONS).any(|pid| of(host.proc_of(pid, "cwd/..")) == Some(tasks))
}

/// That freezing the cgroup freezes the container, and nothing else that matters.
fn is_its_own(host: &Host, who: &ContainerRef, pid: i32, bundle: &Path, place: &Place) -> Result<(), &'static str> {
    let pids = place.pids();
    if place.is_root() {
        return Err("its freezer is the one of the whole machine");
    }
    if pids.contains(&std::process::id().cast_signed()) {
        return Err("dewar runs in its cgroup and would freeze itself; run it from outside");
    }
    if parent(host, pid).is_some_and(|shim| pids.contains(&shim)) {
        return Err("the program that started it, which must go on, is in the same cgroup");
    }
    // Of another name: then all in it must live in the same pid namespace, which no other container shares by accident.
    let namespace = |pid: i32| fs::read_link(host.proc_of(pid, "ns/pid")).ok();
    let own = namespace(pid);
    let host_wide = own == namespace(1) || own.is_none();
    let is_named = belongs(&place.path, who, bundle);
    if !is_named && (host_wide || pids.iter().any(|&other| namespace(other) != own)) {
        return Err("its cgroup may hold others' processes as well");
    }
    Ok(())
}

/// Field 4 of `/proc/<pid>/stat`.
fn parent(host: &Host, pid: i32) -> Option<i32> {
    let bytes = fs::read(host.proc_of(pid, "stat")).ok()?;
    let end = bytes.iter().rposition(|&b| b == b')')?;
    std::str::from_utf8(bytes.get(end + 1..)?).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{id::ContainerRef, runtime::youki};

    fn who(id: &str) -> ContainerRef {
        ContainerRef { namespace: "default".parse().unwrap(), id: id.parse().unwrap() }
    }

    #[test]
    fn a_cgroup_is_a_containers_if_a_part_of_its_path_is_the_id() {
        let temp = tempfile::tempdir().unwrap();
        for (path, ours) in [
            ("/default/web", true),
            ("/default/web/init", true),
            ("/system.slice/docker-web.scope", true),
            ("/kubepods-pod1.slice/cri-containerd-web.scope", true),
            ("/kubepods-pod1.slice:cri-containerd:web", true),
            ("/default/web2", false),
            ("/default/myweb", false),
            ("/web-shim/other", false),
            ("/", false),
        ] {
            assert_eq!(belongs(Path::new(path), &who("web"), temp.path()), ours, "{path}");
        }
        fs::write(temp.path().join("config.json"), r#"{"linux":{"cgroupsPath":"/my/place"}}"#).unwrap();
        assert!(belongs(Path::new("/lab/my/place"), &who("web"), temp.path()), "what its spec asked for");
        assert!(!belongs(Path::new("/lab/my"), &who("web"), temp.path()));
    }

    /// A procfs and a cgroup hierarchy of plain files, in which process 7 is in the cgroup `path`, with 8, which started it.
    fn scene(path: &str, members: &str) -> (tempfile::TempDir, Host) {
        let temp = tempfile::tempdir().unwrap();
        let host = Host { proc: temp.path().join("proc"), cgroup: temp.path().join("cgroup"), ..Host::default() };
        let dir = host.cgroup.join(path.trim_start_matches('/'));
        fs::create_dir_all(host.proc.join("7")).unwrap();
        fs::create_dir_all(&dir).unwrap();
        fs::write(host.cgroup.join("cgroup.controllers"), "").unwrap();
        fs::write(dir.join("cgroup.procs"), members).unwrap();
        fs::write(host.proc_of(7, "cgroup"), format!("0::{path}\n")).unwrap();
        let stat = "7 (redis) S 8 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 11 12\n";
        fs::write(host.proc_of(7, "stat"), stat).unwrap();
        // The shim works in another bundle of the same namespace, as one that serves a pod does.
        for bundle in ["tasks/web", "tasks/sandbox", "copy/web"] {
            fs::create_dir_all(temp.path().join(bundle)).unwrap();
        }
        fs::create_dir_all(host.proc.join("8")).unwrap();
        std::os::unix::fs::symlink(temp.path().join("tasks/sandbox"), host.proc_of(8, "cwd")).unwrap();
        (temp, host)
    }

    #[test]
    fn without_a_pid_the_process_is_found_by_what_the_spec_asked_for() {
        let (temp, host) = scene("/default/web", "7\n");
        let bundle = temp.path().join("tasks/web");
        assert_eq!(search(&host, &who("web"), &bundle), None, "an id alone may be another namespace's");
        fs::write(bundle.join("config.json"), r#"{"linux":{"cgroupsPath":"/default/web"}}"#).unwrap();
        assert_eq!(search(&host, &who("web"), &bundle), Some(7));
        fs::write(bundle.join("config.json"), r#"{"linux":{"cgroupsPath":"/prod/web"}}"#).unwrap();
        assert_eq!(search(&host, &who("web"), &bundle), None);
    }

    #[test]
    fn only_a_cgroup_that_holds_the_container_alone_is_taken() {
        let (temp, host) = scene("/default/web", "7\n9\n");
        let bundle = &temp.path().join("tasks/web");
        let task = read(&host, &who("web"), 7, bundle).unwrap().unwrap();
        assert_eq!((task.init.started, task.cgroup), (987_654, host.cgroup.join("default/web")));
        assert!(task.undumpable.is_some(), "its root is not the bundle's");
        assert!(read(&host, &who("db"), 7, bundle).unwrap().is_none(), "a pid that is another's by now");
        assert!(read(&host, &who("web"), 9, bundle).unwrap().is_none(), "no such process");
        let ourselves = std::process::id().to_string();
        for (members, why) in [("7\n8\n", "that started it"), (&*format!("7\n{ourselves}\n"), "freeze itself")] {
            let (temp, host) = scene("/default/web", members);
            let error = read(&host, &who("web"), 7, &temp.path().join("tasks/web")).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("process 7"), "{error}");
        }
    }

    /// A copy of a store has the names and the pids of what runs from the original.
    #[test]
    fn a_copys_container_is_not_the_one_that_runs_from_the_original() {
        let (temp, host) = scene("/default/web", "7\n9\n");
        let (original, copy) = (temp.path().join("tasks/web"), temp.path().join("copy/web"));
        for bundle in [&original, &copy] {
            fs::write(bundle.join("config.json"), r#"{"linux":{"cgroupsPath":"/default/web"}}"#).unwrap();
        }
        assert_eq!(search(&host, &who("web"), &original), Some(7));
        assert_eq!(search(&host, &who("web"), &copy), None);
        let error = read(&host, &who("web"), 7, &copy).unwrap_err().to_string();
        assert!(error.contains("another store"), "{error}");
    }

    /// As youki's sources have it.
    #[test]
    fn youkis_state_names_the_process_and_is_not_runcs() {
        let (temp, host) = scene("/default/web", "7\n");
        let state = temp.path().join("runc/default/web");
        fs::create_dir_all(&state).unwrap();
        let json = r#"{"ociVersion":"v1.0.2","id":"web","status":"running","pid":7,"bundle":"BUNDLE","annotations":{},"created":"2026-01-01T00:00:00Z","creator":0,"useSystemd":false,"cleanUpIntelRdtSubdirectory":null}"#;
        let bundle = temp.path().join("tasks/web");
        let json = json.replace("BUNDLE", bundle.to_str().unwrap());
        fs::write(state.join("state.json"), &json).unwrap();
        let root = temp.path().join("runc");
        let task = crate::runtime::read(&host, &root, &who("web")).unwrap().unwrap();
        assert_eq!((task.runtime, task.init.pid, task.rootfs), ("youki", 7, bundle.join("rootfs")));
        fs::write(state.join("state.json"), json.replace(r#""pid":7,"#, "")).unwrap();
        assert!(youki::read(&host, &root, &who("web")).unwrap().is_none(), "it has not started, or has ended");
        fs::write(state.join("state.json"), &json[..40]).unwrap();
        assert!(crate::runtime::read(&host, &root, &who("web")).is_err());
    }
}
