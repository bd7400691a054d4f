//! Layers and bind mounts: what is written restores to what was there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use dewar::{
    binds, rw,
    snapshotter::{Driver, RwLayer},
    tree::{Summary, Why},
};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, makedev, mknodat, utimensat};

use crate::overlay::{Flavour, Stack, Tree, can_mount, set_xattr, untar};

const FLAVOURS: [Flavour; 4] = [Flavour::Usual, Flavour::Redirect, Flavour::Metacopy, Flavour::User];

/// A capability set of version 2 (linux/capability.h): cap_net_raw, permitted and effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// An access control list (linux/posix_acl_xattr.h): owner rw-, user 1000 r--, group r--, mask r--, others ---.
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

fn set_time(path: &Path, secs: i64, nanos: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    let _ = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW);
}

fn special(path: &Path, kind: FileType, device: u64) {
    let _ = mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device);
}

/// The layer, unpacked by others in both ways, shows what the kernel showed.
fn assert_restores(stack: &Stack) -> (Vec<u8>, Summary) {
    let (layer, summary) = stack.write();
    for (way, layer, summary) in
        [("upperdir", layer.clone(), summary.clone()), ("trees", stack.write_by_trees().0, stack.write_by_trees().1)]
    {
        let is_known = |why: &Why| matches!(why, Why::Socket | Why::WhiteoutName | Why::XattrName(_));
        assert!(summary.left_out.iter().all(|left| is_known(&left.why)), "{way}: {:?}", summary.left_out);
        // A socket of the image's is no change, and the test's unpacker of the image cannot make it either.
        let expected = stack.view().without(&summary);
        let what = format!("{way}, {:?}", stack.flavour);
        let finer = |tree| if stack.flavour.moves_directories() { finer(tree, &expected) } else { tree };
        finer(stack.view_with(&layer)).assert_same_as(&expected, &format!("{what}, overlay"));
        finer(stack.plain_with(&layer)).assert_same_as(&expected, &format!("{what}, plain directory"));
    }
    assert_tells_changes(stack);
    (layer, summary)
}

/// What is listed is what two looks at the kernel's view, with and without the last layer, find changed.
fn assert_tells_changes(stack: &Stack) {
    let (mut told, mut left_out) = (BTreeMap::new(), BTreeSet::new());
    rw::list(&stack.rw(), &mut |listed| {
        let letter = match listed.meta {
            None => 'D',
            Some(_) if listed.existed => 'C',
            Some(_) => 'A',
        };
        let path = if listed.path == b"." { Vec::new() } else { listed.path.to_vec() };
        if listed.left_out.is_some() {
            left_out.insert(path);
        } else {
            assert_eq!(told.insert(path, letter), None, "{:?} is told twice", listed.path.escape_ascii());
        }
        Ok(())
    })
    .unwrap();
    let is_out = |path: &[u8]| left_out.iter().any(|out| path == out || path.starts_with(&[out, &b"/"[..]].concat()));
    let (base, now) = (stack.base_view(), stack.view());
    let paths: BTreeSet<&Vec<u8>> = base.seen.keys().chain(now.seen.keys()).collect();
    for path in paths.into_iter().filter(|path| !is_out(path)) {
        let was_told = told.get(path).copied();
        let parent = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &path[..slash]);
        let right: &[Option<char>] = match (base.seen.get(path), now.seen.get(path)) {
            (None, Some(_)) => &[Some('A')],
            // A copy of the unchanged may have been made.
            (Some(was), Some(is)) if was == is => &[None, Some('C')],
            (Some(_), Some(_)) => &[Some('C')],
            // One that takes all below it away is told alone.
            (Some(_), None) if now.seen.get(parent).is_some_and(|seen| seen.is_directory()) => &[Some('D')],
            _ => &[None],
        };
        assert!(
            right.contains(&was_told),
            "{:?}: {}: {was_told:?} in place of {right:?}",
            stack.flavour,
            path.escape_ascii()
        );
    }
}

/// The names in both layers, with what is told of each: a copy of an unchanged file or directory is all that the upperdir
/// may hold more.
fn assert_same_by_trees(stack: &Stack) {
    let (by_upper, by_trees) = (stack.write().0, stack.write_by_trees().0);
    assert_eq!(names(&by_trees), names(&by_upper), "{:?}", stack.flavour);
    assert!(by_trees == by_upper, "{:?}: the same names, but not the same bytes", stack.flavour);
}

