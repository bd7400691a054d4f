//! From a container's record to all its places. Only reads.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use super::{ruins, store::Store};
use crate::{
    containerd::{
        docker::Manifest,
        log,
        meta::{Container, Image, Origin, SnapshotRecord},
        task::{self, TaskRecord},
    },
    digest::Digest,
    error::{Error, Result},
    host::Host,
    id::{ContainerRef, Namespace, SnapshotKey},
    oci::runtime::Spec,
    proto::{self, Any, RuncOptions},
    runtime::{self, Task, process},
    snapshotter::{self, RwLayer},
};

pub use crate::error::with_causes;

/// A container with all its places found. What could not be found is said in `findings`.
pub struct Target {
    /// Its record.
    pub container: Container,
    /// Its spec, as containerd stored it; `None` when that cannot be read.
    pub spec: Option<Spec>,
    /// The record of its image.
    pub image: Option<Image>,
    /// Where its files are.
    pub rw: Option<RwLayer>,
    /// The key of the snapshot below: normally the image's chain id.
    pub parent: Option<String>,
    /// Its processes.
    pub task: TaskState,
    /// Where its log is, if the records say so.
    pub log: Option<String>,
    /// What is not as it should be, each with its consequence.
    pub findings: Vec<String>,
}

/// What became of a container's task.
pub enum TaskState {
    /// None is on record.
    None,
    /// One was made and its first process is gone.
    Ended,
    /// Its first process lives.
    Live(Task),
}

impl TaskState {
    /// The live one.
    pub fn live(&self) -> Option<&Task> {
        if let Self::Live(task) = self { Some(task) } else { None }
    }
}

/// What follows when the record of the image is not found.
pub const NO_IMAGE: &str = "the base image is not in the bundle";

/// Finds all places of a container.
pub fn locate(store: &Store, container: Container) -> Result<Target> {
    let mut findings = doubts(store, &container);
    let spec = note(&mut findings, "the spec cannot be read, so no memory can be dumped", spec(&container));
    let image = image(store, &container);
    let files = note(&mut findings, "the container's files are not in the bundle", files(store, &container));
    let image = match (image, files.as_ref().and_then(|files| below(files, &container.name))) {
        (Err(e @ (Error::NotFound { .. } | Error::Corrupt { .. } | Error::Malformed { .. })), Some(chain))
            if !container.image.is_empty() =>
        {
            findings.push(format!("{}: what the container stands on takes its place", with_causes(&e)));
            Some(Image { name: container.image.clone(), ..store.image_of_chain(&chain) })
        }
        (image, _) => note(&mut findings, NO_IMAGE, image),
    };
    let doubt = image.as_ref().and_then(|image| Some((&image.name, image.origin.doubt()?)));
    findings.extend(doubt.map(|(name, doubt)| format!("the record of image {name} is {doubt}")));
    let (task, damage) = task(&store.host, &container)?;
    let log = note(&mut findings, "the container's log is not in the bundle", log(store, &container)).flatten();
    findings.extend(damage.map(|e| format!("{}: other records are used instead", with_causes(&e))));
    let (rw, parent) = files.map_or((None, None), |files| {
        findings.extend(files.findings);
        (Some(files.rw), files.parent)
    });
    Ok(Target { spec, image, rw, parent, task, log, findings, container })
}

/// The chain id of the layers that a container stands on, or, where that is not known, something that stands for it.
fn below(files: &Files, who: &ContainerRef) -> Option<Digest> {
    match &files.parent {
        Some(key) => key.parse().ok(),
        None => matches!(files.rw, RwLayer::Overlay { .. }).then(|| Digest::of(who.to_string().as_bytes())),
    }
}

/// What a damaged or missing database makes uncertain.
fn doubts(store: &Store, container: &Container) -> Vec<String> {
    let used = |e: &Error| format!("{}: what could be read of it is used", with_causes(e));
    let own = container.origin.doubt().map(|doubt| format!("the record of {} is {doubt}", container.name));
    store.damage().iter().map(used).chain(own).chain(store.unknown(container)).collect()
}

fn note<T>(findings: &mut Vec<String>, consequence: &str, found: Result<T>) -> Option<T> {
    found.map_err(|e| findings.push(format!("{}: {consequence}", with_causes(&e)))).ok()
}

