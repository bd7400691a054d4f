//! What an image's layers become when they are unpacked ([`model`]), and how a snapshot differs from that ([`compare`]).
//!
//! A tar is read once, in its order, and of each file a digest is kept; then the snapshot is walked once and each file of
//! the right length read once. So time grows with what is stored and memory with the number of names, which is bounded.

pub mod compare;
pub mod model;

pub use compare::{Difference, compare};
pub use model::Model;

/// What a snapshotter gives an unpacker to unpack into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory for each layer by itself. What the lowest deletes is not there anyway.
    Overlay {
        /// No layer is below it.
        is_lowest: bool,
    },
    /// The tree of the layer below, copied file by file: its directories then have new times.
    Copied,
    /// The tree of the layer below to the last bit.
    Cloned,
}
