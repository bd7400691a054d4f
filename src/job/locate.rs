//! From what a user typed to a container with all its places found. Only reads.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    containerd::{
        meta::{Container, Image, MetaDb},
        task::{self, TaskRecord},
    },
    error::{At, Error, Result},
    host::Host,
    id::Namespace,
    oci::runtime::Spec,
    proto::{self, Any, RuncOptions},
    runtime::{self, Task},
    snapshotter::{self, RwLayer},
};

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

/// Finds the container that `wanted` means: an id, a unique prefix of one, a name, `pod/container`, or
/// `namespace/id`.
pub fn find(meta: &MetaDb, namespace: Option<&Namespace>, wanted: &str) -> Result<Container> {
    let mut all = Vec::new();
    meta.for_each_container(|record| {
        let in_scope = |c: &Container| namespace.is_none_or(|ns| *ns == c.name.namespace);
        all.extend(record.ok().filter(in_scope).map(Candidate::from));
    })?;
    let chosen = choose(&all, wanted)?;
    let record = meta.container(&chosen.record)?;
    record.ok_or_else(|| Error::NotFound { what: format!("container {wanted:?}"), hint: String::new() })
}

/// What a container may be called.
struct Candidate {
    record: crate::id::ContainerRef,
    name: String,
}

impl From<Container> for Candidate {
    fn from(container: Container) -> Self {
        Self { name: human_name(&container.labels), record: container.name }
    }
}

/// The most exact way of meaning a container decides; within it, there must be one.
fn choose<'a>(all: &'a [Candidate], wanted: &str) -> Result<&'a Candidate> {
    let ways: [&dyn Fn(&Candidate) -> bool; 4] = [
        &|c| c.record.id.as_str() == wanted || c.record.to_string() == wanted,
        &|c| !c.name.is_empty() && c.name == wanted,
        &|c| c.record.id.as_str().starts_with(wanted),
        &|c| c.record.to_string().starts_with(wanted),
    ];
    for means in ways.iter().filter(|_| !wanted.is_empty()) {
        let found: Vec<&Candidate> = all.iter().filter(|c| means(c)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Ok(one),
            several => {
                let choices = several.iter().take(20).map(|c| c.record.to_string()).collect();
                return Err(Error::Ambiguous { what: format!("container {wanted:?}"), choices });
            }
        }
    }
    Err(Error::NotFound { what: format!("container {wanted:?}"), hint: suggestion(all, wanted) })
}

/// Names within a few typing errors of what was asked for.
fn suggestion(all: &[Candidate], wanted: &str) -> String {
    let near = |text: &str| strsim::damerau_levenshtein(text, wanted) <= 1 + wanted.chars().count() / 4;
    let mut names: Vec<String> =
        all.iter().filter(|c| near(c.record.id.as_str()) || near(&c.name)).map(|c| c.record.to_string()).collect();
    names.truncate(5);
    match (names.is_empty(), all.is_empty()) {
        (false, _) => format!("did you mean {}?", names.join(" or ")),
        (true, true) => "the store has no containers here; is --root right, and the namespace (-n)?".into(),
        (true, false) => "dewar ls shows what there is".into(),
    }
}

/// The name people know a container by: Kubernetes' `pod/container`, or nerdctl's name; may be empty.
pub fn human_name(labels: &BTreeMap<String, String>) -> String {
    let label = |key: &str| labels.get(key).map(String::as_str);
    match (label("io.kubernetes.pod.name"), label("io.kubernetes.container.name")) {
        (Some(pod), Some(container)) => format!("{pod}/{container}"),
        (Some(pod), None) => pod.to_owned(),
        _ => label("nerdctl/name").unwrap_or_default().to_owned(),
    }
}

/// Finds all places of a container.
pub fn locate(host: &Host, meta: &MetaDb, container: Container) -> Result<Target> {
    let mut findings = Vec::new();
    let spec = note(&mut findings, "the spec cannot be read, so no memory can be dumped", spec(&container));
    let image = note(&mut findings, "the base image is not in the bundle", image(meta, &container));
    let files = note(&mut findings, "the container's files are not in the bundle", files(host, meta, &container));
    let (task, damage) = task(host, &container)?;
    findings.extend(damage.map(|e| format!("{}: other records are used instead", with_causes(&e))));
    let (rw, parent) = files.map_or((None, None), |(rw, parent)| (Some(rw), parent));
    Ok(Target { spec, image, rw, parent, task, findings, container })
}

fn note<T>(findings: &mut Vec<String>, consequence: &str, found: Result<T>) -> Option<T> {
    found.map_err(|e| findings.push(format!("{}: {consequence}", with_causes(&e)))).ok()
}

/// An error and what caused it, on one line.
pub fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    text
}

fn spec(container: &Container) -> Result<Spec> {
    let place = || format!("spec of {}", container.name);
    if container.spec.is_empty() {
        return Err(Error::malformed(place(), "the record has none"));
    }
    let any: Any = proto::decode(&container.spec).map_err(|e| Error::malformed(place(), e))?;
    serde_json::from_slice(&any.value).map_err(|e| Error::malformed(place(), e))
}

fn image(meta: &MetaDb, container: &Container) -> Result<Image> {
    if container.image.is_empty() {
        return Err(Error::NotFound { what: "an image name in the container's record".into(), hint: String::new() });
    }
    meta.image(&container.name.namespace, &container.image)?.ok_or_else(|| Error::NotFound {
        what: format!("image {:?} of namespace {}", container.image, container.name.namespace),
        hint: "its record was removed since the container was made".into(),
    })
}

