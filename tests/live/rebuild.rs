//! Images whose blobs are gone: layers are made again from their snapshots, and the bundle is whole all the same.
//!
//! `make-image` makes the image: its layers come from every writer the lab has.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok, until};

/// The image's digests, as its documents have them.
struct Original {
    manifest: String,
    config: String,
    layers: Vec<String>,
}

const BLOBS: &str = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256";

fn json(lab: &Lab, path: &str) -> Value {
    serde_json::from_str(&lab.sh(&format!("cat {path}"))).expect("a document is JSON")
}

fn blob(lab: &Lab, layout: &str, digest: &str) -> Value {
    json(lab, &format!("{layout}/blobs/sha256/{}", digest.trim_start_matches("sha256:")))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn digests(descriptors: &Value) -> Vec<String> {
    descriptors.as_array().into_iter().flatten().map(|d| text(&d["digest"])).collect()
}

/// An image of the layout at `layout`, the only one there.
fn original(lab: &Lab, layout: &str) -> Original {
    let manifest = text(&json(lab, &format!("{layout}/index.json"))["manifests"][0]["digest"]);
    let document = blob(lab, layout, &manifest);
    Original { config: text(&document["config"]["digest"]), layers: digests(&document["layers"]), manifest }
}

/// A fresh lab with the image of all writers in `/tmp/made`.
fn with_image(containerd: Containerd) -> Option<(Lab, Original)> {
    let lab = Lab::start(containerd, Cgroup::V1)?;
    lab.start_containerd();
    lab.sh(&format!(
        "cat > /tmp/make-image <<'END'\n{}\nEND\nbash /tmp/make-image /tmp/made",
        include_str!("make-image")
    ));
    let original = original(&lab, "/tmp/made");
    Some((lab, original))
}

/// Imports what is in `/tmp/made`; containerd itself discards the layers once unpacked, where it can.
fn import_and_discard(lab: &Lab) {
    let flags = match lab.containerd {
        Containerd::V1_6 => "",
        Containerd::V1_7 => "--discard-unpacked-layers",
        Containerd::V2_1 => "--local --discard-unpacked-layers",
    };
    lab.sh(&format!("tar -C /tmp/made -cf - . | ctr images import {flags} -"));
}

/// A container with data of its own, then no daemon, then no blobs of these digests.
fn run_and_lose(lab: &Lab, image: &str, digests: &[String]) {
    let script = "rm /etc/group; echo data > /data; while :; do sleep 1; done";
    lab.sh(&format!("ctr run -d {image} c /bin/sh -c '{script}'"));
    until("it has written", || lab.inside("c", &["/bin/cat", "/data"]).status.success());
    lab.kill_containerd();
    for digest in digests {
        lab.sh(&format!("rm -f {BLOBS}/{}", digest.trim_start_matches("sha256:")));
    }
}

/// Checkpoints it: the report; the exit status must be `status`.
#[track_caller]
fn checkpoint(lab: &Lab, status: i32) -> Value {
    let done = lab.dewar(&["checkpoint", "c", "-o", "/tmp/layout", "--ref", "localhost/checkpoint:1", "--json"]);
    let report: Value = serde_json::from_slice(&done.stdout).expect("--json prints JSON");
    assert_eq!(done.status.code(), Some(status), "{report:#}");
    assert_eq!(report[0]["memory"], "dumped");
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"), "what was made again verifies");
    report[0].clone()
}

/// The bundle's image of this name: its descriptor and its manifest.
fn bundled(lab: &Lab, name: &str) -> (Value, Value) {
    let index = json(lab, "/tmp/layout/index.json");
    let entries = index["manifests"].as_array().expect("an index has entries");
    let named = |entry: &&Value| entry["annotations"]["io.containerd.image.name"] == name;
    let entry = entries.iter().find(named).expect("the image has its own name").clone();
    let manifest = blob(lab, "/tmp/layout", &text(&entry["digest"]));
    (entry, manifest)
}

/// On a fresh node the import ends with 0, and the container comes back with its data on the files of its image.
#[track_caller]
fn comes_back(lab: &Lab, files: &[(&str, &str)]) {
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("c", "localhost/checkpoint:1");
    assert_eq!(lab.ask("c", &["/bin/cat", "/data"]), "data\n");
    assert!(!lab.inside("c", &["/bin/cat", "/etc/group"]).status.success(), "what was deleted stays deleted");
    for (file, content) in files {
        assert_eq!(lab.ask("c", &["/bin/cat", file]), format!("{content}\n"));
    }
    // What the import unpacked is what the committed image holds, too.
    lab.sh("ctr run --rm localhost/checkpoint:1-rootfs check /bin/cat /data | grep -x data");
}

const FILES: [(&str, &str); 5] = [
    ("/prey/replace/file", "ctr"),
    ("/umoci/a/new", "podman"),
    ("/umoci/café", "u"),
    ("/opt/inserted/sub/file", "inserted"),
    ("/ctr/linked", "ctr"),
];

/// Every layer, whoever wrote it, has its diff id again: config and chain are the original's.
fn discarded_layers_are_made_again(containerd: Containerd) {
    let Some((lab, original)) = with_image(containerd) else { return };
    import_and_discard(&lab);
    run_and_lose(&lab, "localhost/made:1", &original.layers);
    let report = checkpoint(&lab, 0);
    assert_eq!(report["findings"], serde_json::json!([]), "{report:#}");
    assert!(report["notes"][0].as_str().is_some_and(|note| note.contains("byte for byte")), "{report:#}");

    let (entry, manifest) = bundled(&lab, "localhost/made:1");
    assert_ne!(text(&entry["digest"]), original.manifest, "a manifest names compressed blobs, and these are others");
    assert_eq!(text(&manifest["config"]["digest"]), original.config);
    assert_eq!(text(&manifest["subject"]["digest"]), original.manifest);
    assert_eq!(text(&manifest["annotations"]["org.dewar.image.original"]), original.manifest);
    let layers = manifest["layers"].as_array().expect("a manifest has layers");
    assert_eq!(layers.len(), original.layers.len());
    for (layer, old) in layers.iter().zip(&original.layers) {
        assert_eq!(layer["annotations"]["org.dewar.layer.recreated"], "exact");
        assert_eq!(text(&layer["annotations"]["org.dewar.layer.original"]), *old);
    }
    assert_eq!(
        digests(&blob(&lab, "/tmp/layout", &original.manifest)["layers"]),
        original.layers,
        "it is there, verbatim"
    );
    let shown = dewar_json(&lab, &["inspect", "/tmp/layout", "--json"]);
    assert_eq!(shown[0]["annotations"]["org.dewar.image.original"], original.manifest.as_str());
    comes_back(&lab, &FILES);
}

#[test]
fn discarded_layers_are_made_again_from_containerd_1_6() {
    discarded_layers_are_made_again(Containerd::V1_6);
}

#[test]
fn discarded_layers_are_made_again_from_containerd_1_7() {
    discarded_layers_are_made_again(Containerd::V1_7);
}

#[test]
fn discarded_layers_are_made_again_from_containerd_2_1() {
    discarded_layers_are_made_again(Containerd::V2_1);
}

/// One layer has times of access in its tar, and no unpacked file tells those: same files, another diff id.
#[test]
fn a_layer_that_cannot_be_hit_has_the_same_files() {
    for containerd in Containerd::ALL {
        let Some((lab, first)) = with_image(containerd) else { return };
        lab.sh(
            "mkdir -p /tmp/odd/odd; echo odd > /tmp/odd/odd/file; tar -C /tmp/odd --format=posix -cf /tmp/odd.tar odd
             skopeo copy -q oci:/tmp/made:localhost/made:1 oci:/tmp/raw:odd
             umoci raw add-layer --image /tmp/raw:odd /tmp/odd.tar
             skopeo copy -q oci:/tmp/raw:odd oci:/tmp/odd-image:localhost/odd:1
             rm -r /tmp/made; mv /tmp/odd-image /tmp/made
             jq '.manifests[0].annotations[\"io.containerd.image.name\"] = \"localhost/odd:1\"' /tmp/made/index.json > /tmp/index
             mv /tmp/index /tmp/made/index.json",
        );
        let original = original(&lab, "/tmp/made");
        assert_eq!(original.layers.len(), first.layers.len() + 1);
        import_and_discard(&lab);
        run_and_lose(&lab, "localhost/odd:1", &original.layers);
        let report = checkpoint(&lab, 1);
        let findings = report["findings"].as_array().expect("findings are a list");
        assert_eq!(findings.len(), 1, "{report:#}");
        assert!(text(&findings[0]).contains(original.layers.last().expect("it has layers")), "{report:#}");

        let (_, manifest) = bundled(&lab, "localhost/odd:1");
        let quality: Vec<_> = manifest["layers"].as_array().into_iter().flatten().collect();
        let quality: Vec<_> = quality.iter().map(|l| text(&l["annotations"]["org.dewar.layer.recreated"])).collect();
        assert_eq!(quality.iter().filter(|q| *q == "exact").count(), first.layers.len(), "{quality:?}");
        assert_eq!(quality.last().map(String::as_str), Some("equivalent"));
        assert_eq!(manifest["annotations"]["org.dewar.image.recreated"], "equivalent");
        comes_back(&lab, &[&FILES[..], &[("/odd/file", "odd")]].concat());
    }
}

/// Nothing of the image is left but its record and its snapshots.
#[test]
fn an_image_without_manifest_and_config_is_made_of_its_snapshots() {
    for containerd in Containerd::ALL {
        let Some((lab, original)) = with_image(containerd) else { return };
        import_and_discard(&lab);
        let documents = [original.manifest.clone(), original.config.clone()];
        run_and_lose(&lab, "localhost/made:1", &[&original.layers[..], &documents].concat());
        let report = checkpoint(&lab, 1);
        assert_eq!(report["findings"].as_array().map(Vec::len), Some(1), "{report:#}");
        assert!(text(&report["findings"][0]).contains("without a command"), "{report:#}");
        let (_, manifest) = bundled(&lab, "localhost/made:1");
        assert!(manifest.get("subject").is_none(), "its document is not there");
        assert_eq!(text(&manifest["annotations"]["org.dewar.image.original"]), original.manifest);
        assert_eq!(manifest["annotations"]["org.dewar.image.recreated"], "exact", "the chain ids tell the diff ids");
        comes_back(&lab, &FILES);
    }
}

/// An index of two platforms, the other one never pulled: carried verbatim, and when layers of ours are gone, referred to.
#[test]
fn an_image_of_several_platforms_needs_the_local_one_only() {
    for containerd in Containerd::ALL {
        for lose in [false, true] {
            let Some((lab, original)) = with_image(containerd) else { return };
            let index = lab.sh(
                "cd /tmp/made
                 jq -c '{schemaVersion: 2, mediaType: \"application/vnd.oci.image.index.v1+json\", manifests: [
                    {mediaType: \"application/vnd.oci.image.manifest.v1+json\", digest: (\"sha256:\" + (\"a\" * 64)), size: 700,
                     platform: {architecture: \"s390x\", os: \"linux\"}},
                    (.manifests[0] | del(.annotations) + {platform: {architecture: \"amd64\", os: \"linux\"}})
                 ]}' index.json > index
                 hex=$(sha256sum index | cut -d' ' -f1) size=$(stat -c %s index)
                 mv index blobs/sha256/$hex
                 jq -c --arg d sha256:$hex --argjson s $size '.manifests[0] |= (.digest = $d | .size = $s
                    | .mediaType = \"application/vnd.oci.image.index.v1+json\")' index.json > new
                 mv new index.json; printf sha256:$hex",
            );
            lab.sh("tar -C /tmp/made -cf - . | ctr images import --platform linux/amd64 -");
            run_and_lose(&lab, "localhost/made:1", if lose { &original.layers } else { &[] });
            let report = checkpoint(&lab, 0);
            assert_eq!(report["findings"], serde_json::json!([]), "{report:#}");
            let (entry, document) = bundled(&lab, "localhost/made:1");
            if lose {
                assert_eq!(text(&document["subject"]["digest"]), index);
                assert_eq!(text(&document["config"]["digest"]), original.config);
                assert_eq!(blob(&lab, "/tmp/layout", &index)["manifests"].as_array().map(Vec::len), Some(2));
            } else {
                assert_eq!(text(&entry["digest"]), index);
            }
            comes_back(&lab, &FILES);
        }
    }
}
