//! What is told of a checkpoint: where it is while it goes on, and what was done.

use std::time::Instant;

use serde::Serialize;

use crate::{
    bundle::{Bundle, Parts},
    dump::Criu,
    tree::Summary,
};

/// Where the job is; a reader of the terminal wants to know what is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Copying the base image; the container runs.
    Image,
    /// Copying and compressing its files while it runs.
    Ahead,
    /// The container is being frozen.
    Freeze,
    /// Its memory is being dumped.
    Dump,
    /// Its files are being copied.
    Files {
        /// False if it has no live task, and so nothing to be held still.
        held: bool,
    },
    /// Compressing and writing.
    Seal {
        /// It is held still for `--exit`; else it runs again.
        held: bool,
    },
}

impl Stage {
    /// True where the container is held still.
    pub fn is_held(self) -> bool {
        match self {
            Self::Image | Self::Ahead | Self::Freeze => false,
            Self::Dump => true,
            Self::Files { held } | Self::Seal { held } => held,
        }
    }
}

/// What was done, as `--json` prints it. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `namespace/id`.
    pub container: String,
    /// The checkpoint's name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of the checkpoint index.
    pub digest: String,
    /// The base image's name; empty when unknown.
    pub image: String,
    /// `dumped`, `raw` (to be looked at only), `refused` (see findings), `skipped` (`--task never`) or `none`.
    pub memory: &'static str,
    /// CRIU's version, when it was asked.
    pub criu: Option<String>,
    /// How long the container stood still.
    pub frozen_ms: Option<f64>,
    /// How long all took.
    pub total_ms: f64,
    /// Bytes of memory that were hashed when all was taken, during the dump for the most part: nobody waits for these any more.
    pub hashed_ahead: u64,
    /// The container was stopped.
    pub exited: bool,
    /// Sizes of the parts.
    pub sizes: Sizes,
    /// What the rw layer holds.
    pub files: Option<Files>,
    /// What is as it must be, and worth knowing.
    pub notes: Vec<String>,
    /// What is not as it should be, each with its consequence.
    pub findings: Vec<String>,
}

/// What the rw layer holds, counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Files {
    /// Regular files.
    pub regular: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices and named pipes.
    pub devices: u64,
    /// Further names of files already counted.
    pub hard_links: u64,
    /// Deletions.
    pub whiteouts: u64,
    /// Directories that hide all below them.
    pub opaque: u64,
    /// Bytes of content.
    pub bytes: u64,
}

impl From<&Summary> for Files {
    fn from(s: &Summary) -> Self {
        let Summary { files: regular, directories, symlinks, devices, hard_links, whiteouts, opaques, bytes, .. } = *s;
        Self { regular, directories, symlinks, devices, hard_links, whiteouts, opaque: opaques, bytes }
    }
}

/// Sizes in bytes, as stored.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sizes {
    /// The rw layer.
    pub rw_layer: u64,
    /// The CRIU tar.
    pub criu: u64,
    /// The raw capture of memory.
    pub raw: u64,
    /// The document of what else is volatile.
    pub volatile: u64,
    /// The tars of bind mounts, of tmpfs and of the log.
    pub binds: u64,
}

/// What the parts do not tell of a run.
pub(super) struct Outcome {
    pub(super) memory: &'static str,
    pub(super) criu: Option<Criu>,
    pub(super) hashed_ahead: u64,
    pub(super) exited: bool,
    pub(super) frozen: Option<std::time::Duration>,
    pub(super) started: Instant,
    pub(super) notes: Vec<String>,
    pub(super) findings: Vec<String>,
}

/// The account of a bundle that is on disk.
pub(super) fn report(bundle: &Bundle, parts: &Parts, outcome: Outcome) -> Report {
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1000.0;
    Report {
        container: parts.container.name.to_string(),
        reference: bundle.reference.clone(),
        digest: bundle.index.digest.to_string(),
        image: parts.container.image.clone(),
        memory: outcome.memory,
        criu: outcome.criu.map(|c| c.version.to_string()),
        frozen_ms: outcome.frozen.map(ms),
        total_ms: ms(outcome.started.elapsed()),
        hashed_ahead: outcome.hashed_ahead,
        exited: outcome.exited,
        sizes: Sizes {
            rw_layer: parts.layer.as_ref().map_or(0, |l| l.blob.size),
            criu: parts.criu.map_or(0, |b| b.size),
            raw: parts.raw.map_or(0, |b| b.size),
            volatile: parts.volatile.map_or(0, |b| b.size),
            binds: parts.binds.iter().map(|b| b.blob.size).sum(),
        },
        files: parts.layer.as_ref().map(|l| Files::from(&l.summary)),
        notes: outcome.notes,
        findings: outcome.findings,
    }
}
