//! `fsck`: a healthy store is sound; each damage is planted in a copy, and found by its code and place, and nothing else is.

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt, path::Path};

use dewar::{
    freeze::{
        cgroup::Former,
        marker::{self, Marker, MarkerFile},
    },
    host::Host,
    id::TaskPid,
    job::fsck::{self, CODES, Options, Severity},
    runtime::CgroupVersion,
};
use serde_json::{Value, json};

use crate::harness::{META_DB, Sandbox, VERSIONS, expected, replaced};

const OVERLAY: &str = "io.containerd.snapshotter.v1.overlayfs";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
const TASKS: &str = "io.containerd.runtime.v2.task";

/// The base layer's blob, the manifest, the config of `localhost/shop:1` (`fixtures/scene.py`).
const LAYER: &str = "537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4";
const MANIFEST: &str = "7a035e141ab487d543b869276e17ed4f8c31d9865d97f1843dd5f8da1436f970";
const CONFIG: &str = "c71b791fde40a069aa296d040e112cb813882c3b58dadcf7c6e005d75540be97";

/// Code and place of everything found.
fn places(report: &Value, sandbox: &Sandbox) -> BTreeSet<(String, String)> {
    let one = |finding: &Value| {
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        (text("code"), text("place").replace(&format!("{}/", sandbox.path("").display()).replace("//", "/"), ""))
    };
    report[0]["findings"].as_array().unwrap().iter().map(one).collect()
}

pub fn found(sandbox: &Sandbox, args: &[&str]) -> (i32, BTreeSet<(String, String)>) {
    let ran = sandbox.dewar(&[&["fsck", "--json"], args].concat());
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    (ran.code, places(&ran.json(), sandbox))
}

pub fn pairs(all: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    all.iter().map(|(code, place)| ((*code).to_owned(), (*place).to_owned())).collect()
}

/// What the store itself has: a task that has ended, as its makers left it.
pub const ENDED: (&str, &str) = ("task-ended", "state/io.containerd.runtime.v2.task/default/web");

/// Plants a damage in a copy of the store and asserts that exactly `right` is found beyond what was there.
#[track_caller]
fn finds(plant: impl FnOnce(&Sandbox), right: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::store();
    plant(&sandbox);
    let (code, all) = found(&sandbox, &[]);
    assert_eq!(all, pairs(&[right, &[ENDED]].concat()));
    let severity = |code: &str| CODES.iter().find(|c| c.code == code).unwrap().severity;
    let is_sound = right.iter().all(|(code, _)| severity(code) == Severity::Note);
    assert_eq!(code, i32::from(!is_sound), "notes alone leave a store sound");
    sandbox
}

/// Changes every `from` in a database of the store to `to`, which is as long.
fn change(sandbox: &Sandbox, db: &str, from: &[u8], to: &[u8]) {
    let path = sandbox.root().join(db);
    let bytes = fs::read(&path).unwrap();
    let changed = replaced(&bytes, from, to);
    assert_ne!(bytes, changed, "{} is not in {db}", String::from_utf8_lossy(from));
    fs::write(path, changed).unwrap();
}

#[test]
fn a_healthy_store_is_sound_and_comes_home_whole() {
    let sandbox = Sandbox::store();
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["fsck"]).shown()), @r#"
    exit 0
    note: task-ended: task default/web
        in TEMP/state/io.containerd.runtime.v2.task/default/web
        a task that has ended, and its shim too; containerd removes it when it starts
    sound, 1 note: 3 containers, 3 images, 7 snapshots, 4 blobs (2.22 KiB hashed)

    What dewar can bring home:
    default/87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e (worker): whole
        dewar --root TEMP/root --state TEMP/state checkpoint default/87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e -o LAYOUT
    default/web: whole
        dewar --root TEMP/root --state TEMP/state checkpoint default/web -o LAYOUT
    k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972 (shop-7d9c/web): whole
        dewar --root TEMP/root --state TEMP/state checkpoint k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972 -o LAYOUT
    "#);
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        // Its makers removed one container's image.
        let image = ("container-image-missing", &*format!("root/{META_DB}: v1/default/containers/imageless"));
        assert_eq!(found(&sandbox, &[]), (1, pairs(&[ENDED, image])), "{version}");
        let report = sandbox.dewar(&["fsck", "--json"]).json();
        let right = expected(&format!("containerd/{version}.expected.json"));
        assert_eq!(report[0]["home"].as_array().unwrap().len(), right["containers"].as_array().unwrap().len());
        for home in report[0]["home"].as_array().unwrap() {
            let right = if home["container"] == "default/imageless" { "image-recreated" } else { "whole" };
            assert_eq!(home["outcome"], right, "{version}: {home:#}");
        }
    }
}

