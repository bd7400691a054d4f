//! What a tar says of one entry beyond its name and size, as Go's `archive/tar`, and hence containerd, understands it.

use std::io;

use tar::{EntryType, Header};

use super::untar::{malformed, record};
use crate::pax::{Time, Xattr};

/// What the headers of one entry say of the inode that it makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Where a link points.
    pub link: Vec<u8>,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Extended attributes, by name.
    pub xattrs: Vec<Xattr>,
    /// Its content is a list of parts and these parts, not what a reader of the file gets.
    pub is_sparse: bool,
    /// Of such a one: its name, where the entry's is another (GNU tar, "PAX Sparse Formats").
    pub sparse_name: Option<Vec<u8>>,
    /// Of such a one: how long the file is.
    pub sparse_size: Option<u64>,
    /// It is a directory, though its type says file: so before 1988.
    pub is_old_directory: bool,
}

/// star's keyword for attributes, the only one that containerd knows.
const XATTR: &[u8] = b"SCHILY.xattr.";

impl Told {
    /// What `header` says, and the extended header before it: its `records`, and a long name of GNU's for the link.
    pub(super) fn of(header: &Header, records: &[u8], link: Option<&[u8]>) -> io::Result<Self> {
        let bytes = header.as_bytes();
        let number = |from: usize, to: usize| number(bytes.get(from..to).unwrap_or_default());
        let low = |value: i64| u32::try_from(value & 0xffff_ffff).unwrap_or(0);
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        let device = if is_device { (low(number(329, 337)?), low(number(337, 345)?)) } else { (0, 0) };
        let link = link.map(<[u8]>::to_vec).or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        let mut told = Self {
            link: link.unwrap_or_default(),
            mode: low(number(100, 108)?) & 0o7777,
            uid: low(number(108, 116)?),
            gid: low(number(116, 124)?),
            mtime: Time { secs: number(136, 148)?, nanos: 0 },
            device,
            is_sparse: header.entry_type() == EntryType::GNUSparse,
            is_old_directory: bytes[156] == 0 && header.path_bytes().ends_with(b"/"),
            ..Self::default()
        };
        told.take(records)?;
        Ok(told)
    }

    /// An empty value means the header's own, but for attributes; of several the last counts.
    fn take(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            let (key, value, rest) =
                record(records).ok_or_else(|| malformed("an extended header has a broken record"))?;
            records = rest;
            if let Some(name) = key.strip_prefix(XATTR) {
                self.xattrs.retain(|(known, _)| known != name);
                self.xattrs.push((name.to_vec(), value.to_vec()));
            }
            self.is_sparse |= key.starts_with(b"GNU.sparse.");
            if value.is_empty() {
                continue;
            }
            let broken = || malformed("an extended header has a broken number");
            let id = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()).ok_or_else(broken);
            match key {
                b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = u64::try_from(id()?).ok(),
                b"linkpath" => self.link = value.to_vec(),
                b"uid" => self.uid = u32::try_from(id()? & 0xffff_ffff).unwrap_or(0),
                b"gid" => self.gid = u32::try_from(id()? & 0xffff_ffff).unwrap_or(0),
                b"mtime" => self.mtime = time(value).ok_or_else(broken)?,
                _ => {}
            }
        }
        self.xattrs.sort_unstable();
        Ok(())
    }
}

/// A field of octal digits between spaces and NULs, or of two's complement if its first bit is set.
fn number(field: &[u8]) -> io::Result<i64> {
    let broken = || malformed("a header has a broken number");
    let first = *field.first().ok_or_else(broken)?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 { -1_i128 } else { 0 };
        let bytes =
            std::iter::once(first & 0x7f | if first & 0x40 != 0 { 0x80 } else { 0 }).chain(field[1..].iter().copied());
        // Twelve bytes at most: 96 bits.
        let value = bytes.take(12).fold(start, |value, byte| (value << 8) | i128::from(byte));
        return i64::try_from(value).map_err(|_| broken());
    }
    let is_filling = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_filling(b)).unwrap_or(field.len());
    let digits = &field[start..];
    // What follows a NUL is none of it.
    let end = digits.iter().position(is_filling).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |value, &b| match b {
        b'0'..=b'7' => Ok((value << 3) | i64::from(b - b'0')),
        _ => Err(broken()),
    })
}

/// Seconds with decimals; a minus is the sign of both parts, and what is finer than a nanosecond is cut off.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let digits: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000_u32.checked_sub(nanos)? }),
        _ => Some(Time { secs, nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pax;

    #[test]
    fn a_time_is_what_was_written() {
        for (secs, nanos) in
            [(0, 0), (1, 5), (-1, 0), (-2, 500_000_000), (-1, 999_999_999), (1 << 34, 1), (-1 << 40, 7)]
        {
            let right = Time { secs, nanos };
            assert_eq!(time(pax::decimal(right).as_bytes()), Some(right));
        }
        assert_eq!(time(b"1.1234567899"), Some(Time { secs: 1, nanos: 123_456_789 }));
        for bad in [&b"x"[..], b"1.x", b"", b"1e5", b"\xff", b"-9223372036854775808.1"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_number_is_octal_or_two_s_complement() {
        let cases: [(&[u8], i64); 6] = [
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o77_777_777),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
        ];
        for (field, right) in cases {
            assert_eq!(number(field).unwrap(), right, "{field:?}");
        }
        assert!(number(b"00009\0").is_err());
        assert!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    }

    #[test]
    fn attributes_and_what_does_not_fit_come_from_the_extended_header() {
        let xattrs = [(b"user.a".to_vec(), b"\n=".to_vec()), (b"user.b".to_vec(), Vec::new())];
        let header = pax::Header {
            kind: pax::Type::Symlink,
            path: b"x",
            link: &[b'l'; 300],
            mode: 0o4711,
            uid: 3_000_000,
            gid: 5,
            size: 0,
            mtime: Time { secs: 9, nanos: 8 },
            device: (0, 0),
            xattrs: &xattrs,
        };
        let bytes = header.encode();
        let temp = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(temp.path(), [&bytes[..], &pax::END].concat()).unwrap();
        let mut seen = Vec::new();
        super::super::untar::inodes(temp.path(), |_, told| {
            seen.push(told);
            Ok(())
        })
        .unwrap();
        let right = Told {
            link: vec![b'l'; 300],
            mode: 0o4711,
            uid: 3_000_000,
            gid: 5,
            mtime: header.mtime,
            xattrs: xattrs.to_vec(),
            ..Told::default()
        };
        assert_eq!(seen, [right]);
    }
}
