//! `fsck --deep` on stores of real containerds: untouched they are sound, and of what is changed nothing is overlooked.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use serde_json::Value;

use crate::harness::{Ran, Sandbox, VERSIONS};

const OVERLAY: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
const NATIVE: &str = "io.containerd.snapshotter.v1.native/snapshots";
const BLOBS: &str = "io.containerd.content.v1.content/blobs/sha256";

/// The base layer's blob, and the one on top of it (`fixtures/scene.py`).
const BASE: &str = "537c4f4c89fab8ec303b5aaa4302bd1bafda45f326985a0a019a31c8adc2fdc4";
const TOP: &str = "06699e22e6369e6413b418d7133ae9834603d0e5714b1a5e895141994ac359ce";

fn deep(sandbox: &Sandbox) -> Ran {
    let ran = sandbox.dewar(&["fsck", "--deep", "--json"]);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

/// Code, place below the root, and what was seen but for the time, of all findings about layers.
fn found(sandbox: &Sandbox) -> BTreeSet<(String, String, String)> {
    let report = deep(sandbox).json();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = report[0]["findings"].as_array().unwrap().iter().filter(|f| text(f, "code").starts_with("layer"));
    let root = format!("{}/", sandbox.root().display());
    let one = |f: &Value| {
        let seen = text(f, "seen");
        let seen = seen.split("; its inode last changed at ").next().unwrap_or_default().to_owned();
        (text(f, "code"), text(f, "place").replace(&root, ""), seen)
    };
    all.map(one).collect()
}

/// Plants a change in a snapshot and asserts that exactly `right` is found: code, path in the snapshot, what was seen.
#[track_caller]
fn finds(snapshot: &str, plant: impl Fn(&Path), right: &[(&str, &str, &str)]) {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        plant(&sandbox.root().join(snapshot));
        let right = right.iter().map(|(code, path, seen)| {
            ((*code).to_owned(), format!("{snapshot}/{path}").trim_end_matches('/').to_owned(), (*seen).to_owned())
        });
        assert_eq!(found(&sandbox), right.collect(), "{version}");
        assert_eq!(deep(&sandbox).code, 1);
        assert!(!sandbox.dewar(&["fsck"]).text().contains("layer-file"), "without --deep nothing of it is seen");
    }
}

/// Does something to a file and gives it back its time.
fn quietly(path: &Path, change: impl Fn(&Path)) {
    let time: SystemTime = fs::metadata(path).unwrap().modified().unwrap();
    change(path);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// One byte in the middle.
fn edit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn an_untouched_store_has_no_finding() {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        assert_eq!(found(&sandbox), BTreeSet::new(), "{version}");
        assert_eq!(deep(&sandbox).json()[0]["looked"]["compared"], 6, "{version}");
    }
}

#[test]
fn content_that_was_changed_is_found_though_size_and_time_were_kept() {
    for snapshot in [format!("{OVERLAY}/1/fs"), format!("{NATIVE}/1"), format!("{NATIVE}/2")] {
        let Some(sandbox) = Sandbox::rich("2.1") else { return };
        let path = sandbox.root().join(&snapshot).join("etc/passwd");
        quietly(&path, edit);
        let all = found(&sandbox);
        let [(code, place, seen)] = &all.iter().collect::<Vec<_>>()[..] else { panic!("{snapshot}: {all:#?}") };
        assert_eq!((code.as_str(), place.as_str()), ("layer-file-changed", &*format!("{snapshot}/etc/passwd")));
        let digest = dewar::digest::Digest::of(&fs::read(&path).unwrap());
        let says = format!("other content of the same size and time of last modification: {digest}, was sha256:");
        assert!(seen.starts_with(&says), "{seen}");
    }
}

#[test]
fn each_thing_that_can_be_changed_is_found() {
    let mode = |dir: &Path| fs::set_permissions(dir.join("bin/web"), fs::Permissions::from_mode(0o4755)).unwrap();
    let owner = |dir: &Path| chown(dir.join("etc/motd"), Some(7), Some(8)).unwrap();
    let xattr = |dir: &Path| {
        let set = Command::new("setfattr").args(["-n", "user.mark", "-v", "x"]).arg(dir.join("etc/motd")).status();
        assert!(set.unwrap().success());
    };
    let time = |dir: &Path| {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5);
        fs::File::open(dir.join("etc/motd")).unwrap().set_modified(time).unwrap();
    };
    let missing = |dir: &Path| quietly(&dir.join("etc"), |etc| fs::remove_file(etc.join("motd")).unwrap());
    let added = |dir: &Path| quietly(&dir.join("srv/www"), |www| fs::write(www.join("shell.php"), "x").unwrap());
    let emptied = |dir: &Path| fs::File::options().write(true).open(dir.join("etc/motd")).unwrap().set_len(0).unwrap();
    let longer = |dir: &Path| {
        let mut file = fs::File::options().append(true).open(dir.join("etc/motd")).unwrap();
        file.write_all(b"more").unwrap();
        let time = SystemTime::UNIX_EPOCH;
        file.set_modified(time).unwrap();
    };
    let base = format!("{OVERLAY}/1/fs");
    finds(&base, mode, &[("layer-file-changed", "bin/web", "mode 4755, was 0755")]);
    finds(&base, owner, &[("layer-file-changed", "etc/motd", "owner 7:8, was 0:0")]);
    finds(&base, xattr, &[("layer-file-changed", "etc/motd", "attribute user.mark was not there")]);
    finds(&base, missing, &[("layer-file-missing", "etc/motd", "was a file")]);
    finds(&base, added, &[("layer-file-added", "srv/www/shell.php", "a file")]);
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        for (plant, code, says) in [
            (
                &time as &dyn Fn(&Path),
                "layer-file-changed",
                "last modified at 1970-01-01T00:00:05.000000000+00:00, was at",
            ),
            (&longer, "layer-file-changed", " bytes, were "),
            (&emptied, "layer-file-empty", "no content, had "),
        ] {
            plant(&sandbox.root().join(&base));
            let all = found(&sandbox);
            let told =
                all.iter().any(|(c, place, seen)| c == code && place.ends_with("etc/motd") && seen.contains(says));
            assert!(told && all.len() == 1, "{version}: {says}: {all:#?}");
        }
    }
    // A whole tree: what lies below and above in the chain is untouched, and nothing is said of it.
    finds(&format!("{NATIVE}/1"), mode, &[("layer-file-changed", "bin/web", "mode 4755, was 0755")]);
    finds(&format!("{NATIVE}/2"), mode, &[("layer-file-changed", "bin/web", "mode 4755, was 0755")]);
}

