//! Who a container is: its place in a pod, its names and its labels, whoever had it made.

use std::{borrow::Cow, collections::BTreeMap};

use super::store::Store;
use crate::{
    containerd::{
        identity::{self, Pod},
        meta::Container,
    },
    error::Result,
};

/// What people and programs know a container by.
#[derive(Debug, Clone, Default)]
pub struct Identity<'c> {
    /// Its place in a pod, if CRI made it.
    pub pod: Option<Pod>,
    /// Names, the most usual first.
    pub names: Vec<String>,
    /// Labels.
    pub labels: Cow<'c, BTreeMap<String, String>>,
}

impl Identity<'_> {
    /// The same, by itself.
    pub fn into_owned(self) -> Identity<'static> {
        Identity { labels: Cow::Owned(self.labels.into_owned()), ..self }
    }
}

/// Who `container` is.
pub fn is<'c>(store: &Store, container: &'c Container) -> Result<Identity<'c>> {
    let extension = identity::cri_extension(&container.labels);
    let cri = extension.map(|name| store.extension(&container.name, name)).transpose()?.flatten();
    let pod = identity::pod(container, cri.as_deref());
    let mut names: Vec<_> = identity::names(container, pod.as_ref()).collect();
    names.dedup();
    named(store, container, pod, names)
}

/// The same for one line of a table: its first name, and of its place in a pod what the labels say, which is all but the
/// sandbox, and how often it was made.
pub fn is_by_labels<'c>(store: &Store, container: &'c Container) -> Result<Identity<'c>> {
    let pod = identity::pod_by_labels(container);
    let first = identity::names(container, pod.as_ref()).next();
    named(store, container, pod, first.into_iter().collect())
}

fn named<'c>(store: &Store, container: &'c Container, pod: Option<Pod>, names: Vec<String>) -> Result<Identity<'c>> {
    let mut who = Identity { names, pod, labels: Cow::Borrowed(&container.labels) };
    if let Some(docker) = store.docker(container)? {
        who.names.insert(0, docker.name);
        who.names.retain(|name| !name.is_empty());
        // Compose leaves its labels there.
        who.names.extend(identity::compose_name(&docker.labels));
        who.labels.to_mut().extend(docker.labels);
    }
    Ok(who)
}
