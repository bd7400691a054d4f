//! Keys that are named on the command line: to whom a checkpoint is sealed, and who opens it.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use dewar::{
    crypt::{self, Identities, Recipients},
    error::{At, Error, Result},
};
use zeroize::Zeroizing;

/// A key file is of some hundred bytes, one of many recipients of some thousand.
const MAX_KEY: u64 = 64 << 10;

/// Opens a key file.
pub fn open(path: &Path) -> Result<File> {
    let file = File::open(path).at("read the key", path)?;
    match file.metadata().at("look at", path)?.is_file() {
        true => Ok(file),
        false => Err(Error::malformed(path, "is no regular file")),
    }
}

/// Its text, wiped when it is dropped.
pub fn text_of(file: File, path: &Path) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY as usize));
    file.take(MAX_KEY).read_to_string(&mut text).at("read the key", path)?;
    Ok(text)
}

/// The text of a key file.
pub fn text(path: &Path) -> Result<Zeroizing<String>> {
    text_of(open(path)?, path)
}

/// To whom a checkpoint is sealed.
#[derive(clap::Args)]
#[command(next_help_heading = "Secrets")]
pub struct Seal {
    /// Encrypt all but the base image to this age recipient (age1…); again: to each of these
    #[arg(long, value_name = "RECIPIENT")]
    seal: Vec<String>,
    /// The same, to the recipients in this file, one a line
    #[arg(long, value_name = "FILE")]
    seal_file: Vec<PathBuf>,
    /// Keep what is not encrypted yet in this directory, as on a tmpfs, so that it never is on the disk [default: in the layout]
    #[arg(long, value_name = "DIR")]
    pub staging: Option<PathBuf>,
}

impl Seal {
    /// Those that were named; `None`: nothing is sealed.
    pub fn recipients(&self) -> Result<Option<Recipients>> {
        if self.seal.is_empty() && self.seal_file.is_empty() {
            return Ok(None);
        }
        let bad = |place: &str, why: String| Error::Unsupported {
            what: format!("{place}: {why}"),
            hint: "nothing was read or written".into(),
        };
        let mut all: Vec<String> = Vec::new();
        for given in &self.seal {
            Recipients::parse([given.as_str()]).map_err(|why| bad("--seal", why))?;
            all.push(given.clone());
        }
        for path in &self.seal_file {
            let (place, text) = (path.display().to_string(), text(path)?);
            Recipients::parse(crypt::lines(&text)).map_err(|why| bad(&place, why))?;
            all.extend(crypt::lines(&text).map(str::to_owned));
        }
        Recipients::parse(all.iter().map(String::as_str)).map(Some).map_err(|why| bad("--seal", why))
    }

    /// Where what is not sealed yet is kept.
    pub fn staging(&self) -> Result<Option<PathBuf>> {
        let Some(dir) = &self.staging else { return Ok(None) };
        if self.seal.is_empty() && self.seal_file.is_empty() {
            return Err(Error::Unsupported {
                what: "--staging is for what is sealed, and --seal names no recipient".into(),
                hint: "give --seal or --seal-file, too".into(),
            });
        }
        let is_dir = match fs::metadata(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound {
                    what: format!("the directory {} of --staging", dir.display()),
                    hint: "make it first, on a tmpfs if no plaintext may be on a disk (mkdir /dev/shm/staging)".into(),
                });
            }
            looked => looked.at("look at", dir)?.is_dir(),
        };
        match is_dir {
            // CRIU is started elsewhere.
            true => fs::canonicalize(dir).at("find", dir).map(Some),
            false => Err(Error::malformed(dir, "is no directory")),
        }
    }
}

/// The identities in these files.
pub fn identities(paths: &[PathBuf]) -> Result<Option<Identities>> {
    let one = |path: &PathBuf| Identities::parse(&text(path)?).map_err(|why| Error::malformed(path, why));
    paths.iter().map(one).try_fold(None, |all: Option<Identities>, more| {
        let more = more?;
        Ok(Some(match all {
            Some(all) => all.and(more),
            None => more,
        }))
    })
}
