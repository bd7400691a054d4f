//! How the known writers of tar spell a header, to the byte. What they agree on is in [`crate::pax`].
//!
//! Sources, read for the layouts: Go `archive/tar` (`writer.go`, `strconv.go`), GNU tar 1.34 (`create.c`, `xheader.c`),
//! libarchive 3.6 (`archive_write_set_format_{ustar,pax}.c`), Python's `tarfile`; each checked against what the program
//! writes.

use crate::pax::{self, BLOCK, Time, Type, Xattr};

/// All that one entry's header says.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// The typeflag.
    pub kind: Kind,
    /// As it stands in the archive: with prefix, and a `/` behind a directory.
    pub name: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permissions, for some writers with the type of the file.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The owner's name.
    pub uname: String,
    /// The group's name.
    pub gname: String,
    /// The name of root, if headers have names: GNU tar's entries for long names belong to it.
    pub root: &'static str,
    /// Length of the content.
    pub size: u64,
    /// Last modification.
    pub mtime: Time,
    /// A device's numbers.
    pub device: (u32, u32),
    /// In the order of their names.
    pub xattrs: Vec<Xattr>,
}

/// [`Type`] with a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(pub Type);

impl Default for Kind {
    fn default() -> Self {
        Self(Type::File)
    }
}

/// How one writer spells headers.
#[derive(Debug)]
pub struct Dialect {
    /// `magic` and `version`.
    magic: &'static [u8; 8],
    digits: Digits,
    /// The device fields of what is no device.
    idle: &'static [u8],
    long: Long,
}

/// How numbers stand in their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Digits {
    /// All but one byte digits, then a NUL; what is too large is left to `long`.
    Nul,
    /// libarchive: in short fields six digits, a space and a NUL (more digits at need), in long ones eleven and a space.
    Space,
}

/// What becomes of what a field cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Long {
    /// The writer refuses it, and long names are split at the last possible `/`.
    Split,
    /// GNU's `K` and `L` entries before it, with this mode, and base 256.
    Entries { mode: u32 },
    /// Go: ustar with a split name if that is all, otherwise records, sorted by key.
    GoRecords,
    /// GNU tar: records in its own order.
    GnuRecords,
    /// libarchive: records in its own order, attributes twice, and names split at the first possible `/` all the same.
    BsdRecords,
}

/// Go's `archive/tar` as all container tools use it: ustar, and pax where that cannot hold it.
pub const GO: Dialect =
    Dialect { magic: b"ustar\x0000", digits: Digits::Nul, idle: b"0000000\0", long: Long::GoRecords };
/// GNU tar, its own format.
pub const GNU: Dialect =
    Dialect { magic: b"ustar  \0", digits: Digits::Nul, idle: &[0; 8], long: Long::Entries { mode: 0o644 } };
/// GNU tar `--format=posix`, without access and change times.
pub const GNU_POSIX: Dialect =
    Dialect { magic: b"ustar\x0000", digits: Digits::Nul, idle: b"0000000\0", long: Long::GnuRecords };
/// GNU tar `--format=ustar`.
pub const GNU_USTAR: Dialect =
    Dialect { magic: b"ustar\x0000", digits: Digits::Nul, idle: b"0000000\0", long: Long::Split };
/// bsdtar, its default format.
pub const BSD: Dialect =
    Dialect { magic: b"ustar\x0000", digits: Digits::Space, idle: b"000000 \0", long: Long::BsdRecords };
/// Python's `tarfile.GNU_FORMAT` (bazel); before 3.8 and since.
pub const PYTHON_OLD: Dialect =
    Dialect { magic: b"ustar  \0", digits: Digits::Nul, idle: b"0000000\0", long: Long::Entries { mode: 0 } };
/// See [`PYTHON_OLD`].
pub const PYTHON: Dialect =
    Dialect { magic: b"ustar  \0", digits: Digits::Nul, idle: &[0; 8], long: Long::Entries { mode: 0 } };
/// Python's `tarfile`, its other formats, where they need no records.
pub const PYTHON_USTAR: Dialect =
    Dialect { magic: b"ustar\x0000", digits: Digits::Nul, idle: &[0; 8], long: Long::Split };

/// Lengths of the fields for names.
const NAME: usize = 100;
const PREFIX: usize = 155;

/// A record of an extended header.
type Record = (Vec<u8>, Vec<u8>);