fn spec(container: &Container) -> Result<Spec> {
    let place = || format!("spec of {}", container.name);
    if container.spec.is_empty() {
        return Err(Error::malformed(place(), "the record has none"));
    }
    let any: Any = proto::decode(&container.spec).map_err(|e| Error::malformed(place(), e))?;
    serde_json::from_slice(&any.value).map_err(|e| Error::malformed(place(), e))
}

fn image(store: &Store, container: &Container) -> Result<Image> {
    let docker = store.docker(container)?;
    if let Some(docker) = docker.as_ref().filter(|_| container.snapshot_key.0.is_empty()) {
        return Err(Error::Unsupported {
            what: format!("Docker keeps image {:?} in its graph driver {}", container.image, docker.driver),
            hint: "take it along (docker save on this node), or let the target pull it".into(),
        });
    }
    let made_from = docker.and_then(|docker| docker.manifest);
    let named = |name: &str| match name {
        "" => Err(Error::NotFound { what: "an image name in the container's record".into(), hint: String::new() }),
        name => store.image(&container.name.namespace, name)?.ok_or_else(|| Error::NotFound {
            what: format!("image {name:?} of namespace {}", container.name.namespace),
            hint: "its record was removed since the container was made".into(),
        }),
    };
    match (named(&container.image), made_from) {
        // dockerd knows the manifest, whatever became of the name.
        (Err(Error::NotFound { .. }), Some(Manifest { digest, media_type, size })) => {
            let name = match container.image.as_str() {
                "" => format!("localhost/moby@{digest}"),
                name => name.to_owned(),
            };
            Ok(Image { name, digest, media_type, size, origin: Origin::Live })
        }
        (found, _) => found,
    }
}

/// A container's files.
pub struct Files {
    /// Where they are.
    pub rw: RwLayer,
    /// The key of the snapshot below.
    pub parent: Option<String>,
    /// What is not as it should be, each with its consequence.
    pub findings: Vec<String>,
}

/// Where its files are: by the records, else by what is mounted, which is said.
pub fn files(store: &Store, container: &Container) -> Result<Files> {
    if let Some(rw) = store.remaining_files(&container.name) {
        return Ok(Files { rw, parent: None, findings: Vec::new() });
    }
    recorded_files(store, container).or_else(|e| {
        let mounted = ruins::mounted(&store.host, &container.name).ok_or(e)?;
        let findings = vec!["its files are found by what is mounted".into()];
        Ok(Files { rw: mounted.rw, parent: None, findings })
    })
}

fn recorded_files(store: &Store, container: &Container) -> Result<Files> {
    let Container { name, snapshotter, snapshot_key, .. } = container;
    if snapshot_key.0.is_empty()
        && let Some(docker) = store.docker(container)?
    {
        let (rw, parent) = snapshotter::docker::rw_layer(&store.host, &docker.data_root, &docker.driver, &name.id)?;
        return Ok(Files { rw, parent, findings: Vec::new() });
    }
    if snapshotter.is_empty() || snapshot_key.0.is_empty() {
        return Err(Error::NotFound { what: "a snapshot in the container's record".into(), hint: String::new() });
    }
    let record = store.snapshot(&name.namespace, snapshotter, snapshot_key)?.ok_or_else(|| Error::NotFound {
        what: format!("snapshot {snapshot_key} of {snapshotter} in namespace {}", name.namespace),
        hint: "its record was removed since the container was made".into(),
    })?;
    let snapshotter::Found { rw, mut findings } =
        snapshotter::rw_layer(&store.host, &store.databases, snapshotter, &record.name)?;
    findings.extend(record.origin.doubt().map(|doubt| format!("the record of snapshot {snapshot_key} is {doubt}")));
    let files = Files { rw, parent: record.parent.as_ref().map(|p| p.0.clone()), findings };
    match dockers_init(store, container, record.parent.as_ref())? {
        Some(init) => Ok(on_the_image(files, init)),
        None => Ok(files),
    }
}

