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

/// `containerd.runc.v1.Options` (containerd `api/types/runc/options/oci.proto`); the shim keeps it as JSON, too.
#[derive(Clone, PartialEq, Message, serde::Deserialize)]
#[serde(default)]
pub struct RuncOptions {
    /// The root file system is moved to, not pivoted.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// No session keyring of its own.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The shim's cgroup.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Who owns its pipes.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Which group owns them.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The runtime's program, when not `runc`.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The runtime's state directory, when not the shim's default.
    #[prost(string, tag = "7")]
    pub root: String,
    /// CRIU's program; until 1.7.
    #[prost(string, tag = "8")]
    pub criu_path: String,
    /// The cgroup is made by systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    /// Where images go.
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
    /// Where CRIU works.
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
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

/// The name under which it registers a runtime spec, whose value is JSON.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// An Any with this value.
pub fn any(type_url: &str, value: Vec<u8>) -> Vec<u8> {
    Any { type_url: type_url.into(), value }.encode_to_vec()
}

/// Reads a message.
pub fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, Corrupt> {
    M::decode(bytes).map_err(|_| Corrupt { at: 0, why: "not the protobuf message that should stand here" })
}

/// A message without its field `tag`, every other byte as it was, known or not.
pub fn without_field(message: &[u8], tag: u32) -> Result<Vec<u8>, Corrupt> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let corrupt = |_| Corrupt { at: 0, why: "not a protobuf message" };
    let (mut rest, mut kept) = (message, Vec::with_capacity(message.len()));
    while !rest.is_empty() {
        let field = rest;
        let (found, kind) = decode_key(&mut rest).map_err(corrupt)?;
        skip_field(kind, found, &mut rest, DecodeContext::default()).map_err(corrupt)?;
        if found != tag {
            kept.extend_from_slice(&field[..field.len() - rest.len()]);
        }
    }
    Ok(kept)
}

/// Runtime options (an Any of [`RUNC_OPTIONS`]) that name no program, so that the shim takes runc; `None` if they name none.
pub fn without_binary(options: &[u8]) -> Option<Vec<u8>> {
    let any: Any = decode(options).ok().filter(|any: &Any| any.type_url == RUNC_OPTIONS)?;
    let named: RuncOptions = decode(&any.value).ok()?;
    let value = without_field(&any.value, 6).ok().filter(|_| !named.binary_name.is_empty())?;
    Some(Any { value, ..any }.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_taken_out_of_the_options_and_nothing_else() {
        // Fields 13 and 15 are none that `RuncOptions` knows.
        let options = |name: &str| {
            let mut value = vec![15 << 3 | 2, 1, b'x'];
            value.extend(
                RuncOptions { binary_name: name.into(), root: "/r".into(), systemd_cgroup: true, ..Default::default() }
                    .encode_to_vec(),
            );
            value.extend([13 << 3, 7]);
            Any { type_url: RUNC_OPTIONS.into(), value }.encode_to_vec()
        };
        assert_eq!(without_binary(&options("/usr/bin/crun")), Some(options("")));
        assert_eq!(without_binary(&options("")), None);
        assert_eq!(without_binary(&[]), None);
        let whole = options("/usr/bin/crun");
        for cut in 0..whole.len() {
            let _ = without_binary(&whole[..cut]);
            let _ = without_field(&whole[..cut], 2);
        }
    }

    #[test]
    fn checkpoint_options_have_the_bytes_that_ctr_writes() {
        let options = CheckpointOptions { file_locks: true, ..Default::default() };
        let any = Any { type_url: CHECKPOINT_OPTIONS.into(), value: options.encode_to_vec() };
        let bytes = any.encode_to_vec();
        assert_eq!(bytes.len(), 42);
        assert!(bytes.starts_with(b"\x0a\x24containerd.runc.v1.CheckpointOptions\x12\x02\x28\x01"));
    }
}