#[test]
fn a_namespace_limits_what_comes_home_and_not_what_is_judged() {
    let sandbox = Sandbox::store();
    fs::remove_file(sandbox.root().join(BLOBS).join(LAYER)).unwrap();
    let ran = sandbox.dewar(&["-n", "k8s.io", "fsck", "--json"]).exits(1);
    let home: Vec<_> = ran.json()[0]["home"].as_array().unwrap().iter().map(|h| h["container"].clone()).collect();
    assert_eq!(home.len(), 1, "{home:?}");
    assert!(places(&ran.json(), &sandbox).iter().any(|(code, _)| code == "blob-missing"));
}

#[test]
fn a_blob_that_is_missing_short_or_another_is_told_with_what_it_was() {
    let place = format!("root/{BLOBS}/{LAYER}");
    let blob = |sandbox: &Sandbox| sandbox.root().join(BLOBS).join(LAYER);
    let short = |s: &Sandbox| fs::OpenOptions::new().write(true).open(blob(s)).unwrap().set_len(9).unwrap();
    let flipped = |s: &Sandbox| {
        let file = fs::OpenOptions::new().read(true).write(true).open(blob(s)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 300).unwrap();
        file.write_all_at(&[byte[0] ^ 4], 300).unwrap();
    };
    let a_folder = |s: &Sandbox| {
        fs::remove_file(blob(s)).unwrap();
        fs::create_dir(blob(s)).unwrap();
    };
    // A pipe must not be waited for.
    let a_pipe = |s: &Sandbox| {
        fs::remove_file(blob(s)).unwrap();
        nix::unistd::mkfifo(&blob(s), nix::sys::stat::Mode::S_IRUSR).unwrap();
    };
    let missing = finds(|s| fs::remove_file(blob(s)).unwrap(), &[("blob-missing", &place)]);
    finds(short, &[("blob-truncated", &place)]);
    let damaged = finds(flipped, &[("blob-damaged", &place)]);
    finds(a_folder, &[("blob-unreadable", &place)]);
    finds(a_pipe, &[("blob-unreadable", &place)]);
    // Without digests a flipped bit cannot be seen; the lengths can.
    assert_eq!(found(&damaged, &["--quick"]), (0, pairs(&[ENDED])));
    assert_eq!(found(&missing, &["--quick"]).0, 1);
    insta::assert_snapshot!(missing.plain(&missing.dewar(&["fsck"]).shown()), @r#"
    exit 1
    error: blob-missing: blob sha256:…, layer of default/localhost/shop:1 and 2 more: on record as v1/default/content/blob/sha256:…
        in TEMP/root/io.containerd.content.v1.content/blobs/sha256/537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4
        what needs it cannot be unpacked or exported; pull its image again; dewar checkpoint makes layers again from snapshots
    note: task-ended: task default/web
        in TEMP/state/io.containerd.runtime.v2.task/default/web
        a task that has ended, and its shim too; containerd removes it when it starts
    1 error, 0 warnings, 1 note: 3 containers, 3 images, 7 snapshots, 3 blobs (1.33 KiB hashed)

    What dewar can bring home:
    default/87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e (worker): image made again from its snapshots, because layer sha256:… is missing
        dewar --root TEMP/root --state TEMP/state checkpoint default/87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e -o LAYOUT
    default/web: image made again from its snapshots, because layer sha256:… is missing
        dewar --root TEMP/root --state TEMP/state checkpoint default/web -o LAYOUT
    k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972 (shop-7d9c/web): image made again from its snapshots, because layer sha256:… is missing
        dewar --root TEMP/root --state TEMP/state checkpoint k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972 -o LAYOUT
    "#);
}

/// Documents are read by everybody; a damaged one is one finding, however much hangs on it.
#[test]
fn a_damaged_document_is_one_finding() {
    for digest in [MANIFEST, CONFIG] {
        let place = format!("root/{BLOBS}/{digest}");
        let blob = |s: &Sandbox| s.root().join(BLOBS).join(digest);
        finds(|s| fs::remove_file(blob(s)).unwrap(), &[("blob-missing", &place)]);
        let sandbox = finds(
            |s| {
                let mut bytes = fs::read(blob(s)).unwrap();
                bytes[0] = b'[';
                fs::write(blob(s), bytes).unwrap();
            },
            &[("blob-damaged", &place)],
        );
        let report = sandbox.dewar(&["fsck", "--json"]).json();
        for home in report[0]["home"].as_array().unwrap() {
            assert_eq!(home["outcome"], "image-recreated", "{home:#}");
            assert!(home["because"][0].as_str().unwrap().contains("is damaged"), "{home:#}");
        }
    }
}

#[test]
fn what_no_record_names_in_the_content_store_is_a_note() {
    let junk = dewar::digest::Digest::of(b"junk").to_hex();
    let store = "io.containerd.content.v1.content";
    finds(
        |s| fs::write(s.root().join(BLOBS).join(&junk), "junk").unwrap(),
        &[("blob-unrecorded", &format!("root/{BLOBS}/{junk}"))],
    );
    // Rubbish with a wrong digest is still rubbish, and its content is not what it is called.
    finds(
        |s| fs::write(s.root().join(BLOBS).join(&junk), "other").unwrap(),
        &[("blob-unrecorded", &format!("root/{BLOBS}/{junk}")), ("blob-damaged", &format!("root/{BLOBS}/{junk}"))],
    );
    finds(
        |s| {
            fs::write(s.root().join(BLOBS).join("README"), "").unwrap();
            fs::create_dir(s.root().join(format!("{store}/blobs/sha512"))).unwrap();
        },
        &[("blob-unknown", &format!("root/{BLOBS}/README")), ("blob-unknown", &format!("root/{store}/blobs/sha512"))],
    );
    let ingest = format!("{store}/ingest/0123");
    let sandbox = finds(
        |s| {
            let dir = s.root().join(&ingest);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("data"), [0; 5000]).unwrap();
            fs::write(dir.join("ref"), "default/1/layer-sha256:00").unwrap();
            fs::write(dir.join("updatedat"), "2026-11-25T10:00:00Z").unwrap();
        },
        &[("ingest-left", &format!("root/{ingest}"))],
    );
    let report = sandbox.dewar(&["fsck", "--json"]).json();
    let one = report[0]["findings"].as_array().unwrap().iter().find(|f| f["code"] == "ingest-left").unwrap();
    assert_eq!(one["bytes"], 5000);
    assert_eq!(one["thing"], "ingest default/1/layer-sha256:00, untouched since 2026-11-25T10:00:00Z");
}

