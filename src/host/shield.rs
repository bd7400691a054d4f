//! A view of the machine in which reading leaves no trace: a mount namespace of our own, where no file system keeps access
//! times, and where those that hold nothing but sources cannot be written.
//!
//! `O_NOATIME` is for files and directories that one opens oneself. Symbolic links have no such thing, nor have the ways
//! that the kernel walks; where a file system is mounted `strictatime`, or a link was not followed for a day (`relatime`),
//! each moves a time on the disk. Flags of a mount are each namespace's own: nobody else sees ours.
//!
//! Two things must see the machine as it is: CRIU, which compares its own mounts with the container's, and the watchdog,
//! which may outlive us and must not keep mounts busy. They are started by a thread that stays outside ([`outside`]).

use std::{
    env,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
};

use nix::sched::{self, CloneFlags};
use rustix::mount::{self as sys, MountFlags, MountPropagationFlags};

use super::{
    Host, ground,
    mounts::{self, Mount},
};

type Work = Box<dyn FnOnce() + Send>;

/// Who stays outside.
static OUTSIDE: OnceLock<Mutex<Sender<Work>>> = OnceLock::new();

/// The mounts that cannot be written by us; `None` while there is no shield.
static SEALED: Mutex<Option<Vec<PathBuf>>> = Mutex::new(None);

/// File systems of this machine that keep access times. Others, a network's above all, may not answer, and are left alone.
const LOCAL: [&str; 12] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay", "tmpfs", "vfat", "nilfs2"];

/// A path through one of these could wait for another machine.
const REMOTE: [&str; 10] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "fuse.sshfs", "autofs"];

/// Raises it, for the whole process: to be called before there is any other thread. Without the right to, nothing changes,
/// and [`told`] says so.
pub fn raise() {
    let host = Host::default();
    let Ok(known) = ground::remember(&host) else { return };
    let (sender, receiver) = mpsc::channel::<Work>();
    let outside =
        thread::Builder::new().name("outside".into()).spawn(move || receiver.into_iter().for_each(|work| work()));
    if outside.is_err() || sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).is_err() {
        return;
    }
    let _ = OUTSIDE.set(Mutex::new(sender));
    // What others mount and unmount from now on is so for us too; in a chroot, where `/` is no mount, it is not.
    let _ = sys::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC);
    for mount in known.iter().filter(|mount| is_local(mount, known)) {
        // One that refuses is as it was: there O_NOATIME must do.
        let _ = sys::mount_remount(Path::new(&mount.at), flags(mount) | MountFlags::NOATIME, c"");
    }
    *SEALED.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
}

/// Makes the mounts of `host` that are not written to, by way of one of `written`, read-only for us.
pub fn seal(host: &Host, written: &[&Path]) {
    let mut sealed = SEALED.lock().unwrap_or_else(PoisonError::into_inner);
    let (Some(sealed), Ok(known)) = (sealed.as_mut(), ground::remember(host)) else { return };
    let (temp, dot) = (env::temp_dir(), PathBuf::from("."));
    let ours = [host.run.as_path(), &temp, &dot, Path::new("/dev"), Path::new("/proc"), Path::new("/sys")];
    let written: Vec<_> = written.iter().copied().chain(ours).filter_map(existing).collect();
    let places: Vec<_> = host.places().iter().filter_map(|place| existing(place)).collect();
    for mount in known.iter().filter(|mount| is_local(mount, known)) {
        let at = Path::new(&mount.at);
        let is_on = |path: &PathBuf| mounts::of(known, path).is_some_and(|on| on.id == mount.id);
        let is_source = places.iter().any(|place| is_on(place) || at.starts_with(place));
        // A mount below which something is written has no write of its own.
        let is_wanted = is_source && !written.iter().any(is_on) && !sealed.contains(&at.to_owned());
        let quiet = flags(mount) | MountFlags::NOATIME | MountFlags::RDONLY;
        if is_wanted && sys::mount_remount(at, quiet, c"").is_ok() {
            sealed.push(at.to_owned());
        }
    }
}

/// `path` free of links, or as much of it as is there.
fn existing(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    whole.ancestors().find_map(|above| above.canonicalize().ok())
}

fn is_local(mount: &Mount, all: &[Mount]) -> bool {
    let is = |mount: &Mount, kinds: &[&str]| kinds.iter().any(|kind| mount.fs == *kind);
    let is_above = |other: &&Mount| Path::new(&mount.at).starts_with(Path::new(&other.at));
    is(mount, &LOCAL) && !all.iter().filter(is_above).any(|above| is(above, &REMOTE))
}

/// The flags that a mount has, for a call that sets them all.
fn flags(mount: &Mount) -> MountFlags {
    let known = [
        ("ro", MountFlags::RDONLY),
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("nodiratime", MountFlags::NODIRATIME),
    ];
    let own = mount.own.to_string_lossy();
    let has = |name: &str| own.split(',').any(|option| option == name);
    known.into_iter().filter(|(name, _)| has(name)).fold(MountFlags::BIND, |all, (_, flag)| all | flag)
}

/// Does `work` where the machine's mounts are as everybody sees them.
pub fn outside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let Some(sender) = OUTSIDE.get() else { return work() };
    let (answer, answered) = mpsc::channel();
    let sent = {
        let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(Box::new(move || _ = answer.send(work())))
    };
    // The thread ends with the process only.
    match sent.map(|()| answered.recv()) {
        Ok(Ok(result)) => result,
        _ => panic!("the thread outside has ended"),
    }
}

/// In words, for a record: what keeps reading from leaving a trace.
pub fn told() -> String {
    match SEALED.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
        None => "files and directories were opened read-only with O_NOATIME, where that is permitted (it is the owner's and \
                 root's); there was no right to a mount namespace, so access times of symbolic links may have moved"
            .into(),
        Some(sealed) => {
            let noatime = "read in a mount namespace of its own, in which local file systems keep no access times (noatime), \
                           and files are opened read-only with O_NOATIME";
            match sealed {
                [] => noatime.into(),
                mounts => {
                    let names: Vec<_> = mounts.iter().map(|at| at.display().to_string()).collect();
                    format!("{noatime}; in it these mounts were read-only: {}", names.join(", "))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_keeps_its_flags_and_one_below_a_network_is_left_alone() {
        let text = b"1 0 8:1 / / rw,relatime - ext4 /dev/a rw\n\
            2 1 0:30 / /net ro,nosuid - nfs4 host:/ rw\n\
            3 2 8:2 / /net/disk ro,nosuid,nodev,noexec,noatime - ext4 /dev/b ro\n";
        let all = mounts::parse(text);
        let local: Vec<_> = all.iter().filter(|mount| is_local(mount, &all)).map(|mount| mount.id).collect();
        assert_eq!(local, [1]);
        let kept = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        assert_eq!((flags(&all[0]), flags(&all[2])), (MountFlags::BIND, MountFlags::BIND | kept));
    }

    #[test]
    fn without_a_shield_work_is_done_where_we_are() {
        assert_eq!(outside(|| 7), 7);
        assert!(told().contains("O_NOATIME"));
    }
}
