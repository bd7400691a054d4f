//! The acquisition record: who took a checkpoint, of what, with what, when, in which order; what was read, what was written,
//! what was changed, and what is missing and why. Documents only; [`crate::job::evidence`] fills them.
//!
//! ```text
//! index.json  …, checkpoint index <ref>, artifact manifest (no name: nobody makes an image of it)
//! artifact    artifactType application/vnd.dewar.evidence.v1+json, config {}, subject = the checkpoint index
//!   layer     the record                         JSON, this module's `Record`; its schema is `schema.json` beside this file
//!   layer     the sources                        JSON Lines, `Source`, one file a line
//!   layer     the sums                           `sha256sum -c`, paths from the layout's directory
//!   layer     the signature, if it was signed    64 bytes, Ed25519 over the bytes of the record
//! ```
//! The record names the digests of the checkpoint index, of the sources and of the sums. So one signature over it covers all
//! that was acquired: the index names its members by digest, and so on down.
//!
//! The sources have a blob of their own because there may be millions: the record stays small, and is read whole.

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, name::AnyPath};

pub use crate::ledger::{Source, Stat};

pub mod sign;

/// The JSON Schema (draft 2020-12) of [`Record`]; a test keeps it in step with the types.
pub const SCHEMA: &str = include_str!("schema.json");

/// The version of the schema. Members may be added without a new one; none changes its meaning.
pub const VERSION: u32 = 1;

/// The acquisition record of one checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Record {
    /// The version of this schema: 1.
    pub schema: u32,
    /// What the examiner said of it.
    pub case: Case,
    /// The program that made it.
    pub tool: Tool,
    /// How it was called.
    pub run: Run,
    /// The machine on which it ran.
    pub machine: Machine,
    /// The machine whose stores were read, where it is another one (`--sysroot`): as its own files tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspect: Option<Suspect>,
    /// The machine's clocks, all read at one moment.
    pub clock: Clock,
    /// What was acquired.
    pub subject: Subject,
    /// What was taken, in this order: the most volatile first, as far as it can be (RFC 3227, 2.1).
    pub order: Vec<String>,
    /// What was done, and when.
    pub steps: Vec<Step>,
    /// Every change that was caused on the machine outside the output; empty: none is known.
    pub changes: Vec<Change>,
    /// How the sources were kept from being changed.
    pub protection: Protection,
    /// All files that were read.
    pub sources: Sources,
    /// All blobs of the checkpoint, by digest.
    pub outputs: Vec<Output>,
    /// The list of the blobs for `sha256sum -c`.
    pub sums: Document,
    /// What is not in the checkpoint, and why.
    pub skipped: Skipped,
    /// Whose key signed this record; absent: it is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// In the record of a sealed checkpoint, which everybody can read: what is about the container is left out of it, and
    /// stands in the record within.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Sealed>,
}

/// That a checkpoint is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sealed {
    /// To how many recipients.
    pub recipients: u64,
    /// The digest of the whole record, which is sealed.
    #[cfg_attr(test, schemars(with = "String"))]
    pub record: Digest,
}

/// What the examiner said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Case {
    /// The case's number or name (`--case`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Who examines (`--examiner`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examiner: Option<String>,
    /// Why (`--reason`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its file, in hex; absent if it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A text of any bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AnyText {
    /// As text; what is no UTF-8 stands there as `\xff`.
    pub text: String,
    /// The bytes in hex, if the text is not the very bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hex: Option<String>,
}

impl From<Vec<u8>> for AnyText {
    fn from(bytes: Vec<u8>) -> Self {
        let AnyPath { path: text, path_hex: hex } = AnyPath::from(bytes);
        Self { text, hex }
    }
}

/// How the program was called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Run {
    /// Its arguments, the first its own name.
    pub argv: Vec<AnyText>,
    /// Its working directory.
    pub directory: AnyText,
    /// Its effective user.
    pub euid: u32,
    /// Its process id.
    pub pid: u32,
}

/// A machine, as its kernel tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// `uname -n`
    pub hostname: String,
    /// `/etc/machine-id`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// `uname -r`
    pub kernel_release: String,
    /// `uname -v`
    pub kernel_version: String,
    /// `uname -m`
    pub architecture: String,
    /// `/proc/sys/kernel/random/boot_id`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// `PRETTY_NAME` of `/etc/os-release`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
}

/// A machine whose file system is mounted on the examining one, as its own files tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Suspect {
    /// Where it is mounted.
    pub sysroot: AnyText,
    /// Its `/etc/hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its `/etc/machine-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// `PRETTY_NAME` of its `/etc/os-release`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Its time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
}

