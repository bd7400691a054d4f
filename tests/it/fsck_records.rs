//! `fsck` on records that contradict one another: planted in copies of a store by `bbolt-rs`, which is not our reader.

use std::{collections::BTreeSet, fs};

use bbolt_rs::{Bolt, BucketRwApi, BucketRwImpl, DbApi, DbRwAPI, TxRwRefApi};
use dewar::{
    bolt::{Bucket, Db, Item},
    digest::Digest,
    snapshotter::all::Entries,
};
use serde_json::Value;

use crate::{
    fsck::{ENDED, found, pairs},
    harness::{META_DB, Sandbox},
};

const METADATA: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";
const LAYER: &str = "sha256:537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4";
const MANIFEST: &str = "sha256:7a035e141ab487d543b869276e17ed4f8c31d9865d97f1843dd5f8da1436f970";
const CONFIG: &str = "sha256:c71b791fde40a069aa296d040e112cb813882c3b58dadcf7c6e005d75540be97";

/// A change of a database; buckets on the way are made.
pub enum Edit<'a> {
    Put(&'a [&'a str], &'a [u8]),
    Delete(&'a [&'a str]),
    Remove(&'a [&'a str]),
}
use Edit::{Delete, Put, Remove};

/// Changes a database of the store: it is written anew with all it had. (The writer cannot open one without a list of free
/// pages, as containerd keeps its own since 1.7.)
pub fn edit(sandbox: &Sandbox, db: &str, edits: &[Edit]) {
    let (path, new) = (sandbox.root().join(db), sandbox.path("new.db"));
    let bytes = fs::read(&path).unwrap();
    let old = Db::open(&bytes).unwrap();
    let mut db = Bolt::open(&new).unwrap();
    db.update(|mut tx| {
        for (name, bucket) in old.root().buckets().map(Result::unwrap) {
            copy(&bucket, &mut tx.create_bucket(name)?)?;
        }
        for edit in edits {
            let (Put(way, _) | Delete(way) | Remove(way)) = edit;
            apply(&mut tx.create_bucket_if_not_exists(way[0])?, &way[1..], edit)?;
        }
        Ok(())
    })
    .unwrap();
    db.close();
    fs::rename(new, path).unwrap();
}

fn copy(from: &Bucket<'_>, to: &mut BucketRwImpl<'_, '_>) -> bbolt_rs::Result<()> {
    for (key, item) in from.iter().map(Result::unwrap) {
        match item {
            Item::Value(value) => to.put(key, value)?,
            Item::Bucket(bucket) => copy(&bucket, &mut to.create_bucket(key)?)?,
        }
    }
    Ok(())
}

fn apply(bucket: &mut BucketRwImpl<'_, '_>, way: &[&str], edit: &Edit) -> bbolt_rs::Result<()> {
    match (way, edit) {
        ([last], Put(_, value)) => bucket.put(last, value),
        ([last], Delete(_)) => bucket.delete(last),
        ([last], Remove(_)) => bucket.delete_bucket(last),
        ([first, rest @ ..], _) => apply(&mut bucket.create_bucket_if_not_exists(first)?, rest, edit),
        ([], _) => Ok(()),
    }
}

/// What the fixture's snapshots in namespace `default` are called: chain ids, bottom first, and names in the backend.
struct Layers {
    chains: [String; 2],
    names: [String; 2],
}

fn layers() -> Layers {
    let store = Sandbox::store();
    let config: Value = serde_json::from_slice(&fs::read(store.blob(CONFIG)).unwrap()).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let first = diff_ids[0].as_str().unwrap().to_owned();
    let second = Digest::of(format!("{first} {}", diff_ids[1].as_str().unwrap()).as_bytes()).to_string();
    let all = Entries::read(&fs::read(store.root().join(METADATA)).unwrap());
    let name = |chain: &str| {
        let is_it = |name: &&String| name.starts_with("default/") && name.ends_with(chain);
        all.by_name.keys().find(is_it).unwrap().clone()
    };
    Layers { names: [name(&first), name(&second)], chains: [first, second] }
}

fn meta(way: &str) -> String {
    format!("root/{META_DB}: v1/{way}")
}

/// Edits a copy of the store and asserts that exactly `right` is found beyond what was there.
#[track_caller]
fn finds(db: &str, edits: &[Edit], right: &[(&str, String)]) {
    let sandbox = Sandbox::store();
    edit(&sandbox, db, edits);
    let right: Vec<_> = right.iter().map(|(code, place)| (*code, place.as_str())).chain([ENDED]).collect();
    assert_eq!(found(&sandbox, &[]).1, pairs(&right));
}

