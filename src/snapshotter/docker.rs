//! Docker's own graph drivers: a container's files where containerd has no snapshot of it (until Docker 29 the usual way).
//!
//! ```text
//! <data-root>/image/<driver>/layerdb/mounts/<id>/{mount-id,init-id,parent}    parent: the image's chain id
//! <data-root>/image/<driver>/layerdb/sha256/<chain id>/cache-id
//! <data-root>/overlay2/<mount-id>/{diff/,lower}                               lower: "l/<short>:l/<short>…", nearest first
//! <data-root>/overlay2/l/<short> -> ../<cache-id>/diff
//! <data-root>/vfs/dir/<mount-id or cache-id>/                                 a whole tree each
//! ```
//! Source: moby `daemon/internal/layer/filestore.go`, `daemon/graphdriver/{overlay2,vfs}`.

use std::path::{Path, PathBuf};

use super::{Driver, Origin, Root, RwLayer};
use crate::{
    digest::Digest,
    error::{At, Error, Result},
    host::{Host, database},
    id::ContainerId,
};

/// Docker itself allows 128.
const MAX_LAYERS: usize = 4096;

/// A page, which a mount's options must fit in.
const MAX_BYTES: u64 = 64 << 10;

/// The files of container `id` of the dockerd in `data_root`, which keeps them by `driver`; and the chain id of its image.
pub fn rw_layer(host: &Host, data_root: &Path, driver: &str, id: &ContainerId) -> Result<(RwLayer, Option<String>)> {
    let graph = Graph { host, data_root, driver };
    let mount = graph.layers().join("mounts").join(id.as_str());
    let mount_id = graph.name(&mount.join("mount-id"))?;
    // An image without layers has no chain.
    let chain = graph.text(&mount.join("parent")).ok().and_then(|text| text.trim().parse::<Digest>().ok());
    let rw = match driver {
        "overlay2" => graph.overlay(&mount_id, graph.name(&mount.join("init-id")).ok().as_deref())?,
        "vfs" => graph.trees(&mount_id, chain)?,
        _ => {
            return Err(Error::Unsupported {
                what: format!(
                    "Docker's graph driver {driver:?} is not supported, so the container's files cannot be read"
                ),
                hint: "supported: overlay2, vfs, and containerd's snapshotters".into(),
            });
        }
    };
    Ok((rw, chain.map(|chain| chain.to_string())))
}

struct Graph<'a> {
    host: &'a Host,
    data_root: &'a Path,
    driver: &'a str,
}

