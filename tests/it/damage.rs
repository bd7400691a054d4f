//! Databases that are damaged: what is left of them is listed, each record with how sure it is; nothing else ever is.
//!
//! What is right is computed here, from the whole file, by a reader of pages that shares nothing with the salvage: for each
//! record the pages that have its name, its path and its content.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
};

use dewar::{
    containerd::meta::{Container, Image, MetaDb, Origin, SnapshotRecord},
    host::Host,
    id::{SnapshotKey, SnapshotName},
    snapshotter::{Databases, rw_layer},
};

use crate::{
    harness::{META_DB, Sandbox, bolt},
    writer::{number, put_store, wait4},
};

const PAGE: usize = 4096;
const DATABASES: [&str; 4] = ["1.6.meta", "1.7.meta", "2.1.meta", "large"];

fn word<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A record as it is compared: where it is, and all that is shown of it.
type Shown = (String, String);

fn shown(record: &Container) -> Shown {
    let Container { image, snapshotter, snapshot_key, runtime, runtime_options, spec, labels, created_at, .. } = record;
    let texts = format!("{image:?}\u{1f}{snapshotter:?}\u{1f}{snapshot_key:?}\u{1f}{runtime:?}");
    let rest = format!("{runtime_options:?}\u{1f}{:?}\u{1f}{labels:?}\u{1f}{created_at:?}", spec.to_vec());
    (record.name.to_string(), format!("{texts}\u{1f}{rest}"))
}

/// What a reader is told of a file: its records, and how many could not be read.
struct Listed {
    records: Vec<(Shown, Origin)>,
    errors: Vec<String>,
    damage: usize,
}

fn list(bytes: &[u8]) -> Result<Listed, String> {
    let sandbox = Sandbox::meta_db(bytes);
    let host = Host { root: sandbox.root(), state: sandbox.state(), ..Host::default() };
    let meta = MetaDb::read(&host).map_err(|e| e.to_string())?;
    let (mut records, mut errors) = (Vec::new(), Vec::new());
    meta.for_each_container(|record| match record {
        Ok(record) => records.push((shown(&record), record.origin)),
        Err(e) => errors.push(dewar_text(&e)),
    })
    .map_err(|e| dewar_text(&e))?;
    Ok(Listed { records, errors, damage: meta.damage().len() })
}

fn dewar_text(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Each page of the tree with what depends on it: the names of containers, of which it has the name or the content.
struct Pages<'a> {
    file: &'a [u8],
    /// Page → containers whose own bytes, name included, are on it.
    own: BTreeMap<u64, BTreeSet<String>>,
    /// All pages of the tree.
    all: BTreeSet<u64>,
    /// Those that others run on to: they have no header, so their loss may show in nothing.
    rest: BTreeSet<u64>,
}

impl<'a> Pages<'a> {
    fn of(file: &'a [u8]) -> Self {
        let newest = if word::<8>(file, 64) > word::<8>(file, PAGE + 64) { 0 } else { PAGE };
        let mut pages = Pages { file, own: BTreeMap::new(), all: BTreeSet::new(), rest: BTreeSet::new() };
        pages.walk(word::<8>(file, newest + 32), &mut Vec::new());
        pages
    }

    /// `v1/<ns>/containers/<id>…`: from there on all is a container's own; so for images and snapshots.
    fn owner(way: &[String]) -> Option<String> {
        if way.len() == 4 && way[2] == "snapshots" {
            // The snapshotter's name: part of the name of all that is in it.
            return Some(format!("{}\u{1f}", way.join("\u{1f}")));
        }
        let depth = if way.get(2).is_some_and(|part| part == "snapshots") { 5 } else { 4 };
        if way.len() < depth || way[0] != "v1" {
            return None;
        }
        match way[2].as_str() {
            "containers" => Some(format!("{}/{}", way[1], way[3])),
            "images" | "snapshots" => Some(way[..depth].join("\u{1f}")),
            _ => None,
        }
    }

