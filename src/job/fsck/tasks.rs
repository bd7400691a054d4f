//! The state directory, the low-level runtime's, what is mounted and what is frozen: against the records and the processes.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    super::{
        locate::{self, TaskState, with_causes},
        store::Store,
    },
    finding::{
        Findings, LEFT_FROZEN, MOUNT_LEFT, PROCESS_WITHOUT_BUNDLE, PROCESS_WITHOUT_RECORD, RUNTIME_STATE_LEFT,
        SHIM_DEAD, SHIM_IDLE, SHIM_LEFT, TASK_ENDED, TASK_HALF_DELETED, TASK_PAUSED, TASK_UNREADABLE,
        TASK_WITHOUT_RECORD,
    },
};
use crate::{
    containerd::{
        meta::Container,
        shim::{self, Shim},
        survey::{Namespace, Records},
    },
    error::{At, Result},
    freeze::{
        self,
        marker::{self, Marker},
    },
    host::{Host, mounts},
    id::{ContainerRef, SnapshotKey},
    interrupt,
    runtime::{self, Task},
};

/// Checks all tasks of one containerd.
pub fn check(host: &Host, store: Option<&Store>, records: &Records, findings: &mut Findings) -> Result<()> {
    let is_live = host.sysroot.is_none();
    let sockets = if is_live { shim::listening(host).ok() } else { None };
    let mut check = Check { host, store, records, findings, sockets, marked: BTreeSet::new(), living: BTreeMap::new() };
    if is_live {
        check.markers()?;
    }
    let tasks = host.state.join("io.containerd.runtime.v2.task");
    for (namespace, dir) in folders(&tasks)? {
        for (id, bundle) in folders(&dir)? {
            interrupt::check()?;
            check.bundle(&namespace, &id, &bundle);
        }
    }
    check.runtime_states(&tasks)?;
    if is_live {
        check.shims(&tasks)?;
        check.mounts(&tasks)?;
    }
    Ok(())
}

struct Check<'a> {
    host: &'a Host,
    store: Option<&'a Store>,
    records: &'a Records,
    findings: &'a mut Findings,
    /// The sockets somebody listens on; `None` if that cannot be told.
    sockets: Option<HashSet<PathBuf>>,
    /// The containers that a `dewar` holds or held, by name.
    marked: BTreeSet<String>,
    /// The containers whose first process lives, with its pid.
    living: BTreeMap<String, i32>,
}

