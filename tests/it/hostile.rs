//! Hostile bytes: fixtures cut at every length and changed at every byte (sampled where they are large). Each time there is
//! an answer or an error, soon; never a panic.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use dewar::{
    bolt::{Bucket, Db, Item},
    containerd::task,
    criu::image::{self as criu, Kind},
    job::{fsck, inspect, list, locate, select, store::Store, verify, whois},
    layout::{Layout, untar},
    proto::{self, Any, CheckpointOptions, RuncOptions},
    record,
};

use crate::{
    harness::{META_DB, Sandbox, blob_path, bolt, copy_tree, document, entry, fixture, index},
    verify::reseal,
};

/// No single call on so small an input may take longer, even in a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Says which change it was, should the call panic; and that it took too long, if it did.
struct Change<'a> {
    what: &'a str,
    how: String,
    started: Instant,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: {}", self.what, self.how);
        } else {
            assert!(self.started.elapsed() < SOON, "{}: {} took {:?}", self.what, self.how, self.started.elapsed());
        }
    }
}

fn change(what: &str, how: String) -> Change<'_> {
    Change { what, how, started: Instant::now() }
}

/// Calls `each` with `bytes` cut at every length, or at `most` of them; always near the start, where the heads are.
fn cuts(what: &str, bytes: &[u8], most: usize, mut each: impl FnMut(&[u8])) {
    for len in sample(bytes.len(), most) {
        let _named = change(what, format!("cut to {len} bytes"));
        each(&bytes[..len]);
    }
}

/// Calls `each` with one byte changed in several ways, at every place, or at `most` of them. Zeroed pages are passed over.
fn flips(what: &str, bytes: &[u8], most: usize, mut each: impl FnMut(&[u8])) {
    let places: Vec<usize> = (0..bytes.len())
        .filter(|&i| bytes[i.saturating_sub(8)..(i + 8).min(bytes.len())].iter().any(|&b| b != 0))
        .collect();
    let mut changed = bytes.to_vec();
    for place in sample(places.len(), most).map(|i| places[i]) {
        let old = bytes[place];
        for new in [old ^ 1, old ^ 0x80, 0, 0xff] {
            let _named = change(what, format!("byte {place} is {new:#x}, was {old:#x}"));
            changed[place] = new;
            each(&changed);
        }
        changed[place] = old;
    }
}

/// Numbers below `len`: all, or the first of them and others evenly spread, with a step that is no power of two.
fn sample(len: usize, most: usize) -> impl Iterator<Item = usize> {
    let (head, step) = if len <= most { (len, 1) } else { (most / 4, (len / (most - most / 4)) | 1) };
    (0..head).chain((head..len).step_by(step))
}

/// Reads everything there is; a hostile file makes a walk no longer than itself.
fn walk(bucket: &Bucket<'_>, depth: usize, steps: &mut usize) {
    if depth > 100 {
        return;
    }
    for entry in bucket.iter() {
        *steps += 1;
        assert!(*steps < 1_000_000, "a walk without end");
        if let Ok((key, item)) = entry {
            let _ = bucket.get(key);
            match item {
                Item::Bucket(below) => walk(&below, depth + 1, steps),
                Item::Value(value) => {
                    let _ = (record::time(value), record::varint(value), record::uvarint(value));
                }
            }
        }
    }
}

fn walk_all(bytes: &[u8]) {
    if let Ok(db) = Db::open(bytes) {
        walk(&db.root(), 0, &mut 0);
    }
}

#[test]
fn bolt_files() {
    let small = bolt("1.6.metadata");
    cuts("1.6.metadata", &small, 1500, walk_all);
    flips("1.6.metadata", &small, 1500, walk_all);
    flips("large", &bolt("large"), 60, walk_all);
    for name in
        ["both-metas-bad", "cut-in-the-middle", "newest-meta-torn", "no-database", "page-zeroed", "looped-branch"]
    {
        let bytes = bolt(&format!("damaged/{name}"));
        cuts(name, &bytes, 30, walk_all);
    }
}

/// Beyond single bytes: the meta's numbers are trusted once its checksum is right.
#[test]
fn a_meta_page_with_a_right_checksum_and_wrong_numbers() {
    let whole = bolt("2.1.metadata");
    let fnv = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    };
    for field in [24, 32, 40, 48, 56, 64] {
        for value in [0, 1, 2, 3, 512, 0x1000, 0xffff, 1 << 31, u64::from(u32::MAX), u64::MAX / 4096, u64::MAX] {
            let mut bytes = whole.clone();
            for page in [0, 4096] {
                let width = if field == 24 { 4 } else { 8 };
                bytes[page + field..page + field + width].copy_from_slice(&value.to_le_bytes()[..width]);
                let sum = fnv(&bytes[page + 16..page + 72]);
                bytes[page + 72..page + 80].copy_from_slice(&sum.to_le_bytes());
            }
            let _named = change("meta", format!("field {field} is {value:#x}"));
            walk_all(&bytes);
        }
    }
}

