//! containerd's own records: meta.db, the content store, the runtime v2 state directory.

pub mod content;
pub mod docker;
pub mod identity;
pub mod images;
pub mod log;
pub mod meta;
mod schema;
pub mod shim;
pub mod survey;
pub mod task;
pub mod times;
