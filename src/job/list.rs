//! `ls`: the containers in the stores, and how their tasks are.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

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
    shares,
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
    pub store: Arc<str>,
    /// containerd's namespace.
    pub namespace: Arc<str>,
    /// The container's id.
    pub id: String,
    /// `pod/container`, or the name that nerdctl or Docker gave; may be empty.
    pub name: String,
    /// Other names it may be called by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Its place in a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Box<Pod>>,
    /// The image's name; may be empty.
    pub image: Arc<str>,
    /// The snapshotter; may be empty.
    pub snapshotter: Arc<str>,
    /// How its task is.
    pub status: Status,
    /// The first process, while it lives.
    pub pid: Option<i32>,
    /// When the record was made.
    #[serde(serialize_with = "rfc3339")]
    pub created: Option<Timestamp>,
    /// How sure the record is: `record`, and unless that is `live`, `why`.
    #[serde(flatten)]
    pub origin: Origin,
}

fn rfc3339<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

/// How much of each container is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What a table shows. A pod's sandbox, and how often a container was made in it, stand in documents of CRI, which for a
    /// hundred thousand containers take longer to read than all else.
    Line,
    /// All.
    All,
}

/// The containers that `filter` admits; and the records that could not be read.
///
/// Of a store that was opened in pieces, and is not sound, the records are read anew.
pub fn list(store: &Store, filter: &Filter, detail: Detail) -> Result<(Vec<Row>, Vec<Error>)> {
    let listed = list_all(store, filter, detail);
    if store.is_sound() { listed } else { list_all(&Store::open(store.host.clone())?, filter, detail) }
}

/// Each core has a share of the records: a node that was never pruned may have a hundred thousand.
fn list_all(store: &Store, filter: &Filter, detail: Detail) -> Result<(Vec<Row>, Vec<Error>)> {
    let sandboxes = sandboxes(store, filter)?;
    let mut errors = store.damage();
    // A pod's labels are found by its sandbox; and of a damaged database each part is read, to tell what cannot be.
    let in_full = detail == Detail::All || !filter.labels.is_empty() || !errors.is_empty();
    let listings = shares::of(&store.shares(shares::cores()), |share| {
        let mut listing = Listing::new(store, filter, &sandboxes, (in_full, detail));
        store.for_each_container_of(*share, |record| listing.add(record))?;
        Ok(listing)
    });
    let mut rows = Vec::new();
    for listing in listings {
        let listing: Listing<'_> = listing?;
        rows = joined(rows, listing.rows);
        errors.extend(listing.errors);
    }
    Ok((rows, errors))
}

/// Both rows of things in one; the first is not copied, and the second only if there is a first.
pub fn joined<T>(mut first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() {
        return second;
    }
    first.extend(second);
    first
}

/// A list that is being made of one share.
struct Listing<'a> {
    store: &'a Store,
    filter: &'a Filter,
    sandboxes: &'a HashMap<String, BTreeMap<String, String>>,
    /// CRI's documents are read too.
    in_full: bool,
    /// How much a row tells.
    detail: Detail,
    texts: Texts,
    /// What is there of tasks, of the namespace of the last record.
    traces: Option<Traces>,
    rows: Vec<Row>,
    errors: Vec<Error>,
}

impl<'a> Listing<'a> {
    fn new(
        store: &'a Store,
        filter: &'a Filter,
        sandboxes: &'a HashMap<String, BTreeMap<String, String>>,
        (in_full, detail): (bool, Detail),
    ) -> Self {
        let (texts, traces, rows, errors) = (Texts::of(&store.host), None, Vec::new(), Vec::new());
        Self { store, filter, sandboxes, in_full, detail, texts, traces, rows, errors }
    }

    fn add(&mut self, record: Result<Container>) {
        let record = match record {
            Ok(record) => record,
            Err(e) => return self.errors.push(e),
        };
        if self.filter.namespace.as_ref().is_some_and(|ns| *ns != record.name.namespace) {
            return;
        }
        let who = if self.in_full { who::is(self.store, &record) } else { who::is_by_labels(self.store, &record) };
        let who = who.unwrap_or_else(|e| {
            self.errors.push(e);
            Identity::default()
        });
        let sandbox = who.pod.as_ref().and_then(|pod| self.sandboxes.get(pod.sandbox.as_ref()?));
        if self.filter.admits(&who, sandbox) {
            let (host, Identity { mut pod, mut names, .. }) = (&self.store.host, who);
            let (task, error) = if self.may_have_task(&record) { task(host, &record) } else { NO_TASK };
            if self.detail == Detail::Line {
                names.truncate(1);
                pod = None;
            }
            self.rows.push(row(&mut self.texts, record, (pod, names), task));
            self.errors.extend(error);
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
    let (mut rows, mut texts) = (Vec::new(), Texts::of(&store.host));
    store.for_each_deleted(|record| {
        // Nothing but the record is left of it, and what is in its place now is another's.
        let pod = identity::pod(&record, None);
        let mut names: Vec<_> = identity::names(&record, pod.as_ref()).collect();
        names.dedup();
        let who = Identity { pod, names, labels: Cow::Borrowed(&record.labels) };
        if filter.namespace.as_ref().is_none_or(|ns| *ns == record.name.namespace) && filter.admits(&who, None) {
            let Identity { pod, names, .. } = who;
            rows.push(row(&mut texts, record, (pod, names), (Status::None, None)));
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

/// How a task is, and its first process.
type Task = (Status, Option<i32>);
const NO_TASK: (Task, Option<Error>) = ((Status::None, None), None);

/// A task whose state cannot be read has an unknown status: shown as none, with the error beside it.
fn task(host: &Host, record: &Container) -> (Task, Option<Error>) {
    status(host, record).unwrap_or_else(|e| ((Status::None, None), Some(e)))
}

/// What many rows have in common, held once: the store's name, those of namespaces, images and snapshotters.
struct Texts {
    store: Arc<str>,
    all: HashSet<Arc<str>>,
}

impl Texts {
    fn of(host: &Host) -> Self {
        Self { store: host.root.display().to_string().into(), all: HashSet::new() }
    }

    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.all.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.all.insert(new.clone());
        new
    }
}

fn row(texts: &mut Texts, record: Container, (pod, names): (Option<Pod>, Vec<String>), (status, pid): Task) -> Row {
    let mut names = names.into_iter();
    Row {
        store: texts.store.clone(),
        name: names.next().unwrap_or_default(),
        names: names.collect(),
        pod: pod.map(Box::new),
        namespace: texts.get(record.name.namespace.as_str()),
        id: record.name.id.into(),
        image: texts.get(&record.image),
        snapshotter: texts.get(&record.snapshotter),
        status,
        pid,
        created: record.created_at,
        origin: record.origin,
    }
}

fn status(host: &Host, record: &Container) -> Result<(Task, Option<Error>)> {
    let (found, damage) = locate::task(host, record)?;
    let (status, pid) = match found {
        TaskState::None => (Status::None, None),
        TaskState::Ended => (Status::Stopped, None),
        TaskState::Live(task) if freeze::is_frozen(&task)? => (Status::Paused, Some(task.init.pid)),
        TaskState::Live(task) => (Status::Running, Some(task.init.pid)),
    };
    Ok(((status, pid), damage))
}
