//! What a restore needs of a CRIU tar, checked while the tar streams by.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use crate::{
    corrupt::Corrupt,
    criu::image::{self as criu, Inventory, Kind, Pagemap, PagemapHead, Process},
    layout::untar,
    proto,
};

/// The images that tell whether the set is whole.
#[derive(Default)]
pub(super) struct CriuTar {
    inventory: Option<Vec<u8>>,
    pstree: Option<Vec<u8>>,
    descriptors: Option<Vec<u8>>,
    /// What each pagemap counts, with its number or name; read at once, since there may be many.
    pagemaps: Vec<Result<Count, String>>,
    /// Sizes of the pages files, by number.
    pages: BTreeMap<u32, u64>,
    /// The processes and threads that have a core.
    cores: BTreeSet<u32>,
    /// The first entry in a folder.
    nested: Option<String>,
}

/// What a pagemap says of its pages file.
struct Count {
    pagemap: String,
    file: u32,
    pages: u64,
}

/// An image of metadata larger than this is not CRIU's: a pagemap of it would describe a million areas.
const MAX_IMAGE: u64 = 64 << 20;

/// The number in `<prefix><number>.img`.
fn numbered(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.strip_suffix(".img")?.parse().ok()
}

impl CriuTar {
    pub(super) fn take(&mut self, entry: untar::Entry<'_>) -> io::Result<()> {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if name.trim_end_matches('/').contains('/') {
            self.nested.get_or_insert(name);
            return Ok(());
        }
        let mut read = || -> io::Result<Vec<u8>> {
            if entry.size > MAX_IMAGE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is larger than 64 MiB")));
            }
            let mut bytes = Vec::new();
            entry.content.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match name.as_str() {
            "inventory.img" => self.inventory = Some(read()?),
            "pstree.img" => self.pstree = Some(read()?),
            "descriptors.json" => self.descriptors = Some(read()?),
            _ if name.starts_with("pagemap-") => {
                let bytes = read()?;
                self.pagemaps.push(count(name, &bytes));
            }
            _ => {
                self.pages.extend(numbered(&name, "pages-").map(|id| (id, entry.size)));
                self.cores.extend(numbered(&name, "core-"));
            }
        }
        Ok(())
    }

    pub(super) fn findings(&self) -> Vec<String> {
        let nested = self.nested.iter().map(|n| format!("{n} lies in a folder; the tar must be flat"));
        let mut all: Vec<String> = nested.collect();
        all.extend(self.inventory().err());
        all.extend(self.processes().err());
        all.extend(self.descriptors().err());
        all.extend(self.pagemaps.iter().filter_map(|count| match count {
            Ok(count) => self.fits(count).err(),
            Err(why) => Some(why.clone()),
        }));
        all
    }

    fn inventory(&self) -> Result<(), String> {
        let bytes = self.inventory.as_ref().ok_or("inventory.img is missing")?;
        let all: Vec<Inventory> = criu::messages(Kind::Inventory, bytes).map_err(|e| format!("inventory.img: {e}"))?;
        match all.as_slice() {
            [one] if matches!(one.img_version, 1 | 2) => Ok(()),
            [one] => Err(format!("inventory.img: image version {} is not known", one.img_version)),
            _ => Err("inventory.img does not hold one entry".into()),
        }
    }

    fn processes(&self) -> Result<(), String> {
        let bytes = self.pstree.as_ref().ok_or("pstree.img is missing")?;
        let all: Vec<Process> = criu::messages(Kind::Pstree, bytes).map_err(|e| format!("pstree.img: {e}"))?;
        match all.iter().find(|process| !self.cores.contains(&process.pid)) {
            Some(process) => Err(format!("core-{}.img is missing", process.pid)),
            None if all.is_empty() => Err("pstree.img names no process".into()),
            None => Ok(()),
        }
    }

    /// runc's restore needs it (`libcontainer/criu_linux.go`, `Restore`).
    fn descriptors(&self) -> Result<(), String> {
        let bytes = self.descriptors.as_ref().ok_or("descriptors.json is missing: runc cannot restore")?;
        let parsed = serde_json::from_slice::<Vec<String>>(bytes);
        parsed.map(|_| ()).map_err(|e| format!("descriptors.json: {e}"))
    }

    fn fits(&self, count: &Count) -> Result<(), String> {
        let Count { pagemap, file, pages } = count;
        let size = self.pages.get(file).copied().unwrap_or(0);
        // A page is 4 KiB here, up to 64 KiB elsewhere; the dump's own machine is not on record.
        let fits =
            *pages == 0 && size == 0 || [4096, 16384, 65536].iter().any(|page| pages.saturating_mul(*page) == size);
        if fits { Ok(()) } else { Err(format!("pages-{file}.img has {size} bytes, {pagemap} counts {pages} pages")) }
    }
}

fn count(pagemap: String, bytes: &[u8]) -> Result<Count, String> {
    let place = |e: Corrupt| format!("{pagemap}: {e}");
    let entries = criu::entries(Kind::Pagemap, bytes).map_err(place)?;
    let Some((head, rest)) = entries.split_first() else { return Err(format!("{pagemap} has no head")) };
    let file = proto::decode::<PagemapHead>(head).map_err(place)?.pages_id;
    let mut pages = 0_u64;
    for entry in rest {
        pages = pages.saturating_add(proto::decode::<Pagemap>(entry).map_err(place)?.pages_here());
    }
    Ok(Count { pagemap, file, pages })
}
