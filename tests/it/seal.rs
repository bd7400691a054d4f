//! What is sealed says nothing without a key, and gives the same bytes back with one.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use age::{secrecy::ExposeSecret, x25519};
use dewar::{
    crypt::{self, Recipients},
    digest::Digest,
};
use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, WORKER, blob_path, contents, copy_tree, document, is_root_for, whole_index};

const SEALED: &str = "application/vnd.dewar.sealed.v1";
const RECORD: &str = "application/vnd.dewar.evidence.v1+json";
const CONTENTS: &str = "application/vnd.dewar.sealed.contents.v1+age";

/// A key pair: its recipient, and its file in the sandbox.
struct Pair {
    recipient: String,
    file: String,
}

impl Pair {
    fn new(sandbox: &Sandbox, name: &str) -> Self {
        let key = x25519::Identity::generate();
        let file = sandbox.path(name).to_str().unwrap().to_owned();
        fs::write(&file, format!("# made by a test\n{}\n", key.to_string().expose_secret())).unwrap();
        Self { recipient: key.to_public().to_string(), file }
    }
}

/// A store whose container `web` has secrets, and a pair of keys.
fn scene() -> (Sandbox, Pair) {
    let sandbox = Sandbox::store();
    let pair = Pair::new(&sandbox, "key");
    (sandbox, pair)
}

/// `dewar` at a fixed time, so that what is not sealed is the same each time.
fn fixed(sandbox: &Sandbox, args: &[&str]) -> Ran {
    Ran::of(sandbox.command(args).env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap())
}

fn sealed_entry(layout: &Path) -> Value {
    let all = whole_index(layout)["manifests"].as_array().unwrap().clone();
    all.into_iter().find(|entry| entry["artifactType"] == SEALED).expect("a sealed entry")
}

fn layers(layout: &Path) -> Vec<Value> {
    document(layout, &sealed_entry(layout))["layers"].as_array().unwrap().clone()
}

/// True if nothing of a run is left in `dir`.
fn is_clean(dir: &Path) -> bool {
    walkdir::WalkDir::new(dir).into_iter().all(|e| !e.unwrap().file_name().to_string_lossy().starts_with(".dewar-"))
}

fn unpack(tar: &[u8], to: &Path) {
    tar::Archive::new(tar).unpack(to).unwrap();
}

#[test]
fn what_is_unsealed_is_what_would_have_been_written_byte_for_byte() {
    let (sandbox, pair) = scene();
    let out = |name: &str| sandbox.path(name);
    fs::create_dir(out("memory")).unwrap();
    let all = |more: &[&str]| {
        let args = [&["checkpoint", "--all", "--binds"], more].concat();
        fixed(&sandbox, &args)
    };
    let plain = all(&["-o", "plain"]);
    let sealed = all(&["-o", "sealed", "--seal", &pair.recipient]).exits(plain.code);
    assert_ne!(plain.text(), sealed.text(), "each is the digest of what is there");
    let unseal = |from: &str, to: &str| fixed(&sandbox, &["unseal", from, "-i", &pair.file, "-o", to]).exits(0);
    assert_eq!(unseal("sealed", "back").text(), plain.text());
    assert!(contents(&out("plain")) == contents(&out("back")));
    // Sealed in each form, and unsealed into each.
    for (n, form) in [&["-o", "x.tar"][..], &["-o", "-"], &["-o", "other", "--staging", "memory"]].iter().enumerate() {
        let ran = all(&[form, &["--seal", &pair.recipient][..]].concat()).exits(plain.code);
        let dir = match n {
            0 => {
                unpack(&fs::read(out("x.tar")).unwrap(), &out("x"));
                "x"
            }
            1 => {
                unpack(&ran.stdout, &out("y"));
                "y"
            }
            _ => "other",
        };
        unseal(dir, &format!("back{n}"));
        assert!(contents(&out("plain")) == contents(&out(&format!("back{n}"))), "{form:?}");
    }
    assert_eq!(fs::read_dir(out("memory")).unwrap().count(), 0);
    unseal("sealed", "back.tar");
    all(&["-o", "plain.tar"]);
    let stream = fixed(&sandbox, &["unseal", "sealed", "-i", &pair.file, "-o", "-"]).exits(0);
    assert!(fs::read(out("back.tar")).unwrap() == fs::read(out("plain.tar")).unwrap());
    assert!(fs::read(out("plain.tar")).unwrap() == stream.stdout);
    // One of them, by its name, by its digest, by that of what is sealed.
    let one = plain.text().lines().next().unwrap().to_owned();
    let name = whole_index(&out("plain"))["manifests"].as_array().unwrap().iter().find(|e| e["digest"] == one).unwrap()
        ["annotations"]["io.containerd.image.name"]
        .clone();
    for (n, wanted) in [one.as_str(), name.as_str().unwrap(), sealed.text().lines().next().unwrap()].iter().enumerate()
    {
        let to = format!("one{n}");
        let args = ["unseal", "sealed", wanted, "-i", &pair.file, "-o", &to];
        assert_eq!(fixed(&sandbox, &args).exits(0).text().trim(), one);
        fixed(&sandbox, &["verify", &to]).exits(0);
    }
    fixed(&sandbox, &["unseal", "sealed", "nothing", "-i", &pair.file, "-o", "none"]).exits(2);
    assert!(!out("none").exists());
}