/// The same files, where the layer below them is Docker's, not the image's.
fn on_the_image(files: Files, init: SnapshotRecord) -> Files {
    let Files { rw, mut findings, .. } = files;
    let parent = init.parent.map(|p| p.0);
    let rw = rw.clone().stacked(1).unwrap_or_else(|| {
        findings.push(
            "what Docker's init layer has (mount points, .dockerenv) is not in the bundle: with this snapshotter it cannot be \
             told from the image"
                .into(),
        );
        rw
    });
    Files { rw, parent, findings }
}

/// The record of the layer that dockerd puts between an image and a container: mount points and `.dockerenv`. It is not of
/// the image (moby `daemon/containerd/image_snapshot.go`, `prepareInitLayer`).
fn dockers_init(store: &Store, of: &Container, parent: Option<&SnapshotKey>) -> Result<Option<SnapshotRecord>> {
    let Some(key) = parent.filter(|key| key.0.strip_suffix("-init") == Some(of.name.id.as_str())) else {
        return Ok(None);
    };
    let found = store.snapshot(&of.name.namespace, &of.snapshotter, key)?;
    found.map(Some).ok_or_else(|| Error::NotFound { what: format!("snapshot {key}"), hint: String::new() })
}

/// Where the container's log is, if its records say so.
pub fn log(store: &Store, container: &Container) -> Result<Option<String>> {
    let cri = store.extension(&container.name, log::CRI_METADATA)?;
    if let Some(path) = log::path(container, cri.as_deref()) {
        return Ok(Some(path));
    }
    Ok(store.docker(container)?.and_then(|docker| docker.log))
}

/// What became of the container's task, by pid and start time; and what was damaged on the way, but not needed.
pub fn task(host: &Host, container: &Container) -> Result<(TaskState, Option<Error>)> {
    let Some(mut record) = task::read(host, &container.name)? else { return Ok(without_directory(host, container)) };
    let damage = record.damage.take();
    if host.sysroot.is_some() {
        return Ok((TaskState::Ended, damage));
    }
    let (state, lacking) = state(host, container, &record)?;
    Ok((state, lacking.or(damage)))
}

/// Without a state directory there is no task; unless somebody removed the directory from under a container that lives.
fn without_directory(host: &Host, container: &Container) -> (TaskState, Option<Error>) {
    let name = &container.name;
    let root = recorded_root(container).map_or_else(|| usual_root(host, name), |root| outside(host, root));
    let is_ours = |task: &Task| {
        let dirs =
            task::PLUGINS.map(|plugin| host.state.join(plugin).join(name.namespace.as_str()).join(name.id.as_str()));
        dirs.contains(&task.runtime_bundle) && host.is_alive(task.init).unwrap_or(false)
    };
    match runtime::read(host, &root, name) {
        Ok(Some(task)) if host.sysroot.is_none() && is_ours(&task) => {
            let gone = Error::malformed(&task.runtime_bundle, "the task's directory is gone, and the task lives");
            (TaskState::Live(task), Some(gone))
        }
        _ => (TaskState::None, None),
    }
}

fn state(host: &Host, container: &Container, record: &TaskRecord) -> Result<(TaskState, Option<Error>)> {
    let root = record.runtime_root.clone().or_else(|| recorded_root(container));
    let root = root.map_or_else(|| usual_root(host, &container.name), |root| outside(host, root));
    let bundle = &record.runtime_bundle;
    let lacking = match runtime::read(host, &root, &container.name) {
        Ok(Some(task)) if !is_of(host, &task, record) => return Ok((TaskState::Ended, None)),
        Ok(Some(task)) if host.is_alive(task.init)? => return Ok((TaskState::Live(task), None)),
        // Both records name the process, and it is gone.
        Ok(Some(task)) if record.init_pid == Some(task.init.pid) => return Ok((TaskState::Ended, None)),
        Ok(Some(_)) => Error::malformed(&root, "the runtime's state names a process that is gone, and another lives"),
        Ok(None) => unknown_runtime(record, &root),
        // The runtime's directory is root's, also where this store is a copy that anybody may read.
        Err(e) if e.is_permission() && !may_live(host, record)? => return Ok((TaskState::Ended, None)),
        Err(e) if e.is_permission() => return Err(e),
        Err(e) => e,
    };
    // No record that can be used does not make a running container a stopped one.
    let of = |pid| process::read(host, &container.name, pid, bundle);
    let named = record.init_pid.filter(|&pid| pid > 0).map_or(Ok(None), of)?;
    let task = match named {
        Some(task) => Some(task),
        None => process::search(host, &container.name, bundle).map_or(Ok(None), of)?,
    };
    Ok(task.map_or((TaskState::Ended, None), |task| (TaskState::Live(task), Some(lacking))))
}

