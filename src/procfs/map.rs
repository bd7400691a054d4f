//! The mappings of a process: `/proc/<pid>/smaps` (kernel: `fs/proc/task_mmu.c`, `show_map_vma`, `show_smap`).
//!
//! ```text
//! 7f0000000000-7f0000021000 rw-p 00001000 fd:01 1234      /lib/libc.so.6
//! Rss:                   8 kB
//! Swap:                  0 kB
//! VmFlags: rd wr mr mw me ac
//! ```

use super::{number, words};

/// What a file that has no name any more is called.
const DELETED: &[u8] = b" (deleted)";

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Map {
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Shared, and not private.
    pub shared: bool,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// The file's device, major and minor number.
    pub device_id: (u32, u32),
    /// The file's inode; 0 if there is no file.
    pub inode: u64,
    /// The file's path, or what else the kernel calls it; a newline stands there as `\012`.
    pub path: Vec<u8>,
    /// Bytes of it that are in memory.
    pub rss: u64,
    /// Bytes of it that are in memory and of no file: of a private mapping, what is its own.
    pub anonymous: u64,
    /// Bytes of it that are swapped out.
    pub swap: u64,
    /// It maps a device's own memory (`VmFlags`: `io` or `pf`), which may not be read.
    pub device: bool,
    /// The kernel may drop it at any time (`VmFlags`: `dp`, since Linux 6.11).
    pub droppable: bool,
}

impl Map {
    /// How long it is.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True of none that the kernel shows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True if the name says that the file has none any more; a file may be called so.
    pub fn is_deleted(&self) -> bool {
        self.path.ends_with(DELETED)
    }

    /// The mapping that a line of `maps` tells of, or of `smaps` if it begins one there.
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let mut rest = line;
        let mut word = || {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
            let (word, more) = rest.split_at(end);
            rest = more;
            word
        };
        let range = word();
        let dash = range.iter().position(|&b| b == b'-')?;
        let (start, end) = (number(range.get(..dash)?, 16)?, number(range.get(dash + 1..)?, 16)?);
        let modes = *word().first_chunk::<4>()?;
        let (offset, device_id, inode) = (number(word(), 16)?, device(word())?, number(word(), 10)?);
        let path = rest.trim_ascii_start().to_vec();
        let [read, write, execute, shared] = [modes[0] == b'r', modes[1] == b'w', modes[2] == b'x', modes[3] == b's'];
        (start < end).then_some(Self {
            start,
            end,
            read,
            write,
            execute,
            shared,
            offset,
            device_id,
            inode,
            path,
            ..Self::default()
        })
    }

    fn detail(&mut self, line: &[u8]) {
        let mut words = words(line);
        let kib = |word: Option<&[u8]>| word.and_then(|w| number(w, 10)).unwrap_or(0).saturating_mul(1024);
        match words.next() {
            Some(b"Rss:") => self.rss = kib(words.next()),
            Some(b"Anonymous:") => self.anonymous = kib(words.next()),
            Some(b"Swap:") => self.swap = kib(words.next()),
            Some(b"VmFlags:") => {
                for flag in words {
                    self.device |= flag == b"io" || flag == b"pf";
                    self.droppable |= flag == b"dp";
                }
            }
            _ => {}
        }
    }
}

/// `fd:01`, in hex.
fn device(text: &[u8]) -> Option<(u32, u32)> {
    let colon = text.iter().position(|&b| b == b':')?;
    let part = |part: Option<&[u8]>| number(part?, 16)?.try_into().ok();
    Some((part(text.get(..colon))?, part(text.get(colon + 1..))?))
}

/// Reads `maps` or `smaps` line by line, as they come.
#[derive(Debug, Default)]
pub struct Maps {
    all: Vec<Map>,
    /// The beginning of a line.
    rest: Vec<u8>,
}

/// No line of the kernel's is longer: a path has one page at most, each newline in it four bytes.
const MAX_LINE: usize = 1 << 16;

impl Maps {
    /// Takes a piece of the text.
    pub fn push(&mut self, piece: &[u8]) {
        let mut lines = piece.split(|&b| b == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for line in lines {
            let whole = [std::mem::take(&mut self.rest).as_slice(), line].concat();
            self.line(&whole);
        }
        if self.rest.len() + last.len() <= MAX_LINE {
            self.rest.extend_from_slice(last);
        }
    }

    fn line(&mut self, line: &[u8]) {
        match (Map::of_line(line), self.all.last_mut()) {
            (Some(map), _) => self.all.push(map),
            (None, Some(map)) => map.detail(line),
            (None, None) => {}
        }
    }

    /// All of them, by address.
    pub fn finish(mut self) -> Vec<Map> {
        let rest = std::mem::take(&mut self.rest);
        self.line(&rest);
        self.all
    }
}

/// All mappings of one text.
pub fn maps(text: &[u8]) -> Vec<Map> {
    let mut maps = Maps::default();
    maps.push(text);
    maps.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_in_pieces_of_any_size() {
        let text = b"7f00-7f01000 rw-s 00001000 fd:01 1234                       /dev/x y (deleted)\nSize: 4 kB\n\
            Rss:                   8 kB\nAnonymous: 4 kB\nSwap:  12 kB\nVmFlags: rd wr sh pf io dp \n\
            ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n\
            10000-20000 ---p 00000000 00:00 0 \n";
        let whole = maps(text);
        assert_eq!(whole.len(), 3);
        let first = &whole[0];
        assert_eq!((first.start, first.end, first.offset, first.inode), (0x7f00, 0x7f01000, 0x1000, 1234));
        assert!(first.read && first.write && !first.execute && first.shared && first.device && first.is_deleted());
        assert_eq!(first.device_id, (0xfd, 1));
        assert_eq!((first.rss, first.anonymous, first.swap, first.droppable), (8192, 4096, 12288, true));
        assert_eq!(first.path, b"/dev/x y (deleted)");
        assert_eq!((whole[1].path.as_slice(), whole[1].execute), (&b"[vsyscall]"[..], true));
        assert!(!whole[2].read && whole[2].path.is_empty());
        for size in [1, 7, 64] {
            let mut pieces = Maps::default();
            text.chunks(size).for_each(|piece| pieces.push(piece));
            assert_eq!(pieces.finish(), whole);
        }
        assert_eq!(maps(b"zz-1 r 0\n2-1 rwxp 0 0 0\n-\n\n"), []);
    }

    #[test]
    fn our_own_mappings_are_read() {
        let maps = maps(&std::fs::read("/proc/self/smaps").unwrap());
        assert!(maps.iter().any(|map| map.path == b"[stack]" && map.write && map.rss > 0));
        assert!(maps.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
