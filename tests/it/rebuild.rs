//! Images whose blobs are gone, in the small store: git kept no times, so no layer can be hit, only made alike.

use std::{collections::BTreeSet, fs, io::Read, path::Path};

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::harness::{Sandbox, blob, document, entry, expected, index, json};

const IMAGE: &str = "localhost/shop:1";

/// The image's manifest, in the store.
fn manifest(sandbox: &Sandbox) -> Value {
    manifest_of(sandbox, "store/expected.json")
}

fn manifest_of(sandbox: &Sandbox, right: &str) -> Value {
    let right = expected(right);
    let image = right["images"].as_array().unwrap().iter().find(|i| i["name"] == IMAGE).unwrap();
    json(&fs::read(sandbox.blob(image["digest"].as_str().unwrap())).unwrap())
}

/// The small store without the image's layers; and these.
fn discarded() -> (Sandbox, Vec<Vec<u8>>) {
    let sandbox = Sandbox::store();
    let layers = manifest(&sandbox)["layers"].as_array().unwrap().clone();
    let take = |layer: &Value| {
        let path = sandbox.blob(layer["digest"].as_str().unwrap());
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        bytes
    };
    let layers = layers.iter().map(take).collect();
    (sandbox, layers)
}

/// Names and contents in a gzip layer.
fn content(layer: &[u8]) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(layer));
    let entries = archive.entries().unwrap().map(Result::unwrap);
    let read = |mut entry: tar::Entry<'_, _>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path_bytes().into_owned(), bytes)
    };
    // Git keeps no empty directories.
    entries.map(read).filter(|(name, _)| !name.ends_with(b"/")).collect()
}

fn layers_of(layout: &Path) -> Value {
    document(layout, entry(&index(layout), IMAGE))["layers"].clone()
}

#[test]
fn a_layer_made_again_has_the_same_files_and_says_what_it_is() {
    let (sandbox, originals) = discarded();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    assert!(sandbox.dewar(&["verify", "out"]).exits(0).text().starts_with("sound: "));
    let layout = sandbox.path("out");
    let layers = layers_of(&layout);
    assert_eq!(layers.as_array().unwrap().len(), originals.len());
    for (layer, original) in layers.as_array().unwrap().iter().zip(&originals) {
        assert_eq!(content(&blob(&layout, layer)), content(original));
        assert_eq!(layer["annotations"]["org.dewar.layer.recreated"], "equivalent");
        assert_eq!(layer["annotations"]["org.dewar.layer.original"], dewar::digest::Digest::of(original).to_string());
    }
    let made = document(&layout, entry(&index(&layout), IMAGE));
    let original = expected("store/expected.json");
    let original = original["images"].as_array().unwrap().iter().find(|i| i["name"] == IMAGE).unwrap();
    assert_eq!(made["subject"]["digest"], original["digest"]);
    assert_eq!(document(&layout, &made["subject"]), manifest(&sandbox), "the original is here, verbatim");
    assert!(sandbox.dewar(&["inspect", "out"]).exits(0).text().contains("made again from its snapshots: equivalent"));
}

#[test]
fn what_is_made_again_is_the_same_each_time() {
    let (sandbox, _) = discarded();
    let bytes = |out: &str| {
        let mut command = sandbox.command(&["checkpoint", "web", "-o", out, "--ref", "localhost/x:1"]);
        command.env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap();
        fs::read(sandbox.path(out).join("index.json")).unwrap()
    };
    assert_eq!(bytes("one"), bytes("two"));
    // A second run into the same layout finds the same image.
    assert_eq!(bytes("one"), bytes("two"));
}

/// A snapshotter whose layers are whole trees serves, too; overlay's are better, where the image is unpacked there as well.
#[test]
fn an_image_is_made_again_from_whole_trees() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    let layers = manifest_of(&sandbox, "containerd/2.1.expected.json")["layers"].as_array().unwrap().clone();
    layers.iter().for_each(|layer| fs::remove_file(sandbox.blob(layer["digest"].as_str().unwrap())).unwrap());
    for (out, has_overlay) in [("both", true), ("trees", false)] {
        if !has_overlay {
            fs::remove_dir_all(sandbox.root().join("io.containerd.snapshotter.v1.overlayfs")).unwrap();
        }
        sandbox.dewar(&["checkpoint", "default/flat", "-o", out]).exits(1);
        sandbox.dewar(&["verify", out]).exits(0);
        let layout = sandbox.path(out);
        let made = layers_of(&layout);
        let names = |layer: &Value| content(&blob(&layout, layer)).into_iter().map(|(name, _)| name);
        let names: Vec<_> = made.as_array().unwrap().iter().flat_map(names).collect();
        assert!(names.contains(&b"bin/web".to_vec()) && names.contains(&b"srv/www/img/pot.svg".to_vec()), "{out}");
    }
}

