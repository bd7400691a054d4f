//! Other people's tools open what `dewar` wrote, unconverted: `skopeo`, `umoci`, `podman`, `ctr` of three releases,
//! `checkpointctl`, `crit`, `bsdtar`, GNU tar. What they make of it is compared with the container's own view of its files,
//! attribute by attribute, and every difference stands in the test with its cause.
//!
//! One container with a rich rw layer is checkpointed once, into a directory and into the tar form; each tool gets both
//! in an instance of its own, without containerd's stores.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use dewar::oci::names;

use crate::{
    harness::{Cgroup, Containerd, Lab, dewar_ok},
    tree::Tree,
};

/// Changes in a container over the image `busybox` (tests/live/recipe/images): `$root` is its root directory.
const RICH: &str = r#"
    cd $root/prey
    rm delete/file; rm -r delete; echo 'a file now' > delete
    rm -r deep
    rm -r replace; mkdir -p replace/new; echo new > replace/new/file
    rm keep/large; mkdir keep/large
    echo more >> keep/file
    chmod 600 owned/file; chown 1002:1003 owned
    mkdir ../rich; cd ../rich
    echo content > hard1; ln hard1 hard2; mkdir sub; ln hard1 sub/hard3
    echo x > user; setfattr -n user.plain -v value user; setfattr -n user.binary -v 0x000aff3d user; setfattr -n user.empty user
    echo x > trusted; setfattr -n trusted.ours -v 1 trusted
    mkdir acl; setfacl -d -m u:1000:rx acl; setfattr -n user.dir -v 1 acl; echo x > acl/file; setfacl -m u:1000:rw acl/file
    echo x > setuid; chown 1000:1001 setuid; chmod 6755 setuid
    echo x > capable; setcap cap_net_raw+ep capable; ln capable capable-too
    mknod null c 1 3; mknod far c 4095 1048575; mknod block b 7 9; chmod 640 null far block
    mkfifo fifo; chmod 622 fifo
    ln -s /nowhere/else dangling; ln -s ../prey/keep/file up; touch -h -d '1999-12-31T23:59:59.987654321Z' up
    echo x > old; touch -d '1965-01-02T03:04:05.123456789Z' old
    echo x > future; touch -d '2300-01-02T03:04:05.5Z' future
    mkdir times; touch -d '2011-11-11T11:11:11.111111111Z' times
    echo x > 'ünïcode-日本-🐚'; echo x > $'latin1-\xe9\xff'; mkdir $'d\xfe'; echo x > $'d\xfe/in'
    echo x > $'new\nline'; echo x > ' space "quote'\'' \back'
    long=$(printf 'n%.0s' {1..250}); mkdir -p $long/$long; echo x > $long/$long/file
    truncate -s 3M sparse; printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
    mkdir -m 1777 sticky; mkdir -m 2750 setgid; chown 0:50 setgid
    : > empty
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
    : > .wh.real
"#;

/// A checkpoint's name in the layout and in the tar form.
const NAME: &str = "localhost/rich:1";
const ROOTFS: &str = "localhost/rich:1-rootfs";

/// What the tools get.
struct Scene {
    /// The directory form, packed to be carried, and what the container saw before.
    layout: (Vec<u8>, Tree),
    /// The tar form, as it was written, and what the container saw before: each dump touches the container's /tmp, where
    /// CRIU makes a directory for a moment, which is not captured.
    tar: (Vec<u8>, Tree),
    /// What `RICH` made, alone.
    rich: Tree,
    /// A bind mount, as it was on the node.
    bind: Tree,
}

/// An instance with the bundle in `/tmp/layout` and `/tmp/layout.tar`, and nothing else of the container.
fn lab_with_bundle(containerd: Containerd) -> Option<(Lab, &'static Scene)> {
    static SCENE: OnceLock<Option<Scene>> = OnceLock::new();
    let scene = SCENE.get_or_init(make_scene).as_ref()?;
    let lab = Lab::start(containerd, Cgroup::V1)?;
    fs::write(inside(&lab, "/tmp/carried.tar"), &scene.layout.0).expect("the lab's /tmp is writable");
    fs::write(inside(&lab, "/tmp/layout.tar"), &scene.tar.0).expect("the lab's /tmp is writable");
    lab.sh("mkdir /tmp/layout; tar -C /tmp/layout -xf /tmp/carried.tar");
    Some((lab, scene))
}

