//! Databases that are damaged: what is left of them is listed, each record with how sure it is; nothing else ever is.
//!
//! What is right is computed here, from the whole file, by a reader of pages that shares nothing with the salvage: for each
//! record the pages that have its name, its path and its content.

use std::collections::{BTreeMap, BTreeSet};

use dewar::{
    containerd::meta::{Container, MetaDb, Origin},
    host::Host,
};

use crate::harness::{Sandbox, bolt};

const PAGE: usize = 4096;
const DATABASES: [&str; 4] = ["1.6.meta", "1.7.meta", "2.1.meta", "large"];

fn word<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A record as it is compared: where it is, and all that is shown of it.
type Shown = (String, String);

fn shown(record: &Container) -> Shown {
    let Container { image, snapshotter, snapshot_key, runtime, runtime_options, spec, labels, created_at, .. } = record;
    let parts = (image, snapshotter, snapshot_key, runtime, runtime_options, spec, labels, created_at);
    (record.name.to_string(), format!("{parts:?}"))
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

    /// `v1/<ns>/containers/<id>…`: from there on all is a container's own.
    fn owner(way: &[String]) -> Option<String> {
        (way.len() >= 4 && way[0] == "v1" && way[2] == "containers").then(|| format!("{}/{}", way[1], way[3]))
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
