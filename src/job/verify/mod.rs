//! `verify`: every descriptor, digest, size, diff id, tar and CRIU image of a layout; all findings, not the first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    fs::{self, File},
    io::{self, Read},
};

use serde::Serialize;

mod evidence;
mod images;
mod raw;
mod sealed;

use images::CriuTar;
use raw::RawTar;

use super::locate::with_causes;

use crate::{
    crypt::Identities,
    digest::{Digest, Hasher},
    error::{Error, Result},
    evidence::sign::Trusted,
    interrupt,
    layout::{Layout, untar},
    oci::{
        account::Account,
        image::{Config, Descriptor, Index, Manifest, Platform},
        names,
        runtime::Spec,
        volatile::Volatile,
    },
    proto::{self, Any, CheckpointOptions},
    tree::summary::MAX_LISTED,
};

/// Something that is not as it should be, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The way to it from `index.json`.
    pub at: String,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// What was looked at, and all that was found wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// Blobs read.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Nothing is wrong if empty.
    pub findings: Vec<Finding>,
}

/// Verifies a whole layout. `Err` means that it could not be looked at.
pub fn verify(layout: &Layout) -> Result<Verdict> {
    verify_trusting(layout, &[])
}

/// The same; with keys in `trust`, each checkpoint must have a record that one of them signed.
pub fn verify_trusting(layout: &Layout, trust: &[Trusted]) -> Result<Verdict> {
    verify_opening(layout, trust, None)
}

/// The same; what is sealed is opened with `keys`, if there are any.
pub fn verify_opening(layout: &Layout, trust: &[Trusted], keys: Option<&Identities>) -> Result<Verdict> {
    let mut walk = Verify { keys, ..Verify::of(layout) };
    let index = layout.index()?;
    walk.top(&index);
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, entry) in index.manifests.iter().enumerate() {
        let at = entry.name().map_or_else(|| format!("index.json entry {i}"), str::to_owned);
        if let Some(name) = entry.name()
            && let Some(first) = names.insert(name, i)
        {
            walk.find(&at, &format!("entries {first} and {i} of index.json have the same name"));
        }
        walk.entry(&at, entry);
        walk.descend(&at, entry, entry.annotations.contains_key(names::IMAGE_OMITTED))?;
    }
    walk.seals(&index);
    walk.records(&index, trust)?;
    walk.strays()?;
    let Verify { sums, findings, bytes, .. } = walk;
    Ok(Verdict { blobs: sums.len(), bytes, findings: findings.into_iter().collect() })
}

/// A blob's own digest and size, or why it has none.
type Sum = std::result::Result<(Digest, u64), String>;

const MISSING: &str = "is missing";

/// A checkpoint is an index in `index.json`, its base image one in that; deeper is damage or an attack on the stack.
const MAX_DEPTH: usize = 16;

struct Verify<'a> {
    layout: &'a Layout,
    /// What each blob's content sums to, or why it cannot be read. Blobs are shared, and summed once.
    sums: HashMap<Digest, Sum>,
    /// What each tar unpacks to, once walked; `None` if it is no whole tar.
    tars: HashMap<Digest, Option<Digest>>,
    /// How many indexes we are in.
    depth: usize,
    /// Documents already walked. A digest cannot contain itself, but a damaged layout may claim anything.
    seen: BTreeSet<(Digest, String)>,
    findings: BTreeSet<Finding>,
    bytes: u64,
    /// Accounts met, with the way to them.
    accounts: Vec<(String, Account)>,
    /// Names in the tars beside, with the way to the checkpoint that they are of.
    beside: BTreeSet<(String, Vec<u8>)>,
    /// Acquisition records met.
    records: Vec<evidence::Met>,
    /// What opens what is sealed.
    keys: Option<&'a Identities>,
    /// Sealed checkpoints met.
    sealed: Vec<(String, Digest)>,
}

impl<'a> Verify<'a> {
    fn of(layout: &'a Layout) -> Self {
        let (sums, tars, seen, findings) = (HashMap::new(), HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let (accounts, beside, records) = (Vec::new(), BTreeSet::new(), Vec::new());
        Self {
            layout,
            sums,
            tars,
            depth: 0,
            seen,
            findings,
            bytes: 0,
            accounts,
            beside,
            records,
            keys: None,
            sealed: Vec::new(),
        }
    }

    fn find(&mut self, at: &str, what: &str) {
        self.findings.insert(Finding { at: at.to_owned(), what: what.to_owned() });
    }

    fn find_if<T>(&mut self, at: &str, result: std::result::Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|e| self.find(at, &e.to_string())).ok()
    }

