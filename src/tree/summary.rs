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
    /// How many more of either there are that were not listed: [`MAX_LISTED`] was reached.
    pub unlisted: u64,
    /// Length of the tar stream beside; 0 if there is nothing in it.
    pub beside: u64,
    /// Bytes that the two lists take.
    listed: usize,
}

/// So many bytes the lists of what is missing and odd may take: a container can make millions of sockets.
pub const MAX_LISTED: usize = 8 << 20;

impl Summary {
    /// Lists something that is not in the tar.
    pub fn leave_out(&mut self, lost: LeftOut) {
        if self.has_room(lost.path.len() + size_of::<LeftOut>()) {
            self.left_out.push(lost);
        }
    }

    /// Lists something odd.
    pub fn warn(&mut self, odd: Warning) {
        if self.has_room(odd.path.len() + odd.what.len() + size_of::<Warning>()) {
            self.warnings.push(odd);
        }
    }

    /// Adds the figures of another part of the same tar, which lists nothing.
    pub(super) fn add(&mut self, part: &Self) {
        self.files += part.files;
        self.directories += part.directories;
        self.symlinks += part.symlinks;
        self.devices += part.devices;
        self.whiteouts += part.whiteouts;
        self.bytes += part.bytes;
        self.written += part.written;
    }

    /// The figures of what came after `earlier`, of what can be part of another.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            files: self.files - earlier.files,
            directories: self.directories - earlier.directories,
            symlinks: self.symlinks - earlier.symlinks,
            devices: self.devices - earlier.devices,
            whiteouts: self.whiteouts - earlier.whiteouts,
            bytes: self.bytes - earlier.bytes,
            written: self.written - earlier.written,
            ..Self::default()
        }
    }

    /// How many entries it counts.
    pub fn entries(&self) -> u64 {
        self.files + self.directories + self.symlinks + self.devices + self.hard_links + self.whiteouts
    }

    fn has_room(&mut self, len: usize) -> bool {
        let fits = self.listed + len <= MAX_LISTED;
        if fits {
            self.listed += len;
        } else {
            self.unlisted += 1;
        }
        fits
    }

    /// Takes in what became of the tar beside. In there a path has a place in front that its owner never saw.
    pub(super) fn take_beside(&mut self, beside: Summary) {
        let own = |path: Vec<u8>| path.strip_prefix(b"files/").map_or(path.clone(), <[u8]>::to_vec);
        let is_empty = beside.files + beside.directories + beside.symlinks + beside.devices == 0;
        self.beside = if is_empty { 0 } else { beside.written };
        self.unlisted += beside.unlisted;
        beside.left_out.into_iter().for_each(|lost| self.leave_out(LeftOut { path: own(lost.path), ..lost }));
        beside.warnings.into_iter().for_each(|odd| self.warn(Warning { path: own(odd.path), ..odd }));
    }

    pub(super) fn sort(&mut self) {
        self.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        self.warnings.sort_by(|a, b| a.path.cmp(&b.path));
    }
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
    /// Its place in the tar beside, if its content is kept there.
    pub kept: Option<Vec<u8>>,
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
    /// Its path is longer than so many bytes; it stands for all below it.
    PathTooLong(usize),
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
            Self::PathTooLong(max) => write!(f, "its path is longer than {max} bytes, too long to be unpacked"),
            Self::Mount => f.write_str("another filesystem is mounted there"),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.escape_ascii(), self.why)?;
        match &self.kept {
            Some(kept) => write!(f, "; kept beside the layer as {}", kept.escape_ascii()),
            None => Ok(()),
        }
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