impl Check<'_> {
    fn is_on_record(&self, namespace: &str, id: &str) -> bool {
        let is_there =
            |ns: &Namespace| ns.containers.contains_key(id) || ns.unreadable.contains(&format!("containers/{id}"));
        self.records.namespaces.get(namespace).is_some_and(is_there)
    }

    fn markers(&mut self) -> Result<()> {
        let boot = marker::boot_id(self.host)?;
        for path in marker::all(self.host)? {
            let Ok(marker) = Marker::read(&path) else { continue };
            let is_ours = marker.container.split_once('/').is_some_and(|(ns, id)| self.is_on_record(ns, id));
            if marker.boot_id != boot || !is_ours {
                continue;
            }
            if !self.host.is_alive(marker.owner)? {
                let seen = format!("by process {}, which is gone", marker.owner.pid);
                let thing = format!("container {}", marker.container);
                self.findings.add(&LEFT_FROZEN, thing, marker.cgroup.display(), seen);
            }
            self.marked.insert(marker.container);
        }
        Ok(())
    }

    fn bundle(&mut self, namespace: &str, id: &str, bundle: &Path) {
        let (thing, place) = (format!("task {namespace}/{id}"), bundle.display());
        if id.starts_with('.') {
            return self.findings.add(&TASK_HALF_DELETED, thing, place, "");
        }
        let Some(container) = self.container(namespace, id) else {
            return self.findings.add(&TASK_WITHOUT_RECORD, thing, place, "its name is no identifier");
        };
        let on_record = self.is_on_record(namespace, id);
        match locate::task(self.host, &container) {
            Ok((TaskState::Live(task), _)) => {
                self.living.insert(container.name.to_string(), task.init.pid);
                self.live(&thing, bundle, &container, &task, on_record);
            }
            Ok(_) if !on_record => self.findings.add(&TASK_WITHOUT_RECORD, thing, place, ""),
            Ok(_) if self.shim_lives(bundle) == Some(true) => self.findings.add(&SHIM_IDLE, thing, place, ""),
            Ok(_) => self.findings.add(&TASK_ENDED, thing, place, ""),
            Err(e) => self.findings.add(&TASK_UNREADABLE, thing, place, with_causes(&e)),
        }
    }

    /// Its record; where there is none, only its name is known.
    fn container(&self, namespace: &str, id: &str) -> Option<Container> {
        let name = ContainerRef { namespace: namespace.parse().ok()?, id: id.parse().ok()? };
        let recorded = self.store.and_then(|store| store.container(&name).ok().flatten());
        Some(recorded.unwrap_or_else(|| unrecorded(name)))
    }

    fn live(&mut self, thing: &str, bundle: &Path, container: &Container, task: &Task, on_record: bool) {
        let pid = format!("process {}", task.init.pid);
        if !on_record {
            self.findings.add(&PROCESS_WITHOUT_RECORD, thing, bundle.display(), &pid);
        }
        if self.shim_lives(bundle) == Some(false) {
            let socket = shim::socket(bundle).unwrap_or_default();
            let seen = format!("{pid}; nobody listens on {}", socket.display());
            self.findings.add(&SHIM_DEAD, thing, bundle.display(), seen);
        }
        let is_frozen = freeze::is_frozen(task).unwrap_or(false);
        if is_frozen && !self.marked.contains(&container.name.to_string()) {
            self.findings.add(&TASK_PAUSED, thing, task.cgroup.display(), pid);
        }
    }

    /// `None` if that cannot be told.
    fn shim_lives(&self, bundle: &Path) -> Option<bool> {
        let socket = shim::socket(bundle)?;
        self.sockets.as_ref().map(|all| all.contains(&socket))
    }

    /// What runc keeps of containers of this state directory. Its own place is the same whatever the state directory is.
    fn runtime_states(&mut self, tasks: &Path) -> Result<()> {
        let root = &self.host.runc_root;
        if self.host.sysroot.as_ref().is_some_and(|sysroot| !root.starts_with(sysroot)) {
            return Ok(());
        }
        // Another user's runs have theirs where we may not look.
        for (namespace, dir) in folders(root).unwrap_or_default() {
            for (id, place) in folders(&dir).unwrap_or_default() {
                let bundle = tasks.join(&namespace).join(&id);
                let Some(container) = self.container(&namespace, &id) else { continue };
                if fs::symlink_metadata(&bundle).is_ok() {
                    continue;
                }
                let Ok(Some(task)) = runtime::read(self.host, root, &container.name) else { continue };
                if task.runtime_bundle != bundle {
                    continue;
                }
                let thing = format!("task {namespace}/{id}");
                if self.host.is_alive(task.init)? {
                    self.living.insert(container.name.to_string(), task.init.pid);
                    let seen = format!("process {}", task.init.pid);
                    self.findings.add(&PROCESS_WITHOUT_BUNDLE, &thing, bundle.display(), &seen);
                    if !self.is_on_record(&namespace, &id) {
                        self.findings.add(&PROCESS_WITHOUT_RECORD, thing, bundle.display(), seen);
                    }
                } else {
                    self.findings.add(&RUNTIME_STATE_LEFT, thing, place.display(), "");
                }
            }
        }
        Ok(())
    }

    /// Shims of this containerd whose bundles are gone, and that are not the parent of anything that lives.
    fn shims(&mut self, tasks: &Path) -> Result<()> {
        let mut parents = BTreeSet::new();
        for pid in self.living.values() {
            parents.extend(shim::parent(self.host, *pid)?);
        }
        let pods = self.host.state.join("io.containerd.sandbox.controller.v1.shim");
        for one in Shim::all(self.host)? {
            let has_bundle = [tasks, &pods].iter().any(|dir| dir.join(&one.namespace).join(&one.id).exists());
            if one.address.starts_with(&self.host.state) && !has_bundle && !parents.contains(&one.pid) {
                let place = self.host.proc_of(one.pid, "");
                let thing = format!("shim of {}/{}", one.namespace, one.id);
                self.findings.add(&SHIM_LEFT, thing, place.display(), format!("process {}", one.pid));
            }
        }
        Ok(())
    }

    /// Root file systems that are mounted for nobody.
    fn mounts(&mut self, tasks: &Path) -> Result<()> {
        let tasks = tasks.canonicalize().unwrap_or_else(|_| tasks.to_owned());
        for mount in mounts::read(&self.host.proc.join("self/mountinfo"))? {
            let Ok(below) = Path::new(&mount.at).strip_prefix(&tasks) else { continue };
            let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
            let [namespace, id, last] = parts.as_slice() else { continue };
            let name = format!("{namespace}/{id}");
            let is_needed = self.is_on_record(namespace, id) || self.living.contains_key(&name);
            if last == "rootfs" && !is_needed {
                let place = Path::new(&mount.at).display();
                self.findings.add(&MOUNT_LEFT, format!("task {name}"), place, mount.fs.to_string_lossy());
            }
        }
        Ok(())
    }
}

fn unrecorded(name: ContainerRef) -> Container {
    Container {
        name,
        image: String::new(),
        snapshotter: String::new(),
        snapshot_key: SnapshotKey(String::new()),
        runtime: String::new(),
        runtime_options: Vec::new(),
        spec: Default::default(),
        labels: std::collections::BTreeMap::new(),
        created_at: None,
        origin: crate::containerd::meta::Origin::default(),
    }
}

/// The directories in a directory, by name; none if it is not there. Links are none.
fn folders(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let is_dir = fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir());
    let mut found = Vec::new();
    for entry in is_dir.then(|| fs::read_dir(dir).at("read", dir)).transpose()?.into_iter().flatten() {
        let entry = entry.at("read", dir)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}