/// Every text of the container's own that we know of.
fn secrets(sandbox: &Sandbox) -> Vec<Vec<u8>> {
    let mut found = vec![WORKER.as_bytes().to_vec(), b"planted-in-a-file".to_vec(), b"planted-name".to_vec()];
    let upper = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs");
    for entry in walkdir::WalkDir::new(&upper).min_depth(1) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            found.push(fs::read(entry.path()).unwrap());
            found.push(entry.file_name().as_encoded_bytes().to_vec());
        }
    }
    found.extend([b"snapshots/5".to_vec(), b"default/web".to_vec(), b"\"process\"".to_vec(), b"ociVersion".to_vec()]);
    found.extend([b"planted-ref".to_vec()]);
    // The base image is not sealed; what it says as well is no secret.
    let base = contents(&sandbox.root().join("io.containerd.content.v1.content"));
    let base: Vec<_> = base.into_iter().filter_map(|(_, bytes)| bytes).flat_map(|bytes| unpacked(&bytes)).collect();
    let is_secret = |text: &Vec<u8>| text.len() > 5 && !base.iter().any(|bytes| holds(bytes, text));
    found.into_iter().filter(is_secret).collect()
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part == text)
}

/// The bytes of a file, and what they unpack to.
fn unpacked(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![bytes.to_vec()];
    let mut plain = Vec::new();
    if flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).is_ok() {
        all.push(plain);
    }
    all.extend(zstd::decode_all(bytes).ok());
    all
}

