//! `dewar` checkpoints containerd containers offline: from the stores on disk into an OCI image layout.
#![forbid(unsafe_code)]

// Floor 0: words.
pub mod corrupt;
pub mod digest;
pub mod error;
pub mod id;
pub mod interrupt;
// Floor 1: formats.
pub mod oci;
// Floor 2: stores.
pub mod host;
pub mod runtime;
pub mod snapshotter;
