//! `timeline`: the formats, with names that mean harm, and what the command tells of a store.

use std::{collections::BTreeSet, fs};

use dewar::{
    pax::Time,
    timeline::{Entry, Event, Fate, Finding, Head, Kind, Record, TABLE, Times, format, names},
};
use serde_json::Value;

use crate::harness::{Sandbox, VERSIONS};

const FORMATS: [&str; 3] = ["bodyfile", "jsonl", "dfxml"];

fn entry(path: &[u8], kind: Kind, fate: Fate) -> Entry {
    let at = |secs| Some(Time { secs, nanos: 987_654_321 });
    let times = match fate {
        Fate::Deleted => Times { changed: at(2_000_000_005), born: at(2_000_000_000), ..Times::default() },
        _ => Times { modified: at(2_000_000_002), accessed: at(-2), changed: at(1 << 33), born: at(2_000_000_001) },
    };
    Entry {
        path: path.to_vec(),
        kind,
        fate,
        target: (kind == Kind::Symlink).then(|| b"to -> \x1b]0;| (deleted)".to_vec()),
        inode: 7,
        mode: 0o4755,
        uid: 1000,
        gid: u32::MAX,
        links: 1,
        size: 1 << 40,
        times,
        md5: None,
        sha256: None,
        is_unpacked: false,
        findings: Vec::new(),
    }
}

/// Names that could break a line, a field, a mark, an escape or a document.
const NAMES: [&[u8]; 14] = [
    b"etc/plain",
    b"a|b|0|0|0|0|0",
    b"line\nfeed\rtab\t",
    b"\x1b[31mred\x07\x7f",
    b"not-utf8-\xff\xfe\xc3",
    "c1-\u{85}-\u{9b}-\u{fffe}-\u{ffff}".as_bytes(),
    b"gone (deleted)",
    b"a -> b",
    b"back\\slash\\x41\\",
    b"percent%7c%41",
    b"<fileobject>&\"']]>",
    b"#comment",
    b"",
    "\u{202e}txt.exe ünï".as_bytes(),
];

fn records() -> Vec<Record> {
    let mut all: Vec<Entry> = NAMES.iter().map(|name| entry(name, Kind::File, Fate::Changed)).collect();
    all.push(entry(b"a -> b", Kind::Symlink, Fate::Added));
    all.push(entry(b"gone|", Kind::Whiteout, Fate::Deleted));
    let text = "modified | long ago\n<now>".to_owned();
    all.push(Entry {
        md5: Some("d41d8cd98f00b204e9800998ecf8427e".into()),
        sha256: Some("e3b0c442".into()),
        findings: vec![Finding { code: "mtime-before-birth", text }],
        ..entry(b"old", Kind::File, Fate::Added)
    });
    let unpacked = Entry { is_unpacked: true, ..entry(b"dir", Kind::Directory, Fate::Replaced) };
    let never = Time { secs: i64::MAX, nanos: 5 };
    let ever = Time { secs: i64::MIN, nanos: 999_999_999 };
    let far = Times { modified: Some(never), accessed: Some(ever), changed: Some(never), born: None };
    all.extend([unpacked, Entry { times: far, ..entry(b"far", Kind::Fifo, Fate::Added) }]);
    let event = Event {
        time: Time { secs: 981_173_106, nanos: 1 },
        what: "Creation Time",
        source: "image:history",
        message: "built: RUN a | b\n&& <c> 100%41".into(),
        fields: vec![("pid", "1".into())],
    };
    let entries = all.into_iter().map(|entry| Record::Entry(Box::new(entry)));
    entries.chain([Record::Event(event)]).collect()
}

fn written(name: &str) -> String {
    let head = Head { container: "default/<web>".into(), version: "1.2.3" };
    let format = format(name).unwrap();
    let records: String = records().iter().map(|record| (format.record)(&head, record)).collect();
    (format.begin)(&head) + &records + &(format.end)()
}

#[test]
fn every_format_is_in_the_table() {
    assert_eq!(TABLE.iter().map(|format| format.name).collect::<Vec<_>>(), FORMATS);
}