/// What stands in for something of a layer's may lead anywhere: nothing is followed.
#[test]
fn a_link_in_place_of_a_directory_leads_nowhere() {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        let outside: PathBuf = sandbox.path("outside");
        fs::create_dir(&outside).unwrap();
        let dir = sandbox.root().join(OVERLAY).join("1/fs");
        for name in ["motd", "passwd"] {
            fs::rename(dir.join("etc").join(name), outside.join(name)).unwrap();
        }
        fs::remove_dir(dir.join("etc")).unwrap();
        symlink(&outside, dir.join("etc")).unwrap();
        fs::write(outside.join("not-ours"), "x").unwrap();
        let all = found(&sandbox);
        let codes: Vec<_> = all
            .iter()
            .map(|(code, place, seen)| (code.as_str(), place.rsplit('/').next().unwrap(), seen.as_str()))
            .collect();
        assert_eq!(
            codes,
            [
                ("layer-file-changed", "etc", "a symlink, was a directory"),
                ("layer-file-missing", "motd", "was a file"),
                ("layer-file-missing", "passwd", "was a file"),
            ]
        );
    }
}

/// A pipe is not waited for, a file of a petabyte is not read.
#[test]
fn what_cannot_be_read_to_the_end_is_not_read() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    let dir = sandbox.root().join(OVERLAY).join("1/fs");
    fs::remove_file(dir.join("etc/motd")).unwrap();
    nix::unistd::mkfifo(&dir.join("etc/motd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::File::options().write(true).open(dir.join("bin/web")).unwrap().set_len(8 << 40).unwrap();
    let all = found(&sandbox);
    let seen: Vec<_> = all.iter().map(|(_, _, seen)| seen.split(',').next().unwrap().to_owned()).collect();
    assert!(seen.contains(&"a fifo".to_owned()) && seen.contains(&"8796093022208 bytes".to_owned()), "{all:#?}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    fs::remove_file(sandbox.root().join(BLOBS).join(TOP)).unwrap();
    let notes = found(&sandbox);
    // Of overlayfs in two namespaces, and of native.
    assert!(notes.iter().all(|(code, ..)| code == "layer-not-compared"), "{notes:#?}");
    let says = format!("its layer's blob sha256:{TOP} is missing");
    assert!(notes.iter().all(|(.., seen)| *seen == says), "{notes:#?}");
    assert_eq!(deep(&sandbox).json()[0]["looked"]["compared"], 3);

    // The layer on top is still compared where each lies by itself; a whole tree cannot be.
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    fs::write(sandbox.root().join(BLOBS).join(BASE), "no tar").unwrap();
    let codes: BTreeSet<_> = found(&sandbox).into_iter().map(|(code, ..)| code).collect();
    assert_eq!(codes, BTreeSet::from(["layer-not-compared".to_owned()]));
    assert_eq!(deep(&sandbox).json()[0]["looked"]["compared"], 2);
    quietly(&sandbox.root().join(OVERLAY).join("2/fs/srv/www/index.html"), edit);
    assert!(
        found(&sandbox).iter().any(|(code, place, _)| code == "layer-file-changed" && place.ends_with("index.html"))
    );

    // A blob that is another layer: `--quick` takes no digests, and sees it all the same.
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    let (base, top) = (sandbox.root().join(BLOBS).join(BASE), sandbox.root().join(BLOBS).join(TOP));
    let len = fs::metadata(&top).unwrap().len();
    let mut bytes = fs::read(&base).unwrap();
    bytes.resize(usize::try_from(len).unwrap().max(bytes.len()), 0);
    fs::write(&top, bytes).unwrap();
    let report = sandbox.dewar(&["fsck", "--deep", "--quick", "--json"]).json();
    assert!(report[0]["findings"].to_string().contains("layer-"), "{report:#}");
}
