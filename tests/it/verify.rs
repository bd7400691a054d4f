//! `verify` finds every damage, all at once, and nothing in sound layouts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use dewar::layout::Layout;

use crate::harness::{Sandbox, blob_path, contents, copy_tree, digests_out, document, entry, fixture, index};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CRIU: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

/// A copy of the good layout, to be damaged.
struct Bad {
    sandbox: Sandbox,
}

impl Bad {
    fn new() -> Self {
        let bad = Self { sandbox: Sandbox::empty() };
        copy_tree(&fixture("layout/web"), &bad.dir());
        bad
    }

    fn dir(&self) -> PathBuf {
        self.sandbox.path("layout")
    }

    fn checkpoint(&self) -> Value {
        document(&self.dir(), entry(&index(&self.dir()), INDEX))
    }

    /// The blob of the checkpoint's member with this media type.
    fn member(&self, media_type: &str) -> PathBuf {
        blob_path(&self.dir(), entry(&self.checkpoint(), media_type))
    }

    /// The blob of this entry of `index.json`.
    fn entry(&self, name: &str) -> PathBuf {
        blob_path(&self.dir(), entry(&index(&self.dir()), name))
    }

    /// Gives a blob other bytes and corrects digests and sizes up to `index.json`, so that only its content is wrong.
    fn reseal(&self, path: &Path, bytes: &[u8]) {
        reseal(&self.dir(), path, bytes);
    }

