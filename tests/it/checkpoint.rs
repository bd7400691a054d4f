//! `checkpoint` of containers without a live task: what is in the bundle, judged by containerd's records, by the kernel's
//! view of the container's files, and by the checkpoint that containerd itself wrote.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};

use crate::harness::{
    META_DB, Sandbox, VERSIONS, WORKER, blob, contents, document, entry, expected, fixture, index, replaced,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const SPEC: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// The record of a container as `ctr` showed it.
fn record<'v>(expected: &'v Value, id: &str) -> &'v Value {
    expected["containers"].as_array().unwrap().iter().find(|c| c["id"] == id).unwrap()
}

/// Names and contents of the regular files in a gzip layer.
fn files(layer: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(MultiGzDecoder::new(layer));
    let entries = archive.entries().unwrap().map(Result::unwrap);
    let regular = entries.filter(|entry| entry.header().entry_type().is_file());
    regular
        .map(|mut entry| {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), sha256(&content))
        })
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    dewar::digest::Digest::of(bytes).to_hex()
}

#[test]
fn the_first_command_of_the_readme_makes_a_sound_bundle() {
    let sandbox = Sandbox::store();
    let ran = sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    assert_eq!(ran.stderr, "", "nothing is worth a word");
    let layout = sandbox.path("out");
    let index = index(&layout);
    let names: Vec<_> = index["manifests"].as_array().unwrap().iter().map(|e| &e["annotations"]).collect();
    let of = |i: usize, key: &str| names[i][key].as_str().unwrap();
    assert_eq!(names.len(), 3);
    let reference = of(2, "io.containerd.image.name");
    assert!(reference.starts_with("localhost/checkpoint/default/web:20") && reference.ends_with('Z'), "{reference}");
    assert_eq!(of(0, "io.containerd.image.name"), format!("{reference}-rootfs"));
    assert_eq!(of(1, "io.containerd.image.name"), "localhost/shop:1");
    (0..3).for_each(|i| assert_eq!(of(i, "io.containerd.image.name"), of(i, "org.opencontainers.image.ref.name")));
    assert_eq!(ran.text(), format!("{}\n", index["manifests"][2]["digest"].as_str().unwrap()));
    assert!(sandbox.dewar(&["verify", "out"]).exits(0).text().starts_with("sound: "));
}

#[test]
fn a_bundle_holds_what_the_records_say() {
    let right = expected("store/expected.json");
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "localhost/x:1"]).exits(0);
    let layout = sandbox.path("out");
    let whole = index(&layout);
    let checkpoint = document(&layout, entry(&whole, "localhost/x:1"));
    let web = record(&right, "web");

    // The image, byte for byte.
    let image = right["images"].as_array().unwrap().iter().find(|i| i["name"] == web["image"]).unwrap();
    let base = entry(&whole, "localhost/shop:1");
    assert_eq!((&base["digest"], &base["mediaType"]), (&image["digest"], &image["media_type"]));
    for file in fs::read_dir(sandbox.blob(image["digest"].as_str().unwrap()).parent().unwrap()).unwrap() {
        let file = file.unwrap();
        let copy = layout.join("blobs/sha256").join(file.file_name());
        assert_eq!(fs::read(file.path()).unwrap(), fs::read(copy).unwrap(), "{:?}", file.file_name());
    }
    assert_eq!(checkpoint["manifests"][0]["digest"], image["digest"], "the base image comes first");

    // The spec: a protobuf Any around the JSON that `ctr containers info` showed.
    let spec = blob(&layout, entry(&checkpoint, SPEC));
    let start = spec.windows(1).position(|w| w == b"{").unwrap();
    assert!(spec[..start].windows(4).any(|w| w == b"Spec"));
    assert_eq!(crate::harness::json(&spec[start..])["process"]["args"], web["args"]);

    // The files, and nothing else.
    let found = files(&blob(&layout, entry(&checkpoint, LAYER)));
    assert_eq!(json!(found), web["files"]);
    assert_eq!(checkpoint["annotations"]["org.opencontainers.image.ref.name"], web["image"]);
    assert_eq!(checkpoint["annotations"]["io.containerd.checkpoint.snapshotter"], web["snapshotter"]);
    assert_eq!(checkpoint["annotations"]["io.containerd.checkpoint.runtime"], web["runtime"]);
}

