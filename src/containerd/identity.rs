//! Who a container is to the people and programs that had it made: what its record, and CRI's part of it, say.
//!
//! | made by | where it stands |
//! |---|---|
//! | CRI | labels `io.kubernetes.pod.{namespace,name,uid}`, `io.kubernetes.container.name`, `io.cri-containerd.kind` (containerd `internal/cri/labels`); extension `io.cri-containerd.container.metadata`, a protobuf Any with JSON: `Metadata.{SandboxID,Config.metadata.attempt,LogPath}` (`internal/cri/store/container/metadata.go`); spec annotation `io.kubernetes.cri.sandbox-id` |
//! | nerdctl | labels `nerdctl/{name,namespace}` (nerdctl `pkg/labels`) |
//! | compose | labels `com.docker.compose.{project,service}` |
//!
//! Docker keeps names elsewhere: see [`super::docker`].

use std::{collections::BTreeMap, iter};

use serde::{Deserialize, Serialize};

use super::meta::Container;
use crate::{
    oci::runtime::Spec,
    proto::{self, Any},
};

/// The extensions of a record in which CRI keeps what it knows.
pub const CRI_CONTAINER: &str = "io.cri-containerd.container.metadata";
/// The same of a pod's sandbox.
pub const CRI_SANDBOX: &str = "io.cri-containerd.sandbox.metadata";

/// What kind of a pod's containers one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It holds the pod's namespaces, and does nothing.
    Sandbox,
    /// One of those that the pod is for.
    Container,
}

/// A container's place in a pod of Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pod {
    /// The pod's namespace in Kubernetes; containerd's is always `k8s.io`.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    /// What kind of container this is.
    pub kind: Kind,
    /// The container's name in the pod; empty for the sandbox.
    pub container: String,
    /// How often it, or the sandbox, was made before; `None` if only the labels could be read.
    pub attempt: Option<u32>,
    /// The id of its sandbox.
    pub sandbox: Option<String>,
}

/// The extension's value, as far as it is of use. Foreign members are not looked at.
#[derive(Default, Deserialize)]
struct Extension {
    #[serde(rename = "Metadata", default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    #[serde(rename = "SandboxID")]
    sandbox: Option<String>,
    #[serde(rename = "Config")]
    config: Option<Config>,
    #[serde(rename = "LogPath")]
    log_path: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    metadata: Option<Named>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    /// Left out when it is 0.
    attempt: u32,
}

/// CRI's extension, if that is what `any` holds.
fn extension(any: &[u8]) -> Option<Extension> {
    let any: Any = proto::decode(any).ok()?;
    serde_json::from_slice(&any.value).ok()
}

/// The path of the log as CRI's extension has it.
pub fn cri_log_path(any: &[u8]) -> Option<String> {
    extension(any)?.metadata.log_path.filter(|path| !path.is_empty())
}

/// The extension in which CRI keeps what it knows of this container; `None` if it is not CRI's.
pub fn cri_extension(labels: &BTreeMap<String, String>) -> Option<&'static str> {
    kind(labels).map(|kind| if kind == Kind::Sandbox { CRI_SANDBOX } else { CRI_CONTAINER })
}

/// What kind of a pod's containers has these labels; `None` if it is of no pod.
pub fn kind(labels: &BTreeMap<String, String>) -> Option<Kind> {
    labels.get("io.kubernetes.pod.name")?;
    let is_container = labels.contains_key("io.kubernetes.container.name");
    Some(match labels.get("io.cri-containerd.kind").map(String::as_str) {
        Some("sandbox") => Kind::Sandbox,
        Some("container") => Kind::Container,
        _ if is_container => Kind::Container,
        _ => Kind::Sandbox,
    })
}

/// The container's place in a pod; `cri` is the extension [`cri_extension`].
pub fn pod(container: &Container, cri: Option<&[u8]>) -> Option<Pod> {
    let pod = pod_by_labels(container)?;
    let metadata = cri.and_then(extension).map(|extension| extension.metadata);
    let recorded = || metadata.as_ref().and_then(|m| m.sandbox.clone()).filter(|id| !id.is_empty());
    let sandbox = pod.sandbox.or_else(recorded).or_else(|| annotated_sandbox(container));
    let attempt = metadata.map(|m| m.config.and_then(|c| c.metadata).unwrap_or_default().attempt);
    Some(Pod { attempt, sandbox, ..pod })
}

/// The same by its labels alone: how often it was made is left open, and which sandbox has it.
pub fn pod_by_labels(container: &Container) -> Option<Pod> {
    let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
    let (name, kind) = (container.labels.get("io.kubernetes.pod.name")?.clone(), kind(&container.labels)?);
    let is_sandbox = kind == Kind::Sandbox;
    Some(Pod {
        namespace: label("io.kubernetes.pod.namespace"),
        name,
        uid: label("io.kubernetes.pod.uid"),
        kind,
        container: if is_sandbox { String::new() } else { label("io.kubernetes.container.name") },
        attempt: None,
        sandbox: is_sandbox.then(|| container.name.id.to_string()),
    })
}

/// The sandbox as the spec's annotations name it, for when the extension cannot be read.
fn annotated_sandbox(container: &Container) -> Option<String> {
    let any: Any = proto::decode(&container.spec).ok()?;
    let spec: Spec = serde_json::from_slice(&any.value).ok()?;
    spec.annotations.get("io.kubernetes.cri.sandbox-id").cloned()
}

impl Pod {
    /// `pod/container`; of a sandbox, the pod's name.
    pub fn human_name(&self) -> String {
        if self.container.is_empty() { self.name.clone() } else { format!("{}/{}", self.name, self.container) }
    }

    /// True if `wanted` is the pod's name, or `namespace/pod`.
    pub fn is(&self, wanted: &str) -> bool {
        match wanted.split_once('/') {
            Some((namespace, name)) => namespace == self.namespace && name == self.name,
            None => wanted == self.name,
        }
    }
}

/// What people call the container, the most usual first; none may be empty. Each is made when it is asked for.
pub fn names<'c>(container: &'c Container, pod: Option<&'c Pod>) -> impl Iterator<Item = String> + use<'c> {
    let label = |key: &str| container.labels.get(key).filter(|value| !value.is_empty());
    let of_pod = pod.into_iter().flat_map(|pod| {
        let in_namespace = || format!("{}/{}", pod.namespace, pod.human_name());
        iter::once_with(|| pod.human_name()).chain(iter::once_with(in_namespace))
    });
    let of_nerdctl = iter::once_with(move || label("nerdctl/name").cloned()).flatten();
    of_pod.chain(of_nerdctl).chain(iter::once_with(|| compose_name(&container.labels)).flatten())
}

/// `project/service`, as compose labels the containers it makes.
pub fn compose_name(labels: &BTreeMap<String, String>) -> Option<String> {
    let label = |key: &str| labels.get(key).filter(|value| !value.is_empty());
    Some(format!("{}/{}", label("com.docker.compose.project")?, label("com.docker.compose.service")?))
}