/// All that a job asks of meta.db, on a changed one.
#[test]
fn containerds_records() {
    let whole = bolt("2.1.meta");
    let sandbox = Sandbox::in_memory();
    fs::create_dir(sandbox.root().join(META_DB).parent().unwrap()).unwrap();
    let (path, host) = (sandbox.root().join(META_DB), sandbox.host());
    flips("2.1.meta", &whole, 250, |bytes| {
        fs::write(&path, bytes).unwrap();
        let Ok(store) = Store::open(host.clone()) else { return };
        let _ = list::list(&store, &select::Filter::default(), list::Detail::All);
        let stores = [store];
        for wanted in ["rich", "default/web", "shop-7d9c/web"] {
            if let Ok((store, container)) = select::find(&stores, None, wanted) {
                let _ = locate::locate(store, container);
            }
        }
    });
}

#[test]
fn the_small_messages() {
    let layout = fixture("layout/web");
    let checkpoint = document(&layout, index(&layout)["manifests"].as_array().unwrap().last().unwrap());
    for member in checkpoint["manifests"].as_array().unwrap() {
        if !member["mediaType"].as_str().unwrap().ends_with("+proto") {
            continue;
        }
        let bytes = fs::read(blob_path(&layout, member)).unwrap();
        let decode = |bytes: &[u8]| {
            if let Ok(any) = proto::decode::<Any>(bytes) {
                let _ = proto::decode::<CheckpointOptions>(&any.value);
                let _ = proto::decode::<RuncOptions>(&any.value);
            }
        };
        cuts("message", &bytes, 4000, decode);
        flips("message", &bytes, 4000, decode);
    }
}

#[test]
fn criu_images() {
    let read = |bytes: &[u8]| {
        for kind in [Kind::Inventory, Kind::Pstree, Kind::Core, Kind::Pagemap, Kind::Stats] {
            let _ = criu::entries(kind, bytes);
        }
        let _ = criu::messages::<criu::Inventory>(Kind::Inventory, bytes);
        let _ = criu::messages::<criu::Process>(Kind::Pstree, bytes);
        let _ = criu::messages::<criu::Core>(Kind::Core, bytes);
        if let Ok(entries) = criu::messages::<criu::Pagemap>(Kind::Pagemap, bytes) {
            let _ = entries.iter().fold(0_u64, |sum, e| sum.saturating_add(e.pages_here()));
        }
    };
    let file = fs::File::open(fixture("criu/ctr.tar")).unwrap();
    for image in tar::Archive::new(file).entries().unwrap() {
        let mut image = image.unwrap();
        let name = image.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut image, &mut bytes).unwrap();
        if !name.starts_with("pages-") {
            cuts(&name, &bytes, 3000, read);
            flips(&name, &bytes, 600, read);
        }
    }
}

#[test]
fn tars() {
    let sandbox = Sandbox::in_memory();
    let path = sandbox.path("tar");
    let walk = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut read = 0;
        let _ = untar::walk(&path, |entry| {
            read += std::io::copy(entry.content, &mut std::io::sink())?;
            Ok(())
        });
        assert!(read < 100 << 20, "{read} bytes from {}", bytes.len());
    };
    let layout = fixture("layout/web");
    let checkpoint = document(&layout, index(&layout)["manifests"].as_array().unwrap().last().unwrap());
    let gzip = fs::read(blob_path(&layout, entry(&checkpoint, "application/vnd.oci.image.layer.v1.tar+gzip"))).unwrap();
    cuts("gzip layer", &gzip, 1000, walk);
    flips("gzip layer", &gzip, 500, walk);
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(gzip.as_slice()), &mut plain).unwrap();
    cuts("plain layer", &plain, 500, walk);
    flips("plain layer", &plain, 700, walk);
}

