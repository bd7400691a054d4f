//! How containerd encodes the values of meta.db and metadata.db (`core/metadata/boltutil`, `core/snapshots/storage`).

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    bolt::{Bucket, Item},
    corrupt::Corrupt,
};

/// Go counts seconds from year 1; Unix from 1970.
const YEAR_ONE: i64 = 62_135_596_800;

/// `time.Time.MarshalBinary`: version, seconds since year 1 (big-endian), nanoseconds, zone offset.
pub fn time(bytes: &[u8]) -> Result<Timestamp, Corrupt> {
    let bad = Corrupt { at: 0, why: "not a time as Go writes it" };
    let (version, rest) = bytes.split_first().ok_or(bad)?;
    let (seconds, rest) = rest.split_first_chunk::<8>().ok_or(bad)?;
    let nanos = rest.first_chunk::<4>().ok_or(bad)?;
    if !matches!(version, 1 | 2) {
        return Err(bad);
    }
    let unix = i64::from_be_bytes(*seconds).checked_sub(YEAR_ONE).ok_or(bad)?;
    Timestamp::new(unix, i32::from_be_bytes(*nanos)).map_err(|_| bad)
}

/// Go's `binary.PutVarint`: zig-zag, seven bits a byte, low ones first.
pub fn varint(bytes: &[u8]) -> Result<i64, Corrupt> {
    let raw = uvarint(bytes)?;
    Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
}

/// Go's `binary.PutUvarint`.
pub fn uvarint(bytes: &[u8]) -> Result<u64, Corrupt> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * i as u32).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Corrupt { at: bytes.len(), why: "a number has no end" })
}

/// A string, empty when absent.
pub fn text(bucket: &Bucket<'_>, key: &str) -> Result<String, Corrupt> {
    as_text(bucket.get(key.as_bytes())?)
}

/// What was found under a key, as a string; empty when nothing was.
pub fn as_text(found: Option<Item<'_>>) -> Result<String, Corrupt> {
    let bytes = found.and_then(Item::value).unwrap_or_default();
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Corrupt { at: 0, why: "a text is not UTF-8" })
}

/// A bucket of texts (`labels`, `annotations`), empty when absent.
pub fn texts(bucket: &Bucket<'_>, key: &str) -> Result<BTreeMap<String, String>, Corrupt> {
    as_texts(bucket.get(key.as_bytes())?)
}

/// What was found under a key, as a bucket of texts; empty when nothing was.
pub fn as_texts(found: Option<Item<'_>>) -> Result<BTreeMap<String, String>, Corrupt> {
    let mut all = BTreeMap::new();
    for entry in found.and_then(Item::bucket).iter().flat_map(Bucket::iter) {
        if let (name, Item::Value(value)) = entry? {
            all.insert(String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_from_year_one_in_big_endian() {
        let bytes = [1, 0, 0, 0, 0x0e, 0xdc, 0x1d, 0x0f, 0x7c, 0, 0, 0, 5, 0xff, 0xff];
        let at = time(&bytes).unwrap();
        assert_eq!(at.as_second(), 0x0e_dc1d_0f7c - YEAR_ONE);
        assert_eq!(at.subsec_nanosecond(), 5);
        assert!(time(&bytes[..9]).is_err());
        assert!(time(&[3; 15]).is_err());
    }

    #[test]
    fn sizes_are_zig_zag_and_ids_are_not() {
        assert_eq!(varint(&[8]).unwrap(), 4);
        assert_eq!(varint(&[7]).unwrap(), -4);
        assert_eq!(uvarint(&[0xac, 0x02]).unwrap(), 300);
        assert!(uvarint(&[0x80; 12]).is_err());
        assert!(varint(&[]).is_err());
    }
}
