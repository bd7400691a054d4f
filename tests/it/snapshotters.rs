//! Snapshotters that no containerd of the lab runs, and what can be wrong with those it does: bolt files are written by an
//! independent implementation (`bbolt-rs`), file systems by mkfs, marks by fuse-overlayfs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
};

use bbolt_rs::{Bolt, BucketRwApi, DbRwAPI, TxRwRefApi};
use dewar::{
    digest::Digest,
    host::Host,
    id::SnapshotName,
    rw,
    snapshotter::{self, Databases, Found, RwLayer},
};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    harness::is_root_for,
    overlay::{Flavour, Stack, can_mount, names_in, set_xattr},
};

/// One snapshot: its labels, from the lowest up; the last is the container's.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// A snapshotter's directory with its database; snapshot `n` has the number `n` and stands on `n - 1`.
fn store(dir: &Path, snapshots: &[Labels]) {
    fs::create_dir_all(dir.join("snapshots")).unwrap();
    let mut db = Bolt::open(dir.join("metadata.db")).unwrap();
    db.update(|mut tx| {
        let mut v1 = tx.create_bucket("v1")?;
        let mut all = v1.create_bucket("snapshots")?;
        for (below, labels) in snapshots.iter().enumerate() {
            let mut record = all.create_bucket(format!("default/{0}/s{0}", below + 1))?;
            record.put("id", [u8::try_from(below + 1).unwrap()])?;
            record.put("kind", [if below + 1 == snapshots.len() { 2 } else { 3 }])?;
            if below > 0 {
                record.put("parent", format!("default/{below}/s{below}"))?;
            }
            let mut all = record.create_bucket("labels")?;
            for (key, value) in *labels {
                all.put(key, value)?;
            }
        }
        Ok(())
    })
    .unwrap();
}

fn host(name: &str, dir: &Path) -> Host {
    Host { snapshotters: BTreeMap::from([(name.to_owned(), dir.to_owned())]), ..Host::default() }
}

fn look(name: &str, dir: &Path, snapshots: usize) -> dewar::error::Result<Found> {
    snapshotter::rw_layer(
        &host(name, dir),
        &Databases::default(),
        name,
        &SnapshotName(format!("default/{snapshots}/s{snapshots}")),
    )
}

fn why_not(name: &str, dir: &Path, snapshots: usize) -> String {
    look(name, dir, snapshots).err().expect("it cannot be read").to_string()
}

fn names(rw: &RwLayer) -> Vec<String> {
    let mut layer = Vec::new();
    rw::write_layer(rw, &mut layer).unwrap();
    names_in(&layer).iter().map(|name| name.display().to_string()).collect()
}