    fn walk(&mut self, page: u64, way: &mut Vec<String>) {
        let at = page as usize * PAGE;
        assert_eq!(word::<8>(self.file, at), page);
        let (flags, count) = (word::<2>(self.file, at + 8), word::<2>(self.file, at + 10) as usize);
        for n in page..=page + word::<4>(self.file, at + 12) {
            self.all.insert(n);
            self.rest.extend((n > page).then_some(n));
            self.own.entry(n).or_default().extend(Self::owner(way));
        }
        for element in (0..count).map(|i| at + 16 + 16 * i) {
            if flags == 1 {
                self.walk(word::<8>(self.file, element + 8), way);
                continue;
            }
            let start = element + word::<4>(self.file, element + 4) as usize;
            let key = &self.file[start..start + word::<4>(self.file, element + 8) as usize];
            way.push(String::from_utf8_lossy(key).into_owned());
            self.own.entry(page).or_default().extend(Self::owner(way));
            let root = word::<8>(self.file, start + key.len());
            if word::<4>(self.file, element) == 1 && root != 0 {
                self.walk(root, way);
            }
            way.pop();
        }
    }
}

/// With one page gone, every record is listed that has no byte on it; and as it was.
#[test]
fn one_lost_page_costs_no_record_that_is_not_on_it() {
    for name in DATABASES {
        let file = bolt(name);
        let whole = list(&file).unwrap();
        assert!(whole.errors.is_empty() && whole.damage == 0 && whole.records.len() > 4, "{name}");
        let right: BTreeMap<Shown, Origin> = whole.records.into_iter().collect();
        let pages = Pages::of(&file);
        let mut wrong = Vec::new();
        for page in &pages.all {
            let mut bytes = file.clone();
            bytes[*page as usize * PAGE..][..PAGE].fill(0);
            let listed = list(&bytes).unwrap_or_else(|e| panic!("{name} without page {page}: {e}"));
            let found: BTreeSet<&Shown> = listed.records.iter().map(|(shown, _)| shown).collect();
            let own = &pages.own[page];
            for record in right.keys().filter(|record| !own.contains(&record.0)) {
                if !found.contains(record) {
                    let near: Vec<_> =
                        listed.records.iter().filter(|(shown, _)| shown.0 == record.0).map(|r| &r.1).collect();
                    wrong.push(format!(
                        "{name} without page {page}: {} is missed, {near:?}, errors {:?}",
                        record.0, listed.errors
                    ));
                }
            }
            if listed.damage == 0 && !pages.rest.contains(page) {
                wrong.push(format!("{name} without page {page}: no damage is told"));
            }
            let strange = listed.records.iter().filter(|(shown, _)| !right.keys().any(|r| r.0 == shown.0));
            wrong.extend(
                strange.map(|(shown, origin)| format!("{name} without page {page}: {} is new: {origin:?}", shown.0)),
            );
        }
        eprintln!("{name}: {} pages, {} wrong", pages.all.len(), wrong.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Images and snapshots are looked up by name: what has no byte on the lost page is found, as it was.
#[test]
fn one_lost_page_costs_no_image_and_no_snapshot_that_is_not_on_it() {
    for name in DATABASES {
        let file = bolt(name);
        let pages = Pages::of(&file);
        let names: BTreeSet<&String> =
            pages.own.values().flatten().filter(|name| name.contains('\u{1f}') && !name.ends_with('\u{1f}')).collect();
        let look_up = |meta: &MetaDb, name: &str| {
            let parts: Vec<&str> = name.split('\u{1f}').collect();
            let namespace = parts[1].parse().unwrap();
            match parts[2] {
                // How sure it is is another matter: the list that had it may be lost.
                "images" => meta
                    .image(&namespace, parts[3])
                    .map(|found| format!("{:?}", found.map(|image| Image { origin: Origin::Live, ..image }))),
                _ => meta.snapshot(&namespace, parts[3], &SnapshotKey(parts[4].into())).map(|found| {
                    format!("{:?}", found.map(|record| SnapshotRecord { origin: Origin::Live, ..record }))
                }),
            }
        };
        let read = |bytes: &[u8]| {
            let sandbox = Sandbox::meta_db(bytes);
            MetaDb::read(&Host { root: sandbox.root(), state: sandbox.state(), ..Host::default() }).unwrap()
        };
        let whole = read(&file);
        let right: BTreeMap<&String, String> =
            names.iter().map(|name| (*name, look_up(&whole, name).unwrap())).collect();
        assert!(right.len() >= 10 && right.values().all(|record| record.starts_with("Some")), "{name}");
        let mut wrong = Vec::new();
        for page in &pages.all {
            let mut bytes = file.clone();
            bytes[*page as usize * PAGE..][..PAGE].fill(0);
            let meta = read(&bytes);
            let is_on = |record: &str| {
                pages.own[page].iter().any(|own| own == record || own.ends_with('\u{1f}') && record.starts_with(own))
            };
            // Of many, another few for each page.
            let few = right.iter().skip(*page as usize % 5).step_by(1 + right.len() / 40);
            for (record, right) in few.filter(|(record, _)| !is_on(record)) {
                let found = look_up(&meta, record).unwrap_or_else(|e| dewar_text(&e));
                if found != *right {
                    wrong.push(format!("{name} without page {page}: {record:?} is {found}, not {right}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{} wrong: {}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    }
}

/// What a whole file holds, and what its own pages hold of states before: all that ever was, as far as it is left.
fn ever(file: &[u8]) -> BTreeSet<Shown> {
    let sandbox = Sandbox::meta_db(file);
    let host = Host { root: sandbox.root(), state: sandbox.state(), ..Host::default() };
    let meta = MetaDb::read(&host).unwrap();
    let mut found = BTreeSet::new();
    meta.for_each_container(|record| found.extend(record.ok().map(|record| shown(&record)))).unwrap();
    meta.for_each_deleted(|record| found.extend([shown(&record)])).unwrap();
    found
}

/// The fields of a record as it is shown.
fn parts(shown: &str) -> Vec<&str> {
    shown.split('\u{1f}').collect()
}

fn is_nothing(part: &str) -> bool {
    ["\"\"", "SnapshotKey(\"\")", "[]", "{}", "None"].contains(&part)
}

/// Deterministic, and another for each seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// Damages `bytes` in one way; the pages of it that are no longer as they were.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, all: &BTreeSet<u64>) -> (String, BTreeSet<u64>) {
    let pages: Vec<u64> = [0, 1].into_iter().chain(all.iter().copied()).collect();
    let pick = |random: &mut Random| pages[random.below(pages.len())];
    let at = |page: u64| page as usize * PAGE;
    match random.below(8) {
        0 => {
            let (page, byte) = (pick(random), random.below(PAGE));
            let bit = 1 << random.below(8);
            bytes[at(page) + byte] ^= bit;
            (format!("bit {bit} of byte {byte} of page {page} flipped"), [page].into())
        }
        1 => {
            let touched: BTreeSet<u64> = (0..=random.below(6)).map(|_| pick(random)).collect();
            touched.iter().for_each(|page| bytes[at(*page)..][..PAGE].fill(0));
            (format!("pages {touched:?} zeroed"), touched)
        }
        2 => {
            let (a, b) = (pick(random), pick(random));
            let (first, second) = (bytes[at(a)..][..PAGE].to_vec(), bytes[at(b)..][..PAGE].to_vec());
            bytes[at(a)..][..PAGE].copy_from_slice(&second);
            bytes[at(b)..][..PAGE].copy_from_slice(&first);
            (format!("pages {a} and {b} swapped"), [a, b].into())
        }
        3 => {
            let length = random.below(bytes.len());
            bytes.truncate(length);
            let first = (length / PAGE) as u64;
            (format!("cut to {length} bytes"), all.iter().copied().filter(|page| *page >= first).collect())
        }
        4 => {
            let page = pick(random);
            for at in (at(page) + 16..at(page) + PAGE).step_by(8) {
                bytes[at..at + 8].copy_from_slice(&page.to_le_bytes());
            }
            (format!("page {page} refers to itself"), [page].into())
        }
        5 => {
            let (from, to) = (pick(random), pick(random));
            let copy = bytes[at(from)..][..PAGE].to_vec();
            bytes[at(to)..][..PAGE].copy_from_slice(&copy);
            (format!("page {from} copied over page {to}"), [to].into())
        }
        6 => {
            let metas = random.below(3);
            let fields = if random.below(2) == 0 { 16..80 } else { 72..80 };
            let which: Vec<usize> = if metas < 2 { vec![metas] } else { vec![0, 1] };
            which.iter().for_each(|page| bytes[page * PAGE..][..PAGE][fields.clone()].fill(0));
            (format!("metas {which:?} lost in bytes {fields:?}"), BTreeSet::new())
        }
        _ => {
            let page = pick(random);
            let from = random.below(PAGE / 512) * 512;
            (from..PAGE).for_each(|i| bytes[at(page) + i] = random.below(256) as u8);
            (format!("page {page} is noise from byte {from}"), [page].into())
        }
    }
}

/// Thousands of damages: none crashes or hangs, none shows a record that never was, and what has no byte on a damaged page
/// is listed as it is.
///
/// `DEWAR_SEEDS=20000 cargo test --test it damage` is a long hunt; `DEWAR_SEED=4711` one seed again.
#[test]
fn whatever_is_damaged_nothing_is_shown_that_never_was() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seeds: Vec<u64> = match number("DEWAR_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("DEWAR_SEEDS").unwrap_or(400)).collect(),
    };
    let files: Vec<_> = DATABASES.iter().map(|name| (name, bolt(name))).collect();
    let known: Vec<_> = files
        .iter()
        .map(|(_, file)| {
            let live: BTreeSet<Shown> = list(file).unwrap().records.into_iter().map(|(shown, _)| shown).collect();
            (Pages::of(file), live, ever(file))
        })
        .collect();
    let mut wrong = Vec::new();
    for seed in &seeds {
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.below(2);
        let which = random.below(files.len());
        let (name, file) = &files[which];
        let (pages, live, ever) = &known[which];
        let mut bytes = file.clone();
        let (what, mut touched) = damage(&mut random, &mut bytes, &pages.all);
        let mut say = |text: String| wrong.push(format!("seed {seed}, {name}, {what}: {text}"));
        crate::fuzz::parsers::in_pieces(&bytes);
        let started = std::time::Instant::now();
        let listed = list(&bytes);
        if started.elapsed() > std::time::Duration::from_secs(10) {
            say(format!("took {:?}", started.elapsed()));
        }
        touched.extend(pages.all.iter().copied().filter(|page| *page as usize * PAGE + PAGE > bytes.len()));
        let lost: BTreeSet<&String> =
            touched.iter().flat_map(|page| pages.own.get(page).into_iter().flatten()).collect();
        let listed = match listed {
            Ok(listed) => listed,
            Err(e) => {
                // With nothing but the first pages left there is nothing to list.
                if live.iter().any(|record| !lost.contains(&record.0)) {
                    say(format!("is not read at all: {e}"));
                }
                continue;
            }
        };
        for (record, origin) in listed.records.iter().filter(|(record, _)| !ever.contains(record)) {
            // A value has no checksum: what is on the damaged page itself may be wrong, if that has still the form of a page.
            let is_own = lost.contains(&record.0);
            let same: Vec<_> = ever.iter().filter(|known| known.0 == record.0).collect();
            let is_known = |part: &&str| same.iter().any(|known| parts(&known.1).contains(part));
            let strange: Vec<_> =
                parts(&record.1).into_iter().filter(|part| !is_nothing(part) && !is_known(part)).collect();
            // Nor has a name: one bit of it changed is another name.
            let is_renamed =
                what.contains("bit") && touched.iter().any(|page| !pages.own[page].is_empty()) && same.is_empty();
            let is_form = ["bit", "noise"].iter().any(|word| what.contains(word))
                || touched.iter().any(|p| pages.rest.contains(p));
            if !is_own && !is_renamed || !is_form && !strange.is_empty() || *origin == Origin::Live && !is_form {
                say(format!("{} never was so (a name known: {}): {origin:?} {strange:?}", record.0, !same.is_empty()));
            }
        }
        let found: BTreeSet<&Shown> = listed.records.iter().map(|(shown, _)| shown).collect();
        for record in live.iter().filter(|record| !lost.contains(&record.0) && !found.contains(record)) {
            say(format!("{} is missed", record.0));
        }
    }
    eprintln!("{} seeds, {} wrong", seeds.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever is damaged, what is made of it stays within four times the file and 64 MiB.
///
/// `DEWAR_RECORDS=100000 DEWAR_SEEDS=200 cargo test --release --test it damaged_file_takes -- --nocapture` is a long look.
#[test]
fn a_damaged_file_takes_little_memory() {
    let sandbox = Sandbox::empty();
    let path = sandbox.root().join(META_DB);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    put_store(&path, number("DEWAR_RECORDS", 400));
    let sound = std::fs::read(&path).unwrap();
    let pages = (2..(sound.len() / 4096) as u64).collect();
    let mut most = 0;
    for seed in 0..number("DEWAR_SEEDS", 12) {
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = sound.clone();
        // Of any kind, and so many pages that little is left of the lists.
        let mut told = Vec::new();
        for _ in 0..1 << random.below(9) {
            told.push(damage(&mut random, &mut bytes, &pages).0);
            // Cut: what is behind is gone.
            if bytes.len() < sound.len() {
                break;
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        for verb in [&["ls", "--deleted"][..], &["fsck"]] {
            let mut child = sandbox.command(verb).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let (exit, used) = wait4(&mut child);
            assert!((0..=2).contains(&exit), "{verb:?} of seed {seed}: {exit}: {told:?}");
            let bound = 4 * bytes.len() as u64 + (64 << 20);
            assert!(used < bound, "{verb:?} of seed {seed}: {used} bytes of {bound}: {told:?}");
            most = most.max(used);
        }
    }
    eprintln!("{} MiB of file: at most {} MiB", sound.len() >> 20, most >> 20);
}

/// Images and snapshots carry how sure they are as containers do: with one page gone, what is told as sure is as it was.
#[test]
fn images_and_snapshots_say_how_sure_they_are() {
    let Some(whole) = Sandbox::rich("2.1") else { return };
    let host = whole.host();
    let (path, meta) = (MetaDb::path(&host), MetaDb::read(&host).unwrap());
    let file = std::fs::read(&path).unwrap();
    let mut containers = Vec::new();
    meta.for_each_container(|record| containers.extend(record)).unwrap();
    let told = |meta: &MetaDb, of: &Container| {
        let image = meta.image(&of.name.namespace, &of.image).ok().flatten();
        let snapshot = meta.snapshot(&of.name.namespace, &of.snapshotter, &of.snapshot_key).ok().flatten();
        [
            image.map(|image| (format!("{} {} {}", image.digest, image.media_type, image.size), image.origin)),
            snapshot.map(|snapshot| (format!("{} {:?}", snapshot.name, snapshot.parent), snapshot.origin)),
        ]
    };
    let right: Vec<_> = containers.iter().map(|container| told(&meta, container)).collect();
    assert!(right.iter().flatten().flatten().all(|(_, origin)| *origin == Origin::Live));
    let mut doubted = 0;
    for page in 2..file.len() / PAGE {
        let mut bytes = file.clone();
        bytes[page * PAGE..][..PAGE].fill(0);
        let Ok(damaged) = MetaDb::of(path.clone(), bytes) else { continue };
        for (container, right) in containers.iter().zip(&right) {
            for (now, right) in told(&damaged, container).into_iter().zip(right) {
                let (Some((now, origin)), Some((right, _))) = (now, right) else { continue };
                assert!(origin != Origin::Live || now == *right, "page {page}, {}: {now}, not {right}", container.name);
                doubted += usize::from(origin != Origin::Live);
            }
        }
    }
    assert!(doubted > 10, "{doubted}");
}

/// A snapshotter's database: with one page gone, the container's files are found in the same directories as before; or it is said
/// that they cannot be found. Never are another's taken for them.
#[test]
fn a_damaged_metadata_db_never_leads_to_another_snapshot() {
    let Some(whole) = Sandbox::rich("2.1") else { return };
    let path = whole.root().join("io.containerd.snapshotter.v1.overlayfs/metadata.db");
    let file = std::fs::read(&path).unwrap();
    let host = whole.host();
    let meta = MetaDb::read(&host).unwrap();
    let mut names = Vec::new();
    meta.for_each_container(|record| {
        if let Ok(Container { name, snapshotter, snapshot_key, .. }) = record
            && snapshotter == "overlayfs"
        {
            names.push(meta.snapshot(&name.namespace, &snapshotter, &snapshot_key).unwrap().unwrap().name);
        }
    })
    .unwrap();
    let find = |databases: &Databases, name: &SnapshotName| rw_layer(&host, databases, "overlayfs", name);
    let known = Databases::default();
    let right: Vec<_> = names.iter().map(|name| find(&known, name).unwrap()).collect();
    assert!(right.len() > 4 && right.iter().all(|found| found.findings.is_empty()));
    let (mut found, mut lost) = (0, 0);
    for page in 0..file.len() / PAGE {
        let mut bytes = file.clone();
        bytes[page * PAGE..][..PAGE].fill(0);
        let is_damaged = bytes != file && !dewar::bolt::check(&bytes).is_empty();
        std::fs::write(&path, &bytes).unwrap();
        let databases = Databases::default();
        for (name, right) in names.iter().zip(&right) {
            let first = find(&known, name).unwrap();
            assert!(first.findings.is_empty(), "a database is read once: {:?}", first.findings);
            match find(&databases, name) {
                Ok(layer) => {
                    assert_eq!(format!("{:?}", layer.rw), format!("{:?}", right.rw), "page {page}, {name}");
                    found += usize::from(is_damaged);
                }
                Err(e) => {
                    assert!(is_damaged, "page {page}, {name}: {}", dewar_text(&e));
                    lost += 1;
                }
            }
        }
    }
    eprintln!("{found} found in damaged databases, {lost} not");
    assert!(found > 2 * lost, "{found} found, {lost} not");
}