#[test]
fn another_writer_changes_nothing_by_itself() {
    let put: &[&str] = &["v1", "default", "labels", "team"];
    finds(META_DB, &[Put(put, b"teapots")], &[]);
    finds(METADATA, &[Put(&["v1", "unknown"], b"")], &[]);
}

#[test]
fn a_lease_may_keep_what_is_gone() {
    let lease = |rest: &[&'static str]| [&["v1", "default", "leases", "one"], rest].concat();
    let (snapshot, content) = (lease(&["snapshots", "overlayfs", "gone"]), lease(&["content", "sha256:00"]));
    let (image, ingest) = (lease(&["images", "gone"]), lease(&["ingests", "gone"]));
    let here = lease(&["content", LAYER]);
    for (way, right) in [(&snapshot, 1), (&content, 1), (&image, 1), (&ingest, 1), (&here, 0)] {
        let right = vec![("lease-dangling", meta("default/leases/one")); right];
        finds(META_DB, &[Put(way, b"")], &right);
    }
}

#[test]
fn parents_and_children_must_agree() {
    let Layers { chains: [first, second], .. } = layers();
    let of = |key: &str| meta(&format!("default/snapshots/overlayfs/{key}"));
    let snapshots = ["v1", "default", "snapshots", "overlayfs"];
    let way = |rest: &[&str]| [&snapshots[..], rest].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let as_str = |way: &'_ [String]| way.iter().map(|s| s.clone().leak() as &str).collect::<Vec<&str>>();
    let children = as_str(&way(&[&first, "children", &second]));
    finds(META_DB, &[Delete(&children)], &[("snapshot-children-wrong", of(&second))]);
    let stranger = as_str(&way(&[&second, "children", "stranger"]));
    finds(META_DB, &[Put(&stranger, b"")], &[("snapshot-children-wrong", of(&second))]);
    // On nothing that there is: then it is not among its parent's children either.
    let parent = as_str(&way(&["web", "parent"]));
    finds(
        META_DB,
        &[Put(&parent, b"gone")],
        &[
            ("snapshot-parent-missing", of("web")),
            ("snapshot-children-wrong", of(&second)),
            ("snapshot-parent-differs", of("web")),
        ],
    );
    // On itself.
    let (parent, child) = (as_str(&way(&[&first, "parent"])), as_str(&way(&[&second, "children", &first])));
    finds(
        META_DB,
        &[Put(&parent, second.as_bytes()), Put(&child, b"")],
        &[
            ("snapshot-cycle", of(&first)),
            ("snapshot-cycle", of(&second)),
            ("image-chain-wrong", meta("default/images/localhost/shop:1")),
        ],
    );
}

#[test]
fn the_two_databases_may_disagree_on_the_parent() {
    let Layers { chains: [first, second], .. } = layers();
    let snapshots = ["v1", "default", "snapshots", "overlayfs"];
    let parent = [&snapshots[..], &["web", "parent"]].concat();
    let (old, new) = (
        [&snapshots[..], &[&second, "children", "web"]].concat(),
        [&snapshots[..], &[&first, "children", "web"]].concat(),
    );
    finds(
        META_DB,
        &[Put(&parent, first.as_bytes()), Delete(&old), Put(&new, b"")],
        &[("snapshot-parent-differs", meta("default/snapshots/overlayfs/web"))],
    );
}

/// A crash between the two databases: the snapshotter has the layer, meta.db its unpacking.
#[test]
fn a_commit_cut_in_half_is_told_as_one() {
    let chain = format!("sha256:{}", "7".repeat(64));
    let key = format!("extract-1764066000-AbCd {chain}");
    let name = format!("default/40/{key}");
    let sandbox = Sandbox::store();
    let record = ["v1", "default", "snapshots", "overlayfs", &key];
    edit(&sandbox, META_DB, &[Put(&[&record[..], &["name"]].concat(), name.as_bytes())]);
    let committed = format!("default/41/{chain}");
    let record = ["v1", "snapshots", &committed];
    let put = |key, value| Put(Vec::leak([&record[..], &[key]].concat()), value);
    edit(&sandbox, METADATA, &[put("id", &[99]), put("kind", &[3])]);
    fs::create_dir_all(sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/99/fs")).unwrap();
    let place = meta(&format!("default/snapshots/overlayfs/{key}"));
    let right = pairs(&[ENDED, ("snapshot-half-committed", &place), ("snapshot-unpack-left", &place)]);
    assert_eq!(found(&sandbox, &[]), (1, right));
}

#[test]
fn a_number_belongs_to_one_snapshot() {
    let Layers { names, .. } = layers();
    let all = Entries::read(&fs::read(Sandbox::store().root().join(METADATA)).unwrap());
    let id = u8::try_from(all.by_name[&names[0]].id.0).unwrap();
    let own = all.by_name.keys().find(|name| name.ends_with("/web")).unwrap();
    let sandbox = Sandbox::store();
    edit(&sandbox, METADATA, &[Put(&["v1", "snapshots", own, "id"], &[id])]);
    let codes: BTreeSet<_> = found(&sandbox, &[]).1.into_iter().map(|(code, _)| code).collect();
    let right = ["backend-index-wrong", "backend-number-twice", "snapshot-directory-left", "task-ended"];
    assert_eq!(codes.iter().map(String::as_str).collect::<Vec<_>>(), right);
}

#[test]
fn records_that_are_none_are_named_and_hide_nothing() {
    finds(
        META_DB,
        &[Put(&["v1", "default", "containers", "web", "image"], b"\xff\xfe")],
        &[("record-unreadable", meta("default/containers/web"))],
    );
    finds(
        META_DB,
        &[Remove(&["v1", "k8s.io", "images", "localhost/shop:1", "target"])],
        &[("record-unreadable", meta("k8s.io/images/localhost/shop:1"))],
    );
    finds(
        METADATA,
        &[Put(&["v1", "snapshots", "odd", "kind"], &[9])],
        &[("record-unreadable", format!("root/{METADATA}: v1/snapshots/odd"))],
    );
    let sha512 = format!("sha512:{}", "0".repeat(128));
    finds(
        META_DB,
        &[Put(&["v1", "default", "content", "blob", &sha512, "size"], &[2])],
        &[("blob-unknown", meta(&format!("default/content/blob/{sha512}")))],
    );
}

#[test]
fn a_sandbox_is_looked_for_in_both_places() {
    let sandboxid: &[&str] = &["v1", "default", "containers", "web", "sandboxid"];
    finds(META_DB, &[Put(sandboxid, b"pod1")], &[("container-sandbox-missing", meta("default/containers/web"))]);
    // 2.x; 1.7; and the pause container alone, before there were records of sandboxes.
    finds(META_DB, &[Put(sandboxid, b"pod1"), Put(&["v1", "default", "sandboxes", "pod1", "x"], b"")], &[]);
    finds(META_DB, &[Put(sandboxid, b"pod1"), Put(&["default", "sandboxes", "pod1", "x"], b"")], &[]);
    finds(META_DB, &[Put(sandboxid, crate::harness::WORKER.as_bytes())], &[]);
}

/// Layers without a record: normal where they were discarded, or where their snapshots are; else the image is broken.
#[test]
fn a_layer_without_a_record_is_an_error_only_if_somebody_needs_it() {
    let Layers { chains: [first, second], .. } = layers();
    let blob = |namespace: &'static str, digest: &'static str| ["v1", namespace, "content", "blob", digest];
    let image = meta("default/images/localhost/shop:1");
    let kube = meta("k8s.io/images/localhost/shop:1");
    let gone = [Remove(&blob("default", LAYER)), Remove(&blob("k8s.io", LAYER))];
    let unrecorded = format!("root/{BLOBS}/{}", &LAYER[7..]);
    let discarded = [("image-layers-discarded", image), ("image-layers-discarded", kube)];
    let with = |more: &[(&'static str, String)]| [&discarded[..], more].concat();
    finds(META_DB, &gone, &with(&[("blob-unrecorded", unrecorded.clone())]));

    // Another namespace has the image, and nothing is unpacked there.
    let third = |rest: &[&'static str]| [&["v1", "third"], rest].concat();
    let named = |key| third(&["images", "shop", "target", key]);
    let of = |digest: &'static str| third(&["content", "blob", digest, "size"]);
    let size = |digest: &str| {
        let bytes = fs::metadata(Sandbox::store().blob(digest)).unwrap().len();
        let zigzag = bytes * 2;
        vec![zigzag as u8 & 0x7f | 0x80, (zigzag >> 7) as u8]
    };
    let (manifest, config) = (size(MANIFEST), size(CONFIG));
    let (digest, media_type) = (named("digest"), named("mediatype"));
    let (of_manifest, of_config) = (of(MANIFEST), of(CONFIG));
    let label = third(&["content", "blob", MANIFEST, "labels", "containerd.io/gc.ref.content.l.0"]);
    let base = || {
        vec![
            Put(&digest, MANIFEST.as_bytes()),
            Put(&media_type, b"application/vnd.oci.image.manifest.v1+json"),
            Put(&of_manifest, &manifest),
            Put(&of_config, &config),
        ]
    };
    let place = || meta("third/images/shop");
    finds(META_DB, &base(), &[("image-layers-discarded", place())]);
    let mut labelled = base();
    labelled.push(Put(&label, LAYER.as_bytes()));
    finds(META_DB, &labelled, &[("image-layer-missing", place())]);
    let mut without_config = base();
    without_config.push(Remove(&of_config[..of_config.len() - 1]));
    finds(META_DB, &without_config, &[("image-layers-discarded", place()), ("image-config-missing", place())]);

    // One of two layers is unpacked; the whole would be no finding.
    let names = layers().names;
    let key = |chain: &str, what: &str| -> Vec<&'static str> {
        third(&[])
            .into_iter()
            .chain(["snapshots", "overlayfs", chain.to_owned().leak(), what.to_owned().leak()])
            .collect()
    };
    let (one, two, parent) = (key(&first, "name"), key(&second, "name"), key(&second, "parent"));
    let mut child = key(&first, "children");
    child.push(second.clone().leak());
    let mut partly = base();
    partly.push(Put(&one, names[0].as_bytes()));
    finds(META_DB, &partly, &[("image-layers-discarded", place()), ("image-partly-unpacked", place())]);
    partly.extend([Put(&two, names[1].as_bytes()), Put(&parent, first.as_bytes()), Put(&child, b"")]);
    finds(META_DB, &partly, &[("image-layers-discarded", place())]);
}

/// Documents that are sound blobs and no images.
#[test]
fn an_image_may_be_anything() {
    let json = b"{\"not\": \"an image\"}";
    let digest = Digest::of(json);
    let text = digest.to_string();
    for (media_type, right) in [
        ("application/vnd.oci.image.manifest.v1+json", Some("image-malformed")),
        ("application/vnd.oci.image.index.v1+json", Some("image-malformed")),
        ("application/vnd.example.thing", None),
    ] {
        let sandbox = Sandbox::store();
        fs::write(sandbox.root().join(BLOBS).join(digest.to_hex()), json).unwrap();
        let target = ["v1", "default", "images", "odd", "target"];
        let blob = ["v1", "default", "content", "blob", &text, "size"];
        edit(
            &sandbox,
            META_DB,
            &[
                Put(&[&target[..], &["digest"]].concat(), text.as_bytes()),
                Put(&[&target[..], &["mediatype"]].concat(), media_type.as_bytes()),
                Put(&blob, &[json.len() as u8 * 2]),
            ],
        );
        let place = meta("default/images/odd");
        let right = right.map(|code| (code, place.as_str()));
        assert_eq!(found(&sandbox, &[]).1, pairs(&[right.as_slice(), &[ENDED]].concat()), "{media_type}");
    }
}

/// A store of `n` images, each with a layer of its own, unpacked, and a container upon it.
fn large(n: usize) -> Sandbox {
    let sandbox = Sandbox::empty();
    let blobs = sandbox.root().join(BLOBS);
    let backend = sandbox.root().join(METADATA).parent().unwrap().to_owned();
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(sandbox.root().join(META_DB).parent().unwrap()).unwrap();
    fs::create_dir_all(backend.join("snapshots")).unwrap();
    let uvarint = |mut n: u64| {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    let blob = |content: &[u8]| {
        let digest = Digest::of(content);
        fs::write(blobs.join(digest.to_hex()), content).unwrap();
        (digest.to_string(), content.len())
    };
    let (mut meta, mut own) =
        (Bolt::open(sandbox.root().join(META_DB)).unwrap(), Bolt::open(backend.join("metadata.db")).unwrap());
    let mut layers = Vec::new();
    meta.update(|mut tx| {
        let mut v1 = tx.create_bucket("v1")?;
        v1.put("version", [8])?;
        for i in 0..n {
            let (layer, layer_size) = blob(format!("layer {i}").as_bytes());
            let diff_id = Digest::of(format!("diff {i}").as_bytes()).to_string();
            let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).to_string();
            let (config, config_size) = blob(config.as_bytes());
            let manifest = serde_json::json!({
                "schemaVersion": 2, "config": {"digest": config, "size": config_size},
                "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
            });
            let (manifest, size) = blob(manifest.to_string().as_bytes());
            let mut ns = v1.create_bucket_if_not_exists("default")?;
            for (digest, size) in [(&layer, layer_size), (&config, config_size), (&manifest, size)] {
                let way = ["content", "blob", digest, "size"];
                apply(&mut ns, &way, &Put(&way, &uvarint(size as u64 * 2)))?;
            }
            let name = format!("localhost/{i}");
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            for (key, value) in [("digest", manifest.as_bytes()), ("mediatype", media_type.as_bytes())] {
                let way = ["images", &name, "target", key];
                apply(&mut ns, &way, &Put(&way, value))?;
            }
            let backend_name = format!("default/{}/{diff_id}", i + 1);
            let way = ["snapshots", "overlayfs", &diff_id, "name"];
            apply(&mut ns, &way, &Put(&way, backend_name.as_bytes()))?;
            fs::create_dir_all(backend.join(format!("snapshots/{}/fs", i + 1))).unwrap();
            let (key, own) = (format!("c{i}"), n + i + 1);
            let own_name = format!("default/{own}/{key}");
            for (way, value) in [
                (&["containers", &key, "image"][..], name.as_str()),
                (&["containers", &key, "snapshotter"], "overlayfs"),
                (&["containers", &key, "snapshotKey"], &key),
                (&["containers", &key, "runtime", "name"], "io.containerd.runc.v2"),
                (&["snapshots", "overlayfs", &key, "name"], &own_name),
                (&["snapshots", "overlayfs", &key, "parent"], &diff_id),
                (&["snapshots", "overlayfs", &diff_id, "children", &key], ""),
            ] {
                apply(&mut ns, way, &Put(way, value.as_bytes()))?;
            }
            for dir in ["fs", "work"] {
                fs::create_dir_all(backend.join(format!("snapshots/{own}/{dir}"))).unwrap();
            }
            layers.push((own_name, own as u64, 2, Some(backend_name.clone())));
            layers.push((backend_name, i as u64 + 1, 3, None));
        }
        Ok(())
    })
    .unwrap();
    own.update(|mut tx| {
        let mut v1 = tx.create_bucket("v1")?;
        let mut index = v1.create_bucket("parents")?;
        for (name, id, ..) in layers.iter().filter(|(_, _, _, parent)| parent.is_some()) {
            // A container's snapshot has a number so much greater than its image's.
            index.put([uvarint(id - n as u64), vec![0], uvarint(*id)].concat(), name)?;
        }
        let mut all = v1.create_bucket("snapshots")?;
        for (name, id, kind, parent) in &layers {
            let mut record = all.create_bucket(name)?;
            if let Some(parent) = parent {
                record.put("parent", parent)?;
            }
            record.put("id", uvarint(*id))?;
            record.put("kind", [*kind])?;
        }
        Ok(())
    })
    .unwrap();
    meta.close();
    own.close();
    sandbox
}

/// Seven records an image: `DEWAR_RECORDS=50000` (10,000 containers) measures (the store itself takes a minute to make).
#[test]
fn many_records_are_looked_at_once_each() {
    let wanted: usize = std::env::var("DEWAR_RECORDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let sandbox = large(wanted / 5);
    let started = std::time::Instant::now();
    let ran = sandbox.dewar(&["fsck", "--json"]).exits(0).json();
    eprintln!("{wanted} records: fsck took {:?}", started.elapsed());
    assert_eq!(ran[0]["findings"], serde_json::json!([]));
    assert_eq!(ran[0]["looked"]["images"], wanted / 5);
    assert_eq!(ran[0]["looked"]["containers"], wanted / 5);
    let home = ran[0]["home"].as_array().unwrap();
    assert!(
        home.len() == wanted / 5 && home.iter().all(|one| one["outcome"] == "files-only"),
        "none has a spec: {:?}",
        home[0]
    );
    let started = std::time::Instant::now();
    let layer = Digest::of(b"layer 7").to_string();
    let found = sandbox.dewar(&["whois", "--json", &layer]).exits(0).json();
    eprintln!("{wanted} records: whois took {:?}", started.elapsed());
    assert_eq!(found[0]["found"][0]["roles"][0], "layer 1 of 1 of default/localhost/7");
}