/// Where its files are, and the key of the snapshot below.
pub fn files(host: &Host, meta: &MetaDb, container: &Container) -> Result<(RwLayer, Option<String>)> {
    let Container { name, snapshotter, snapshot_key, .. } = container;
    if snapshotter.is_empty() || snapshot_key.0.is_empty() {
        return Err(Error::NotFound { what: "a snapshot in the container's record".into(), hint: String::new() });
    }
    let record = meta.snapshot(&name.namespace, snapshotter, snapshot_key)?.ok_or_else(|| Error::NotFound {
        what: format!("snapshot {snapshot_key} of {snapshotter} in namespace {}", name.namespace),
        hint: "its record was removed since the container was made".into(),
    })?;
    let rw = snapshotter::rw_layer(host, snapshotter, &record.name)?;
    Ok((rw, record.parent.map(|p| p.0)))
}

/// What became of the container's task, by pid and start time; and what was damaged on the way, but not needed.
pub fn task(host: &Host, container: &Container) -> Result<(TaskState, Option<Error>)> {
    let Some(mut record) = task::read(host, &container.name)? else { return Ok((TaskState::None, None)) };
    let damage = record.damage.take();
    let state = if host.sysroot.is_some() { TaskState::Ended } else { state(host, container, &record)? };
    Ok((state, damage))
}

fn state(host: &Host, container: &Container, record: &TaskRecord) -> Result<TaskState> {
    let root = record.runtime_root.clone().or_else(|| recorded_root(container));
    let root = root.unwrap_or_else(|| host.runc_root.clone());
    Ok(match runtime::read(&root, &container.name) {
        Ok(Some(task)) if is_of(&task, record) && host.is_alive(task.init)? => TaskState::Live(task),
        Ok(None) if lives_unknown(host, container, record)? => return Err(unknown_runtime(container, record, &root)),
        Ok(_) => TaskState::Ended,
        // The runtime's directory is root's, also where this store is a copy that anybody may read.
        Err(e) if e.is_permission() && !may_live(host, record)? => TaskState::Ended,
        Err(e) => return Err(e),
    })
}

/// True if the runtime's state belongs to this store's task. Runtimes keep theirs at a fixed place whatever containerd's
/// state directory is, so next to a copied store another container of the same name may be found there.
fn is_of(task: &Task, record: &TaskRecord) -> bool {
    let same = |path: &Path| path.canonicalize().ok();
    task.runtime_bundle == record.runtime_bundle
        || same(&task.runtime_bundle).is_some_and(|bundle| same(&record.runtime_bundle) == Some(bundle))
}

/// True if the first process lives although no runtime says so: its cgroup carries the container's id. A pid used again
/// by another process does not.
fn lives_unknown(host: &Host, container: &Container, record: &TaskRecord) -> Result<bool> {
    let Some(pid) = record.init_pid.filter(|_| may_live(host, record).unwrap_or(true)) else { return Ok(false) };
    let path = host.proc_of(pid, "cgroup");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).contains(container.name.id.as_str())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
        Err(e) => Err(e).at("read", path),
    }
}

/// Its files could be copied while it writes them, and that would be of no one moment: so nothing is taken.
fn unknown_runtime(container: &Container, record: &TaskRecord, root: &Path) -> Error {
    let pid = record.init_pid.unwrap_or_default();
    let runtime = record.runtime_binary.as_deref().unwrap_or("its runtime");
    Error::Unsupported {
        what: format!(
            "the task of {} lives (process {pid}), but {runtime} left no state of runc's in {}, so it cannot be frozen",
            container.name,
            root.display()
        ),
        hint: "stop the container first; then its files come home".into(),
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

    fn candidate(namespace: &str, id: &str, name: &str) -> Candidate {
        let record = crate::id::ContainerRef { namespace: namespace.parse().unwrap(), id: id.parse().unwrap() };
        Candidate { record, name: name.into() }
    }

    #[test]
    fn the_most_exact_way_of_meaning_a_container_decides() {
        let all = [
            candidate("default", "web", ""),
            candidate("default", "web2", "api"),
            candidate("k8s.io", "0123abcd", "shop/web"),
            candidate("k8s.io", "0129ffff", "shop/db"),
            candidate("prod", "web3", "web2"),
            candidate("prod", "api", ""),
        ];
        let cases = [
            ("web", Ok("default/web")),          // an id before a prefix
            ("web2", Ok("default/web2")),        // an id before a name
            ("shop/web", Ok("k8s.io/0123abcd")), // pod/container
            ("0123", Ok("k8s.io/0123abcd")),     // a unique prefix
            ("012", Err("k8s.io/0123abcd, k8s.io/0129ffff")),
            ("prod/api", Ok("prod/api")),
            ("prod/w", Ok("prod/web3")),
            ("api", Ok("prod/api")),
            ("webb", Err("did you mean default/web or default/web2 or prod/web3?")),
            ("0123abce", Err("did you mean k8s.io/0123abcd?")),
            ("nothing-like-it", Err("dewar ls shows what there is")),
            ("", Err("")),
        ];
        for (wanted, right) in cases {
            match (choose(&all, wanted), right) {
                (Ok(found), Ok(right)) => assert_eq!(found.record.to_string(), right, "{wanted:?}"),
                (Err(e), Err(right)) => assert!(e.to_string().ends_with(right), "{wanted:?}: {e}"),
                (found, _) => panic!("{wanted:?}: {:?}", found.map(|c| c.record.to_string())),
            }
        }
        assert!(choose(&[], "web").err().unwrap().to_string().contains("no containers here"));
    }

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
            spec: Vec::new(),
            labels: BTreeMap::new(),
            created_at: None,
        };
        (host, container)
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
