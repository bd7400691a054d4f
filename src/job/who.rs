//! Who a container is: its place in a pod, its names and its labels, whoever had it made.

use std::collections::BTreeMap;

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
pub struct Identity {
    /// Its place in a pod, if CRI made it.
    pub pod: Option<Pod>,
    /// Names, the most usual first.
    pub names: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Who `container` is.
pub fn is(store: &Store, container: &Container) -> Result<Identity> {
    let extension = identity::cri_extension(&container.labels);
    let cri = extension.map(|name| store.extension(&container.name, name)).transpose()?.flatten();
    let pod = identity::pod(container, cri.as_deref());
    let mut who = Identity { names: identity::names(container, pod.as_ref()), pod, labels: container.labels.clone() };
    if let Some(docker) = store.docker(container)? {
        who.names.insert(0, docker.name);
        who.names.retain(|name| !name.is_empty());
        // Compose leaves its labels there.
        who.names.extend(identity::compose_name(&docker.labels));
        who.labels.extend(docker.labels);
    }
    Ok(who)
}
