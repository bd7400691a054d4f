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
    named(store, container, identity::pod(container, cri.as_deref()))
}

/// The same without what CRI keeps beside the labels: of its place in a pod all but which sandbox, and how often it was made.
pub fn is_by_labels<'c>(store: &Store, container: &'c Container) -> Result<Identity<'c>> {
    named(store, container, identity::pod_by_labels(container))
}

fn named<'c>(store: &Store, container: &'c Container, pod: Option<Pod>) -> Result<Identity<'c>> {
    let names = identity::names(container, pod.as_ref());
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