#[test]
fn a_snapshot_without_its_directory_and_a_directory_without_its_snapshot() {
    let upper = |container: &str| {
        let all = expected("store/expected.json")["containers"].as_array().unwrap().clone();
        all.iter().find(|c| c["id"] == container).unwrap()["upper"].as_str().unwrap().to_owned()
    };
    let place = format!("root/{}", upper("web"));
    let sandbox = finds(
        |s| fs::remove_dir_all(s.root().join(upper("web")).parent().unwrap()).unwrap(),
        &[("snapshot-directory-missing", &place)],
    );
    let report = sandbox.dewar(&["fsck", "--json"]).json();
    let home = report[0]["home"].as_array().unwrap().iter().find(|h| h["container"] == "default/web").unwrap();
    assert_eq!(home["outcome"], "nothing");
    assert!(home.get("command").is_none() && home["because"][0].as_str().unwrap().contains("No such file"), "{home:#}");
    let left = ["new-123456", "rm-77", "4711"].map(|name| format!("root/{SNAPSHOTS}/{name}"));
    let left = left.each_ref().map(|place| ("snapshot-directory-left", place.as_str()));
    let sandbox = finds(
        |s| {
            for (_, place) in left {
                let dir = s.path("").join(place);
                fs::create_dir_all(dir.join("fs")).unwrap();
                fs::write(dir.join("fs/file"), [1; 70_000]).unwrap();
            }
        },
        &left,
    );
    let report = sandbox.dewar(&["fsck", "--json"]).json();
    let bytes = |f: &Value| f["bytes"].as_u64().unwrap();
    let all = report[0]["findings"].as_array().unwrap().iter().filter(|f| f["code"] == "snapshot-directory-left");
    assert!(all.map(bytes).all(|n| (70_000..200_000).contains(&n)), "{report:#}");
}

