//! OCI and containerd documents: media types and annotations, and small views of foreign JSON.
//!
//! Foreign documents are carried byte for byte (re-serialising would change their digest); a view reads what we need.

pub mod account;
pub mod image;
pub mod names;
pub mod raw;
pub mod runtime;
pub mod sealed;
pub mod volatile;