/// `ctr containers checkpoint` is what every restore was written for.
#[test]
fn a_checkpoint_index_has_the_members_of_containerds_own() {
    let [ours, theirs] = ["web", "ctr"].map(|name| {
        let layout = fixture(&format!("layout/{name}"));
        let whole = index(&layout);
        let is_checkpoint = |e: &&Value| e["mediaType"] == INDEX;
        document(&layout, whole["manifests"].as_array().unwrap().iter().find(is_checkpoint).unwrap())
    });
    let types = |index: &Value| {
        let all = index["manifests"].as_array().unwrap().iter().map(|m| m["mediaType"].as_str().unwrap().to_owned());
        // Runtime options without a value are written by containerd 1.6 and us, left out since 1.7; a restore takes both.
        let mut all: Vec<_> =
            all.filter(|t| !t.ends_with("resource.tar") && !t.ends_with("runtime.options+proto")).collect();
        all.sort();
        all
    };
    assert_eq!(types(&ours), types(&theirs));
    assert_eq!(ours["annotations"], theirs["annotations"]);
    assert_eq!(ours["schemaVersion"], theirs["schemaVersion"]);
    let platform = |index: &Value| entry(index, LAYER)["platform"].clone();
    assert_eq!(platform(&ours), platform(&theirs));
}

/// A tree as layers make it: path → what is there, in the fixture's words.
#[derive(Default)]
struct Applied {
    entries: BTreeMap<String, Value>,
    /// path → the first name of the same file
    links: BTreeMap<String, String>,
}

impl Applied {
    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.entries.retain(|p, _| p != path && !p.starts_with(&below));
        self.links.retain(|p, _| p != path && !p.starts_with(&below));
    }

    /// OCI image spec, layer.md, "Applying changesets".
    fn apply(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(MultiGzDecoder::new(layer));
        let mut fresh = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path: String = entry.path_bytes().iter().map(|&b| char::from(b)).collect();
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == ".wh..wh..opq" {
                let old = |p: &String| p.starts_with(&format!("{dir}/")) && !fresh.contains(p);
                let gone: Vec<_> = self.entries.keys().filter(|p| old(p)).cloned().collect();
                gone.iter().for_each(|p| drop(self.entries.remove(p)));
            } else if let Some(deleted) = name.strip_prefix(".wh.") {
                self.remove(&if dir.is_empty() { deleted.to_owned() } else { format!("{dir}/{deleted}") });
            } else if path != "." && !path.is_empty() {
                if entry.header().entry_type() != tar::EntryType::Directory {
                    self.remove(&path);
                }
                self.add(&path, &mut entry);
                fresh.push(path);
            }
        }
    }

    fn add(&mut self, path: &str, entry: &mut tar::Entry<'_, impl Read>) {
        use tar::EntryType as T;
        let header = entry.header().clone();
        let pax = pax(entry);
        let text = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
        let target = entry.link_name_bytes().map(|bytes| text(&bytes)).unwrap_or_default();
        if header.entry_type() == T::Link {
            let first = target.trim_start_matches("./").to_owned();
            let mut same = self.entries[&first].clone();
            same["path"] = path.into();
            self.entries.insert(path.into(), same);
            self.links.insert(path.into(), first);
            return;
        }
        let number = |key: &str, header: u64| pax.get(key).map_or(header, |v| text(v).parse().unwrap());
        let kind = match header.entry_type() {
            T::Regular => "file",
            T::Directory => "directory",
            T::Symlink => "symlink",
            T::Char => "char",
            T::Block => "block",
            T::Fifo => "fifo",
            other => panic!("{path}: {other:?}"),
        };
        let mtime = pax.get("mtime").map_or_else(|| header.mtime().unwrap().to_string(), |v| text(v));
        let mut one = json!({
            "path": path, "kind": kind, "mode": header.mode().unwrap() & 0o7777,
            "uid": number("uid", header.uid().unwrap_or_default()), "gid": number("gid", header.gid().unwrap_or_default()),
            "mtime_ns": nanoseconds(&mtime),
        });
        match kind {
            "file" => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                one["size"] = content.len().into();
                one["sha256"] = sha256(&content).into();
            }
            "symlink" => one["target"] = target.into(),
            "char" | "block" => one["device"] = json!([header.device_major().unwrap(), header.device_minor().unwrap()]),
            _ => {}
        }
        for (key, value) in &pax {
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                one["xattrs"][name] = hex::encode(value).into();
            }
        }
        self.entries.insert(path.into(), one);
    }

    /// As `listing` in `fixtures/scene.py` has it.
    fn listing(&self) -> Value {
        let mut groups: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        self.links.iter().for_each(|(path, first)| groups.entry(first).or_insert_with(|| vec![first]).push(path));
        let mut links: Vec<Vec<_>> = groups.into_values().collect();
        links.iter_mut().for_each(|names| names.sort());
        let entries: Vec<_> = self.entries.values().collect();
        json!({"entries": entries, "hard_links": links})
    }
}

