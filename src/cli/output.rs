//! Where a layout goes: into a directory, a tar, or a stream.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use dewar::{
    crypt::Recipients,
    error::{At, Error, Result},
    layout::{Layout, archive},
};

/// Where the bundle goes: into a layout, or by way of one into a tar.
pub enum Output {
    /// Into a directory.
    Directory(Layout),
    /// A directory that comes to be only when all is in it.
    Fresh { path: PathBuf, layout: Layout, folder: tempfile::TempDir },
    /// One tar.
    Tar { path: PathBuf, layout: Layout, _folder: tempfile::TempDir },
    /// One tar, as a stream.
    Stdout { layout: Layout, _folder: tempfile::TempDir },
}

impl Output {
    /// The place that was asked for; `example` is a command that writes a stream. A directory is added to.
    pub fn open(path: &Path, example: &str) -> Result<Self> {
        if path == Path::new("-") {
            if io::stdout().is_terminal() {
                return Err(Error::Unsupported {
                    what: "-o - writes a tar to stdout, and that is a terminal".into(),
                    hint: format!("redirect it: {example} -o - | ctr images import -"),
                });
            }
            let folder = tempfile::Builder::new().prefix("dewar-").tempdir().at("write into", std::env::temp_dir())?;
            return Ok(Self::Stdout { layout: Layout::fleeting(folder.path())?, _folder: folder });
        }
        if path.extension().is_none_or(|extension| extension != "tar") {
            return Ok(Self::Directory(Layout::to_fill(path)?));
        }
        if fs::symlink_metadata(path).is_ok() {
            return Err(Error::Unsupported {
                what: format!("{} exists and is not overwritten; nothing was written", path.display()),
                hint: "choose another name".into(),
            });
        }
        let folder = folder_beside(path)?;
        let layout = Layout::open_or_create(folder.path())?;
        Ok(Self::Tar { path: path.to_owned(), layout, _folder: folder })
    }

    /// The same, but a directory that is not there comes to be only when all is in it.
    pub fn whole(path: &Path, example: &str) -> Result<Self> {
        let is_directory = path != Path::new("-") && path.extension().is_none_or(|extension| extension != "tar");
        if !is_directory || fs::symlink_metadata(path).is_ok() {
            return Self::open(path, example);
        }
        let folder = folder_beside(path)?;
        Ok(Self::Fresh { path: path.to_owned(), layout: Layout::open_or_create(folder.path())?, folder })
    }

    /// The same, sealed to `recipients`; what is not sealed yet is kept in `work`.
    pub fn sealed_to(self, recipients: Recipients, work: Option<PathBuf>) -> Self {
        let seal = |layout: Layout| layout.sealed_to(recipients, work);
        match self {
            Self::Directory(layout) => Self::Directory(seal(layout)),
            Self::Fresh { path, layout, folder } => Self::Fresh { path, layout: seal(layout), folder },
            Self::Tar { path, layout, _folder } => Self::Tar { path, layout: seal(layout), _folder },
            Self::Stdout { layout, _folder } => Self::Stdout { layout: seal(layout), _folder },
        }
    }

    /// The layout to write to.
    pub fn layout(&self) -> &Layout {
        match self {
            Self::Directory(layout)
            | Self::Fresh { layout, .. }
            | Self::Tar { layout, .. }
            | Self::Stdout { layout, .. } => layout,
        }
    }

    /// Writes the tar form, if that was asked and there is something in it.
    pub fn finish(self, out: &mut dyn Write, filled: bool) -> Result<()> {
        match self {
            Self::Stdout { ref layout, .. } if filled => archive::write(layout, out),
            Self::Tar { path, layout, _folder: folder } if filled => {
                let made = archive::turn_into_file(&layout, folder.path())?;
                let made = tempfile::TempPath::try_from_path(made).at("find", &path)?;
                made.persist_noclobber(&path).map_err(|e| e.error).at("create", &path)?;
                sync_beside(&path)
            }
            Self::Fresh { path, folder, .. } if filled => {
                fs::rename(folder.path(), &path).at("create", &path)?;
                // It has another name now; the guard must not look for the old one.
                let _ = folder.keep();
                sync_beside(&path)
            }
            _ => Ok(()),
        }
    }
}

fn beside(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn folder_beside(path: &Path) -> Result<tempfile::TempDir> {
    let beside = beside(path);
    tempfile::Builder::new().prefix(".dewar-").tempdir_in(beside).at("write into", beside)
}

fn sync_beside(path: &Path) -> Result<()> {
    let beside = beside(path);
    File::open(beside).and_then(|dir| dir.sync_all()).at("sync", beside)
}
