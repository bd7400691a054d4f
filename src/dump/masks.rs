//! Paths that crun hides from a container: made restorable by any runtime.
//!
//! runc hides a directory under an empty tmpfs and a file under the container's own `/dev/null`; both are of the container, so
//! its images have them. crun (since 1.24) binds an empty directory of its own state over the one, and the host's null device
//! over the other (`src/libcrun/linux.c`, `do_masked_or_readonly_path`). CRIU dumps such a mount by a name only, and whoever
//! restores must know what the name stands for: runc does not know crun's names, and crun not runc's. So after the dump the
//! images are told to make the same as runc would have made: what the container sees is the same, and no name is left.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use crate::{
    criu::image::{self, Kind, Mount},
    error::{At, In, Result},
};

/// The name under which a hidden directory is dumped.
pub const DIRECTORY: &str = "dewar/masked-directory";
/// The name under which a hidden file is dumped.
pub const FILE: &str = "dewar/masked-file";

/// What runc calls a hidden file at its restore.
const RUNCS_NULL: &str = "/dev/null";

/// CRIU's number for tmpfs (`images/mnt.proto`).
const TMPFS: u32 = 5;

/// Gives every hidden path in the images a mount of the container's own. Does nothing where no runtime like crun was at work.
pub fn settle(images: &Path) -> Result<()> {
    for entry in fs::read_dir(images).at("read", images)? {
        let path = entry.at("read", images)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mountpoints-")) {
            settle_namespace(images, &path)?;
        }
    }
    Ok(())
}

fn settle_namespace(images: &Path, path: &Path) -> Result<()> {
    let bytes = fs::read(path).at("read", path)?;
    let mut mounts: Vec<Mount> = image::messages(Kind::Mounts, &bytes).within(path)?;
    if !mounts.iter().any(|m| is(m, DIRECTORY) || is(m, FILE)) {
        return Ok(());
    }
    let dev = mounts.iter().find(|m| has_null(m)).cloned();
    for at in 0..mounts.len() {
        if is(&mounts[at], DIRECTORY) {
            let unused = (1..).find(|dev| mounts.iter().all(|m| m.dev != *dev)).unwrap_or(u32::MAX);
            become_empty_tmpfs(&mut mounts[at], unused);
            write_empty_content(images, unused)?;
        } else if is(&mounts[at], FILE) {
            become_null(&mut mounts[at], dev.as_ref());
        }
    }
    // Written anew, with the rights of a new file: they are narrowed for all images together.
    fs::write(path, image::image(Kind::Mounts, &mounts)).at("write", path)
}

fn is(mount: &Mount, key: &str) -> bool {
    mount.key.as_deref() == Some(key)
}

/// The container's own `/dev`, a tmpfs in which every runtime makes `null`. CRIU writes `./dev`.
fn has_null(mount: &Mount) -> bool {
    mount.at.trim_start_matches('.') == "/dev" && mount.fstype == TMPFS && mount.root == "/" && mount.key.is_none()
}

fn become_empty_tmpfs(mount: &mut Mount, dev: u32) {
    mount.fstype = TMPFS;
    mount.fsname = None;
    mount.dev = dev;
    mount.root = "/".into();
    mount.source = "tmpfs".into();
    mount.options = "nr_inodes=1,mode=555".into();
    become_private(mount);
}

/// A part of the container's `/dev`, as another bind mount of it. Without such, the name by which runc knows it.
fn become_null(mount: &mut Mount, dev: Option<&Mount>) {
    let Some(dev) = dev else {
        mount.key = Some(RUNCS_NULL.into());
        return;
    };
    let (id, parent, at, flags) = (mount.id, mount.parent, std::mem::take(&mut mount.at), mount.flags);
    *mount = Mount { id, parent, at, flags, root: "/null".into(), ..dev.clone() };
    become_private(mount);
}

fn become_private(mount: &mut Mount) {
    (mount.shared, mount.master) = (mount.shared.map(|_| 0), mount.master.map(|_| 0));
    (mount.key, mount.external, mount.internal_sharing) = (None, None, None);
}

/// What a tmpfs holds stands in an image of its own, a tar without any magic before it (CRIU `filesystems.c`).
fn write_empty_content(images: &Path, dev: u32) -> Result<()> {
    let path = images.join(format!("tmpfs-dev-{dev}.tar.gz.img"));
    let mut gzip = GzEncoder::new(File::create(&path).at("create", &path)?, Compression::default());
    gzip.write_all(&[0; 1024]).at("write", &path)?;
    gzip.finish().at("write", &path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u32, dev: u32, root: &str, at: &str, key: Option<&str>) -> Mount {
        let (root, at, key) = (root.into(), at.into(), key.map(str::to_owned));
        Mount { fstype: TMPFS, id, dev, root, at, key, shared: Some(0), master: Some(7), ..Mount::default() }
    }

    fn settled(mounts: &[Mount]) -> (tempfile::TempDir, Vec<Mount>) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("mountpoints-13.img");
        fs::write(&path, image::image(Kind::Mounts, mounts)).unwrap();
        settle(temp.path()).unwrap();
        let after = image::messages(Kind::Mounts, &fs::read(path).unwrap()).unwrap();
        (temp, after)
    }

    #[test]
    fn hidden_paths_become_mounts_that_need_no_name() {
        let before = [
            mount(1, 1, "/", "./", None),
            mount(2, 40, "/", "./dev", None),
            mount(3, 45, "/null", "./proc/keys", Some(FILE)),
            mount(4, 48, "/run/.empty-directory", "./proc/acpi", Some(DIRECTORY)),
            mount(5, 48, "/run/.empty-directory", "./sys/firmware", Some(DIRECTORY)),
            mount(6, 50, "/hosts", "./etc/hosts", Some("/etc/hosts")),
        ];
        let (temp, after) = settled(&before);
        assert_eq!((&after[..2], &after[5]), (&before[..2], &before[5]), "what is not hidden stays");
        assert_eq!((after[2].dev, after[2].root.as_str(), after[2].key.as_deref()), (40, "/null", None));
        assert_eq!(after[2].at, "./proc/keys");
        let devs: Vec<u32> = after.iter().map(|m| m.dev).collect();
        assert_eq!(devs, [1, 40, 40, 2, 3, 50], "each tmpfs is one of its own");
        for dev in [2, 3] {
            assert!(temp.path().join(format!("tmpfs-dev-{dev}.tar.gz.img")).exists());
        }
    }

    #[test]
    fn without_a_dev_of_its_own_a_hidden_file_has_runcs_name() {
        let (_temp, after) = settled(&[mount(3, 45, "/null", "./proc/keys", Some(FILE))]);
        assert_eq!(after[0].key.as_deref(), Some("/dev/null"));
    }

    #[test]
    fn images_without_hidden_paths_are_left_as_they_are() {
        let before = [mount(1, 1, "/", "./", None), mount(3, 45, "/null", "./proc/keys", Some("/dev/null"))];
        assert_eq!(settled(&before).1, before);
    }
}