impl Graph<'_> {
    /// A driver's name stands in a record: it is one of those we know before it is a folder's.
    fn layers(&self) -> PathBuf {
        let known = ["overlay2", "vfs"].into_iter().find(|known| *known == self.driver).unwrap_or("unknown");
        self.data_root.join("image").join(known).join("layerdb")
    }

    fn text(&self, path: &Path) -> Result<String> {
        let path = &self.host.inside(path)?;
        if !path.symlink_metadata().at("look at", path)?.is_file() {
            return Err(Error::malformed(path, "is no regular file"));
        }
        let bytes = database::bounded("document", path, MAX_BYTES)?;
        String::from_utf8(bytes).map_err(|e| Error::malformed(path, e))
    }

    /// The content of a file that is the name of a folder.
    fn name(&self, path: &Path) -> Result<String> {
        let text = self.text(path)?;
        let name = text.trim();
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if is_name { Ok(name.to_owned()) } else { Err(Error::malformed(path, "does not name a layer")) }
    }

    fn overlay(&self, mount_id: &str, init_id: Option<&str>) -> Result<RwLayer> {
        let home = self.host.inside(&self.data_root.join("overlay2"))?;
        let folder = home.join(mount_id);
        let upper = self.directory(&home, &folder.join("diff"))?;
        let text = self.text(&folder.join("lower"))?;
        let lowers = text.trim().split(':').filter(|lower| !lower.is_empty()).take(MAX_LAYERS);
        let lowers = lowers.map(|lower| self.directory(&home, &home.join(lower))).collect::<Result<Vec<_>>>()?;
        let init = init_id.map(|id| home.join(id).join("diff"));
        let own = usize::from(init.is_some_and(|init| lowers.first().is_some_and(|top| is_same(top, &init))));
        if lowers.is_empty() {
            return Ok(RwLayer::Tree { dir: upper.into() });
        }
        let lowers = lowers.into_iter().map(Root::from).collect();
        let overlay = RwLayer::Overlay { upper: upper.into(), lowers, ids: None, driver: Driver::Kernel };
        Ok(if own == 0 { overlay } else { RwLayer::Stacked { overlay: Box::new(overlay), own } })
    }

    /// Compared with the image's own tree, what Docker's init layer has is the container's.
    fn trees(&self, mount_id: &str, chain: Option<Digest>) -> Result<RwLayer> {
        let home = self.host.inside(&self.data_root.join("vfs/dir"))?;
        let active = self.directory(&home, &home.join(mount_id))?;
        let Some(chain) = chain else { return Ok(RwLayer::Tree { dir: active.into() }) };
        let base = self.name(&self.layers().join("sha256").join(chain.to_hex()).join("cache-id"))?;
        let base = self.directory(&home, &home.join(base))?;
        Ok(RwLayer::Trees { base: base.into(), active: active.into(), origin: Origin::Copied })
    }

    /// The directory that `path` leads to, by Docker's short links; it must be below `home`.
    fn directory(&self, home: &Path, path: &Path) -> Result<PathBuf> {
        let (home, found) = match self.host.sysroot {
            Some(_) => (home.to_owned(), self.host.inside(path)?),
            None => (home.canonicalize().at("look up", home)?, path.canonicalize().at("look up", path)?),
        };
        if !found.starts_with(&home) || found == home {
            return Err(Error::malformed(path, format!("leads to {}, out of the layers", found.display())));
        }
        match found.symlink_metadata().at("look at", &found)?.is_dir() {
            true => Ok(found),
            false => Err(Error::malformed(found, "is no directory")),
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || other.canonicalize().is_ok_and(|other| one == other)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const ID: &str = "275cc7e8a4e979823a9b111ffa2bbdd927e4c404ab9e3f487b80430bcca8c66a";
    const CHAIN: &str = "sha256:6c55116fdbf269b1f10b2b262265a1c16f87fe5237271fd65da2015c1a2bf539";

    /// What dockerd 28.5 leaves of a container on an image of two layers (`tests/live/docker.rs` has the real one).
    fn docker(lower: &str, mount_id: &str, link: &str) -> (tempfile::TempDir, Host) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let mount = format!("image/overlay2/layerdb/mounts/{ID}");
        write(&format!("{mount}/mount-id"), mount_id);
        write(&format!("{mount}/init-id"), "0c67-init");
        write(&format!("{mount}/parent"), CHAIN);
        for (layer, short) in [("0c67", "AAA"), ("0c67-init", "BBB"), ("6195", "CCC"), ("5ff3", "DDD")] {
            fs::create_dir_all(root.join("overlay2").join(layer).join("diff")).unwrap();
            fs::create_dir_all(root.join("overlay2/l")).unwrap();
            symlink(format!("../{layer}/diff"), root.join("overlay2/l").join(short)).unwrap();
        }
        fs::create_dir_all(root.join("secret/diff")).unwrap();
        symlink(link, root.join("overlay2/l/EEE")).unwrap();
        write("overlay2/0c67/lower", lower);
        (temp, Host { docker: vec![root], ..Host::default() })
    }

    fn found(host: &Host) -> Result<(RwLayer, Option<String>)> {
        rw_layer(host, &host.docker[0], "overlay2", &ID.parse().unwrap())
    }

    #[test]
    fn the_init_layer_is_told_from_the_image() {
        for sysroot in [false, true] {
            let (_temp, mut host) = docker("l/BBB:l/CCC:l/DDD", "0c67", "../6195/diff");
            host.sysroot = sysroot.then(|| host.docker[0].clone());
            let (rw, chain) = found(&host).unwrap();
            assert_eq!(chain.as_deref(), Some(CHAIN));
            let RwLayer::Stacked { overlay, own: 1 } = rw else { panic!("{rw:?}") };
            let RwLayer::Overlay { upper, lowers, .. } = *overlay else { panic!("{overlay:?}") };
            let layer = |name: &str| Root::from(host.docker[0].join("overlay2").join(name).join("diff"));
            assert_eq!((upper, lowers), (layer("0c67"), ["0c67-init", "6195", "5ff3"].map(layer).to_vec()));
        }
        let (_temp, host) = docker("l/CCC:l/DDD", "0c67", "../6195/diff");
        assert!(
            matches!(found(&host).unwrap().0, RwLayer::Overlay { .. }),
            "no init layer, nothing of the container's below"
        );
        assert!(rw_layer(&host, &host.docker[0], "../../etc", &ID.parse().unwrap()).is_err());
    }

    #[test]
    fn no_name_and_no_link_leads_out_of_dockers_layers() {
        for sysroot in [false, true] {
            for (lower, mount_id, link) in [
                ("l/EEE", "0c67", "../../secret/diff"),
                ("l/EEE", "0c67", "/etc"),
                ("l/EEE", "0c67", "EEE"),
                ("../secret/diff", "0c67", "../6195/diff"),
                ("/etc", "0c67", "../6195/diff"),
                ("l/gone", "0c67", "../6195/diff"),
                (".", "0c67", "../6195/diff"),
                ("l/CCC", "../secret", "../6195/diff"),
                ("l/CCC", "", "../6195/diff"),
                ("l/CCC", "..", "../6195/diff"),
            ] {
                let (_temp, mut host) = docker(lower, mount_id, link);
                host.sysroot = sysroot.then(|| host.docker[0].clone());
                assert!(found(&host).is_err(), "{lower} {mount_id} {link}: {:?}", found(&host).unwrap().0);
            }
        }
    }
}
