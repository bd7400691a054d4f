//! What meta.db's buckets look like, for a file that is damaged: which page is what, and whose.
//!
//! ```text
//! v1/<ns>/containers/<id>/{createdat, image, runtime/…, snapshotKey, snapshotter, spec, updatedat, …}
//!                          the page has no name; the snapshot's key, the cgroup's path and CRI's metadata tell the id
//! v1/<ns>/snapshots/<snapshotter>/<key>/{name, createdat, updatedat, …}     name is "<ns>/<n>/<key>"
//! ```
//! Source: containerd `core/metadata/{buckets,containers,images,snapshot,content,leases,sandbox}.go`.

use super::log::CRI_METADATA;
use crate::bolt::{
    Bucket,
    schema::{Field, Kind, Others, Place, VALUES},
};

const TIMES: (&str, &str) = ("createdat", "updatedat");

/// The whole database.
pub static META: Kind =
    Kind { others: Others::Buckets(&LEGACY), required: &["v1"], ..Kind::parts("root", &[("v1", Field::Bucket(&V1))]) };

/// Until 1.7 a namespace's sandboxes stood beside `v1` (`migrations.go`, `migrateSandboxes`).
static LEGACY: Kind = Kind {
    required: &["sandboxes"],
    ..Kind::parts("namespace beside v1", &[("sandboxes", Field::Bucket(&LEGACY_SANDBOXES))])
};
static LEGACY_SANDBOXES: Kind = Kind::map("sandboxes beside v1", &SANDBOX);

static V1: Kind = Kind { others: Others::Buckets(&NAMESPACE), ..Kind::parts("v1", &[("version", Field::Value)]) };

static NAMESPACE: Kind = Kind::parts(
    "namespace",
    &[
        ("labels", Field::Bucket(&VALUES)),
        ("images", Field::Bucket(&IMAGES)),
        ("containers", Field::Bucket(&CONTAINERS)),
        ("snapshots", Field::Bucket(&SNAPSHOTTERS)),
        ("content", Field::Bucket(&CONTENT)),
        ("leases", Field::Bucket(&LEASES)),
        ("sandboxes", Field::Bucket(&SANDBOXES)),
    ],
);

static IMAGES: Kind = Kind::map("images", &IMAGE);
static IMAGE: Kind = Kind::record(
    "image",
    &[
        (TIMES.0, Field::Time),
        (TIMES.1, Field::Time),
        ("target", Field::Bucket(&TARGET)),
        ("labels", Field::Bucket(&VALUES)),
        ("annotations", Field::Bucket(&VALUES)),
    ],
    &["target"],
);
static TARGET: Kind = Kind::record(
    "target",
    &[("digest", Field::Value), ("mediatype", Field::Value), ("size", Field::Value)],
    &["digest", "mediatype", "size"],
);

static CONTAINERS: Kind = Kind::map("containers", &CONTAINER);
/// A container's record.
pub static CONTAINER: Kind = Kind {
    place: Some(place_of_container),
    is_named: Some(is_container),
    ..Kind::record(
        "container",
        &[
            (TIMES.0, Field::Time),
            (TIMES.1, Field::Time),
            ("spec", Field::Value),
            ("image", Field::Value),
            ("snapshotter", Field::Value),
            ("snapshotKey", Field::Value),
            ("sandboxid", Field::Value),
            ("runtime", Field::Bucket(&RUNTIME)),
            ("extensions", Field::Bucket(&VALUES)),
            ("labels", Field::Bucket(&VALUES)),
        ],
        &["createdat", "image", "runtime", "snapshotter", "snapshotKey"],
    )
};
static RUNTIME: Kind = Kind::record("runtime", &[("name", Field::Value), ("options", Field::Value)], &["name"]);

static SNAPSHOTTERS: Kind = Kind::map("snapshots", &SNAPSHOTS);
static SNAPSHOTS: Kind = Kind::map("snapshots of a snapshotter", &SNAPSHOT);
static SNAPSHOT: Kind = Kind {
    place: Some(place_of_snapshot),
    ..Kind::record(
        "snapshot",
        &[
            (TIMES.0, Field::Time),
            (TIMES.1, Field::Time),
            ("name", Field::Value),
            ("parent", Field::Value),
            ("children", Field::Bucket(&VALUES)),
            ("labels", Field::Bucket(&VALUES)),
        ],
        &["createdat", "name", "updatedat"],
    )
};

