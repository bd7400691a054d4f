//! Names: containerd's identifiers, and the three different names of a snapshot.

use std::{fmt, str::FromStr};

/// A text containerd would not take as an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an identifier containerd would accept (letters, digits and single . _ - between them, at most 76 bytes)"
)]
pub struct InvalidId(pub String);

/// containerd's rule (`identifiers.Validate`): `[A-Za-z0-9]+([._-][A-Za-z0-9]+)*`, at most 76 bytes.
fn is_identifier(text: &str) -> bool {
    // Words and what stands between them, by turns: in one pass, for there may be a hundred thousand names.
    let mut in_word = false;
    let is_next = |byte: u8| match byte {
        b'.' | b'_' | b'-' => std::mem::replace(&mut in_word, false),
        _ => {
            in_word = true;
            byte.is_ascii_alphanumeric()
        }
    };
    text.len() <= 76 && text.bytes().all(is_next) && in_word
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text; safe as one component of a path.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                is_identifier(text).then(|| Self(text.to_owned())).ok_or_else(|| InvalidId(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// A containerd namespace.
    Namespace
);
identifier!(
    /// A container's id within its namespace.
    ContainerId
);

/// A namespace and an id: the only way a container is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerRef {
    /// The namespace that holds the record.
    pub namespace: Namespace,
    /// The container's id in it.
    pub id: ContainerId,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// What a container's record calls its snapshot (meta.db, `snapshotKey`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotKey(pub String);

/// What the snapshotter's own database calls it: `<namespace>/<n>/<key>`, stored, never rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName(pub String);

/// The number that is the snapshot's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A process, told apart from a later one with the same pid by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct TaskPid {
    /// The pid in our pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub started: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_id_is_a_path_component_containerd_would_accept() {
        let long = "a".repeat(77);
        for (text, good) in [
            ("web-1", true),
            ("a__b", false),
            ("0.9", true),
            ("", false),
            (".", false),
            ("..", false),
            ("../etc", false),
            ("a//b", false),
            ("-a", false),
            ("a.", false),
            ("é", false),
            (long.as_str(), false),
        ] {
            assert_eq!(text.parse::<ContainerId>().is_ok(), good, "{text:?}");
        }
    }
}