#[test]
fn records_of_meta_db_that_point_nowhere() {
    let at = |way: &str| format!("root/{META_DB}: v1/{way}");
    // The value of a key stands right behind it.
    finds(
        |s| change(s, META_DB, b"snapshotKeyweb", b"snapshotKeywez"),
        &[("container-snapshot-missing", &at("default/containers/web"))],
    );
    let worker = crate::harness::WORKER;
    let pod = "425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972";
    finds(
        |s| change(s, META_DB, b"imagelocalhost/shop:1", b"imagelocalhost/shop:2"),
        &[
            ("container-image-missing", &at("default/containers/web")),
            ("container-image-missing", &at(&format!("default/containers/{worker}"))),
            ("container-image-missing", &at(&format!("k8s.io/containers/{pod}"))),
        ],
    );
    let (from, to) = (format!("digestsha256:{MANIFEST}"), format!("digestsha256:{}", "5".repeat(64)));
    finds(
        |s| change(s, META_DB, from.as_bytes(), to.as_bytes()),
        &[
            ("image-target-missing", &at("default/images/localhost/shop:1")),
            ("image-target-missing", &at("k8s.io/images/localhost/shop:1")),
        ],
    );
    // The config's record says where the image was unpacked to.
    let bytes = fs::read(Sandbox::store().root().join(META_DB)).unwrap();
    let label = b"containerd.io/gc.ref.snapshot.overlayfssha256:";
    let start = bytes.windows(label.len()).position(|w| w == label).unwrap();
    let mut to = bytes[start..start + label.len() + 64].to_vec();
    let from = to.clone();
    to[label.len()] = if from[label.len()] == b'0' { b'1' } else { b'0' };
    finds(
        |s| change(s, META_DB, &from, &to),
        &[
            ("image-chain-missing", &at("default/images/localhost/shop:1")),
            ("image-chain-missing", &at("k8s.io/images/localhost/shop:1")),
        ],
    );
}

/// What `snapshots()` of the reader in `scene.py` saw: the names of the backend.
fn backend_names(sandbox: &Sandbox) -> Vec<String> {
    let bytes = fs::read(sandbox.root().join(OVERLAY).join("metadata.db")).unwrap();
    let all = dewar::snapshotter::all::Entries::read(&bytes);
    assert!(all.damage.is_empty());
    all.by_name.into_keys().collect()
}

#[test]
fn the_two_databases_must_agree() {
    let db = format!("{OVERLAY}/metadata.db");
    let own = backend_names(&Sandbox::store()).into_iter().find(|name| name.ends_with("/web")).unwrap();
    let other = own.replace("/web", "/wez");
    finds(
        |s| change(s, META_DB, format!("name{own}").as_bytes(), format!("name{other}").as_bytes()),
        &[
            ("snapshot-not-in-backend", &format!("root/{META_DB}: v1/default/snapshots/overlayfs/web")),
            ("snapshot-unreferenced", &format!("root/{db}: v1/snapshots/{own}")),
        ],
    );
    // All that is written to is committed all of a sudden.
    let sandbox = Sandbox::store();
    change(&sandbox, &db, b"kind\x02", b"kind\x03");
    let (code, all) = found(&sandbox, &[]);
    let wrong = all.iter().filter(|(code, _)| code == "snapshot-kind-wrong").count();
    assert_eq!((code, wrong, all.len()), (1, 3, 4), "{all:#?}");
    let report = sandbox.dewar(&["fsck", "--json"]).json();
    assert!(report[0]["home"].as_array().unwrap().iter().all(|h| h["outcome"] == "nothing"), "{report:#}");
    // And the other way round: what stands on a layer must stand on a committed one.
    let sandbox = Sandbox::store();
    change(&sandbox, &db, b"kind\x03", b"kind\x02");
    let (_, all) = found(&sandbox, &[]);
    assert!(all.iter().any(|(code, place)| code == "snapshot-kind-wrong" && place.contains("metadata.db")), "{all:#?}");
}

