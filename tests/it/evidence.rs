//! Acquisition records: complete, checked by other people's programs, and nothing about them can be changed unnoticed.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dewar::{
    digest::Digest,
    evidence::{Record, Source},
    layout::Layout,
};
use serde_json::{Value, json};

use crate::{
    harness::{DEWAR, Ran, Sandbox, blob, blob_path, document, index, is_root, json as parsed, records, whole_index},
    verify::reseal,
};

const RECORD: &str = "application/vnd.dewar.evidence.v1+json";
const SOURCES: &str = "application/vnd.dewar.evidence.sources.v1+jsonl";
const SUMS: &str = "application/vnd.dewar.evidence.sha256sums.v1";
const SIGNATURE: &str = "application/vnd.dewar.evidence.signature.v1+ed25519";

/// A store, and `web` of it in the layout `out`, with these flags more.
fn acquired(more: &[&str]) -> Sandbox {
    let sandbox = Sandbox::store();
    let args = [&["checkpoint", "web", "-o", "out", "--ref", "localhost/web:1"], more].concat();
    sandbox.dewar(&args).exits(0);
    sandbox
}

/// The record's artifact, and its layer of that type.
fn artifact(sandbox: &Sandbox) -> Value {
    document(&sandbox.path("out"), &records(&sandbox.path("out"))[0])
}