#[test]
fn of_remote_layers_the_digests_are_said_and_what_the_container_did_comes_home() {
    if !is_root_for("whiteouts") {
        return;
    }
    for (name, label) in [
        ("stargz", "containerd.io/snapshot/remote"),
        ("soci", "containerd.io/snapshot/remote"),
        ("nydus", "containerd.io/snapshot/nydus-blob"),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let remote: Labels = &[(label, "true"), ("containerd.io/snapshot/cri.layer-digest", "sha256:1234")];
        store(dir, &[&[], remote, &[(label, "x")], &[]]);
        (1..=4).for_each(|n| fs::create_dir_all(dir.join(format!("snapshots/{n}/fs"))).unwrap());
        let fs = |n: u32, path: &str| dir.join(format!("snapshots/{n}/fs/{path}"));
        fs::write(fs(1, "local"), "x").unwrap();
        fs::create_dir(fs(4, "opaque")).unwrap();
        set_xattr(&fs(4, "opaque"), "trusted.overlay.opaque", b"y").unwrap();
        fs::write(fs(4, "opaque/new"), "x").unwrap();
        mknodat(CWD, fs(4, "gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();

        let found = look(name, dir, 4).unwrap();
        assert_eq!(found.findings.len(), 1);
        assert!(
            found.findings[0].starts_with("2 of 3 layers below are not on this machine (snapshot 3, sha256:1234)"),
            "{}",
            found.findings[0]
        );
        assert_eq!(names(&found.rw), [".wh.gone", "opaque/", "opaque/.wh..wh..opq", "opaque/new"], "{name}");
        let mut told = 0;
        let summary = rw::list(&found.rw, &mut |_| {
            told += 1;
            Ok(())
        });
        assert_eq!((told, summary.unwrap().warnings.len()), (3, 0), "what is known to be remote is told once");
        let layers =
            snapshotter::layers(&host(name, dir), &Databases::default(), name, &SnapshotName("default/4/s4".into()));
        assert!(layers.is_err(), "no layer is made of a directory that is empty since its content is elsewhere");
    }
}

#[test]
fn a_container_s_files_on_an_overlaybd_device_are_not_taken_from_the_empty_directory_beside() {
    let temp = tempfile::tempdir().unwrap();
    store(temp.path(), &[&[], &[]]);
    for n in [1, 2] {
        fs::create_dir_all(temp.path().join(format!("snapshots/{n}/fs"))).unwrap();
        fs::create_dir_all(temp.path().join(format!("snapshots/{n}/block/mountpoint"))).unwrap();
        fs::write(temp.path().join(format!("snapshots/{n}/block/config.v1.json")), "{}").unwrap();
    }
    let found = look("overlaybd", temp.path(), 2).unwrap();
    assert!(found.findings[0].starts_with("1 of 1 layers below are not on this machine (snapshot 1)"));
    fs::write(temp.path().join("snapshots/2/block/writable_data"), "").unwrap();
    assert!(why_not("overlaybd", temp.path(), 2).contains("on an overlaybd device"));
}

#[test]
fn a_thin_volume_that_is_not_active_is_named_with_the_line_that_makes_it_so() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[], &[]]);
    assert!(why_not("devmapper", dir, 2).contains("the pool's database in"));
    let mut db = Bolt::open(dir.join("tank-pool.db")).unwrap();
    db.update(|mut tx| {
        let mut devices = tx.create_bucket("devices")?;
        // As containerd's JSON has it (`device_info.go`).
        let record = r#"{"device_id":41,"size":10737418240,"name":"tank-pool-snap-2","parent_name":"tank-pool-snap-1","state":4,"error":""}"#;
        devices.put("tank-pool-snap-2", record)
    })
    .unwrap();
    drop(db);
    let said = why_not("devmapper", dir, 2);
    assert_eq!(
        said,
        "tank-pool-snap-2 is thin volume 41 of pool tank-pool, and not active; activate the pool, then: dmsetup create \
         tank-pool-snap-2 --readonly --table '0 20971520 thin /dev/mapper/tank-pool 41'"
    );
    fs::rename(dir.join("tank-pool.db"), dir.join("$(reboot).db")).unwrap();
    assert!(why_not("devmapper", dir, 2).contains("no name of a pool"));
    fs::copy(dir.join("$(reboot).db"), dir.join("other.db")).unwrap();
    assert!(why_not("devmapper", dir, 2).contains("databases of several pools"));
}

#[test]
fn a_snapshotter_nobody_knows_is_not_read_as_one_that_looks_alike() {
    let temp = tempfile::tempdir().unwrap();
    store(temp.path(), &[&[]]);
    fs::create_dir_all(temp.path().join("snapshots/1/fs")).unwrap();
    let said = why_not("homegrown", temp.path(), 1);
    let dir = temp.path().display();
    assert!(
        said.contains(&format!("not supported, because what its directories in {dir} mean is not known")),
        "{said}"
    );
}

