//! `ls`: the containers in the stores, and how their tasks are.

use std::collections::{BTreeMap, HashMap};

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
        meta::{Container, Origin},
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
pub fn list(store: &Store, filter: &Filter) -> Result<(Vec<Row>, Vec<Error>)> {
    let (mut rows, mut errors) = (Vec::new(), store.damage());
    let sandboxes = sandboxes(store, filter)?;
    let mut traces: Option<Traces> = None;
    store.for_each_container(|record| match record {
        Ok(record) if filter.namespace.as_ref().is_none_or(|ns| *ns == record.name.namespace) => {
            let who = who::is(store, &record).unwrap_or_else(|e| {
                errors.push(e);
                Identity::default()
            });
            let sandbox = who.pod.as_ref().and_then(|pod| sandboxes.get(pod.sandbox.as_ref()?));
            if filter.admits(&who, sandbox) {
                if traces.as_ref().is_none_or(|traces| traces.namespace != record.name.namespace) {
                    traces = Some(Traces::of(&store.host, &record.name.namespace));
                }
                let (row, error) = match traces.as_ref().is_none_or(|traces| traces.may_have(&record)) {
                    false => (row_of(&store.host, record, who, (Status::None, None)), None),
                    true => row(&store.host, record, who),
                };
                rows.push(row);
                errors.extend(error);
            }
        }
        Ok(_) => {}
        Err(e) => errors.push(e),
    })?;
    Ok((rows, errors))
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