fn part(sandbox: &Sandbox, media_type: &str) -> Value {
    let artifact = artifact(sandbox);
    let layers = artifact["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["mediaType"] == media_type).unwrap().clone()
}

fn part_path(sandbox: &Sandbox, media_type: &str) -> PathBuf {
    blob_path(&sandbox.path("out"), &part(sandbox, media_type))
}

fn record(sandbox: &Sandbox) -> Record {
    serde_json::from_slice(&blob(&sandbox.path("out"), &part(sandbox, RECORD))).unwrap()
}

fn sources(sandbox: &Sandbox) -> Vec<Source> {
    let bytes = blob(&sandbox.path("out"), &part(sandbox, SOURCES));
    bytes.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
}

/// Runs a program of somebody else's.
fn run(dir: &Path, program: &str, args: &[&str]) -> Ran {
    Ran::of(Command::new(program).args(args).current_dir(dir).output().unwrap_or_else(|e| panic!("{program}: {e}")))
}

#[test]
fn every_file_that_was_read_is_listed_with_its_inode_and_digest() {
    let sandbox = Sandbox::store();
    let (root, state) = (sandbox.root(), sandbox.state());
    let upper = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs");
    symlink("index.html", upper.join("srv/www/link")).unwrap();
    fs::hard_link(upper.join("srv/www/index.html"), upper.join("srv/www/other")).unwrap();
    // What is there, by its own inode and content; read before, so that its access times are those of before.
    let mut wanted = BTreeMap::new();
    let mut want = |of: &str, told: String, path: &Path| {
        let meta = path.symlink_metadata().unwrap();
        let sum = meta.is_file().then(|| Digest::of(&fs::read(path).unwrap()).to_hex());
        wanted.insert((of.to_owned(), told), (path.to_owned(), sum, fs::symlink_metadata(path).unwrap()));
    };
    let files = |dir: &Path| -> Vec<PathBuf> {
        let all = walkdir::WalkDir::new(dir).min_depth(1).into_iter().map(|entry| entry.unwrap().into_path());
        all.collect()
    };
    for path in files(&root.join("io.containerd.content.v1.content/blobs/sha256")) {
        want("blob", path.display().to_string(), &path);
    }
    for db in ["io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.overlayfs/metadata.db"] {
        want("database", root.join(db).display().to_string(), &root.join(db));
    }
    for name in ["config.json", "options.json"] {
        let path = state.join("io.containerd.runtime.v2.task/default/web").join(name);
        want("document", path.display().to_string(), &path);
    }
    for path in files(&upper) {
        want("rw layer", format!("/{}", path.strip_prefix(&upper).unwrap().display()), &path);
    }

    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--case", "4711"]).exits(0);
    let found: BTreeMap<_, _> =
        sources(&sandbox).into_iter().map(|s| ((s.of.clone(), s.path.path.clone()), s)).collect();
    for ((of, told), (path, sum, meta)) in &wanted {
        let source = found.get(&(of.clone(), told.clone())).unwrap_or_else(|| panic!("{of} {told} is not listed"));
        let stat = source.stat.as_ref().unwrap();
        let time = |seconds: i64, nanos: i64| format!("{seconds}.{nanos:09}");
        assert_eq!(stat.inode, meta.ino(), "{told}");
        assert_eq!(stat.mode, format!("{:06o}", meta.mode()), "{told}");
        assert_eq!(
            (&stat.mtime, &stat.ctime),
            (&time(meta.mtime(), meta.mtime_nsec()), &time(meta.ctime(), meta.ctime_nsec()))
        );
        assert!(meta.is_dir() || stat.atime == time(meta.atime(), meta.atime_nsec()), "{told}");
        // A further name of a file that is listed already has no content of its own in the layer.
        let is_second = path.ends_with("srv/www/other");
        assert_eq!(source.sha256, sum.clone().filter(|_| !is_second), "{told}");
        assert_eq!(source.transactions.is_some(), of == "database", "{told}");
    }
    // And nothing else of the store.
    let below = |path: &str| path.starts_with(root.to_str().unwrap()) || path.starts_with(state.to_str().unwrap());
    let extra: Vec<_> = found
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .filter(|(of, path)| below(path) || of == "rw layer")
        .collect();
    assert!(extra.is_empty(), "{extra:?}");
    let record = record(&sandbox);
    assert_eq!((record.sources.count, record.sources.unlisted), (found.len() as u64, 0));
}

#[test]
fn a_record_says_who_what_when_and_what_was_changed() {
    let sandbox = acquired(&["--case", "4711", "--examiner", "E. Xaminer", "--reason", "control\u{1b}[31m"]);
    let record = record(&sandbox);
    assert_eq!(record.case.examiner.as_deref(), Some("E. Xaminer"));
    assert_eq!(record.tool.sha256, Some(Digest::of(&fs::read(DEWAR).unwrap()).to_hex()));
    assert_eq!(record.run.argv.last().unwrap().text, "control\u{1b}[31m");
    assert_eq!(
        record.subject.digest.to_string(),
        index(&sandbox.path("out"))["manifests"][2]["digest"].as_str().unwrap()
    );
    assert!(record.changes.is_empty(), "{:?}", record.changes);
    let times: Vec<_> = record.steps.iter().map(|step| step.monotonic_ns).collect();
    assert!(times.len() > 4 && times.is_sorted() && times[0] > 0, "{times:?}");
    assert!(record.clock.monotonic_ns >= times[0] && record.clock.boottime_ns >= record.clock.monotonic_ns);
    // For people, and by its own bytes.
    let shown = sandbox.dewar(&["inspect", "out", "--evidence"]).exits(0).text();
    assert!(shown.contains("E. Xaminer") && shown.contains("nothing outside the output"), "{shown}");
    assert!(!shown.contains('\u{1b}') && shown.contains("control\\u{1b}[31m"), "{shown}");
    for args in [&["inspect", "out", "--evidence", "--json"][..], &["inspect", "out", "--evidence=record"]] {
        assert_eq!(sandbox.dewar(args).exits(0).stdout, blob(&sandbox.path("out"), &part(&sandbox, RECORD)));
    }
    let schema = sandbox.dewar(&["inspect", "out", "--evidence=schema"]).exits(0).json();
    // Every member of the record has its description.
    for member in parsed(&sandbox.dewar(&["inspect", "out", "--evidence=record"]).stdout).as_object().unwrap().keys() {
        let property = &schema["record"]["properties"][member];
        assert!(property["description"].is_string() || property["$ref"].is_string(), "{member}: {property}");
    }
}

#[test]
fn arguments_of_any_bytes_are_told_exactly() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let sandbox = Sandbox::store();
    let mut command = sandbox.command(&["checkpoint", "web", "-o"]);
    Ran::of(command.arg(OsStr::from_bytes(b"o\xff")).output().unwrap()).exits(0);
    fs::rename(sandbox.path("").join(OsStr::from_bytes(b"o\xff")), sandbox.path("out")).unwrap();
    let argv = record(&sandbox).run.argv;
    assert_eq!((argv.last().unwrap().text.as_str(), argv.last().unwrap().hex.as_deref()), ("o\\xff", Some("6fff")));
}

