//! Where the stores of a host are, and which of several is meant. Each host is a file system of its own, for `--sysroot`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::harness::{DEWAR, META_DB, Ran, VERSIONS, bolt, copy_tree, fixture};

/// The file system of a host that is not ours.
struct Image {
    temp: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("image")).unwrap();
        Self { temp }
    }

    /// A path of it, as we see it.
    fn at(&self, path: &str) -> PathBuf {
        self.temp.path().join("image").join(path.trim_start_matches('/'))
    }

    fn with(self, path: &str, text: &str) -> Self {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
        self
    }

    /// The small store, with its root there.
    fn with_store(self, root: &str) -> Self {
        copy_tree(&fixture("store/root"), &self.at(root));
        self
    }

    /// A store that is no more than these records.
    fn with_records(self, root: &str, records: &[u8]) -> Self {
        fs::create_dir_all(self.at(root).join(META_DB).parent().unwrap()).unwrap();
        fs::write(self.at(root).join(META_DB), records).unwrap();
        self
    }

    fn link(self, target: impl AsRef<Path>, path: &str) -> Self {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        symlink(target, self.at(path)).unwrap();
        self
    }

    fn dewar(&self, args: &[&str]) -> Ran {
        let mut command = std::process::Command::new(DEWAR);
        command.arg("--sysroot").arg(self.at("/")).args(args).current_dir(self.temp.path());
        command.env_remove("CONTAINERD_NAMESPACE");
        Ran::of(command.output().unwrap())
    }

    fn plain(&self, text: &str) -> String {
        text.replace(self.temp.path().to_str().unwrap(), "TEMP")
    }

    /// The roots of the stores that `ls` has found, from the image's own `/`.
    #[track_caller]
    fn stores(&self, args: &[&str]) -> Vec<String> {
        let listed = self.dewar(&[args, &["ls", "--json"]].concat()).exits(0).json();
        let root = |row: &Value| row["store"].as_str().unwrap().replace(self.at("").to_str().unwrap(), "");
        let mut roots: Vec<_> =
            listed.as_array().unwrap().iter().map(root).map(|r| format!("/{}", r.trim_start_matches('/'))).collect();
        roots.dedup();
        roots
    }
}

/// What a release of containerd wrote as its configuration, with some values changed.
fn config(version: &str, changes: &[(&str, &str)]) -> String {
    let mut text = fs::read_to_string(fixture(&format!("config/{version}.toml"))).unwrap().replace('\'', "\"");
    for (from, to) in changes {
        assert_eq!(text.matches(from).count(), 1, "{version}: {from}");
        text = text.replace(from, to);
    }
    text
}

/// The folder of the snapshotter overlayfs, moved away from the root.
fn move_snapshots(image: Image, root: &str, to: &str) -> Image {
    fs::create_dir_all(image.at(to).parent().unwrap()).unwrap();
    fs::rename(image.at(root).join("io.containerd.snapshotter.v1.overlayfs"), image.at(to)).unwrap();
    image
}

#[test]
fn the_configuration_that_each_release_writes_is_read() {
    for version in VERSIONS {
        let section = "[plugins.\"io.containerd.snapshotter.v1.overlayfs\"]";
        let text = config(
            version,
            &[
                ("root = \"/var/lib/containerd\"", "root = \"/data/containerd\""),
                (section, &format!("{section}\nroot_path = \"/fast/overlay\"")),
            ],
        );
        // The default is there too, empty; a table may have a key but once.
        let at = text.find("/fast/overlay").unwrap();
        let text = text[..at + 15].to_owned() + &text[at + 15..].replacen("root_path = \"\"", "", 1);
        let image = Image::new().with("/etc/containerd/config.toml", &text).with_store("/data/containerd");
        let image = move_snapshots(image, "/data/containerd", "/fast/overlay");
        assert_eq!(image.stores(&[]), ["/data/containerd"], "{version}");
        assert!(image.dewar(&["diff", "web"]).exits(0).text().lines().count() > 3, "{version}");

        let elsewhere =
            Image::new().with("/opt/c.toml", &text).with_store("/data/containerd").with_store("/var/lib/containerd");
        assert_eq!(elsewhere.stores(&["--config", "/opt/c.toml"]), ["/data/containerd"]);
        // The directory that was moved away is what its configuration says, not what would be usual.
        let lost = elsewhere.dewar(&["--config", "/opt/c.toml", "diff", "web"]).exits(2).stderr;
        assert!(lost.contains("image/fast/overlay/metadata.db"), "{lost}");
    }
}