/// False, said aloud, where there are no loop devices; with `DEWAR_LIVE=1` that is a failure.
fn has_loop_devices() -> bool {
    let has = Path::new("/dev/loop-control").exists();
    assert!(has || std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but there are no loop devices");
    has && is_root_for("loop devices")
}

fn run(program: &str, args: &[&str]) {
    let ran = Command::new(program).args(args).output().unwrap();
    assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Changes the file system in `image` while it is mounted; `then` runs before it is unmounted.
fn with_mounted(image: &Path, change: impl FnOnce(&Path), then: impl FnOnce()) {
    let at = tempfile::tempdir().unwrap();
    let how = if fs::metadata(image).unwrap().is_file() { "loop" } else { "rw" };
    run("mount", &["-o", how, image.to_str().unwrap(), at.path().to_str().unwrap()]);
    let mounted = Mounted(at.path());
    change(at.path());
    then();
    drop(mounted);
}

/// Unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Everything of a file that reading it could change.
fn identity(path: &Path) -> (Digest, i64, i64, i64, i64) {
    let meta = fs::metadata(path).unwrap();
    let times = (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.ctime());
    let bytes = fs::read(path).unwrap();
    (Digest::of(&bytes), times.0, times.1, times.2, times.3)
}

#[test]
fn a_block_file_that_was_not_unmounted_is_said_and_never_repaired() {
    if !has_loop_devices() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[], &[]]);
    let at = |n: u32| dir.join(format!("snapshots/{n}"));
    run("truncate", &["-s", "16M", at(1).to_str().unwrap()]);
    run("mkfs.ext4", &["-q", at(1).to_str().unwrap()]);
    with_mounted(&at(1), |root| fs::write(root.join("old"), "x").unwrap(), || {});
    fs::copy(at(1), at(2)).unwrap();
    let change = |root: &Path| {
        fs::write(root.join("new"), "x").unwrap();
        // Size and time are as before.
        let time = fs::metadata(root.join("old")).unwrap().modified().unwrap();
        let old = fs::OpenOptions::new().write(true).open(root.join("old")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&old, b"y", 0).unwrap();
        old.set_modified(time).unwrap();
    };
    with_mounted(&at(2), change, || {});
    let clean = look("blockfile", dir, 2).unwrap();
    assert_eq!((names(&clean.rw), &clean.findings), (vec!["new".to_owned(), "old".to_owned()], &vec![]));
    drop(clean);

    // The machine dies while it is mounted: that is what the file is like just then.
    let crashed = dir.join("crashed");
    let sync = || rustix::fs::syncfs(fs::File::open(dir).unwrap()).unwrap();
    let change = |root: &Path| {
        fs::write(root.join("late"), "x").unwrap();
        rustix::fs::syncfs(fs::File::open(root).unwrap()).unwrap();
    };
    with_mounted(&at(2), change, || {
        sync();
        fs::copy(at(2), &crashed).unwrap();
    });
    fs::rename(&crashed, at(2)).unwrap();
    // Reading moves access times, once.
    (1..=2).for_each(|n| drop(fs::read(at(n)).unwrap()));
    let before = [identity(&at(1)), identity(&at(2))];
    let found = look("blockfile", dir, 2).unwrap();
    assert!(found.findings[0].contains("was not unmounted, and its journal is not replayed"), "{:?}", found.findings);
    assert!(names(&found.rw).contains(&"new".to_owned()));
    drop(found);
    assert_eq!([identity(&at(1)), identity(&at(2))], before);
}

#[test]
fn a_block_file_that_runs_is_read_as_it_is_now_and_not_as_it_lies_on_the_disk() {
    if !has_loop_devices() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[], &[]]);
    let at = |n: u32| dir.join(format!("snapshots/{n}"));
    run("truncate", &["-s", "16M", at(1).to_str().unwrap()]);
    run("mkfs.ext4", &["-q", at(1).to_str().unwrap()]);
    fs::copy(at(1), at(2)).unwrap();
    let mut live = Vec::new();
    let change = |root: &Path| {
        fs::write(root.join("not yet on the disk"), "x").unwrap();
        fs::create_dir(root.join("mounted over")).unwrap();
        fs::write(root.join("mounted over/below"), "x").unwrap();
        mount(None::<&str>, &root.join("mounted over"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(root.join("mounted over/above"), "x").unwrap();
        live = names(&look("blockfile", dir, 2).unwrap().rw);
        umount(&root.join("mounted over")).unwrap();
    };
    with_mounted(&at(2), change, || {});
    assert_eq!(live, ["mounted over/", "mounted over/below", "not yet on the disk"]);
}

/// A name of device mapper's that leads to a loop device; both are gone when dropped.
struct Volume(String, String);

impl Volume {
    fn make(name: &str, image: &Path) -> Self {
        let attached = Command::new("losetup").args(["-f", "--show"]).arg(image).output().unwrap();
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        fs::create_dir_all("/dev/mapper").unwrap();
        std::os::unix::fs::symlink(&device, format!("/dev/mapper/{name}")).unwrap();
        Self(name.into(), device)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        fs::remove_file(format!("/dev/mapper/{}", self.0)).unwrap();
        let _ = fs::remove_dir("/dev/mapper"); // others' names may be in it
        run("losetup", &["-d", &self.1]);
    }
}

/// Loop devices stand in for thin volumes: what matters is that a name leads to a block device.
#[test]
fn active_volumes_are_compared_and_one_that_is_mounted_is_read_where_it_is() {
    if !has_loop_devices() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[], &[]]);
    let pool = format!("dewar-test-{}", std::process::id());
    drop(Bolt::open(dir.join(format!("{pool}.db"))).unwrap());
    let image = |n: u32| dir.join(format!("image-{n}"));
    run("truncate", &["-s", "16M", image(1).to_str().unwrap()]);
    run("mkfs.ext4", &["-q", image(1).to_str().unwrap()]);
    fs::copy(image(1), image(2)).unwrap();
    with_mounted(&image(2), |root| fs::write(root.join("new"), "x").unwrap(), || {});
    let volumes = [1, 2].map(|n| Volume::make(&format!("{pool}-snap-{n}"), &image(n)));
    assert_eq!(names(&look("devmapper", dir, 2).unwrap().rw), ["new"]);
    let change = |root: &Path| {
        fs::write(root.join("newer"), "x").unwrap();
        assert_eq!(names(&look("devmapper", dir, 2).unwrap().rw), ["new", "newer"]);
    };
    with_mounted(Path::new(&volumes[1].1), change, || {});
}