static CONTENT: Kind = Kind::parts(
    "content",
    &[("blob", Field::Bucket(&BLOBS)), ("ingests", Field::Bucket(&INGESTS)), ("ingest", Field::Bucket(&VALUES))],
);
static BLOBS: Kind = Kind::map("blobs", &BLOB);
static BLOB: Kind = Kind::record(
    "blob",
    &[(TIMES.0, Field::Time), (TIMES.1, Field::Time), ("size", Field::Value), ("labels", Field::Bucket(&VALUES))],
    &["createdat", "size"],
);
static INGESTS: Kind = Kind::map("ingests", &INGEST);
static INGEST: Kind =
    Kind::record("ingest", &[("ref", Field::Value), ("expireat", Field::Time), ("expected", Field::Value)], &["ref"]);

static LEASES: Kind = Kind::map("leases", &LEASE);
static LEASE: Kind = Kind {
    others: Others::Nothing,
    ..Kind::record(
        "lease",
        &[
            (TIMES.0, Field::Time),
            ("labels", Field::Bucket(&VALUES)),
            ("snapshots", Field::Bucket(&LEASED)),
            ("content", Field::Bucket(&VALUES)),
            ("ingests", Field::Bucket(&VALUES)),
            ("images", Field::Bucket(&VALUES)),
        ],
        &["createdat"],
    )
};
static LEASED: Kind = Kind { is_record: true, ..Kind::map("leased snapshots", &VALUES) };

static SANDBOXES: Kind = Kind::map("sandboxes", &SANDBOX);
static SANDBOX: Kind = Kind::record(
    "sandbox",
    &[
        (TIMES.0, Field::Time),
        (TIMES.1, Field::Time),
        ("spec", Field::Value),
        ("sandboxer", Field::Value),
        ("runtime", Field::Bucket(&RUNTIME)),
        ("extensions", Field::Bucket(&VALUES)),
        ("labels", Field::Bucket(&VALUES)),
    ],
    &["createdat", "runtime", "updatedat"],
);

/// What a container's record says of its own name.
#[derive(Default)]
struct Names {
    /// Ids, the surest first.
    ids: Vec<Vec<u8>>,
    namespace: Vec<u8>,
}

fn names(record: &Bucket<'_>) -> Names {
    let value = |key: &str| record.value(key).ok().flatten().unwrap_or_default();
    let mut names = Names::default();
    match cgroup(value("spec")) {
        // "/<namespace>/<id>" (containerd `pkg/oci`, `WithNamespacedCgroup`).
        Some(path) if path.starts_with(b"/") => {
            let mut parts = path.rsplit(|b| *b == b'/');
            names.ids.extend(parts.next().map(<[u8]>::to_vec));
            let namespace = parts.next().filter(|_| parts.next() == Some(&[]) && parts.next().is_none());
            names.namespace = namespace.unwrap_or_default().to_vec();
        }
        // "<slice>:<prefix>:<id>" (runc, systemd's driver).
        Some(path) => names.ids.extend(path.rsplit(|b| *b == b':').next().map(<[u8]>::to_vec)),
        None => {}
    }
    let extensions = record.bucket("extensions").ok().flatten();
    let is_cri = extensions.is_some_and(|all| {
        [CRI_METADATA, "io.cri-containerd.sandbox.metadata"]
            .iter()
            .any(|name| all.value(name).is_ok_and(|v| v.is_some()))
    });
    if is_cri {
        names.namespace = b"k8s.io".to_vec();
    }
    names.ids.push(value("snapshotKey").to_vec());
    names.ids.retain(|id| !id.is_empty());
    names
}

/// The cgroup's path in a spec's JSON. To look for the words is enough: it is a hint, and specs are many.
fn cgroup(spec: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = b"\"cgroupsPath\":\"";
    let at = spec.windows(KEY.len()).position(|part| part == KEY)? + KEY.len();
    let rest = spec.get(at..)?;
    rest.get(..rest.iter().position(|b| matches!(b, b'"' | b'\\'))?)
}

fn place_of_container(record: &Bucket<'_>) -> Option<Place> {
    let names = names(record);
    let id = names.ids.into_iter().next()?;
    Some(vec![b"v1".to_vec(), names.namespace, b"containers".to_vec(), id])
}

/// Clients may give a container's snapshot another name; so it is another's record only if nothing in it fits.
fn is_container(id: &[u8], record: &Bucket<'_>) -> Option<bool> {
    let names = names(record);
    (!names.ids.is_empty()).then(|| names.ids.iter().any(|name| name == id))
}

/// The name has at most three parts; a key may have slashes and spaces.
fn place_of_snapshot(record: &Bucket<'_>) -> Option<Place> {
    let name = record.value("name").ok()??;
    let mut parts = name.splitn(3, |b| *b == b'/');
    let (namespace, _, key) = (parts.next()?, parts.next()?, parts.next()?);
    Some(vec![b"v1".to_vec(), namespace.to_vec(), b"snapshots".to_vec(), Vec::new(), key.to_vec()])
}
