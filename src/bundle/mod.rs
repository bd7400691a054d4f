//! The bundle: what all acts brought, written in one output format and committed in one step.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    containerd::meta::Container,
    error::{Error, Result},
    image::Base,
    layout::{Blob, Layout, Staging},
    oci::{account::Account, image::Descriptor},
    proto::CheckpointOptions,
    rw::Layer,
};

pub mod account;
pub mod containerd;
pub mod sealed;

/// All that goes into one checkpoint.
pub struct Parts {
    /// The container's record.
    pub container: Container,
    /// The base image; `None` when the records name none.
    pub base: Option<Base>,
    /// The image's files with the rw layer on top; `None` when the base is not wholly here.
    pub committed: Option<Descriptor>,
    /// The rw layer; `None` when it could not be located.
    pub layer: Option<Layer>,
    /// The CRIU tar; `None` without a dump.
    pub criu: Option<Blob>,
    /// The raw capture in place of a dump.
    pub raw: Option<Blob>,
    /// What else of the task is volatile.
    pub volatile: Option<Blob>,
    /// How it was dumped.
    pub options: CheckpointOptions,
    /// Mounts' contents, in mount order, and the log.
    pub binds: Vec<Bind>,
    /// What is not in it, except for `images`, which the output format knows.
    pub account: Account,
    /// What describes the moment: `org.criu.checkpoint.*`.
    pub annotations: BTreeMap<String, String>,
    /// When.
    pub created: Timestamp,
    /// The checkpoint's name.
    pub reference: String,
}

/// One mount's content, or the log.
pub struct Bind {
    /// What it was: `bind`, `tmpfs` or `log`.
    pub kind: &'static str,
    /// Where it was mounted in the container.
    pub destination: String,
    /// A plain tar.
    pub blob: Blob,
}

/// A committed bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The checkpoint index's entry.
    pub index: Descriptor,
    /// Its name.
    pub reference: String,
}

/// An output format: puts documents into the staging and says which entries `index.json` gets, in order, the
/// checkpoint's own last.
type Write = fn(&Staging, &Parts) -> Result<Vec<Descriptor>>;

/// The formats we write.
pub const TABLE: &[(&str, Write)] = &[("containerd", containerd::write)];

/// Makes what is attached to a checkpoint, given its entries. Of a sealed one there is something attached twice: first within
/// what is sealed, then, given that, beside it.
pub type Attach<'a> = &'a mut dyn FnMut(&[Descriptor], Option<&Descriptor>) -> Result<Option<Descriptor>>;

/// Writes the bundle, with what `attach` adds about it, and commits it. Before the commit a reader sees the layout as it
/// was.
pub fn write(layout: &Layout, staging: &Staging, parts: &Parts, format: Write, attach: Attach) -> Result<Bundle> {
    let mut entries = format(staging, parts)?;
    let last =
        |entries: &[Descriptor]| entries.last().cloned().ok_or_else(|| Error::malformed(layout.dir(), "no entry"));
    let mut index = last(&entries)?;
    let attached = attach(&entries, None)?;
    entries.extend(attached.clone());
    if staging.recipients().is_some() {
        entries = sealed::write(staging, parts, index.digest, &entries)?;
        index = last(&entries)?;
        if attached.is_some() {
            entries.extend(attach(&entries, attached.as_ref())?);
        }
    }
    layout.commit(staging, &entries)?;
    Ok(Bundle { index, reference: parts.reference.clone() })
}
