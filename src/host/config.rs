//! containerd's `config.toml`: where it was told to keep things.
//!
//! ```text
//! version = 3                                          absent: 1; 2 from containerd 1.3, 3 from 2.0, 4 from 2.3
//! root = "/var/lib/containerd"                         in every version
//! state = "/run/containerd"
//! imports = ["conf.d/*.toml"]                          relative to this file; what they set goes over what it sets
//! [plugins."io.containerd.snapshotter.v1.overlayfs"]   version 1: [plugins.overlayfs]
//!   root_path = "/data/overlayfs"
//! [proxy_plugins.stargz]
//!   type = "snapshot"
//!   exports.root = "/var/lib/containerd-stargz-grpc"
//! ```
//! and, deep within the tables of CRI and of the old runtime, where runtimes keep their state: `Root`, `runtime_root`.
//! Source: containerd `cmd/containerd/server/config/config.go` (`LoadConfig`, `resolveImports`, `v1MigratePluginName`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs, io,
    path::{Component, Path, PathBuf},
};

use toml::{Table, Value};

use super::{Host, database, glob};
use crate::error::{At, Error, Result, with_causes};

/// Where containerd looks for it (`defaults/defaults_unix.go`).
pub const PATH: &str = "/etc/containerd/config.toml";

/// The largest that programs write is a hundredth of it.
const MAX_BYTES: u64 = 4 << 20;

/// A file may import itself and others; so many files are no configuration.
const MAX_FILES: usize = 1000;

/// The plugins whose short names version 1 has, and which keep snapshots.
const SHORT_NAMES: [&str; 6] = ["aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs"];

/// What precedes the name of a snapshotter in the table `plugins`.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.";

/// What was set, as far as it says where things are. Paths are the host's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The persistent directory.
    pub root: Option<PathBuf>,
    /// The volatile directory.
    pub state: Option<PathBuf>,
    /// The directories of snapshotters, by name.
    pub snapshotters: BTreeMap<String, PathBuf>,
    /// Where runtimes keep their state.
    pub runtime_roots: Vec<PathBuf>,
}

/// Reads the configuration at `path` of `host` and all that it imports. What cannot be read is told in `warnings`, with its
/// place, and counts as not written. `None` if there is no such file.
pub fn read(host: &Host, path: &Path, warnings: &mut Vec<String>) -> Option<Config> {
    let (mut config, mut done) = (None, BTreeSet::new());
    let mut pending = VecDeque::from([path.to_owned()]);
    while let Some(path) = pending.pop_front().filter(|_| done.len() < MAX_FILES) {
        if !done.insert(path.clone()) {
            continue;
        }
        match table(host, &path) {
            Ok(Some(table)) => {
                let config = config.get_or_insert_with(Config::default);
                warnings.extend(config.add(&table).into_iter().map(|odd| format!("{}: {odd}", path.display())));
                pending.extend(imports(host, &path, &table, warnings));
            }
            Ok(None) if config.is_none() => return None,
            Ok(None) => warnings.push(format!("{} is imported and not there", path.display())),
            Err(e) => {
                config.get_or_insert_with(Config::default);
                warnings.push(format!("{}: what it sets is not known", with_causes(&e)));
            }
        }
    }
    config
}