    /// No digest vouches for `index.json`. Members of other programs are theirs; one that is a bit away from a member that
    /// we look for was that member.
    fn top(&mut self, index: &Index) {
        let at = "index.json";
        if index.schema_version != 2 {
            self.find(at, "its schemaVersion is not 2");
        }
        if index.media_type.as_deref().is_some_and(|media_type| media_type != names::INDEX) {
            self.find(at, "its media type is not that of an index");
        }
        let members = ["mediaType", "manifests", "annotations"];
        index.rest.keys().for_each(|key| self.nearly(at, "member", key, &members));
    }

    /// The same for an entry; and its seal, if it has one.
    fn entry(&mut self, at: &str, entry: &Descriptor) {
        let media_types = [names::INDEX, names::MANIFEST, names::DOCKER_LIST, names::DOCKER_MANIFEST];
        self.nearly(at, "media type", &entry.media_type, &media_types);
        let members = ["mediaType", "annotations", "platform"];
        entry.rest.keys().for_each(|key| self.nearly(at, "member", key, &members));
        if entry.seal() == Some(false) {
            self.find(
                at,
                "its entry in index.json is not as it was written: names, annotations and platform may be wrong",
            );
        }
    }

    fn nearly(&mut self, at: &str, what: &str, found: &str, known: &[&str]) {
        let bits = |right: &str| found.bytes().zip(right.bytes()).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        if let Some(right) = known.iter().find(|right| right.len() == found.len() && bits(right) == 1) {
            self.find(at, &format!("{what} {found:?} is one flipped bit away from {right:?}"));
        }
    }

    /// A checkpoint with an account was written together with sealed entries: its own, and those of its images.
    fn seals(&mut self, index: &Index) {
        for (at, account) in std::mem::take(&mut self.accounts) {
            let name = at.split(" > ").next().unwrap_or_default().to_owned();
            let own = index.manifests.iter().filter(|entry| entry.name() == Some(&name));
            let images = index.manifests.iter().filter(|entry| account.images.contains(&entry.digest));
            if own.chain(images).any(|entry| entry.seal().is_none()) {
                self.find(
                    &name,
                    "its entry in index.json, or that of an image of it, has lost its seal: it was changed",
                );
            }
            for digest in &account.images {
                if !index.manifests.iter().any(|entry| entry.digest == *digest) {
                    self.find(&at, &format!("came with {digest}, which is not in index.json"));
                }
            }
            for kept in account.left_out.iter().filter_map(|lost| lost.kept.as_ref()) {
                let is_there = kept.to_bytes().is_some_and(|path| self.beside.contains(&(name.clone(), path)));
                if !is_there {
                    self.find(&at, &format!("{} is not in the tar beside", kept.path));
                }
            }
        }
    }

    /// Checks a blob against its descriptor, then what it is.
    fn descend(&mut self, at: &str, descriptor: &Descriptor, base_omitted: bool) -> Result<()> {
        let at = format!("{at} > {}", label(descriptor));
        if !self.seen.insert((descriptor.digest, descriptor.media_type.clone())) || !self.blob(&at, descriptor)? {
            return Ok(());
        }
        if descriptor.is_index() {
            if self.depth >= MAX_DEPTH {
                self.find(&at, "indexes are nested too deep to follow");
                return Ok(());
            }
            self.depth += 1;
            let walked = self.index(&at, descriptor, base_omitted);
            self.depth -= 1;
            return walked;
        }
        if descriptor.is_manifest() {
            return self.manifest(&at, descriptor);
        }
        self.leaf(&at, descriptor)
    }

    /// True if the blob is what its descriptor says.
    fn blob(&mut self, at: &str, descriptor: &Descriptor) -> Result<bool> {
        if descriptor.media_type.is_empty() {
            self.find(at, "its descriptor has no media type");
        }
        match self.sum(&descriptor.digest)? {
            Err(why) => self.find(at, &format!("blob {} {why}", descriptor.digest)),
            Ok((_, size)) if size != descriptor.size => {
                self.find(at, &format!("is {size} bytes long, its descriptor says {}", descriptor.size));
            }
            Ok((digest, _)) if digest != descriptor.digest => {
                self.find(at, &format!("blob {} is damaged: its content has {digest}", descriptor.digest));
            }
            Ok(_) => return Ok(true),
        }
        Ok(false)
    }

    /// A blob that cannot be read is a finding like any other; `Err` is for an interrupt only.
    fn sum(&mut self, digest: &Digest) -> Result<Sum> {
        if let Some(known) = self.sums.get(digest) {
            return Ok(known.clone());
        }
        let found = match fs::symlink_metadata(self.layout.blob_path(digest)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(MISSING.to_owned()),
            _ => self
                .layout
                .open_blob(digest)
                .map_err(|e| with_causes(&e))
                .and_then(|file| sum(file).map_err(|e| format!("cannot be read: {e}"))),
        };
        interrupt::check()?;
        self.bytes += found.as_ref().map_or(0, |(_, size)| *size);
        self.sums.insert(*digest, found.clone());
        Ok(found)
    }