#[test]
fn sha256sum_checks_what_the_record_lists_and_finds_a_flipped_bit() {
    let sandbox = acquired(&[]);
    let out = sandbox.path("out");
    let sums = sandbox.dewar(&["inspect", "out", "--evidence=sums"]).exits(0);
    fs::write(sandbox.path("SHA256SUMS"), &sums.stdout).unwrap();
    let checked = run(&out, "sha256sum", &["--strict", "-c", "../SHA256SUMS"]).exits(0).text();
    // All blobs but those of the record itself: artifact, empty config, record, sums.
    let blobs = fs::read_dir(out.join("blobs/sha256")).unwrap().count();
    assert_eq!(checked.lines().count(), blobs - 4, "{checked}");
    let path = part_path(&sandbox, SOURCES);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] ^= 1;
    fs::write(&path, bytes).unwrap();
    run(&out, "sha256sum", &["--strict", "-c", "../SHA256SUMS"]).exits(1);
}

#[test]
fn a_checkpoint_is_the_same_with_and_without_a_record() {
    let sandbox = Sandbox::store();
    let digest = |out: &str, more: &[&str], epoch: Option<&str>| {
        let mut command =
            sandbox.command(&[&["checkpoint", "web", "-o", out, "--ref", "localhost/a:1"], more].concat());
        epoch.map(|epoch| command.env("SOURCE_DATE_EPOCH", epoch));
        let text = Ran::of(command.output().unwrap()).exits(0).text();
        (text, records(&sandbox.path(out)).len())
    };
    let (right, count) = digest("a", &[], None);
    assert_eq!(count, 1);
    assert_eq!(digest("b", &["--no-evidence"], None), (right.clone(), 0));
    assert_eq!(digest("c", &[], Some("1700000000")), (right.clone(), 0));
    assert_eq!(digest("d", &["--case", "1"], Some("1700000000")), (right, 1));
    // A name taken anew takes the record of what had it along.
    fs::write(sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs/more"), "more").unwrap();
    assert_eq!(digest("a", &[], None).1, 1);
    sandbox.dewar(&["verify", "a"]).exits(0);
    let said = sandbox.dewar(&["inspect", "b", "--evidence"]).exits(2).stderr;
    assert!(said.contains("--no-evidence"), "{said}");
}

#[test]
fn no_bit_of_a_record_or_of_its_entry_can_be_changed_unnoticed() {
    let key = Keys::new();
    let sandbox = acquired(&["--sign-key", key.private.to_str().unwrap()]);
    let out = sandbox.path("out");
    let is_sound =
        || Layout::open(&out).and_then(|l| dewar::job::verify::verify(&l)).is_ok_and(|v| v.findings.is_empty());
    assert!(is_sound());
    let entry = records(&out)[0].clone();
    for path in
        [RECORD, SOURCES, SUMS, SIGNATURE].map(|t| part_path(&sandbox, t)).iter().chain([&blob_path(&out, &entry)])
    {
        let bytes = fs::read(path).unwrap();
        for place in (0..bytes.len()).step_by(bytes.len().div_ceil(16)) {
            let mut changed = bytes.clone();
            changed[place] ^= 0x10;
            fs::write(path, changed).unwrap();
            let said = sandbox.dewar(&["verify", "out"]).exits(1).text();
            assert!(said.contains("evidence") && said.contains("is damaged"), "{said}");
        }
        fs::write(path, &bytes).unwrap();
    }
    let whole = fs::read(out.join("index.json")).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let start = text.rfind("{\"mediaType\"").unwrap();
    assert!(text[start..].contains("org.dewar.evidence.of"));
    for bit in (8 * start..8 * whole.len()).step_by(3) {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(out.join("index.json"), changed).unwrap();
        assert!(
            !is_sound(),
            "bit {bit}: {}",
            String::from_utf8_lossy(&fs::read(out.join("index.json")).unwrap()[start..])
        );
    }
    fs::write(out.join("index.json"), whole).unwrap();
    assert!(is_sound());
}

/// Keys that openssl made.
struct Keys {
    dir: tempfile::TempDir,
    private: PathBuf,
    public: PathBuf,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = (dir.path().join("key"), dir.path().join("key.pub"));
        run(dir.path(), "openssl", &["genpkey", "-algorithm", "ed25519", "-out", "key"]).exits(0);
        run(dir.path(), "openssl", &["pkey", "-in", "key", "-pubout", "-out", "key.pub"]).exits(0);
        fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
        Self { dir, private, public }
    }
}