#[test]
fn a_proxy_s_own_directory_is_found_below_the_sysroot_and_the_configured_one_comes_first() {
    let temp = tempfile::tempdir().unwrap();
    let own = temp.path().join("var/lib/containerd-stargz-grpc/snapshotter");
    let configured = temp.path().join("elsewhere");
    for (dir, file) in [(&own, "usual"), (&configured, "configured")] {
        store(dir, &[&[]]);
        fs::create_dir_all(dir.join("snapshots/1/fs")).unwrap();
        fs::write(dir.join("snapshots/1/fs").join(file), "").unwrap();
    }
    let root = temp.path().join("var/lib/containerd");
    let usual = Host { root, sysroot: Some(temp.path().to_owned()), ..Host::default() };
    let snapshotters = BTreeMap::from([("stargz".to_owned(), configured)]);
    let told = Host { snapshotters, ..usual.clone() };
    for (host, file) in [(usual, "usual"), (told, "configured")] {
        let found = snapshotter::rw_layer(&host, &Databases::default(), "stargz", &SnapshotName("default/1/s1".into()))
            .unwrap();
        assert_eq!(names(&found.rw), [file]);
    }
}

/// The form of containerd 2.2 and newer with a size for the container's part: a file system in a file over file systems in files.
#[test]
fn an_erofs_container_whose_part_is_a_file_system_of_its_own_is_read_over_its_layers() {
    if !has_loop_devices() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[], &[], &[]]);
    let at = |path: &str| dir.join("snapshots").join(path);
    let whiteout = |path: &Path| mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    for (n, names) in [(1, &["a", "b", "c"][..]), (2, &["d"])] {
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        names.iter().for_each(|name| fs::write(tree.join(name), "x").unwrap());
        if n == 2 {
            whiteout(&tree.join("b"));
        }
        fs::create_dir(at(&n.to_string())).unwrap();
        let layer = at(&format!("{n}/layer.erofs"));
        run("mkfs.erofs", &["--quiet", layer.to_str().unwrap(), tree.to_str().unwrap()]);
        fs::remove_dir_all(tree).unwrap();
    }
    fs::create_dir(at("3")).unwrap();
    let own = at("3/rwlayer.img");
    run("truncate", &["-s", "16M", own.to_str().unwrap()]);
    run("mkfs.ext4", &["-q", own.to_str().unwrap()]);
    let change = |root: &Path| {
        ["upper", "work"].iter().for_each(|name| fs::create_dir(root.join(name)).unwrap());
        ["a", "b", "d"].iter().for_each(|name| whiteout(&root.join("upper").join(name)));
        fs::write(root.join("upper/new"), "x").unwrap();
    };
    with_mounted(&own, change, || {});
    let found = look("erofs", dir, 3).unwrap();
    // Layer 2 has deleted `b` already.
    assert_eq!((names(&found.rw), &found.findings), (vec![".wh.a".into(), ".wh.d".into(), "new".into()], &vec![]));
    drop(found);

    // A layer that is kept elsewhere is not followed there; what the container did comes home.
    fs::rename(at("2/layer.erofs"), dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.join("elsewhere"), at("2/layer.erofs")).unwrap();
    let found = look("erofs", dir, 3).unwrap();
    assert!(found.findings[0].contains("is a link to") && found.findings.len() == 1, "{:?}", found.findings);
    assert_eq!(names(&found.rw), [".wh.a", ".wh.b", ".wh.d", "new"]);
}

#[test]
fn no_link_leads_out_of_a_snapshotter_s_directory() {
    let temp = tempfile::tempdir().unwrap();
    let outside = temp.path().join("outside");
    fs::create_dir_all(outside.join("fs")).unwrap();
    fs::write(outside.join("fs/secret"), "x").unwrap();
    for (name, link) in
        [("overlayfs", "snapshots/1"), ("native", "snapshots/1"), ("btrfs", "active/1"), ("stargz", "snapshots/1/fs")]
    {
        let dir = temp.path().join(name);
        store(&dir, &[&[]]);
        let link = dir.join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        let said = why_not(name, &dir, 1);
        assert!(said.contains("a link where the snapshotter has a directory"), "{name}: {said}");
    }
}