/// When a directory of the image was renamed, a file in it may have had another name elsewhere in the image. Overlay shows
/// both as one file until one of them changes; in the layer they are two.
fn finer(mut restored: Tree, expected: &Tree) -> Tree {
    let is_apart = |names: &std::collections::BTreeSet<Vec<u8>>| {
        restored.same.iter().all(|other| other.is_subset(names) || other.is_disjoint(names))
    };
    if expected.same.iter().all(is_apart) && restored.same.iter().all(|a| expected.same.iter().any(|b| a.is_subset(b)))
    {
        restored.same.clone_from(&expected.same);
    }
    restored
}

fn names(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path_bytes().escape_ascii().to_string()).collect()
}

fn base(root: &Path) {
    for dir in ["etc", "gone", "kept/sub", "refilled/old", "tofile/x"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["etc/passwd", "etc/shadow", "gone/a", "kept/sub/f", "refilled/old/g", "todir", "link1", "tofile/x/y"] {
        fs::write(root.join(file), file).unwrap();
    }
    fs::hard_link(root.join("link1"), root.join("link2")).unwrap();
    set_xattr(&root.join("etc"), "user.origin", b"image").unwrap();
}

#[test]
fn plain_files_need_no_privileges_and_come_in_order() {
    let temp = tempfile::tempdir().unwrap();
    let [lower, upper] = ["0/fs", "1/fs"].map(|name| temp.path().join(name));
    for file in [lower.join("b/old"), upper.join("b/new"), upper.join("b.c"), upper.join("b!/x"), upper.join("a")] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "content").unwrap();
    }
    let mut layer = Vec::new();
    let summary = rw::write_layer(
        &RwLayer::Overlay { upper: upper.into(), lowers: vec![lower.into()], ids: None, driver: Driver::Kernel },
        &mut layer,
    )
    .unwrap();
    assert_eq!(names(&layer), ["a", "b/", "b/new", "b!/", "b!/x", "b.c"]);
    assert_eq!((summary.files, summary.directories, summary.bytes), (4, 2, 28));
    assert_eq!((summary.left_out.len(), summary.warnings.len()), (0, 0));
}

#[test]
fn a_lower_layer_that_is_gone_is_told_and_deletions_are_kept() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| fs::remove_file(root.join("etc/shadow")).unwrap());
    fs::remove_dir_all(&stack.lowers()[0]).unwrap();
    let (layer, summary) = stack.write();
    assert_eq!(names(&layer), ["etc/", "etc/.wh.shadow"]);
    assert_eq!(summary.warnings.len(), 1);
}

#[test]
fn what_was_deleted_replaced_and_moved_is_so_after_restoring() {
    if !can_mount() {
        return;
    }
    for flavour in FLAVOURS {
        let mut stack = Stack::new(flavour);
        stack.layer(base);
        stack.layer(|root| {
            fs::remove_file(root.join("etc/shadow")).unwrap();
            fs::remove_dir_all(root.join("gone")).unwrap();
            fs::remove_dir_all(root.join("refilled")).unwrap();
            fs::create_dir_all(root.join("refilled/new")).unwrap();
            fs::remove_file(root.join("todir")).unwrap();
            fs::create_dir(root.join("todir")).unwrap();
            fs::remove_dir_all(root.join("tofile")).unwrap();
            fs::write(root.join("tofile"), "now a file").unwrap();
            fs::write(root.join("short-lived"), "").unwrap();
            fs::remove_file(root.join("short-lived")).unwrap();
            fs::rename(root.join("etc/passwd"), root.join("etc/passwd-")).unwrap();
            fs::rename(root.join("kept/sub"), root.join("moved"))
                .or_else(|_| fs::create_dir(root.join("moved")))
                .unwrap();
            // The link is copied up alone: the other name keeps the old content.
            fs::write(root.join("link1"), "changed").unwrap();
            fs::hard_link(root.join("link1"), root.join("link3")).unwrap();
        });
        let (layer, summary) = assert_restores(&stack);
        let names = names(&layer);
        let has = |name: &str| names.iter().any(|n| n == name);
        assert!(has("etc/.wh.shadow") && has("etc/.wh.passwd") && has(".wh.gone"), "{names:?}");
        assert!(!has(".wh.short-lived") && !has("todir/.wh..wh..opq") && !has(".wh.todir"), "{names:?}");
        let at = names.iter().position(|n| n == "refilled/").unwrap();
        assert_eq!(names[at + 1..at + 3], ["refilled/new/", "refilled/.wh.old"]);
        assert_eq!(summary.opaques, 0, "what can be named is deleted by name");
        assert_same_by_trees(&stack);
        assert_eq!(summary.hard_links, 1);
        assert_eq!(summary.left_out, []);
    }
}