#[test]
fn a_signature_is_checked_offline_by_us_and_by_openssl() {
    let (ours, others) = (Keys::new(), Keys::new());
    let sandbox = acquired(&["--sign-key", ours.private.to_str().unwrap()]);
    let verify = |key: &Keys| sandbox.dewar(&["verify", "out", "--trust", key.public.to_str().unwrap()]);
    assert!(verify(&ours).exits(0).text().starts_with("sound"));
    let said = verify(&others).exits(1).text();
    assert!(said.contains("localhost/web:1: its acquisition record is not signed by a trusted key"), "{said}");
    // One of several is enough.
    let both = [&others, &ours].map(|keys| ["--trust", keys.public.to_str().unwrap()]).concat();
    sandbox.dewar(&[&["verify", "out"], &both[..]].concat()).exits(0);

    // By hand, as the README has it.
    for (part, file) in [("record", "record.json"), ("signature", "record.sig"), ("key", "record.pub")] {
        let bytes = sandbox.dewar(&["inspect", "out", &format!("--evidence={part}")]).exits(0).stdout;
        fs::write(sandbox.path(file), bytes).unwrap();
    }
    let openssl = |key: &str| {
        let args =
            ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", key, "-in", "record.json", "-sigfile", "record.sig"];
        run(&sandbox.path(""), "openssl", &args)
    };
    openssl(ours.public.to_str().unwrap()).exits(0);
    openssl("record.pub").exits(0);
    assert_ne!(openssl(others.public.to_str().unwrap()).code, 0);
    let der = run(ours.dir.path(), "openssl", &["pkey", "-pubin", "-in", "key.pub", "-outform", "DER"]).exits(0).stdout;
    assert_eq!(record(&sandbox).signer.unwrap().key_id, Digest::of(&der).to_hex());

    // A record that says something else, with all digests made right again.
    let changed = String::from_utf8(fs::read(part_path(&sandbox, RECORD)).unwrap()).unwrap();
    reseal(&sandbox.path("out"), &part_path(&sandbox, RECORD), changed.replace("web", "wed").as_bytes());
    let said = verify(&ours).exits(1).text();
    assert!(said.contains("the signature is not of this record by the key that it names"), "{said}");
    assert!(said.contains("not signed by a trusted key, or the signature is bad"), "{said}");
}

#[test]
fn what_is_not_signed_or_has_no_record_is_not_trusted() {
    let keys = Keys::new();
    for (more, wanted) in
        [(&[][..], "its acquisition record is not signed"), (&["--no-evidence"], "has no acquisition record")]
    {
        let sandbox = acquired(more);
        sandbox.dewar(&["verify", "out"]).exits(0);
        let said = sandbox.dewar(&["verify", "out", "--trust", keys.public.to_str().unwrap()]).exits(1).text();
        assert!(said.contains(wanted), "{said}");
        assert_eq!(sandbox.dewar(&["inspect", "out", "--evidence=signature"]).code, 2);
    }
}

