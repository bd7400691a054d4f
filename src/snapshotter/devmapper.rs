//! devmapper: each snapshot is a thin volume of a pool, named `<pool>-snap-<id>` (`plugins/snapshots/devmapper`).
//!
//! ```text
//! metadata.db           the snapshots, as for every snapshotter
//! <pool>.db             devices/<name>      JSON {"device_id", "size" in bytes, "state", …}
//!                       device_ids/<id>     0 free, 1 taken, 2 faulty
//! /dev/mapper/<name>    where the volume is active: a container's is, a committed one's rarely
//! ```
//!
//! What is active is mounted to be read, or read where it is mounted already. For what is not, the one line is said that
//! makes it so: to make a device of device mapper is the user's decision.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Found, Origin, Place, RwLayer,
    mount::{Mounted, Writers},
};
use crate::{
    bolt::Db,
    corrupt::Corrupt,
    error::{At, Error, In, Result},
    host::database,
    id::SnapshotId,
};

/// A volume's record (`device_info.go`).
#[derive(Debug, Deserialize)]
struct Device {
    device_id: u32,
    size: u64,
}

/// Both volumes are compared; a thin snapshot begins as its origin to the last bit.
pub fn resolve(place: &Place) -> Result<Found> {
    let pool = pool(place.dir)?;
    let bytes = database::read(place.mounts.host(), &pool.db)?;
    let open = |id: SnapshotId, writers| volume(place, &pool, &bytes, id, writers);
    let active = open(place.snapshot.id, if place.is_active { Writers::Possible } else { Writers::None })?;
    let Some(parent) = place.snapshot.parents.first() else {
        return Ok(Found { rw: RwLayer::Tree { dir: active.root }, findings: active.findings });
    };
    let base = open(*parent, Writers::None)?;
    let findings = [active.findings, base.findings].concat();
    Ok(Found { rw: RwLayer::Trees { base: base.root, active: active.root, origin: Origin::Cloned }, findings })
}

struct Pool {
    name: String,
    db: PathBuf,
}

/// The pool's name is its database's; the configuration has it, too, but may be gone.
fn pool(dir: &Path) -> Result<Pool> {
    let mut pools = Vec::new();
    for entry in fs::read_dir(dir).at("read", dir)? {
        let db = entry.at("read", dir)?.path();
        let name = db.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if db.extension().is_some_and(|end| end == "db") && name != "metadata" {
            pools.push(Pool { name, db });
        }
    }
    match pools.len() {
        1 => {}
        0 => {
            return Err(Error::NotFound {
                what: format!("the pool's database in {}", dir.display()),
                hint: String::new(),
            });
        }
        _ => return Err(Error::malformed(dir, "there are databases of several pools")),
    }
    let pool = pools.remove(0);
    // The name goes into a path, and into a line for a shell.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c);
    match pool.name.chars().all(is_plain) && !pool.name.starts_with(['.', '-', '#']) {
        true => Ok(pool),
        false => Err(Error::malformed(&pool.db, "this is no name of a pool")),
    }
}

fn volume(place: &Place, pool: &Pool, bytes: &[u8], id: SnapshotId, writers: Writers) -> Result<Mounted> {
    let name = format!("{}-snap-{id}", pool.name);
    let node = Path::new("/dev/mapper").join(&name);
    if node.exists() {
        let mut mounted = place.mounts.device(&node, writers)?;
        mounted.findings.extend(place.mounts.host().sysroot.is_some().then(|| {
            format!("{} of this machine was taken for the store's; if its pool is another, the files are wrong", name)
        }));
        return Ok(mounted);
    }
    let device = device(bytes, &name).within(&pool.db)?.ok_or_else(|| Error::NotFound {
        what: format!("{name} in {}", pool.db.display()),
        hint: "the two databases disagree: the snapshot's volume cannot be named".into(),
    })?;
    Err(inactive(pool, &name, &device))
}

fn inactive(pool: &Pool, name: &str, device: &Device) -> Error {
    let Device { device_id, size } = device;
    let pool_node = Path::new("/dev/mapper").join(&pool.name);
    let first = if pool_node.exists() { "" } else { "activate the pool, then: " };
    Error::Unsupported {
        what: format!("{name} is thin volume {device_id} of pool {}, and not active", pool.name),
        hint: format!(
            "{first}dmsetup create {name} --readonly --table '0 {} thin {} {device_id}'",
            size / 512,
            pool_node.display()
        ),
    }
}

fn device(bytes: &[u8], name: &str) -> Result<Option<Device>, Corrupt> {
    let db = Db::open(bytes)?;
    let Some(devices) = db.root().bucket("devices")? else { return Ok(None) };
    let Some(json) = devices.value(name)? else { return Ok(None) };
    serde_json::from_slice(json).map(Some).map_err(|_| Corrupt { at: 0, why: "a volume's record is no JSON of one" })
}
