//! What procfs says of one process or thread: `status`, `stat`, `fdinfo` and `syscall` (proc(5)).

use super::{lines, number, words};

/// `/proc/<pid>/status`, as far as it is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// One letter.
    pub state: String,
    /// Its parent.
    pub ppid: i32,
    /// Who traces it; 0: nobody.
    pub tracer: i32,
    /// Its pid in each pid namespace, the innermost last.
    pub pids: Vec<i32>,
    /// Bytes of memory that are its own, swapped out or not.
    pub own: u64,
    /// Bytes of memory that it may share with others.
    pub shared: u64,
    /// Real, effective, saved and file system user.
    pub uids: Vec<u32>,
    /// The same of groups.
    pub gids: Vec<u32>,
    /// Signals waiting for the thread, as a mask.
    pub pending: u64,
    /// Signals that it blocks.
    pub blocked: u64,
}

impl Status {
    /// Reads the text; what is not in it stays empty.
    pub fn parse(text: &[u8]) -> Self {
        let mut status = Self::default();
        for line in lines(text) {
            let mut words = words(line);
            let Some(key) = words.next() else { continue };
            let values: Vec<&[u8]> = words.collect();
            let numbers: Vec<u32> = values.iter().map_while(|word| number(word, 10)?.try_into().ok()).collect();
            let first = values.first().copied().unwrap_or_default();
            let pid = numbers.first().map_or(0, |pid| pid.cast_signed());
            // `1234 kB`
            let bytes = || number(first, 10).unwrap_or(0).saturating_mul(1024);
            let mask = || number(first, 16).unwrap_or(0);
            match key {
                b"State:" => status.state = String::from_utf8_lossy(first).into_owned(),
                b"PPid:" => status.ppid = pid,
                b"TracerPid:" => status.tracer = pid,
                b"NSpid:" => status.pids = numbers.into_iter().map(u32::cast_signed).collect(),
                b"RssAnon:" | b"VmSwap:" => status.own += bytes(),
                b"RssShmem:" => status.shared = bytes(),
                b"Uid:" => status.uids = numbers,
                b"Gid:" => status.gids = numbers,
                b"SigPnd:" => status.pending = mask(),
                b"SigBlk:" => status.blocked = mask(),
                _ => {}
            }
        }
        status
    }
}

/// `/proc/<pid>/stat`, as far as it is needed. Times are in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// Field 3.
    pub state: u8,
    /// Field 4.
    pub ppid: i32,
    /// Field 5.
    pub group: i32,
    /// Field 6.
    pub session: i32,
    /// Field 9: the kernel's flags of the task (`include/linux/sched.h`, `PF_*`).
    pub flags: u64,
    /// Fields 14 to 17: user, system, children's user, children's system.
    pub times: [u64; 4],
    /// Field 19.
    pub nice: i64,
    /// Field 22: since boot.
    pub started: u64,
}

impl Stat {
    /// Reads the line. The command's name stands in parentheses and may hold any byte, so fields count from the last `)`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|&b| b == b')')?;
        let fields: Vec<&str> = std::str::from_utf8(text.get(end + 1..)?).ok()?.split_ascii_whitespace().collect();
        // Field 3 is the first here.
        let field = |n: usize| fields.get(n - 3).copied();
        let number = |n: usize| field(n)?.parse::<u64>().ok();
        let signed = |n: usize| field(n)?.parse::<i64>().ok();
        let pid = |n: usize| field(n)?.parse::<i32>().ok();
        Some(Self {
            state: field(3)?.bytes().next()?,
            ppid: pid(4)?,
            group: pid(5)?,
            session: pid(6)?,
            flags: number(9)?,
            times: [number(14)?, number(15)?, signed(16)?.unsigned_abs(), signed(17)?.unsigned_abs()],
            nice: signed(19)?,
            started: number(22)?,
        })
    }
}

/// `/proc/<pid>/fdinfo/<fd>`, its first lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Its position.
    pub position: Option<u64>,
    /// As open(2) has them.
    pub flags: Option<u64>,
    /// The mount it was opened in, as `mountinfo` counts them.
    pub mount: Option<u64>,
}

impl Descriptor {
    /// Reads the text.
    pub fn parse(text: &[u8]) -> Self {
        let of = |key: &[u8], radix| {
            let line = lines(text).find(|line| line.starts_with(key))?;
            number(words(line).nth(1)?, radix)
        };
        Self { position: of(b"pos:", 10), flags: of(b"flags:", 8), mount: of(b"mnt_id:", 10) }
    }
}

/// `/proc/<pid>/syscall`: stack pointer and program counter, the last two words; none of a thread that runs.
pub fn pointers(text: &[u8]) -> Option<(u64, u64)> {
    let words: Vec<&[u8]> = words(text).collect();
    let [.., sp, pc] = words.as_slice() else { return None };
    let hex = |word: &[u8]| number(word.strip_prefix(b"0x")?, 16);
    Some((hex(sp)?, hex(pc)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_whatever_the_name_is() {
        let text =
            b"Name:\tState: X\nState:\tS (sleeping)\nPPid:\t7\nTracerPid:\t0\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n\
            NSpid:\t100\t3\nRssAnon:\t    1234 kB\nRssShmem:\t 5 kB\nVmSwap:\t   1 kB\nSigPnd:\t0000000000000001\nSigBlk:\t00000000000000ff\n";
        let status = Status::parse(text);
        assert_eq!((status.state.as_str(), status.ppid, status.tracer), ("S", 7, 0));
        assert_eq!((status.pids, status.uids, status.gids), (vec![100, 3], vec![1, 2, 3, 4], vec![5, 6, 7, 8]));
        assert_eq!((status.pending, status.blocked), (1, 255));
        assert_eq!((status.own, status.shared), (1235 << 10, 5 << 10));
        assert_eq!(Status::parse(b"Uid:\t-1\nPPid:\t99999999999\n\xff"), Status::default());
    }

    #[test]
    fn a_stat_line_is_read_from_the_last_parenthesis() {
        let line = b"7 (a) Z 1 (b) S 1 7 6 0 -1 4194560 1 2 3 4 50 60 70 80 20 -5 1 0 987654 11 12\n";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.ppid, stat.group, stat.session), (b'S', 1, 7, 6));
        assert_eq!((stat.flags, stat.times, stat.nice, stat.started), (4_194_560, [50, 60, 70, 80], -5, 987_654));
        assert_eq!(Stat::parse(b"7 (cut) S 1 2"), None);
    }

    #[test]
    fn descriptors_and_pointers() {
        let right = Descriptor { position: Some(12), flags: Some(0o100_002), mount: Some(15) };
        assert_eq!(Descriptor::parse(b"pos:\t12\nflags:\t0100002\nmnt_id:\t15\n"), right);
        assert_eq!(Descriptor::parse(b"flags:\n"), Descriptor::default());
        assert_eq!(pointers(b"35 0x1 0x2 0x0 0x0 0x0 0x0 0x7ffe 0x40ab\n"), Some((0x7ffe, 0x40ab)));
        assert_eq!(pointers(b"-1 0x7ffe 0x40ab\n"), Some((0x7ffe, 0x40ab)));
        assert_eq!(pointers(b"running\n"), None);
    }
}