impl Dialect {
    /// The blocks that announce an entry; `None` if this writer could not have written it.
    pub fn encode(&self, header: &Header) -> Option<Vec<u8>> {
        match self.long {
            Long::Split => self.plain(header),
            Long::Entries { mode } => Some(self.with_entries(header, mode)),
            Long::GoRecords => self.go(header),
            Long::GnuRecords => self.gnu_posix(header),
            Long::BsdRecords => self.bsd(header),
        }
    }

    /// A link's further names carry the attributes again, too.
    pub fn repeats_xattrs(&self) -> bool {
        !matches!(self.long, Long::GnuRecords)
    }

    /// One block that holds all.
    fn plain(&self, header: &Header) -> Option<Vec<u8>> {
        let (prefix, name) =
            if header.name.len() > NAME { split_last(&header.name)? } else { (&[][..], &header.name[..]) };
        let fits =
            is_small(header.uid, 8) && is_small(header.gid, 8) && header.size < 1 << 33 && in_field(header.mtime);
        let whole = fits && header.link.len() <= NAME && header.mtime.nanos == 0 && header.xattrs.is_empty();
        whole.then(|| self.block(header, prefix, name, &header.link).to_vec())
    }

    /// The ustar block. What does not fit its field is cut, or 0.
    fn block(&self, header: &Header, prefix: &[u8], name: &[u8], link: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put(&mut block[0..100], name);
        self.number(&mut block[100..108], header.mode.into());
        self.number(&mut block[108..116], header.uid.into());
        self.number(&mut block[116..124], header.gid.into());
        self.number(&mut block[124..136], header.size);
        self.number(&mut block[136..148], header.mtime.secs.try_into().unwrap_or(0));
        block[156] = header.kind.0 as u8;
        put(&mut block[157..257], link);
        block[257..265].copy_from_slice(self.magic);
        put(&mut block[265..296], header.uname.as_bytes());
        put(&mut block[297..328], header.gname.as_bytes());
        if matches!(header.kind.0, Type::Char | Type::Block) {
            self.number(&mut block[329..337], header.device.0.into());
            self.number(&mut block[337..345], header.device.1.into());
        } else {
            put(&mut block[329..337], self.idle);
            put(&mut block[337..345], self.idle);
        }
        put(&mut block[345..500], prefix);
        pax::checksum(&mut block);
        block
    }

    fn number(&self, field: &mut [u8], value: u64) {
        let width = field.len();
        let text = match self.digits {
            Digits::Nul if value < 1 << (3 * (width - 1)) => format!("{value:0len$o}\0", len = width - 1),
            Digits::Nul => return self.wide(field, value),
            Digits::Space if width == 8 && value < 1 << 18 => format!("{value:06o} \0"),
            Digits::Space if width == 12 && value < 1 << 33 => format!("{value:011o} "),
            Digits::Space => format!("{value:0width$o}"),
        };
        put(field, text.as_bytes());
    }

    /// A number that needs more than its field: base 256, or 0 where a record holds it.
    fn wide(&self, field: &mut [u8], value: u64) {
        if matches!(self.long, Long::Entries { .. }) {
            let bytes = value.to_be_bytes();
            let take = field.len().min(bytes.len());
            let at = field.len() - take;
            field[at..].copy_from_slice(&bytes[bytes.len() - take..]);
            field[0] |= 0x80;
        } else {
            put(field, format!("{:0len$o}\0", 0, len = field.len() - 1).as_bytes());
        }
    }