    fn verdict(&self) -> String {
        let ran = self.sandbox.dewar(&["verify", "layout"]);
        assert_eq!(ran.stderr, "");
        let text = digests_out(&ran.shown());
        // Short digests in the ways and sizes change when fixtures are made anew.
        let short = |word: &str| word.len() == 12 && word.bytes().all(|b| b.is_ascii_hexdigit());
        let lines = text.lines().map(|line| {
            let line = line.split(": ").next().filter(|head| head.ends_with("findings")).unwrap_or(line);
            let words = line.split(' ').map(|word| match word.strip_suffix(':') {
                Some(bare) if short(bare) => "…:",
                _ if short(word) => "…",
                _ if word.len() > 2 && word.bytes().all(|b| b.is_ascii_digit()) => "N",
                _ => word,
            });
            words.collect::<Vec<_>>().join(" ")
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// See [`Bad::reseal`]. Documents are changed as text, so their members and order stay.
pub fn reseal(layout: &Path, path: &Path, bytes: &[u8]) {
    let (mut old, mut size, mut bytes) = (path.to_owned(), fs::metadata(path).unwrap().len(), bytes.to_owned());
    loop {
        let digest = dewar::digest::Digest::of(&bytes).to_hex();
        let new = old.with_file_name(&digest);
        fs::write(&new, &bytes).unwrap();
        if new != old {
            fs::remove_file(&old).unwrap();
        }
        let was = format!(r#""digest":"sha256:{}","size":{size}"#, old.file_name().unwrap().to_str().unwrap());
        let is = format!(r#""digest":"sha256:{digest}","size":{}"#, bytes.len());
        let documents: BTreeMap<PathBuf, String> = walkdir::WalkDir::new(layout)
            .into_iter()
            .map(|e| e.unwrap().into_path())
            .filter_map(|p| Some((p.clone(), fs::read_to_string(p).ok()?)))
            .collect();
        let (parent, text) =
            documents.into_iter().find(|(_, text)| text.contains(&was)).expect("a parent names the blob");
        let changed = text.replace(&was, &is);
        if parent.ends_with("index.json") {
            return fs::write(parent, changed).unwrap();
        }
        (old, size, bytes) = (parent, text.len() as u64, changed.into_bytes());
    }
}

/// The tar with the entries that `keep` returns.
fn retar(tar: &[u8], mut keep: impl FnMut(&str, Vec<u8>) -> Option<(String, Vec<u8>)>) -> Vec<u8> {
    use std::io::Read;
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some((name, content)) = keep(&name, content) {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            out.append_data(&mut header, name, content.as_slice()).unwrap();
        }
    }
    out.into_inner().unwrap()
}

#[test]
fn sound_layouts_are_sound() {
    for layout in ["web", "ctr"] {
        let path = fixture(&format!("layout/{layout}"));
        let ran = Sandbox::empty().dewar(&["verify", path.to_str().unwrap()]).exits(0);
        assert!(ran.text().starts_with("sound: "), "{layout}: {}", ran.text());
    }
}

#[test]
fn blobs_missing_flipped_and_cut_are_all_found_at_once() {
    let bad = Bad::new();
    fs::remove_file(bad.member("application/vnd.containerd.container.checkpoint.config.v1+proto")).unwrap();
    let criu = bad.member(CRIU);
    let mut bytes = fs::read(&criu).unwrap();
    bytes[3000] ^= 1;
    fs::write(criu, bytes).unwrap();
    let layer = bad.member("application/vnd.oci.image.layer.v1.tar+gzip");
    let bytes = fs::read(&layer).unwrap();
    fs::write(layer, &bytes[..bytes.len() - 1]).unwrap();
    fs::write(bad.dir().join("blobs/sha256/readme"), "hello").unwrap();
    fs::write(bad.dir().join("blobs/sha256").join("0".repeat(64)), "hello").unwrap();
    insta::assert_snapshot!(bad.verdict(), @r#"
    exit 1
    blobs/sha256/0000000000000000000000000000000000000000000000000000000000000000: is damaged: its content has sha256:…
    blobs/sha256/readme: is no blob: its name is no digest
    localhost/checkpoint/web:1 > index … > CRIU images …: blob sha256:… is damaged: its content has sha256:…
    localhost/checkpoint/web:1 > index … > rw layer …: is N bytes long, its descriptor says N
    localhost/checkpoint/web:1 > index … > spec …: blob sha256:… is missing
    localhost/checkpoint/web:1-rootfs > manifest … > layer 2: is N bytes long, its descriptor says N
    6 findings
    "#);
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_found() {
    let bad = Bad::new();
    let manifest = document(&bad.dir(), entry(&index(&bad.dir()), "localhost/shop:1"));
    let config = blob_path(&bad.dir(), &manifest["config"]);
    let right = document(&bad.dir(), &manifest["config"]);
    let id = right["rootfs"]["diff_ids"][1].as_str().unwrap();
    let wrong = fs::read_to_string(&config).unwrap().replace(id, &format!("sha256:{}", "1".repeat(64)));
    // Not through `reseal`: this manifest was written with spaces, by another program.
    let digest = dewar::digest::Digest::of(wrong.as_bytes()).to_string();
    fs::write(bad.dir().join("blobs").join(digest.replace(':', "/")), &wrong).unwrap();
    let path = bad.entry("localhost/shop:1");
    let old = fs::read_to_string(&path).unwrap();
    let new = old.replace(manifest["config"]["digest"].as_str().unwrap(), &digest);
    let digest = dewar::digest::Digest::of(new.as_bytes()).to_hex();
    fs::write(path.with_file_name(&digest), &new).unwrap();
    let whole = fs::read_to_string(bad.dir().join("index.json")).unwrap();
    let whole = whole.replace(path.file_name().unwrap().to_str().unwrap(), &digest);
    fs::write(bad.dir().join("index.json"), whole).unwrap();
    insta::assert_snapshot!(bad.verdict(), @r#"
    exit 1
    localhost/shop:1 > manifest … > layer 1: unpacks to sha256:…, the config's diff id is sha256:…
    1 findings
    "#);
}

#[test]
fn images_that_do_not_make_a_whole_are_found() {
    let without = |name: &'static str| move |n: &str, content| (n != name).then(|| (n.to_owned(), content));
    let change = |name: &'static str, how: fn(Vec<u8>) -> Vec<u8>| {
        move |n: &str, content| Some((n.to_owned(), if n == name { how(content) } else { content }))
    };
    let pages = crate::harness::expected("criu/expected.json")["pages"].as_u64().unwrap() / 4096;
    let without_pages = format!("pages-1.img has 0 bytes, pagemap-1.img counts {pages} pages");
    let page_lacks = format!("pages-1.img has N bytes, pagemap-1.img counts {pages} pages");
    type Edit = Box<dyn FnMut(&str, Vec<u8>) -> Option<(String, Vec<u8>)>>;
    let cases: Vec<(Edit, &str)> = vec![
        (Box::new(without("descriptors.json")), "descriptors.json is missing: runc cannot restore"),
        (Box::new(without("inventory.img")), "inventory.img is missing"),
        (Box::new(without("pstree.img")), "pstree.img is missing"),
        (Box::new(without("core-1.img")), "core-1.img is missing"),
        (Box::new(without("pages-1.img")), &without_pages),
        (Box::new(change("pages-1.img", |c| c[..c.len() - 4096].to_vec())), &page_lacks),
        (Box::new(change("descriptors.json", |_| b"{}".to_vec())), "descriptors.json: invalid type: map"),
        (
            Box::new(change("pstree.img", |c| c[..c.len() - 1].to_vec())),
            "pstree.img: at byte 8: an entry runs past the file",
        ),
        (
            Box::new(change("inventory.img", |_| b"nothing of CRIU's".to_vec())),
            "inventory.img: at byte 0: not a CRIU image",
        ),
        (
            Box::new(|n, content| Some((if n == "fs-1.img" { "x/fs-1.img".into() } else { n.to_owned() }, content))),
            "x/fs-1.img lies in a folder; the tar must be flat",
        ),
    ];
    for (edit, wanted) in cases {
        let bad = Bad::new();
        let tar = bad.member(CRIU);
        let edited = retar(&fs::read(&tar).unwrap(), edit);
        bad.reseal(&tar, &edited);
        let verdict = bad.verdict();
        assert!(verdict.starts_with("exit 1") && verdict.ends_with("1 findings"), "{wanted}: {verdict}");
        assert!(verdict.contains(wanted), "{wanted}: {verdict}");
    }
}

#[test]
fn a_tar_cut_off_is_found_where_its_digest_is_right() {
    let bad = Bad::new();
    let tar = bad.member(CRIU);
    let bytes = fs::read(&tar).unwrap();
    bad.reseal(&tar, &bytes[..bytes.len() / 2 - 100]);
    assert!(bad.verdict().starts_with("exit 1"), "{}", bad.verdict());
}

#[test]
fn an_index_that_is_none_cannot_be_looked_at() {
    for (text, why) in [
        ("", "EOF"),
        ("[]", "sequence"),
        (r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../../etc"}]}"#, "digest"),
    ] {
        let bad = Bad::new();
        fs::write(bad.dir().join("index.json"), text).unwrap();
        let ran = bad.sandbox.dewar(&["verify", "layout"]).exits(2);
        assert!(ran.stderr.contains("index.json") && ran.stderr.contains(why), "{}", ran.stderr);
    }
}

#[test]
fn two_entries_of_one_name_are_found() {
    let bad = Bad::new();
    let text = fs::read_to_string(bad.dir().join("index.json")).unwrap();
    let name =
        index(&bad.dir())["manifests"][2]["annotations"]["io.containerd.image.name"].as_str().unwrap().to_owned();
    fs::write(bad.dir().join("index.json"), text.replace(&format!("{name}-rootfs"), &name)).unwrap();
    assert!(bad.verdict().contains("entries 0 and 2 of index.json have the same name"), "{}", bad.verdict());
}

#[test]
fn the_verdict_comes_as_json_too() {
    let bad = Bad::new();
    fs::remove_file(bad.member(CRIU)).unwrap();
    let verdict = bad.sandbox.dewar(&["verify", "layout", "--json"]).exits(1).json();
    assert_eq!(verdict["findings"].as_array().unwrap().len(), 1);
    assert!(verdict["findings"][0]["what"].as_str().unwrap().ends_with("is missing"));
}

/// `verify` of a layout as the program would say it: findings, or why it could not look. Empty if the layout is sound.
fn said(dir: &Path) -> String {
    let verdict = Layout::open(dir).and_then(|layout| dewar::job::verify::verify(&layout));
    match verdict {
        Ok(verdict) => verdict.findings.iter().map(|finding| format!("{finding}\n")).collect(),
        Err(e) => {
            let causes = std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source());
            causes.map(|e| format!("{e}\n")).collect()
        }
    }
}

/// Flips bits of a file, one at a time, and tells `each` what is said of the layout then, and of which bit.
fn flip_bits(dir: &Path, file: &str, bits: impl Iterator<Item = usize>, mut each: impl FnMut(usize, &[u8], String)) {
    let path = dir.join(file);
    let sound = fs::read(&path).unwrap();
    let mut changed = sound.clone();
    for bit in bits {
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        each(bit, &changed, said(dir));
        changed[bit / 8] = sound[bit / 8];
    }
    fs::write(&path, &sound).unwrap();
    assert_eq!(said(dir), "", "it was the flip");
}

/// At most so many bits of a blob: one of every byte, each bit in turn, of small ones; evenly spread over large ones.
const MOST_FLIPS: usize = 250;

#[test]
fn a_flipped_bit_of_any_blob_is_found_and_named() {
    let bad = Bad::new();
    for (path, _) in contents(&bad.dir()).into_iter().filter(|(_, content)| content.is_some()) {
        let Some(name) = path.to_str().unwrap().strip_prefix("blobs/sha256/").map(str::to_owned) else { continue };
        let len = fs::metadata(bad.dir().join(&path)).unwrap().len() as usize;
        let bits = (0..len).step_by(len.div_ceil(MOST_FLIPS)).enumerate().map(|(i, byte)| byte * 8 + i % 8);
        flip_bits(&bad.dir(), path.to_str().unwrap(), bits.chain([len * 8 - 1]), |bit, _, said| {
            assert!(said.contains(&name), "bit {bit} of {name}: {said:?}");
        });
        // And so says the program.
        let mut bytes = fs::read(bad.dir().join(&path)).unwrap();
        bytes[len / 2] ^= 1;
        fs::write(bad.dir().join(&path), bytes).unwrap();
        assert!(bad.sandbox.dewar(&["verify", "layout"]).exits(1).text().contains(&name));
        fs::copy(fixture("layout/web").join(&path), bad.dir().join(&path)).unwrap();
    }
}

#[test]
fn a_flipped_bit_of_the_layouts_marker_is_found_and_named() {
    let bad = Bad::new();
    let bits = fs::metadata(bad.dir().join("oci-layout")).unwrap().len() as usize * 8;
    flip_bits(&bad.dir(), "oci-layout", 0..bits, |bit, _, said| {
        assert!(said.contains("oci-layout"), "bit {bit} of oci-layout: {said:?}");
    });
}

/// What an index.json says that nobody checks: places where a flipped bit leaves a layout that passes for sound, each once,
/// entries without their numbers. Every `step`th bit is tried; with one that is no multiple of 2 all bits of a byte get
/// their turn.
fn missed_in_index(dir: &Path, step: usize) -> Vec<String> {
    let sound = index(dir);
    let bits = fs::metadata(dir.join("index.json")).unwrap().len() as usize * 8;
    let mut missed = BTreeSet::new();
    flip_bits(dir, "index.json", (0..bits).step_by(step), |bit, changed, said| {
        if said.is_empty() {
            differing("", &sound, &crate::harness::json(changed), &mut missed);
        } else {
            let named = said.contains("index.json") || said.contains("localhost/") || said.contains("blobs/sha256/");
            assert!(named, "bit {bit} of index.json: {said:?}");
        }
    });
    missed.into_iter().collect()
}

/// Where two documents differ: the values that are others, the keys that are gone.
fn differing(at: &str, was: &Value, is: &Value, places: &mut BTreeSet<String>) {
    match (was, is) {
        _ if was == is => {}
        (Value::Object(old), Value::Object(new)) => old.iter().for_each(|(key, was)| match new.get(key) {
            Some(is) => differing(&format!("{at}/{key}"), was, is, places),
            None => drop(places.insert(format!("key   {at}/{key}"))),
        }),
        (Value::Array(old), Value::Array(new)) => {
            old.iter().zip(new).for_each(|(was, is)| differing(&format!("{at}/*"), was, is, places))
        }
        _ => drop(places.insert(format!("value {at}"))),
    }
}

/// No digest covers `index.json`, the root of all; what we write there is sealed, entry by entry.
#[test]
fn a_flipped_bit_of_an_index_of_ours_is_found() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "layout", "--ref", "localhost/x:1"]).exits(0);
    insta::assert_snapshot!(missed_in_index(&sandbox.path("layout"), 11).join("\n"), @"");
}

/// What others wrote, or we before there were seals, is taken at its word beside digests and sizes.
#[test]
fn what_of_an_index_without_seals_is_taken_at_its_word() {
    let bad = Bad::new();
    insta::assert_snapshot!(missed_in_index(&bad.dir(), 5).join("\n"), @r"
    key   /manifests/*/annotations/io.containerd.image.name
    key   /manifests/*/annotations/org.criu.checkpoint.cgroup.version
    key   /manifests/*/annotations/org.criu.checkpoint.container.name
    key   /manifests/*/annotations/org.criu.checkpoint.criu.version
    key   /manifests/*/annotations/org.criu.checkpoint.engine.name
    key   /manifests/*/annotations/org.criu.checkpoint.engine.version
    key   /manifests/*/annotations/org.criu.checkpoint.host.arch
    key   /manifests/*/annotations/org.criu.checkpoint.host.kernel
    key   /manifests/*/annotations/org.criu.checkpoint.rootfsImageName
    key   /manifests/*/annotations/org.criu.checkpoint.runtime.name
    key   /manifests/*/annotations/org.dewar.container.namespace
    key   /manifests/*/annotations/org.opencontainers.image.created
    key   /manifests/*/annotations/org.opencontainers.image.ref.name
    value /manifests/*/annotations/io.containerd.image.name
    value /manifests/*/annotations/org.criu.checkpoint.cgroup.version
    value /manifests/*/annotations/org.criu.checkpoint.container.name
    value /manifests/*/annotations/org.criu.checkpoint.criu.version
    value /manifests/*/annotations/org.criu.checkpoint.engine.name
    value /manifests/*/annotations/org.criu.checkpoint.engine.version
    value /manifests/*/annotations/org.criu.checkpoint.host.arch
    value /manifests/*/annotations/org.criu.checkpoint.host.kernel
    value /manifests/*/annotations/org.criu.checkpoint.rootfsImageName
    value /manifests/*/annotations/org.criu.checkpoint.runtime.name
    value /manifests/*/annotations/org.dewar.container.namespace
    value /manifests/*/annotations/org.opencontainers.image.created
    value /manifests/*/annotations/org.opencontainers.image.ref.name
    ");
}

#[test]
fn an_index_or_a_descriptor_without_what_it_must_have_is_not_sound() {
    for (old, new, code, why) in [
        (r#""manifests":"#, r#""manifestz":"#, 2, "missing field `manifests`"),
        (
            r#""mediaType":"application/vnd.oci.image.index.v1+json","manifests""#,
            r#""mediaType":"x","manifests""#,
            1,
            "index.json",
        ),
        (r#"{"mediaType":"#, r#"{"mediaTypf":"#, 1, "no media type"),
    ] {
        let bad = Bad::new();
        let text = fs::read_to_string(bad.dir().join("index.json")).unwrap();
        assert!(text.contains(old));
        fs::write(bad.dir().join("index.json"), text.replace(old, new)).unwrap();
        let ran = bad.sandbox.dewar(&["verify", "layout"]).exits(code);
        assert!((ran.text() + &ran.stderr).contains(why), "{}{}", ran.text(), ran.stderr);
    }
}