/// Where the runtime keeps its state if nothing on record says so: the first of the usual places that has some of it.
fn usual_root(host: &Host, who: &ContainerRef) -> PathBuf {
    let has = |root: &&PathBuf| root.join(who.namespace.as_str()).join(who.id.as_str()).is_dir();
    host.runtime_roots.iter().find(has).unwrap_or(&host.runc_root).clone()
}

/// Which containers of one namespace have left any trace of a task, told by a few looks at directories, not by one for each
/// of a hundred thousand containers.
pub struct Traces {
    /// Whose.
    pub namespace: Namespace,
    /// Their ids; `None` if that cannot be told, so that each must be asked for.
    ids: Option<HashSet<OsString>>,
}

impl Traces {
    /// Looks at the state directory and at the usual places of runtimes.
    pub fn of(host: &Host, namespace: &Namespace) -> Self {
        let roots = host.runtime_roots.iter().chain([&host.runc_root]).map(|root| root.join(namespace.as_str()));
        let ids = task::directories(host, namespace)
            .and_then(|dirs| names_in(dirs.into_iter().chain(roots.filter(|_| host.sysroot.is_none()))));
        Self { namespace: namespace.clone(), ids }
    }

    /// False if `container` surely has no task. A runtime's directory of its own was not looked at.
    pub fn may_have(&self, container: &Container) -> bool {
        let id = OsStr::new(container.name.id.as_str());
        self.ids.as_ref().is_none_or(|ids| ids.contains(id)) || recorded_root(container).is_some()
    }
}