    fn with_entries(&self, header: &Header, mode: u32) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, text) in [(b'K', &header.link), (b'L', &header.name)] {
            if text.len() > NAME {
                // Python's are nobody's.
                let owner = if mode == 0 { "" } else { header.root };
                let about = Header {
                    mode,
                    size: text.len() as u64 + 1,
                    uname: owner.into(),
                    gname: owner.into(),
                    ..Header::default()
                };
                out.extend(retyped(self.block(&about, b"", b"././@LongLink", b""), kind));
                out.extend(text);
                out.push(0);
                pad(&mut out);
            }
        }
        out.extend(self.block(header, b"", &header.name, &header.link));
        out
    }

    fn go(&self, header: &Header) -> Option<Vec<u8>> {
        let mut records = text_records(header, |text| text.len() > NAME || !text.is_ascii());
        let only_long = records.len() == 1 && records[0].0 == b"path" && header.name.is_ascii();
        records.extend(number_records(header));
        records.extend(time_record(header));
        records.extend(xattr_records(header));
        if records.is_empty() || only_long && records.len() == 1 && split_last(&header.name).is_some() {
            return self.plain(header);
        }
        records.sort();
        let dir = header.name.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
        let (dir, file) = header.name.split_at(dir);
        let dir = dir.strip_prefix(b"./").unwrap_or(dir);
        let name = joined(&[dir, b"PaxHeaders.0", file]);
        let mut name = ascii(&name);
        name.truncate(NAME);
        while name.ends_with(b"/") {
            name.pop();
        }
        let about = Header { size: total(&records), ..Header::default() };
        let mut head = self.block(&about, b"", &name, b"");
        // What precedes an entry is no ustar entry to Go: it leaves the device fields alone.
        head[329..345].fill(0);
        let mut out = retyped(head, b'x').to_vec();
        append(&mut out, &records);
        let (name, link) = (cut(ascii(&header.name)), cut(ascii(&header.link)));
        out.extend(self.block(header, b"", &name, &link));
        Some(out)
    }

    fn gnu_posix(&self, header: &Header) -> Option<Vec<u8>> {
        let mut records = text_records(header, |text| text.len() > NAME || !text.is_ascii());
        records.reverse();
        records.extend(number_records(header));
        records.extend(time_record(header));
        records.extend(xattr_records(header));
        let mut out = Vec::new();
        if !records.is_empty() {
            let (dir, file) = dir_and_base(&header.name);
            let name = [dir, b"/PaxHeaders/", file].concat();
            let mtime = Time { nanos: 0, ..header.mtime };
            let about = Header { mode: 0o644, size: total(&records), mtime, ..Header::default() };
            let mut head = self.block(&about, b"", &name, b"");
            head[329..345].fill(0);
            out.extend(retyped(head, b'x'));
            append(&mut out, &records);
        }
        out.extend(self.block(header, b"", &header.name, &header.link));
        Some(out)
    }

    fn bsd(&self, header: &Header) -> Option<Vec<u8>> {
        let path = header.name.len() > NAME && split_first(&header.name).is_none() || !header.name.is_ascii();
        let link = header.link.len() > NAME || !header.link.is_ascii();
        // The names of these and of their extended headers are cut in ways that are not known here.
        if header.name.len() > NAME && split_first(&header.name).is_none() {
            return None;
        }
        let mut records = Vec::new();
        let mut add = |is_due: bool, key: &[u8], value: &[u8]| {
            if is_due {
                records.push((key.to_vec(), value.to_vec()));
            }
        };
        let odd = |text: &[u8]| std::str::from_utf8(text).is_err();
        add(odd(&header.name) || odd(&header.link), b"hdrcharset", b"BINARY");
        add(path, b"path", &header.name);
        add(link, b"linkpath", &header.link);
        add(!is_small(header.gid, 7), b"gid", header.gid.to_string().as_bytes());
        add(!is_small(header.uid, 7), b"uid", header.uid.to_string().as_bytes());
        records.extend(time_record(header));
        for (name, value) in &header.xattrs {
            records.push(([b"LIBARCHIVE.xattr.", &name[..]].concat(), base64(value)));
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value.clone()));
        }
        let mut out = Vec::new();
        if !records.is_empty() {
            let (dir, file) = dir_and_base(&header.name);
            let dir =
                if header.name.contains(&b'/') && dir != b"." || header.name.starts_with(b"./") { dir } else { b"" };
            let name = joined(&[dir, b"PaxHeader", file]);
            let about = Header {
                kind: Kind::default(),
                mode: header.mode & 0o777,
                uid: header.uid.min(0o777_777),
                gid: header.gid.min(0o777_777),
                size: total(&records),
                xattrs: Vec::new(),
                ..header.clone()
            };
            out.extend(retyped(self.split_block(&about, &name, b"")?, b'x'));
            append(&mut out, &records);
        }
        let target: &[u8] = match header.kind.0 {
            Type::Symlink if header.link.len() > NAME => b"././@LongSymLink",
            _ if header.link.len() > NAME => b"././@LongHardLink",
            _ => &header.link,
        };
        out.extend(self.split_block(header, &header.name, target)?);
        Some(out)
    }

    fn split_block(&self, header: &Header, name: &[u8], link: &[u8]) -> Option<[u8; BLOCK]> {
        let (prefix, name) = if name.len() > NAME { split_first(name)? } else { (&[][..], name) };
        Some(self.block(header, prefix, name, link))
    }
}

