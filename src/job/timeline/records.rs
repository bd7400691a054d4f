//! What is no file's time: records of the database, the image's history, the life of the task and its processes, the log.

use std::{fs::File, io::Read};

use jiff::Timestamp;
use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use serde::Deserialize;

use super::{log, stamps::time};
use crate::{
    containerd::{
        content::Content,
        meta::{Container, Image},
        times::{self, CriStatus},
    },
    digest::Digest,
    error::{Result, with_causes},
    freeze::cgroup::Freezer,
    host::Host,
    id::SnapshotKey,
    job::{
        locate::{self, TaskState},
        store::Store,
    },
    oci::image::{Descriptor, Index, Manifest, Platform},
    runtime::Task,
    timeline::Event,
};

/// All events around `container`, in order of time; what cannot be read is said and hides no other.
pub fn events(store: &Store, container: &Container, deleted: bool, unseen: &mut Vec<String>) -> Vec<Event> {
    let mut found = Found { store, container, events: Vec::new(), unseen };
    found.container_record();
    found.image_record();
    found.snapshots();
    found.history();
    found.task();
    found.log();
    if deleted {
        found.deleted();
    }
    let Found { mut events, .. } = found;
    events.sort_by(|a, b| (a.time, &a.message).cmp(&(b.time, &b.message)));
    events
}

struct Found<'a> {
    store: &'a Store,
    container: &'a Container,
    events: Vec<Event>,
    unseen: &'a mut Vec<String>,
}

/// Plaso's words for times (`lib/definitions.py`), which Timesketch's views know.
const CREATED: &str = "Creation Time";
const UPDATED: &str = "Update Time";
const STARTED: &str = "Start Time";
const ENDED: &str = "End Time";

/// A snapshot on a snapshot and so on; no image has more layers.
const MAX_PARENTS: usize = 4096;