fn make_scene() -> Option<Scene> {
    let lab = Lab::start(Containerd::V2_1, Cgroup::V1)?;
    lab.start_containerd();
    lab.import("busybox");
    lab.sh("mkdir /srv/data");
    // Not a plain `sleep`: CRIU ends a sleep under way with EINTR, and busybox' takes that for its end.
    let bind = ["--mount", "type=bind,src=/srv/data,dst=/data,options=rbind:rw"];
    lab.run("rich", "busybox", &["sh", "-c", "while :; do sleep 1; done"], &bind);
    lab.sh(&format!("root=/proc/{}/root\n{RICH}", lab.pid("rich")));
    // runc's root file system before it mounts anything into it.
    let rootfs = "/run/containerd/io.containerd.runtime.v2.task/default/rich/rootfs";
    lab.sh(&format!("cp -a {rootfs}/rich /srv/data"));
    lab.kill_containerd();
    let view = || Tree::of(&inside(&lab, rootfs));
    let seen = view();
    assert!(seen.len() > 60, "{} entries", seen.len());
    checkpoint(&lab, "/tmp/layout");
    let seen_again = view();
    checkpoint(&lab, "/tmp/layout.tar");
    assert!(dewar_ok(&lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    dewar_ok(&lab, &["inspect", "/tmp/layout"]);
    lab.sh("tar -C /tmp/layout -cf /tmp/carried.tar .");
    let read = |path: &str| fs::read(inside(&lab, path)).expect("it was written");
    Some(Scene {
        layout: (read("/tmp/carried.tar"), seen),
        tar: (read("/tmp/layout.tar"), seen_again),
        rich: Tree::of(&inside(&lab, &format!("{rootfs}/rich"))),
        bind: Tree::of(&inside(&lab, "/srv/data")),
    })
}

fn checkpoint(lab: &Lab, output: &str) {
    let ran = lab.dewar(&["checkpoint", "rich", "-o", output, "--ref", NAME, "--task", "always", "--binds"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    // No layer can hold a file of that name; that is the one finding.
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("rich/.wh.real") && said.contains("rich/socket"), "{said}");
}

/// A path of the lab's, as this process reaches it.
fn inside(lab: &Lab, path: &str) -> PathBuf {
    Path::new(&format!("/proc/{}/root", lab.init())).join(path.trim_start_matches('/'))
}

/// What a script says, stdout and stderr, and that it fails.
#[track_caller]
fn refused(lab: &Lab, script: &str) -> String {
    let ran = lab.try_sh(script);
    let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(!ran.status.success(), "{script}\n{said}");
    said
}

/// The digest of an entry of the layout, or of a member of the checkpoint index, as a path.
fn blob(lab: &Lab, filter: &str) -> String {
    let index = "jq -r '.manifests[2].digest | sub(\":\"; \"/\")' /tmp/layout/index.json";
    lab.sh(&format!("cd /tmp/layout/blobs; echo $PWD/$(jq -r '{filter} | .digest | sub(\":\"; \"/\")' $({index}))"))
        .trim()
        .to_owned()
}

/// The member of the checkpoint index with a media type that ends so.
fn member(lab: &Lab, media_type: &str) -> String {
    blob(lab, &format!(".manifests[] | select(.mediaType | endswith(\"{media_type}\"))"))
}

#[test]
fn skopeo_inspects_and_copies_the_committed_image() {
    let Some((lab, _)) = lab_with_bundle(Containerd::V2_1) else { return };
    let manifest = lab.sh("jq -r .manifests[0].digest /tmp/layout/index.json");
    for source in ["oci:/tmp/layout", "oci-archive:/tmp/layout.tar"] {
        lab.sh(&format!("skopeo inspect {source}:{ROOTFS} | jq -e '.Layers | length == 3'"));
        lab.sh(&format!("skopeo inspect --config {source}:localhost/busybox:lab"));
    }
    let raw = lab.sh(&format!("skopeo inspect --raw oci:/tmp/layout:{ROOTFS} | sha256sum"));
    assert!(raw.starts_with(manifest.trim().trim_start_matches("sha256:")), "byte for byte: {raw} {manifest}");

    // Copied out, every blob is the one it was: nothing was converted.
    lab.sh(&format!(
        "skopeo copy -q oci:/tmp/layout:{ROOTFS} oci:/tmp/copy:x; skopeo copy -q oci:/tmp/layout:{ROOTFS} dir:/tmp/dir
         skopeo copy -q --preserve-digests oci-archive:/tmp/layout.tar:{ROOTFS} oci:/tmp/copy-of-tar:x
         cd /tmp/copy/blobs/sha256; for f in *; do cmp $f /tmp/layout/blobs/sha256/$f; done; test $(ls | wc -l) = 5
         cd /tmp/dir; for f in [0-9a-f]*[0-9a-f]; do cmp $f /tmp/layout/blobs/sha256/$f; done
         cmp manifest.json /tmp/layout/blobs/{}",
        manifest.trim().replace(':', "/")
    ));
}

/// A checkpoint index is an image index to skopeo, whose members it takes for manifests. They are what containerd makes
/// them; so the whole is not for skopeo to copy, and it says so before it has written a wrong thing.
#[test]
fn skopeo_sees_a_checkpoint_as_its_base_image() {
    let Some((lab, _)) = lab_with_bundle(Containerd::V2_1) else { return };
    let raw = lab.sh(&format!("skopeo inspect --raw oci:/tmp/layout:{NAME}"));
    assert_eq!(
        raw,
        lab.sh("cat /tmp/layout/blobs/$(jq -r '.manifests[2].digest | sub(\":\"; \"/\")' /tmp/layout/index.json)")
    );
    lab.sh(&format!("skopeo copy -q oci:/tmp/layout:{NAME} oci:/tmp/one:x"));
    assert_eq!(
        lab.sh("jq -r .manifests[0].digest /tmp/one/index.json"),
        lab.sh("jq -r .manifests[1].digest /tmp/layout/index.json"),
    );
    let said = refused(&lab, &format!("skopeo copy --all oci:/tmp/layout:{NAME} oci:/tmp/all:x"));
    assert!(said.contains("copying image 2/"), "{said}");
}

#[test]
fn umoci_lists_and_unpacks_the_committed_image() {
    let Some((lab, scene)) = lab_with_bundle(Containerd::V2_1) else { return };
    assert_eq!(lab.sh("umoci ls --layout /tmp/layout"), format!("{ROOTFS}\nlocalhost/busybox:lab\n{NAME}\n"));
    let stat = lab.sh(&format!("umoci stat --image /tmp/layout:{ROOTFS} --json"));
    assert!(stat.contains("dewar"), "the history names us: {stat}");
    lab.sh(&format!("umoci unpack --image /tmp/layout:{ROOTFS} /tmp/bundle; test -s /tmp/bundle/config.json"));
    let unpacked = Tree::of(&inside(&lab, "/tmp/bundle/rootfs"));
    // Lost for every tool: what no layer can hold. umoci's own: a time after 2262 overflows Go's nanoseconds; Go's reader,
    // as umoci uses it, takes an empty attribute for none.
    insta::assert_snapshot!(unpacked.differences(&scene.layout.1), @r"
    rich/.wh.real: missing
    rich/future: other mtime, other mtime nanoseconds
    rich/socket: missing
    rich/user: no xattr user.empty
    ");
    let before = lab.sh("ls /tmp/layout/blobs/sha256");
    lab.sh("umoci gc --layout /tmp/layout");
    assert_eq!(lab.sh("ls /tmp/layout/blobs/sha256"), before, "it knows all blobs to be wanted");
}

#[test]
fn podman_pulls_mounts_and_runs_the_committed_image() {
    let Some((lab, scene)) = lab_with_bundle(Containerd::V2_1) else { return };
    lab.sh(
        r#"printf '[storage]\ndriver = "overlay"\ngraphroot = "/var/lib/podman"\nrunroot = "/run/podman"\n' > /etc/containers/storage.conf"#,
    );
    for (source, view) in [("oci:/tmp/layout", &scene.layout.1), ("oci-archive:/tmp/layout.tar", &scene.tar.1)] {
        lab.sh(&format!("podman pull -q {source}:{ROOTFS}"));
        let at = lab.sh(&format!("podman image mount {ROOTFS}"));
        let mounted = Tree::of(&inside(&lab, at.trim()));
        // Podman's own: the root of every image is 555, and a time before 1970 or after 2262 becomes 1970.
        insta::allow_duplicates! {
            insta::assert_snapshot!(mounted.differences(view), @r"
            : mode Directory 555 was Directory 755
            rich/.wh.real: missing
            rich/future: other mtime, other mtime nanoseconds
            rich/old: other mtime, other mtime nanoseconds
            rich/socket: missing
            ");
        }
        lab.sh(&format!("podman image unmount {ROOTFS} || podman image unmount --force {ROOTFS}"));
    }
    let base = "podman pull -q oci:/tmp/layout:localhost/busybox:lab > /dev/null; stat -c %a $(podman image mount localhost/busybox:lab)";
    assert_eq!(lab.sh(base), "555\n", "the base image's too");
    let run = format!("podman run --rm --network=none --cgroups=disabled {ROOTFS}");
    assert_eq!(lab.sh(&format!("{run} cat /prey/delete")), "a file now\n");
    // `load` takes an archive of one image; a name tells `pull` which.
    let said = refused(&lab, "podman load -i /tmp/layout.tar");
    assert!(said.contains("more than one image in oci, choose an image"), "{said}");
}

/// Imports, unpacks and mounts by both snapshotters, keeps all through a garbage collection; and then the tar form.
///
/// containerd's own: a time before 1970 or after 2262 becomes 1970, `trusted.*` is never set from a layer
/// (pkg/archive/time.go, `boundTime`; tar_unix.go, `setxattr`); since 1.7 its native snapshotter sets the times of
/// directories that it copies before it fills them.
fn ctr_mounts(containerd: Containerd) -> Option<String> {
    let (lab, scene) = lab_with_bundle(containerd)?;
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    assert_eq!(lab.sh("ctr images ls -q | sort"), format!("localhost/busybox:lab\n{NAME}\n{ROOTFS}\n"));
    let check = lab.sh("ctr images check | tail -n +2");
    assert_eq!(check.lines().filter(|line| line.contains(" complete ")).count(), 3, "{check}");

    let mount = |snapshotter: &str, image: &str, at: &str| {
        lab.sh(&format!("mkdir /tmp/{at}; ctr images mount --snapshotter {snapshotter} {image} /tmp/{at}"));
        Tree::of(&inside(&lab, &format!("/tmp/{at}")))
    };
    let overlay = mount("overlayfs", ROOTFS, "overlay").differences(&scene.layout.1);
    let native = mount("native", ROOTFS, "native");
    // What the native snapshotter does to the base image alone, it does without us.
    let base = mount("native", "localhost/busybox:lab", "base-native");
    let its_own = base.differences(&mount("overlayfs", "localhost/busybox:lab", "base-overlay"));
    let mut differences: Vec<_> = overlay.lines().chain(its_own.lines()).collect();
    differences.sort_unstable();
    assert_eq!(native.differences(&scene.layout.1), differences.join("\n"));

    // Removing an image so is what makes containerd collect garbage now, and not when it pleases.
    lab.sh("ctr images tag localhost/busybox:lab localhost/none:1; ctr images rm --sync localhost/none:1");
    // The acquisition record is no image, so nothing keeps it there: it stays in the layout.
    lab.sh(
        "cd /tmp/layout/blobs/sha256
         hex=$(jq -r '.manifests[] | select(.artifactType) | .digest[7:]' ../../index.json)
         echo $hex $(jq -r '(.config, .layers[]) | .digest[7:]' $hex) | tr ' ' '\n' > /tmp/record; test $(wc -l < /tmp/record) = 5
         for f in $(ls | grep -vxFf /tmp/record); do ctr content get sha256:$f | cmp - $f; done",
    );

    lab.sh("ctr images import /tmp/layout.tar");
    assert_eq!(mount("overlayfs", ROOTFS, "of-tar").differences(&scene.tar.1), overlay);
    Some(format!("{overlay}\n-- native, of any image\n{its_own}"))
}

#[test]
fn ctr_1_6_mounts_the_committed_image() {
    let Some(differences) = ctr_mounts(Containerd::V1_6) else { return };
    insta::assert_snapshot!(differences, @r"
    rich/.wh.real: missing
    rich/future: other mtime, other mtime nanoseconds
    rich/old: other mtime, other mtime nanoseconds
    rich/socket: missing
    rich/trusted: no xattr trusted.ours
    -- native, of any image
    ");
}

#[test]
fn ctr_1_7_mounts_the_committed_image() {
    let Some(differences) = ctr_mounts(Containerd::V1_7) else { return };
    insta::assert_snapshot!(differences, @r"
    rich/.wh.real: missing
    rich/future: other mtime, other mtime nanoseconds
    rich/old: other mtime, other mtime nanoseconds
    rich/socket: missing
    rich/trusted: no xattr trusted.ours
    -- native, of any image
    bin: other mtime, other mtime nanoseconds
    etc: other mtime, other mtime nanoseconds
    usr: other mtime, other mtime nanoseconds
    var: other mtime, other mtime nanoseconds
    ");
}

#[test]
fn ctr_2_1_mounts_the_committed_image() {
    let Some(differences) = ctr_mounts(Containerd::V2_1) else { return };
    insta::assert_snapshot!(differences, @r"
    rich/.wh.real: missing
    rich/future: other mtime, other mtime nanoseconds
    rich/old: other mtime, other mtime nanoseconds
    rich/socket: missing
    rich/trusted: no xattr trusted.ours
    -- native, of any image
    bin: other mtime, other mtime nanoseconds
    etc: other mtime, other mtime nanoseconds
    usr: other mtime, other mtime nanoseconds
    var: other mtime, other mtime nanoseconds
    ");
}

#[test]
fn tars_are_listed_and_unpacked_by_bsdtar_and_gnu_tar() {
    let Some((lab, scene)) = lab_with_bundle(Containerd::V2_1) else { return };
    let of_data = format!(".manifests[] | select(.annotations[\"{}\"] == \"/data\")", names::MOUNT_DESTINATION);
    let (layer, bind) = (member(&lab, "tar+gzip"), blob(&lab, &of_data));
    let (mut differences, mut counts) = (Vec::new(), BTreeSet::new());
    for (tar, options) in [("bsdtar", "-p"), ("tar", "-p --xattrs --xattrs-include=* --numeric-owner")] {
        let listed = |file: &str| lab.sh(&format!("{tar} -tf {file} 2> /dev/null | wc -l"));
        counts.insert((listed(&layer), listed(&bind)));
        for (file, what, original, sub) in [(&layer, "layer", &scene.rich, "rich"), (&bind, "bind", &scene.bind, "")] {
            lab.sh(&format!("mkdir -p /tmp/{tar}-{what}; {tar} -C /tmp/{tar}-{what} -xf {file} {options}"));
            let unpacked = Tree::of(&inside(&lab, &format!("/tmp/{tar}-{what}/{sub}")));
            differences.push(format!("-- {tar}, {what}\n{}", unpacked.differences(original)));
        }
    }
    assert_eq!(counts.len(), 1, "both list the same names: {counts:?}");
    // libarchive keeps ACLs apart from attributes and asks for records of its own, which containerd would not read; and the
    // fraction of a time before 1970 it counts forwards, in tars of GNU tar's, too.
    insta::assert_snapshot!(differences.join("\n"), @r"
    -- bsdtar, layer
    .wh.real: missing
    acl: no xattr system.posix_acl_default
    acl/file: no xattr system.posix_acl_access
    old: other mtime, other mtime nanoseconds
    socket: missing
    -- bsdtar, bind
    rich/acl: no xattr system.posix_acl_default
    rich/acl/file: no xattr system.posix_acl_access
    rich/old: other mtime, other mtime nanoseconds
    rich/socket: missing
    -- tar, layer
    .wh.real: missing
    socket: missing
    -- tar, bind
    rich/socket: missing
    ");
}

/// It reads the archives of Podman and CRI-O, which hold a directory `checkpoint`; containerd's own checkpoints it cannot
/// read either. What it says of ours is that, and nothing worse.
#[test]
fn checkpointctl_asks_for_another_kind_of_archive() {
    let Some((lab, _)) = lab_with_bundle(Containerd::V2_1) else { return };
    let criu = member(&lab, "criu.tar");
    for file in ["/tmp/layout.tar", &criu] {
        for verb in ["show", "inspect"] {
            let said = refused(&lab, &format!("checkpointctl {verb} {file}"));
            assert!(said.contains("checkpoint directory is missing in the archive file"), "{said}");
        }
    }
    assert!(lab.sh("checkpointctl list /tmp").contains("No checkpoints found"));
}

#[test]
fn crit_decodes_every_image() {
    let Some((lab, _)) = lab_with_bundle(Containerd::V2_1) else { return };
    let criu = member(&lab, "criu.tar");
    lab.sh(&format!("mkdir /tmp/criu; tar -C /tmp/criu -xf {criu}"));
    // Pages and archives are no images, whatever their names end with.
    let decoded = lab.sh(
        "cd /tmp/criu; for f in *.img stats-dump; do case $f in pages-*|*.tar.gz.img) ;; *) crit show $f > /dev/null; echo $f ;; esac; done",
    );
    assert!(decoded.lines().count() > 15 && decoded.contains("inventory.img"), "{decoded}");
    let tree = lab.sh("crit x /tmp/criu ps");
    assert!(tree.contains(" sh") && tree.contains(" sleep"), "{tree}");
    assert!(lab.sh("crit x /tmp/criu fds").contains("cwd: /"));
    lab.sh("jq -e 'length == 3' /tmp/criu/descriptors.json");
}
