//! `fsck --deep`: what real containerds unpacked is found to be what its layers say, whatever is in them; what is changed
//! afterwards is found, though size and times were kept.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab};

const STORE: &str = "/var/lib/containerd";

/// Code and path of everything that was found, and how many snapshots were compared.
fn deep(lab: &Lab, snapshotter: &str) -> (BTreeSet<(String, String)>, u64) {
    let ran = lab.dewar(&["--root", STORE, "fsck", "--deep", "--json"]);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
    let all = report[0]["findings"].as_array().expect("a list").iter();
    let found: BTreeSet<_> = all.map(|f| (text(f, "code"), format!("{}: {}", text(f, "thing"), f["seen"]))).collect();
    assert_eq!(ran.status.code(), Some(i32::from(!found.is_empty())), "{snapshotter}: {report:#}");
    (found, report[0]["looked"]["compared"].as_u64().expect("a number"))
}

#[track_caller]
fn is_untouched(lab: &Lab, snapshotter: &str, snapshots: u64) {
    assert_eq!(deep(lab, snapshotter), (BTreeSet::new(), snapshots), "{:?} {snapshotter}", lab.containerd);
}

/// An OCI layout of layers that use every rule of unpacking, and one with a file stored in parts.
fn make_odd(lab: &Lab) {
    lab.sh(&format!(
        "cat > /tmp/odd-layers <<'END'\n{}\nEND
         mkdir /tmp/parts; cd /tmp/parts; truncate -s 5M hole; printf x | dd of=hole bs=1 seek=3000000 conv=notrunc status=none
         tar --format=posix --sparse -cf /tmp/parts.tar hole
         python3 /tmp/odd-layers /tmp/odd /tmp/parts.tar",
        include_str!("odd-layers.py")
    ));
}

/// Imports what prints an archive, and unpacks it for a snapshotter. The transfer service of 2.1 knows only its own.
fn import(lab: &Lab, archive: &str, snapshotter: &str) {
    let local = if lab.containerd == Containerd::V2_1 { "--local" } else { "" };
    lab.sh(&format!("{archive} | ctr images import {local} --snapshotter {snapshotter} -"));
}

#[test]
fn what_containerd_unpacked_is_as_its_layers_say() {
    for containerd in Containerd::ALL {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        make_odd(&lab);
        lab.sh("tar -C /tmp/odd -cf - . | ctr images import -");
        import(&lab, "tar -C /tmp/odd -cf - .", "native");
        let mut snapshots = 8;
        for image in ["busybox", "programs", "redis"] {
            lab.import(image);
            import(&lab, &format!("cat /images/{image}.tar"), "native");
            let layers = lab.sh(&format!(
                "tar -xOf /images/{image}.tar blobs/sha256/$(tar -xOf /images/{image}.tar index.json | jq -r '.manifests[0].digest' | cut -d: -f2) | jq '.layers | length'"
            ));
            snapshots += 2 * layers.trim().parse::<u64>().expect("a number");
        }
        // The base layer of all three is one.
        let chains =
            lab.sh("for sn in overlayfs native; do ctr snapshots --snapshotter $sn ls | grep -c Committed; done");
        let chains: u64 = chains.lines().map(|n| n.parse::<u64>().expect("a number")).sum();
        assert!(chains <= snapshots && chains > 8, "{chains} of {snapshots}");
        lab.kill_containerd();
        is_untouched(&lab, "overlayfs, native", chains);
    }
}

/// Layers of GNU tar, umoci, podman and containerd's own differ.
#[test]
fn layers_of_every_writer_are_as_they_say() {
    for containerd in Containerd::ALL {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        lab.sh(&format!(
            "cat > /tmp/make-image <<'END'\n{}\nEND\nbash /tmp/make-image /tmp/made",
            include_str!("make-image")
        ));
        lab.sh("tar -C /tmp/made -cf - . | ctr images import -");
        import(&lab, "tar -C /tmp/made -cf - .", "native");
        lab.kill_containerd();
        let (found, compared) = deep(&lab, "overlayfs, native");
        // What the making of the image left behind is no layer's matter.
        let of_layers: Vec<_> = found.iter().filter(|(code, _)| code.starts_with("layer")).collect();
        assert!(of_layers.is_empty() && compared > 10, "{containerd:?}: {compared} {found:#?}");
    }
}

#[test]
fn file_systems_of_their_own_are_as_their_layers_say() {
    for snapshotter in ["btrfs", "blockfile"] {
        let Some(scene) = crate::snapshotters::Scene::start(Containerd::V2_1, snapshotter) else { return };
        make_odd(&scene.lab);
        import(&scene.lab, "tar -C /tmp/odd -cf - .", snapshotter);
        let chains = scene.lab.sh(&format!("ctr snapshots --snapshotter {snapshotter} ls | grep -c Committed"));
        scene.lab.kill_containerd();
        is_untouched(&scene.lab, snapshotter, chains.trim().parse().expect("a number"));
    }
}

/// What somebody does to the topmost layer's files of the odd image, in the snapshot's directory.
const TAMPER: &str = r#"
    keep() { stat -c "touch -h -d @%.Y '%n'" "$1"; }
    again=$(keep private/deep/new); printf 'its parents have NO entries' | dd of=private/deep/new conv=notrunc status=none; eval "$again"
    again=$(keep here); chmod 4777 here; eval "$again"
    : > usr/lib/own
    echo dropped > usr/.hidden
    rm opaque/new
    mknod stays-not c 0 0
    setfattr -x trusted.overlay.opaque opaque
    touch -d @1 replaced
"#;

#[test]
fn what_was_changed_in_a_snapshot_is_found() {
    for containerd in [Containerd::V1_7, Containerd::V2_1] {
        let Some(lab) = Lab::start(containerd, Cgroup::V1) else { return };
        lab.start_containerd();
        make_odd(&lab);
        lab.sh("tar -C /tmp/odd -cf - . | ctr images import -");
        lab.kill_containerd();
        is_untouched(&lab, "overlayfs", 4);
        // The second layer's.
        lab.sh(&format!("cd {STORE}/io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs; {TAMPER}"));
        let (found, _) = deep(&lab, "overlayfs");
        let found: BTreeSet<(&str, &str)> =
            found.iter().map(|(code, thing)| (code.as_str(), thing.split(',').next().unwrap_or_default())).collect();
        let right = BTreeSet::from([
            ("layer-file-changed", "/private/deep/new"),
            ("layer-file-changed", "/here"),
            ("layer-file-changed", "/here-too"),
            ("layer-file-empty", "/usr/lib/own"),
            ("layer-file-added", "/usr/.hidden"),
            ("layer-file-missing", "/opaque/new"),
            ("layer-file-added", "/stays-not"),
            ("layer-file-changed", "/opaque"),
            ("layer-file-changed", "/replaced"),
            // A directory of the layer's, in which something was made.
            ("layer-file-changed", "/usr"),
        ]);
        assert_eq!(found, right, "{containerd:?}");
    }
}
