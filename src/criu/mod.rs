//! CRIU's formats: its RPC messages and its image files.

pub mod files;
pub mod image;
pub mod memory;
pub mod rpc;
