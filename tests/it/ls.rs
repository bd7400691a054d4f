//! `ls` shows what containerd's own `ctr` showed when the fixture was made.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{META_DB, Sandbox, VERSIONS, bolt, expected};

/// containerd's view of the containers, in our words.
fn rows(sandbox: &Sandbox, expected: &Value) -> Vec<Value> {
    let mut rows: Vec<_> = expected["containers"].as_array().unwrap().iter().map(row).collect();
    rows.iter_mut().for_each(|row| row["store"] = sandbox.root().to_str().into());
    rows.sort_by_key(|row| (row["namespace"].to_string(), row["id"].to_string()));
    rows
}

fn row(record: &Value) -> Value {
    let label = |key: &str| record["labels"][key].as_str();
    let mut row = json!({
        "namespace": record["namespace"], "id": record["id"], "name": label("nerdctl/name").unwrap_or_default(),
        "image": record["image"], "snapshotter": record["snapshotter"],
        "status": record["task"].as_str().unwrap_or("none"), "pid": null, "created": record["created"], "record": "live",
    });
    if let (Some(pod), Some(container)) = (label("io.kubernetes.pod.name"), label("io.kubernetes.container.name")) {
        let namespace = label("io.kubernetes.pod.namespace").unwrap();
        row["name"] = format!("{pod}/{container}").into();
        row["names"] = json!([format!("{namespace}/{pod}/{container}")]);
        // Nobody has written CRI's own part of these records.
        row["pod"] = json!({
            "namespace": namespace, "name": pod, "uid": label("io.kubernetes.pod.uid").unwrap_or_default(),
            "kind": "container", "container": container, "attempt": null, "sandbox": null,
        });
    }
    row
}

#[test]
fn the_store_is_listed_as_a_table() {
    insta::assert_snapshot!(Sandbox::store().dewar(&["ls"]).shown(), @r#"
    exit 0
    NAMESPACE  ID                                                                NAME           IMAGE             SNAPSHOTTER  STATUS   PID
    default    87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e  worker         localhost/shop:1  overlayfs    none     -
    default    web                                                               -              localhost/shop:1  overlayfs    stopped  -
    k8s.io     425c89ed5bb78a7623fae60fd8a6f648488168740fe82cf6ad34caa4d07aa972  shop-7d9c/web  localhost/shop:1  overlayfs    none     -
    "#);
}

#[test]
fn every_row_is_what_ctr_said() {
    let sandbox = Sandbox::store();
    let ran = sandbox.dewar(&["ls", "--json"]).exits(0);
    assert_eq!(ran.json(), Value::from(rows(&sandbox, &expected("store/expected.json"))));
}

#[test]
fn the_records_of_every_release_are_read() {
    for version in VERSIONS {
        let sandbox = Sandbox::meta_db(&bolt(&format!("{version}.meta")));
        let mut right = rows(&sandbox, &expected(&format!("containerd/{version}.expected.json")));
        // A stopped task is known by its state directory, which is not here.
        right.iter_mut().for_each(|row| row["status"] = "none".into());
        assert_eq!(sandbox.dewar(&["ls", "--json"]).exits(0).json(), Value::from(right), "{version}");

        let Some(whole) = Sandbox::rich(version) else { continue };
        let right = rows(&whole, &expected(&format!("containerd/{version}.expected.json")));
        assert_eq!(whole.dewar(&["ls", "--json"]).exits(0).json(), Value::from(right), "{version}");
    }
}

#[test]
fn records_behind_branch_pages_and_in_overflow_pages_are_read() {
    let sandbox = Sandbox::meta_db(&bolt("large"));
    let right = rows(&sandbox, &expected("bolt/large.expected.json"));
    assert_eq!(right.len(), 20);
    assert_eq!(sandbox.dewar(&["ls", "--json"]).exits(0).json(), Value::from(right));
}

#[test]
fn a_namespace_hides_the_others() {
    let sandbox = Sandbox::store();
    let count = |ran: crate::harness::Ran| ran.exits(0).json().as_array().unwrap().len();
    assert_eq!(count(sandbox.dewar(&["-n", "k8s.io", "ls", "--json"])), 1);
    assert_eq!(count(sandbox.dewar(&["-n", "nobody", "ls", "--json"])), 0);
    let by_environment = sandbox.command(&["ls", "--json"]).env("CONTAINERD_NAMESPACE", "default").output().unwrap();
    assert_eq!(count(crate::harness::Ran::of(by_environment)), 2);
    assert!(sandbox.dewar(&["-n", "../etc", "ls"]).exits(2).stderr.contains("identifier"));
}

#[test]
fn the_newest_meta_page_may_be_torn() {
    // A torn write of the newest meta leaves the commit before: the same containers here, since it changed none.
    let mut bytes = bolt("2.1.meta");
    let txid = |at: usize| u64::from_le_bytes(bytes[at + 64..at + 72].try_into().unwrap());
    let newest = if txid(0) > txid(4096) { 0 } else { 4096 };
    bytes[newest + 40..newest + 80].fill(0);
    let ran = Sandbox::meta_db(&bytes).dewar(&["ls", "--json"]).exits(1);
    assert!(ran.json().as_array().unwrap().len() >= 8, "{}", ran.text());
    // What the lost commit changed cannot be told, so it is said.
    assert!(ran.stderr.contains("checksum"), "{}", ran.stderr);
    // The older meta is not needed, so its loss is nothing to a reader.
    let mut bytes = bolt("2.1.meta");
    bytes[4096 - newest + 72..4096 - newest + 80].fill(0);
    Sandbox::meta_db(&bytes).dewar(&["ls", "--json"]).exits(0);
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other() {
    let sandbox = Sandbox::store();
    let path = sandbox.root().join(META_DB);
    let mut bytes = fs::read(&path).unwrap();
    // The image name of one container's record: no longer UTF-8. Old pages hold copies; which is live does not matter.
    let worker = crate::harness::WORKER.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(worker.len()).position(|w| w == worker).map(|i| at + i) {
        // Within its own record a container's name stands as its snapshot key, right behind that word.
        if bytes[..found].ends_with(b"snapshotKey") {
            bytes[found] = 0xff;
        }
        at = found + 1;
    }
    fs::write(&path, bytes).unwrap();
    let ran = sandbox.dewar(&["ls", "--json"]).exits(1);
    assert_eq!(ran.json().as_array().unwrap().len(), 2, "{}", ran.text());
    assert!(ran.stderr.contains("a text is not UTF-8"), "{}", ran.stderr);
}