fn text_records(header: &Header, is_due: impl Fn(&[u8]) -> bool) -> Vec<Record> {
    let both: [(&[u8], &Vec<u8>); 2] = [(b"path", &header.name), (b"linkpath", &header.link)];
    both.into_iter().filter(|(_, text)| is_due(text)).map(|(key, text)| (key.to_vec(), text.clone())).collect()
}

fn number_records(header: &Header) -> Vec<Record> {
    let all: [(&[u8], u64, bool); 3] = [
        (b"uid", header.uid.into(), is_small(header.uid, 8)),
        (b"gid", header.gid.into(), is_small(header.gid, 8)),
        (b"size", header.size, header.size < 1 << 33),
    ];
    all.into_iter().filter(|(.., fits)| !fits).map(|(key, n, _)| (key.to_vec(), n.to_string().into_bytes())).collect()
}

fn time_record(header: &Header) -> Option<Record> {
    let is_due = header.mtime.nanos != 0 || !in_field(header.mtime);
    is_due.then(|| (b"mtime".to_vec(), pax::decimal(header.mtime).into_bytes()))
}

fn xattr_records(header: &Header) -> impl Iterator<Item = Record> {
    header.xattrs.iter().map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone()))
}

fn in_field(time: Time) -> bool {
    (0..1 << 33).contains(&time.secs)
}

fn is_small(value: u32, width: u32) -> bool {
    u64::from(value) < 1 << (3 * (width - 1))
}

fn total(records: &[Record]) -> u64 {
    let mut bytes = Vec::new();
    records.iter().for_each(|(key, value)| pax::record(&mut bytes, key, value));
    bytes.len() as u64
}

fn append(out: &mut Vec<u8>, records: &[Record]) {
    records.iter().for_each(|(key, value)| pax::record(out, key, value));
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

fn put(field: &mut [u8], text: &[u8]) {
    let take = text.len().min(field.len());
    field[..take].copy_from_slice(&text[..take]);
}

/// The same header with another typeflag.
fn retyped(mut block: [u8; BLOCK], kind: u8) -> [u8; BLOCK] {
    block[156] = kind;
    pax::checksum(&mut block);
    block
}

/// Go's `toASCII`: other characters are left out.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// Go's `formatString`: a name cut at a `/` would look like a directory's.
fn cut(mut text: Vec<u8>) -> Vec<u8> {
    if text.len() > NAME {
        text.truncate(NAME);
        while text.ends_with(b"/") {
            text.pop();
        }
    }
    text
}

/// Go's `path.Join`, for paths without dots but a leading one.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let filled: Vec<_> = parts.iter().map(|part| trimmed(part)).filter(|part| !part.is_empty()).collect();
    filled.join(&b'/')
}

fn trimmed(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_suffix(b"/") {
        text = rest;
    }
    text
}

/// `dirname` and `basename`.
fn dir_and_base(name: &[u8]) -> (&[u8], &[u8]) {
    let name = trimmed(name);
    match name.iter().rposition(|&b| b == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (b".", name),
    }
}

/// Splits a name for the fields prefix and name, with the longest possible prefix.
fn split_last(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = trimmed(name).len().min(PREFIX + 1);
    let at = name[..end].iter().rposition(|&b| b == b'/')?;
    let (prefix, rest) = (&name[..at], &name[at + 1..]);
    (at > 0 && !rest.is_empty() && rest.len() <= NAME).then_some((prefix, rest))
}

/// The same with the shortest.
fn split_first(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = name.len().checked_sub(NAME + 1)?;
    let at = start + name[start..].iter().position(|&b| b == b'/')?;
    let (prefix, rest) = (&name[..at], &name[at + 1..]);
    ((1..=PREFIX).contains(&at) && !rest.is_empty()).then_some((prefix, rest))
}

/// Without padding, as libarchive writes attributes.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        out.extend((0..=chunk.len()).map(|i| ALPHABET[(word >> (18 - 6 * i) & 63) as usize]));
    }
    out
}
