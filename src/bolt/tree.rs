//! The tree: a database, its buckets, lookups and walks in key order.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use super::{
    page::{BRANCH, HEADER, Meta, Page, u64_at},
    walk::MAX_DEPTH,
};
use crate::corrupt::Corrupt;

/// An open database: the bytes of a whole file.
pub struct Db<'a> {
    file: &'a [u8],
    meta: Meta,
    /// Which bucket's tree a page was seen in. One page in two trees is damage, and would let a small file
    /// make a walk of any length.
    owners: RefCell<HashMap<u64, u64>>,
}

/// A bucket: keys in byte order, each with a value or a bucket below it.
#[derive(Clone, Copy)]
pub struct Bucket<'d> {
    db: &'d Db<'d>,
    root: Root<'d>,
    /// The counter behind `NextSequence`.
    pub sequence: u64,
}

#[derive(Clone, Copy)]
enum Root<'d> {
    Page(u64),
    Inline(Page<'d>),
}

/// What stands under a key.
#[derive(Clone, Copy)]
pub enum Item<'d> {
    /// Plain bytes, perhaps none ("set" entries).
    Value(&'d [u8]),
    /// A bucket below this one.
    Bucket(Bucket<'d>),
}

impl<'a> Db<'a> {
    /// Opens a file's bytes: finds the page size and the newest valid meta (`db.go`, `getPageSize`, `meta`).
    pub fn open(file: &'a [u8]) -> Result<Self, Corrupt> {
        let (first, second) = metas(file);
        let meta = Meta::newest(first, second).ok_or(first.err().unwrap_or(Corrupt { at: 0, why: "no meta page" }))?;
        Ok(Self { file, meta, owners: RefCell::default() })
    }

    /// Which commit is read: transaction number and checksum of the meta page. Unchanged while the tree is.
    pub fn commit(&self) -> (u64, u64) {
        (self.meta.txid, self.meta.checksum)
    }

    /// The bucket of buckets.
    pub fn root(&'a self) -> Bucket<'a> {
        Bucket { db: self, root: Root::Page(self.meta.root), sequence: 0 }
    }

    fn page(&self, id: u64, owner: u64) -> Result<Page<'_>, Corrupt> {
        if id < 2 || id >= self.meta.high_water {
            return Err(Corrupt { at: 0, why: "a page number is outside the tree's pages" });
        }
        let page = Page::of_file(self.file, self.meta.page_size, id)?;
        let seen = *self.owners.borrow_mut().entry(id).or_insert(owner);
        if seen == owner { Ok(page) } else { Err(Corrupt { at: 0, why: "a page belongs to two buckets" }) }
    }
}

/// Both metas of a file, each valid or not.
pub(super) fn metas(file: &[u8]) -> (Result<Meta, Corrupt>, Result<Meta, Corrupt>) {
    let first = Meta::read(file, 0);
    let second = match &first {
        Ok(meta) => Meta::read(file, meta.page_size),
        Err(_) => second_meta(file),
    };
    (first, second)
}

/// Looks for the second meta where a file of each page size would have it.
fn second_meta(file: &[u8]) -> Result<Meta, Corrupt> {
    let candidates = (0..15).map(|i| 1024 << i).filter_map(|at| Meta::read(file, at).ok().map(|meta| (at, meta)));
    let found = candidates.filter(|(at, meta)| *at == meta.page_size).map(|(_, meta)| meta).next();
    found.ok_or(Corrupt { at: 0, why: "neither meta page is valid" })
}

impl<'d> Bucket<'d> {
    /// A bucket from its value in the parent's leaf; `at` is where the value starts in the file.
    fn open(db: &'d Db<'d>, value: &'d [u8], at: usize) -> Result<Self, Corrupt> {
        let place = |e: Corrupt| Corrupt { at: at + e.at, ..e };
        let (root, sequence) = (u64_at(value, 0).map_err(place)?, u64_at(value, 8).map_err(place)?);
        // Root page 0 means the bucket is inline: its page follows the header in this value (bucket.go, openBucket).
        let root = match root {
            0 => Root::Inline(Page::inline(value.get(HEADER..).unwrap_or_default(), at + HEADER)?),
            id => Root::Page(id),
        };
        Ok(Self { db, root, sequence })
    }

    fn root_page(&self) -> Result<Page<'d>, Corrupt> {
        match self.root {
            Root::Page(id) => self.db.page(id, id),
            Root::Inline(page) => Ok(page),
        }
    }

    fn child(&self, id: u64) -> Result<Page<'d>, Corrupt> {
        match self.root {
            Root::Page(owner) => self.db.page(id, owner),
            Root::Inline(_) => Err(Corrupt { at: 0, why: "an inline bucket has a branch page" }),
        }
    }

    fn item(&self, page: Page<'d>, i: usize) -> Result<(&'d [u8], Item<'d>), Corrupt> {
        let leaf = page.leaf(i)?;
        let item = match leaf.is_bucket {
            true => Item::Bucket(Bucket::open(self.db, leaf.value, leaf.at)?),
            false => Item::Value(leaf.value),
        };
        Ok((leaf.key, item))
    }

    /// What stands under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Item<'d>>, Corrupt> {
        let mut page = self.root_page()?;
        for _ in 0..MAX_DEPTH {
            if page.flags != BRANCH {
                let at = partition(page.count, |i| Ok(page.leaf(i)?.key < key))?;
                return match at < page.count && page.leaf(at)?.key == key {
                    true => self.item(page, at).map(|(_, item)| Some(item)),
                    false => Ok(None),
                };
            }
            // The last element that is not greater holds the key; below the first, the first (cursor.go, searchPage).
            let after = partition(page.count, |i| Ok(page.branch(i)?.0 <= key))?;
            page = self.child(page.branch(after.saturating_sub(1))?.1)?;
        }
        Err(Corrupt { at: 0, why: "the tree is too deep" })
    }

    /// The bucket under `key`, if there is one.
    pub fn bucket(&self, key: impl AsRef<[u8]>) -> Result<Option<Bucket<'d>>, Corrupt> {
        Ok(self.get(key.as_ref())?.and_then(|item| match item {
            Item::Bucket(bucket) => Some(bucket),
            Item::Value(_) => None,
        }))
    }

    /// The bytes under `key`, if they are no bucket.
    pub fn value(&self, key: impl AsRef<[u8]>) -> Result<Option<&'d [u8]>, Corrupt> {
        Ok(self.get(key.as_ref())?.and_then(|item| match item {
            Item::Value(value) => Some(value),
            Item::Bucket(_) => None,
        }))
    }

    /// All entries in key order. What cannot be read comes as an error, and the walk goes on behind it.
    pub fn iter(&self) -> Iter<'d> {
        Iter { bucket: *self, stack: Vec::new(), seen: HashSet::new(), started: false, last: None }
    }

    /// The buckets right below this one, with their keys; plain values are passed over.
    pub fn buckets(&self) -> impl Iterator<Item = Result<(&'d [u8], Bucket<'d>), Corrupt>> + use<'d> {
        self.iter().filter_map(|entry| match entry {
            Ok((key, Item::Bucket(bucket))) => Some(Ok((key, bucket))),
            Ok((_, Item::Value(_))) => None,
            Err(e) => Some(Err(e)),
        })
    }
}

