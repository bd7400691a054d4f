//! Verbs: the order of things, one readable function each.

pub mod checkpoint;
pub mod diff;
mod documents;
pub mod fsck;
pub mod inspect;
pub mod layers;
pub mod list;
pub mod locate;
pub mod report;
pub mod ruins;
pub mod select;
pub mod space;
pub mod store;
pub mod thaw;
pub mod timeline;
pub mod verify;
pub mod who;
pub mod whois;
