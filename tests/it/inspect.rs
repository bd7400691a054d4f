//! `inspect` tells what a bundle holds: ours, and one that containerd wrote.

use serde_json::json;

use crate::harness::{Ran, Sandbox, expected, fixture};

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
