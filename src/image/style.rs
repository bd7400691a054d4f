//! Who writes layers, and how: one line each. The writers' spelling of headers is in [`super::dialect`].

use super::dialect::{BSD, Dialect, GNU, GNU_POSIX, GNU_USTAR, GO, PYTHON, PYTHON_OLD, PYTHON_USTAR};

/// One way of writing a tree as a tar.
#[derive(Debug)]
pub struct Style {
    /// Who writes so.
    pub writer: &'static str,
    /// How headers are spelled.
    pub dialect: &'static Dialect,
    /// The root's own entry, if it has one. Unpackers do nothing with it, so its time is guessed.
    pub root: Option<&'static str>,
    /// What stands before every name.
    pub prefix: &'static str,
    /// In which order.
    pub order: Order,
    /// Whether headers have the names of owners.
    pub names: Names,
    /// How deletions are written.
    pub marks: Marks,
    /// The mode has the type of the file, too (`S_IFMT`).
    pub type_bits: bool,
    /// The archive's length is a multiple of this; two blocks of zeros at least end it.
    pub record: u64,
}

/// In which order entries come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Each directory, then what is in it, by name (`tar --sort=name`, `filepath.Walk`).
    Walk,
    /// Whole paths by their bytes (`find | sort`, umoci): `a`, `a-b`, `a/b`.
    Bytes,
}

/// Whether headers have the names of owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Never.
    None,
    /// `root`, and nobody else's.
    Root,
    /// Those of the image's own `/etc/passwd` and `/etc/group`.
    Image,
}

/// How deletions are written.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    /// The mode of a whiteout.
    pub mode: u32,
    /// A whiteout's time is that of the deletion, which is guessed; otherwise it is 0.
    pub timed: bool,
    /// What all whiteouts but the first name as their link's target: overlay's whiteouts are links of one inode.
    pub links: Links,
    /// A mark for an opaque directory has that one's owner and permissions.
    pub opaque_as_dir: bool,
}

/// What a whiteout that is not the first names as its link's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Nothing.
    None,
    /// The first whiteout.
    Mark,
    /// What that deletes.
    Deleted,
}

const OCI: Marks = Marks { mode: 0, timed: false, links: Links::None, opaque_as_dir: false };
const TIMED: Marks = Marks { timed: true, ..OCI };
// containers/storage, pkg/archive; moby, go-archive `archive_linux.go`.
const STORAGE: Marks = Marks { mode: 0, timed: true, links: Links::Mark, opaque_as_dir: true };
const UNLINKED: Marks = Marks { links: Links::None, ..STORAGE };
const MOBY: Marks = Marks { mode: 0o600, links: Links::Deleted, ..STORAGE };
const OLD_MOBY: Marks = Marks { links: Links::None, ..MOBY };

/// Go's archives end with two blocks; tar's and tarfile's are padded to twenty.
const BARE: u64 = 512;
const TAPE: u64 = 10_240;

const BASE: Style = Style {
    writer: "containerd, BuildKit",
    dialect: &GO,
    root: None,
    prefix: "",
    order: Order::Walk,
    names: Names::None,
    marks: OCI,
    type_bits: false,
    record: BARE,
};
const DOT: Option<&str> = Some("./");
const TAR: Style = Style { writer: "GNU tar", dialect: &GNU, record: TAPE, ..BASE };
const POSIX: Style = Style { writer: "GNU tar --format=posix", dialect: &GNU_POSIX, record: TAPE, ..BASE };
const USTAR: Style = Style { writer: "GNU tar --format=ustar", dialect: &GNU_USTAR, record: TAPE, ..BASE };
const TARFILE: Style = Style { writer: "Python tarfile", dialect: &PYTHON, record: TAPE, ..BASE };
const BSDTAR: Style = Style { writer: "bsdtar", dialect: &BSD, ..BASE };

/// The known writers, the most likely first.
pub const STYLES: &[Style] = &[
    BASE,
    Style { writer: "podman, buildah", marks: STORAGE, ..BASE },
    Style { root: DOT, prefix: "./", ..TAR },
    Style { writer: "Docker", marks: MOBY, ..BASE },
    Style { writer: "Docker", marks: MOBY, type_bits: true, ..BASE },
    Style { writer: "Docker", marks: OLD_MOBY, type_bits: true, ..BASE },
    Style { root: DOT, prefix: "./", ..POSIX },
    Style { writer: "umoci", root: Some("."), order: Order::Bytes, ..BASE },
    TAR,
    Style { root: DOT, prefix: "./", names: Names::Root, ..TAR },
    Style { root: DOT, prefix: "./", names: Names::Image, ..TAR },
    Style { names: Names::Root, ..TAR },
    Style { names: Names::Image, ..TAR },
    Style { writer: "containerd 1.x", marks: TIMED, ..BASE },
    Style { writer: "podman, buildah", marks: UNLINKED, ..BASE },
    Style { writer: "umoci", order: Order::Bytes, ..BASE },
    Style { root: DOT, prefix: "./", names: Names::Root, ..POSIX },
    Style { root: DOT, prefix: "./", names: Names::Image, ..POSIX },
    POSIX,
    Style { names: Names::Root, ..POSIX },
    Style { names: Names::Image, ..POSIX },
    Style { root: DOT, prefix: "./", ..USTAR },
    Style { root: DOT, prefix: "./", names: Names::Root, ..USTAR },
    USTAR,
    Style { names: Names::Root, ..USTAR },
    Style { writer: "Go, names of owners", names: Names::Root, ..BASE },
    Style { writer: "Go, names of owners", names: Names::Image, ..BASE },
    Style { writer: "Docker, names of owners", names: Names::Image, marks: MOBY, type_bits: true, ..BASE },
    Style { prefix: "./", ..TAR },
    Style { root: DOT, ..TAR },
    Style { prefix: "./", ..POSIX },
    Style { writer: "bazel", dialect: &PYTHON_OLD, root: DOT, prefix: "./", ..TARFILE },
    Style { writer: "bazel", dialect: &PYTHON_OLD, prefix: "./", ..TARFILE },
    Style { root: DOT, prefix: "./", names: Names::Root, ..TARFILE },
    Style { root: DOT, prefix: "./", ..TARFILE },
    Style { names: Names::Root, ..TARFILE },
    TARFILE,
    Style { dialect: &PYTHON_USTAR, root: DOT, prefix: "./", ..TARFILE },
    Style { dialect: &PYTHON_USTAR, names: Names::Root, ..TARFILE },
    Style { dialect: &PYTHON_USTAR, ..TARFILE },
    Style { root: DOT, prefix: "./", order: Order::Bytes, ..BSDTAR },
    Style { root: DOT, prefix: "./", order: Order::Bytes, names: Names::Root, ..BSDTAR },
    Style { root: DOT, prefix: "./", order: Order::Bytes, names: Names::Image, ..BSDTAR },
    Style { order: Order::Bytes, ..BSDTAR },
    Style { order: Order::Bytes, names: Names::Root, ..BSDTAR },
    Style { order: Order::Bytes, names: Names::Image, ..BSDTAR },
    Style { root: DOT, prefix: "./", order: Order::Bytes, ..TAR },
    Style { root: DOT, prefix: "./", order: Order::Bytes, names: Names::Root, ..TAR },
    Style { order: Order::Bytes, ..TAR },
];
