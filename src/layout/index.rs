//! `index.json`: read, and replaced under the layout's lock.

use std::io::Read;

use super::{Layout, Staging, open_regular, replace};
use crate::{
    error::{At, Error, Result},
    oci::{
        image::{Descriptor, Index},
        names,
    },
};

/// More entries than any layout holds; a larger file is an attack.
const MAX_INDEX: u64 = 64 << 20;

impl Layout {
    /// Its `index.json`.
    pub fn index(&self) -> Result<Index> {
        let path = self.dir.join("index.json");
        let mut bytes = Vec::new();
        open_regular(&path)?.take(MAX_INDEX + 1).read_to_end(&mut bytes).at("read", &path)?;
        if bytes.len() as u64 > MAX_INDEX {
            return Err(Error::malformed(path, "is larger than 64 MiB"));
        }
        serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))
    }

    /// Lands the staging's blobs and adds `entries` to `index.json`, in their order: the one step that a reader sees.
    /// An entry whose name is taken replaces the old one; one that is there already, name and digest, stays where it is.
    pub fn commit(&self, staging: &Staging, entries: &[Descriptor]) -> Result<()> {
        let _turn = self.lock()?;
        let mut index = self.index()?;
        staging.land()?;
        for entry in entries {
            add(&mut index.manifests, entry);
        }
        let bytes = serde_json::to_vec(&index).map_err(|e| Error::malformed(self.dir.join("index.json"), e))?;
        replace(&self.dir, "index.json", &bytes)
    }
}

fn add(manifests: &mut Vec<Descriptor>, entry: &Descriptor) {
    let same_name = |old: &Descriptor| old.name().is_some() && old.name() == entry.name();
    if let Some(old) = manifests.iter_mut().find(|old| same_name(old) && old.digest == entry.digest) {
        // Written before there were seals.
        if old.seal().is_none() {
            *old = entry.clone();
        }
        return;
    }
    let gone: Vec<String> = manifests.iter().filter(|old| same_name(old)).map(|old| old.digest.to_string()).collect();
    // What was attached to a checkpoint goes with it.
    let is_about = |old: &Descriptor| old.annotations.get(names::EVIDENCE_OF).is_some_and(|of| gone.contains(of));
    manifests.retain(|old| !same_name(old) && !is_about(old));
    manifests.push(entry.clone());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::Digest, oci::names};

    #[test]
    fn a_name_is_there_once_and_what_has_none_stays() {
        let entry = |name: &str, content: &str| {
            let bare = Descriptor::new(names::MANIFEST, Digest::of(content.as_bytes()), 1);
            if name.is_empty() { bare } else { bare.with(names::IMAGE_NAME, name) }
        };
        let mut all = vec![entry("", "x"), entry("a", "1"), entry("b", "2"), entry("", "x")];
        add(&mut all, &entry("b", "2"));
        assert_eq!(all.len(), 4, "the same again changes nothing");
        add(&mut all, &entry("a", "3"));
        let names: Vec<_> = all.iter().map(|d| d.name().unwrap_or_default()).collect();
        assert_eq!(names, ["", "b", "", "a"], "a new one of an old name goes to the end");
        add(&mut all, &entry("", "x"));
        assert_eq!(all.len(), 5);
        let about = entry("", "record").with(names::EVIDENCE_OF, entry("a", "3").digest.to_string());
        add(&mut all, &about);
        add(&mut all, &entry("b", "4"));
        assert_eq!(all.len(), 6, "what is about another stays");
        add(&mut all, &entry("a", "5"));
        assert!(all.len() == 5 && !all.contains(&about), "what is about one that was replaced goes with it");
    }
}
