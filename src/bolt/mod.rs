//! bbolt files, read only: bytes in, buckets out.
//!
//! ```text
//! page 0  meta ─┐ the one with the higher txid that validates
//! page 1  meta ─┴─► root bucket ─► branch ─► leaf: key → value
//! …                                                key → bucket (16-byte header: root page, or 0 and an inline leaf)
//! ```
//!
//! Every offset, length and page number in the file is taken for hostile: each access is checked against the
//! file, a page may belong to one bucket only, and keys must ascend, so a walk is never longer than the file.
//! Facts: bbolt `internal/common/{page,meta,bucket,inode}.go`, `db.go`, `bucket.go`.

mod check;
mod page;
mod piecemeal;
mod salvage;
pub mod schema;
mod source;
mod tree;
mod walk;

pub use check::check;
pub use piecemeal::{Look, Piecemeal};
pub use salvage::{Origin, Reading, Reason, removed};
pub use source::ReadAt;
pub use tree::{Bucket, Db, Item, transactions};