#[test]
fn what_was_moved_again_and_again_is_found_in_the_layers_below() {
    if !can_mount() {
        return;
    }
    for flavour in [Flavour::Redirect, Flavour::Metacopy] {
        let mut stack = Stack::new(flavour);
        stack.layer(|root| {
            fs::create_dir_all(root.join("a/b/deep")).unwrap();
            ["a/b/one", "a/b/two", "a/b/deep/three", "file"].iter().for_each(|f| fs::write(root.join(f), f).unwrap());
        });
        stack.layer(|root| {
            // New, hence opaque; and what is in it is fetched from elsewhere nonetheless.
            fs::create_dir(root.join("c")).unwrap();
            fs::rename(root.join("a/b"), root.join("c/sub")).unwrap();
            fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        });
        stack.layer(|root| {
            fs::rename(root.join("c/sub"), root.join("d")).unwrap();
            std::os::unix::fs::chown(root.join("file"), Some(5), Some(6)).unwrap();
            fs::rename(root.join("file"), root.join("c/file")).unwrap();
        });
        stack.layer(|root| {
            fs::remove_file(root.join("d/one")).unwrap();
            fs::remove_file(root.join("d/deep/three")).unwrap();
            fs::rename(root.join("c/file"), root.join("d/file")).unwrap();
            fs::set_permissions(root.join("d/file"), fs::Permissions::from_mode(0o604)).unwrap();
        });
        let (layer, _) = assert_restores(&stack);
        let names = names(&layer);
        assert!(["d/.wh.one", "d/deep/.wh.three"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
        stack.layer(|root| {
            fs::rename(root.join("d"), root.join("a/e")).unwrap();
            fs::write(root.join("a/e/new"), "").unwrap();
        });
        let (layer, summary) = assert_restores(&stack);
        assert!(self::names(&layer).iter().any(|n| n == "a/e/two"), "the image's own file moved along");
        assert_eq!(summary.files, 3);
    }
}

#[test]
fn a_whiteout_is_an_empty_file_of_nobody() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| fs::remove_file(root.join("todir")).unwrap());
    let (layer, summary) = stack.write();
    assert_eq!(names(&layer), [".wh.todir"]);
    assert_eq!((summary.whiteouts, summary.files, layer.len()), (1, 0, 3 * 512));
    assert_eq!(&layer[100..148], b"0000000\x000000000\x000000000\x0000000000000\x0000000000000\0");
    assert_eq!(layer[156], b'0');
}

#[test]
fn every_attribute_of_every_kind_comes_back() {
    if !can_mount() {
        return;
    }
    for flavour in FLAVOURS {
        let mut stack = Stack::new(flavour);
        stack.layer(base);
        stack.layer(attributes);
        let (_, summary) = assert_restores(&stack);
        let why: Vec<&Why> = summary.left_out.iter().map(|left| &left.why).collect();
        assert_eq!(why, [&Why::WhiteoutName, &Why::WhiteoutName, &Why::Socket, &Why::XattrName(b"user.a=b".to_vec())]);
    }
}

