//! The few protobuf messages containerd keeps in its records. Unknown fields are passed over.

use prost::Message;

use crate::corrupt::Corrupt;

/// `google.protobuf.Any`: a value and the name of its type.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// A registered name (value is JSON) or a protobuf full name (value is protobuf); containerd typeurl.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The value's bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// The parts we read of `containerd.runc.v1.Options` (containerd `api/types/runc/options/oci.proto`).
#[derive(Clone, PartialEq, Message)]
pub struct RuncOptions {
    /// The runtime's program, when not `runc`.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The runtime's state directory, when not the shim's default.
    #[prost(string, tag = "7")]
    pub root: String,
    /// The cgroup is made by systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
}

/// `containerd.runc.v1.CheckpointOptions`: how a dump was made.
#[derive(Clone, PartialEq, Message)]
pub struct CheckpointOptions {
    /// The container was stopped.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// Established TCP connections are in the dump.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// External unix sockets are in the dump.
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    /// `--shell-job`.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// File locks are in the dump.
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
}

/// The name under which typeurl registers [`CheckpointOptions`].
pub const CHECKPOINT_OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";
/// The name under which it registers [`RuncOptions`].
pub const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// Reads a message.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Corrupt> {
    M::decode(bytes).map_err(|_| Corrupt { at: 0, why: "not the protobuf message that should stand here" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoint_options_have_the_bytes_that_ctr_writes() {
        let options = CheckpointOptions { file_locks: true, ..Default::default() };
        let any = Any { type_url: CHECKPOINT_OPTIONS.into(), value: options.encode_to_vec() };
        let bytes = any.encode_to_vec();
        assert_eq!(bytes.len(), 42);
        assert!(bytes.starts_with(b"\x0a\x24containerd.runc.v1.CheckpointOptions\x12\x02\x28\x01"));
    }
}
