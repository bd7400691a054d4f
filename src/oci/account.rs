//! What a checkpoint could not hold, in a document of its own beside it: complete, exact, and read by other programs.
//!
//! Wall-clock time is not in it: the same container gives the same document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, name::AnyPath};

/// The document of media type [`super::names::ACCOUNT`], JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The images that came with the checkpoint, as entries of `index.json`.
    pub images: Vec<Digest>,
    /// What is not in its layer or tars, by path.
    pub left_out: Vec<LeftOut>,
    /// What is in them, but not as it should be, by path.
    pub odd: Vec<Odd>,
    /// How many more of either there are that are not listed.
    pub unlisted: u64,
    /// What else is lacking, in words.
    pub findings: Vec<String>,
    /// Members of later versions.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// Something that is not in a layer or tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Whose tree it is from: `rw layer`, or `bind mount <destination>`.
    pub of: String,
    /// Its path from the root of that tree.
    #[serde(flatten)]
    pub path: AnyPath,
    /// Why it is not there.
    pub why: String,
    /// `file`, `directory`, `symlink`, `character device`, `block device`, `fifo`, `socket`; the rest as statx(2) has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Permissions, in octal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Bytes of content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Seconds since 1970, with nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<String>,
    /// Where its content is, in the tar that is marked [`super::names::BESIDE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<AnyPath>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Odd {
    /// As in [`LeftOut`].
    pub of: String,
    /// Its path from the root of that tree.
    #[serde(flatten)]
    pub path: AnyPath,
    /// What is wrong.
    pub what: String,
}
