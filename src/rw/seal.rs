//! The captured layer becomes a blob, and what is beside it another.

use std::{fs::File, io::Write};

use super::Captured;
use crate::{
    digest::Digest,
    error::Result,
    layout::{Blob, Staging},
    sparse::each_block,
    tree::Summary,
};

/// A layer in the layout.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As stored.
    pub blob: Blob,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// How it is stored.
    pub media_type: &'static str,
    /// What no layer can hold, as a plain tar; `None` if there is nothing of it that has content.
    pub beside: Option<Blob>,
    /// What is in it, and what could not be.
    pub summary: Summary,
}

/// Stores a captured layer, which the ledger calls `of`.
pub fn seal(captured: Captured, staging: &Staging, of: &str) -> Result<Layer> {
    let Captured { tar, how, beside, summary } = captured;
    let stored = tar.store(staging, of)?;
    let beside = if summary.beside > 0 { Some(store(beside, staging)?) } else { None };
    Ok(Layer { blob: stored.blob, diff_id: stored.plain, media_type: how.media_type(), beside, summary })
}

/// A file of the staging as a blob, as it is.
fn store(file: File, staging: &Staging) -> Result<Blob> {
    let mut blob = staging.blob()?;
    each_block(&file, "what is beside the rw layer", |block| blob.write_all(block))?;
    blob.complete()
}