#[test]
fn keys_of_openssh_sign_too() {
    let dir = tempfile::tempdir().unwrap();
    if Command::new("ssh-keygen").arg("-V").stderr(Stdio::null()).status().is_err() {
        return eprintln!("skipped: there is no ssh-keygen");
    }
    let make = |name: &str, kind: &str, phrase: &str| {
        run(dir.path(), "ssh-keygen", &["-q", "-t", kind, "-N", phrase, "-f", name]).exits(0);
        dir.path().join(name)
    };
    let key = make("id", "ed25519", "");
    let sandbox = acquired(&["--sign-key", key.to_str().unwrap()]);
    let public = dir.path().join("id.pub");
    sandbox.dewar(&["verify", "out", "--trust", public.to_str().unwrap()]).exits(0);
    for (name, kind, phrase, wanted) in [("locked", "ed25519", "secret", "passphrase"), ("other", "rsa", "", "Ed25519")]
    {
        let key = make(name, kind, phrase);
        let said =
            sandbox.dewar(&["checkpoint", "web", "-o", "new", "--sign-key", key.to_str().unwrap()]).exits(2).stderr;
        assert!(said.contains(wanted) && !sandbox.path("new").exists(), "{said}");
    }
}

#[test]
fn a_key_that_others_can_read_signs_nothing() {
    let (keys, sandbox) = (Keys::new(), Sandbox::store());
    let sign =
        |key: &Path| sandbox.dewar(&["checkpoint", "web", "-o", "out", "--sign-key", key.to_str().unwrap()]).exits(2);
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&keys.private, fs::Permissions::from_mode(mode)).unwrap();
        let said = sign(&keys.private).stderr;
        assert!(said.contains(&format!("{mode:04o}")) && said.contains("chmod 600"), "{said}");
    }
    fs::set_permissions(&keys.public, fs::Permissions::from_mode(0o600)).unwrap();
    let said = sign(&keys.public).stderr;
    assert!(said.contains("openssl genpkey") && !sandbox.path("out").exists(), "{said}");
    let said = sandbox.dewar(&["verify", "out", "--trust", keys.private.to_str().unwrap()]);
    assert_eq!(said.code, 2);
}

#[test]
fn what_can_be_written_is_refused_before_anything_is_read() {
    let sandbox = Sandbox::store();
    for args in [&["ls"][..], &["fsck"], &["diff", "web"], &["whois", "web"], &["checkpoint", "web", "-o", "out"]] {
        let ran = sandbox.dewar(&[&["--write-blocked"], args].concat()).exits(2);
        assert!(ran.stderr.contains("mounted for writing") && ran.stderr.contains("--sysroot"), "{}", ran.stderr);
        assert!(ran.stdout.is_empty() && !sandbox.path("out").exists());
    }
}

/// Whoever is not root has no mount namespace and, for files of others, no `O_NOATIME`.
#[test]
fn anybody_who_may_read_a_store_makes_a_record() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::store();
    fs::create_dir(sandbox.path("theirs")).unwrap();
    std::os::unix::fs::chown(sandbox.path("theirs"), Some(65534), Some(65534)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", DEWAR, "--root"]).arg(sandbox.root());
    command.arg("--state").arg(sandbox.state()).args(["checkpoint", "web", "--case", "1", "-o"]);
    // Only root sees overlay's marks, which is said.
    Ran::of(command.arg(sandbox.path("theirs/out")).output().unwrap()).exits(1);
    sandbox.dewar(&["verify", "theirs/out"]).exits(0);
    let shown = sandbox.dewar(&["inspect", "theirs/out", "--evidence"]).exits(0).text();
    assert!(shown.contains("no right to a mount namespace") && shown.contains("user 65534"), "{shown}");
}