fn attributes(root: &Path) {
    let at = |name: &str| root.join(name);
    for (name, secs, nanos) in [("t1900", -2_100_000_000, 250_000_000), ("t1969", -1, 1), ("t2300", 10_413_792_000, 7)]
    {
        fs::write(at(name), name).unwrap();
        set_time(&at(name), secs, nanos);
    }
    fs::write(at("setuid"), "#!").unwrap();
    std::os::unix::fs::chown(at("setuid"), Some(u32::MAX - 1), Some(3_000_000)).unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    set_xattr(&at("setuid"), "security.capability", CAPABILITY).unwrap();
    set_xattr(&at("setuid"), "user.bin", b"\0\n\xff=").unwrap();
    fs::hard_link(at("setuid"), at("setuid-again")).unwrap();
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    set_xattr(&at("sticky"), "system.posix_acl_default", ACL).unwrap();
    fs::write(at("sticky/acl"), "").unwrap();
    set_xattr(&at("sticky/acl"), "system.posix_acl_access", ACL).unwrap();
    set_xattr(&at("sticky/acl"), "trusted.ours", b"1").unwrap();
    // The image's attribute of this directory is gone, another is there.
    rustix::fs::removexattr(at("etc"), "user.origin").unwrap();
    set_xattr(&at("etc"), "user.empty", b"").unwrap();
    special(&at("fifo"), FileType::Fifo, 0);
    special(&at("null"), FileType::CharacterDevice, makedev(1, 3));
    special(&at("far"), FileType::BlockDevice, makedev(4095, 1_048_575));
    special(&at("sock"), FileType::Socket, 0);
    fs::hard_link(at("null"), at("null-again")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(2047), at("long-target")).unwrap();
    std::os::unix::fs::symlink("../../etc/shadow", at("out")).unwrap();
    set_time(&at("out"), 5, 5);
    for name in [&b"\xff\xfe not UTF-8"[..], "ü".as_bytes(), b"new\nline", &[b'n'; 255], b"100%", b" "] {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        fs::hard_link(&path, at("sticky").join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    fs::write(at(".wh.etc"), "an old trick").unwrap();
    fs::create_dir_all(at(".wh.dir/below")).unwrap();
    fs::write(at("xattr-name"), "").unwrap();
    set_xattr(&at("xattr-name"), "user.a=b", b"1").unwrap();
}

#[test]
fn holes_are_not_read_and_come_back_as_zeros() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| {
        let file = fs::File::create(root.join("sparse")).unwrap();
        use std::os::unix::fs::FileExt;
        file.write_all_at(b"middle", 5 << 20).unwrap();
        file.set_len((9 << 20) + 1).unwrap();
        fs::File::create(root.join("all-hole")).unwrap().set_len(1 << 20).unwrap();
    });
    let (layer, summary) = assert_restores(&stack);
    assert_eq!(summary.bytes, (10 << 20) + 1);
    assert!(layer.len() > 10 << 20);
}

#[test]
fn a_path_longer_than_the_kernel_takes_is_told_and_kept_beside() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let mut dir = rustix::fs::open(root, flags, Mode::empty()).unwrap();
        for _ in 0..60 {
            let name = "d".repeat(200);
            rustix::fs::mkdirat(&dir, name.as_str(), Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, name.as_str(), flags, Mode::empty()).unwrap();
        }
        special(
            &PathBuf::from(format!("/proc/self/fd/{}/deep", std::os::fd::AsRawFd::as_raw_fd(&dir))),
            FileType::Fifo,
            0,
        );
        fs::write(root.join("last"), "").unwrap();
    });
    let (layer, summary) = stack.write();
    let [layer, beside] = [layer, stack.beside()].map(|tar| names(&tar));
    let deep = |levels: usize| vec!["d".repeat(200); levels].join("/");
    // 17 names and 16 slashes are 3416 bytes; containerd takes 4095 with its own directories before it.
    assert_eq!((layer.len(), layer[16].as_str(), layer[17].as_str()), (18, &*(deep(17) + "/"), "last"));
    assert_eq!(
        (beside.len(), &beside[0], &beside[43]),
        (44, &format!("files/{}/", deep(18)), &format!("files/{}/deep", deep(60)))
    );
    assert_eq!((summary.left_out.len(), summary.left_out[0].path.len()), (1, 18 * 201 - 1));
    assert_eq!(summary.left_out[0].why, Why::PathTooLong(3583));
}

#[test]
fn a_container_cannot_hide_files_with_the_other_kinds_marks() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| {
        set_xattr(&root.join("kept"), "user.overlay.opaque", b"y").unwrap();
        set_xattr(&root.join("etc"), "user.overlay.redirect", b"/kept").unwrap();
        fs::write(root.join("etc/passwd"), "x").unwrap();
        set_xattr(&root.join("etc/passwd"), "user.overlay.metacopy", b"").unwrap();
    });
    let (layer, _) = assert_restores(&stack);
    assert_eq!(names(&layer), ["etc/", "etc/passwd", "kept/"]);
}

#[test]
fn whiteouts_that_are_attributes_delete_too() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| fs::write(root.join("etc/new"), "").unwrap());
    let etc = stack.upper().join("etc");
    fs::write(etc.join("shadow"), "").unwrap();
    set_xattr(&etc.join("shadow"), "trusted.overlay.whiteout", b"y").unwrap();
    // Linux 6.18: the name is listed, and cannot be opened; only listings depend on the directory's own mark.
    assert_eq!(names(&stack.write().0), ["etc/", "etc/new", "etc/.wh.shadow"], "whatever the directory says");
    set_xattr(&etc, "trusted.overlay.opaque", b"x").unwrap();
    assert_eq!(names(&stack.write().0), ["etc/", "etc/new", "etc/.wh.shadow"]);
}

