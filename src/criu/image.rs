//! CRIU's image files: two magic numbers, then entries, each a length and a protobuf message.
//!
//! ```text
//! 0x54564319 u32 │ type magic u32 │ ( size u32 │ message )…        images
//! 0x55105940 u32 │ type magic u32 │ …                              service files (stats-dump)
//! inventory magic u32             │ …                              inventory.img has its own magic only
//! ```
//! Source: CRIU `criu/image.c` (`img_write_magic`), `criu/include/magic.h`.

use prost::Message;

use crate::{corrupt::Corrupt, proto};

const COMMON: u32 = 0x5456_4319;
const SERVICE: u32 = 0x5510_5940;

/// The kinds of image we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `inventory.img`.
    Inventory,
    /// `pstree.img`.
    Pstree,
    /// `core-<pid>.img`.
    Core,
    /// `pagemap-<pid>.img`.
    Pagemap,
    /// `mountpoints-<namespace>.img`.
    Mounts,
    /// `stats-dump`.
    Stats,
    /// `files.img`.
    Files,
    /// `fdinfo-<files id>.img`.
    Fdinfo,
    /// `mm-<pid>.img`.
    Mm,
    /// `ids-<pid>.img`.
    Ids,
    /// `fs-<pid>.img`.
    Fs,
    /// `remap-fpath.img`.
    Remaps,
}

impl Kind {
    fn magic(self) -> (Option<u32>, u32) {
        match self {
            Self::Inventory => (None, 0x5831_3116),
            Self::Pstree => (Some(COMMON), 0x5027_3030),
            Self::Core => (Some(COMMON), 0x5505_3847),
            Self::Pagemap => (Some(COMMON), 0x5608_4025),
            Self::Mounts => (Some(COMMON), 0x5556_3928),
            Self::Stats => (Some(SERVICE), 0x5709_3306),
            Self::Files => (Some(COMMON), 0x5630_3138),
            Self::Fdinfo => (Some(COMMON), 0x5621_3732),
            Self::Mm => (Some(COMMON), 0x5749_2820),
            Self::Ids => (Some(COMMON), 0x5443_2030),
            Self::Fs => (Some(COMMON), 0x5140_3912),
            Self::Remaps => (Some(COMMON), 0x5913_3954),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Corrupt> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|w| u32::from_le_bytes(*w)).ok_or(Corrupt { at, why: "ends too soon" })
}

/// The messages of an image, in order.
pub fn entries(kind: Kind, bytes: &[u8]) -> Result<Vec<&[u8]>, Corrupt> {
    let (first, second) = kind.magic();
    let mut at = 0;
    for magic in first.into_iter().chain([second]) {
        if u32_at(bytes, at)? != magic {
            return Err(Corrupt { at, why: "not a CRIU image of this kind (wrong magic)" });
        }
        at += 4;
    }
    let mut all = Vec::new();
    while at < bytes.len() {
        let size = usize::try_from(u32_at(bytes, at)?).map_err(|_| Corrupt { at, why: "entry too large" })?;
        let end = (at + 4).checked_add(size).ok_or(Corrupt { at, why: "entry too large" })?;
        all.push(bytes.get(at + 4..end).ok_or(Corrupt { at, why: "an entry runs past the file" })?);
        at = end;
    }
    Ok(all)
}

/// The messages of an image, decoded.
pub fn messages<M: Message + Default>(kind: Kind, bytes: &[u8]) -> Result<Vec<M>, Corrupt> {
    entries(kind, bytes)?.into_iter().map(proto::decode).collect()
}

/// An image with these messages.
pub fn image<M: Message>(kind: Kind, messages: &[M]) -> Vec<u8> {
    let (first, second) = kind.magic();
    let magics = first.into_iter().chain([second]).flat_map(u32::to_le_bytes);
    let sized = messages.iter().flat_map(|message| {
        let bytes = message.encode_to_vec();
        // A message in memory is far from 4 GiB.
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        size.to_le_bytes().into_iter().chain(bytes)
    });
    magics.chain(sized).collect()
}

/// `mnt_entry` (`images/mnt.proto`), whole: one mount of a mount namespace, restored in the order they stand in.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// The kind of file system, as CRIU numbers them: 5 is tmpfs.
    #[prost(uint32, required, tag = "1")]
    pub fstype: u32,
    /// Its number in mountinfo.
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    /// Its file system; mounts of one are bind mounts of each other.
    #[prost(uint32, required, tag = "3")]
    pub dev: u32,
    /// The mount it is mounted on.
    #[prost(uint32, required, tag = "4")]
    pub parent: u32,
    /// Mount flags.
    #[prost(uint32, required, tag = "5")]
    pub flags: u32,
    /// Which directory or file of the file system.
    #[prost(string, required, tag = "6")]
    pub root: String,
    /// Where, as the namespace sees it.
    #[prost(string, required, tag = "7")]
    pub at: String,
    /// What was mounted.
    #[prost(string, required, tag = "8")]
    pub source: String,
    /// With which options of the file system.
    #[prost(string, required, tag = "9")]
    pub options: String,
    /// Its peer group.
    #[prost(uint32, optional, tag = "10")]
    pub shared: Option<u32>,
    /// The peer group it follows.
    #[prost(uint32, optional, tag = "11")]
    pub master: Option<u32>,
    /// A plugin restores it.
    #[prost(bool, optional, tag = "12")]
    pub with_plugin: Option<bool>,
    /// Older mark of an external mount.
    #[prost(bool, optional, tag = "13")]
    pub external: Option<bool>,
    /// The file system's name, where there is no number for it.
    #[prost(string, optional, tag = "14")]
    pub fsname: Option<String>,
    /// The peer group is the namespace's own.
    #[prost(bool, optional, tag = "15")]
    pub internal_sharing: Option<bool>,
    /// Its root has been removed.
    #[prost(bool, optional, tag = "16")]
    pub deleted: Option<bool>,
    /// Flags of the file system.
    #[prost(uint32, optional, tag = "17")]
    pub sb_flags: Option<u32>,
    /// The name under which whoever restores must say what to mount here.
    #[prost(string, optional, tag = "18")]
    pub key: Option<String>,
}

