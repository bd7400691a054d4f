//! The pax interchange format (POSIX.1-2017, `pax` utility, "pax Interchange Format"): headers of a tar stream, to the bit.
//!
//! An entry is a ustar header block; what its fields cannot hold exactly stands in an extended header (`x`) before it,
//! and only then. The ustar fields, offset and length:
//!
//! ```text
//!   0 100 name      100 8 mode    108 8 uid      116 8 gid       124 12 size    136 12 mtime   148 8 chksum   156 1 typeflag
//! 157 100 linkname  257 6 magic   263 2 version  265 32 uname    297 32 gname   329 8 devmajor 337 8 devminor 345 155 prefix
//! ```
//!
//! Names, sizes, ids and times that do not fit become the records `path`, `linkpath`, `size`, `uid`, `gid`, `mtime`; extended
//! attributes become `SCHILY.xattr.<name>` (star's keyword, understood by GNU tar, libarchive and Go, hence by containerd).
//! The `tar` crate writes neither these records nor numbers wider than a field.

/// One block of a tar stream.
pub const BLOCK: usize = 512;

/// The end of an archive: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// More extended header than this and Go's reader, hence containerd's, refuses the archive (archive/tar `maxSpecialFileSize`).
pub const MAX_RECORDS: usize = 1 << 20;

/// The record that POSIX has every reader pass over.
const COMMENT: &[u8] = b"comment";

/// What an entry is: its typeflag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// A regular file; `size` bytes follow.
    File = b'0',
    /// Another name of an entry written before.
    HardLink = b'1',
    /// A symbolic link.
    Symlink = b'2',
    /// A character device.
    Char = b'3',
    /// A block device.
    Block = b'4',
    /// A directory; its name ends with `/`.
    Directory = b'5',
    /// A named pipe.
    Fifo = b'6',
}

/// A moment as the kernel keeps it: `secs` may be negative, `nanos` always counts forward from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds since 1970.
    pub secs: i64,
    /// Nanoseconds after that, below 10⁹.
    pub nanos: u32,
}

/// An extended attribute: name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// All that a header says of one entry.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// What it is.
    pub kind: Type,
    /// Its name, relative; a directory's ends with `/`.
    pub path: &'a [u8],
    /// Where a link points.
    pub link: &'a [u8],
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the content that follows; 0 unless it is a file.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, in the order they are to be written.
    pub xattrs: &'a [Xattr],
}