#[test]
fn a_body_file_has_eleven_fields_a_line_whatever_names_hold() {
    let text = written("bodyfile");
    insta::assert_snapshot!(text);
    for line in text.lines() {
        assert_eq!(line.split('|').count(), 11, "{line}");
        assert!(!line.contains(|c: char| c.is_control() || c == '%'), "{line}");
    }
    let mut files = text.lines().map(|line| line.split('|').nth(1).unwrap()).filter(|name| name.starts_with('/'));
    for name in NAMES {
        let told = files.next().unwrap();
        assert_eq!(names::unescaped(&told[1..]).unwrap(), name, "{told}");
    }
}

#[test]
fn json_lines_are_one_event_each_and_exact() {
    let text = written("jsonl");
    insta::assert_snapshot!(text);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for key in ["message", "datetime", "timestamp_desc"] {
            assert!(line[key].is_string(), "{key}: {line}");
        }
        assert!(line["timestamp"].is_i64(), "{line}");
    }
    let paths: Vec<Vec<u8>> = lines.iter().step_by(4).take(NAMES.len()).map(path_of).collect();
    let right: Vec<_> = NAMES.iter().map(|name| [b"/", *name].concat()).collect();
    assert_eq!(paths, right);
}

fn path_of(line: &Value) -> Vec<u8> {
    match line["path_hex"].as_str() {
        Some(digits) => hex::decode(digits).unwrap(),
        None => line["path"].as_str().unwrap().as_bytes().to_vec(),
    }
}

#[test]
fn dfxml_is_well_formed_whatever_names_hold() {
    let text = written("dfxml");
    insta::assert_snapshot!(text);
    let document = roxmltree::Document::parse(&text).unwrap();
    let files: Vec<_> = document.descendants().filter(|node| node.has_tag_name(tag("fileobject"))).collect();
    assert_eq!(files.len(), records().len() - 1);
    for (file, name) in files.iter().zip(NAMES) {
        let told = child(file, "filename");
        assert_eq!(names::unescaped(&told).unwrap(), name, "{told}");
    }
    let deleted = files.iter().filter(|file| child(file, "alloc") == "0").count();
    assert_eq!(deleted, 1);
}

fn tag(name: &str) -> (&str, &str) {
    ("http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML", name)
}

fn child(file: &roxmltree::Node<'_, '_>, name: &str) -> String {
    let found = file.children().find(|node| node.has_tag_name(tag(name)));
    found.and_then(|node| node.text()).unwrap_or_default().to_owned()
}