/// A number in a tar's header may promise anything.
#[test]
fn a_tar_that_promises_more_than_it_has() {
    let sandbox = Sandbox::empty();
    let path = sandbox.path("tar");
    let kinds = [
        tar::EntryType::Regular,
        tar::EntryType::XHeader,
        tar::EntryType::XGlobalHeader,
        tar::EntryType::GNULongName,
        tar::EntryType::GNULongLink,
        tar::EntryType::GNUSparse,
        tar::EntryType::Directory,
    ];
    for kind in kinds {
        for size in [1, 511, 513, 1 << 24, (1 << 24) + 1, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let mut header = tar::Header::new_gnu();
            header.set_path("x").unwrap();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(b"30 path=short\n");
            let _named = change("tar", format!("{kind:?} of {size} bytes"));
            fs::write(&path, &bytes).unwrap();
            let _ = untar::walk(&path, |entry| std::io::copy(entry.content, &mut std::io::sink()).map(drop));
        }
    }
    // Pax records that are none.
    for records in [
        "",
        "0 \n",
        "3 \n",
        "-1 path=x\n",
        "99999999999999999999 path=x\n",
        "13 size=-5\n",
        "10 path=x",
        "12 size=\u{663}\n",
        "9 path=x\n9 path=x\n",
        "path=x\n",
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(records.len() as u64);
        builder.append_data(&mut header, "pax", records.as_bytes()).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(3);
        builder.append_data(&mut header, "file", &b"abc"[..]).unwrap();
        fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let _named = change("pax", records.to_owned());
        let _ = untar::walk(&path, |_| Ok(()));
    }
}

/// A small blob that unpacks to a lot is read as a stream.
#[test]
fn a_layer_that_unpacks_to_a_lot_takes_no_memory() {
    let sandbox = Sandbox::empty();
    let zeros = std::io::Read::take(std::io::repeat(0), 64 << 20);
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(64 << 20);
    header.set_cksum();
    let mut whole = std::io::Read::chain(&header.as_bytes()[..], zeros);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut whole, &mut packed).unwrap();
    fs::write(sandbox.path("bomb"), packed.finish().unwrap()).unwrap();
    let before = peak();
    untar::walk(&sandbox.path("bomb"), |_| Ok(())).unwrap();
    assert!(peak() - before < 32 << 10, "{} KiB more", peak() - before);
}

/// The most memory this process ever had, in KiB (proc(5), `VmHWM`).
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn judge(layout: &Path) -> Option<usize> {
    let layout = Layout::open(layout).ok()?;
    let _ = inspect::inspect(&layout, None, inspect::Depth::Environments);
    verify::verify(&layout).ok().map(|verdict| verdict.findings.len())
}

