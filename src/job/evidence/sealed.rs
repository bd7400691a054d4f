//! The record beside a sealed checkpoint: everybody can read it, and check its signature. It tells who took a checkpoint when
//! and with what, and the digests of the sealed blobs. Of the container it tells nothing: that is in the record within.

use super::{Wanted, artifact, outputs};
use crate::{
    error::{Error, Result},
    evidence::{self, AnyText, Change, Document, Protection, Record, Run, Sealed, Skipped, Sources, Subject},
    layout::Staging,
    oci::{
        image::{Descriptor, Manifest},
        names,
    },
};

/// What stands where something is left out.
const SEALED: &str = "sealed";

/// Puts the record beside into the staging; yields its entry. `entries` are those of the sealed checkpoint, its own the last;
/// `within` is that of the record within.
pub fn attach(wanted: &Wanted, staging: &Staging, entries: &[Descriptor], within: &Descriptor) -> Result<Descriptor> {
    let malformed = |e: serde_json::Error| Error::malformed("the record within", e);
    let Some(subject) = entries.last() else { return Err(Error::malformed("index.json", "no entry")) };
    let manifest: Manifest = serde_json::from_slice(&staging.read_blob(&within.digest)?).map_err(malformed)?;
    let record = manifest.layers.iter().find(|layer| layer.media_type == names::EVIDENCE);
    let digest = record.ok_or_else(|| Error::malformed("the record within", "is not there"))?.digest;
    let whole: Record = serde_json::from_slice(&staging.read_blob(&digest)?).map_err(malformed)?;
    let outputs = outputs(staging, entries)?;
    let sums = staging.plain_blob_of(evidence::sums(&outputs).as_bytes())?;
    let list = staging.stored(&whole.sources.list.digest).map(|(_, stored)| stored);
    let list = list.ok_or_else(|| Error::malformed("the list of sources", "is not sealed"))?;
    let recipients = staging.recipients().unwrap_or_default() as u64;
    let record = Record {
        subject: Subject {
            container: SEALED.into(),
            reference: SEALED.into(),
            digest: subject.digest,
            size: subject.size,
        },
        outputs,
        sums: Document { digest: sums.digest, size: sums.size },
        sources: Sources { list: Document { digest: list.digest, size: list.size }, ..whole.sources.clone() },
        sealed: Some(Sealed { recipients, record: digest }),
        ..without_names(whole)
    };
    artifact(staging, &record, subject, wanted.key.as_deref(), Staging::plain_blob_of)
}

/// Paths, arguments, findings: whatever may tell of the container.
fn without_names(whole: Record) -> Record {
    let sealed = || AnyText { text: SEALED.into(), hex: None };
    let Skipped { paths, findings, notes, unlisted, .. } = whole.skipped;
    let unlisted = unlisted + (findings.len() + notes.len()) as u64;
    let change = |change: Change| Change { how: SEALED.into(), ..change };
    Record {
        run: Run { argv: Vec::new(), directory: sealed(), ..whole.run },
        changes: whole.changes.into_iter().map(change).collect(),
        protection: Protection { how: SEALED.into(), places: Vec::new(), ..whole.protection },
        skipped: Skipped { paths, unlisted, ..Skipped::default() },
        ..whole
    }
}
