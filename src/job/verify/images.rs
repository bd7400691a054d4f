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
    /// Each pagemap's pages file and how many pages it should have.
    pagemaps: BTreeMap<String, Vec<u8>>,
    /// Sizes of the pages files.
    pages: BTreeMap<String, u64>,
    cores: BTreeSet<String>,
    nested: Vec<String>,
}

/// An image of metadata larger than this is not CRIU's.
const MAX_IMAGE: u64 = 256 << 20;

impl CriuTar {
    pub(super) fn take(&mut self, entry: untar::Entry<'_>) -> io::Result<()> {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        if name.trim_end_matches('/').contains('/') {
            self.nested.push(name);
            return Ok(());
        }
        let mut read = || -> io::Result<Vec<u8>> {
            if entry.size > MAX_IMAGE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is larger than 256 MiB")));
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
                self.pagemaps.insert(name, bytes);
            }
            _ if name.starts_with("pages-") => {
                self.pages.insert(name, entry.size);
            }
            _ if name.starts_with("core-") => {
                self.cores.insert(name);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn findings(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.nested.iter().map(|n| format!("{n} lies in a folder; the tar must be flat")).collect();
        all.extend(self.inventory().err());
        all.extend(self.processes().err());
        all.extend(self.descriptors().err());
        all.extend(self.pagemaps.iter().filter_map(|(name, bytes)| self.pagemap(name, bytes).err()));
        all
    }

    fn inventory(&self) -> std::result::Result<(), String> {
        let bytes = self.inventory.as_ref().ok_or("inventory.img is missing")?;
        let all: Vec<Inventory> = criu::messages(Kind::Inventory, bytes).map_err(|e| format!("inventory.img: {e}"))?;
        match all.as_slice() {
            [one] if matches!(one.img_version, 1 | 2) => Ok(()),
            [one] => Err(format!("inventory.img: image version {} is not known", one.img_version)),
            _ => Err("inventory.img does not hold one entry".into()),
        }
    }

    fn processes(&self) -> std::result::Result<(), String> {
        let bytes = self.pstree.as_ref().ok_or("pstree.img is missing")?;
        let all: Vec<Process> = criu::messages(Kind::Pstree, bytes).map_err(|e| format!("pstree.img: {e}"))?;
        let lacking = all.iter().map(|p| format!("core-{}.img", p.pid)).find(|core| !self.cores.contains(core));
        match lacking {
            Some(core) => Err(format!("{core} is missing")),
            None if all.is_empty() => Err("pstree.img names no process".into()),
            None => Ok(()),
        }
    }

    /// runc's restore needs it (`libcontainer/criu_linux.go`, `Restore`).
    fn descriptors(&self) -> std::result::Result<(), String> {
        let bytes = self.descriptors.as_ref().ok_or("descriptors.json is missing: runc cannot restore")?;
        let parsed = serde_json::from_slice::<Vec<String>>(bytes);
        parsed.map(|_| ()).map_err(|e| format!("descriptors.json: {e}"))
    }

    fn pagemap(&self, name: &str, bytes: &[u8]) -> std::result::Result<(), String> {
        let place = |e: Corrupt| format!("{name}: {e}");
        let entries = criu::entries(Kind::Pagemap, bytes).map_err(place)?;
        let Some((head, rest)) = entries.split_first() else { return Err(format!("{name} has no head")) };
        let head: PagemapHead = proto::decode(head).map_err(place)?;
        let mut pages = 0_u64;
        for entry in rest {
            pages = pages.saturating_add(proto::decode::<Pagemap>(entry).map_err(place)?.pages_here());
        }
        let file = format!("pages-{}.img", head.pages_id);
        let size = self.pages.get(&file).copied().unwrap_or(0);
        // A page is 4 KiB here, up to 64 KiB elsewhere; the dump's own machine is not on record.
        let fits =
            pages == 0 && size == 0 || [4096, 16384, 65536].iter().any(|page| pages.saturating_mul(*page) == size);
        if fits { Ok(()) } else { Err(format!("{file} has {size} bytes, {name} counts {pages} pages")) }
    }
}