    /// What a tar unpacks to; one that serves several images is walked once.
    fn untar(&mut self, at: &str, digest: &Digest) -> Result<Option<Digest>> {
        if let Some(known) = self.tars.get(digest) {
            return Ok(*known);
        }
        let walked = untar::walk(&self.layout.blob_path(digest), |_| Ok(()));
        interrupt::check()?;
        let plain = self.find_if(at, walked.map_err(|e| with_causes(&e)));
        self.tars.insert(*digest, plain);
        Ok(plain)
    }

    /// A small blob; one too large to be what it should be is a finding.
    fn document(&mut self, at: &str, digest: &Digest) -> Option<Vec<u8>> {
        let document = self.layout.document(digest);
        self.find_if(at, document.map_err(|e| with_causes(&e)))
    }

    fn index(&mut self, at: &str, descriptor: &Descriptor, base_omitted: bool) -> Result<()> {
        let children = self.layout.children(descriptor);
        let Some(children) = self.find_if(at, children) else { return Ok(()) };
        let host = Platform::local();
        let is_checkpoint = children.iter().any(|c| c.media_type == names::CHECKPOINT_CONFIG);
        let mut served = 0;
        for child in &children {
            let is_image = child.is_index() || child.is_manifest();
            let local = child.platform.as_ref().is_none_or(|p| p.serves(&host));
            if is_image && base_omitted && is_checkpoint {
                continue;
            }
            // A pull fetches the local platform only: manifests for others, or further ones that would serve, may be absent.
            if is_image && !is_checkpoint && (!local || served > 0) && self.is_missing(&child.digest)? {
                continue;
            }
            served += usize::from(is_image && local);
            self.descend(at, child, base_omitted)?;
        }
        Ok(())
    }

    fn is_missing(&mut self, digest: &Digest) -> Result<bool> {
        Ok(self.sum(digest)?.is_err_and(|why| why == MISSING))
    }

