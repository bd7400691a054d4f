//! What can go wrong, each with the thing, the place and the next step.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::corrupt::Corrupt;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused; `verb` is what we tried ("read", "freeze", …).
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not of its format.
    #[error("{} is damaged", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it, and why.
        source: Corrupt,
    },
    /// A file holds a document that cannot be understood.
    #[error("{}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing of that name.
    #[error("{what} not found{}", hint_suffix(hint))]
    NotFound {
        /// What was looked for, and where.
        what: String,
        /// The next step.
        hint: String,
    },
    /// Several of that name.
    #[error("{what} is ambiguous: {}", choices.join(", "))]
    Ambiguous {
        /// What was asked for.
        what: String,
        /// What it could mean.
        choices: Vec<String>,
    },
    /// A thing we know of and cannot do.
    #[error("{what}{}", hint_suffix(hint))]
    Unsupported {
        /// What cannot be done, and why.
        what: String,
        /// The next step.
        hint: String,
    },
    /// A daemon holds the metadata database.
    #[error(
        "a containerd daemon is running on {}: stop it first (systemctl stop containerd; containers keep running), \
         or read a consistent copy beside it with --daemon-running",
        db.display()
    )]
    DaemonRunning {
        /// The locked database.
        db: PathBuf,
    },
    /// CRIU did not dump; the text has its reason and the remedy.
    #[error("CRIU could not dump the task: {reason}{}", hint_suffix(hint))]
    Criu {
        /// Its first error, from the reply or the log.
        reason: String,
        /// What may be done about it.
        hint: String,
        /// The last error lines of its log.
        log: Vec<String>,
    },
    /// The task could not be held still.
    #[error("cannot freeze {what}: {why}{}", hint_suffix(hint))]
    Freeze {
        /// The container.
        what: String,
        /// What the kernel said.
        why: String,
        /// The next step.
        hint: String,
    },
    /// The user asked us to stop (SIGINT, SIGTERM, SIGHUP).
    #[error("interrupted; what was frozen runs again and the layout is as it was")]
    Interrupted,
}

/// An error and what caused it, on one line.
pub fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        text += &format!(": {deeper}");
        cause = deeper.source();
    }
    text
}

fn hint_suffix(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}

impl Error {
    /// A document in `path` that cannot be understood.
    pub fn malformed(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::Malformed { path: path.into(), why: why.to_string() }
    }

    /// True if the system said that there is no such file.
    pub fn is_missing_file(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// True if the system said that we may not.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Gives an error its verb and its place: `fs::read(p).at("read", p)?`.
pub trait At<T> {
    /// Names what was tried, and on what.
    fn at(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, verb: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { verb, path: path.as_ref().to_owned(), source: source.into() })
    }
}

/// Gives a format error its file.
pub trait In<T> {
    /// Names the file.
    fn within(self, path: impl AsRef<Path>) -> Result<T>;
}

impl<T> In<T> for std::result::Result<T, Corrupt> {
    fn within(self, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Corrupt { path: path.as_ref().to_owned(), source })
    }
}