/// The small store: files without owners or marks, so that anybody can have it.
#[test]
fn a_timeline_has_all_that_diff_lists_and_what_the_records_say() {
    let sandbox = Sandbox::store();
    let listed = sandbox.dewar(&["diff", "web", "--json"]).exits(0).json();
    let right: Vec<_> = listed.as_array().unwrap().iter().map(|change| change["path"].clone()).collect();
    let told = sandbox.dewar(&["timeline", "web", "--format", "jsonl", "--hash"]).exits(0).text();
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_files = |line: &&Value| line["data_type"] == "dewar:file";
    let mut paths: Vec<_> = lines.iter().filter(of_files).map(|line| line["path"].clone()).collect();
    paths.dedup();
    assert_eq!(paths, right);
    for line in lines.iter().filter(|line| line["kind"] == "file" && line["path"] == "/var/lib/shop/orders.csv") {
        let content = sandbox.root();
        let file = walkdir::WalkDir::new(content).into_iter().map(Result::unwrap);
        let file = file.into_iter().find(|entry| entry.path().ends_with("fs/var/lib/shop/orders.csv")).unwrap();
        let digest = dewar::digest::Digest::of(&fs::read(file.path()).unwrap()).to_hex();
        assert_eq!(line["sha256"], digest.as_str());
    }
    let mut sources: Vec<_> = lines.iter().map(|line| line["data_type"].as_str().unwrap()).collect();
    sources.sort_unstable();
    sources.dedup();
    insta::assert_snapshot!(sources.join("\n"), @r"
    dewar:containerd:container
    dewar:containerd:content
    dewar:containerd:image
    dewar:containerd:snapshot
    dewar:file
    dewar:image
    dewar:image:history
    ");
}

#[test]
fn a_timeline_goes_into_a_new_file_only() {
    let sandbox = Sandbox::store();
    for format in FORMATS {
        let args = ["timeline", "web", "--format", format];
        let right = sandbox.dewar(&args).exits(0);
        let file = sandbox.path(format);
        let with_file = [&args[..], &["-o", file.to_str().unwrap()]].concat();
        assert_eq!(sandbox.dewar(&with_file).exits(0).text(), "");
        assert_eq!(fs::read(&file).unwrap(), right.stdout);
        assert!(sandbox.dewar(&with_file).exits(2).stderr.contains("File exists"));
        let odd = sandbox.dewar(&[&args[..], &["--findings"]].concat()).exits(0).text();
        assert!(!odd.contains("srv/www"), "{odd}");
    }
    sandbox.dewar(&["timeline", "web", "--format", "xlsx"]).exits(2);
}

/// An old time set in the container's own layer, and one that is the image's.
#[test]
fn a_time_that_was_set_is_found_and_a_copied_one_is_not() {
    let sandbox = Sandbox::store();
    let find = |end: &str| {
        let all = walkdir::WalkDir::new(sandbox.root()).into_iter().map(Result::unwrap);
        let mut found: Vec<_> = all.map(walkdir::DirEntry::into_path).filter(|path| path.ends_with(end)).collect();
        found.sort();
        found
    };
    let orders = find("fs/var/lib/shop/orders.csv").pop().expect("the fixture has it");
    let upper = orders.ancestors().nth(4).unwrap().to_owned();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(981_173_106);
    let set = |path: &std::path::Path| fs::File::open(path).unwrap().set_modified(old).unwrap();
    // A file of the image's, copied up as overlay does it.
    let below = find("fs/etc").into_iter().find(|dir| !dir.starts_with(&upper)).unwrap();
    fs::write(below.join("copied"), "x").unwrap();
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/copied"), "x").unwrap();
    [below.join("copied"), upper.join("etc/copied"), orders].iter().for_each(|path| set(path));
    for format in FORMATS {
        let ran = sandbox.dewar(&["timeline", "web", "--format", format, "--findings"]).exits(1);
        let text = ran.text();
        assert!(text.contains("mtime-before-birth") && text.contains("shop/orders.csv"), "{text}");
        assert!(!text.contains("etc/copied"), "{text}");
        assert!(
            ran.stderr.contains("/var/lib/shop/orders.csv: modified 2001-02-03T04:05:06.000000000+00:00"),
            "{}",
            ran.stderr
        );
        let whole = sandbox.dewar(&["timeline", "web", "--format", format]).exits(1).text();
        assert!(whole.contains("etc/copied"), "{whole}");
    }
}

/// Every kind of file, by an overlay and by two trees: what is there now is what the layer adds and changes.
#[test]
fn a_timeline_of_any_snapshotter_has_what_diff_lists() {
    for version in VERSIONS {
        let Some(sandbox) = Sandbox::rich(version) else { return };
        for container in ["rich", "flat"] {
            let name = format!("default/{container}");
            let listed = sandbox.dewar(&["diff", &name, "--json"]).json();
            let told = sandbox.dewar(&["timeline", &name, "--format", "jsonl", "--hash"]);
            let lines: Vec<Value> = told.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let files: Vec<_> = lines.iter().filter(|line| line["data_type"] == "dewar:file").collect();
            let is_gone = |line: &&&Value| line["fate"] == "deleted";
            let paths = |of: &mut dyn Iterator<Item = &Value>| of.map(path_of).collect::<BTreeSet<_>>();
            let changes = |letters: &[&str]| {
                let all = listed.as_array().unwrap().iter();
                paths(&mut all.filter(|change| letters.contains(&change["change"].as_str().unwrap())))
            };
            let there = paths(&mut files.iter().filter(|line| !is_gone(line)).copied());
            let gone = paths(&mut files.iter().filter(is_gone).copied());
            assert_eq!(there, changes(&["A", "C"]), "{version} {container}");
            // What an opaque directory hides has no mark of its own.
            assert!(gone.is_subset(&changes(&["D"])), "{version} {container}: {gone:?}");
            assert_eq!(gone.is_empty(), container == "flat", "nothing was deleted in it");
            let hashed = files.iter().filter(|line| line["kind"] == "file" && line["sha256"].is_string()).count();
            assert_eq!(hashed, files.iter().filter(|line| line["kind"] == "file").count());
        }
    }
}
