//! What the files that are read stand on: the mount, its file system, the device below; and whether one of them keeps
//! everybody from writing.
//!
//! Asked of the machine's mounts as they were when we began: what we mount for ourselves ([`super::shield`]) is read-only
//! whatever is below it.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{
    Host,
    mounts::{self, Mount},
};
use crate::error::{At, Error, Result};

static BEFORE: OnceLock<Vec<Mount>> = OnceLock::new();

/// What a directory or file stands on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ground {
    /// The directory or file, free of links.
    pub path: PathBuf,
    /// Where its file system is mounted.
    pub mounted_at: OsString,
    /// From what.
    pub device: OsString,
    /// The file system's type.
    pub file_system: OsString,
    /// Nothing can be written through the mount.
    pub is_read_only: bool,
    /// The block device refuses writes; `None` where there is none, or the kernel does not tell.
    pub is_device_read_only: Option<bool>,
}

/// Remembers what is mounted. The first call counts.
pub fn remember(host: &Host) -> Result<&'static [Mount]> {
    if let Some(known) = BEFORE.get() {
        return Ok(known);
    }
    let mounts = mounts::read(&host.proc.join("self/mountinfo"))?;
    Ok(BEFORE.get_or_init(|| mounts))
}

/// What `path` stands on.
pub fn of(host: &Host, path: &Path) -> Result<Ground> {
    let path = path.canonicalize().at("look up", path)?;
    let mounts = remember(host)?;
    let Some(mount) = mounts::of(mounts, &path) else {
        return Err(Error::malformed(&path, "is on no mount that /proc/self/mountinfo tells of"));
    };
    Ok(Ground {
        mounted_at: mount.at.clone(),
        device: mount.source.clone(),
        file_system: mount.fs.clone(),
        is_read_only: mount.is_read_only,
        is_device_read_only: refuses_writes(mount),
        path,
    })
}

/// `/sys/dev/block/<major>:<minor>/ro`. A btrfs has a number of its own: there the device that it was mounted from counts.
fn refuses_writes(mount: &Mount) -> Option<bool> {
    let ro = |(major, minor): (u64, u64)| fs::read(format!("/sys/dev/block/{major}:{minor}/ro")).ok();
    let named = || {
        let meta = fs::metadata(&mount.source).ok().filter(|meta| meta.file_type().is_block_device())?;
        Some((nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev())))
    };
    let own = (u64::from(mount.dev.0), u64::from(mount.dev.1));
    ro(own).or_else(|| ro(named()?)).map(|word| word.starts_with(b"1"))
}

/// The same as [`refuse_writable`], where that was asked for.
pub fn refuse_writable_if(host: &Host, paths: &[PathBuf]) -> Result<()> {
    if host.write_blocked { refuse_writable(host, paths.iter().map(PathBuf::as_path)) } else { Ok(()) }
}

/// An error unless everything that `paths` name, as far as it is there, stands on what cannot be written.
pub fn refuse_writable<'p>(host: &Host, paths: impl IntoIterator<Item = &'p Path>) -> Result<()> {
    for path in paths.into_iter().filter(|path| path.symlink_metadata().is_ok()) {
        let ground = of(host, path)?;
        if !ground.is_read_only && ground.is_device_read_only != Some(true) {
            return Err(writable(&ground));
        }
    }
    Ok(())
}

fn writable(ground: &Ground) -> Error {
    let at = Path::new(&ground.mounted_at).display();
    Error::Unsupported {
        what: format!(
            "--write-blocked: {} is on {at} ({} on {}), which is mounted for writing; nothing was read of it",
            ground.path.display(),
            Path::new(&ground.file_system).display(),
            Path::new(&ground.device).display(),
        ),
        hint: "mount an image of the disk, or the disk behind a write blocker, read-only (ext4: -o ro,noload; xfs: -o \
               ro,norecovery) and name it with --sysroot"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_for_writing_is_refused_by_name_and_what_is_not_there_is_passed_over() {
        let host = Host::default();
        let temp = tempfile::tempdir().unwrap();
        let said = refuse_writable(&host, [temp.path()]).unwrap_err().to_string();
        assert!(said.contains(temp.path().to_str().unwrap()) && said.contains("--sysroot"), "{said}");
        refuse_writable(&host, [temp.path().join("absent").as_path()]).unwrap();
        assert_eq!(of(&host, "/proc/self".as_ref()).unwrap().file_system, "proc");
    }
}
