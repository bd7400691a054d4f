//! Small documents of others' directories (`state.json`, `options.json`, `init.pid`): read whole, or not at all.
//!
//! Whoever can write there could have put a link, a named pipe, a device or a file without end in the place of one. So
//! every name is taken below an open directory, no link is followed, and only a regular file of bounded size is read.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use rustix::fs::{Mode, OFlags, open, openat};

use crate::{
    error::{At, Error, Result},
    ledger,
};

/// The largest documents (a spec with thousands of mounts) are of some hundred KiB.
const MAX: u64 = 16 << 20;

/// The file `names` below `dir`, of which the last is the file; `None` if it, or a directory on the way, is not there.
pub fn read(dir: &Path, names: &[&str]) -> Result<Option<Vec<u8>>> {
    let path = names.iter().fold(dir.to_owned(), |path, name| path.join(name));
    let file = match reach(dir, names) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(Error::malformed(path, "is a symbolic link, or lies behind one: it is not followed"));
        }
        Err(e) => return Err(e).at("open", path),
    };
    let meta = file.metadata().at("look at", &path)?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "is no regular file"));
    }
    if meta.len() > MAX {
        return Err(Error::malformed(path, format!("is too large: {} bytes, at most {MAX} are read", meta.len())));
    }
    let (seen, mut bytes) = (ledger::look(&file), Vec::new());
    file.take(MAX).read_to_end(&mut bytes).at("read", &path)?;
    ledger::read("document", &path, seen, &bytes);
    Ok(Some(bytes))
}

fn reach(dir: &Path, names: &[&str]) -> io::Result<File> {
    let walk = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The directory itself is the user's or containerd's choice, and may be named through links (`/var/run`).
    let mut at: OwnedFd = open(dir, walk, Mode::empty())?;
    let (last, way) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
    for name in way {
        at = openat(&at, *name, walk | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| match e {
            // What O_DIRECTORY makes of a link.
            rustix::io::Errno::NOTDIR => rustix::io::Errno::LOOP,
            e => e,
        })?;
    }
    // NONBLOCK: the opening of a named pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(&at, *last, flags | OFlags::NOATIME, Mode::empty()) {
        // NOATIME is the owner's and root's.
        Err(rustix::io::Errno::PERM) => openat(&at, *last, flags, Mode::empty()),
        opened => opened,
    }?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read_and_no_link_followed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        fs::create_dir_all(dir.join("ns/id")).unwrap();
        fs::write(dir.join("ns/id/file"), "text").unwrap();
        symlink("file", dir.join("ns/id/link")).unwrap();
        symlink("id", dir.join("ns/linked")).unwrap();
        symlink(dir, dir.join("root")).unwrap();
        nix::unistd::mkfifo(&dir.join("ns/id/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::File::create(dir.join("ns/id/huge")).unwrap().set_len(MAX + 1).unwrap();
        let said = |names: &[&str]| match read(&dir.join("root"), names) {
            Ok(bytes) => bytes.map_or("none".into(), |b| String::from_utf8(b).unwrap()),
            Err(e) => e.to_string(),
        };
        assert_eq!(said(&["ns", "id", "file"]), "text");
        assert_eq!(said(&["ns", "id", "absent"]), "none");
        assert_eq!(said(&["ns", "absent", "file"]), "none");
        assert!(said(&["ns", "id", "link"]).contains("symbolic link"));
        assert!(said(&["ns", "linked", "file"]).contains("symbolic link"));
        assert!(said(&["ns", "id", "fifo"]).contains("no regular file"));
        assert!(said(&["ns", "id", "huge"]).contains("too large"));
        assert!(said(&["ns", "id"]).contains("no regular file"));
        fs::set_permissions(dir.join("ns/id/file"), fs::Permissions::from_mode(0o000)).unwrap();
        assert!(nix::unistd::geteuid().is_root() || read(dir, &["ns", "id", "file"]).unwrap_err().is_permission());
    }
}
