//! A view of the OCI runtime spec (`config.json`): what a dump and a bundle need of it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The parts of a runtime spec we read (opencontainers/runtime-spec, `config.md`, `config-linux.md`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The first process.
    pub process: Option<Process>,
    /// In mount order.
    pub mounts: Vec<Mount>,
    /// Free-form; `org.criu.config` and Kubernetes' names stand here.
    pub annotations: BTreeMap<String, String>,
    /// Linux' part.
    pub linux: Linux,
}

/// `process`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    /// A console is its stdin, stdout and stderr.
    pub terminal: bool,
    /// The command line.
    pub args: Vec<String>,
}

/// One entry of `mounts`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Path inside the container.
    pub destination: String,
    /// `bind`, `tmpfs`, `proc`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// For a bind mount: a path on the host.
    pub source: String,
    /// `bind` or `rbind` among them make it a bind mount whatever its type.
    pub options: Vec<String>,
}

impl Mount {
    /// The rule of runc (`specconv.parseMountOptions`): type `bind`, or option `bind` or `rbind`.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }

    /// A bind mount that brings along what is mounted inside its source.
    pub fn is_recursive(&self) -> bool {
        self.options.iter().any(|o| o == "rbind")
    }

    /// Memory that is mounted: gone with the container.
    pub fn is_tmpfs(&self) -> bool {
        self.kind == "tmpfs" && !self.is_bind()
    }
}

/// `linux`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// Namespaces, new ones and those joined by path.
    pub namespaces: Vec<Namespace>,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Device nodes made for the container.
    pub devices: Vec<Device>,
    /// Where the runtime puts the cgroup.
    pub cgroups_path: String,
}

/// One entry of `linux.namespaces`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `network`, `pid`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Empty: a new one.
    pub path: String,
}

/// One entry of `linux.devices`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path inside the container.
    pub path: String,
}
