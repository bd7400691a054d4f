//! What is written once, or not at all: files that become a blob, and blobs whose blocks two directories share. The
//! file systems are real ones, on loop devices.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use dewar::{
    digest::Digest,
    layout::{Layout, Staging, assembly::Assembly},
    pax::{Header, Time, Type},
};
use nix::mount::{MntFlags, umount2};

use crate::harness::is_root_for;

const MIB: u64 = 1 << 20;

/// A file system of this kind. Dropped, it is unmounted.
struct Disk {
    at: PathBuf,
    _temp: tempfile::TempDir,
}

impl Disk {
    /// `None`, said aloud, where there is no such file system.
    fn of(kind: &str) -> Option<Self> {
        if !is_root_for("mounting a file system") {
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let (image, at) = (temp.path().join("image"), temp.path().join("disk"));
        File::create(&image).unwrap().set_len(400 * MIB).unwrap();
        fs::create_dir(&at).unwrap();
        let made =
            Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image).output().is_ok_and(|o| o.status.success());
        let mounted =
            made && Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).status().is_ok_and(|s| s.success());
        if !mounted {
            assert!(std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but there is no {kind} here");
            eprintln!("skipped: no {kind} here (mkfs.{kind}, and a kernel that has it)");
        }
        mounted.then_some(Self { at, _temp: temp })
    }

    /// How much it takes to do this, in bytes.
    fn cost(&self, work: impl FnOnce()) -> u64 {
        let free = || {
            let file = File::open(&self.at).unwrap();
            rustix::fs::syncfs(&file).unwrap();
            let stat = rustix::fs::fstatvfs(&file).unwrap();
            stat.f_bfree * stat.f_frsize
        };
        let before = free();
        work();
        before.saturating_sub(free())
    }

    fn staging(&self) -> Staging {
        Layout::open_or_create(&self.at.join("layout")).unwrap().stage().unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.at, MntFlags::MNT_DETACH).expect("unmount");
    }
}

/// Bytes that no file system finds twice.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let words = (0..len / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    });
    words.collect()
}

fn header(path: &str, size: u64) -> Header<'_> {
    let (kind, path, link, mtime) = (Type::File, path.as_bytes(), &b""[..], Time::default());
    Header { kind, path, link, mode: 0o600, uid: 0, gid: 0, size, mtime, device: (0, 0), xattrs: &[] }
}

#[test]
fn a_blob_of_the_store_is_shared_where_blocks_can_be_and_its_inode_stays_as_it_was() {
    for (kind, shares) in [("btrfs", true), ("xfs", true), ("ext4", false)] {
        let Some(disk) = Disk::of(kind) else { continue };
        let (content, store) = (noise(32 * MIB), disk.at.join("store"));
        fs::write(&store, &content).unwrap();
        let before = fs::metadata(&store).unwrap();
        let (staging, digest) = (disk.staging(), Digest::of(&content));
        let file = File::open(&store).unwrap();
        let cost = disk.cost(|| {
            assert!(staging.copy_of(&file, &store, &Digest::of(b"another")).unwrap().is_none());
            assert_eq!(staging.copy_of(&file, &store, &digest).unwrap().unwrap().size, 32 * MIB);
        });
        assert_eq!(cost < 4 * MIB, shares, "{kind}: {cost} bytes");
        assert!(staging.read_blob(&digest).unwrap() == content);
        let after = fs::metadata(&store).unwrap();
        let told = |meta: &fs::Metadata| (meta.ino(), meta.nlink(), meta.ctime(), meta.ctime_nsec(), meta.mode());
        assert_eq!(told(&before), told(&after), "{kind}");
    }
}

#[test]
fn memory_becomes_a_tar_without_being_written_again() {
    let mut digests = Vec::new();
    for kind in ["btrfs", "xfs", "ext4"] {
        let Some(disk) = Disk::of(kind) else { continue };
        let staging = disk.staging();
        let folder = staging.folder("criu").unwrap();
        let mut tar = Assembly::default();
        for (name, mib) in [("core-1.img", 0), ("pages-1.img", 40), ("pages-2.img", 2), ("pstree.img", 0)] {
            let size = if mib == 0 { 4321 } else { mib * MIB };
            fs::write(folder.join(name), &noise(size + 8)[..usize::try_from(size).unwrap()]).unwrap();
            tar.push(&header(name, size), Some(folder.join(name)));
        }
        let mut blob = None;
        let cost = disk.cost(|| blob = Some(staging.assemble(tar).unwrap()));
        let blob = blob.unwrap();
        // The smaller one of two may be copied: only one file can grow into the tar.
        assert!(cost < 4 * MIB, "{kind}: {cost} bytes for {}", blob.size);
        let bytes = staging.read_blob(&blob.digest).unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest, "{kind}");
        assert!(entries(&bytes, &disk.at) == 4, "{kind}");
        digests.push(blob.digest);
    }
    digests.dedup();
    assert!(digests.len() <= 1, "the same images are the same bytes on every file system");
}

/// What GNU tar and Python, which have readers of their own, unpack it to.
fn entries(tar: &[u8], work: &Path) -> usize {
    let (file, out) = (work.join("t.tar"), work.join("out"));
    fs::write(&file, tar).unwrap();
    fs::create_dir(&out).unwrap();
    assert!(Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&out).status().unwrap().success());
    let script = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n assert open(sys.argv[2]+'/'+m.name,'rb').read()==tarfile.open(sys.argv[1]).extractfile(m).read()";
    let agreed = Command::new("python3").args(["-c", script]).arg(&file).arg(&out).status().unwrap();
    assert!(agreed.success());
    fs::read_dir(out).unwrap().count()
}