/// The extended header's records. Read by hand: a value may hold any byte.
fn pax(entry: &mut tar::Entry<'_, impl Read>) -> BTreeMap<String, Vec<u8>> {
    let Some(records) = entry.pax_extensions().unwrap() else { return BTreeMap::new() };
    let records = records.map(Result::unwrap);
    records.map(|r| (r.key().unwrap().to_owned(), r.value_bytes().to_vec())).collect()
}

/// `-1.5` → -1500000000.
fn nanoseconds(text: &str) -> i64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction: i64 = format!("{fraction:0<9}")[..9].parse().unwrap();
    let sign = if text.starts_with('-') { -1 } else { 1 };
    whole.parse::<i64>().unwrap() * 1_000_000_000 + sign * fraction
}

#[test]
fn image_and_rw_layer_make_the_tree_that_the_kernel_showed() {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        sandbox.dewar(&["checkpoint", "rich", "-o", "out", "--ref", "localhost/rich:1"]).exits(0);
        sandbox.dewar(&["verify", "out"]).exits(0);
        let layout = sandbox.path("out");
        let committed = document(&layout, entry(&index(&layout), "localhost/rich:1-rootfs"));
        let mut tree = Applied::default();
        committed["layers"].as_array().unwrap().iter().for_each(|layer| tree.apply(&blob(&layout, layer)));

        let right = &expected(&format!("containerd/{version}.expected.json"))["merged"]["rich"];
        let made = tree.listing();
        for (ours, theirs) in made["entries"].as_array().unwrap().iter().zip(right["entries"].as_array().unwrap()) {
            assert_eq!(ours, theirs, "{version}");
        }
        assert_eq!(made, *right, "{version}");
    }
}