#[test]
fn a_snapshot_may_not_stand_on_itself_or_on_nothing() {
    let db = format!("{OVERLAY}/metadata.db");
    let names = backend_names(&Sandbox::store());
    let layers: Vec<&String> = names.iter().filter(|n| n.starts_with("default/") && n.contains("/sha256:")).collect();
    let [a, b] = layers.as_slice() else { panic!("two layers: {names:?}") };
    // Which of the two is below: the other has it as its parent.
    let bytes = fs::read(Sandbox::store().root().join(&db)).unwrap();
    let all = dewar::snapshotter::all::Entries::read(&bytes);
    let (top, bottom) = if all.by_name[*a].parent == **b { (a, b) } else { (b, a) };
    let sandbox = Sandbox::store();
    let parent = |name: &str| format!("parent{name}").into_bytes();
    change(&sandbox, &db, &parent(bottom), &parent(top));
    let (_, all) = found(&sandbox, &[]);
    let at = |name: &str| format!("root/{db}: v1/snapshots/{name}");
    let index = format!("root/{db}: v1/parents");
    let differs = |name: &str| {
        let key = name.splitn(3, '/').nth(2).unwrap();
        format!("root/{META_DB}: v1/default/snapshots/overlayfs/{key}")
    };
    let differs = differs(top);
    let right =
        [ENDED, ("backend-cycle", &at(top)), ("backend-index-wrong", &index), ("snapshot-parent-differs", &differs)];
    assert_eq!(all, pairs(&right));
    let nowhere = bottom.replace("default/", "nowhere/");
    finds(
        |s| change(s, &db, &parent(bottom), &parent(&nowhere)),
        &[("backend-parent-missing", &at(top)), ("backend-index-wrong", &index)],
    );
}

#[test]
fn a_damaged_database_is_told_and_the_rest_is_still_looked_at() {
    // A page of the snapshotter's records.
    let db = format!("{OVERLAY}/metadata.db");
    let sandbox = Sandbox::store();
    let path = sandbox.root().join(&db);
    let mut bytes = fs::read(&path).unwrap();
    let txid = |at: usize| u64::from_le_bytes(bytes[at + 64..at + 72].try_into().unwrap());
    let newest = if txid(0) > txid(4096) { 0 } else { 4096 };
    let root = u64::from_le_bytes(bytes[newest + 32..newest + 40].try_into().unwrap()) as usize;
    bytes[root * 4096 + 8] = 0x77;
    fs::write(&path, &bytes).unwrap();
    fs::remove_file(sandbox.root().join(BLOBS).join(LAYER)).unwrap();
    let (code, all) = found(&sandbox, &[]);
    let has = |code: &str, place: &str| all.contains(&(code.to_owned(), place.to_owned()));
    assert_eq!(code, 1);
    assert!(has("database-damaged", &format!("root/{db}")), "{all:#?}");
    assert!(has("blob-missing", &format!("root/{BLOBS}/{LAYER}")), "{all:#?}");

    // None at all, of a snapshotter that is on record.
    let sandbox = Sandbox::store();
    fs::remove_file(sandbox.root().join(&db)).unwrap();
    let (_, all) = found(&sandbox, &[]);
    assert_eq!(all, pairs(&[ENDED, ("database-unreadable", &format!("root/{db}"))]));

    // No meta.db: then everything is without a record.
    let sandbox = Sandbox::store();
    fs::remove_file(sandbox.root().join(META_DB)).unwrap();
    let (code, all) = found(&sandbox, &[]);
    assert_eq!(code, 1);
    assert!(all.contains(&("database-unreadable".into(), format!("root/{META_DB}"))), "{all:#?}");
    assert_eq!(all.iter().filter(|(code, _)| code == "blob-unrecorded").count(), 4);

    // And no store at all is no finding.
    assert!(Sandbox::empty().dewar(&["fsck"]).exits(2).stderr.contains("--root"));
}

#[test]
fn a_locked_database_is_refused_unless_asked_for() {
    let sandbox = Sandbox::store();
    let file = fs::File::open(sandbox.root().join(META_DB)).unwrap();
    file.lock().unwrap();
    assert!(sandbox.dewar(&["fsck"]).exits(2).stderr.contains("--daemon-running"));
    let ran = sandbox.dewar(&["--daemon-running", "fsck"]).exits(0);
    assert!(ran.text().contains("beside a running daemon"), "{}", ran.text());
    let json = sandbox.dewar(&["--daemon-running", "fsck", "--json"]).exits(0).json();
    assert_eq!(json[0]["beside_daemon"], true);
    assert!(json[0]["home"][0]["command"].as_str().unwrap().contains("--daemon-running"));
}