#[test]
fn a_layout_with_any_byte_of_a_blob_changed_is_not_sound() {
    let sandbox = Sandbox::in_memory();
    let dir = sandbox.path("layout");
    copy_tree(&fixture("layout/web"), &dir);
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        for place in sample(bytes.len(), 24) {
            let _named = change("blob", format!("{} at {place}", path.display()));
            changed[place] ^= 0x10;
            fs::write(&path, &changed).unwrap();
            assert!(judge(&dir) > Some(0), "{} changed at {place} passes for sound", path.display());
            changed[place] = bytes[place];
        }
        for len in sample(bytes.len(), 8) {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(judge(&dir) > Some(0), "{} cut to {len} passes for sound", path.display());
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(judge(&dir), Some(0));
}

#[test]
fn an_index_with_any_byte_changed_is_judged() {
    let sandbox = Sandbox::in_memory();
    let dir = sandbox.path("layout");
    copy_tree(&fixture("layout/web"), &dir);
    for name in ["index.json", "oci-layout"] {
        let bytes = fs::read(dir.join(name)).unwrap();
        let write_and_judge = |changed: &[u8]| {
            fs::write(dir.join(name), changed).unwrap();
            judge(&dir);
        };
        cuts(name, &bytes, 200, write_and_judge);
        flips(name, &bytes, 120, write_and_judge);
        fs::write(dir.join(name), &bytes).unwrap();
    }
}

/// Behind right digests the readers of the contents are reached.
#[test]
fn a_layout_whose_digests_were_made_right_again_is_judged() {
    let sandbox = Sandbox::in_memory();
    let whole = fixture("layout/web");
    let checkpoint = document(&whole, index(&whole)["manifests"].as_array().unwrap().last().unwrap());
    for (i, member) in checkpoint["manifests"].as_array().unwrap().iter().enumerate().skip(1) {
        let bytes = fs::read(blob_path(&whole, member)).unwrap();
        let mut changed = bytes.clone();
        for place in sample(bytes.len(), 40) {
            let dir = sandbox.path(&format!("{i}-{place}"));
            copy_tree(&whole, &dir);
            changed[place] ^= 0xff;
            let _named = change("member", format!("{} at {place}", member["mediaType"]));
            reseal(&dir, &blob_path(&dir, member), &changed);
            assert!(judge(&dir).is_some(), "{} at {place}", member["mediaType"]);
            changed[place] = bytes[place];
            fs::remove_dir_all(dir).unwrap();
        }
    }
}

#[test]
fn documents_that_point_in_circles_or_nowhere() {
    let sandbox = Sandbox::empty();
    let cases = [
        // An index of itself cannot be made with a right digest; one that names its own file by a wrong one can.
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:SELF","size":1}]}"#,
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:SELF","size":-1}]}"#,
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"","digest":"sha256:SELF","size":18446744073709551615}]}"#,
        r#"{"schemaVersion":2,"manifests":{}}"#,
        r#"{"schemaVersion":"2","manifests":[]}"#,
        "null",
        "\u{feff}{}",
    ];
    for (i, case) in cases.iter().enumerate() {
        let dir = sandbox.path(&i.to_string());
        Layout::open_or_create(&dir).unwrap();
        let name = "5".repeat(64);
        let text = case.replace("SELF", &name);
        fs::write(dir.join("blobs/sha256").join(name), &text).unwrap();
        fs::write(dir.join("index.json"), &text).unwrap();
        let _named = change("circle", text);
        assert_ne!(judge(&dir), Some(0), "{case}");
    }
    // Brackets deeper than any stack.
    let dir = sandbox.path("deep");
    Layout::open_or_create(&dir).unwrap();
    fs::write(dir.join("index.json"), format!(r#"{{"manifests":{}"#, "[".repeat(200_000))).unwrap();
    assert_eq!(judge(&dir), None);
}

/// Each index holds the next: sound to the letter, and as deep as the layout has blobs.
#[test]
fn indexes_nested_without_end_do_not_exhaust_the_stack() {
    let sandbox = Sandbox::in_memory();
    let dir = sandbox.path("nested");
    let layout = Layout::open_or_create(&dir).unwrap();
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut text = r#"{"schemaVersion":2,"manifests":[]}"#.to_owned();
    for _ in 0..20_000 {
        let digest = dewar::digest::Digest::of(text.as_bytes());
        fs::write(layout.blob_path(&digest), &text).unwrap();
        let size = text.len();
        text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{kind}","digest":"{digest}","size":{size}}}]}}"#
        );
    }
    fs::write(dir.join("index.json"), text).unwrap();
    let findings = dewar::job::verify::verify(&layout).unwrap().findings;
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("too deep"), "{}", findings[0]);
}

#[test]
fn blobs_that_are_no_files() {
    for make in [
        |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        |path: &Path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap(),
        |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        |path: &Path| fs::create_dir(path).unwrap(),
    ] {
        let sandbox = Sandbox::empty();
        let dir = sandbox.path("layout");
        copy_tree(&fixture("layout/web"), &dir);
        let checkpoint = document(&dir, index(&dir)["manifests"].as_array().unwrap().last().unwrap());
        for member in checkpoint["manifests"].as_array().unwrap() {
            let path = blob_path(&dir, member);
            fs::remove_file(&path).unwrap();
            make(&path);
        }
        let ran = std::process::Command::new("timeout")
            .args(["--signal=KILL", "20", crate::harness::DEWAR, "verify"])
            .arg(&dir)
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(1), "{}", String::from_utf8_lossy(&ran.stderr));
        let ran = std::process::Command::new("timeout")
            .args(["--signal=KILL", "20", crate::harness::DEWAR, "inspect"])
            .arg(&dir)
            .output()
            .unwrap();
        assert_eq!(ran.status.code(), Some(2), "{}", String::from_utf8_lossy(&ran.stdout));
    }
}

