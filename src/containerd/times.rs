//! When records were made and changed, as far as containerd notes it.
//!
//! ```text
//! meta.db      v1/<ns>/{images/<name>,containers/<id>,snapshots/<snapshotter>/<key>,content/blob/<digest>}/{createdat,updatedat}
//!              v1/<ns>/leases/<id>/createdat
//! CRI          <root>/io.containerd.grpc.v1.cri/containers/<id>/status
//!              {"Version":"v1","CreatedAt":ns,"StartedAt":ns,"FinishedAt":ns,"ExitCode":n,"Reason":"…"}     0: not yet
//! ```
//! Source: containerd `core/metadata/boltutil/helpers.go` (`WriteTimestamps`), `internal/cri/store/container/status.go`.

use jiff::Timestamp;
use serde::Deserialize;

use super::meta::{MetaDb, path};
use crate::{
    corrupt::Corrupt,
    error::{Error, Result},
    host::{Host, document},
    id::{ContainerRef, Namespace, SnapshotKey},
    record,
};

/// When a record was made, and last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Made.
    pub created: Option<Timestamp>,
    /// Last changed.
    pub updated: Option<Timestamp>,
}

/// A lease's id, and when it was made.
pub type Lease = (String, Option<Timestamp>);

/// What CRI notes of a container's life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CriStatus {
    /// Nanoseconds since 1970, or 0.
    pub created_at: i64,
    /// When its task was started; or 0.
    pub started_at: i64,
    /// When its task ended; or 0. After a crash of the daemon it may say that it runs.
    pub finished_at: i64,
    /// How it ended.
    pub exit_code: i32,
    /// Why, in a word.
    pub reason: String,
}

impl MetaDb {
    /// The times of the record at `way` below `v1`; `None` if there is none.
    pub fn times(&self, way: &[&str]) -> Result<Option<Times>> {
        self.with(|v1| {
            let Some(bucket) = path(v1, way)? else { return Ok(None) };
            let time = |key: &str| Ok::<_, Corrupt>(bucket.value(key)?.and_then(|bytes| record::time(bytes).ok()));
            Ok(Some(Times { created: time("createdat")?, updated: time("updatedat")? }))
        })
    }

    /// The leases of `ns` that keep this snapshot: their ids, and when they were made.
    pub fn leases_of(&self, ns: &Namespace, snapshotter: &str, key: &SnapshotKey) -> Result<Vec<Lease>> {
        self.with(|v1| {
            let mut found = Vec::new();
            let Some(leases) = path(v1, &[ns.as_str(), "leases"])? else { return Ok(found) };
            for entry in leases.buckets() {
                let (id, lease) = entry?;
                let created = lease.value("createdat")?.map(<[u8]>::to_vec);
                let kept = path(lease, &["snapshots", snapshotter])?;
                if kept.is_some_and(|keys| matches!(keys.value(&key.0), Ok(Some(_)))) {
                    let id = String::from_utf8_lossy(id).into_owned();
                    found.push((id, created.and_then(|bytes| record::time(&bytes).ok())));
                }
            }
            Ok(found)
        })
    }
}

/// What CRI notes of `who`; `None` if it does not know it.
pub fn cri_status(host: &Host, who: &ContainerRef) -> Result<Option<CriStatus>> {
    let dir = host.inside(&host.root.join("io.containerd.grpc.v1.cri/containers"))?;
    let found = document::read(&dir, &[who.id.as_str(), "status"])?;
    let parsed = found.map(|bytes| serde_json::from_slice(&bytes));
    parsed.transpose().map_err(|e| Error::malformed(dir.join(who.id.as_str()).join("status"), e))
}