/// The first index in `0..count` for which `before` is false (binary search that may fail).
fn partition(count: usize, before: impl Fn(usize) -> Result<bool, Corrupt>) -> Result<usize, Corrupt> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// A walk through one bucket. Each page is entered once, so it ends after at most every element of the file.
pub struct Iter<'d> {
    bucket: Bucket<'d>,
    /// Pages from the root down, each with its next element.
    stack: Vec<(Page<'d>, usize)>,
    seen: HashSet<u64>,
    started: bool,
    last: Option<&'d [u8]>,
}

impl<'d> Iter<'d> {
    fn step(&mut self) -> Result<Option<(&'d [u8], Item<'d>)>, Corrupt> {
        if !self.started {
            self.started = true;
            self.stack.push((self.bucket.root_page()?, 0));
        }
        while let Some((page, next)) = self.stack.last_mut() {
            let (page, i) = (*page, *next);
            *next += 1;
            if i >= page.count {
                self.stack.pop();
            } else if page.flags == BRANCH {
                let child = self.descend(page.branch(i)?.1)?;
                self.stack.push((child, 0));
            } else {
                self.ascending(page.leaf(i)?.key)?;
                return self.bucket.item(page, i).map(Some);
            }
        }
        Ok(None)
    }

    fn descend(&mut self, id: u64) -> Result<Page<'d>, Corrupt> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Corrupt { at: 0, why: "the tree is too deep" });
        }
        if !self.seen.insert(id) {
            return Err(Corrupt { at: 0, why: "a page hangs in the tree twice" });
        }
        self.bucket.child(id)
    }

    fn ascending(&mut self, key: &'d [u8]) -> Result<(), Corrupt> {
        if self.last.is_some_and(|last| last >= key) {
            return Err(Corrupt { at: 0, why: "keys are out of order" });
        }
        self.last = Some(key);
        Ok(())
    }
}