#[test]
fn a_changed_root_is_written_and_told() {
    if !can_mount() {
        return;
    }
    let mut stack = Stack::new(Flavour::Usual);
    stack.layer(base);
    stack.layer(|root| {
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).unwrap();
        set_xattr(root, "user.root", b"1").unwrap();
    });
    let (layer, summary) = assert_restores(&stack);
    assert_eq!(names(&layer), ["./"]);
    assert_eq!(summary.warnings.len(), 1);
}

#[test]
fn a_mount_inside_is_told_and_not_entered() {
    if !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let [dir, elsewhere] = ["tree", "elsewhere"].map(|name| temp.path().join(name));
    fs::create_dir_all(dir.join("mnt")).unwrap();
    fs::create_dir_all(elsewhere.join("secret")).unwrap();
    // A bind mount of the same filesystem: the device number does not tell.
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&elsewhere), &dir.join("mnt"), None::<&str>, flags, None::<&str>).unwrap();
    let mut layer = Vec::new();
    let summary = rw::write_layer(&RwLayer::Tree { dir: dir.clone().into() }, &mut layer);
    nix::mount::umount2(&dir.join("mnt"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(names(&layer), ["mnt/"]);
    assert_eq!(summary.unwrap().left_out[0].why, Why::Mount);
}

#[test]
fn a_plain_tree_has_no_marks() {
    if !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("tree");
    fs::create_dir(&root).unwrap();
    base(&root);
    attributes(&root);
    special(&root.join("zero"), FileType::CharacterDevice, 0);
    let mut layer = Vec::new();
    let summary = rw::write_layer(&RwLayer::Tree { dir: root.clone().into() }, &mut layer).unwrap();
    assert_eq!((summary.whiteouts, summary.opaques), (0, 0));
    let restored = temp.path().join("restored");
    fs::create_dir(&restored).unwrap();
    untar(&layer, &restored, &[]);
    Tree::of(&restored).assert_same_as(&Tree::of(&root).without(&summary), "a plain tree");
}

#[test]
fn a_bind_mount_comes_back_with_its_root_and_its_strange_names() {
    if !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("tree");
    fs::create_dir(&root).unwrap();
    base(&root);
    attributes(&root);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o2770)).unwrap();
    let source = binds::open_in_root(temp.path(), "/tree").unwrap();
    let mut tar = Vec::new();
    let summary = binds::write_bind(&source, "/data", &mut tar).unwrap();
    let restored = temp.path().join("restored");
    fs::create_dir(&restored).unwrap();
    untar(&tar, &restored, &[]);
    assert!(restored.join(".wh.dir/below").is_dir());
    Tree::of(&restored).assert_same_as(&Tree::of(&root).without(&summary), "a bind mount");
}

#[test]
fn a_bind_mount_of_one_file_has_the_name_of_its_destination() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("host-name"), "127.0.0.1").unwrap();
    let source = binds::open_in_root(temp.path(), "host-name").unwrap();
    let mut tar = Vec::new();
    binds::write_bind(&source, "/etc/hosts", &mut tar).unwrap();
    assert_eq!(names(&tar), ["hosts"]);
    assert_eq!(&tar[tar.len() - 3 * 512..][..9], b"127.0.0.1");
    assert!(binds::write_bind(&source, "/", &mut tar).is_err());
}

#[test]
fn a_destination_never_leads_out_of_its_root() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("etc/deep")).unwrap();
    fs::write(root.join("etc/hosts"), "inside").unwrap();
    fs::create_dir(temp.path().join("etc")).unwrap();
    fs::write(temp.path().join("etc/hosts"), "outside").unwrap();
    for (link, target) in [
        ("up", "../../../../etc"),
        ("abs", "/etc/deep/.."),
        ("loop", "loop"),
        ("chain", "abs/hosts"),
        ("etc/far", "/etc"),
    ] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    let read = |dest: &str| {
        let found = binds::open_in_root(&root, dest)?;
        Ok::<_, dewar::error::Error>(std::io::read_to_string(found.data().unwrap()).unwrap())
    };
    for dest in [
        "/etc/hosts",
        "up/hosts",
        "/abs/hosts",
        "/etc/far/hosts",
        "/chain",
        "../etc/hosts",
        "/etc/deep/../../../etc//./hosts",
    ] {
        assert_eq!(read(dest).unwrap(), "inside", "{dest}");
    }
    for dest in ["/loop", "/nothing", "/etc/hosts/x"] {
        assert!(read(dest).is_err(), "{dest}");
    }
    assert_eq!(binds::open_in_root(&root, "/").unwrap().meta.id, binds::open_in_root(&root, "/up/..").unwrap().meta.id);
}