/// What a task's directory holds is the shim's and the runtime's; it may be anything.
#[test]
fn a_task_directory_of_any_content() {
    let sandbox = Sandbox::store();
    let host = sandbox.host();
    let store = Store::open(host.clone()).unwrap();
    let dir = sandbox.state().join("io.containerd.runtime.v2.task/default/web");
    let who = dewar::id::ContainerRef { namespace: "default".parse().unwrap(), id: "web".parse().unwrap() };
    for name in ["options.json", "init.pid"] {
        let path = dir.join(name);
        for content in [
            "",
            "{",
            "[]",
            "null",
            r#"{"root":7}"#,
            r#"{"root":"/a\u0000b"}"#,
            "-1",
            "99999999999999999999",
            "12\n\n",
            "\u{0}",
        ] {
            fs::write(&path, content).unwrap();
            let _named = change(name, content.to_owned());
            let _ = task::read(&host, &who);
            let _ = list::list(&store, &select::Filter::default(), list::Detail::All);
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _named = change(name, "a FIFO".to_owned());
        assert!(task::read(&host, &who).unwrap().unwrap().damage.is_some());
        fs::remove_file(&path).unwrap();
    }
}

/// The runtime's own state, as `ls` reads it.
#[test]
fn a_runtime_state_of_any_content() {
    let sandbox = Sandbox::store();
    let host = sandbox.host();
    let bundle = sandbox.state().join("io.containerd.runtime.v2.task/default/web");
    let state = serde_json::json!({
        "init_process_pid": 1, "init_process_start": 1,
        "config": {"rootfs": bundle.join("rootfs"), "labels": [format!("bundle={}", bundle.display())]},
        "cgroup_paths": {"freezer": "/sys/fs/cgroup/freezer/default/web"}, "external_descriptors": ["/dev/null"],
    });
    let path = host.runc_root.join("default/web/state.json");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = state.to_string().into_bytes();
    let store = Store::open(host).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let _ = list::list(&store, &select::Filter::default(), list::Detail::All);
    };
    cuts("state.json", &bytes, 60, read);
    flips("state.json", &bytes, 60, read);
}

/// `fsck` and `whois` look at everything, so a changed byte anywhere is met by them.
#[test]
fn whole_stores_with_a_changed_database() {
    let sandbox = Sandbox::in_memory();
    copy_tree(&fixture("store/root"), &sandbox.root());
    copy_tree(&fixture("store/state"), &sandbox.state());
    let host = sandbox.host();
    let things: Vec<String> =
        ["web", "1", "overlayfs/3", "snapshots/5/fs/x", "localhost/shop:1", "537c4f4c89fa", "k8s.io/7/web"]
            .map(str::to_owned)
            .to_vec();
    let look = || {
        if let Ok(report) = fsck::fsck(&host, fsck::Options { deep: true, quick: true, namespace: None }, &|_, _| ()) {
            assert!(report.findings.len() < 100_000, "{} findings", report.findings.len());
        }
        if let Ok(store) = Store::open(host.clone()) {
            let _ = whois::whois(&[store], None, &things);
        }
    };
    for db in [META_DB, "io.containerd.snapshotter.v1.overlayfs/metadata.db"] {
        let path = sandbox.root().join(db);
        let whole = fs::read(&path).unwrap();
        let write_and_look = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            look();
        };
        flips(db, &whole, 60, write_and_look);
        cuts(db, &whole, 30, write_and_look);
        // Whole pages zeroed, or in one another's place.
        let pages = whole.len() / 4096;
        for (from, to) in (0..pages).flat_map(|from| [(from, None), (from, Some((from + 3) % pages))]) {
            let mut bytes = whole.clone();
            let page = to.map_or(vec![0; 4096], |to| whole[to * 4096..][..4096].to_vec());
            bytes[from * 4096..][..4096].copy_from_slice(&page);
            let _named = change(db, format!("page {from} is {to:?}"));
            write_and_look(&bytes);
        }
        fs::write(&path, whole).unwrap();
    }
}

/// A name in the store is not a way out of it, and a document that is no document ends nothing.
#[test]
fn documents_of_images_that_are_not_what_they_are_called() {
    let sandbox = Sandbox::store();
    let blobs = sandbox.root().join("io.containerd.content.v1.content/blobs/sha256");
    for blob in fs::read_dir(&blobs).unwrap() {
        let path = blob.unwrap().path();
        let whole = fs::read(&path).unwrap();
        for other in ["", "{}", "[]", "null", r#"{"manifests":[{}]}"#, r#"{"config":{"digest":"x"},"layers":0}"#] {
            let _named = change("blob", format!("{} is {other:?}", path.display()));
            fs::write(&path, other).unwrap();
            sandbox.dewar(&["fsck"]).exits(1);
            sandbox.dewar(&["whois", "web", "localhost/shop:1"]).exits(0);
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let ran = sandbox.dewar(&["fsck", "--json"]).exits(1);
        assert!(ran.text().contains("blob-unreadable"), "{}", ran.text());
        sandbox.dewar(&["whois", "web", "localhost/shop:1"]).exits(0);
        fs::remove_file(&path).unwrap();
        fs::write(&path, whole).unwrap();
    }
}