impl Header<'_> {
    /// The blocks that announce this entry.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(&self.records())
    }

    /// The same for an entry whose blocks begin at `at` in the archive, filled by a comment so that its content begins at a
    /// multiple of `align` (of [`BLOCK`]s, and no less than 2 KiB): there a file system can put it without copying.
    pub fn encode_aligned(&self, at: u64, align: u64) -> Vec<u8> {
        let plain = self.encode();
        if (at + plain.len() as u64).is_multiple_of(align) {
            return plain;
        }
        let mut records = self.records();
        // Between the header of the extended header and that of the entry.
        let room = align - (at + 2 * BLOCK as u64) % align;
        // A comment of no length takes this much, and the records must not be cut.
        let least = (records.len() + COMMENT.len() + 6) as u64;
        let room = room + least.saturating_sub(room).div_ceil(align) * align;
        let len = usize::try_from(room).map_or(0, |room| room - records.len());
        // The length stands before it, and counts its own digits.
        let value = len.saturating_sub(digit_count(len) + COMMENT.len() + 3);
        record(&mut records, COMMENT, &vec![b' '; value]);
        self.encode_with(&records)
    }

    fn encode_with(&self, records: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK * 3 + records.len());
        if !records.is_empty() {
            out.extend(extended(self.path, records.len()));
            out.extend(records);
            out.resize(out.len() + padding(records.len() as u64), 0);
        }
        out.extend(self.block());
        out
    }

    /// The extended header's records, in a fixed order: same entry, same bytes.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let is_long = |text: &[u8]| text.len() > 100 || !text.is_ascii();
        // Values are UTF-8 unless this record, which must come first, says that they are not.
        if [self.path, self.link].iter().any(|text| std::str::from_utf8(text).is_err()) {
            record(&mut out, b"hdrcharset", b"BINARY");
        }
        if is_long(self.path) {
            record(&mut out, b"path", self.path);
        }
        if is_long(self.link) {
            record(&mut out, b"linkpath", self.link);
        }
        let numbers: [(&[u8], u64, usize); 3] =
            [(b"size", self.size, 12), (b"uid", self.uid.into(), 8), (b"gid", self.gid.into(), 8)];
        for (key, value, width) in numbers {
            if !fits_octal(value, width) {
                record(&mut out, key, value.to_string().as_bytes());
            }
        }
        if self.mtime.nanos != 0 || !u64::try_from(self.mtime.secs).is_ok_and(|secs| fits_octal(secs, 12)) {
            record(&mut out, b"mtime", decimal(self.mtime).as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut out, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        out
    }

    /// The ustar block. A number that a record holds is 0 here, as POSIX has the record win.
    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        text(&mut block[0..100], self.path);
        octal(&mut block[100..108], self.mode.into());
        octal(&mut block[108..116], or_zero(self.uid.into(), 8));
        octal(&mut block[116..124], or_zero(self.gid.into(), 8));
        octal(&mut block[124..136], or_zero(self.size, 12));
        octal(&mut block[136..148], or_zero(self.mtime.secs.try_into().unwrap_or(0), 12));
        block[156] = self.kind as u8;
        text(&mut block[157..257], self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0.into());
        octal(&mut block[337..345], self.device.1.into());
        checksum(&mut block);
        block
    }
}

/// The length of the extended header record for an extended attribute with a value of so many bytes, near enough for a limit: never too small.
pub fn xattr_record_len(name: &[u8], value: usize) -> usize {
    name.len() + value + b"SCHILY.xattr.".len() + 23
}

/// How many zero bytes follow content of this length up to the next block.
pub fn padding(len: u64) -> usize {
    // The remainder is below 512.
    (BLOCK - (len % BLOCK as u64) as usize) % BLOCK
}

/// The block before the records. Only readers that do not know the format ever show its name.
fn extended(path: &[u8], len: usize) -> [u8; BLOCK] {
    let last = path.split(|&b| b == b'/').rfind(|part| !part.is_empty()).unwrap_or(b"root");
    let printable = last.iter().take(80).map(|&b| if b.is_ascii_graphic() { b } else { b'_' });
    let name: Vec<u8> = b"PaxHeaders.0/".iter().copied().chain(printable).collect();
    let mut block = [0; BLOCK];
    text(&mut block[0..100], &name);
    octal(&mut block[100..108], 0o644);
    for range in [108..116, 116..124, 136..148] {
        octal(&mut block[range], 0);
    }
    octal(&mut block[124..136], len as u64);
    block[156] = b'x';
    block[257..265].copy_from_slice(b"ustar\x0000");
    checksum(&mut block);
    block
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
pub fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let bare = key.len() + value.len() + 3;
    let mut len = bare + digit_count(bare);
    // One more digit may have appeared; it cannot appear twice.
    len = bare + digit_count(len);
    out.extend(len.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend(part);
    }
}

