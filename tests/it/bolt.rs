//! The bolt reader on databases that containerd wrote: every key and value, and what is left of damaged ones.

use dewar::{
    bolt::{Bucket, Db, Item, check},
    corrupt::Corrupt,
    digest::Digest,
};

use crate::harness::{bolt, expected};

/// The lines of `bolt` in `fixtures/scene.py`, and what could not be read.
fn walk(bucket: &Bucket<'_>, way: &str, lines: &mut Vec<String>, errors: &mut Vec<Corrupt>) {
    for entry in bucket.iter() {
        match entry {
            Err(e) => {
                errors.push(e);
                assert!(errors.len() < 100_000, "a walk without end");
            }
            Ok((key, Item::Value(value))) => {
                lines.push(format!("{way}/{} = {}\n", hex::encode(key), hex::encode(value)));
            }
            Ok((key, Item::Bucket(below))) => {
                let here = format!("{way}/{}", hex::encode(key));
                lines.push(format!("{here} bucket {}\n", below.sequence));
                walk(&below, &here, lines, errors);
            }
        }
    }
}

fn read(bytes: &[u8]) -> Result<(Vec<String>, Vec<Corrupt>), Corrupt> {
    let db = Db::open(bytes)?;
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    walk(&db.root(), "", &mut lines, &mut errors);
    Ok((lines, errors))
}

#[test]
fn every_key_and_value_is_what_another_reader_finds() {
    let right = expected("bolt/expected.json");
    for (name, right) in right.as_object().unwrap() {
        let (lines, errors) = read(&bolt(name)).unwrap();
        assert_eq!(errors, [], "{name}");
        assert_eq!(lines.len(), right["entries"].as_u64().unwrap() as usize, "{name}");
        assert_eq!(Digest::of(lines.concat().as_bytes()).to_hex(), right["sha256"].as_str().unwrap(), "{name}");
    }
    assert_eq!(right.as_object().unwrap().len(), 7);
    let large = &right["large"];
    assert!(large["branch_pages"].as_u64() > Some(1) && large["overflow_pages"].as_u64() > Some(1), "{large}");
}

/// Every key is found by itself too, not only in passing.
#[test]
fn a_lookup_finds_what_the_walk_finds_and_nothing_else() {
    fn look(bucket: &Bucket<'_>) -> usize {
        let mut found = 0;
        for (key, item) in bucket.iter().map(Result::unwrap) {
            match (bucket.get(key).unwrap().unwrap(), item) {
                (Item::Value(a), Item::Value(b)) => assert_eq!(a, b),
                (Item::Bucket(a), Item::Bucket(b)) => assert_eq!(a.sequence, b.sequence),
                _ => panic!("{key:?} is of two kinds"),
            }
            for other in [[key, b"\0"].concat(), key[..key.len() - 1].to_vec()] {
                let there = bucket.iter().any(|e| e.unwrap().0 == other);
                assert_eq!(bucket.get(&other).unwrap().is_some(), there, "{other:?}");
            }
            if let Item::Bucket(below) = item {
                found += look(&below);
            }
            found += 1;
        }
        found
    }
    for name in ["2.1.meta", "1.6.metadata"] {
        let bytes = bolt(name);
        let db = Db::open(&bytes).unwrap();
        assert_eq!(look(&db.root()), expected("bolt/expected.json")[name]["entries"].as_u64().unwrap() as usize);
    }
    // Through branch pages.
    let bytes = bolt("large");
    let db = Db::open(&bytes).unwrap();
    let way = ["v1", "default", "images"];
    let images = way.iter().fold(db.root(), |bucket, key| bucket.bucket(key).unwrap().unwrap());
    let keys: Vec<_> = images.iter().map(|e| e.unwrap().0).collect();
    assert!(keys.len() > 150);
    assert!(keys.iter().all(|key| images.bucket(key).unwrap().is_some()));
    assert!(images.get(b"localhost/shop/0755").unwrap().is_none());
}

#[test]
fn of_a_torn_commit_the_one_before_is_read() {
    let txid = |bytes: &[u8]| Db::open(bytes).unwrap().commit().0;
    assert_eq!(txid(&bolt("2.1.metadata")), expected("bolt/expected.json")["2.1.metadata"]["txid"].as_u64().unwrap());
    let torn = bolt("damaged/newest-meta-torn");
    assert_eq!(txid(&torn), txid(&bolt("2.1.metadata")) - 1);
    assert!(!read(&torn).unwrap().0.is_empty());
}