#[test]
fn of_an_index_only_this_platforms_image_is_needed() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    sandbox.dewar(&["checkpoint", "rich", "-o", "out"]).exits(0);
    let layout = sandbox.path("out");
    let image = entry(&index(&layout), "localhost/many:1").clone();
    let manifests = document(&layout, &image)["manifests"].as_array().unwrap().clone();
    let there = |m: &Value| crate::harness::blob_path(&layout, m).exists();
    assert_eq!(manifests.iter().map(there).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn what_is_lacking_is_said_and_the_rest_written() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    let upper = expected("containerd/2.1.expected.json");
    let upper = sandbox.root().join(record(&upper, "odd")["upper"].as_str().unwrap());
    let _socket = UnixListener::bind(upper.join("run.sock")).unwrap();
    let said = |who: &str| {
        let ran = sandbox.dewar(&["checkpoint", who, "-o", who]).exits(1);
        sandbox.dewar(&["verify", who]).exits(0);
        sandbox.plain(&ran.stderr)
    };
    insta::assert_snapshot!(said("odd"), @r#"
    dewar: default/odd: run.sock: a socket cannot be stored
    dewar: default/odd: srv/.wh.file: a name beginning with .wh. would come back as a deletion; kept beside the layer as files/srv/.wh.file
    "#);
    insta::assert_snapshot!(said("imageless"), @r#"
    dewar: default/imageless: image "localhost/gone:1" of namespace default not found; its record was removed since the container was made: what the container stands on takes its place
    dewar: default/imageless: not in the content store: anything that tells which image it was (of localhost/gone:1); an image of its layers' snapshots takes its place, without a command and an environment (the container's spec has them)
    dewar: default/imageless: layer 1 of localhost/gone:1: made again from the snapshot, with the same files but not byte for byte, so the image in the bundle has other digests than the original
    "#);
    // A snapshotter that nobody knows: the databases say a name of the same length in place of `native`.
    let meta = sandbox.root().join(META_DB);
    fs::write(&meta, replaced(&fs::read(&meta).unwrap(), b"native", b"exotic")).unwrap();
    insta::assert_snapshot!(said("flat"), @r#"dewar: default/flat: snapshotter "exotic" is not supported, because where it keeps its snapshots is not on record, so the container's files cannot be read; supported: native, overlayfs, btrfs, blockfile, devmapper, erofs, fuse-overlayfs, nydus, overlaybd, soci, stargz, zfs: the container's files are not in the bundle"#);
    let layer = |who: &str| {
        let layout = sandbox.path(who);
        let whole = index(&layout);
        let last = whole["manifests"].as_array().unwrap().last().unwrap();
        files(&blob(&layout, entry(&document(&layout, last), LAYER)))
    };
    assert_eq!(layer("odd").into_keys().collect::<Vec<_>>(), ["srv/kept"]);
    assert_eq!(layer("imageless").into_keys().collect::<Vec<_>>(), ["srv/left"]);
}

#[test]
fn what_no_layer_can_hold_is_kept_beside_it() {
    let Some(sandbox) = Sandbox::rich("2.1") else { return };
    let odd = expected("containerd/2.1.expected.json");
    let srv = sandbox.root().join(record(&odd, "odd")["upper"].as_str().unwrap()).join("srv");
    let hidden = srv.join(".wh.d/deep");
    fs::create_dir_all(&hidden).unwrap();
    fs::write(hidden.join(".wh.x"), "evidence").unwrap();
    fs::set_permissions(hidden.join(".wh.x"), fs::Permissions::from_mode(0o4711)).unwrap();
    let _socket = UnixListener::bind(hidden.join("s")).unwrap();
    // The `=` ends the keyword of a tar's record.
    let name = "user.a=b";
    rustix::fs::setxattr(srv.join("kept"), name, b"\xffvalue", rustix::fs::XattrFlags::empty()).unwrap();

    let ran = sandbox.dewar(&["checkpoint", "odd", "-o", "out", "--ref", "odd"]).exits(1);
    sandbox.dewar(&["verify", "out"]).exits(0);
    insta::assert_snapshot!(sandbox.plain(&ran.stderr), @r#"
    dewar: default/odd: srv/.wh.d/deep/s: a socket cannot be stored
    dewar: default/odd: srv/.wh.d: a name beginning with .wh. would come back as a deletion; kept beside the layer as files/srv/.wh.d
    dewar: default/odd: srv/.wh.file: a name beginning with .wh. would come back as a deletion; kept beside the layer as files/srv/.wh.file
    dewar: default/odd: srv/kept: its attribute user.a=b cannot be stored; kept beside the layer as xattrs/0
    "#);
    let layout = sandbox.path("out");
    let whole = index(&layout);
    let members = document(&layout, whole["manifests"].as_array().unwrap().last().unwrap());
    let is_beside = |member: &&Value| member["annotations"]["org.dewar.beside"] == "rw layer";
    let beside = members["manifests"].as_array().unwrap().iter().find(is_beside).unwrap();
    let into = sandbox.path("beside");
    fs::create_dir(&into).unwrap();
    crate::overlay::untar(&blob(&layout, beside), &into, &[]);
    let found = contents(&into).into_iter().filter_map(|(path, content)| Some((path, content?)));
    let found: Vec<_> = found.map(|(path, content)| (path.to_str().unwrap().to_owned(), content)).collect();
    let file = |path: &str, content: &[u8]| (path.to_owned(), content.to_vec());
    assert_eq!(found[0], file("files/srv/.wh.d/deep/.wh.x", b"evidence"));
    assert_eq!((found[1].0.as_str(), &found[2]), ("files/srv/.wh.file", &file("xattrs/0", b"\xffvalue")));
    let mode = fs::metadata(into.join("files/srv/.wh.d/deep/.wh.x")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4711);

    let told = sandbox.dewar(&["inspect", "out", "--json"]).exits(0).json();
    let mut lost: Vec<Value> = told[0]["account"]["left_out"].as_array().unwrap().clone();
    for lost in &mut lost {
        ["mtime", "mode"].into_iter().for_each(|member| lost[member] = "…".into());
    }
    insta::assert_snapshot!(lost.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"), @r#"
    {"of":"rw layer","path":"/srv/.wh.d","why":"a name beginning with .wh. would come back as a deletion","kind":"directory","mode":"…","uid":0,"gid":0,"mtime":"…","kept":{"path":"files/srv/.wh.d"}}
    {"of":"rw layer","path":"/srv/.wh.d/deep/s","why":"a socket cannot be stored","kind":"socket","mode":"…","uid":0,"gid":0,"mtime":"…"}
    {"of":"rw layer","path":"/srv/.wh.file","why":"a name beginning with .wh. would come back as a deletion","kind":"file","mode":"…","uid":0,"gid":0,"size":15,"mtime":"…","kept":{"path":"files/srv/.wh.file"}}
    {"of":"rw layer","path":"/srv/kept","why":"its attribute user.a=b cannot be stored","kind":"file","mode":"…","uid":0,"gid":0,"size":5,"mtime":"…","kept":{"path":"xattrs/0"}}
    "#);
    assert!(sandbox.dewar(&["inspect", "out"]).exits(0).text().contains("kept beside as xattrs/0"));
}

#[test]
fn all_containers_come_into_one_layout_and_share_their_blobs() {
    let sandbox = Sandbox::store();
    let ran = sandbox.dewar(&["checkpoint", "--all", "-o", "out", "--json"]).exits(0);
    let reports = ran.json();
    let containers: Vec<_> = reports.as_array().unwrap().iter().map(|r| r["container"].as_str().unwrap()).collect();
    assert_eq!(containers.len(), 3);
    assert!(containers.contains(&"default/web") && containers.contains(&format!("default/{WORKER}").as_str()));
    let names: Vec<_> = index(&sandbox.path("out"))["manifests"].as_array().unwrap().clone();
    assert_eq!(names.len(), 7, "two each, and the image once");
    sandbox.dewar(&["verify", "out"]).exits(0);
    let one = sandbox.dewar(&["-n", "k8s.io", "checkpoint", "--all", "-o", "one", "--json"]).exits(0).json();
    assert_eq!(one.as_array().unwrap().len(), 1);
}

#[test]
fn a_report_has_the_figures() {
    let sandbox = Sandbox::store();
    let mut report = sandbox.dewar(&["checkpoint", "web", "-o", "out", "--ref", "web", "--json"]).exits(0).json();
    report[0]["total_ms"] = 0.into();
    report[0]["sizes"]["rw_layer"] = 0.into();
    let text = serde_json::to_string_pretty(&report).unwrap();
    insta::assert_snapshot!(sandbox.plain(&text), @r#"
    [
      {
        "container": "default/web",
        "ref": "localhost/web:latest",
        "digest": "sha256:…",
        "image": "localhost/shop:1",
        "memory": "none",
        "criu": null,
        "frozen_ms": null,
        "total_ms": 0,
        "hashed_ahead": 0,
        "exited": false,
        "sizes": {
          "rw_layer": 0,
          "criu": 0,
          "raw": 0,
          "volatile": 0,
          "binds": 0
        },
        "files": {
          "regular": 3,
          "directories": 5,
          "symlinks": 0,
          "devices": 0,
          "hard_links": 0,
          "whiteouts": 0,
          "opaque": 0,
          "bytes": 71
        },
        "notes": [],
        "findings": []
      }
    ]
    "#);
}

#[test]
fn a_container_goes_by_many_names() {
    let sandbox = Sandbox::store();
    for (i, name) in ["worker", WORKER, &WORKER[..8], "shop-7d9c/web", "default/web", "w"].iter().enumerate() {
        let out = format!("out{i}");
        let ran = sandbox.dewar(&["checkpoint", name, "-o", &out]);
        // `w` begins the id of one container only.
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
    }
}

#[test]
fn an_image_may_stay_behind() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "out", "--no-image"]).exits(0);
    let whole = index(&sandbox.path("out"));
    assert_eq!(whole["manifests"].as_array().unwrap().len(), 1, "{whole:#}");
    sandbox.dewar(&["verify", "out"]).exits(0);
    let seen = sandbox.dewar(&["inspect", "out"]).exits(0).text();
    assert!(seen.contains("localhost/shop:1 (not in this layout)"), "{seen}");
}

#[test]
fn a_layer_is_compressed_as_asked() {
    let sandbox = Sandbox::store();
    let expected = expected("store/expected.json");
    let types = [("gzip", "tar+gzip"), ("zstd", "tar+zstd"), ("none", "tar")];
    for (compression, ending) in types {
        sandbox.dewar(&["checkpoint", "web", "-o", compression, "--compression", compression]).exits(0);
        sandbox.dewar(&["verify", compression]).exits(0);
        let layout = sandbox.path(compression);
        let whole = index(&layout);
        let checkpoint = document(&layout, whole["manifests"].as_array().unwrap().last().unwrap());
        let media_type = format!("application/vnd.oci.image.layer.v1.{ending}");
        let path = crate::harness::blob_path(&layout, entry(&checkpoint, &media_type));
        // tar tells the compression by itself.
        let listed = std::process::Command::new("tar").arg("-tf").arg(&path).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        for file in record(&expected, "web")["files"].as_object().unwrap().keys() {
            assert!(listed.lines().any(|line| line == file), "{compression}: {listed}");
        }
    }
}

#[test]
fn only_its_owner_can_read_a_bundle() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "out"]).exits(0);
    for entry in walkdir::WalkDir::new(sandbox.path("out")) {
        let entry = entry.unwrap();
        let right = if entry.file_type().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, right, "{}", entry.path().display());
    }
}

