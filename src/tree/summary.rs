//! What became of a tree on its way into a tar: figures, what is missing, what is odd.

use std::fmt;

use super::node::Meta;

/// Longer names are left out: a chain of directories would otherwise fill the disk with names, as every entry repeats
/// its parents'. Linux cannot open a path longer than 4096 bytes in one call, nor can most tools unpack one.
pub const MAX_PATH: usize = 64 << 10;

/// What became of a tree: what was written, what was not, and what was odd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Devices and named pipes.
    pub devices: u64,
    /// Further names of files already counted.
    pub hard_links: u64,
    /// Marks that delete something of the layers below.
    pub whiteouts: u64,
    /// Directories that hide all that the layers below have at their place.
    pub opaques: u64,
    /// Content of the files.
    pub bytes: u64,
    /// Length of the tar stream.
    pub written: u64,
    /// What a tar, or a layer, cannot hold; by path.
    pub left_out: Vec<LeftOut>,
    /// What is in it, but not as it should be; by path.
    pub warnings: Vec<Warning>,
}

/// Something that is not in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path from the root of the tree.
    pub path: Vec<u8>,
    /// What its inode says, as far as that was known.
    pub meta: Option<Meta>,
    /// Why it is not there.
    pub why: Why,
}

/// Why something is not in the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A socket: tar has no type for it, and it means nothing without its process.
    Socket,
    /// A name that begins with `.wh.`: it would come back as a deletion. A directory stands for all below it.
    WhiteoutName,
    /// It, or all below it, could not be read.
    Unreadable(String),
    /// Only this extended attribute of it is missing: no tar can hold the name, or no layer may carry it.
    XattrName(Vec<u8>),
    /// Only this extended attribute of it is missing: with it the header would be longer than containerd reads.
    XattrSize(Vec<u8>),
    /// Its path is longer than [`MAX_PATH`]; it stands for all below it.
    PathTooLong,
    /// Another filesystem is mounted here. A mount point that is a directory is in the tar, empty.
    Mount,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket => f.write_str("a socket cannot be stored"),
            Self::WhiteoutName => f.write_str("a name beginning with .wh. would come back as a deletion"),
            Self::Unreadable(why) => write!(f, "unreadable: {why}"),
            Self::XattrName(name) => write!(f, "its attribute {} cannot be stored", name.escape_ascii()),
            Self::XattrSize(name) => write!(f, "its attribute {} is too much for one header", name.escape_ascii()),
            Self::PathTooLong => write!(f, "its path is longer than {MAX_PATH} bytes"),
            Self::Mount => f.write_str("another filesystem is mounted there"),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.escape_ascii(), self.why)
    }
}

/// Something that is in the tar, but not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Its path from the root of the tree.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.escape_ascii(), self.what)
    }
}