/// A run killed while it committed leaves a list of what it brought in; the next removes what no index leads to.
#[test]
fn the_original_survives_the_sweep_after_a_killed_run() {
    let (sandbox, _) = discarded();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:1"]).exits(1);
    let layout = sandbox.path("out");
    let original = document(&layout, entry(&index(&layout), IMAGE))["subject"]["digest"].as_str().unwrap().to_owned();
    fs::create_dir(layout.join(".dewar-killed")).unwrap();
    fs::write(layout.join(".dewar-killed/landing"), format!("{original}\n")).unwrap();
    // This one brings no image itself.
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:2", "--no-image"]).exits(0);
    assert!(!layout.join(".dewar-killed").exists());
    assert!(layout.join("blobs").join(original.replace(':', "/")).exists());
}

/// A layout may be anybody's: what stands in it for the image is not believed.
#[test]
fn an_image_in_the_layout_is_shared_only_if_the_snapshots_still_make_it() {
    let (sandbox, _) = discarded();
    let first = sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:1"]).exits(1);
    let made = entry(&index(&sandbox.path("out")), IMAGE)["digest"].clone();
    let second = sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:2"]).exits(1);
    assert_eq!(first.stderr, second.stderr);
    let snapshots = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    fs::write(snapshots.join("1/fs/etc/added"), "later").unwrap();
    let third = sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:3"]).exits(2);
    assert!(third.stderr.contains("already has an image localhost/shop:1 with another digest"), "{}", third.stderr);
    assert_eq!(entry(&index(&sandbox.path("out")), IMAGE)["digest"], made);
    sandbox.dewar(&["verify", "out"]).exits(0);
}

#[test]
fn an_image_that_stays_behind_is_not_made_again() {
    let (sandbox, _) = discarded();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--no-image"]).exits(0);
    assert!(!index(&sandbox.path("out")).to_string().contains("org.dewar.image.recreated"));
    fs::remove_file(sandbox.blob(manifest(&sandbox)["config"]["digest"].as_str().unwrap())).unwrap();
    sandbox.dewar(&["checkpoint", "web", "-o", "other", "--no-image"]).exits(1);
    assert!(!index(&sandbox.path("other")).to_string().contains("org.dewar.image.recreated"));
}

#[test]
fn without_snapshots_too_the_rest_comes_home() {
    let (sandbox, originals) = discarded();
    let snapshots = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    // The bottom layer: the container's own files are there, its image's are not.
    fs::remove_dir_all(snapshots.join("1")).unwrap();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    assert!(ran.stderr.contains("could not be made again"), "{}", ran.stderr);
    for original in originals {
        assert!(ran.stderr.contains(&dewar::digest::Digest::of(&original).to_string()), "{}", ran.stderr);
    }
}

/// Only what a tree can hold goes into a layer: a whiteout's name, a socket, a path that leads out.
#[test]
fn a_hostile_snapshot_takes_nothing_along() {
    let (sandbox, _) = discarded();
    let bottom = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs");
    fs::write(sandbox.path("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(sandbox.path("secret"), bottom.join("out")).unwrap();
    fs::write(bottom.join(".wh.bin"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bottom.join("socket")).unwrap();
    // The passwd of the owners' names is looked for as well.
    fs::remove_dir_all(bottom.join("etc")).unwrap();
    std::os::unix::fs::symlink(sandbox.path(""), bottom.join("etc")).unwrap();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    assert!(ran.stderr.contains(".wh.bin") && ran.stderr.contains("socket"), "{}", ran.stderr);
    let layout = sandbox.path("out");
    let bottom = content(&blob(&layout, &layers_of(&layout)[0]));
    assert!(bottom.iter().all(|(name, bytes)| name != b".wh.bin" && !bytes.starts_with(b"secret")));
    sandbox.dewar(&["verify", "out"]).exits(0);
}
