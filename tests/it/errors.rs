//! Bad input: each error names the thing, the place and the next step, and nothing half-written stays.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::{DEWAR, META_DB, Ran, Sandbox, contents, document, entry, expected, index, is_root, is_root_for};

#[test]
fn a_container_that_is_not_there() {
    let sandbox = Sandbox::store();
    let said = |who: &str| {
        let ran = sandbox.dewar(&["checkpoint", who, "-o", "out"]).exits(2);
        assert!(!sandbox.path("out").exists() && ran.stdout.is_empty(), "{who}");
        ran.stderr
    };
    insta::assert_snapshot!(["wbe", "shop-7d9c/wed", "nothing-like-it", ""].map(said).concat(), @r#"
    dewar: container "wbe" not found; did you mean default/web?
    dewar: container "shop-7d9c/wed" not found; did you mean k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972?
    dewar: container "nothing-like-it" not found; dewar ls shows what there is
    dewar: container "" not found; dewar ls shows what there is
    "#);
    let elsewhere = sandbox.dewar(&["-n", "k8s.io", "checkpoint", "web", "-o", "out"]).exits(2);
    insta::assert_snapshot!(elsewhere.stderr, @r#"dewar: container "web" not found; dewar ls shows what there is"#);
    insta::assert_snapshot!(sandbox.dewar(&["-n", "nobody", "checkpoint", "web", "-o", "out"]).exits(2).stderr, @r#"dewar: container "web" not found; the store has no containers here; is --root right, and the namespace (-n)?"#);
}

#[test]
fn a_container_that_could_be_several() {
    let sandbox = Sandbox::meta_db(&crate::harness::bolt("2.1.meta"));
    insta::assert_snapshot!(sandbox.dewar(&["checkpoint", "web", "-o", "out"]).shown(), @r#"
    exit 2
    dewar: container "web" is ambiguous: default/web, k8s.io/web
    "#);
    // A namespace alone is a prefix of all in it.
    insta::assert_snapshot!(sandbox.dewar(&["checkpoint", "k8s.io/", "-o", "out"]).shown(), @r#"
    exit 2
    dewar: container "k8s.io/" is ambiguous: k8s.io/425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972 (prod/shop-7d9c/web), k8s.io/ea7bf4bb723041e7d63fe6c74dc46c048c617eb49a454a1cd6edbf34d05a418e (prod/shop-7d9c/side), k8s.io/web
    "#);
}

#[test]
fn a_store_that_is_none() {
    let sandbox = Sandbox::empty();
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["ls"]).shown()), @r#"
    exit 2
    dewar: a containerd store in TEMP/root (no io.containerd.metadata.v1.bolt/meta.db) not found; name its directory with --root, or the other host's mount point with --sysroot
    "#);
    for name in ["both-metas-bad", "empty", "no-database", "page-zeroed", "looped-branch", "cut-in-the-middle"] {
        let sandbox = Sandbox::meta_db(&crate::harness::bolt(&format!("damaged/{name}")));
        let ran = sandbox.dewar(&["ls"]);
        assert!(
            matches!(ran.code, 1 | 2) && ran.stderr.contains("meta.db is damaged: at byte"),
            "{name}: {}",
            ran.shown()
        );
        assert!(!ran.stderr.contains("panicked"), "{name}: {}", ran.stderr);
    }
    fs::create_dir_all(sandbox.root().join(META_DB)).unwrap();
    assert!(sandbox.dewar(&["ls"]).exits(2).stderr.contains("meta.db"));
}

#[test]
fn a_store_of_a_version_we_do_not_know() {
    let mut bytes = crate::harness::bolt("2.1.meta");
    let places: Vec<_> = bytes.windows(8).enumerate().filter(|(_, w)| *w == b"version\x08").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    // Zig-zag: 4 is 8, 5 is 10.
    places.iter().for_each(|at| bytes[at + 7] = 10);
    let sandbox = Sandbox::meta_db(&bytes);
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["ls"]).shown()), @r#"
    exit 2
    dewar: TEMP/root/io.containerd.metadata.v1.bolt/meta.db has schema version 5; known are 1 to 4 (containerd 1.0 to 2.x); it was written by a newer containerd than this dewar knows: look for a newer dewar
    "#);
}

#[test]
fn blobs_that_are_missing_or_damaged_are_named_and_the_rest_is_written() {
    let right = expected("store/expected.json");
    let image = right["images"].as_array().unwrap().iter().find(|i| i["name"] == "localhost/shop:1").unwrap();
    let target = image["digest"].as_str().unwrap();
    let manifest = |s: &Sandbox| crate::harness::json(&fs::read(s.blob(target)).unwrap());
    let digest = |s: &Sandbox, pointer: &str| manifest(s).pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let cases = [("/layers/1/digest", "layer"), ("/config/digest", "config"), ("", "manifest")];
    for (pointer, what) in cases {
        for remove in [true, false] {
            let sandbox = Sandbox::store();
            let lost = if pointer.is_empty() { target.to_owned() } else { digest(&sandbox, pointer) };
            let path = sandbox.blob(&lost);
            match remove {
                true => fs::remove_file(&path).unwrap(),
                false => {
                    let mut bytes = fs::read(&path).unwrap();
                    bytes[100] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
            }
            let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
            assert!(ran.stderr.contains(lost.trim_start_matches("sha256:")), "{what}: {}", ran.stderr);
            // Without a config, that is one more thing to say.
            assert_eq!(ran.stderr.lines().count(), if what == "layer" { 1 } else { 2 }, "{what}: {}", ran.stderr);
            assert!(ran.stdout.starts_with(b"sha256:"), "{what}: {}", ran.text());
            // The files are there.
            let layout = sandbox.path("out");
            let whole = index(&layout);
            let checkpoint = document(&layout, whole["manifests"].as_array().unwrap().last().unwrap());
            assert!(
                !crate::harness::blob(&layout, entry(&checkpoint, "application/vnd.oci.image.layer.v1.tar+gzip"))
                    .is_empty()
            );
            let names: Vec<_> =
                whole["manifests"].as_array().unwrap().iter().map(|e| e["annotations"].to_string()).collect();
            assert!(
                names.iter().any(|n| n.contains("-rootfs")),
                "{what}: its base was made again from its snapshots: {names:?}"
            );
            sandbox.dewar(&["verify", "out"]).exits(0);
            assert!(
                !sandbox.path("out/blobs").join(lost.replace(':', "/")).exists(),
                "{what}: a damaged blob was taken in"
            );
        }
    }
}

#[test]
fn a_layer_lost_from_the_snapshotter() {
    let sandbox = Sandbox::store();
    fs::remove_file(sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/metadata.db")).unwrap();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    insta::assert_snapshot!(sandbox.plain(&ran.stderr), @"dewar: default/web: cannot open TEMP/root/io.containerd.snapshotter.v1.overlayfs/metadata.db: No such file or directory (os error 2): the container's files are not in the bundle");
    sandbox.dewar(&["verify", "out"]).exits(0);
}

#[test]
fn memory_that_must_be_there_and_is_not() {
    let sandbox = Sandbox::store();
    insta::assert_snapshot!(sandbox.dewar(&["checkpoint", "web", "-o", "out", "--task", "always"]).shown(), @r#"
    exit 2
    dewar: default/web: a live task of default/web not found; without --task always its files are written all the same
    "#);
    assert!(!sandbox.path("out").exists(), "it is an error before anything is written");
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--task", "never"]).exits(0);
}

#[test]
fn arguments_that_make_no_sense() {
    let sandbox = Sandbox::store();
    let said = |args: &[&str]| {
        let ran = sandbox.dewar(&[&["checkpoint", "-o", "out"], args].concat()).exits(2);
        assert!(!sandbox.path("out").exists(), "{args:?}");
        ran.stderr
    };
    let refs = ["Has Spaces", "", "/absolute", "new\nline"].map(|bad| said(&["web", "--ref", bad]));
    insta::assert_snapshot!(refs.concat(), @r#"
    dewar: "Has Spaces" cannot name a checkpoint; use a full image name such as localhost/checkpoint/web:1
    dewar: "" cannot name a checkpoint; use a full image name such as localhost/checkpoint/web:1
    dewar: "/absolute" cannot name a checkpoint; use a full image name such as localhost/checkpoint/web:1
    dewar: "new\nline" cannot name a checkpoint; use a full image name such as localhost/checkpoint/web:1
    "#);
    insta::assert_snapshot!(said(&["web", "worker", "--ref", "localhost/x:1"]), @"dewar: --ref names one checkpoint, and several containers were asked for; leave --ref out, or checkpoint them one by one into the same layout");
    for epoch in ["yesterday", "", "1e9", "99999999999999999999", "-99999999999999"] {
        let mut command = sandbox.command(&["checkpoint", "web", "-o", "out"]);
        let ran = Ran::of(command.env("SOURCE_DATE_EPOCH", epoch).output().unwrap()).exits(2);
        assert!(ran.stderr.contains("SOURCE_DATE_EPOCH is"), "{epoch}: {}", ran.stderr);
        assert!(!sandbox.path("out").exists(), "{epoch}");
    }
    assert!(said(&[]).contains("CONTAINER"));
    assert!(said(&["--all", "web"]).contains("cannot be used with"));
}

#[test]
fn names_of_checkpoints_are_made_whole() {
    let sandbox = Sandbox::store();
    let cases = [
        ("web", "localhost/web:latest"),
        ("team/web:2", "localhost/team/web:2"),
        ("registry.example.org/web", "registry.example.org/web:latest"),
        ("localhost:5000/web:1", "localhost:5000/web:1"),
    ];
    for (given, whole) in cases {
        sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", given]).exits(0);
        entry(&index(&sandbox.path("out")), whole);
    }
}

#[test]
fn one_that_fails_does_not_keep_the_others_back() {
    let sandbox = Sandbox::store();
    // The task record of `web` is no record, so nobody knows whether it lives.
    let task = sandbox.state().join("io.containerd.runtime.v2.task/default/web");
    fs::remove_dir_all(&task).unwrap();
    fs::write(&task, "").unwrap();
    let ran = sandbox.dewar(&["checkpoint", "web", "worker", "-o", "out"]).exits(2);
    insta::assert_snapshot!(sandbox.plain(&ran.shown()), @r#"
    exit 2
    sha256:…
    dewar: default/web: TEMP/state/io.containerd.runtime.v2.task/default/web: is no directory
    "#);
    sandbox.dewar(&["verify", "out"]).exits(0);
}

#[test]
fn a_damaged_file_that_is_not_needed_is_named_and_the_rest_comes_home() {
    let sandbox = Sandbox::store();
    let options = sandbox.state().join("io.containerd.runtime.v2.task/default/web/options.json");
    fs::write(options, "{").unwrap();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(1);
    insta::assert_snapshot!(sandbox.plain(&ran.shown()), @r#"
    exit 1
    sha256:…
    dewar: default/web: TEMP/state/io.containerd.runtime.v2.task/default/web/options.json: EOF while parsing an object at line 1 column 1: other records are used instead
    "#);
    sandbox.dewar(&["verify", "out"]).exits(0);
    assert!(sandbox.dewar(&["ls"]).exits(1).shown().contains("web"));
}

#[test]
fn a_daemon_that_holds_the_database() {
    let sandbox = Sandbox::store();
    // containerd's lock: flock(LOCK_EX) on meta.db for as long as it lives.
    let daemon = File::open(sandbox.root().join(META_DB)).unwrap();
    daemon.lock().unwrap();
    let refused = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(2);
    insta::assert_snapshot!(sandbox.plain(&refused.shown()), @r#"
    exit 2
    dewar: a containerd daemon is running on TEMP/root/io.containerd.metadata.v1.bolt/meta.db: stop it first (systemctl stop containerd; containers keep running), or read a consistent copy beside it with --daemon-running
    "#);
    assert!(!sandbox.path("out").exists());
    assert_eq!(sandbox.dewar(&["ls"]).code, 2);
    sandbox.dewar(&["--daemon-running", "checkpoint", "web", "-o", "out"]).exits(0);
    sandbox.dewar(&["verify", "out"]).exits(0);
    // Readers hold no lock that keeps a daemon from starting.
    drop(daemon);
    sandbox.dewar(&["ls"]).exits(0);
    File::open(sandbox.root().join(META_DB)).unwrap().try_lock().unwrap();
}

/// A tmpfs of this many KiB; unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: PathBuf, kib: u32) -> Self {
        fs::create_dir(&at).unwrap();
        let size = format!("size={kib}k");
        mount(Some("tiny"), &at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(at)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn no_space() {
    if !is_root_for("mounting a small tmpfs") {
        return;
    }
    let sandbox = Sandbox::store();
    let web = expected("store/expected.json");
    let web = web["containers"].as_array().unwrap().iter().find(|c| c["id"] == "web").unwrap().clone();
    let noise = sandbox.root().join(web["upper"].as_str().unwrap()).join("noise");
    // Nothing makes this smaller.
    let mut bytes = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    fs::write(&noise, bytes).unwrap();
    let tiny = Tiny::mount(sandbox.path("tiny"), 256);
    sandbox.dewar(&["checkpoint", "worker", "-o", "tiny/out"]).exits(0);
    let before = contents(&sandbox.path("tiny"));
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "tiny/out"]).exits(2);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    assert_eq!(contents(&sandbox.path("tiny")), before, "the layout is as it was");
    sandbox.dewar(&["verify", "tiny/out"]).exits(0);
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "tiny/x.tar"]).exits(2);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    assert_eq!(contents(&sandbox.path("tiny")), before);
    // Full before the first byte.
    fs::write(sandbox.path("tiny/full"), vec![1; 1 << 18]).unwrap_err();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "tiny/new"]).exits(2);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    drop(tiny);
}

/// Runs `dewar` as the user nobody, or as who we are if that is not root.
pub fn as_nobody(sandbox: &Sandbox, args: &[&str]) -> Ran {
    if !is_root() {
        return sandbox.dewar(args);
    }
    // The build's folder may be closed to others.
    let program = sandbox.path("dewar");
    if !program.exists() {
        fs::copy(DEWAR, &program).unwrap();
    }
    let given = sandbox.command(args);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program).args(given.get_args());
    command.current_dir(given.get_current_dir().unwrap());
    for (name, _) in given.get_envs() {
        command.env_remove(name);
    }
    Ran::of(command.output().unwrap())
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_user_who_may_not_read_the_store() {
    let sandbox = Sandbox::store();
    chmod(&sandbox.root().join(META_DB), 0);
    insta::assert_snapshot!(sandbox.plain(&as_nobody(&sandbox, &["ls"]).shown()), @r#"
    exit 2
    dewar: TEMP/root/io.containerd.metadata.v1.bolt/meta.db may not be read by this user; containerd's stores belong to root: run as root (sudo dewar …)
    "#);
    chmod(&sandbox.root().join(META_DB), 0o644);
    chmod(&sandbox.root(), 0);
    let ran = as_nobody(&sandbox, &["ls"]).exits(2);
    chmod(&sandbox.root(), 0o755);
    assert!(ran.stderr.contains("run as root (sudo dewar"), "{}", ran.stderr);
}

#[test]
fn a_user_who_may_read_a_part_of_it() {
    let sandbox = Sandbox::store();
    fs::create_dir(sandbox.path("mine")).unwrap();
    chmod(&sandbox.path("mine"), 0o777);
    let snapshots = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs");
    chmod(&snapshots, 0o700);
    if is_root() {
        // Otherwise all of it is ours.
        let ran = as_nobody(&sandbox, &["checkpoint", "web", "-o", "mine/out"]).exits(1);
        assert!(
            ran.stderr.contains("Permission denied") && ran.stderr.contains("files are not in the bundle"),
            "{}",
            ran.stderr
        );
    }
    chmod(&snapshots, 0o755);
    let ran = as_nobody(&sandbox, &["checkpoint", "worker", "-o", "root/new"]);
    // A place where this user may not write.
    assert_eq!(ran.code, if is_root() { 2 } else { 0 }, "{}", ran.stderr);
}

#[test]
fn any_user_can_run_the_first_command_on_files_of_his_own() {
    let sandbox = Sandbox::store();
    if is_root() {
        for entry in walkdir::WalkDir::new(sandbox.path("")) {
            std::os::unix::fs::lchown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
        }
    }
    let ran = as_nobody(&sandbox, &["checkpoint", "web", "-o", "out"]).exits(0);
    assert_eq!(ran.stderr, "");
    as_nobody(&sandbox, &["verify", "out"]).exits(0);
}

#[test]
fn a_closed_pipe_is_no_error_to_speak_of() {
    let sandbox = Sandbox::store();
    let mut command = sandbox.command(&["ls"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = Ran::of(command.stdout(writer).output().unwrap());
    assert_eq!(ran.stderr, "", "exit {}", ran.code);
}
