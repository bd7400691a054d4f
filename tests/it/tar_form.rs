//! `-o x.tar` and `-o -`: the same layout as one plain tar.

use std::{fs, io::Read};

use crate::harness::{Sandbox, contents};

const EPOCH: &str = "1700000000";

/// Names, kinds and contents, in order.
fn entries(tar: &[u8]) -> Vec<(String, tar::EntryType, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        (name, entry.header().entry_type(), content)
    });
    entries.collect()
}

#[test]
fn the_tar_is_the_directory_in_a_fixed_order() {
    let sandbox = Sandbox::store();
    let run = |out: &str| {
        let output =
            sandbox.command(&["checkpoint", "web", "-o", out]).env("SOURCE_DATE_EPOCH", EPOCH).output().unwrap();
        crate::harness::Ran::of(output).exits(0)
    };
    let digest = run("dir").text();
    assert_eq!(run("x.tar").text(), digest);
    let streamed = run("-");
    assert_eq!(streamed.stderr, digest, "the digest goes where the tar does not");
    let tar = fs::read(sandbox.path("x.tar")).unwrap();
    assert!(tar == streamed.stdout, "both forms are one");

    let found = entries(&tar);
    let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names[..4], ["oci-layout", "index.json", "blobs/", "blobs/sha256/"]);
    assert!(names[4..].is_sorted() && names[4..].iter().all(|n| n.starts_with("blobs/sha256/")), "{names:?}");
    let files = contents(&sandbox.path("dir")).into_iter().filter_map(|(path, content)| Some((path, content?)));
    let mut in_tar: Vec<_> = found
        .into_iter()
        .filter(|(_, kind, _)| kind.is_file())
        .map(|(name, _, content)| (std::path::PathBuf::from(name), content))
        .collect();
    in_tar.sort();
    let mut in_dir: Vec<_> = files.collect();
    in_dir.sort();
    assert_eq!(in_tar, in_dir);
}

#[test]
fn other_programs_read_it() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "-o", "x.tar"]).exits(0);
    fs::create_dir(sandbox.path("unpacked")).unwrap();
    let mut command = std::process::Command::new("tar");
    command.arg("-xf").arg(sandbox.path("x.tar")).arg("-C").arg(sandbox.path("unpacked"));
    assert!(command.status().unwrap().success());
    sandbox.dewar(&["verify", "unpacked"]).exits(0);
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let sandbox = Sandbox::store();
    fs::write(sandbox.path("x.tar"), "precious").unwrap();
    insta::assert_snapshot!(sandbox.dewar(&["checkpoint", "web", "-o", "x.tar"]).shown(), @r#"
    exit 2
    dewar: x.tar exists and is not overwritten; nothing was written; choose another name
    "#);
    assert_eq!(fs::read(sandbox.path("x.tar")).unwrap(), b"precious");
    assert_eq!(fs::read_dir(sandbox.path("")).unwrap().count(), 3, "root, state and the file");
}

#[test]
fn nothing_is_left_when_it_cannot_be_done() {
    let sandbox = Sandbox::store();
    sandbox.dewar(&["checkpoint", "web", "--task", "always", "-o", "x.tar"]).exits(2);
    let piped = sandbox.dewar(&["checkpoint", "web", "--task", "always", "-o", "-"]).exits(2);
    assert!(piped.stdout.is_empty());
    assert_eq!(fs::read_dir(sandbox.path("")).unwrap().count(), 2, "root and state");
}
