//! `diff`: what a container's rw layer adds, changes and deletes, as the layer would have it.

use serde::Serialize;

use super::{locate, store::Store};
use crate::{
    containerd::meta::Container,
    error::Result,
    name::AnyPath,
    rw,
    tree::{Kind, Listed, Summary, Why},
};

/// One difference between the image and the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `A` added, `C` changed, `D` deleted: the letters of `docker diff`. A deleted directory stands for all in it.
    pub change: char,
    /// From the container's root.
    #[serde(flatten)]
    pub path: AnyPath,
    /// What is there now: `file`, `directory`, `symlink`, `character device`, `block device`, `fifo`, `socket`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Bytes of content; of files only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Why a layer cannot hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// Tells `each` every change, in the order of the layer; yields what could not be looked at and what was odd.
///
/// A container that runs is looked at as it is: it is not held, so what changes meanwhile may or may not be told.
pub fn diff(store: &Store, container: &Container, each: &mut dyn FnMut(Change) -> Result<()>) -> Result<Vec<String>> {
    let files = locate::files(store, container)?;
    let summary = rw::list(&files.rw, &mut |listed| each(change(&listed)))?;
    Ok([files.findings, findings(&summary)].concat())
}

fn change(listed: &Listed) -> Change {
    let change = match (listed.meta, listed.existed) {
        (None, _) => 'D',
        (Some(_), true) => 'C',
        (Some(_), false) => 'A',
    };
    Change {
        change,
        path: AnyPath::from_root(listed.path),
        kind: listed.meta.map(|meta| meta.kind.name()),
        size: listed.meta.filter(|meta| meta.kind == Kind::File).map(|meta| meta.size),
        left_out: listed.left_out.map(Why::to_string),
    }
}

/// What was listed as left out is no finding: it is there, and was told.
fn findings(summary: &Summary) -> Vec<String> {
    let unseen = summary.left_out.iter().filter(|lost| lost.meta.is_none() || matches!(lost.why, Why::Unreadable(_)));
    let mut all: Vec<String> = unseen.map(ToString::to_string).collect();
    all.extend(summary.warnings.iter().map(ToString::to_string));
    all
}