#[test]
fn tasks_half_deleted_and_of_nobody() {
    let task = |name: &str| format!("state/{TASKS}/default/{name}");
    finds(
        |s| {
            for name in [".web", "gone", "..bad name"] {
                fs::create_dir_all(s.path(&task(name))).unwrap();
            }
        },
        &[
            ("task-half-deleted", &task(".web")),
            ("task-half-deleted", &task("..bad name")),
            ("task-without-record", &task("gone")),
        ],
    );
}

/// A machine of its own: procfs, cgroups and runc's state are files of the test.
pub struct Machine {
    pub sandbox: Sandbox,
    pub host: Host,
}

pub const SOCKET: &str = "/run/containerd/s/ours";

impl Machine {
    pub fn new() -> Self {
        let sandbox = Sandbox::store();
        let at = |name: &str| sandbox.path(name);
        let host = Host { proc: at("proc"), cgroup: at("cgroup"), run: at("run"), ..sandbox.host() };
        for dir in ["proc/net", "proc/self/ns", "proc/sys/kernel/random", "cgroup", "runc"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        fs::write(at("proc/sys/kernel/random/boot_id"), "this-boot\n").unwrap();
        fs::write(at("proc/self/mountinfo"), "").unwrap();
        let machine = Self { sandbox, host };
        machine.sockets(&[]);
        machine
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = self.sandbox.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Sockets that are listened on.
    pub fn sockets(&self, paths: &[&str]) {
        let line = |path: &&str| format!("0: 00000002 00000000 00010000 0001 01 1 {path}\n");
        self.write("proc/net/unix", &paths.iter().map(line).collect::<String>());
    }

    /// A process.
    pub fn process(&self, pid: i32, parent: i32, command: &str, cgroup: &str) {
        let zeros = "0 ".repeat(17);
        self.write(&format!("proc/{pid}/stat"), &format!("{pid} (x) S {parent} {zeros}{}\n", pid * 100));
        self.write(&format!("proc/{pid}/cmdline"), &format!("{}\0", command.replace(' ', "\0")));
        self.write(&format!("proc/{pid}/cgroup"), &format!("0::{cgroup}\n"));
    }

    /// A task of runc's in namespace `default`, alive under `pid`, in a cgroup of its name.
    pub fn task(&self, id: &str, pid: i32) {
        let bundle = self.host.state.join(format!("{TASKS}/default/{id}"));
        fs::create_dir_all(&bundle).unwrap();
        let cgroup = self.host.cgroup.join(format!("default/{id}"));
        fs::create_dir_all(&cgroup).unwrap();
        self.freezer(id, false);
        fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        let state = json!({
            "init_process_pid": pid, "init_process_start": pid * 100,
            "config": {"rootfs": bundle.join("rootfs"), "labels": [format!("bundle={}", bundle.display())]},
            "cgroup_paths": {"": cgroup},
        });
        self.write(&format!("runc/default/{id}/state.json"), &state.to_string());
        let bootstrap = json!({"version": 3, "address": format!("unix://{SOCKET}"), "protocol": "ttrpc"});
        fs::write(bundle.join("bootstrap.json"), bootstrap.to_string()).unwrap();
        self.process(pid, 50, "/bin/web stay", &format!("/default/{id}"));
    }

    pub fn freezer(&self, id: &str, frozen: bool) {
        self.write(&format!("cgroup/default/{id}/cgroup.freeze"), if frozen { "1\n" } else { "0\n" });
        self.write(
            &format!("cgroup/default/{id}/cgroup.events"),
            if frozen { "populated 1\nfrozen 1\n" } else { "frozen 0\n" },
        );
    }

    fn found(&self) -> Vec<(&'static str, String)> {
        let report = fsck::fsck(&self.host, Options { deep: false, quick: true, namespace: None }, &|_, _| ()).unwrap();
        let place = |place: &str| place.replace(&format!("{}/", self.sandbox.root().parent().unwrap().display()), "");
        report.findings.iter().map(|f| (f.code, place(&f.place))).collect()
    }
}

#[test]
fn a_task_that_lives_is_judged_by_its_shim_and_its_freezer() {
    let machine = Machine::new();
    let bundle = format!("state/{TASKS}/default/web");
    assert_eq!(machine.found(), [("task-ended", bundle.clone())], "nothing lives yet");
    machine.task("web", 77);
    assert_eq!(machine.found(), [("shim-dead", bundle.clone())]);
    machine.sockets(&[SOCKET]);
    assert_eq!(machine.found(), [], "all is well");
    machine.freezer("web", true);
    assert_eq!(machine.found(), [("task-paused", "cgroup/default/web".into())]);
    // Frozen by a dewar that was killed.
    let marker = Marker {
        container: "default/web".into(),
        cgroup: machine.host.cgroup.join("default/web"),
        cgroup_version: CgroupVersion::V2,
        former: Former::Running,
        boot_id: marker::boot_id(&machine.host).unwrap(),
        init: TaskPid { pid: 77, started: 7700 },
        owner: TaskPid { pid: 99, started: 1 },
        watchdog: None,
        criu: None,
    };
    let path = machine.host.run.join("frozen/default-web-77.json");
    MarkerFile::create(&path, marker).unwrap();
    assert_eq!(machine.found(), [("left-frozen", "cgroup/default/web".into())]);
    // One that is at work is nobody's trouble.
    machine.process(99, 1, "dewar checkpoint web", "/");
    machine.write("proc/99/stat", &format!("99 (dewar) S 1 {}1\n", "0 ".repeat(17)));
    assert_eq!(machine.found(), []);
    fs::remove_file(path).unwrap();
    machine.freezer("web", false);
    // The task ends: its shim waits for it to be deleted.
    fs::remove_dir_all(machine.sandbox.path("proc/77")).unwrap();
    assert_eq!(machine.found(), [("shim-idle", bundle)]);
}

#[test]
fn what_lives_without_a_record_or_a_bundle_is_an_error() {
    let machine = Machine::new();
    machine.sockets(&[SOCKET]);
    machine.task("web", 77);
    machine.task("stranger", 78);
    let bundle = |id: &str| format!("state/{TASKS}/default/{id}");
    let mount = format!(
        "40 1 0:50 / {}/rootfs rw - overlay overlay rw\n",
        machine.sandbox.path(&bundle("long-gone")).display()
    );
    machine.write("proc/self/mountinfo", &mount);
    assert_eq!(
        machine.found(),
        [("process-without-record", bundle("stranger")), ("mount-left", format!("{}/rootfs", bundle("long-gone"))),]
    );
    machine.write("proc/self/mountinfo", "");
    // A shim without a bundle; one of another containerd is none of ours.
    let ours = machine.host.state.join("containerd.sock");
    let shim =
        |address: &str| format!("/usr/bin/containerd-shim-runc-v2 -namespace default -id lost -address {address}");
    machine.process(61, 1, &shim(ours.to_str().unwrap()), "/system.slice");
    machine.process(62, 1, &shim("/run/other/containerd.sock"), "/system.slice");
    let shims = machine.found();
    assert_eq!(shims, [("process-without-record", bundle("stranger")), ("shim-left", "proc/61/".into())]);
    fs::remove_dir_all(machine.sandbox.path("proc/61")).unwrap();
    fs::remove_dir_all(machine.sandbox.path(&bundle("web"))).unwrap();
    fs::remove_dir_all(machine.sandbox.path("proc/78")).unwrap();
    fs::remove_dir_all(machine.sandbox.path(&bundle("stranger"))).unwrap();
    assert_eq!(
        machine.found(),
        [("process-without-bundle", bundle("web")), ("runtime-state-left", "runc/default/stranger".into())]
    );
    // Of another machine nothing lives, and what happens to run here is not of it.
    let sysroot = Host { sysroot: Some(machine.sandbox.path("")), ..machine.host.clone() };
    let report = fsck::fsck(&sysroot, Options::default(), &|_, _| ()).unwrap();
    let codes: Vec<_> = report.findings.iter().map(|f| f.code).collect();
    assert_eq!(codes, ["runtime-state-left", "runtime-state-left"]);
}

/// Nothing of a store is touched by looking at it, not even the times of access where we may keep them.
#[test]
fn looking_changes_nothing() {
    let sandbox = Sandbox::store();
    let state = |dir: &Path| crate::harness::contents(dir);
    let before = (state(&sandbox.root()), state(&sandbox.state()));
    sandbox.dewar(&["fsck"]).exits(0);
    sandbox.dewar(&["whois", "web", "3"]).exits(0);
    assert_eq!(before, (state(&sandbox.root()), state(&sandbox.state())));
}
