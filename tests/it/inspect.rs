//! `inspect` tells what a bundle holds: ours, and one that containerd wrote.

use std::{collections::BTreeMap, fs, io::Read};

use dewar::criu::image::{self, Kind};
use serde_json::{Value, json};

use crate::harness::{Ran, Sandbox, blob_path, copy_tree, document, entry, expected, fixture, index};

fn inspect(layout: &str, more: &[&str]) -> Ran {
    let path = fixture(&format!("layout/{layout}"));
    Sandbox::empty().dewar(&[&["inspect", path.to_str().unwrap()], more].concat())
}

/// Without what changes when fixtures are made anew: digests, sizes of compressed layers, and how many pages a process has.
fn plain(ran: &Ran) -> String {
    let pages = expected("criu/expected.json")["pages"].as_u64().unwrap();
    let pages = format!("{}.00 KiB of pages", pages / 1024);
    let text = crate::harness::digests_out(&ran.shown()).replace(&pages, "… of pages");
    text.lines().map(|line| line.split(';').next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn our_own_bundle_tells_everything() {
    insta::assert_snapshot!(plain(&inspect("web", &[])), @r#"
    exit 0
    checkpoint   localhost/checkpoint/web:1
    digest       sha256:…
    created      2023-11-14T22:13:20Z
    container    default/web
    image        localhost/shop:1
    runtime      io.containerd.runc.v2
    snapshotter  overlayfs
    command      /bin/web stay
    files        10 entries (3 files, 71 B), 0 deletions, 0 opaque directories
    memory       1 processes, … of pages
    process      1 (parent 0, 1 threads) web
    bind mount   /srv/prices (4.50 KiB)
    "#);
}

#[test]
fn a_checkpoint_by_containerd_tells_what_it_knows() {
    insta::assert_snapshot!(plain(&inspect("ctr", &[])), @r#"
    exit 0
    checkpoint   localhost/ctr:1
    digest       sha256:…
    created
    container
    image        localhost/shop:1
    runtime      io.containerd.runc.v2
    snapshotter  overlayfs
    command      /bin/web stay
    files        9 entries (3 files, 71 B), 0 deletions, 0 opaque directories
    memory       1 processes, … of pages
    process      1 (parent 0, 1 threads) web
    "#);
}

#[test]
fn memory_is_what_crit_decodes() {
    let right = expected("criu/expected.json");
    for layout in ["web", "ctr"] {
        let seen = inspect(layout, &["--json"]).exits(0).json();
        let memory = &seen[0]["memory"];
        let process = &right["pstree"][0];
        let wanted =
            json!([{"pid": process["pid"], "ppid": process["ppid"], "threads": 1, "command": right["command"]}]);
        assert_eq!(memory["processes"], wanted, "{layout}");
        assert_eq!(memory["pages"], right["pages"], "{layout}");
    }
}

#[test]
fn one_of_several_is_chosen_by_name_or_digest() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "--all", "-o", "out"]).exits(0);
    let all = sandbox.dewar(&["inspect", "out", "--json"]).exits(0).json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    for key in ["ref", "digest"] {
        let wanted = all[1][key].as_str().unwrap();
        let one = sandbox.dewar(&["inspect", "out", wanted, "--json"]).exits(0).json();
        assert_eq!(one, json!([all[1]]));
    }
    let ran = sandbox.dewar(&["inspect", "out", "nothing"]).exits(2);
    assert!(ran.stderr.contains("it has: localhost/checkpoint/"), "{}", ran.stderr);
}

#[test]
fn an_empty_layout_holds_nothing_and_a_folder_is_no_layout() {
    let sandbox = Sandbox::empty();
    insta::assert_snapshot!(sandbox.plain(&sandbox.dewar(&["inspect", "state"]).shown()), @r#"
    exit 2
    dewar: an OCI image layout at state (no oci-layout in it) not found; name the directory that dewar checkpoint wrote with -o
    "#);
    dewar::layout::Layout::open_or_create(&sandbox.path("new")).unwrap();
    insta::assert_snapshot!(sandbox.dewar(&["inspect", "new"]).shown(), @"exit 0");
}

#[test]
fn a_process_tells_its_command_line_files_and_mappings() {
    insta::assert_snapshot!(plain(&inspect("web", &["--env"])));
    let told = |more: &[&str]| inspect("web", &[&["--json"], more].concat()).exits(0).json();
    assert!(told(&[])[0].get("processes").is_none(), "only when asked for");
    let short = told(&["--processes"])[0]["processes"]["processes"][0].clone();
    assert!(short.get("environment").is_none(), "secrets are told when asked for");
    assert_eq!(short["args"], json!([{"text": "/bin/web"}, {"text": "stay"}]));
    assert_eq!(short["exe"]["text"], "/bin/web");
    let right = expected("criu/expected.json");
    assert_eq!(short["stored"], right["pages"]);
    let env = told(&["--env"])[0]["processes"]["processes"][0]["environment"].clone();
    assert!(env.as_array().unwrap().contains(&json!({"text": "HOME=/"})), "{env}");
}

#[test]
fn the_layer_is_listed_with_the_digest_of_each_file() {
    let listed = inspect("web", &["--files", "--json"]).exits(0).json();
    let right = expected("store/expected.json");
    let of = |path: &str| listed.as_array().unwrap().iter().find(|entry| entry["path"] == path).unwrap().clone();
    let orders = of("/var/lib/shop/orders.csv");
    assert!(right.to_string().contains(orders["sha256"].as_str().unwrap()), "{orders}");
    assert_eq!((&orders["kind"], &of("/srv")["kind"]), (&json!("file"), &json!("directory")));
    assert_eq!(inspect("web", &["--files"]).exits(0).text().lines().count(), listed.as_array().unwrap().len());
    inspect("web", &["no-such-ref", "--files"]).exits(2);
}

/// The layout `web` with another CRIU tar, made of the members of its own as `change` leaves them.
fn with_images(change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> (Sandbox, Ran) {
    let sandbox = Sandbox::empty();
    copy_tree(&fixture("layout/web"), &sandbox.path("layout"));
    let checkpoint = entry(&index(&sandbox.path("layout")), "localhost/checkpoint/web:1").clone();
    let members = document(&sandbox.path("layout"), &checkpoint);
    let member = entry(&members, "application/vnd.containerd.container.criu.checkpoint.criu.tar");
    let path = blob_path(&sandbox.path("layout"), member);
    let mut images = BTreeMap::new();
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    for member in archive.entries().unwrap() {
        let (mut member, mut bytes) = (member.unwrap(), Vec::new());
        member.read_to_end(&mut bytes).unwrap();
        images.insert(member.path().unwrap().to_string_lossy().into_owned(), bytes);
    }
    change(&mut images);
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in images {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    let ran = sandbox.dewar(&["inspect", "layout", "--env", "--json"]);
    (sandbox, ran)
}

fn processes(change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> Value {
    with_images(change).1.exits(0).json()[0]["processes"].clone()
}

fn pstree(pairs: &[(u32, u32)]) -> Vec<u8> {
    let process = |&(pid, ppid)| image::Process { pid, ppid, pgid: 1, sid: 1, threads: vec![pid] };
    image::image(Kind::Pstree, &pairs.iter().map(process).collect::<Vec<_>>())
}

#[test]
fn a_forged_tree_of_processes_is_told_as_it_stands() {
    for pairs in [&[(1, 2), (2, 1)][..], &[(1, 1)], &[(1, 0), (1, 0)], &[(1, 0), (7, 9)]] {
        let (sandbox, ran) = with_images(|images| drop(images.insert("pstree.img".into(), pstree(pairs))));
        let told = ran.exits(0).json();
        let told = told[0]["processes"]["processes"].as_array().unwrap();
        assert_eq!(told.len(), pairs.len());
        let shown = sandbox.dewar(&["inspect", "layout", "--processes"]).exits(0).text();
        assert_eq!(shown.lines().filter(|line| line.starts_with("process")).count(), pairs.len(), "{shown}");
    }
    // Many names for what stands there once: it is read once.
    let crowd: Vec<_> = (0..50_000).map(|_| (1, 0)).collect();
    let told = processes(|images| drop(images.insert("pstree.img".into(), pstree(&crowd))));
    assert_eq!(told["processes"][1]["notes"], json!(["the image has two processes of this number"]));
}

#[test]
fn pages_of_another_form_are_not_taken_for_memory() {
    let text = |told: &Value| told["processes"][0]["notes"].to_string();
    // One page less than the map says, as compression leaves it.
    let told = processes(|images| images.get_mut("pages-1.img").unwrap().truncate(9000));
    assert!(text(&told).contains("compressed, or in a form of a newer CRIU"), "{told}");
    assert!(told["processes"][0]["args"].is_null() && told["processes"][0]["stored"] == 0, "{told}");
    let told = processes(|images| drop(images.remove("pages-1.img")));
    assert!(text(&told).contains("is not in the tar"), "{told}");
    let told = processes(|images| drop(images.remove("pagemap-1.img")));
    assert!(text(&told).contains("none of its pages are in the image"), "{told}");
    // A field that is not known here.
    let told = processes(|images| {
        let map = images.get_mut("pagemap-1.img").unwrap();
        let entries: Vec<Vec<u8>> =
            image::entries(Kind::Pagemap, map).unwrap().into_iter().map(<[u8]>::to_vec).collect();
        let mut bytes = map[..8].to_vec();
        for (at, mut entry) in entries.into_iter().enumerate() {
            if at == 1 {
                entry.extend([6 << 3 | 2, 2, 8, 1]);
            }
            bytes.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
            bytes.extend(entry);
        }
        *map = bytes;
    });
    assert!(text(&told).contains("compressed"), "{told}");
}

#[test]
fn forged_addresses_and_counts_cost_nothing_and_read_nothing() {
    use dewar::criu::{files, memory::Mm};
    let mm = |mm: Mm| image::image(Kind::Mm, &[mm]);
    let everything = Mm { arg_start: 0, arg_end: u64::MAX, env_start: u64::MAX, env_end: 0, exe: 77 };
    let told = processes(|images| drop(images.insert("mm-1.img".into(), mm(everything))));
    let notes = told["processes"][0]["notes"].to_string();
    assert!(notes.contains("the pages of its command line are not in the image"), "{notes}");
    assert_eq!(told["processes"][0]["environment"], json!([]));
    // A path of any bytes, and one that no longer has a name.
    let file = files::File {
        kind: 1,
        id: 1,
        regular: Some(files::Regular { name: b"/tmp/\x1b[31m\xff".to_vec(), ..files::Regular::default() }),
        ..files::File::default()
    };
    let (sandbox, ran) = with_images(|images| {
        images.insert("files.img".into(), image::image(Kind::Files, &[file]));
        let descriptors: Vec<_> = (0..300_000).map(|fd| files::Descriptor { id: 1, flags: 0, kind: 1, fd }).collect();
        images.insert("fdinfo-2.img".into(), image::image(Kind::Fdinfo, &descriptors));
        let remap = files::Remap { file: 1, remap: 1, kind: Some(1) };
        images.insert("remap-fpath.img".into(), image::image(Kind::Remaps, &[remap]));
    });
    let told = ran.exits(0).json();
    let told = &told[0]["processes"]["processes"][0]["files"];
    assert_eq!(told.as_array().unwrap().len(), 300_000);
    assert_eq!(
        told[0],
        json!({"fd": 0, "kind": "file", "target": {"text": "/tmp/\u{1b}[31m\\xff", "hex": "2f746d702f1b5b33316dff"},
        "position": 0, "deleted": true})
    );
    let shown = sandbox.dewar(&["inspect", "layout", "--processes"]).exits(0).text();
    assert!(
        shown.contains(r"fd 7: file /tmp/\u{1b}[31m\xff (deleted)") && !shown.contains('\u{1b}'),
        "no terminal is driven"
    );
}

#[test]
fn every_image_cut_or_changed_is_told_or_refused() {
    for name in ["core-1.img", "files.img", "fdinfo-2.img", "fs-1.img", "mm-1.img", "pagemap-1.img", "pstree.img"] {
        let whole = with_images(|_| {}).1.exits(0);
        assert!(!whole.stdout.is_empty());
        for step in 0..24 {
            let (_sandbox, ran) = with_images(|images| {
                let bytes = images.get_mut(name).unwrap();
                let at = bytes.len() * (step % 12) / 12;
                if step < 12 { bytes.truncate(at) } else { bytes[at] ^= 0x55 }
            });
            assert!(matches!(ran.code, 0 | 2), "{name} {step}: {}", ran.stderr);
            assert!(!ran.stderr.contains("panicked"), "{name} {step}: {}", ran.stderr);
        }
    }
}
