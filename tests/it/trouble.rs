//! Trees that change, break or lie while they are read: what could not be had is named with its path, the rest comes home,
//! nothing from outside the tree gets in, and nothing hangs.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use dewar::{
    binds, rw,
    snapshotter::{Driver, Origin, RwLayer},
    tree::Summary,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, inotify, makedev, mknodat, renameat_with};

use crate::{
    errors::as_nobody,
    harness::{Sandbox, is_root_for},
    overlay::{can_mount, set_xattr},
};

/// The ways a tree is read.
const WAYS: [&str; 4] = ["upperdir", "tree", "trees", "bind"];

/// Reads the tree at `dir` in one of the ways.
fn write(way: &str, dir: &Path, out: &mut dyn Write) -> Summary {
    let empty = tempfile::tempdir().unwrap();
    let base = empty.path().to_owned();
    let layer = match way {
        "upperdir" => RwLayer::Overlay {
            upper: dir.to_owned().into(),
            lowers: vec![base.into()],
            ids: None,
            driver: Driver::Kernel,
        },
        "tree" => RwLayer::Tree { dir: dir.to_owned().into() },
        "trees" => RwLayer::Trees { base: base.into(), active: dir.to_owned().into(), origin: Origin::Unknown },
        _ => {
            let source = binds::open_in_root(dir.parent().unwrap(), dir.file_name().unwrap().to_str().unwrap());
            return binds::write_bind(&source.unwrap(), "/data", out).unwrap();
        }
    };
    rw::write_layer(&layer, out).unwrap()
}

/// What is in a tar: names without `./` and the last slash, typeflags, contents.
fn entries(tar: &[u8]) -> Vec<(String, u8, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name.trim_start_matches("./").trim_end_matches('/').to_owned(), entry.header().as_bytes()[156], content)
    });
    entries.filter(|(name, ..)| !name.is_empty()).collect()
}

/// What is missing and what is odd, a line each.
fn told(summary: &Summary) -> String {
    let all = summary.left_out.iter().map(|lost| format!("missing {lost}\n"));
    all.chain(summary.warnings.iter().map(|odd| format!("odd {odd}\n"))).collect()
}

/// A tar stream; when the header of the file `a` has passed, and before its content is read, something happens.
struct Meanwhile<'a> {
    tar: Vec<u8>,
    then: Option<&'a mut dyn FnMut()>,
}

