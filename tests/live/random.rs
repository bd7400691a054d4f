//! Random changes to a real overlay, unpacked by containerd (with and without overlay) and by umoci: an image of one plain tar of
//! what was below and of our layer shows what the kernel showed.
//!
//! The changes, the comparison and the search for the least that shows a difference are those of `tests/it/random`.

#[path = "../it/random/hunt.rs"]
#[allow(dead_code, reason = "shared with tests/it")]
mod hunt;
#[path = "../it/random/ops.rs"]
#[allow(dead_code, reason = "shared with tests/it")]
mod ops;
#[path = "../it/random/view.rs"]
#[allow(dead_code, reason = "shared with tests/it")]
mod view;
#[path = "../it/random/world.rs"]
#[allow(dead_code, reason = "shared with tests/it")]
mod world;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

use dewar::digest::Digest;
use hunt::{Account, Applier, Hunt, Known, SPLIT, is_now};
use serde_json::json;
use view::View;
use world::{World, tar_of};

use crate::harness::{Cgroup, Containerd, Lab};

/// Inside the lab, the image of each world: `localhost/random:<n>`, and its layout `/tmp/random-<n>`.
struct Images<'a> {
    lab: &'a Lab,
    made: Mutex<HashMap<PathBuf, usize>>,
}

impl Images<'_> {
    /// A path of the lab's, as this process reaches it.
    fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.lab.init()))
    }

    /// The number of the world's image, which is made and imported first.
    fn number(&self, world: &World, layer: &[u8]) -> usize {
        let mut made = self.made.lock().unwrap();
        if let Some(number) = made.get(world.root()) {
            return *number;
        }
        let number = made.len();
        made.insert(world.root().to_owned(), number);
        let inside = format!("/tmp/random-{number}");
        write_layout(&self.path(&inside), world, layer, number);
        number
    }

    fn by_containerd(&self, snapshotter: &str, world: &World, layer: &[u8]) -> View {
        let n = self.number(world, layer);
        let printed = self.lab.sh(&format!(
            "tar -C /tmp/random-{n} -cf - . | ctr images import --no-unpack -
             mkdir -p /tmp/mounted
             ctr images mount --snapshotter {snapshotter} localhost/random:{n} /tmp/mounted
             findmnt --noheadings --output FSTYPE /tmp/mounted"
        ));
        // ctr 1.6 takes its default snapshotter whatever it is told.
        assert_eq!(printed.lines().last() == Some("overlay"), snapshotter == "overlayfs", "{printed}");
        let view = View::of(&self.path("/tmp/mounted"));
        // Busy, while another process still has something in it open; `ctr` itself waits two and a half seconds only.
        self.lab.sh_until(&format!("ctr images unmount --rm --snapshotter {snapshotter} /tmp/mounted"));
        self.lab.sh(&format!("ctr images rm --sync localhost/random:{n}"));
        view
    }

    fn by_umoci(&self, world: &World, layer: &[u8]) -> View {
        let n = self.number(world, layer);
        self.lab.sh(&format!("umoci unpack --image /tmp/random-{n}:{n} /tmp/umoci"));
        let view = View::of(&self.path("/tmp/umoci/rootfs"));
        self.lab.sh("rm -rf /tmp/umoci");
        view
    }
}