/// Version 1 has no program left that would write it; the names are those of `v1MigratePluginName`, which 1.6 still reads
/// (`tests/live/nodes.rs`).
#[test]
fn version_1_has_short_names() {
    let text = "root = \"/data/containerd\"\n[plugins.overlayfs]\n  root_path = \"/fast/overlay\"\n";
    let of = |text: &str| {
        let image = Image::new().with("/etc/containerd/config.toml", text).with_store("/data/containerd");
        move_snapshots(image, "/data/containerd", "/fast/overlay").dewar(&["diff", "web"]).code
    };
    assert_eq!(of(text), 0);
    assert_eq!(of(&format!("version = 1\n{text}")), 0);
    // Later versions do not know them.
    assert_eq!(of(&format!("version = 2\n{text}")), 2);
    // A proxy's directory is what it exports.
    let proxy = "version = 3\nroot = \"/data/containerd\"\n[proxy_plugins.overlayfs]\ntype = \"snapshot\"\nexports.root = \"/fast/overlay\"\n";
    assert_eq!(of(proxy), 0);
    assert_eq!(of(&proxy.replace("\"snapshot\"", "\"content\"")), 2);
}

#[test]
fn imports_are_followed_in_order_and_none_twice() {
    let image = Image::new()
        .with(
            "/etc/containerd/config.toml",
            "version = 2\nroot = \"/one\"\nimports = [\"conf.d/*.toml\", \"/etc/last.toml\"]\n",
        )
        .with(
            "/etc/containerd/conf.d/10.toml",
            "version = 2\nroot = \"/two\"\nimports = [\"../config.toml\", \"10.toml\"]\n",
        )
        .with("/etc/containerd/conf.d/20.toml", "version = 2\nroot = \"/three\"\n")
        .with("/etc/containerd/conf.d/30.toml.off", "version = 2\nroot = \"/off\"\n")
        .with("/etc/last.toml", "version = 2\nstate = \"/run/last\"\n");
    let image = ["/one", "/two", "/three", "/off"].iter().fold(image, |image, root| image.with_store(root));
    assert_eq!(image.stores(&[]), ["/three"]);
}

