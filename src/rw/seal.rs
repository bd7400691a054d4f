//! The captured layer becomes a blob: read once, hashed plain (diff id), compressed, hashed as stored (digest).

use std::io::{self, Read, Write};

use flate2::{Compression as Level, GzBuilder};

use super::Captured;
use crate::{
    digest::{Digest, Hasher},
    error::{At, Result},
    interrupt,
    layout::{Blob, Staging},
    oci::names,
    tree::Summary,
};

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// The only one `ctr containers restore --rw` takes.
    #[default]
    Gzip,
    /// Smaller and faster; for other tools.
    Zstd,
    /// As it is.
    None,
}

impl Compression {
    /// The media type of a layer stored so.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => names::LAYER_GZIP,
            Self::Zstd => names::LAYER_ZSTD,
            Self::None => names::LAYER_TAR,
        }
    }
}

/// A layer in the layout.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As stored.
    pub blob: Blob,
    /// The digest of its tar.
    pub diff_id: Digest,
    /// How it is stored.
    pub media_type: &'static str,
    /// What is in it, and what could not be.
    pub summary: Summary,
}

/// Level 1 of zlib-rs: a node in trouble has no time, and layers are read once.
const GZIP_LEVEL: u32 = 1;

/// Stores a captured layer.
pub fn seal(captured: Captured, how: Compression, staging: &Staging) -> Result<Layer> {
    let Captured { tar: mut plain, summary } = captured;
    let plain: &mut dyn Read = &mut plain;
    let mut hasher = Hasher::default();
    let blob = staging.blob()?;
    let blob = match how {
        // No name and no time in the header: same bytes in, same bytes out.
        Compression::Gzip => {
            let mut gzip = GzBuilder::new().write(blob, Level::new(GZIP_LEVEL));
            pour(plain, &mut gzip, &mut hasher)?;
            gzip.finish().at("compress into", staging.path("blobs"))?
        }
        Compression::Zstd => {
            let mut zstd = zstd::Encoder::new(blob, 3).at("compress into", staging.path("blobs"))?;
            pour(plain, &mut zstd, &mut hasher)?;
            zstd.finish().at("compress into", staging.path("blobs"))?
        }
        Compression::None => {
            let mut blob = blob;
            pour(plain, &mut blob, &mut hasher)?;
            blob
        }
    };
    Ok(Layer { blob: blob.complete()?, diff_id: hasher.finish(), media_type: how.media_type(), summary })
}

fn pour(from: &mut dyn Read, to: &mut dyn Write, hasher: &mut Hasher) -> Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        interrupt::check()?;
        let n = match from.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read.at("read", "the captured rw layer")?,
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        hasher.update(bytes);
        to.write_all(bytes).at("write", "the layer")?;
    }
}