/// `inventory_entry` (`images/inventory.proto`).
#[derive(Clone, PartialEq, Message)]
pub struct Inventory {
    /// 1 or 2; the only ones there are.
    #[prost(uint32, tag = "1")]
    pub img_version: u32,
    /// 0 none, 1 SELinux, 2 AppArmor.
    #[prost(uint32, optional, tag = "6")]
    pub lsm_type: Option<u32>,
    /// 1 iptables, 2 nftables, 3 skip.
    #[prost(uint32, optional, tag = "11")]
    pub network_lock_method: Option<u32>,
}

/// `pstree_entry` (`images/pstree.proto`): one process.
#[derive(Clone, PartialEq, Message)]
pub struct Process {
    /// In the container's pid namespace.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Its parent there; 0 for the first.
    #[prost(uint32, tag = "2")]
    pub ppid: u32,
    /// Process group.
    #[prost(uint32, tag = "3")]
    pub pgid: u32,
    /// Session.
    #[prost(uint32, tag = "4")]
    pub sid: u32,
    /// All thread ids.
    #[prost(uint32, repeated, packed = "false", tag = "5")]
    pub threads: Vec<u32>,
}

/// `core_entry` (`images/core.proto`): what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct Core {
    /// The task's part.
    #[prost(message, optional, tag = "3")]
    pub task: Option<TaskCore>,
    /// Which tables of files and so on it has; older images have `ids-<pid>.img` instead.
    #[prost(message, optional, tag = "4")]
    pub ids: Option<super::files::Ids>,
    /// The thread's part.
    #[prost(message, optional, tag = "5")]
    pub thread: Option<ThreadCore>,
}

/// `thread_core_entry`: what we read of it.
#[derive(Clone, PartialEq, Message)]
pub struct ThreadCore {
    /// Whose rights it has.
    #[prost(message, optional, tag = "10")]
    pub creds: Option<Creds>,
}

/// `creds_entry` (`images/creds.proto`): what we read of it.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Creds {
    /// Real user.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// Real group.
    #[prost(uint32, tag = "2")]
    pub gid: u32,
    /// Effective user.
    #[prost(uint32, tag = "3")]
    pub euid: u32,
    /// Effective group.
    #[prost(uint32, tag = "4")]
    pub egid: u32,
}