/// The names in these directories, as far as they are there; `None` if one cannot be read.
fn names_in(dirs: impl Iterator<Item = PathBuf>) -> Option<HashSet<OsString>> {
    let mut names = HashSet::new();
    for dir in dirs {
        match std::fs::read_dir(dir) {
            Ok(entries) => {
                for entry in entries {
                    names.insert(entry.ok()?.file_name());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // A runtime's directory is root's; who may not read it is not told of live tasks either.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
            Err(_) => return None,
        }
    }
    Some(names)
}

/// A path below the state directory as the host sees it: a rootless containerd sees that directory at the usual place.
fn outside(host: &Host, path: PathBuf) -> PathBuf {
    let rest = host.state_inside.as_ref().and_then(|inside| path.strip_prefix(inside).ok());
    rest.map(|rest| host.state.join(rest)).unwrap_or(path)
}

/// True if the runtime's state belongs to this store's task. Runtimes keep theirs at a fixed place whatever containerd's
/// state directory is, so next to a copied store another container of the same name may be found there.
fn is_of(host: &Host, task: &Task, record: &TaskRecord) -> bool {
    let bundle = outside(host, task.runtime_bundle.clone());
    let same = |path: &Path| path.canonicalize().ok();
    bundle == record.runtime_bundle || same(&bundle).is_some_and(|bundle| same(&record.runtime_bundle) == Some(bundle))
}

fn unknown_runtime(record: &TaskRecord, root: &Path) -> Error {
    let runtime = record.runtime_binary.as_deref().unwrap_or("its runtime");
    Error::Unsupported {
        what: format!("{runtime} left no state that is known in {}", root.display()),
        hint: String::new(),
    }
}

/// False if the first process is gone whatever the runtime would say.
fn may_live(host: &Host, record: &TaskRecord) -> Result<bool> {
    Ok(match record.init_pid {
        Some(pid) => host.proc_stat(pid)?.is_some(),
        None => false,
    })
}

/// The runtime's state directory as the container's own record has it.
fn recorded_root(container: &Container) -> Option<PathBuf> {
    let any: Any = proto::decode(&container.runtime_options).ok()?;
    let options: RuncOptions = (any.type_url == proto::RUNC_OPTIONS).then(|| proto::decode(&any.value).ok())??;
    Some(options.root).filter(|root| !root.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A host with one task on record, whose runtime state names `bundle` and our own process.
    fn host(temp: &Path, bundle: &Path) -> (Host, Container) {
        let host = Host {
            root: temp.join("root"),
            state: temp.join("state"),
            runc_root: temp.join("runc"),
            ..Host::default()
        };
        fs::create_dir_all(host.state.join("io.containerd.runtime.v2.task/default/web")).unwrap();
        fs::create_dir_all(host.runc_root.join("default/web")).unwrap();
        let pid = std::process::id();
        let state = serde_json::json!({
            "init_process_pid": pid,
            "init_process_start": host.proc_stat(pid.cast_signed()).unwrap().unwrap().started,
            "config": {"rootfs": bundle.join("rootfs"), "labels": [format!("bundle={}", bundle.display())]},
            "cgroup_paths": {"": "/sys/fs/cgroup/default/web"},
        });
        fs::write(host.runc_root.join("default/web/state.json"), state.to_string()).unwrap();
        let container = Container {
            name: crate::id::ContainerRef { namespace: "default".parse().unwrap(), id: "web".parse().unwrap() },
            image: String::new(),
            snapshotter: String::new(),
            snapshot_key: crate::id::SnapshotKey(String::new()),
            runtime: String::new(),
            runtime_options: Vec::new(),
            spec: Default::default(),
            labels: std::collections::BTreeMap::new(),
            origin: Origin::Live,
            created_at: None,
        };
        (host, container)
    }

    /// Rootless, containerd has `/run/user/<uid>/containerd` mounted at `/run/containerd`, and runc writes down what it sees.
    #[test]
    fn a_live_task_of_a_rootless_store_is_known_by_the_path_inside() {
        let temp = tempfile::tempdir().unwrap();
        let theirs = Path::new("/run/containerd/io.containerd.runtime.v2.task/default/web");
        let (mut host, container) = host(temp.path(), theirs);
        assert!(task(&host, &container).unwrap().0.live().is_none());
        host.state_inside = Some("/run/containerd".into());
        assert!(task(&host, &container).unwrap().0.live().is_some());
    }

    #[test]
    fn a_live_task_of_another_store_is_not_this_container() {
        let temp = tempfile::tempdir().unwrap();
        let ours = temp.path().join("state/io.containerd.runtime.v2.task/default/web");
        std::os::unix::fs::symlink(temp.path().join("state"), temp.path().join("link")).unwrap();
        let linked = temp.path().join("link/io.containerd.runtime.v2.task/default/web");
        let theirs = Path::new("/run/containerd/io.containerd.runtime.v2.task/default/web");
        for (bundle, live) in [(ours.as_path(), true), (&linked, true), (theirs, false)] {
            let (host, container) = host(temp.path(), bundle);
            let task = task(&host, &container).unwrap();
            assert_eq!(task.0.live().is_some(), live, "{}", bundle.display());
        }
    }

    /// A runtime whose state we cannot read must not make a running container pass for a stopped one.
    #[test]
    fn a_task_that_lives_under_an_unknown_runtime_is_refused() {
        for (cgroup, alive) in [("0::/default/web", true), ("0::/somebody/else", false)] {
            let temp = tempfile::tempdir().unwrap();
            let (mut host, container) = host(temp.path(), temp.path());
            let pid = std::process::id().to_string();
            let bundle = host.state.join("io.containerd.runtime.v2.task/default/web");
            fs::write(bundle.join("init.pid"), &pid).unwrap();
            fs::remove_file(host.runc_root.join("default/web/state.json")).unwrap();
            let process = temp.path().join("proc").join(&pid);
            fs::create_dir_all(&process).unwrap();
            fs::copy(host.proc.join(&pid).join("stat"), process.join("stat")).unwrap();
            fs::write(process.join("cgroup"), cgroup).unwrap();
            host.proc = temp.path().join("proc");
            match task(&host, &container) {
                Err(e) => assert!(alive && e.to_string().contains(&format!("process {pid}")), "{e}"),
                Ok((state, _)) => assert!(!alive && matches!(state, TaskState::Ended)),
            }
        }
    }
}
