//! Same stores, same name, same time: the same bytes.

use std::path::Path;

use crate::harness::{Ran, Sandbox, contents};

fn checkpoint(sandbox: &Sandbox, out: &str, epoch: &str) -> Vec<(std::path::PathBuf, Option<Vec<u8>>)> {
    let mut command = sandbox.command(&["checkpoint", "--all", "-o", out]);
    Ran::of(command.env("SOURCE_DATE_EPOCH", epoch).output().unwrap()).exits(0);
    contents(&sandbox.path(out))
}

#[test]
fn the_same_stores_and_time_make_the_same_bytes() {
    let sandbox = Sandbox::store();
    let first = checkpoint(&sandbox, "one", "1700000000");
    assert_eq!(first, checkpoint(&sandbox, "two", "1700000000"));
    // A second time into the same layout changes nothing.
    assert_eq!(first, checkpoint(&sandbox, "one", "1700000000"));
}

#[test]
fn the_time_is_in_names_and_annotations_only() {
    let sandbox = Sandbox::store();
    let blobs = |all: Vec<(std::path::PathBuf, Option<Vec<u8>>)>| -> Vec<_> {
        all.into_iter().filter(|(path, _)| path.starts_with(Path::new("blobs"))).collect()
    };
    let now = blobs(checkpoint(&sandbox, "now", "1700000000"));
    assert_eq!(now, blobs(checkpoint(&sandbox, "later", "1800000000")));
}

#[test]
fn where_the_stores_lie_does_not_matter() {
    for version in ["1.6", "2.1"] {
        let (Some(one), Some(two)) = (Sandbox::rich(version), Sandbox::rich(version)) else { return };
        let bytes = |sandbox: &Sandbox| {
            let mut command = sandbox.command(&["checkpoint", "rich", "-o", "out"]);
            Ran::of(command.env("SOURCE_DATE_EPOCH", "1").output().unwrap()).exits(0);
            contents(&sandbox.path("out"))
        };
        assert_eq!(bytes(&one), bytes(&two));
    }
}