#[test]
fn nothing_of_the_containers_own_stands_in_a_sealed_layout() {
    let (sandbox, pair) = scene();
    let upper = sandbox.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots/5/fs");
    fs::write(upper.join("planted-name"), b"planted-in-a-file").unwrap();
    let common = ["--ref", "planted-ref:1", "--case", "4711"];
    for (name, compression) in [("web", "gzip"), ("worker", "zstd"), ("web", "none")] {
        let args = [&["checkpoint", name, "--compression", compression], &common[..]].concat();
        let _ = fs::remove_dir_all(sandbox.path("plain"));
        let _ = fs::remove_dir_all(sandbox.path("sealed"));
        sandbox.dewar(&[&args[..], &["-o", "plain"]].concat());
        sandbox.dewar(&[&args[..], &["-o", "sealed", "--seal", &pair.recipient]].concat());
        let files = |dir: &str| -> Vec<Vec<u8>> {
            let all = contents(&sandbox.path(dir)).into_iter().filter_map(|(_, bytes)| bytes);
            all.flat_map(|bytes| unpacked(&bytes)).collect()
        };
        let (plain, sealed) = (files("plain"), files("sealed"));
        let mut seen = 0;
        for text in secrets(&sandbox) {
            seen += usize::from(plain.iter().any(|bytes| holds(bytes, &text)));
            let told = String::from_utf8_lossy(&text).into_owned();
            assert!(!sealed.iter().any(|bytes| holds(bytes, &text)), "{name}: {told:?} can be read");
        }
        assert!(
            seen >= 4,
            "{name}: only {seen} of the texts are in the plain layout: the test looks for the wrong ones"
        );
        // Nor can who knows a plaintext tell that it is there.
        let index = whole_index(&sandbox.path("plain"));
        for entry in index["manifests"].as_array().unwrap() {
            let digest = entry["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let is_base = entry["annotations"]["io.containerd.image.name"] == "localhost/shop:1";
            assert!(is_base || !sealed.iter().any(|bytes| holds(bytes, digest.as_bytes())), "{name}: {digest}");
        }
    }
}

#[test]
fn a_bad_recipient_is_named_before_anything_is_read() {
    let (sandbox, pair) = scene();
    fs::write(sandbox.path("recipients"), "# nobody\n").unwrap();
    fs::write(sandbox.path("mixed"), format!("{}\nage1nonsense\n", pair.recipient)).unwrap();
    let secret = fs::read_to_string(&pair.file).unwrap().lines().last().unwrap().to_owned();
    for (args, why) in [
        (&["--seal", "age1nonsense"][..], "age1nonsense"),
        (&["--seal", "ssh-ed25519 AAAAC3"], "SSH key"),
        (&["--seal", &secret], "secret key was given"),
        (&["--seal-file", "recipients"], "names no recipient"),
        (&["--seal-file", "mixed"], "age1nonsense"),
        (&["--seal-file", "missing"], "missing"),
        (&["--staging", "."], "--staging is for what is sealed"),
        (&["--seal", &pair.recipient, "--staging", "missing"], "make it first"),
        (&["--seal", &pair.recipient, "--staging", "key"], "is no directory"),
    ] {
        // Not even that there is no such store is known by then.
        let args = [&["--root", "nowhere", "checkpoint", "web", "-o", "out"], args].concat();
        let ran =
            Ran::of(Command::new(crate::harness::DEWAR).args(&args).current_dir(sandbox.path("")).output().unwrap());
        let ran = ran.exits(2);
        assert!(ran.stderr.contains(why) && !ran.stderr.contains(&secret), "{args:?}: {}", ran.stderr);
        assert!(!sandbox.path("out").exists());
    }
    fs::write(sandbox.path("recipients"), format!("# me\n{}\n\n", pair.recipient)).unwrap();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--seal-file", "recipients"]).exits(0);
}

#[test]
fn only_who_it_is_sealed_to_opens_it() {
    let (sandbox, pair) = scene();
    let (second, other) = (Pair::new(&sandbox, "second"), Pair::new(&sandbox, "other"));
    let to = ["--seal", &pair.recipient, "--seal", &second.recipient];
    fixed(&sandbox, &[&["checkpoint", "web", "-o", "out"], &to[..]].concat()).exits(0);
    for (n, key) in [&pair, &second].into_iter().enumerate() {
        fixed(&sandbox, &["unseal", "out", "-i", &key.file, "-o", &format!("back{n}")]).exits(0);
        fixed(&sandbox, &["verify", "out", "-i", &key.file]).exits(0);
    }
    let ran = fixed(&sandbox, &["unseal", "out", "-i", &other.file, "-o", "none"]).exits(2);
    assert!(ran.stderr.contains("sealed to 2 X25519 recipients"), "{}", ran.stderr);
    assert!(!sandbox.path("none").exists() && is_clean(&sandbox.path("")));
    // One of several is enough.
    fixed(&sandbox, &["unseal", "out", "-i", &other.file, "-i", &pair.file, "-o", "some"]).exits(0);
    let ran = fixed(&sandbox, &["verify", "out", "-i", &other.file]).exits(1);
    assert!(ran.text().contains("none of the identities given opens it"), "{}", ran.text());
    for (text, why) in [("", "holds no identity"), ("x", "no age identity"), ("age-encryption.org/v1\n", "encrypted")] {
        fs::write(sandbox.path("bad"), text).unwrap();
        let ran = fixed(&sandbox, &["unseal", "out", "-i", "bad", "-o", "none"]).exits(2);
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
    // Others' tools are told, too, and what is not sealed is named.
    let shown = sandbox.plain(&fixed(&sandbox, &["inspect", "out"]).exits(0).text());
    // age's headers are not all of one length.
    let size = shown.lines().find_map(|line| line.strip_prefix("stored       ")?.split_once(" in ")).unwrap().0;
    let shown = shown.replace(size, "…");
    insta::assert_snapshot!(shown, @r"
    sealed       to 2 recipients: dewar unseal -i IDENTITY -o LAYOUT opens it
    digest       sha256:…
    created      2023-11-14T22:13:20Z
    stored       … in 8 age files
    readable     localhost/shop:1
    ");
    let files = fixed(&sandbox, &["inspect", "out", "--files"]).exits(1);
    assert!(files.stderr.contains("dewar unseal -i IDENTITY"), "{}", files.stderr);
    let told = fixed(&sandbox, &["inspect", "out", "--json"]).exits(0).json();
    assert_eq!((&told[0]["sealed"], &told[0]["recipients"]), (&json!(true), &json!(2)));
    let entry = sealed_entry(&sandbox.path("out"));
    assert!(entry["annotations"].get("io.containerd.image.name").is_none());
    let types: Vec<_> =
        layers(&sandbox.path("out")).iter().map(|l| l["mediaType"].as_str().unwrap().to_owned()).collect();
    assert!(types.iter().all(|media_type| media_type.ends_with("+age")), "{types:?}");
}

#[test]
fn each_sealed_blob_that_was_changed_is_found_and_nothing_is_unsealed() {
    let (sandbox, pair) = scene();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--seal", &pair.recipient]).exits(0);
    let out = sandbox.path("out");
    let count = layers(&out).len();
    assert!(count > 6, "{count}");
    for layer in layers(&out) {
        let path = blob_path(&out, &layer);
        let sound = fs::read(&path).unwrap();
        let (middle, last) = (sound.len() / 2, sound.len() - 1);
        for (what, at) in [("its head", 30), ("its middle", middle), ("its end", last), ("its length", sound.len())] {
            let mut bytes = sound.clone();
            match bytes.get_mut(at) {
                Some(byte) => *byte ^= 0x10,
                None => bytes.truncate(last),
            }
            fs::write(&path, bytes).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            for keys in [&[][..], &["-i", &pair.file]] {
                let ran = sandbox.dewar(&[&["verify", "out"], keys].concat()).exits(1);
                assert!(ran.text().contains(name), "{what}: {}", ran.text());
            }
            let ran = sandbox.dewar(&["unseal", "out", "-i", &pair.file, "-o", "back"]).exits(2);
            assert!(ran.stderr.contains(name), "{what}: {}", ran.stderr);
            assert!(!sandbox.path("back").exists() && is_clean(&sandbox.path("")), "{what}");
        }
        fs::write(&path, &sound).unwrap();
    }
    sandbox.dewar(&["verify", "out", "-i", &pair.file]).exits(0);
}

/// Seals `plain`, puts it in the layout, and yields its descriptor.
fn forge(layout: &Path, to: &str, media_type: &str, plain: &[u8]) -> Value {
    let (mut sealer, _) = crypt::seal(&Recipients::parse([to]).unwrap(), Vec::new()).unwrap();
    sealer.write_all(plain).unwrap();
    store(layout, media_type, &sealer.finish().unwrap())
}

fn store(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    fs::write(layout.join("blobs/sha256").join(digest.to_hex()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
}

/// Anybody can seal to a recipient: what the contents say may be a lie.
#[test]
fn contents_that_lie_are_found_and_nothing_is_unsealed() {
    let (sandbox, pair) = scene();
    sandbox.dewar(&["checkpoint", "web", "-o", "sound", "--seal", &pair.recipient, "--no-evidence"]).exits(0);
    let sound = sandbox.path("sound");
    let key = x25519_of(&pair);
    let at = layers(&sound).into_iter().find(|layer| layer["mediaType"] == CONTENTS).unwrap();
    let plain = age::decrypt(&key, &fs::read(blob_path(&sound, &at)).unwrap()).unwrap();
    let told: Value = serde_json::from_slice(&plain).unwrap();
    type Lie = (&'static str, fn(&mut Value));
    let lies: [Lie; 7] = [
        ("another digest", |told| {
            told["blobs"][0]["digest"] = json!(Digest::of(b"x").to_string());
            told["checkpoint"] = told["blobs"][0]["digest"].clone();
        }),
        ("a smaller size", |told| told["blobs"][0]["size"] = json!(1)),
        ("a larger size", |told| told["blobs"][0]["size"] = json!(u64::MAX)),
        ("no such layer", |told| told["blobs"][0]["sealed"] = json!(Digest::of(b"x").to_string())),
        ("a layer too few", |told| drop(told["blobs"].as_array_mut().unwrap().pop())),
        ("another version", |told| told["schema"] = json!(2)),
        ("a plain blob that is not there", |told| {
            told["plain"][0] = json!({"digest": Digest::of(b"x").to_string(), "size": 1});
        }),
    ];
    for (what, lie) in lies {
        let _ = fs::remove_dir_all(sandbox.path("lie"));
        copy_tree(&sound, &sandbox.path("lie"));
        let dir = sandbox.path("lie");
        let mut told = told.clone();
        lie(&mut told);
        let forged = forge(&dir, &pair.recipient, CONTENTS, &serde_json::to_vec(&told).unwrap());
        let mut manifest = document(&dir, &sealed_entry(&dir));
        manifest["layers"][0] = forged;
        let entry = store(&dir, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        let mut index = whole_index(&dir);
        let place = index["manifests"].as_array().unwrap().iter().position(|e| e["artifactType"] == SEALED).unwrap();
        index["manifests"][place]["digest"] = entry["digest"].clone();
        index["manifests"][place]["size"] = entry["size"].clone();
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        sandbox.dewar(&["verify", "lie", "-i", &pair.file]).exits(1);
        sandbox.dewar(&["unseal", "lie", "-i", &pair.file, "-o", "back"]).exits(2);
        assert!(!sandbox.path("back").exists() && is_clean(&sandbox.path("")), "{what}");
    }
}

fn x25519_of(pair: &Pair) -> x25519::Identity {
    fs::read_to_string(&pair.file).unwrap().lines().last().unwrap().parse().unwrap()
}

#[test]
fn the_record_beside_is_signed_and_checked_without_a_key_and_the_one_within_comes_back() {
    let (sandbox, pair) = scene();
    let dir = sandbox.path("");
    let run =
        |program: &str, args: &[&str]| Ran::of(Command::new(program).args(args).current_dir(&dir).output().unwrap());
    run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", "sign"]).exits(0);
    run("openssl", &["pkey", "-in", "sign", "-pubout", "-out", "sign.pub"]).exits(0);
    run("openssl", &["genpkey", "-algorithm", "ed25519", "-out", "other"]).exits(0);
    run("openssl", &["pkey", "-in", "other", "-pubout", "-out", "other.pub"]).exits(0);
    fs::set_permissions(sandbox.path("sign"), fs::Permissions::from_mode(0o600)).unwrap();
    let args = ["checkpoint", "web", "-o", "out", "--seal", &pair.recipient, "--sign-key", "sign", "--case", "4711"];
    sandbox.dewar(&args).exits(0);
    sandbox.dewar(&["verify", "out", "--trust", "sign.pub"]).exits(0);
    sandbox.dewar(&["verify", "out", "--trust", "other.pub"]).exits(1);
    let record = sandbox.dewar(&["inspect", "out", "--evidence=record"]).exits(0);
    let told = record.json();
    assert_eq!((&told["case"]["case"], &told["subject"]["container"]), (&json!("4711"), &json!("sealed")));
    let outputs: Vec<_> = told["outputs"].as_array().unwrap().iter().map(|output| output["digest"].clone()).collect();
    assert!(layers(&sandbox.path("out")).iter().all(|layer| outputs.contains(&layer["digest"])));
    fs::write(sandbox.path("record"), &record.stdout).unwrap();
    fs::write(sandbox.path("sig"), sandbox.dewar(&["inspect", "out", "--evidence=signature"]).exits(0).stdout).unwrap();
    let args = ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "sign.pub", "-in", "record", "-sigfile", "sig"];
    run("openssl", &args).exits(0);
    fs::write(sandbox.path("sums"), sandbox.dewar(&["inspect", "out", "--evidence=sums"]).exits(0).stdout).unwrap();
    let mut sums = Command::new("sha256sum");
    sums.args(["--quiet", "--strict", "-c", "../sums"]).current_dir(sandbox.path("out"));
    Ran::of(sums.output().unwrap()).exits(0);
    let ran = sandbox.dewar(&["inspect", "out", "--evidence=sources"]).exits(2);
    assert!(ran.stderr.contains("sealed"), "{}", ran.stderr);
    // The whole record, signed as well, is that of an unsealed bundle.
    sandbox.dewar(&["unseal", "out", "-i", &pair.file, "-o", "back"]).exits(0);
    sandbox.dewar(&["verify", "back", "--trust", "sign.pub"]).exits(0);
    let within = sandbox.dewar(&["inspect", "back", "--evidence=record"]).exits(0);
    assert_eq!(told["sealed"]["record"], json!(Digest::of(&within.stdout).to_string()));
    assert_eq!(within.json()["subject"]["container"], "default/web");
    sandbox.dewar(&["inspect", "back", "--evidence=sources"]).exits(0);
    // Taken away, it is missed.
    let mut index = whole_index(&sandbox.path("out"));
    index["manifests"].as_array_mut().unwrap().retain(|entry| entry["artifactType"] != RECORD);
    fs::write(sandbox.path("out/index.json"), index.to_string()).unwrap();
    let ran = sandbox.dewar(&["verify", "out", "--trust", "sign.pub"]).exits(1);
    assert!(ran.text().contains("has no acquisition record"), "{}", ran.text());
}

#[test]
fn age_itself_opens_each_blob() {
    let (sandbox, pair) = scene();
    if Command::new("age").arg("--version").output().is_err() {
        assert!(std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but age is not installed");
        return eprintln!("skipped: age is not installed");
    }
    fixed(&sandbox, &["checkpoint", "web", "-o", "plain"]).exits(0);
    fixed(&sandbox, &["checkpoint", "web", "-o", "out", "--seal", &pair.recipient]).exits(0);
    let out = sandbox.path("out");
    let mut opened = Vec::new();
    for layer in layers(&out) {
        let ran =
            Ran::of(Command::new("age").args(["-d", "-i", &pair.file]).arg(blob_path(&out, &layer)).output().unwrap());
        opened.push((layer["mediaType"].clone(), ran.exits(0).stdout));
    }
    let told: Value = serde_json::from_slice(&opened.iter().find(|(kind, _)| kind == CONTENTS).unwrap().1).unwrap();
    for (_, plain) in opened.iter().filter(|(kind, _)| kind != CONTENTS) {
        let digest = Digest::of(plain);
        assert!(told["blobs"].as_array().unwrap().iter().any(|blob| blob["digest"] == digest.to_string()));
        assert!(fs::read(sandbox.path("plain/blobs/sha256").join(digest.to_hex())).unwrap() == *plain);
    }
}

#[test]
fn every_output_is_its_owners_alone() {
    let (sandbox, pair) = scene();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--seal", &pair.recipient]).exits(0);
    sandbox.dewar(&["checkpoint", "web", "-o", "out.tar", "--seal", &pair.recipient]).exits(0);
    sandbox.dewar(&["checkpoint", "web", "-o", "plain.tar"]).exits(0);
    sandbox.dewar(&["unseal", "out", "-i", &pair.file, "-o", "back"]).exits(0);
    sandbox.dewar(&["unseal", "out", "-i", &pair.file, "-o", "back.tar"]).exits(0);
    for name in ["out", "out.tar", "plain.tar", "back", "back.tar"] {
        for entry in walkdir::WalkDir::new(sandbox.path(name)) {
            let entry = entry.unwrap();
            let right = if entry.file_type().is_dir() { 0o700 } else { 0o600 };
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, right, "{}", entry.path().display());
        }
    }
}

/// What a killed run left outside the layout is plaintext: the next run with this place removes it.
#[test]
fn what_a_killed_run_left_in_the_staging_is_removed() {
    let (sandbox, pair) = scene();
    let dead: PathBuf = sandbox.path("memory/.dewar-dead");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("rw.tar"), "secret").unwrap();
    fs::write(sandbox.path("memory/somebody's"), "file").unwrap();
    let busy = sandbox.path("memory/.dewar-busy");
    fs::create_dir(&busy).unwrap();
    let lock = fs::File::open(&busy).unwrap();
    lock.lock().unwrap();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--seal", &pair.recipient, "--staging", "memory"]).exits(0);
    let mut left: Vec<_> = fs::read_dir(sandbox.path("memory")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".dewar-busy", "somebody's"]);
}

/// The stores of real releases, with devices, owners and xattrs, logs and mounts.
#[test]
fn the_stores_of_real_releases_come_back_as_well() {
    if !is_root_for("the whole stores") {
        return;
    }
    for version in crate::harness::VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        let pair = Pair::new(&sandbox, "key");
        let plain = fixed(&sandbox, &["checkpoint", "--all", "-o", "plain"]);
        let sealed = fixed(&sandbox, &["checkpoint", "--all", "-o", "out", "--seal", &pair.recipient]);
        assert_eq!((plain.code, plain.text().lines().count()), (sealed.code, sealed.text().lines().count()));
        fixed(&sandbox, &["verify", "out", "-i", &pair.file]).exits(0);
        fixed(&sandbox, &["unseal", "out", "-i", &pair.file, "-o", "back"]).exits(0);
        assert!(contents(&sandbox.path("plain")) == contents(&sandbox.path("back")), "{version}");
    }
}
