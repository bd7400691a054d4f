//! `ls`: the containers in the stores, and how their tasks are.

use std::{
    collections::{BTreeMap, HashMap},
    panic::resume_unwind,
    thread,
};

use serde::Serialize;

use super::{
    locate::{self, TaskState, Traces},
    select::Filter,
    store::Store,
    who::{self, Identity},
};
use crate::{
    containerd::{
        identity::{self, Kind, Pod},
        meta::{Container, Origin, Share},
    },
    error::{Error, Result},
    freeze,
    host::Host,
};

/// How a container's task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its processes run.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// A task was made and has ended.
    Stopped,
    /// No task is on record.
    None,
}

/// One line of `ls`.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The store that has it: containerd's persistent directory.
    pub store: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// `pod/container`, or the name that nerdctl or Docker gave; may be empty.
    pub name: String,
    /// Other names it may be called by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Its place in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The image's name; may be empty.
    pub image: String,
    /// The snapshotter; may be empty.
    pub snapshotter: String,
    /// How its task is.
    pub status: Status,
    /// The first process, while it lives.
    pub pid: Option<i32>,
    /// When the record was made (RFC 3339).
    pub created: Option<String>,
    /// How sure the record is: `record`, and unless that is `live`, `why`.
    #[serde(flatten)]
    pub origin: Origin,
}

/// The containers that `filter` admits; and the records that could not be read.
///
/// Each core has a share of the records: a node that was never pruned may have a hundred thousand.
pub fn list(store: &Store, filter: &Filter) -> Result<(Vec<Row>, Vec<Error>)> {
    let sandboxes = sandboxes(store, filter)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let shares: Vec<Result<Listing>> = thread::scope(|scope| {
        let each = |index| {
            let mut listing = Listing::new(store, filter, &sandboxes);
            scope.spawn(move || {
                store.for_each_container_of(Share { index, of: cores }, |n, record| listing.add(n, record))?;
                Ok(listing)
            })
        };
        let threads: Vec<_> = (0..cores).map(each).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for share in shares {
        let share = share?;
        rows.extend(share.rows);
        errors.extend(share.errors);
    }
    rows.sort_by_key(|(n, _)| *n);
    errors.sort_by_key(|(n, _)| *n);
    let errors = store.damage().into_iter().chain(errors.into_iter().map(|(_, e)| e)).collect();
    Ok((rows.into_iter().map(|(_, row)| row).collect(), errors))
}

/// A list that is being made of one share; with each entry stands the number of its record.
struct Listing<'a> {
    store: &'a Store,
    filter: &'a Filter,
    sandboxes: &'a HashMap<String, BTreeMap<String, String>>,
    /// What is there of tasks, of the namespace of the last record.
    traces: Option<Traces>,
    rows: Vec<(usize, Row)>,
    errors: Vec<(usize, Error)>,
}

impl<'a> Listing<'a> {
    fn new(store: &'a Store, filter: &'a Filter, sandboxes: &'a HashMap<String, BTreeMap<String, String>>) -> Self {
        Self { store, filter, sandboxes, traces: None, rows: Vec::new(), errors: Vec::new() }
    }

    fn add(&mut self, n: usize, record: Result<Container>) {
        let record = match record {
            Ok(record) => record,
            Err(e) => return self.errors.push((n, e)),
        };
        if self.filter.namespace.as_ref().is_some_and(|ns| *ns != record.name.namespace) {
            return;
        }
        let who = who::is(self.store, &record).unwrap_or_else(|e| {
            self.errors.push((n, e));
            Identity::default()
        });
        let sandbox = who.pod.as_ref().and_then(|pod| self.sandboxes.get(pod.sandbox.as_ref()?));
        if self.filter.admits(&who, sandbox) {
            let host = &self.store.host;
            let (row, error) = match self.may_have_task(&record) {
                false => (row_of(host, record, who, (Status::None, None)), None),
                true => row(host, record, who),
            };
            self.rows.push((n, row));
            self.errors.extend(error.map(|e| (n, e)));
        }
    }

    fn may_have_task(&mut self, record: &Container) -> bool {
        let namespace = &record.name.namespace;
        let known = self.traces.take().filter(|traces| traces.namespace == *namespace);
        let traces = known.unwrap_or_else(|| Traces::of(&self.store.host, namespace));
        self.traces.insert(traces).may_have(record)
    }
}

/// Removed containers whose records are still found in pages that are free.
pub fn deleted(store: &Store, filter: &Filter) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    store.for_each_deleted(|record| {
        // Nothing but the record is left of it, and what is in its place now is another's.
        let pod = identity::pod(&record, None);
        let names = identity::names(&record, pod.as_ref());
        let who = Identity { pod, names, labels: record.labels.clone() };
        if filter.namespace.as_ref().is_none_or(|ns| *ns == record.name.namespace) && filter.admits(&who, None) {
            rows.push(row_of(&store.host, record, who, (Status::None, None)));
        }
    })?;
    Ok(rows)
}

/// The labels of each sandbox, which are those of its pod; none if no label is asked for.
fn sandboxes(store: &Store, filter: &Filter) -> Result<HashMap<String, BTreeMap<String, String>>> {
    let mut all = HashMap::new();
    if !filter.labels.is_empty() {
        store.for_each_container(|record| {
            let sandbox = record.ok().filter(|r| identity::kind(&r.labels) == Some(Kind::Sandbox));
            all.extend(sandbox.map(|record| (record.name.id.to_string(), record.labels)));
        })?;
    }
    Ok(all)
}

/// A task whose state cannot be read has an unknown status: shown as none, with the error beside it.
fn row(host: &Host, record: Container, who: Identity) -> (Row, Option<Error>) {
    let (status, pid, error) = status(host, &record).unwrap_or_else(|e| (Status::None, None, Some(e)));
    (row_of(host, record, who, (status, pid)), error)
}

fn row_of(host: &Host, record: Container, who: Identity, (status, pid): (Status, Option<i32>)) -> Row {
    Row {
        store: host.root.display().to_string(),
        name: who.names.first().cloned().unwrap_or_default(),
        names: who.names.get(1..).unwrap_or_default().to_vec(),
        pod: who.pod,
        namespace: record.name.namespace.to_string(),
        id: record.name.id.to_string(),
        image: record.image,
        snapshotter: record.snapshotter,
        status,
        pid,
        created: record.created_at.map(|t| t.to_string()),
        origin: record.origin,
    }
}

fn status(host: &Host, record: &Container) -> Result<(Status, Option<i32>, Option<Error>)> {
    let (found, damage) = locate::task(host, record)?;
    let (status, pid) = match found {
        TaskState::None => (Status::None, None),
        TaskState::Ended => (Status::Stopped, None),
        TaskState::Live(task) if freeze::is_frozen(&task)? => (Status::Paused, Some(task.init.pid)),
        TaskState::Live(task) => (Status::Running, Some(task.init.pid)),
    };
    Ok((status, pid, damage))
}
