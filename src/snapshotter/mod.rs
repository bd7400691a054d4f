//! Snapshotters: from a container's snapshot key to the directories that hold its rw layer.

use std::path::PathBuf;

pub mod overlay;

/// Where a container's own changes lie, whatever the snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RwLayer {
    /// An overlay mount: changes in `upper`, the image in `lowers`, nearest first.
    Overlay {
        /// The upperdir.
        upper: PathBuf,
        /// The lowerdirs, topmost first.
        lowers: Vec<PathBuf>,
    },
    /// A whole tree with no image below it.
    Tree {
        /// The tree.
        dir: PathBuf,
    },
}