/// Adds an artifact about `about` with this record to a layout; everything but the record's content is right.
fn forge(out: &Path, record: &[u8], about: &Value, more: &[(&str, Vec<u8>)]) -> Value {
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(out.join("blobs/sha256").join(digest.to_hex()), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let mut layers = vec![put(RECORD, record)];
    layers.extend(more.iter().map(|(media_type, bytes)| put(media_type, bytes)));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": RECORD,
        "config": put("application/vnd.oci.empty.v1+json", b"{}"), "layers": layers, "subject": about,
    });
    let mut entry = put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    entry["artifactType"] = RECORD.into();
    entry["annotations"] = json!({ "org.dewar.evidence.of": about["digest"] });
    let mut whole = whole_index(out);
    whole["manifests"].as_array_mut().unwrap().push(entry.clone());
    fs::write(out.join("index.json"), whole.to_string()).unwrap();
    entry
}

#[test]
fn hostile_records_are_named_and_cost_neither_time_nor_memory() {
    let sandbox = acquired(&["--no-evidence"]);
    let out = sandbox.path("out");
    let checkpoint = index(&out)["manifests"][2].clone();
    let said = |wanted: &str| {
        // Bounded: 300 MB of address space beyond the program itself would not do for a document read without a limit.
        let mut command = Command::new("prlimit");
        command.args(["--as=1500000000", DEWAR, "verify"]).arg(&out);
        let ran = Ran::of(command.output().unwrap()).exits(1);
        assert!(ran.text().contains(wanted), "{wanted}: {}", ran.text());
        let shown = sandbox.dewar(&["inspect", "out", "--evidence"]);
        assert!(matches!(shown.code, 0 | 2) && !shown.stderr.contains("panicked"), "{}", shown.stderr);
    };
    let before = fs::read(out.join("index.json")).unwrap();
    let again = || fs::write(out.join("index.json"), &before).unwrap();
    let list = |lines: Vec<u8>| vec![(SOURCES, lines), (SUMS, b"x".to_vec())];

    forge(&out, b"[]", &checkpoint, &[]);
    said("has not exactly one layer of type");
    again();
    forge(&out, b"[[[[[[[[", &checkpoint, &list(Vec::new()));
    said("invalid type");
    again();
    let deep = [&b"{\"schema\":"[..], &b"[".repeat(1_000_000)].concat();
    forge(&out, &deep, &checkpoint, &list(Vec::new()));
    said("invalid type");
    again();
    forge(&out, &vec![b' '; 9 << 20], &checkpoint, &list(Vec::new()));
    said("larger than any index, manifest or config may be");
    again();
    // Records of records, and one about nobody.
    let first = forge(&out, b"{}", &checkpoint, &list(Vec::new()));
    let second = forge(&out, b"{}", &first, &list(Vec::new()));
    forge(&out, b"{}", &second, &list(Vec::new()));
    said("missing field");
    again();
    let nobody = json!({ "mediaType": RECORD, "digest": format!("sha256:{}", "0".repeat(64)), "size": 7 });
    forge(&out, b"{}", &nobody, &list(Vec::new()));
    said("which is not in index.json");
    again();

    // A whole record, of another layout: its list has a line without end, and it tells of blobs that are not there.
    let other = acquired(&["--case", "1"]);
    let mut lie = record(&other);
    let (lines, absent) = (vec![b'x'; 64 << 20], Digest::of(b"absent"));
    (lie.sources.list.digest, lie.sources.list.size) = (Digest::of(&lines), lines.len() as u64);
    (lie.sums.digest, lie.sums.size) = (Digest::of(b"x"), 1);
    lie.outputs[0].digest = absent;
    lie.outputs[1].path = "../../etc/passwd".into();
    forge(&out, &serde_json::to_vec(&lie).unwrap(), &checkpoint, &list(lines));
    for wanted in
        ["is no source", "which the record tells of, is missing", "../../etc/passwd", "the list of sums is not"]
    {
        said(wanted);
    }
}