impl<'d> Iterator for Iter<'d> {
    type Item = Result<(&'d [u8], Item<'d>), Corrupt>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a over the meta's fields, written anew.
    fn meta(page_size: u32, txid: u64, root: u64, high_water: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xED0C_DAED_u32.to_le_bytes());
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(page_size.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        [root, 0, u64::MAX, high_water, txid].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for byte in &bytes {
            sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    fn header(id: u64, flags: u16, count: u16) -> Vec<u8> {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(flags.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes
    }

    /// A leaf page with these keys and values; `true`: the value is a bucket.
    fn leaf(id: u64, items: &[(&[u8], &[u8], bool)]) -> Vec<u8> {
        let mut bytes = header(id, 2, items.len() as u16);
        let mut data = Vec::new();
        for (i, (key, value, is_bucket)) in items.iter().enumerate() {
            let pos = (items.len() - i) * 16 + data.len();
            for word in [u32::from(*is_bucket), pos as u32, key.len() as u32, value.len() as u32] {
                bytes.extend(word.to_le_bytes());
            }
            data.extend([*key, *value].concat());
        }
        [bytes, data].concat()
    }

    fn file(page_size: usize, pages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; page_size * pages.len()];
        for (i, page) in pages.iter().enumerate() {
            bytes[i * page_size..i * page_size + page.len()].copy_from_slice(page);
        }
        bytes
    }

    fn small(page_size: usize, txids: [u64; 2]) -> Vec<u8> {
        let head = |id, txid| [header(id, 4, 0), meta(page_size as u32, txid, 2, 4)].concat();
        file(
            page_size,
            &[head(0, txids[0]), head(1, txids[1]), leaf(2, &[(b"key", b"value", false), (b"set", b"", false)])],
        )
    }

    #[test]
    fn every_page_size_is_found_by_either_meta() {
        for page_size in [1024, 4096, 16384, 65536] {
            for lost in [None, Some(0), Some(page_size)] {
                let mut bytes = small(page_size, [6, 7]);
                if let Some(at) = lost {
                    bytes[at + 16..at + 40].fill(0);
                }
                let db = Db::open(&bytes).unwrap();
                assert_eq!(db.commit().0, if lost == Some(page_size) { 6 } else { 7 });
                assert_eq!(db.root().value("key").unwrap(), Some(&b"value"[..]));
                assert_eq!(db.root().value("set").unwrap(), Some(&b""[..]), "an empty value is a value");
                assert!(db.root().bucket("set").unwrap().is_none());
            }
        }
    }

    #[test]
    fn what_is_no_database_of_ours_says_so() {
        let why = |bytes: &[u8]| Db::open(bytes).err().unwrap().why;
        assert_eq!(why(b""), "ends too soon");
        let mut big_endian = small(4096, [1, 2]);
        for at in [16, 4096 + 16] {
            big_endian[at..at + 4].reverse();
        }
        assert!(why(&big_endian).contains("big-endian"));
        let mut newer = small(4096, [1, 2]);
        newer[20] = 3;
        newer[4096 + 20] = 3;
        assert!(why(&newer).contains("only 2 is known"));
    }

    #[test]
    fn a_bucket_may_be_inline_and_a_page_has_one_owner() {
        let inline = [&[0; 16][..], &leaf(0, &[(b"a", b"1", false), (b"b", b"2", false)])].concat();
        let page = [4_u64.to_le_bytes(), 9_u64.to_le_bytes()].concat();
        let root = leaf(2, &[(b"far", &page, true), (b"near", &inline, true), (b"same", &page, true)]);
        let head = |id, txid| [header(id, 4, 0), meta(4096, txid, 2, 5)].concat();
        let bytes = file(4096, &[head(0, 0), head(1, 1), root, vec![], leaf(4, &[(b"x", b"y", false)])]);
        let db = Db::open(&bytes).unwrap();
        let near = db.root().bucket("near").unwrap().unwrap();
        let keys: Vec<_> = near.iter().map(|e| e.unwrap().0).collect();
        assert_eq!(keys, [b"a", b"b"]);
        let far = db.root().bucket("far").unwrap().unwrap();
        assert_eq!((far.sequence, far.value("x").unwrap()), (9, Some(&b"y"[..])));
        // The root's own page, claimed by a bucket as well.
        let mut shared = bytes.clone();
        let at = 2 * 4096 + shared[2 * 4096..].windows(16).position(|w| w == page).unwrap();
        shared[at] = 3;
        let db = Db::open(&shared).unwrap();
        assert!(db.root().bucket("far").unwrap().unwrap().value("x").is_err(), "page 3 is no page");
    }

    #[test]
    fn keys_out_of_order_end_a_walk_with_an_error_each() {
        let head = |id, txid| [header(id, 4, 0), meta(4096, txid, 2, 3)].concat();
        let items: [(&[u8], &[u8], bool); 3] = [(b"b", b"", false), (b"a", b"", false), (b"c", b"", false)];
        let bytes = file(4096, &[head(0, 0), head(1, 1), leaf(2, &items)]);
        let db = Db::open(&bytes).unwrap();
        let found: Vec<_> = db.root().iter().map(|e| e.map(|(key, _)| key.to_vec()).map_err(|e| e.why)).collect();
        assert_eq!(found, [Ok(b"b".to_vec()), Err("keys are out of order"), Ok(b"c".to_vec())]);
    }
}