/// An OCI layout with one image of two layers: what was below, by GNU tar, and ours.
fn write_layout(at: &Path, world: &World, layer: &[u8], number: usize) {
    let blobs = at.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let base = at.join("base.tar");
    tar_of(world.base().path(), File::create(&base).unwrap()).unwrap();
    let base = fs::read(&base).unwrap();
    fs::remove_file(at.join("base.tar")).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes).to_string();
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()})
    };
    let layers = [blob("layer.v1.tar", &base), blob("layer.v1.tar", layer)];
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layers[0]["digest"], layers[1]["digest"]]},
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut entry = blob("manifest.v1+json", manifest.to_string().as_bytes());
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("localhost/random:{number}"),
        "org.opencontainers.image.ref.name": number.to_string(),
    });
    fs::write(at.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string()).unwrap();
    fs::write(at.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// Its reader of archives knows no other times (`pkg/archive/time.go`, `boundTime`).
const BOUND: Known = Known {
    cause: "containerd takes a time before 1970 or after 2262 for 1970",
    applies: |case| {
        let is_beyond = seconds(case.values().0).is_some_and(|secs| !(0..NANOSECONDS_END).contains(&secs));
        case.is("mtime") && is_beyond && case.values().1 == Some("0+000000000")
    },
};

/// In 2262 the nanoseconds since 1970 are more than 64 bits hold.
const NANOSECONDS_END: i64 = i64::MAX / 1_000_000_000;

fn seconds(mtime: Option<&str>) -> Option<i64> {
    mtime?.split('+').next()?.parse().ok()
}

const TRUSTED: Known = Known {
    cause: "containerd sets no `trusted.*` attributes",
    applies: |case| case.difference.attribute.starts_with("xattr trusted.") && case.values().1.is_none(),
};

const INHERITED: Known = Known {
    cause: "what is made in a directory that has its default access control list already inherits that",
    applies: |case| {
        case.difference.attribute.starts_with("xattr system.posix_acl_")
            && case.values().0.is_none()
            && case.parents().any(|dir| {
                [case.base, case.restored].iter().any(|view| view.get(dir, "xattr system.posix_acl_default").is_some())
            })
    },
};

/// No layer can say that an attribute is gone.
const MERGED: Known = Known {
    cause: "a directory that was there keeps the attributes it had",
    applies: |case| {
        case.difference.attribute.starts_with("xattr ")
            && case.values().0.is_none()
            && case.kind_below() == "directory"
            && case.base.get(case.path(), &case.difference.attribute).is_some()
    },
};

/// It fills a directory after it has set its time (continuity `fs/copy.go`).
const COPIED: Known = Known {
    cause: "the native snapshotter copies what is below, and gives directories the time of the copy",
    applies: |case| case.is("mtime") && case.kind() == "directory" && is_now(case.values().1),
};

const OVERLAYFS: &[Known] = &[SPLIT, BOUND, TRUSTED, INHERITED];

const NATIVE: &[Known] = &[SPLIT, BOUND, TRUSTED, INHERITED, MERGED, COPIED];

const UMOCI: &[Known] = &[
    SPLIT,
    Known {
        cause: "umoci takes a time after 2262 for the least there is",
        applies: |case| {
            let is_beyond = seconds(case.values().0).is_some_and(|secs| secs >= NANOSECONDS_END);
            case.is("mtime") && is_beyond && case.values().1 == Some("-2147483648+000000000")
        },
    },
    Known {
        cause: "umoci drops attributes without a value",
        applies: |case| case.difference.attribute.starts_with("xattr ") && case.values() == (Some(""), None),
    },
];

/// Hunts with so many of the unpackers, and prints the account past the test runner, which keeps to itself what a passing test prints.
fn hunt(containerd: Containerd, batches: u64, unpackers: usize) {
    let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
    lab.start_containerd();
    let images = Images { lab: &lab, made: Mutex::default() };
    let overlayfs = |world: &World, layer: &[u8]| images.by_containerd("overlayfs", world, layer);
    let native = |world: &World, layer: &[u8]| images.by_containerd("native", world, layer);
    let umoci = |world: &World, layer: &[u8]| images.by_umoci(world, layer);
    let all = [
        Applier { name: "containerd, overlayfs", apply: &overlayfs, known: OVERLAYFS },
        Applier { name: "containerd, native", apply: &native, known: NATIVE },
        Applier { name: "umoci", apply: &umoci, known: UMOCI },
    ];
    let appliers = &all[..unpackers];
    let keep_below = ops::Op::is_plain;
    let hunt = Hunt { appliers, keep_below, write: World::write, at_root: 0, patience: 60 };
    let account = Mutex::new(Account::default());
    hunt.run(batches * hunt::BATCH, 1, &account);
    let _ = write!(std::io::stderr(), "{containerd:?}: {}", account.lock().unwrap().table());
}

#[test]
fn random_changes_come_back_by_containerd_2_1_and_umoci() {
    hunt(Containerd::V2_1, 6, 3);
}

#[test]
fn random_changes_come_back_by_containerd_1_7() {
    hunt(Containerd::V1_7, 2, 2);
}

#[test]
fn random_changes_come_back_by_containerd_1_6() {
    hunt(Containerd::V1_6, 2, 1);
}
