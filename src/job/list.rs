//! `ls`: the containers in the stores, and how their tasks are.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
};

use serde::Serialize;

use super::{
    locate::{self, TaskState},
    select::human_name,
    store::Store,
};
use crate::{
    containerd::{
        meta::{Container, Origin},
        task,
    },
    error::{Error, Result},
    freeze,
    host::Host,
    id::Namespace,
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
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// `pod/container`, or the name nerdctl gave; may be empty.
    pub name: String,
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

/// All containers, of one namespace if asked; and the records that could not be read.
pub fn list(store: &Store, namespace: Option<&Namespace>) -> Result<(Vec<Row>, Vec<Error>)> {
    let (mut rows, mut errors) = (Vec::new(), store.damage());
    let mut tasks: Option<(Namespace, Option<HashSet<OsString>>)> = None;
    store.for_each_container(|record| match record {
        Ok(record) if namespace.is_none_or(|ns| *ns == record.name.namespace) => {
            // One look at a namespace's directory, not one for each of a hundred thousand containers.
            if tasks.as_ref().is_none_or(|(namespace, _)| *namespace != record.name.namespace) {
                tasks = Some((record.name.namespace.clone(), task::names(&store.host, &record.name.namespace)));
            }
            let names = tasks.as_ref().and_then(|(_, names)| names.as_ref());
            let has_task = names.is_none_or(|names| names.contains(OsStr::new(record.name.id.as_str())));
            let (row, error) =
                if has_task { row(&store.host, record) } else { (as_row(record, Status::None, None), None) };
            rows.push(row);
            errors.extend(error);
        }
        Ok(_) => {}
        Err(e) => errors.push(e),
    })?;
    Ok((rows, errors))
}

/// Removed containers whose records are still found, of one namespace if asked. What became of their tasks is not asked:
/// another of the same name may have one.
pub fn deleted(store: &Store, namespace: Option<&Namespace>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    store.for_each_deleted(|record| {
        if namespace.is_none_or(|ns| *ns == record.name.namespace) {
            rows.push(as_row(record, Status::None, None));
        }
    })?;
    Ok(rows)
}

/// A task whose state cannot be read has an unknown status: shown as none, with the error beside it.
fn row(host: &Host, record: Container) -> (Row, Option<Error>) {
    let (status, pid, error) = status(host, &record).unwrap_or_else(|e| (Status::None, None, Some(e)));
    (as_row(record, status, pid), error)
}

fn as_row(record: Container, status: Status, pid: Option<i32>) -> Row {
    Row {
        name: human_name(&record.labels),
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
