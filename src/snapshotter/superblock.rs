//! Which file system a file or device holds, by its superblock, and how it is mounted without a byte being written.
//!
//! ```text
//! ext4   1024+0x38 u16 0xEF53   1024+0x60 u32 incompat, 4: the journal must be replayed  (fs/ext4/ext4.h)
//! xfs    0 "XFSB"                                                                        (fs/xfs/libxfs/xfs_format.h)
//! erofs  1024 u32 0xE0F5E1E2                                                             (fs/erofs/erofs_fs.h)
//! btrfs  65536+64 "_BHRfS_M"                                                             (fs/btrfs)
//! ```

/// So much of the start tells.
pub const HEAD: usize = 65536 + 72;

/// A file system, and what its superblock says of its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The kernel's name for it.
    pub fs: &'static str,
    /// Mount options that keep it from replaying a journal, which is writing.
    pub options: &'static str,
    /// It was not unmounted: its journal has what the rest lacks.
    pub is_dirty: bool,
}

/// What the first [`HEAD`] bytes say; `None` for what is no file system we know.
pub fn identify(head: &[u8]) -> Option<Superblock> {
    let at = |at: usize, len: usize| head.get(at..at + len).unwrap_or_default();
    let clean = |fs, options| Some(Superblock { fs, options, is_dirty: false });
    if at(1024 + 0x38, 2) == [0x53, 0xef] {
        let is_dirty = at(1024 + 0x60, 1).first().is_some_and(|flags| flags & 4 != 0);
        return Some(Superblock { fs: "ext4", options: "noload", is_dirty });
    }
    if at(0, 4) == *b"XFSB" {
        return clean("xfs", "norecovery,nouuid");
    }
    if at(1024, 4) == 0xe0f5_e1e2_u32.to_le_bytes() {
        return clean("erofs", "");
    }
    if at(65536 + 64, 8) == *b"_BHRfS_M" {
        return clean("btrfs", "rescue=nologreplay");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(writes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in writes {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn a_file_system_is_known_by_its_magic_and_a_dirty_journal_by_its_flag() {
        for (head, fs, is_dirty) in [
            (head(&[(1080, &[0x53, 0xef])]), Some("ext4"), false),
            (head(&[(1080, &[0x53, 0xef]), (1120, &[0x46])]), Some("ext4"), true),
            (head(&[(0, b"XFSB")]), Some("xfs"), false),
            (head(&[(1024, &[0xe2, 0xe1, 0xf5, 0xe0])]), Some("erofs"), false),
            (head(&[(65600, b"_BHRfS_M")]), Some("btrfs"), false),
            (head(&[]), None, false),
            (Vec::new(), None, false),
        ] {
            let found = identify(&head);
            assert_eq!(found.map(|s| s.fs), fs);
            assert_eq!(found.is_some_and(|s| s.is_dirty), is_dirty, "{fs:?}");
        }
    }
}
