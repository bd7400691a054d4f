//! Verbs: the order of things, one readable function each.

mod ahead;
pub mod checkpoint;
pub mod diff;
mod documents;
pub mod evidence;
pub mod fsck;
pub mod inspect;
pub mod layers;
pub mod list;
pub mod locate;
mod memory;
pub mod records;
pub mod report;
pub mod ruins;
pub mod sealed;
pub mod select;
pub mod space;
pub mod store;
pub mod thaw;
pub mod timeline;
pub mod unseal;
pub mod verify;
pub mod who;
pub mod whois;
