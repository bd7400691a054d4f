//! `dewar fsck`: the health of one containerd's stores. Everything that is wrong is told, nothing is changed.
//!
//! ```text
//! meta.db ──► records ──► images ──► content store      structure, records that point nowhere, documents, digests
//!    │           └──────► metadata.db ──► directories    the two databases against each other, and the files
//!    └─► state directory ──► processes, mounts, freezers
//! and at the end, container by container, what a checkpoint would bring home ([`super::locate`], a dry run)
//! ```

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;

use super::{locate::with_causes, store::Store};
use crate::{
    bolt,
    containerd::{
        meta::MetaDb,
        survey::{Damage, Records, Survey},
    },
    error::{Error, Result},
    host::Host,
    id::Namespace,
};

pub mod finding;

mod backend;
mod content;
mod deep;
mod home;
mod images;
mod records;
mod tasks;

pub use content::Progress;
pub use finding::{CODES, Code, Finding, Severity};
pub use home::{Home, Outcome};

use finding::{DATABASE_DAMAGED, DATABASE_UNREADABLE, Findings, RECORD_SALVAGED, RECORD_UNREADABLE};

/// How to look.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Do not read blobs to the end: only what they are called, and how long they are.
    pub quick: bool,
    /// Compare each committed snapshot with its layer's blob, file by file.
    pub deep: bool,
    /// Only this namespace's containers are told what comes home of them; the store is always judged whole.
    pub namespace: Option<&'a Namespace>,
}

/// What was found in one store.
#[derive(Debug, Serialize)]
pub struct Report {
    /// containerd's persistent directory.
    pub root: String,
    /// True if a daemon may have been writing meanwhile: then a finding may only be a change under way.
    pub beside_daemon: bool,
    /// What was looked at.
    pub looked: Looked,
    /// All that was found.
    pub findings: Vec<Finding>,
    /// How many more there are of a code, which are not told one by one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub untold: BTreeMap<&'static str, usize>,
    /// What a checkpoint would bring home.
    pub home: Vec<Home>,
}

/// How much was looked at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Containers on record.
    pub containers: usize,
    /// Images on record.
    pub images: usize,
    /// Snapshots on record, of all snapshotters.
    pub snapshots: usize,
    /// Files in the content store.
    pub blobs: usize,
    /// Bytes whose digest was taken.
    pub hashed: u64,
    /// Committed snapshots that were compared with their layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<usize>,
}

impl Report {
    /// How many findings there are of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// True if there is nothing but notes.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.severity == Severity::Note)
    }
}

/// Judges the stores of `host`; `progress` hears of the hashing. An error: it could not be looked at.
pub fn fsck(host: &Host, options: Options<'_>, progress: &Progress<'_>) -> Result<Report> {
    let mut findings = Findings::default();
    let records = meta(host, &mut findings)?;
    let backends = backend::read_all(host, &records, &mut findings)?;
    let path = MetaDb::path(host);
    records::check(&path, &records, &mut findings);
    backend::check(&path, &records, &backends, &mut findings);
    let images = images::check(host, &path, &records, &mut findings)?;
    let content = content::check(host, &path, &records, &images, options.quick, progress, &mut findings)?;
    drop(backends);
    let compared = options.deep.then(|| deep::check(host, &records, &images, &content, &mut findings)).transpose()?;
    // Read anew, now that the survey's copy is gone.
    let store = Store::open(host.clone()).ok();
    tasks::check(host, store.as_ref(), &records, &mut findings)?;
    let count = |of: fn(&crate::containerd::survey::Namespace) -> usize| records.namespaces.values().map(of).sum();
    let looked = Looked {
        containers: count(|ns| ns.containers.len()),
        images: count(|ns| ns.images.len()),
        snapshots: count(|ns| ns.snapshots.values().map(BTreeMap::len).sum()),
        blobs: content.files,
        hashed: content.hashed,
        compared,
    };
    let home = |store: &Store| home::home(store, options.namespace, &images, &content);
    Ok(Report {
        root: host.root.display().to_string(),
        beside_daemon: host.daemon_running,
        looked,
        untold: findings.untold(),
        findings: sorted(findings.all),
        home: store.as_ref().map(home).unwrap_or_default(),
    })
}

/// The gravest first; within that, in the order they were found.
fn sorted(mut all: Vec<Finding>) -> Vec<Finding> {
    all.sort_by_key(|f| f.severity);
    all
}

/// meta.db's records. Without the database the rest of the store can still be looked at.
fn meta(host: &Host, findings: &mut Findings) -> Result<Records> {
    let survey = match Survey::read(host) {
        Ok(survey) => survey,
        Err(e @ Error::NotFound { .. }) if has_stores(host) => {
            findings.add(&DATABASE_UNREADABLE, "meta.db", MetaDb::path(host).display(), with_causes(&e));
            return Ok(Records::default());
        }
        Err(e) => return Err(e),
    };
    structure(survey.path(), survey.bytes(), "meta.db", findings);
    let records = survey.records();
    damage(survey.path(), &records.damage, findings);
    for (name, ns) in &records.namespaces {
        for (way, doubt) in &ns.doubtful {
            let way = format!("v1/{name}/{way}");
            findings.add(&RECORD_SALVAGED, format!("record {way}"), way_in(survey.path(), &way), doubt);
        }
    }
    Ok(records)
}

/// True if something of containerd's is there.
fn has_stores(host: &Host) -> bool {
    let is_ours = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("io.containerd."))
    };
    std::fs::read_dir(&host.root).is_ok_and(|mut all| all.any(is_ours))
}

/// What is wrong with a database's pages.
fn structure(path: &Path, bytes: &[u8], name: &str, findings: &mut Findings) {
    for corrupt in bolt::check(bytes) {
        findings.add(&DATABASE_DAMAGED, name, path.display(), corrupt.to_string());
    }
}

fn damage(path: &Path, damage: &Damage, findings: &mut Findings) {
    for (way, why) in &damage.places {
        findings.add(&RECORD_UNREADABLE, format!("record {way}"), way_in(path, way), why.why);
    }
    findings.count(&RECORD_UNREADABLE, damage.more);
}

/// A place in a database.
fn way_in(path: &Path, way: impl std::fmt::Display) -> String {
    format!("{}: {way}", path.display())
}
