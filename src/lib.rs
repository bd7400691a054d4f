//! `dewar` checkpoints containerd containers offline: from the stores on disk into an OCI image layout.
#![forbid(unsafe_code)]

// Floor 0: words.
pub mod corrupt;
pub mod digest;
pub mod error;
pub mod id;
pub mod interrupt;
pub mod ledger;
pub mod name;
pub mod shares;
pub mod tally;
// Floor 1: formats.
pub mod bolt;
pub mod criu;
pub mod crypt;
pub mod elf;
pub mod evidence;
pub mod idmap;
pub mod oci;
pub mod pax;
pub mod procfs;
pub mod proto;
pub mod record;
pub mod timeline;
// Floor 2: stores.
pub mod containerd;
pub mod host;
pub mod layout;
pub mod runtime;
pub mod snapshotter;
pub mod sparse;
pub mod tree;
// Floor 3: acts.
pub mod ahead;
pub mod binds;
pub mod bundle;
pub mod dump;
pub mod freeze;
pub mod image;
pub mod raw;
pub mod rw;
pub mod volatile;
// Floor 4: jobs.
pub mod job;