    fn manifest(&mut self, at: &str, descriptor: &Descriptor) -> Result<()> {
        let path = self.layout.blob_path(&descriptor.digest);
        let parsed = self
            .layout
            .document(&descriptor.digest)
            .and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).map_err(|e| Error::malformed(path, e)));
        let Some(manifest) = self.find_if(at, parsed) else { return Ok(()) };
        if manifest.is_artifact() {
            return self.artifact(at, descriptor, manifest);
        }
        let config_at = format!("{at} > config");
        let mut diff_ids = Vec::new();
        if self.blob(&config_at, &manifest.config)?
            && let Some(bytes) = self.document(&config_at, &manifest.config.digest)
        {
            let config = self.find_if(&config_at, serde_json::from_slice::<Config>(&bytes));
            diff_ids = config.unwrap_or_default().rootfs.diff_ids;
            if diff_ids.len() != manifest.layers.len() {
                let what = format!("{} diff ids for {} layers", diff_ids.len(), manifest.layers.len());
                self.find(&config_at, &what);
            }
        }
        for (i, layer) in manifest.layers.iter().enumerate() {
            self.layer(&format!("{at} > layer {i}"), layer, diff_ids.get(i))?;
        }
        Ok(())
    }

    /// A layer of an image: its tar is whole, and sums to its diff id.
    fn layer(&mut self, at: &str, layer: &Descriptor, diff_id: Option<&Digest>) -> Result<()> {
        if !self.blob(at, layer)? || !layer.media_type.contains("tar") {
            return Ok(());
        }
        match (self.untar(at, &layer.digest)?, diff_id) {
            (Some(found), Some(wanted)) if found != *wanted => {
                self.find(at, &format!("unpacks to {found}, the config's diff id is {wanted}"));
            }
            _ => {}
        }
        Ok(())
    }

    /// A member of a checkpoint that is no image.
    fn leaf(&mut self, at: &str, descriptor: &Descriptor) -> Result<()> {
        match descriptor.media_type.as_str() {
            names::CRIU_TAR => self.criu(at, descriptor)?,
            names::CHECKPOINT_CONFIG => {
                let any = self.any(at, descriptor);
                any.and_then(|any| self.find_if(at, serde_json::from_slice::<Spec>(&any.value)));
            }
            names::CHECKPOINT_OPTIONS | names::RUNTIME_OPTIONS => {
                let any = self.any(at, descriptor).filter(|any| any.type_url == proto::CHECKPOINT_OPTIONS);
                any.and_then(|any| self.find_if(at, proto::decode::<CheckpointOptions>(&any.value)));
            }
            names::RAW_TAR => self.raw(at, descriptor)?,
            names::VOLATILE => {
                let document = self.document(at, &descriptor.digest);
                document.and_then(|bytes| self.find_if(at, serde_json::from_slice::<Volatile>(&bytes)));
            }
            names::ACCOUNT => {
                let document = self.document(at, &descriptor.digest);
                let parsed = document.and_then(|bytes| self.find_if(at, serde_json::from_slice::<Account>(&bytes)));
                self.accounts.extend(parsed.map(|account| (at.to_owned(), account)));
            }
            names::RESOURCE_TAR if descriptor.annotations.contains_key(names::BESIDE) => self.beside(at, descriptor)?,
            other if other.contains("tar") => {
                self.untar(at, &descriptor.digest)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn any(&mut self, at: &str, descriptor: &Descriptor) -> Option<Any> {
        let bytes = self.document(at, &descriptor.digest)?;
        self.find_if(at, proto::decode::<Any>(&bytes))
    }

    fn criu(&mut self, at: &str, descriptor: &Descriptor) -> Result<()> {
        let mut images = CriuTar::default();
        let walked = untar::walk(&self.layout.blob_path(&descriptor.digest), |entry| images.take(entry));
        interrupt::check()?;
        self.find_if(at, walked.map_err(|e| with_causes(&e)));
        for what in images.findings() {
            self.find(at, &what);
        }
        Ok(())
    }

    fn raw(&mut self, at: &str, descriptor: &Descriptor) -> Result<()> {
        let mut raw = RawTar::default();
        let walked = untar::walk(&self.layout.blob_path(&descriptor.digest), |entry| raw.take(entry));
        interrupt::check()?;
        self.find_if(at, walked.map_err(|e| with_causes(&e)));
        for what in raw.findings() {
            self.find(at, &what);
        }
        Ok(())
    }

    fn beside(&mut self, at: &str, descriptor: &Descriptor) -> Result<()> {
        let name = at.split(" > ").next().unwrap_or_default();
        let mut held = 0;
        let walked = untar::walk(&self.layout.blob_path(&descriptor.digest), |entry| {
            held += entry.name.len();
            // What more there is no account of ours names.
            if held <= MAX_LISTED {
                let path = entry.name.strip_suffix(b"/").unwrap_or(&entry.name);
                self.beside.insert((name.to_owned(), path.to_vec()));
            }
            Ok(())
        });
        interrupt::check()?;
        self.find_if(at, walked.map_err(|e| with_causes(&e)));
        Ok(())
    }

    /// Blobs that no descriptor names do no harm, but each must be what its name says.
    fn strays(&mut self) -> Result<()> {
        let dir = self.layout.dir().join("blobs/sha256");
        for entry in walkdir::WalkDir::new(&dir).min_depth(1).max_depth(1).sort_by_file_name() {
            let entry = entry.map_err(|e| Error::malformed(&dir, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let at = format!("blobs/sha256/{name}");
            match format!("sha256:{name}").parse::<Digest>() {
                Err(_) => self.find(&at, "is no blob: its name is no digest"),
                Ok(digest) if self.sums.contains_key(&digest) => {}
                Ok(digest) => match self.sum(&digest)? {
                    Ok((found, _)) if found != digest => {
                        self.find(&at, &format!("is damaged: its content has {found}"))
                    }
                    Ok(_) => {}
                    Err(why) => self.find(&at, &why),
                },
            }
        }
        Ok(())
    }
}

fn sum(mut file: File) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut size, mut buffer) = (Hasher::default(), 0, vec![0; 1 << 18]);
    loop {
        interrupt::check().map_err(io::Error::other)?;
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
        size += n as u64;
    }
}

/// A descriptor in a finding's way: what it is, and enough of its digest.
fn label(descriptor: &Descriptor) -> String {
    let what = match descriptor.media_type.as_str() {
        names::CRIU_TAR => "CRIU images",
        names::CHECKPOINT_CONFIG => "spec",
        names::CHECKPOINT_OPTIONS => "dump options",
        names::RUNTIME_OPTIONS => "runtime options",
        names::RESOURCE_TAR if descriptor.annotations.contains_key(names::BESIDE) => "beside",
        names::RESOURCE_TAR => "mount",
        names::RAW_TAR => "raw capture",
        names::VOLATILE => "volatile",
        names::ACCOUNT => "account",
        _ if descriptor.annotations.contains_key(names::EVIDENCE_OF) => "evidence",
        other if other.contains("layer") => "rw layer",
        _ if descriptor.is_index() => "index",
        _ if descriptor.is_manifest() => "manifest",
        other => other,
    };
    format!("{what} {}", descriptor.digest.to_hex().get(..12).unwrap_or_default())
}
