//! The content store's files against the records, and every byte of them against its digest.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use super::{
    super::locate::with_causes,
    finding::{
        BLOB_DAMAGED, BLOB_MISSING, BLOB_TRUNCATED, BLOB_UNKNOWN, BLOB_UNREADABLE, BLOB_UNRECORDED, Findings,
        INGEST_LEFT,
    },
    images::Images,
    way_in,
};
use crate::{
    containerd::{content::Content, survey::Records},
    digest::{Digest, Hasher},
    error::{At, Error, Result},
    host::{Host, database},
    interrupt, shares,
};

/// Hears how many bytes of how many are hashed.
pub type Progress<'a> = dyn Fn(u64, u64) + Sync + 'a;

/// What is known of the content store.
#[derive(Default)]
pub struct Checked {
    /// How many files it has.
    pub files: usize,
    /// Bytes whose digest was taken.
    pub hashed: u64,
    /// What is wrong with a blob, in a few words.
    pub bad: BTreeMap<Digest, &'static str>,
    /// The blobs that are there.
    pub there: BTreeSet<Digest>,
}

impl Checked {
    /// Why a blob cannot be used.
    pub fn lacks(&self, digest: &Digest) -> Option<&'static str> {
        self.bad.get(digest).copied().or((!self.there.contains(digest)).then_some("is missing"))
    }
}

/// Checks the whole content store.
pub fn check(
    host: &Host,
    meta: &Path,
    records: &Records,
    images: &Images,
    quick: bool,
    progress: &Progress<'_>,
    findings: &mut Findings,
) -> Result<Checked> {
    let content = Content::of(host);
    let recorded = recorded(meta, records, findings);
    let mut check = Check { content: &content, images, checked: Checked::default(), findings };
    let files = check.files(&recorded)?;
    for (digest, record) in &recorded {
        if !check.checked.there.contains(digest) {
            check.bad(&BLOB_MISSING, digest, format!("on record as {}", record.way), "is missing");
        }
    }
    if !quick {
        let hash = |digest: &Digest| hash(&content.path(digest), *digest);
        let (hashed, damaged) = in_parallel(&files, progress, &hash)?;
        check.checked.hashed = hashed;
        for (digest, why) in damaged {
            match why {
                Damage::Other(found) => {
                    check.bad(&BLOB_DAMAGED, &digest, format!("its digest is {found}"), "is damaged")
                }
                Damage::Unreadable(why) => check.bad(&BLOB_UNREADABLE, &digest, why, "cannot be read"),
            }
        }
    }
    check.ingests()?;
    Ok(check.checked)
}

/// A blob's record.
struct Recorded {
    size: i64,
    /// The way to the first record of it.
    way: String,
}

fn recorded(meta: &Path, records: &Records, findings: &mut Findings) -> BTreeMap<Digest, Recorded> {
    let mut all = BTreeMap::new();
    for (ns_name, ns) in &records.namespaces {
        for (text, blob) in &ns.blobs {
            let way = format!("v1/{ns_name}/content/blob/{text}");
            match text.parse::<Digest>() {
                Ok(digest) => drop(all.entry(digest).or_insert(Recorded { size: blob.size, way })),
                Err(_) => findings.add(&BLOB_UNKNOWN, format!("blob {text}"), way_in(meta, way), ""),
            }
        }
    }
    all
}

struct Check<'a> {
    content: &'a Content,
    images: &'a Images,
    checked: Checked,
    findings: &'a mut Findings,
}

impl Check<'_> {
    fn bad(&mut self, code: &super::Code, digest: &Digest, seen: String, word: &'static str) {
        let path = self.content.path(digest);
        self.checked.bad.entry(*digest).or_insert(word);
        self.findings.add(code, self.name(digest), path.display(), seen);
    }

    /// `blob sha256:…, layer of default/x and 2 more images`.
    fn name(&self, digest: &Digest) -> String {
        match self.images.uses.get(digest) {
            None => format!("blob {digest}"),
            Some(uses) if uses.more == 0 => format!("blob {digest}, {}", uses.first),
            Some(uses) => format!("blob {digest}, {} and {} more", uses.first, uses.more),
        }
    }

    /// Looks at every file's name and length; those to be hashed come back.
    fn files(&mut self, recorded: &BTreeMap<Digest, Recorded>) -> Result<Vec<(Digest, u64)>> {
        let mut whole = Vec::new();
        self.content.for_each_file(|file| {
            self.checked.files += 1;
            let place = file.path.display();
            let (Some(digest), size) = (file.digest, file.size) else {
                return self.findings.add(&BLOB_UNKNOWN, "what is no blob", place, "");
            };
            self.checked.there.insert(digest);
            match (size, recorded.get(&digest)) {
                (None, _) => self.bad(&BLOB_UNREADABLE, &digest, "it is no regular file".into(), "is no file"),
                (Some(size), None) => {
                    self.findings.add_sized(&BLOB_UNRECORDED, format!("blob {digest}"), place, size);
                    whole.push((digest, size));
                }
                (Some(size), Some(record)) if i64::try_from(size) != Ok(record.size) => {
                    let seen = format!("{size} bytes, on record are {}", record.size);
                    self.bad(&BLOB_TRUNCATED, &digest, seen, "has another length");
                }
                (Some(size), Some(_)) => whole.push((digest, size)),
            }
        })?;
        Ok(whole)
    }

    fn ingests(&mut self) -> Result<()> {
        for ingest in self.content.ingests()? {
            let name = ingest.name.unwrap_or_else(|| "of unknown name".into());
            let since = ingest.updated.map(|t| format!(", untouched since {t}")).unwrap_or_default();
            self.findings.add_sized(&INGEST_LEFT, format!("ingest {name}{since}"), ingest.path.display(), ingest.size);
        }
        Ok(())
    }
}

/// What is wrong with a file's content.
enum Damage {
    Other(Digest),
    Unreadable(String),
}

/// Hashes all, largest first, on as many threads as there are processors; each holds one buffer.
#[allow(clippy::type_complexity)]
fn in_parallel(
    files: &[(Digest, u64)],
    progress: &Progress<'_>,
    hash: &(dyn Fn(&Digest) -> Result<Hashed> + Sync),
) -> Result<(u64, Vec<(Digest, Damage)>)> {
    let mut order: Vec<_> = files.to_vec();
    order.sort_unstable_by_key(|(digest, size)| (std::cmp::Reverse(*size), *digest));
    let total = order.iter().map(|(_, size)| size).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = |_: &usize| -> Result<Vec<(Digest, Damage)>> {
        let mut damaged = Vec::new();
        while let Some((digest, size)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            interrupt::check()?;
            match hash(digest) {
                Ok(Hashed(found)) if found == *digest => {}
                Ok(Hashed(found)) => damaged.push((*digest, Damage::Other(found))),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(e) => damaged.push((*digest, Damage::Unreadable(with_causes(&e)))),
            }
            progress(done.fetch_add(*size, Ordering::Relaxed) + size, total);
        }
        Ok(damaged)
    };
    let threads: Vec<usize> = (0..shares::cores().min(8)).collect();
    let mut damaged = Vec::new();
    for found in shares::of(&threads, work) {
        damaged.extend(found?);
    }
    damaged.sort_unstable_by_key(|(digest, _)| *digest);
    Ok((total, damaged))
}

struct Hashed(Digest);

fn hash(path: &PathBuf, _: Digest) -> Result<Hashed> {
    let mut file = database::open(path)?;
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 256 << 10]);
    loop {
        interrupt::check()?;
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(Hashed(hasher.finish())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
