//! Acquisition records: whether they are whole, say what is so, and are signed by whom they should.
//!
//! A record is anybody's document, as all of a layout: what it is about is looked up, never descended into; so records of
//! records lead nowhere.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read},
};

use super::Verify;
use crate::{
    digest::Digest,
    error::Result,
    evidence::{self, Document, Output, Record, Source, sign::Trusted},
    interrupt,
    layout::read::MAX_DOCUMENT,
    oci::{
        image::{Descriptor, Index, Manifest},
        names,
    },
};

/// A record that was met.
pub(super) struct Met {
    at: String,
    /// The checkpoint index that it is about, as the artifact says.
    about: Option<Digest>,
    /// Its bytes and its signature, if both could be read.
    signed: Option<(Vec<u8>, Vec<u8>)>,
}

/// No line of the list of sources is longer: a path of 64 KiB in hex and in text, and a few numbers.
const MAX_LINE: u64 = 1 << 20;

impl Verify<'_> {
    /// A manifest that is no image: its blobs are what it says; and what it is about, if it is a record of ours.
    pub(super) fn artifact(&mut self, at: &str, entry: &Descriptor, manifest: Manifest) -> Result<()> {
        self.blob(&format!("{at} > config"), &manifest.config)?;
        let mut whole = true;
        for (i, layer) in manifest.layers.iter().enumerate() {
            whole &= self.blob(&format!("{at} > layer {i}"), layer)?;
        }
        match manifest.artifact_type.as_deref() {
            Some(names::SEALED) if whole => return self.sealed(at, entry, &manifest),
            Some(names::EVIDENCE) => {}
            _ => return Ok(()),
        }
        if entry.seal().is_none() {
            self.find(at, "its entry in index.json has lost its seal: it was changed");
        }
        let about = manifest.subject.as_ref().map(|subject| subject.digest);
        if entry.annotations.get(names::EVIDENCE_OF) != about.map(|digest| digest.to_string()).as_ref() {
            self.find(at, "its entry in index.json and its subject name different checkpoints");
        }
        let mut met = Met { at: at.to_owned(), about, signed: None };
        if whole {
            self.record(at, &manifest, &mut met)?;
        }
        self.records.push(met);
        Ok(())
    }

    /// The one layer of that type.
    fn part<'m>(&mut self, at: &str, manifest: &'m Manifest, media_type: &str) -> Option<&'m Descriptor> {
        let mut parts = manifest.layers.iter().filter(|layer| layer.media_type == media_type);
        let part = parts.next();
        if part.is_none() || parts.next().is_some() {
            self.find(at, &format!("has not exactly one layer of type {media_type}"));
        }
        part
    }

    fn record(&mut self, at: &str, manifest: &Manifest, met: &mut Met) -> Result<()> {
        let [record, sums] =
            [names::EVIDENCE, names::EVIDENCE_SUMS].map(|media_type| self.part(at, manifest, media_type).cloned());
        let (Some(record), Some(sums)) = (record, sums) else { return Ok(()) };
        let Some(bytes) = self.document(at, &record.digest) else { return Ok(()) };
        let Some(record) = self.find_if(at, serde_json::from_slice::<Record>(&bytes)) else { return Ok(()) };
        let is =
            |document: Document, layer: &Descriptor| (document.digest, document.size) == (layer.digest, layer.size);
        if !is(record.sums, &sums) {
            self.find(at, "the list of sums beside the record is not the record's");
        }
        if Some(record.subject.digest) != met.about {
            self.find(at, &format!("the record is about {}, and its artifact is not", record.subject.digest));
        }
        self.outputs(at, &record, &sums)?;
        if record.sealed.is_none()
            && let Some(list) = self.part(at, manifest, names::EVIDENCE_SOURCES).cloned()
        {
            if !is(record.sources.list, &list) {
                self.find(at, "the list of sources beside the record is not the record's");
            }
            self.sources(at, &record, &list)?;
        }
        let mut signatures = manifest.layers.iter().filter(|layer| layer.media_type == names::EVIDENCE_SIGNATURE);
        let signature = signatures.next().and_then(|layer| self.document(at, &layer.digest));
        self.signature(at, &record, &bytes, signature.as_deref());
        met.signed = signature.map(|signature| (bytes, signature));
        Ok(())
    }

    /// What the record says was written is there, and the sums are of the same.
    fn outputs(&mut self, at: &str, record: &Record, sums: &Descriptor) -> Result<()> {
        let list = record.sources.list;
        let own = Output {
            digest: list.digest,
            size: list.size,
            media_type: names::EVIDENCE_SOURCES.into(),
            path: evidence::path_of(&list.digest),
        };
        // Where it is sealed it is one of the others.
        let all = record.outputs.iter().chain(record.sealed.is_none().then_some(&own));
        for output in &record.outputs {
            interrupt::check()?;
            if output.path != evidence::path_of(&output.digest) {
                self.find(at, &format!("the record has {} at {:?}", output.digest, output.path));
            }
            match self.sum(&output.digest)? {
                Ok((digest, size)) if (digest, size) == (output.digest, output.size) => {}
                Ok(_) => self.find(at, &format!("{} is not the blob that the record tells of", output.digest)),
                Err(why) => self.find(at, &format!("{}, which the record tells of, {why}", output.digest)),
            }
        }
        let wanted = evidence::sums(all);
        if sums.size > MAX_DOCUMENT.max(wanted.len() as u64) {
            self.find(at, "the list of sums is too large");
        } else if self.document(at, &sums.digest).is_some_and(|found| found != wanted.as_bytes()) {
            self.find(at, "the list of sums is not of the blobs that the record tells of");
        }
        Ok(())
    }

    /// The list of sources has as many lines as the record says, and each can be understood.
    fn sources(&mut self, at: &str, record: &Record, list: &Descriptor) -> Result<()> {
        let Some(file) = self.find_if(at, self.layout.open_blob(&list.digest)) else { return Ok(()) };
        let (mut lines, mut line, mut count) = (BufReader::new(file), Vec::new(), 0_u64);
        loop {
            interrupt::check()?;
            line.clear();
            match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    self.find(at, &format!("the list of sources cannot be read: {e}"));
                    return Ok(());
                }
            }
            count += 1;
            if let Err(e) = serde_json::from_slice::<Source>(&line) {
                self.find(at, &format!("line {count} of the list of sources is no source: {e}"));
                return Ok(());
            }
        }
        if count != record.sources.count {
            self.find(
                at,
                &format!("the list of sources has {count} lines, the record counts {}", record.sources.count),
            );
        }
        Ok(())
    }

    /// A signature must be that of the key that the record names: whether that is to be trusted is another question.
    fn signature(&mut self, at: &str, record: &Record, bytes: &[u8], signature: Option<&[u8]>) {
        match (&record.signer, signature) {
            (None, None) => {}
            (Some(_), None) => self.find(at, "the record names a signer, and has no signature"),
            (None, Some(_)) => self.find(at, "there is a signature, and the record names no signer"),
            (Some(signer), Some(signature)) => match Trusted::parse(&signer.public_key) {
                Ok(key) if key.id() != signer.key_id => self.find(at, "the record's key has another id than it says"),
                Ok(key) if key.has_signed(bytes, signature) => {}
                Ok(_) => self.find(at, "the signature is not of this record by the key that it names"),
                Err(why) => self.find(at, &format!("the record's key {why}")),
            },
        }
    }

    /// Each record is about a checkpoint of this layout; and, if keys are given, each checkpoint has one that is signed by
    /// one of them.
    pub(super) fn records(&mut self, index: &Index, trust: &[Trusted]) -> Result<()> {
        let records = std::mem::take(&mut self.records);
        let known: BTreeSet<Digest> = index.manifests.iter().map(|entry| entry.digest).collect();
        for met in &records {
            match met.about {
                Some(about) if known.contains(&about) => {}
                Some(about) => self.find(&met.at, &format!("is about {about}, which is not in index.json")),
                None => self.find(&met.at, "is about nothing: it has no subject"),
            }
        }
        if trust.is_empty() {
            return Ok(());
        }
        for entry in index.manifests.iter().filter(|entry| entry.is_index()) {
            let is_checkpoint = self.layout.children(entry).is_ok_and(|members| {
                members.iter().any(|m| [names::CHECKPOINT_CONFIG, names::ACCOUNT].contains(&m.media_type.as_str()))
            });
            if is_checkpoint {
                let own: Vec<_> = records.iter().filter(|met| met.about == Some(entry.digest)).collect();
                let at = entry.name().map_or_else(|| entry.digest.to_string(), str::to_owned);
                self.trusted(&at, &own, trust);
            }
        }
        for (at, digest) in std::mem::take(&mut self.sealed) {
            let own: Vec<_> = records.iter().filter(|met| met.about == Some(digest)).collect();
            self.trusted(&at, &own, trust);
        }
        Ok(())
    }

    fn trusted(&mut self, at: &str, records: &[&Met], trust: &[Trusted]) {
        let signed: Vec<_> = records.iter().filter_map(|met| met.signed.as_ref()).collect();
        let is_by = |key: &Trusted| signed.iter().any(|(bytes, signature)| key.has_signed(bytes, signature));
        match (records.is_empty(), signed.is_empty()) {
            (true, _) => self.find(at, "has no acquisition record, and so no signature by a trusted key"),
            (_, true) => self.find(at, "its acquisition record is not signed"),
            _ if trust.iter().any(is_by) => {}
            _ => self.find(at, "its acquisition record is not signed by a trusted key, or the signature is bad"),
        }
    }
}