impl Found<'_> {
    fn add(&mut self, at: Timestamp, what: &'static str, source: &'static str, message: String) {
        self.events.push(Event { time: time(at), what, source, message, fields: Vec::new() });
    }

    /// The value, or a word on what is missing.
    fn note<T>(&mut self, lost: &str, found: Result<T>) -> Option<T> {
        found.map_err(|e| self.unseen.push(format!("{}: {lost}", with_causes(&e)))).ok()
    }

    /// The times of a record of meta.db, told as those of `what`.
    fn record(&mut self, way: &[&str], source: &'static str, what: &str) {
        let found = self.store.times(way);
        let Some(Some(times)) = self.note(&format!("the times of {what} are missing"), found) else { return };
        times.created.into_iter().for_each(|at| self.add(at, CREATED, source, format!("{what}: record made")));
        let updated = times.updated.filter(|&at| times.created != Some(at));
        updated.into_iter().for_each(|at| self.add(at, UPDATED, source, format!("{what}: record changed")));
    }

    fn container_record(&mut self) {
        let name = &self.container.name;
        let what = format!("container {name}");
        self.record(&[name.namespace.as_str(), "containers", name.id.as_str()], "containerd:container", &what);
        // Put together from what is left, it has no record of its own.
        if self.events.is_empty() {
            let created = self.container.created_at;
            created.into_iter().for_each(|at| self.add(at, CREATED, "containerd:container", format!("{what}: made")));
        }
    }

    fn image_record(&mut self) {
        let (ns, name) = (self.container.name.namespace.to_string(), self.container.image.clone());
        if name.is_empty() {
            return;
        }
        self.record(&[&ns, "images", &name], "containerd:image", &format!("image {name}"));
        if let Ok(Some(image)) = self.store.image(&self.container.name.namespace, &name) {
            let digest = image.digest.to_string();
            let what = format!("manifest {digest} of image {name}");
            self.record(&[&ns, "content", "blob", &digest], "containerd:content", &what);
        }
    }

    /// The container's own, and those it stands on: these were made when the image was unpacked.
    fn snapshots(&mut self) {
        let Container { name, snapshotter, snapshot_key, .. } = self.container.clone();
        let mut next = Some(snapshot_key).filter(|key| !key.0.is_empty());
        for depth in 0..MAX_PARENTS {
            let Some(key) = next.take() else { break };
            let way = [name.namespace.as_str(), "snapshots", &snapshotter, &key.0];
            let what = if depth == 0 { "snapshot" } else { "layer" };
            self.record(&way, "containerd:snapshot", &format!("{what} {key} of {snapshotter}"));
            self.leases(&key);
            next = self.store.snapshot(&name.namespace, &snapshotter, &key).ok().flatten().and_then(|s| s.parent);
        }
    }

    fn leases(&mut self, key: &SnapshotKey) {
        let found = self.store.leases_of(&self.container.name.namespace, &self.container.snapshotter, key);
        for (id, created) in self.note("leases are missing", found).unwrap_or_default() {
            let message = format!("lease {id} on snapshot {key}: record made");
            created.into_iter().for_each(|at| self.add(at, CREATED, "containerd:lease", message.clone()));
        }
    }

    fn history(&mut self) {
        let Container { name, image, .. } = &self.container;
        let Ok(Some(record)) = self.store.image(&name.namespace, image) else { return };
        let found = config(&Content::of(&self.store.host), &record);
        let Some(Some(config)) = self.note("the image's history is missing", found) else { return };
        let image = image.clone();
        moment(config.created)
            .into_iter()
            .for_each(|at| self.add(at, CREATED, "image", format!("image {image}: built")));
        for step in config.history.into_iter().take(MAX_PARENTS) {
            let Some(at) = moment(step.created) else { continue };
            let by: String = step.created_by.or(step.comment).unwrap_or_default().chars().take(1000).collect();
            let empty = if step.empty_layer { " (no layer)" } else { "" };
            self.add(at, CREATED, "image:history", format!("image {image}: built{empty}: {by}"));
        }
    }

    fn task(&mut self) {
        let host = &self.store.host;
        let status = times::cri_status(host, &self.container.name);
        if let Some(Some(status)) = self.note("what CRI notes of the container is missing", status) {
            self.cri(&status);
        }
        let docker = self.store.docker(self.container).ok().flatten();
        let name = self.container.name.clone();
        for (at, what, verb) in docker
            .iter()
            .flat_map(|docker| [(docker.started_at, STARTED, "started"), (docker.finished_at, ENDED, "ended")])
        {
            at.into_iter().for_each(|at| self.add(at, what, "docker", format!("container {name}: {verb}")));
        }
        let task = locate::task(host, self.container);
        if let Some((TaskState::Live(task), _)) = self.note("the processes are missing", task) {
            let found = processes(host, &task);
            let found = self.note("the starts of the processes are missing", found);
            self.events.extend(found.into_iter().flatten());
        }
    }

    fn cri(&mut self, status: &CriStatus) {
        let name = self.container.name.clone();
        let how = match status.reason.as_str() {
            "" => format!("with {}", status.exit_code),
            reason => format!("with {} ({reason})", status.exit_code),
        };
        for (nanos, what, verb) in [
            (status.created_at, CREATED, "made".to_owned()),
            (status.started_at, STARTED, "started".to_owned()),
            (status.finished_at, ENDED, format!("ended {how}")),
        ] {
            let at = Timestamp::from_nanosecond(nanos.into()).ok().filter(|_| nanos != 0);
            at.into_iter().for_each(|at| self.add(at, what, "cri", format!("container {name}: {verb}")));
        }
    }

    fn log(&mut self) {
        let Ok(Some(path)) = locate::log(self.store, self.container) else { return };
        let ends = log::ends(&self.store.host, &path);
        let Some(Some((first, last))) = self.note("the times of the log are missing", ends) else { return };
        self.add(first, "First Entry", "log", format!("{path}: first line"));
        self.add(last, "Last Entry", "log", format!("{path}: last line"));
    }

    /// Containers that were removed: when, nothing tells, but when they were made.
    fn deleted(&mut self) {
        let (mut gone, own) = (Vec::new(), &self.container.name.namespace);
        let found = self.store.for_each_deleted(|record| {
            if record.name.namespace == *own {
                gone.extend(
                    record.created_at.map(|at| (at, format!("container {}: made; removed since", record.name))),
                );
            }
        });
        self.note("removed containers are missing", found);
        gone.into_iter().for_each(|(at, message)| self.add(at, CREATED, "containerd:deleted", message));
    }
}