#[test]
fn a_file_that_holds_no_file_system_is_said_to_and_no_device_or_pipe_in_its_place_is_opened() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    store(dir, &[&[]]);
    let file = dir.join("snapshots/1");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    assert!(why_not("blockfile", dir, 1).contains("holds no file system that can be read"));
    fs::remove_file(&file).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(why_not("blockfile", dir, 1).contains("neither file nor block device"));
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    assert!(why_not("blockfile", dir, 1).contains("neither file nor block device"));
}

/// False, said aloud, where fuse-overlayfs is missing; with `DEWAR_LIVE=1` that is a failure.
fn has_fuse_overlayfs() -> bool {
    let has = Command::new("fuse-overlayfs").arg("--version").output().is_ok() && Path::new("/dev/fuse").exists();
    assert!(has || std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but there is no fuse-overlayfs");
    has && can_mount()
}

/// Three layers by fuse-overlayfs: what lies below is changed in every way that leaves a mark.
fn fuse_stack() -> Stack {
    let mut stack = Stack::new(Flavour::Fuse);
    let make = |root: &Path, names: &[&str]| {
        for name in names {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), *name).unwrap();
        }
    };
    stack.layer(|root| make(root, &["gone", "kept", "d/a", "d/b", "again/old", "turned/x", "deep/er/f", "file"]));
    stack.layer(|root| {
        make(root, &["middle", "d/c"]);
        fs::remove_file(root.join("d/b")).unwrap();
    });
    stack.layer(|root| {
        for name in ["gone", "middle", "d/a", "file"] {
            fs::remove_file(root.join(name)).unwrap();
        }
        for name in ["again", "turned", "deep/er"] {
            fs::remove_dir_all(root.join(name)).unwrap();
        }
        make(root, &["again/new", "turned", "new/deep/f", "file/is/a/directory"]);
        set_xattr(&root.join("kept"), "user.note", b"x").unwrap();
    });
    stack
}

/// What fuse-overlayfs does where it may make no device and set no attribute of its own: files of a layer's names.
fn with_marks_that_are_files(stack: &Stack) -> usize {
    let mut changed = 0;
    for dir in stack.lowers().into_iter().chain([stack.upper()]) {
        for entry in walkdir::WalkDir::new(dir) {
            let entry = entry.unwrap();
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let mark = path.with_file_name(format!(".wh.{}", entry.file_name().to_str().unwrap()));
            let dir = if meta.is_dir() { path } else { path.parent().unwrap() };
            let time = dir.metadata().unwrap().modified().unwrap();
            if !meta.is_dir() && !meta.is_file() && meta.rdev() == 0 {
                fs::remove_file(path).unwrap();
                fs::write(mark, "").unwrap();
                changed += 1;
            } else if meta.is_dir() && rustix::fs::lremovexattr(path, "trusted.overlay.opaque").is_ok() {
                fs::write(path.join(".wh..wh..opq"), "").unwrap();
                changed += 1;
            }
            fs::File::open(dir).unwrap().set_modified(time).unwrap();
        }
    }
    changed
}

#[test]
fn what_fuse_overlayfs_shows_is_what_the_layer_makes_whatever_its_marks_are() {
    if !has_fuse_overlayfs() {
        return;
    }
    let stack = fuse_stack();
    let (layer, summary) = stack.write();
    assert_eq!((summary.left_out.len(), summary.warnings.len()), (0, 0), "{summary:?}");
    let view = stack.view();
    stack.plain_with(&layer).assert_same_as(&view, "devices and attributes");
    assert!(with_marks_that_are_files(&stack) > 5, "it left devices and attributes here");
    stack.view().assert_same_as(&view, "fuse-overlayfs reads its other marks, too");
    // A mark over nothing, since the layer below has one already, deletes nothing.
    let d = stack.upper().join("d");
    let time = fs::metadata(&d).unwrap().modified().unwrap();
    fs::write(d.join(".wh.b"), "").unwrap();
    fs::File::open(&d).unwrap().set_modified(time).unwrap();
    let (other, summary) = stack.write();
    assert_eq!((summary.left_out.len(), summary.warnings.len()), (0, 0), "{summary:?}");
    let sorted = |tar: &[u8]| names_in(tar).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&other), sorted(&layer));
    stack.plain_with(&other).assert_same_as(&view, "files");
}