impl Write for Meanwhile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.extend(bytes);
        if (bytes.starts_with(b"a\0") || bytes.starts_with(b"PaxHeaders.0/a\0"))
            && let Some(then) = self.then.take()
        {
            then();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_changes_shrinks_vanishes_or_becomes_something_else_meanwhile_is_told() {
    let mut all = String::new();
    for way in WAYS {
        let temp = tempfile::tempdir().unwrap();
        let (dir, outside) = (temp.path().join("tree"), temp.path().join("outside"));
        fs::create_dir_all(dir.join("c")).unwrap();
        fs::create_dir_all(dir.join("e")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in ["a", "b", "c/in", "d", "e/in", "f", "g"] {
            fs::write(dir.join(file), "content").unwrap();
        }
        fs::write(outside.join("in"), "SECRET").unwrap();
        let replace = |name: &str, by: &dyn Fn(&Path)| {
            let path = dir.join(name);
            fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).unwrap();
            by(&path);
        };
        let mut then = || {
            fs::File::options().write(true).open(dir.join("a")).unwrap().set_len(3).unwrap();
            replace("b", &|_| {});
            replace("c", &|_| {});
            replace("d", &|path| symlink(outside.join("in"), path).unwrap());
            replace("e", &|path| symlink(&outside, path).unwrap());
            replace("f", &|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap());
        };
        let mut out = Meanwhile { tar: Vec::new(), then: Some(&mut then) };
        let summary = write(way, &dir, &mut out);
        assert!(!out.tar.windows(6).any(|bytes| bytes == b"SECRET"), "{way}");
        let got = entries(&out.tar);
        let names: Vec<_> = got.iter().map(|(name, kind, _)| format!("{name}{}", char::from(*kind))).collect();
        assert_eq!(names, ["a0", "d2", "e2", "f6", "g0"], "{way}");
        assert_eq!(got[0].2, b"con\0\0\0\0", "{way}: as long as it was announced");
        all += &format!("-- {way}\n{}", told(&summary));
    }
    insta::assert_snapshot!(all, @r"
    -- upperdir
    missing b: unreadable: No such file or directory (os error 2)
    missing c: unreadable: No such file or directory (os error 2)
    odd a: changed while it was read; what is stored may be of two moments
    -- tree
    missing b: unreadable: No such file or directory (os error 2)
    missing c: unreadable: No such file or directory (os error 2)
    odd a: changed while it was read; what is stored may be of two moments
    -- trees
    missing b: unreadable: No such file or directory (os error 2)
    missing c: unreadable: No such file or directory (os error 2)
    odd a: changed while it was read; what is stored may be of two moments
    -- bind
    missing b: unreadable: No such file or directory (os error 2)
    missing c: unreadable: No such file or directory (os error 2)
    odd a: changed while it was read; what is stored may be of two moments
    ");
}

/// Tells a racing thread that it is over, even when an assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// While a name flips between a directory and a link that leads out, and a file and a link, the tree is read again and again.
#[test]
fn a_link_swapped_in_for_what_is_read_never_leads_out() {
    let temp = tempfile::tempdir().unwrap();
    let outside = temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for i in 0..20 {
        fs::write(outside.join(format!("SECRET-{i}")), "SECRET").unwrap();
    }
    for way in WAYS {
        let dir = temp.path().join(way);
        fs::create_dir_all(dir.join("flips/deep/deeper")).unwrap();
        fs::write(dir.join("flips/deep/deeper/own"), "own").unwrap();
        fs::write(dir.join("file"), "own").unwrap();
        let out = temp.path().join(format!("{way}-links"));
        fs::create_dir(&out).unwrap();
        symlink(&outside, out.join("flips")).unwrap();
        symlink(outside.join("SECRET-1"), out.join("file")).unwrap();

        let over = AtomicBool::new(false);
        let (mut as_link, mut as_directory) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for name in ["flips", "file"] {
                        renameat_with(CWD, dir.join(name), CWD, out.join(name), RenameFlags::EXCHANGE).unwrap();
                    }
                }
            });
            let _over = Over(&over);
            for _ in 0..2000 {
                let mut tar = Vec::new();
                let summary = write(way, &dir, &mut tar);
                let names = entries(&tar);
                // A link's target is its own content; what it leads to is not.
                assert!(
                    names.iter().all(|(name, _, content)| !name.contains("SECRET") && content != b"SECRET"),
                    "{way}"
                );
                as_link += usize::from(names.iter().any(|(name, kind, _)| name == "flips" && *kind == b'2'));
                as_directory += usize::from(names.iter().any(|(name, kind, _)| name == "flips" && *kind == b'5'));
                assert!(told(&summary).lines().all(|line| line.contains("fl") || line.contains("file")), "{way}");
            }
        });
        assert!(as_link > 50 && as_directory > 50, "{way}: the race was none: {as_link} {as_directory}");
    }
}

/// A mount that goes when the test does.
struct Mounted(PathBuf);