/// When an image was built, and its steps (OCI image spec, `config.md`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    created: Option<String>,
    history: Vec<Step>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    empty_layer: bool,
}

/// What is no time costs no other.
fn moment(text: Option<String>) -> Option<Timestamp> {
    text?.parse().ok()
}

/// An index in an index in an index: nobody builds such images.
const MAX_DEPTH: usize = 4;

/// The image's config, as far as the content store has it.
fn config(content: &Content, image: &Image) -> Result<Option<Config>> {
    let mut next = Descriptor::new(&image.media_type, image.digest, image.size);
    for _ in 0..MAX_DEPTH {
        let Some(bytes) = content.document(&next.digest)? else { return Ok(None) };
        if !next.is_index() {
            let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(None) };
            let found = content.document(&manifest.config.digest)?;
            return Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()));
        }
        let Ok(index) = serde_json::from_slice::<Index>(&bytes) else { return Ok(None) };
        let has = |digest: &Digest| matches!(content.open(digest), Ok(Some(_)));
        let Some(chosen) = index.local(&Platform::local()).into_iter().find(|d| has(&d.digest)).cloned() else {
            return Ok(None);
        };
        next = chosen;
    }
    Ok(None)
}

/// When the machine was started, by the clock as it is now: ticks of processes count from there (proc(5)). `btime` of
/// `/proc/stat` says the same to the second only.
fn boot() -> Option<i128> {
    let nanos = |clock| {
        let time = clock_gettime(clock).ok()?;
        Some(i128::from(time.tv_sec()) * BILLION + i128::from(time.tv_nsec()))
    };
    Some(nanos(ClockId::CLOCK_REALTIME)? - nanos(ClockId::CLOCK_BOOTTIME)?)
}

const BILLION: i128 = 1_000_000_000;

/// The starts of all processes of a task that lives, to a tick, if the clock was not set since.
fn processes(host: &Host, task: &Task) -> Result<Vec<Event>> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().map(i128::from).filter(|&n| n > 0);
    let (Some(boot), Some(ticks)) = (boot(), ticks) else { return Ok(Vec::new()) };
    let mut pids = Freezer::of(task).pids()?;
    pids.sort_unstable();
    let mut events = Vec::new();
    for pid in pids {
        let Some(stat) = host.proc_stat(pid)? else { continue };
        let Ok(at) = Timestamp::from_nanosecond(boot + i128::from(stat.started) * BILLION / ticks) else { continue };
        let command = command(host, pid);
        let first = if pid == task.init.pid { "first process" } else { "process" };
        events.push(Event {
            time: time(at),
            what: STARTED,
            source: "process",
            message: format!("{first} {pid} started: {command}"),
            fields: vec![("pid", pid.to_string()), ("command_line", command)],
        });
    }
    Ok(events)
}

/// What a process was started with; its name, if it has no command line any more.
fn command(host: &Host, pid: i32) -> String {
    let read = |name: &str| {
        let mut bytes = Vec::new();
        let _ = File::open(host.proc_of(pid, name)).map(|file| file.take(4096).read_to_end(&mut bytes));
        bytes
    };
    let line = read("cmdline");
    let args: Vec<_> = line.split(|&b| b == 0).filter(|arg| !arg.is_empty()).map(String::from_utf8_lossy).collect();
    match args.is_empty() {
        true => format!("[{}]", String::from_utf8_lossy(&read("comm")).trim_end()),
        false => args.join(" "),
    }
}