/// A file of the configuration; `None` if there is none.
fn table(host: &Host, path: &Path) -> Result<Option<Table>> {
    let here = host.inside(path)?;
    match fs::metadata(&here) {
        // Whatever else it is, a FIFO among them, it is not opened.
        Ok(meta) if meta.is_file() && meta.len() <= MAX_BYTES => {}
        Ok(_) => return Err(Error::malformed(here, "is no small regular file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("look at", here),
    }
    let bytes = database::bounded("configuration", &here, MAX_BYTES)?;
    let text = str::from_utf8(&bytes).map_err(|e| Error::malformed(&here, format!("{e}: no TOML")))?;
    text.parse().map(Some).map_err(|e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = bytes[..at].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::malformed(here, format!("line {line}: {}", e.message()))
    })
}

/// The files that `table`, read from `path`, imports.
fn imports(host: &Host, path: &Path, table: &Table, warnings: &mut Vec<String>) -> Vec<PathBuf> {
    let patterns = table.get("imports").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for pattern in patterns.map(|pattern| clean(&folder.join(pattern))) {
        // Only a star makes a pattern (`resolveImports`). Up to 1.6 a relative one was looked for in the daemon's working
        // directory, `/` mostly, where nobody has settings: what 1.6 did not find is read here.
        match pattern.as_os_str().as_encoded_bytes().contains(&b'*') {
            true => match glob::glob(host, &pattern) {
                Ok(paths) => found.extend(paths),
                Err(e) => warnings.push(format!("{}: {}", path.display(), with_causes(&e))),
            },
            false => found.push(pattern),
        }
    }
    found
}

/// The path without `.` and `..`, as it is written (Go `filepath.Clean`): a file has but one name, and is read but once.
fn clean(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut clean, component| {
        match component {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            other => clean.push(other),
        }
        clean
    })
}

impl Config {
    /// Takes over what `table` sets; yields what cannot be meant.
    fn add(&mut self, table: &Table) -> Vec<String> {
        let mut odd = Vec::new();
        let mut path = |table: &Table, key: &str| {
            let text = table.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())?;
            if !text.starts_with('/') {
                odd.push(format!("{key} is {text:?}, no absolute path"));
            }
            text.starts_with('/').then(|| PathBuf::from(text))
        };
        self.root = path(table, "root").or(self.root.take());
        self.state = path(table, "state").or(self.state.take());
        let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
        for (name, plugin) in tables(table, "plugins") {
            let short = (version <= 1 && SHORT_NAMES.contains(&name)).then_some(name);
            if let Some(name) = name.strip_prefix(SNAPSHOTTER).or(short)
                && let Some(root) = path(plugin, "root_path")
            {
                self.snapshotters.insert(name.to_owned(), root);
            }
        }
        for (name, proxy) in tables(table, "proxy_plugins") {
            let exported = proxy.get("exports").and_then(Value::as_table).and_then(|exports| path(exports, "root"));
            if let Some(root) = exported.filter(|_| proxy.get("type").and_then(Value::as_str) == Some("snapshot")) {
                self.snapshotters.insert(name.to_owned(), root);
            }
        }
        for root in runtime_tables(table).flat_map(|table| ["Root", "runtime_root"].map(|key| path(table, key))) {
            self.runtime_roots.extend(root.filter(|root| !self.runtime_roots.contains(root)));
        }
        odd
    }
}

/// The tables within the table `key`.
fn tables<'t>(table: &'t Table, key: &str) -> impl Iterator<Item = (&'t str, &'t Table)> {
    let inner = table.get(key).and_then(Value::as_table).into_iter().flatten();
    inner.filter_map(|(name, value)| Some((name.as_str(), value.as_table()?)))
}

/// The tables that may say where a runtime keeps its state: CRI's, for each runtime, and that of runtime v1.
fn runtime_tables(table: &Table) -> impl Iterator<Item = &Table> {
    const CRI: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
    const RUNTIME_V1: [&str; 2] = ["linux", "io.containerd.runtime.v1.linux"];
    let plugins = || tables(table, "plugins");
    let cri = plugins().filter(|(name, _)| CRI.contains(name)).flat_map(|(_, cri)| tables(cri, "containerd"));
    let runtimes = cri.flat_map(|(name, of)| match name {
        "runtimes" => of.iter().filter_map(|(_, runtime)| runtime.as_table()).collect(),
        // Before there were several: `default_runtime`, `untrusted_workload_runtime`.
        _ => vec![of],
    });
    let with_options = runtimes.flat_map(|runtime| [Some(runtime), runtime.get("options").and_then(Value::as_table)]);
    with_options.flatten().chain(plugins().filter(|(name, _)| RUNTIME_V1.contains(name)).map(|(_, plugin)| plugin))
}
