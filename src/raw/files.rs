//! Files that only a process holds any more: which of them may be read while it stands still, and how they are opened.
//!
//! A file system that is served by a process may be served by one of those that are held: whoever asks it anything waits
//! until they run again. So a file is not even looked at before the mount it is of is known to be of another kind.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create, openat};

use crate::{
    host::{Host, mounts::Mount},
    procfs::process::Descriptor,
};

/// File systems that ask somebody else, by the beginning of their type.
const ASKING: [&str; 11] =
    ["fuse", "virtiofs", "nfs", "cifs", "smb", "9p", "ceph", "afs", "orangefs", "lustre", "autofs"];

/// What is known of mounts and devices: true of what may be read.
#[derive(Debug, Default)]
pub struct Known {
    mounts: BTreeMap<u64, bool>,
    devices: BTreeMap<(u32, u32), bool>,
}

impl Known {
    /// Knows the kernel's own mount for memory without a name (memfd, System V, `/dev/zero`): that of a memfd of ours.
    pub fn new(host: &Host) -> Self {
        let mut known = Self::default();
        let Ok(ours) = memfd_create("dewar", MemfdFlags::CLOEXEC) else { return known };
        let ours = File::from(ours);
        if let Ok(meta) = ours.metadata() {
            known.devices.insert((rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev())), true);
        }
        let fd = std::os::fd::AsRawFd::as_raw_fd(&ours);
        let info = fs::read(host.proc.join(format!("self/fdinfo/{fd}"))).unwrap_or_default();
        known.mounts.extend(Descriptor::parse(&info).mount.map(|id| (id, true)));
        known
    }

    /// Learns what is mounted.
    pub fn learn(&mut self, mounts: &[Mount]) {
        for mount in mounts {
            let kind = mount.fs.to_string_lossy();
            let may = !ASKING.iter().any(|asking| kind.starts_with(asking));
            self.mounts.insert(mount.id, may);
            // One number stands for one file system, wherever it is mounted.
            self.devices.insert(mount.dev, may);
        }
    }

    /// True if files of the mount with this number may be read.
    pub fn may_read_mount(&self, id: u64) -> bool {
        self.mounts.get(&id).copied().unwrap_or(false)
    }

    /// True if files of this device may be read.
    pub fn may_read_device(&self, id: (u32, u32)) -> bool {
        self.devices.get(&id).copied().unwrap_or(false)
    }
}

/// The file that a link of procfs stands for, if it is a regular one. A device is never opened: that alone may do something.
pub fn regular(link: &Path) -> io::Result<Option<(File, fs::Metadata)>> {
    let held = File::from(openat(CWD, link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    let meta = held.metadata()?;
    if !meta.is_file() || meta.file_type().is_fifo() {
        return Ok(None);
    }
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // Only its owner, or root, may ask for access times to be kept.
    let file = openat(CWD, again.as_str(), flags | OFlags::NOATIME, Mode::empty())
        .or_else(|_| openat(CWD, again.as_str(), flags, Mode::empty()))?;
    Ok(Some((File::from(file), meta)))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, io::Write, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn memory_without_a_name_is_known_and_a_served_file_system_is_not_touched() {
        let mut known = Known::new(&Host::default());
        let other = File::from(memfd_create("x", MemfdFlags::CLOEXEC).unwrap());
        let info = fs::read(format!("/proc/self/fdinfo/{}", other.as_raw_fd())).unwrap();
        assert!(known.may_read_mount(Descriptor::parse(&info).mount.unwrap()));
        let mount = |id, fs: &str| {
            let text = OsString::new;
            Mount {
                id,
                parent: 1,
                dev: (0, id as u32),
                root: text(),
                at: text(),
                fs: fs.into(),
                source: text(),
                own: text(),
                is_read_only: false,
                options: text(),
            }
        };
        known.learn(&[mount(9001, "fuse.sshfs"), mount(9002, "ext4")]);
        assert!(!known.may_read_mount(9001) && known.may_read_mount(9002) && !known.may_read_mount(9003));
        assert!(!known.may_read_device((0, 9001)) && known.may_read_device((0, 9002)));
    }

    #[test]
    fn an_unlinked_file_is_opened_and_a_device_is_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"gone").unwrap();
        let link = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let (mut again, meta) = regular(Path::new(&link(&file))).unwrap().unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut again, &mut text).unwrap();
        assert_eq!((text.as_str(), meta.nlink()), ("gone", 0));
        assert!(regular(Path::new(&link(&File::open("/dev/null").unwrap()))).unwrap().is_none());
        assert!(regular(Path::new("/proc/self/fd/9999")).is_err());
    }
}
