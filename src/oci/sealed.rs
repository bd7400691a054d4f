//! A sealed checkpoint: what a run would have written, each blob of it an age file.
//!
//! ```text
//! index.json   the base image, as ever · the sealed checkpoint (no name: nobody makes an image of it) · its record
//! manifest     artifactType application/vnd.dewar.sealed.v1, config {}
//!   layer 0    the contents: this module's `Contents`, sealed like the others
//!   layers     one for each blob of the checkpoint, in the order of their own digests, which are random
//! ```
//! Media types, names and digests of what is sealed stand in the contents only: the digest of a plaintext would tell who knows
//! the plaintext that it is there.

use serde::{Deserialize, Serialize};

use super::image::Descriptor;
use crate::digest::Digest;

/// The version of [`Contents`].
pub const VERSION: u32 = 1;

/// What is sealed: with this the layout comes back byte for byte that a run without seals would have written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    /// [`VERSION`].
    pub schema: u32,
    /// The digest of the checkpoint index.
    pub checkpoint: Digest,
    /// The entries of `index.json`, in order.
    pub entries: Vec<Descriptor>,
    /// The blobs that are sealed.
    pub blobs: Vec<SealedBlob>,
    /// The blobs that the run wrote and that are not sealed: those of the base image. Others may be shared with it.
    pub plain: Vec<PlainBlob>,
}

/// A blob, and the age file that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedBlob {
    /// Of the blob.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// The digest of the age file.
    pub sealed: Digest,
}

/// A blob that is as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainBlob {
    /// Its digest.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}