#[test]
fn a_configuration_that_is_damaged_is_named_and_the_usual_places_are_used() {
    let image = Image::new()
        .with("/etc/containerd/config.toml", "version = 2\nroot = \"/data\"\n[plugins\n")
        .with_store("/var/lib/containerd");
    let ran = image.dewar(&["ls"]).exits(1);
    insta::assert_snapshot!(image.plain(&ran.stderr), @r#"dewar: TEMP/image/etc/containerd/config.toml: line 3: unclosed table, expected `]`: what it sets is not known"#);
    assert_eq!(ran.text().lines().count(), 4);
    // An imported one costs only what it sets.
    let image = Image::new()
        .with("/etc/containerd/config.toml", "version = 2\nroot = \"/data\"\nimports = [\"a.toml\", \"gone.toml\"]\n")
        .with("/etc/containerd/a.toml", "root = 5\nstate = \"run\"\nroot = 6")
        .with_store("/data");
    let ran = image.dewar(&["ls"]).exits(1);
    insta::assert_snapshot!(image.plain(&ran.stderr), @r#"
    dewar: TEMP/image/etc/containerd/a.toml: line 3: duplicate key: what it sets is not known
    dewar: /etc/containerd/gone.toml is imported and not there
    "#);
    assert_eq!(ran.text().lines().count(), 4);
    // Neither text nor file.
    let image = Image::new().with_store("/var/lib/containerd");
    fs::create_dir_all(image.at("/etc/containerd")).unwrap();
    nix::unistd::mkfifo(&image.at("/etc/containerd/config.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(image.dewar(&["ls"]).exits(1).stderr.contains("no small regular file"));
}

/// A file below another host's root may be anybody's: none makes us hang, crash, or read without end.
#[test]
fn a_hostile_configuration_costs_no_more_than_a_warning() {
    let deep = |open: &str, close: &str| format!("x = {}{}\n", open.repeat(100_000), close.repeat(100_000));
    let imports: String = (0..3000).map(|n| format!("\"/etc/c{n}.toml\", ")).collect();
    for (text, code) in [
        (deep("[", "]"), 1),
        (deep("{a=", "}"), 1),
        (format!("{}a = 1\n", "a.".repeat(100_000)), 1),
        (format!("[{}a]\n", "a.".repeat(100_000)), 1),
        ("[[a]]\n".repeat(100_000), 0),
        (format!("imports = [{imports}]\n"), 1),
        ("imports = [\"/*/*/*/*/*/*/*/*\", \"../../../../*\", \"[*\", \"\"]\n".into(), 1),
        ("root = \"/var/lib/containerd\0\"\n".into(), 1),
        ("\u{feff}root = \"/var/lib/containerd\"\n".into(), 0),
        ("x = \"".to_owned() + &"y".repeat(5 << 20) + "\"\n", 1),
    ] {
        let image = Image::new().with_store("/var/lib/containerd").with("/etc/containerd/config.toml", &text);
        let start = std::time::Instant::now();
        let ran = image.dewar(&["ls"]);
        let head: String = text.chars().take(40).collect();
        assert!(!ran.stderr.contains("panicked") && start.elapsed().as_secs() < 20, "{head}: {}", ran.stderr);
        assert_eq!(ran.code, code, "{head}: {:.2000}", ran.stderr);
        assert_eq!(ran.text().lines().count(), 4, "{head}");
    }
}

#[test]
fn every_product_keeps_its_store_where_it_is_looked_for() {
    for (root, more) in [
        ("/var/lib/containerd", None),
        ("/var/lib/rancher/k3s/agent/containerd", None),
        (
            "/srv/k3s/agent/containerd",
            Some(("/etc/rancher/k3s/config.yaml", "token: x\ndata-dir: \"/srv/k3s\" # big disk\n")),
        ),
        ("/var/lib/rancher/rke2/agent/containerd", None),
        ("/var/lib/k0s/containerd", None),
        ("/var/snap/microk8s/common/var/lib/containerd", None),
        ("/var/lib/docker/containerd/daemon", None),
        ("/srv/docker/containerd/daemon", Some(("/etc/docker/daemon.json", r#"{"data-root":"/srv/docker"}"#))),
        ("/var/snap/docker/common/var-lib-docker/containerd/daemon", None),
        (
            "/home/ann/.local/share/containerd",
            Some(("/etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")),
        ),
        (
            "/home/ann/.local/share/docker/containerd/daemon",
            Some(("/etc/passwd", "ann:x:1000:1000::/home/ann:/bin/sh\n")),
        ),
    ] {
        let image = Image::new().with_store(root);
        let image = more.into_iter().fold(image, |image, (path, text)| image.with(path, text));
        assert_eq!(image.stores(&[]), [root]);
        assert!(image.dewar(&["diff", "web"]).exits(0).text().lines().count() > 3, "{root}");
    }
}

/// What k3s writes for its containerd: a configuration of its own, in which snapshots may be elsewhere.
#[test]
fn a_product_has_its_own_configuration() {
    let text = "version = 3\nroot = \"/var/lib/rancher/k3s/agent/containerd\"\nstate = \"/run/k3s/containerd\"\n\
        [plugins.'io.containerd.snapshotter.v1.overlayfs']\n  root_path = '/fast/k3s'\n";
    let root = "/var/lib/rancher/k3s/agent/containerd";
    let image = Image::new().with("/var/lib/rancher/k3s/agent/etc/containerd/config.toml", text).with_store(root);
    let image = move_snapshots(image, root, "/fast/k3s");
    image.dewar(&["diff", "web"]).exits(0);
    // Named by its root it is the same store, with all that is known of it.
    image.dewar(&["--root", root, "diff", "web"]).exits(0);
    // Under another name nothing is known of it.
    fs::rename(image.at(root), image.at("/copy")).unwrap();
    assert!(
        image
            .dewar(&["--root", "/copy", "diff", "web"])
            .exits(2)
            .stderr
            .contains("image/copy/io.containerd.snapshotter")
    );
}

#[test]
fn all_stores_of_a_host_are_shown_and_a_name_must_be_of_one() {
    let (usual, k3s) = ("/var/lib/containerd", "/var/lib/rancher/k3s/agent/containerd");
    let image = Image::new().with_store(usual).with_records(k3s, &bolt("1.7.meta"));
    assert_eq!(image.stores(&[]), [usual, k3s]);
    let table = image.dewar(&["ls"]).exits(0).text();
    assert!(table.starts_with("STORE"), "{table}");
    assert!(image.dewar(&["--root", k3s, "ls"]).exits(0).text().starts_with("NAMESPACE"));
    assert_eq!(image.stores(&["--root", k3s]), [k3s]);

    insta::assert_snapshot!(image.plain(&image.dewar(&["diff", "default/web"]).exits(2).stderr), @r#"dewar: container "default/web", which several stores have (--root selects one), is ambiguous: default/web in TEMP/image/var/lib/containerd, default/web in TEMP/image/var/lib/rancher/k3s/agent/containerd"#);
    image.dewar(&["--root", usual, "diff", "default/web"]).exits(0);
    // What only one has needs no more words; here there are records of it and nothing else.
    let found = image.dewar(&["diff", "imageless"]).exits(2).stderr;
    assert!(found.contains(k3s) && !found.contains("ambiguous"), "{found}");
}

#[test]
fn a_store_that_cannot_be_opened_hides_no_other() {
    let (usual, k3s) = ("/var/lib/containerd", "/var/lib/rancher/k3s/agent/containerd");
    let image = Image::new().with_store(usual).with_records(k3s, b"nothing of a database");
    let ran = image.dewar(&["ls"]).exits(1);
    assert_eq!(ran.text().lines().count(), 4);
    assert!(ran.stderr.contains(&format!("{}/{META_DB}", k3s.trim_start_matches('/'))), "{}", ran.stderr);
    assert!(ran.stderr.contains("this store is left out"), "{}", ran.stderr);
    // A containerd at work on one of them.
    let image = Image::new().with_store(usual).with_store(k3s);
    let daemon = fs::File::open(image.at(k3s).join(META_DB)).unwrap();
    daemon.lock().unwrap();
    let ran = image.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    assert!(
        ran.stdout.starts_with(b"sha256:") && ran.stderr.contains("a containerd daemon is running"),
        "{}",
        ran.stderr
    );
    assert!(image.dewar(&["--root", k3s, "ls"]).exits(2).stderr.contains("a containerd daemon is running"));
    // If there is no other, that is the end.
    drop(fs::remove_dir_all(image.at(usual)));
    assert!(image.dewar(&["ls"]).exits(2).stderr.contains("a containerd daemon is running"));
}

#[test]
fn where_no_store_is_all_places_are_named() {
    let image = Image::new();
    insta::assert_snapshot!(image.plain(&image.dewar(&["ls"]).shown()), @r#"
    exit 2
    dewar: a containerd store (looked for one in TEMP/image/var/lib/containerd, TEMP/image/var/lib/rancher/k3s/agent/containerd, TEMP/image/var/lib/rancher/rke2/agent/containerd, TEMP/image/var/lib/k0s/containerd, TEMP/image/var/snap/microk8s/common/var/lib/containerd, TEMP/image/var/lib/docker/containerd/daemon, TEMP/image/var/snap/docker/common/var-lib-docker/containerd/daemon) not found; name its directory with --root, its configuration with --config, or the mount point of another host's file system with --sysroot
    "#);
    insta::assert_snapshot!(image.plain(&image.dewar(&["--config", "/etc/none.toml", "ls"]).shown()), @r#"
    exit 2
    dewar: the configuration /etc/none.toml not found
    "#);
    let ran = Ran::of(std::process::Command::new(DEWAR).args(["--sysroot", "/nowhere", "ls"]).output().unwrap());
    insta::assert_snapshot!(ran.shown(), @r#"
    exit 2
    dewar: cannot look up /nowhere: No such file or directory (os error 2)
    "#);
}

/// Every directory and file that is read, as a link to what is ours: none is followed out, and those that end within are.
#[test]
fn no_link_of_another_hosts_file_system_leads_out_of_it() {
    let ours = Image::new().with_store("/var/lib/containerd").with("/secret/config.toml", "root = \"/ours\"\n");
    let root = "/var/lib/containerd";
    let parts = [
        "",
        "/io.containerd.metadata.v1.bolt",
        "/io.containerd.metadata.v1.bolt/meta.db",
        "/io.containerd.snapshotter.v1.overlayfs",
        "/io.containerd.snapshotter.v1.overlayfs/metadata.db",
        "/io.containerd.snapshotter.v1.overlayfs/snapshots",
        "/io.containerd.content.v1.content",
        "/io.containerd.content.v1.content/blobs/sha256",
    ];
    for part in parts {
        // Out: to a store of ours that has all it takes.
        let image = Image::new().with_store(root);
        let (path, kept) = (image.at(&format!("{root}{part}")), image.at("kept"));
        fs::rename(&path, &kept).unwrap();
        symlink(ours.at(&format!("{root}{part}")), &path).unwrap();
        let ran = image.dewar(&["checkpoint", "web", "-o", "out"]);
        assert_ne!(ran.code, 0, "{part}: {}", ran.shown());
        if part.ends_with("/snapshots") {
            assert!(ran.stderr.contains("a symbolic link stands in for a snapshot"), "{}", ran.stderr);
            continue;
        }
        // Within: as that host itself would.
        fs::remove_file(&path).unwrap();
        symlink("/kept", &path).unwrap();
        image.dewar(&["checkpoint", "web", "-o", "out2"]).exits(0);
    }
    // Of each snapshot, and of each blob.
    for below in ["io.containerd.snapshotter.v1.overlayfs/snapshots", "io.containerd.content.v1.content/blobs/sha256"] {
        let image = Image::new().with_store(root);
        for entry in fs::read_dir(image.at(root).join(below)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_owned();
            if path.is_dir() {
                fs::remove_dir_all(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
            symlink(ours.at(root).join(below).join(name), path).unwrap();
        }
        let ran = image.dewar(&["checkpoint", "web", "-o", "out"]);
        assert_ne!(ran.code, 0, "{below}: {}", ran.shown());
    }
    // The configuration, and what it names.
    let image = Image::new().with_store(root).link(ours.at("/secret/config.toml"), "/etc/containerd/config.toml");
    assert_eq!(image.stores(&[]), [root]);
    let image = Image::new().with_store("/real").link("/real", "/link");
    let image = image.with("/etc/containerd/config.toml", "root = \"/link/../link\"\n");
    assert_eq!(image.stores(&[]), ["/real"]);
    let image =
        Image::new().with_store(root).link("loop", "/loop").with("/etc/containerd/config.toml", "root = \"/loop\"\n");
    assert!(image.dewar(&["ls"]).exits(2).stderr.contains("cannot look up"));
}

/// A disk image has no `/run`: that was in memory. And what runs here is not of that host.
#[test]
fn a_disk_image_without_its_run_directory_has_no_tasks() {
    let image = Image::new().with_store("/var/lib/containerd");
    let rows = image.dewar(&["ls", "--json"]).exits(0).json();
    assert!(rows.as_array().unwrap().iter().all(|row| row["status"] == "none" && row["pid"].is_null()), "{rows:#}");
    let report = image.dewar(&["checkpoint", "web", "-o", "out", "--json"]).exits(0).json();
    assert_eq!((&report[0]["memory"], &report[0]["findings"]), (&"none".into(), &Value::Array(Vec::new())));
    copy_tree(&fixture("store/state"), &image.at("/run/containerd"));
    let rows = image.dewar(&["ls", "--json"]).exits(0).json();
    assert_eq!(rows.as_array().unwrap().iter().filter(|row| row["status"] == "stopped").count(), 1);
}