fn digit_count(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// Seconds with as many decimals as needed. A time before 1970 has a minus before the whole number, so -1.5 is one and a
/// half seconds before (Go's `parsePAXTime` and GNU tar's `decode_time` agree; `-0.5` is understood by both).
pub fn decimal(time: Time) -> String {
    const BILLION: u32 = 1_000_000_000;
    let Time { secs, nanos } = time;
    let (sign, whole, part) = match (secs, nanos) {
        (0.., _) => ("", secs.unsigned_abs(), nanos),
        (_, 0) => ("-", secs.unsigned_abs(), 0),
        _ => ("-", secs.unsigned_abs() - 1, BILLION.saturating_sub(nanos)),
    };
    let text = format!("{sign}{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A numeric field holds octal digits and a NUL.
fn fits_octal(value: u64, width: usize) -> bool {
    value < 1 << (3 * (width - 1))
}

fn or_zero(value: u64, width: usize) -> u64 {
    if fits_octal(value, width) { value } else { 0 }
}

/// Octal digits; a device number that needs more is written in base 256 (GNU's and Go's extension; there is no record for it).
fn octal(field: &mut [u8], value: u64) {
    let width = field.len();
    if fits_octal(value, width) {
        digits(field, value);
    } else {
        let bytes = value.to_be_bytes();
        let take = width.min(bytes.len());
        field[width - take..].copy_from_slice(&bytes[bytes.len() - take..]);
        field[0] |= 0x80;
    }
}

/// Octal digits that fill the field, and a NUL. Fourteen such fields are written for most files: formatting costs too much.
fn digits(field: &mut [u8], mut value: u64) {
    let Some((end, field)) = field.split_last_mut() else { return };
    *end = 0;
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

/// Text cut to the field: a record holds the whole. A cut that ends in `/` could make a file look like a directory.
fn text(field: &mut [u8], value: &[u8]) {
    let mut take = value.len().min(field.len());
    while take < value.len() && take > 0 && value[take - 1] == b'/' {
        take -= 1;
    }
    field[..take].copy_from_slice(&value[..take]);
}

/// The sum of all bytes, with the sum's own field taken as spaces.
pub fn checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    digits(&mut block[148..155], sum.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[u8]) -> Header<'_> {
        let mtime = Time { secs: 1, nanos: 0 };
        Header {
            kind: Type::File,
            path,
            link: b"",
            mode: 0o4755,
            uid: 0,
            gid: 0,
            size: 5,
            mtime,
            device: (0, 0),
            xattrs: &[],
        }
    }

    fn records_of(header: &Header) -> Vec<(String, Vec<u8>)> {
        let bytes = [header.encode(), vec![0; BLOCK], END.to_vec()].concat();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let records = entry.pax_extensions().unwrap();
        records.map_or(Vec::new(), |all| {
            all.map(|r| r.unwrap()).map(|r| (r.key().unwrap().to_owned(), r.value_bytes().to_vec())).collect()
        })
    }

    #[test]
    fn what_ustar_can_hold_needs_no_extended_header() {
        let block = file(b"etc/motd").encode();
        assert_eq!(block.len(), BLOCK);
        assert_eq!(&block[..9], b"etc/motd\0");
        assert_eq!(&block[100..108], b"0004755\0");
        assert_eq!(&block[124..136], b"00000000005\0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        let stored = u32::from_str_radix(std::str::from_utf8(&block[148..154]).unwrap(), 8).unwrap();
        let sum: u32 =
            block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() }).sum();
        assert_eq!(stored, sum);
        assert_eq!(file(&[b'a'; 100]).encode().len(), BLOCK);
    }

    #[test]
    fn a_record_counts_its_own_length() {
        // 3 + key + value + digits: around 100 and 1000 the count itself grows by one digit.
        for len in (80..120).chain(980..1010).chain([0, 1, 65_536]) {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; len]);
            let space = out.iter().position(|&b| b == b' ').unwrap();
            let said: usize = std::str::from_utf8(&out[..space]).unwrap().parse().unwrap();
            assert_eq!(said, out.len(), "value of {len}");
            assert!(xattr_record_len(b"k", len) >= out.len());
        }
    }

    #[test]
    fn what_ustar_cannot_hold_becomes_a_record() {
        let long = [b'n'; 101];
        let secs = 0o77_777_777_777;
        let cases: [(Header, &str, &[u8]); 12] = [
            (file(&long), "path", &long),
            (file("ü".as_bytes()), "path", "ü".as_bytes()),
            (file(b"\xff"), "hdrcharset", b"BINARY"),
            (Header { uid: 2_097_152, ..file(b"f") }, "uid", b"2097152"),
            (Header { gid: u32::MAX - 1, ..file(b"f") }, "gid", b"4294967294"),
            (Header { size: 1 << 33, ..file(b"f") }, "size", b"8589934592"),
            (Header { mtime: Time { secs: 0, nanos: 1 }, ..file(b"f") }, "mtime", b"0.000000001"),
            (Header { mtime: Time { secs: -1, nanos: 0 }, ..file(b"f") }, "mtime", b"-1"),
            (Header { mtime: Time { secs: -2, nanos: 500_000_000 }, ..file(b"f") }, "mtime", b"-1.5"),
            (Header { mtime: Time { secs: -1, nanos: 999_999_999 }, ..file(b"f") }, "mtime", b"-0.000000001"),
            (Header { mtime: Time { secs: secs + 1, nanos: 0 }, ..file(b"f") }, "mtime", b"8589934592"),
            (Header { link: &long, kind: Type::Symlink, size: 0, ..file(b"f") }, "linkpath", &long),
        ];
        for (header, key, value) in cases {
            assert_eq!(records_of(&header)[0], (key.to_owned(), value.to_vec()));
        }
        for fits in
            [file(&long[..100]), Header { uid: 2_097_151, ..file(b"f") }, Header { size: (1 << 33) - 1, ..file(b"f") }]
        {
            assert_eq!(fits.encode().len(), BLOCK);
        }
        assert_eq!(Header { mtime: Time { secs, nanos: 0 }, ..file(b"f") }.encode().len(), BLOCK);
    }

    #[test]
    fn the_least_time_does_not_overflow() {
        assert_eq!(decimal(Time { secs: i64::MIN, nanos: 0 }), "-9223372036854775808");
        assert_eq!(decimal(Time { secs: i64::MIN, nanos: 1 }), "-9223372036854775807.999999999");
    }

    #[test]
    fn extended_attributes_keep_every_byte() {
        let xattrs = [(b"user.b".to_vec(), b"\0\n=\xff".to_vec()), (b"user.empty".to_vec(), Vec::new())];
        let records = Header { xattrs: &xattrs, ..file(b"f") }.records();
        assert_eq!(records, b"28 SCHILY.xattr.user.b=\0\n=\xff\n28 SCHILY.xattr.user.empty=\n");
    }

    #[test]
    fn content_begins_where_a_block_of_the_disk_begins_whatever_stands_before() {
        let large = Header { size: 1 << 33, ..file(&[b'n'; 101]) };
        for header in [file(b"f"), large] {
            for align in [4096, 65_536] {
                for at in (0..align).step_by(BLOCK) {
                    let bytes = header.encode_aligned(at, align);
                    assert_eq!((at + bytes.len() as u64) % align, 0, "at {at}");
                    assert!((bytes.len() as u64) < align + 4096);
                    let mut archive = tar::Archive::new(&bytes[..]);
                    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
                    assert_eq!((entry.path_bytes().as_ref(), entry.size()), (header.path, header.size));
                    let records = entry.pax_extensions().unwrap().into_iter().flatten();
                    let kept: Vec<_> = records.map(|r| r.unwrap().key().unwrap().to_owned()).collect();
                    assert!(kept.iter().filter(|key| *key == "comment").count() <= 1, "{kept:?}");
                }
            }
        }
    }

    #[test]
    fn a_device_number_beyond_its_field_is_in_base_256() {
        let header = Header { kind: Type::Char, device: (0xfff, u32::MAX), size: 0, ..file(b"d") };
        let block = header.encode();
        assert_eq!(&block[329..337], b"0007777\0");
        assert_eq!(&block[337..345], b"\x80\0\0\0\xff\xff\xff\xff");
    }

    #[test]
    fn a_cut_name_never_looks_like_a_directory() {
        let path = [&[b'd'; 99][..], b"/file"].concat();
        let bytes = file(&path).encode();
        assert_eq!(bytes[bytes.len() - BLOCK..][98..100], [b'd', 0]);
    }
}