impl Mounted {
    fn bind(from: &Path, at: &Path) -> Self {
        mount(Some(from), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(at.to_owned())
    }

    /// An ext4 in the file `image`, made with these features; its loop device goes with the mount.
    fn image(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        done(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
    }
}

fn done(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A file of 32 MiB with an ext4 of these features, without a journal.
fn mkfs(image: &Path, features: &str) {
    fs::File::create(image).unwrap().set_len(32 << 20).unwrap();
    done(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-O", &format!("^has_journal,{features}")])
            .arg(image),
    );
}

#[test]
fn what_is_mounted_in_a_tree_is_told_and_not_entered() {
    if !can_mount() {
        return;
    }
    for way in WAYS {
        let temp = tempfile::tempdir().unwrap();
        let (dir, outside) = (temp.path().join("tree"), temp.path().join("outside"));
        fs::create_dir_all(dir.join("mnt/own")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(dir.join("file"), "own").unwrap();
        fs::write(outside.join("SECRET"), "SECRET").unwrap();
        // Of the same file system, so that no device number tells.
        let mounts =
            [Mounted::bind(&outside, &dir.join("mnt")), Mounted::bind(&outside.join("SECRET"), &dir.join("file"))];
        let mut tar = Vec::new();
        let summary = write(way, &dir, &mut tar);
        drop(mounts);
        let names: Vec<_> = entries(&tar).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["mnt"], "{way}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(told(&summary), @r"
            missing file: another filesystem is mounted there
            missing mnt: another filesystem is mounted there
            ");
        }
    }
}

/// The kernel tells who opens what. Holding something without opening it (`O_PATH`) is not told.
#[test]
fn only_files_and_directories_are_ever_opened() {
    if !is_root_for("making devices") {
        return;
    }
    for way in WAYS {
        let temp = tempfile::tempdir().unwrap();
        let (dir, outside) = (temp.path().join("tree"), temp.path().join("outside"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        for sub in ["", "sub"] {
            let at = |name: &str| dir.join(sub).join(name);
            let node = |name, kind, device| mknodat(CWD, at(name), kind, Mode::RUSR, device).unwrap();
            node("fifo", FileType::Fifo, 0);
            node("socket", FileType::Socket, 0);
            // A watchdog resets the machine some time after it was opened; a tape rewinds.
            node("watchdog", FileType::CharacterDevice, makedev(10, 130));
            node("zero", FileType::CharacterDevice, makedev(1, 5));
            node("disk", FileType::BlockDevice, makedev(7, 0));
            symlink(&outside, at("link")).unwrap();
            symlink("fifo", at("link-to-fifo")).unwrap();
        }
        fs::write(&outside, "SECRET").unwrap();
        fs::write(dir.join("file"), "own").unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let mut watched = Vec::new();
        for name in ["fifo", "socket", "watchdog", "zero", "disk"] {
            watched.extend([dir.join(name), dir.join("sub").join(name)]);
        }
        watched.extend([outside, dir.join("file")]);
        let ids: Vec<i32> =
            watched.iter().map(|path| inotify::add_watch(&watch, path, inotify::WatchFlags::OPEN).unwrap()).collect();

        let mut tar = Vec::new();
        write(way, &dir, &mut tar);
        assert_eq!(entries(&tar).len(), 14, "{way}");
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        let mut opened = std::collections::BTreeSet::new();
        while let Ok(event) = events.next() {
            opened.insert(ids.iter().position(|id| *id == event.wd()).map(|i| watched[i].clone()));
        }
        assert_eq!(Vec::from_iter(opened), [Some(dir.join("file"))], "{way}");
    }
}

#[test]
fn what_a_user_may_not_read_is_named_and_the_rest_comes_home() {
    if !is_root_for("becoming another user") {
        return;
    }
    let sandbox = Sandbox::store();
    fs::create_dir(sandbox.path("mine")).unwrap();
    let chmod =
        |path: PathBuf, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    chmod(sandbox.path("mine"), 0o777);
    let upper = crate::layout::upper(&sandbox);
    fs::create_dir_all(upper.join("closed")).unwrap();
    for name in ["closed/in", "open", "secret"] {
        fs::write(upper.join(name), name).unwrap();
    }
    chmod(upper.join("secret"), 0);
    chmod(upper.join("closed"), 0o700);
    let ran = as_nobody(&sandbox, &["checkpoint", "web", "-o", "mine/out"]).exits(1);
    for line in ["secret: unreadable: Permission denied", "closed: unreadable: all below it: Permission denied"] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("open"), "{}", ran.stderr);
    as_nobody(&sandbox, &["verify", "mine/out"]).exits(0);
}

/// A block far behind the end of the disk.
const LOST_BLOCK: &str = "8000";

/// Real EIO: inodes point to blocks at a place that the disk below does not have any more.
#[test]
fn a_disk_that_cannot_be_read_costs_what_is_there_and_no_more() {
    if !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (image, at) = (temp.path().join("image"), temp.path().join("tree"));
    // Blocks stand in the inode itself, and no checksum guards them.
    mkfs(&image, "^extent,^metadata_csum,^64bit");
    let made = Mounted::image(&image, &at);
    fs::remove_dir(at.join("lost+found")).unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/in"), "lost").unwrap();
    for name in ["attrs", "good"] {
        fs::write(at.join(name), name).unwrap();
    }
    set_xattr(&at.join("attrs"), "user.large", &[1; 2000]).unwrap();
    fs::write(at.join("bad"), [b'b'; 10 * 4096]).unwrap();
    symlink("x/".repeat(100), at.join("link")).unwrap();
    drop(made);
    for (what, field) in [("bad", "block[3]"), ("dir", "block[0]"), ("link", "block[0]"), ("attrs", "file_acl")] {
        let request = format!("set_inode_field /{what} {field} {LOST_BLOCK}");
        done(Command::new("debugfs").args(["-w", "-R", &request]).arg(&image));
    }
    let mut all = String::new();
    for way in WAYS {
        fs::File::options().write(true).open(&image).unwrap().set_len(32 << 20).unwrap();
        let _mounted = Mounted::image(&image, &at);
        fs::File::options().write(true).open(&image).unwrap().set_len(16 << 20).unwrap();
        let mut tar = Vec::new();
        let summary = write(way, &at, &mut tar);
        let got = entries(&tar);
        let content = |name: &str| &got.iter().find(|(n, ..)| n == name).unwrap_or_else(|| panic!("{way}: {name}")).2;
        assert_eq!(content("good"), b"good");
        let mut bad = [b'b'; 10 * 4096];
        bad[3 * 4096..4 * 4096].fill(0);
        assert!(content("bad") == &bad, "{way}: the nine good blocks are there");
        all += &format!("-- {way}\n{}", told(&summary));
    }
    insta::assert_snapshot!(all, @r"
    -- upperdir
    missing attrs: unreadable: Input/output error (os error 5)
    missing dir: unreadable: all below it: Input/output error (os error 5)
    missing link: unreadable: Input/output error (os error 5)
    odd bad: unreadable at byte 12288: Input/output error (os error 5); 4096 bytes are stored as zeros
    -- tree
    missing dir: unreadable: all below it: Input/output error (os error 5)
    missing link: unreadable: Input/output error (os error 5)
    odd attrs: its extended attributes could not be read: Input/output error (os error 5)
    odd bad: unreadable at byte 12288: Input/output error (os error 5); 4096 bytes are stored as zeros
    -- trees
    missing dir: unreadable: all below it: Input/output error (os error 5)
    missing link: unreadable: Input/output error (os error 5)
    odd attrs: its extended attributes could not be read: Input/output error (os error 5)
    odd bad: unreadable at byte 12288: Input/output error (os error 5); 4096 bytes are stored as zeros
    -- bind
    missing dir: unreadable: all below it: Input/output error (os error 5)
    missing link: unreadable: Input/output error (os error 5)
    odd attrs: its extended attributes could not be read: Input/output error (os error 5)
    odd bad: unreadable at byte 12288: Input/output error (os error 5); 4096 bytes are stored as zeros
    ");
}

/// ext4 can keep an attribute of 64 KiB in an inode of its own.
#[test]
fn an_attribute_of_the_largest_size_is_kept() {
    if !can_mount() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let (image, at) = (temp.path().join("image"), temp.path().join("tree"));
    mkfs(&image, "ea_inode");
    let _mounted = Mounted::image(&image, &at);
    fs::remove_dir(at.join("lost+found")).unwrap();
    fs::write(at.join("file"), "").unwrap();
    let value: Vec<u8> = (0..1 << 16).map(|i| (i * 7) as u8).collect();
    set_xattr(&at.join("file"), "user.large", &value).unwrap();
    for way in WAYS {
        let mut tar = Vec::new();
        let summary = write(way, &at, &mut tar);
        assert_eq!(told(&summary), "", "{way}");
        assert!(tar.windows(value.len()).any(|part| part == value), "{way}");
    }
}

/// In memory, where a file may have as many attributes as it likes: `large` has 60 MB of them; `unlistable` has more names
/// than the kernel lists. In a process of its own, whose memory is only this.
#[test]
fn thousands_of_attributes_take_no_more_memory_than_a_header() {
    if !is_root_for("setting trusted attributes") || !Path::new("/dev/shm").is_dir() {
        return;
    }
    if std::env::var_os("DEWAR_TEST_ATTRIBUTES").is_none() {
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "trouble::thousands_of_attributes_take_no_more_memory_than_a_header", "--nocapture"])
            .env("DEWAR_TEST_ATTRIBUTES", "1")
            .output()
            .unwrap();
        let said = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(ran.status.success() && said.contains("peak"), "{said}");
        return;
    }
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = temp.path().join("tree");
    fs::create_dir(&dir).unwrap();
    for (file, count, len) in [("large", 1000, 60_000), ("many", 2000, 100), ("unlistable", 8000, 0)] {
        fs::write(dir.join(file), file).unwrap();
        (0..count).for_each(|i| set_xattr(&dir.join(file), &format!("trusted.{i}"), &vec![1; len]).unwrap());
    }
    for way in WAYS {
        let summary = write(way, &dir, &mut io::sink());
        let of = |path: &str| summary.left_out.iter().filter(|lost| lost.path == path.as_bytes()).count();
        assert!((980..1000).contains(&of("large")) && of("many") == 0, "{way}: {} {}", of("large"), of("many"));
        assert!(told(&summary).contains("odd unlistable: its extended attributes could not be read: "), "{way}");
        assert!(summary.written < 4 << 20, "{way}: {}", summary.written);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    println!("peak {peak}");
    assert!(peak.parse::<u64>().unwrap() < 32 << 10, "{peak} KiB");
}