#[test]
fn damage_is_said_and_hides_nothing_beside_it() {
    for name in ["both-metas-bad", "empty", "no-database"] {
        assert!(read(&bolt(&format!("damaged/{name}"))).is_err(), "{name}");
    }
    let whole = read(&bolt("large")).unwrap().0.len();
    for name in ["page-zeroed", "looped-branch"] {
        let (lines, errors) = read(&bolt(&format!("damaged/{name}"))).unwrap();
        assert!(!errors.is_empty(), "{name}");
        assert!(lines.len() > whole / 2, "{name}: only {} of {whole} entries", lines.len());
    }
    let (_, errors) = read(&bolt("damaged/cut-in-the-middle")).unwrap();
    assert!(!errors.is_empty());
}

/// Without a memory of pages seen, such a tree takes as many steps as there are ways through it: more than 2^64.
#[test]
fn a_branch_whose_children_are_all_itself_ends() {
    let damage = expected("bolt/damaged/expected.json");
    let (page, size) = (damage["branch"].as_u64().unwrap(), damage["page_size"].as_u64().unwrap() as usize);
    let mut bytes = bolt("large");
    let at = page as usize * size;
    let count = usize::from(u16::from_le_bytes([bytes[at + 10], bytes[at + 11]]));
    assert!(count > 1);
    for element in 0..count {
        let child = at + 16 + 16 * element + 8;
        bytes[child..child + 8].copy_from_slice(&page.to_le_bytes());
    }
    let started = std::time::Instant::now();
    let (_, errors) = read(&bytes).unwrap();
    assert!(!errors.is_empty() && started.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn databases_that_containerd_wrote_have_no_findings() {
    for name in expected("bolt/expected.json").as_object().unwrap().keys() {
        assert_eq!(check(&bolt(name)), [], "{name}");
    }
}

#[test]
fn every_damage_is_found_where_it_is() {
    let damage = expected("bolt/damaged/expected.json");
    let number = |key: &str| damage[key].as_u64().unwrap() as usize;
    let size = number("page_size");
    let found = |name: &str| check(&bolt(&format!("damaged/{name}")));
    let has = |name: &str, at: Option<usize>, why: &str| {
        let findings = found(name);
        let is_it = |f: &Corrupt| f.why.contains(why) && at.is_none_or(|at| f.at == at);
        assert!(findings.iter().any(is_it), "{name}: {findings:?}");
    };
    has("newest-meta-torn", None, "checksum");
    assert_eq!(found("both-metas-bad").len(), 2);
    has("cut-in-the-middle", Some(3 * size + size / 2), "the file ends before");
    has("empty", None, "ends too soon");
    has("no-database", None, "no bbolt magic");
    has("page-zeroed", Some(number("zeroed") * size), "does not carry its own number");
    has("looped-branch", Some(number("branch") * size), "twice");
}

/// Each field of each kind of page, changed: each change is one finding at its page.
#[test]
fn a_changed_field_is_a_finding() {
    let whole = bolt("1.6.meta");
    let u64_at = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap());
    let newest = if u64_at(64) > u64_at(4096 + 64) { 0 } else { 4096 };
    let (root, free) = (u64_at(newest + 32) as usize * 4096, u64_at(newest + 48) as usize * 4096);
    let cases: [(usize, u8, &str); 10] = [
        (root, 0xff, "does not carry its own number"),
        (root + 8, 0x01, ""),
        (root + 8, 0x03, "neither a branch nor a leaf"),
        (root + 10, 0x02, ""),
        (root + 12, 0xff, "runs past the file"),
        (root + 16, 0x02, "unknown flags"),
        (root + 20, 0x11, "overlaps another or leaves a gap"),
        (root + 24, 0x00, ""),
        (free + 8, 0x02, "the page of free pages is none"),
        (free + 16, 0xff, ""),
    ];
    for (at, byte, why) in cases {
        let mut bytes = whole.clone();
        assert_ne!(bytes[at], byte, "{at}");
        bytes[at] = byte;
        let findings = check(&bytes);
        assert!(findings.iter().any(|f| f.why.contains(why)), "byte {at}: {findings:?}");
    }
}
