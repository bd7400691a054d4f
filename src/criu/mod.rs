//! CRIU's formats: its RPC messages and its image files.

pub mod image;
pub mod rpc;