#[test]
fn the_stores_are_left_as_they_were() {
    let sandbox = Sandbox::store();
    let before = state(&sandbox);
    sandbox.dewar(&["checkpoint", "--all", "-o", "out"]).exits(0);
    sandbox.dewar(&["ls"]).exits(0);
    for (then, now) in before.iter().zip(state(&sandbox)) {
        assert_eq!(*then, now);
    }
}

/// Path, access, modification and change time of everything in the stores.
fn state(sandbox: &Sandbox) -> Vec<(std::path::PathBuf, i128, i128, i128)> {
    use std::os::unix::fs::MetadataExt;
    let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    let mut all = Vec::new();
    for dir in [sandbox.root(), sandbox.state()] {
        for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
            let entry = entry.unwrap();
            // Reading a folder is ours to do, and relatime would note it.
            let m = entry.metadata().unwrap();
            let accessed = if m.is_dir() { 0 } else { ns(m.atime(), m.atime_nsec()) };
            all.push((entry.path().to_owned(), accessed, ns(m.mtime(), m.mtime_nsec()), ns(m.ctime(), m.ctime_nsec())));
        }
    }
    all
}

#[test]
fn a_bind_mount_is_a_tar_of_its_own() {
    let layout = fixture("layout/web");
    let whole = index(&layout);
    let checkpoint = document(&layout, whole["manifests"].as_array().unwrap().last().unwrap());
    let bind = entry(&checkpoint, "application/vnd.containerd.container.resource.tar");
    assert_eq!(bind["annotations"]["org.dewar.mount.destination"], "/srv/prices");
    let mut archive = tar::Archive::new(File::open(crate::harness::blob_path(&layout, bind)).unwrap());
    let names = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
    assert_eq!(names.collect::<Vec<_>>(), ["./", "teapot"]);
}