/// `task_core_entry`.
#[derive(Clone, PartialEq, Message)]
pub struct TaskCore {
    /// 1 alive, 2 dead, 3 stopped, 6 zombie.
    #[prost(uint32, tag = "1")]
    pub state: u32,
    /// The command's name: any bytes, although CRIU calls it a string.
    #[prost(bytes = "vec", tag = "6")]
    pub comm: Vec<u8>,
}

/// `pagemap_entry` (`images/pagemap.proto`).
#[derive(Clone, PartialEq, Message)]
pub struct Pagemap {
    /// First page's address.
    #[prost(uint64, tag = "1")]
    pub vaddr: u64,
    /// Older count.
    #[prost(uint32, tag = "2")]
    pub compat_nr_pages: u32,
    /// Older flag: the data is in the parent image.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// 1 parent, 2 lazy, 4 present.
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Newer count.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

impl Pagemap {
    /// How many pages of it stand in the pages file.
    pub fn pages_here(&self) -> u64 {
        let present = match self.flags {
            Some(flags) => flags & 4 != 0,
            None => self.in_parent != Some(true),
        };
        if present { self.nr_pages.unwrap_or(u64::from(self.compat_nr_pages)) } else { 0 }
    }
}

/// `pagemap_head`: the first message of a pagemap.
#[derive(Clone, PartialEq, Message)]
pub struct PagemapHead {
    /// Number of the pages file.
    #[prost(uint32, tag = "1")]
    pub pages_id: u32,
}

/// `stats_entry` (`images/stats.proto`).
#[derive(Clone, PartialEq, Message)]
pub struct Stats {
    /// The dump's part.
    #[prost(message, optional, tag = "1")]
    pub dump: Option<DumpStats>,
}

/// `dump_stats_entry`; times in microseconds.
#[derive(Clone, Copy, PartialEq, Message, serde::Serialize)]
pub struct DumpStats {
    /// Until all tasks were seized.
    #[prost(uint32, tag = "1")]
    pub freezing_time: u32,
    /// From then until they were let go.
    #[prost(uint32, tag = "2")]
    pub frozen_time: u32,
    /// Draining pages.
    #[prost(uint32, tag = "3")]
    pub memdump_time: u32,
    /// Writing them.
    #[prost(uint32, tag = "4")]
    pub memwrite_time: u32,
    /// Pages looked at.
    #[prost(uint64, tag = "5")]
    pub pages_scanned: u64,
    /// Pages written.
    #[prost(uint64, tag = "7")]
    pub pages_written: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CRIU wrote is what we would write: no field is forgotten, so a changed mount loses nothing.
    #[test]
    fn the_mounts_of_a_real_dump_are_written_as_they_were_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/criu/ctr.tar");
        let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
        let is_it = |e: &tar::Entry<'_, _>| e.path().unwrap().to_string_lossy().starts_with("mountpoints-");
        let mut entry = archive.entries().unwrap().map(Result::unwrap).find(is_it).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        let mounts: Vec<Mount> = messages(Kind::Mounts, &bytes).unwrap();
        assert!(mounts.len() > 5);
        assert_eq!(image(Kind::Mounts, &mounts), bytes);
    }

    #[test]
    fn an_image_is_magics_then_sized_messages_and_nothing_is_read_past_the_end() {
        let mut bytes = Vec::new();
        bytes.extend(COMMON.to_le_bytes());
        bytes.extend(0x5027_3030_u32.to_le_bytes());
        let process = Process { pid: 1, ppid: 0, pgid: 1, sid: 1, threads: vec![1, 7] }.encode_to_vec();
        bytes.extend(u32::try_from(process.len()).unwrap().to_le_bytes());
        bytes.extend(&process);
        let read: Vec<Process> = messages(Kind::Pstree, &bytes).unwrap();
        assert_eq!(read[0].threads, [1, 7]);
        assert!(entries(Kind::Core, &bytes).is_err());
        for cut in 0..bytes.len() {
            let empty = cut == 8;
            assert_eq!(entries(Kind::Pstree, &bytes[..cut]).is_ok(), empty, "cut at {cut}");
        }
    }
}
