//! Directory trees of strangers, read without ever resolving a path: every step is one name below an open directory.
//!
//! [`Dir`], [`Foothold`] and [`Node`] are descriptors ([`node`]), [`Steps`] is a walk with a bounded number of them ([`walk`]),
//! and [`Packer`] writes what is found into a tar stream ([`pack`]), or hands it to a [`Sink`] ([`sink`]); [`plain`] does all of
//! it for a tree that is just a tree. Nothing here follows a symbolic link, opens a device or a pipe, or leaves the mount it
//! began on. What cannot be read, or a tar cannot hold, is named in the [`Summary`].

pub mod node;
pub mod pack;
pub mod plain;
pub mod sink;
pub mod summary;
pub mod walk;

pub use node::{Dir, FileId, Foothold, Kind, Meta, Node};
pub use pack::{Held, Listed, Packer};
pub use sink::{Entry, Sink};
pub use summary::{LeftOut, Summary, Warning, Why};
pub use walk::Steps;