/// Clocks, read one after the other, at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Clock {
    /// The system's clock, UTC (RFC 3339, nanoseconds).
    pub utc: String,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds: since the machine started, sleep included.
    pub boottime_ns: u64,
    /// The clock on the board, seconds since 1970, if it can be read: what it differs by is the system clock's error or
    /// its own. (Some machines keep local time in it.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_s: Option<i64>,
    /// The machine's time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// When systemd-timesyncd last set the clock by another machine's (UTC), where that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synchronised: Option<String>,
}

/// What was acquired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Subject {
    /// `namespace/id`
    pub container: String,
    /// The checkpoint's name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of the checkpoint index: all else follows from it.
    #[cfg_attr(test, schemars(with = "String"))]
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A moment of the run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Step {
    /// UTC (RFC 3339, nanoseconds).
    pub utc: String,
    /// `CLOCK_MONOTONIC`, nanoseconds: nobody sets this clock.
    pub monotonic_ns: u64,
    /// What began, or was done.
    pub what: String,
}

/// A change that was caused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Change {
    /// What: `freeze`, `parasite`, `ptrace`, `network lock`, `marker`, `criu`.
    pub what: String,
    /// On what, and how.
    pub how: String,
    /// When it began (`CLOCK_MONOTONIC`, nanoseconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ns: Option<u64>,
    /// When it was undone; absent: it was not, or is only after this record was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
    /// The processes it happened to, as the machine counts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<i32>,
}

/// How the sources were kept from being changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Protection {
    /// In words: how writing was made impossible, and how access times were kept.
    pub how: String,
    /// `--write-blocked` was asked for: each of the places below was found to be read-only, or nothing was read.
    pub write_blocked: bool,
    /// The places that were read, and what the machine says of them.
    pub places: Vec<Place>,
}

/// A place that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Place {
    /// The directory or file.
    #[serde(flatten)]
    pub path: AnyPath,
    /// Where its file system is mounted.
    pub mounted_at: AnyText,
    /// From what.
    pub device: AnyText,
    /// The file system's type.
    pub file_system: String,
    /// The mount, or the file system, is read-only.
    pub read_only_mount: bool,
    /// The block device below refuses writes (`/sys/dev/block/…/ro`); absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only_device: Option<bool>,
}

/// A document beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Document {
    /// Its digest.
    #[cfg_attr(test, schemars(with = "String"))]
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// The list of all files that were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sources {
    /// The list: one JSON document a line.
    pub list: Document,
    /// How many lines it has.
    pub count: u64,
    /// How many more files were read that are not in it.
    pub unlisted: u64,
    /// In words: what it does not list, and where that is to be had.
    pub limits: Vec<String>,
}

/// A blob of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Output {
    /// Its digest.
    #[cfg_attr(test, schemars(with = "String"))]
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    /// Where it lies, from the layout's directory.
    pub path: String,
}

/// What is not in the checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Skipped {
    /// The member of the checkpoint (`application/vnd.dewar.account.v1+json`) that lists by path what could not be held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub account: Option<Digest>,
    /// How many paths it lists, and how many more there are.
    pub paths: u64,
    /// What is not as it should be, each with its consequence.
    pub findings: Vec<String>,
    /// What is as it must be, and worth knowing.
    pub notes: Vec<String>,
    /// How many more of either are not listed here.
    pub unlisted: u64,
}

/// Whose signature it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Signer {
    /// `Ed25519`
    pub algorithm: String,
    /// The public key, PEM (SubjectPublicKeyInfo).
    pub public_key: String,
    /// SHA-256 of its DER form, in hex.
    pub key_id: String,
}

/// The list that `sha256sum -c` reads, for blobs in the order of `outputs`.
pub fn sums<'a>(outputs: impl IntoIterator<Item = &'a Output>) -> String {
    outputs.into_iter().map(|output| format!("{}  {}\n", output.digest.to_hex(), output.path)).collect()
}

/// Where a blob lies in a layout, from its directory.
pub fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `DEWAR_SCHEMA=write cargo test --lib evidence` writes it anew.
    #[test]
    fn the_schema_is_that_of_the_types() {
        let schema = serde_json::json!({
            "record": schemars::schema_for!(Record),
            "source": schemars::schema_for!(Source),
        });
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("DEWAR_SCHEMA").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/evidence/schema.json"), &text).unwrap();
        }
        assert!(text == SCHEMA, "src/evidence/schema.json is not that of the types");
        assert!(
            schema["record"]["properties"]["schema"]["description"].as_str().unwrap().contains(&VERSION.to_string())
        );
    }

    #[test]
    fn sums_are_as_sha256sum_reads_them() {
        let digest = Digest::of(b"");
        let output = Output { digest, size: 0, media_type: String::new(), path: path_of(&digest) };
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sums([&output]), format!("{hex}  blobs/sha256/{hex}\n"));
    }
}
