//! Finding the stores of a host: containerd's own, and those of the products that bring a containerd along.
//!
//! | product | root | state | told by |
//! |---|---|---|---|
//! | containerd | `/var/lib/containerd` | `/run/containerd` | `/etc/containerd/config.toml` |
//! | k3s, RKE2 | `/var/lib/rancher/{k3s,rke2}/agent/containerd` | `/run/k3s/containerd` | `data-dir` in `/etc/rancher/*/config.yaml`; `agent/etc/containerd/config.toml` (k3s `pkg/agent/config`) |
//! | k0s | `/var/lib/k0s/containerd` | `/run/k0s/containerd` | `/etc/k0s/containerd.toml` (k0s `pkg/component/worker/containerd`) |
//! | MicroK8s | `/var/snap/microk8s/common/var/lib/containerd` | `…/common/run/containerd` | `…/current/args/containerd.toml` (microk8s `default-args/containerd`) |
//! | Docker with a containerd of its own | `<data-root>/containerd/daemon` | `<exec-root>/containerd/daemon` | `data-root`, `exec-root` in `/etc/docker/daemon.json`; `<exec-root>/containerd/containerd.toml` (moby `daemon/command/daemon.go`) |
//! | rootless | `~/.local/share/containerd` | `/run/user/<uid>/containerd` | `~/.config/containerd/config.toml` (nerdctl `containerd-rootless.sh`) |
//! | rootless Docker | `~/.local/share/docker/containerd/daemon` | `/run/user/<uid>/docker/containerd/daemon` | (moby `daemon/config/config_linux.go`) |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Host,
    config::{self, Config},
    database,
};
use crate::error::{At, Error, Result, with_causes};

/// What the user said of where to look. Paths are the host's own, also of one that is mounted below `sysroot`.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The persistent directory: then no other store is looked at.
    pub root: Option<PathBuf>,
    /// The volatile directory.
    pub state: Option<PathBuf>,
    /// The configuration: then no other store is looked at.
    pub config: Option<PathBuf>,
    /// Where the file system of another host is mounted.
    pub sysroot: Option<PathBuf>,
}

/// A place where a store may be.
#[derive(Debug, Clone, Default)]
struct Place {
    root: PathBuf,
    state: PathBuf,
    config: Option<PathBuf>,
    runtime_roots: Vec<PathBuf>,
    docker: Vec<PathBuf>,
    /// containerd sees its two directories at their usual places, by mounts of its own.
    is_rootless: bool,
}

/// Smaller than any account list or settings file of Docker's.
const MAX_BYTES: u64 = 4 << 20;

/// Finds the stores that `wanted` means: each as a host, at least one. What could not be read on the way is told in
/// `warnings`, with its place.
pub fn find(wanted: &Wanted, warnings: &mut Vec<String>) -> Result<Vec<Host>> {
    let sysroot = wanted.sysroot.as_ref().map(|dir| dir.canonicalize().at("look up", dir)).transpose()?;
    let mut search = Search { host: Host { sysroot, ..Host::default() }, warnings: Vec::new() };
    let hosts = search.hosts(wanted);
    warnings.append(&mut search.warnings);
    hosts
}

struct Search {
    /// The host's file system, and nothing of a store yet.
    host: Host,
    warnings: Vec<String>,
}

impl Search {
    fn hosts(&mut self, wanted: &Wanted) -> Result<Vec<Host>> {
        match wanted {
            Wanted { config: Some(path), .. } => {
                if self.host.inside(path)?.symlink_metadata().is_err() {
                    return Err(Error::NotFound {
                        what: format!("the configuration {}", path.display()),
                        hint: String::new(),
                    });
                }
                let place = Place { config: Some(path.clone()), docker: self.docker_roots(), ..Place::usual() };
                Ok(vec![self.host(place, wanted)?])
            }
            Wanted { root: Some(root), .. } => {
                let place = self.place_of(root)?;
                Ok(vec![self.host(place, wanted)?])
            }
            Wanted { state: Some(_), .. } => {
                let place = self.own();
                Ok(vec![self.host(place, wanted)?])
            }
            _ => self.all(),
        }
    }

    /// Every store that is there.
    fn all(&mut self) -> Result<Vec<Host>> {
        let (mut hosts, mut seen, mut looked_at, mut denied) = (Vec::<Host>::new(), Vec::new(), Vec::new(), None);
        for place in self.places() {
            let host = match self.host(place, &Wanted::default()) {
                Ok(host) => host,
                Err(e) => {
                    self.warn(with_causes(&e));
                    continue;
                }
            };
            match id_of_store(&host.root) {
                Ok(Some(id)) if !seen.contains(&id) => {
                    seen.push(id);
                    hosts.push(host);
                    continue;
                }
                Ok(_) => {}
                Err(e) => denied = denied.or(Some(Err(e).at("look into", &host.root))),
            }
            looked_at.push(host.root.display().to_string());
        }
        if !hosts.is_empty() {
            return Ok(hosts);
        }
        if let Some(denied) = denied {
            return denied;
        }
        Err(Error::NotFound {
            what: format!("a containerd store (looked for one in {})", looked_at.join(", ")),
            hint: "name its directory with --root, its configuration with --config, or the mount point of another host's file \
                   system with --sysroot"
                .into(),
        })
    }

    /// The known place whose root that is, or one of which nothing more is known.
    fn place_of(&mut self, root: &Path) -> Result<Place> {
        let here = self.host.inside(root)?;
        let places = self.places();
        for place in places {
            // What is odd about other places is of no interest.
            self.warnings.clear();
            let mut known = place.clone();
            self.configure(&mut known);
            if self.host.inside(&known.root).is_ok_and(|theirs| theirs == here || is_same(&theirs, &here)) {
                return Ok(place);
            }
        }
        self.warnings.clear();
        // Docker's containerd has its root within dockerd's.
        let docker = root.ends_with("containerd/daemon").then(|| root.ancestors().nth(2)).flatten();
        let docker = docker.map_or_else(|| self.docker_roots(), |dir| vec![dir.to_owned()]);
        Ok(Place { root: root.to_owned(), docker, ..Place::usual() })
    }

    /// All places where a store may be, most usual first.
    fn places(&mut self) -> Vec<Place> {
        let mut places = vec![self.own()];
        places.extend(["k3s", "rke2"].map(|product| self.rancher(product)));
        places.push(Place::of("/var/lib/k0s/containerd", "/run/k0s/containerd", "/etc/k0s/containerd.toml"));
        let snap = "/var/snap/microk8s";
        places.push(Place::of(
            format!("{snap}/common/var/lib/containerd"),
            format!("{snap}/common/run/containerd"),
            format!("{snap}/current/args/containerd.toml"),
        ));
        places.extend(self.dockerds().into_iter().map(|(data, exec)| Place::of_docker(&data, &exec)));
        places.extend(self.homes().into_iter().flat_map(|(uid, home)| Place::rootless(uid, &home)));
        places
    }

    /// containerd's own.
    fn own(&mut self) -> Place {
        Place { config: Some(config::PATH.into()), docker: self.docker_roots(), ..Place::usual() }
    }

    fn rancher(&mut self, product: &str) -> Place {
        let data = self.data_dir(product).unwrap_or_else(|| Path::new("/var/lib/rancher").join(product));
        let agent = data.join("agent");
        Place::of(agent.join("containerd"), "/run/k3s/containerd", agent.join("etc/containerd/config.toml"))
    }

    /// The value of `data-dir` in a product's settings: one line of YAML.
    fn data_dir(&mut self, product: &str) -> Option<PathBuf> {
        let text = self.text(&Path::new("/etc/rancher").join(product).join("config.yaml"))?;
        let value = text.lines().find_map(|line| line.strip_prefix("data-dir:"))?;
        let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        value.starts_with('/').then(|| value.into())
    }

    fn docker_roots(&mut self) -> Vec<PathBuf> {
        self.dockerds().into_iter().map(|(data, _)| data).collect()
    }

    /// `data-root` and `exec-root` of each dockerd that may be installed.
    fn dockerds(&mut self) -> Vec<(PathBuf, PathBuf)> {
        const USUAL: [[&str; 3]; 2] = [
            ["/etc/docker/daemon.json", "/var/lib/docker", "/var/run/docker"],
            [
                "/var/snap/docker/current/config/daemon.json",
                "/var/snap/docker/common/var-lib-docker",
                "/run/snap.docker",
            ],
        ];
        USUAL
            .map(|[settings, data, exec]| {
                let settings = Path::new(settings);
                let json = self.text(settings).map(|text| serde_json::from_str::<serde_json::Value>(&text));
                let json = json.and_then(|json| {
                    json.map_err(|e| {
                        self.warn(format!("{}: {e}: Docker's usual directories are used", settings.display()))
                    })
                    .ok()
                });
                let path = |keys: [&str; 2], usual: &str| {
                    let set = keys
                        .into_iter()
                        .find_map(|key| json.as_ref()?.get(key)?.as_str().filter(|dir| dir.starts_with('/')));
                    PathBuf::from(set.unwrap_or(usual))
                };
                // `graph` was its name until Docker 17.05.
                (path(["data-root", "graph"], data), path(["exec-root", ""], exec))
            })
            .into()
    }

    /// Users and their homes: of our own host only ours, unless we are root.
    fn homes(&mut self) -> Vec<(u32, PathBuf)> {
        let us = rustix::process::geteuid();
        if self.host.sysroot.is_none() && !us.is_root() {
            return std::env::home_dir().into_iter().map(|home| (us.as_raw(), home)).collect();
        }
        let accounts = self.text("/etc/passwd".as_ref()).unwrap_or_default();
        let account = |line: &str| {
            let mut fields = line.split(':');
            let uid = fields.nth(2)?.parse().ok()?;
            let home = fields.nth(2).filter(|home| home.starts_with('/') && home.len() > 1)?;
            Some((uid, PathBuf::from(home)))
        };
        let mut homes: Vec<(u32, PathBuf)> = accounts.lines().filter_map(account).collect();
        homes.retain(|(_, home)| self.host.inside(&home.join(".local/share")).is_ok_and(|dir| dir.is_dir()));
        homes
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// A small text file of the host; what cannot be read is as if it were not there.
    fn text(&self, path: &Path) -> Option<String> {
        let here = self.host.inside(path).ok()?;
        let is_small_file = |meta: fs::Metadata| meta.is_file() && meta.len() <= MAX_BYTES;
        fs::metadata(&here).is_ok_and(is_small_file).then_some(())?;
        String::from_utf8(database::bounded("configuration", &here, MAX_BYTES).ok()?).ok()
    }

    /// Takes over what the place's configuration says.
    fn configure(&mut self, place: &mut Place) -> Config {
        let mut warnings = Vec::new();
        let read = place.config.as_ref().and_then(|path| config::read(&self.host, path, &mut warnings));
        warnings.into_iter().for_each(|warning| self.warn(warning));
        let mut config = read.unwrap_or_default();
        if place.is_rootless {
            place.outside(&mut config);
        } else {
            place.root = config.root.take().unwrap_or(std::mem::take(&mut place.root));
            place.state = config.state.take().unwrap_or(std::mem::take(&mut place.state));
        }
        config
    }

    /// The store at `place`, with what the user said of it.
    fn host(&mut self, mut place: Place, wanted: &Wanted) -> Result<Host> {
        let config = self.configure(&mut place);
        let inside = |path: &Path| self.host.inside(path);
        let all =
            |paths: &mut dyn Iterator<Item = &PathBuf>| paths.map(|path| inside(path)).collect::<Result<Vec<_>>>();
        let snapshotters = config.snapshotters.iter().map(|(name, dir)| Ok((name.clone(), inside(dir)?)));
        let usual = Host::default();
        Ok(Host {
            root: inside(wanted.root.as_ref().unwrap_or(&place.root))?,
            state: inside(wanted.state.as_ref().unwrap_or(&place.state))?,
            state_inside: place.is_rootless.then(|| usual.state.clone()),
            runc_root: inside(&if place.is_rootless { place.state.join("runc") } else { usual.runc_root.clone() })?,
            snapshotters: snapshotters.collect::<Result<_>>()?,
            runtime_roots: all(&mut config.runtime_roots.iter().chain(&place.runtime_roots))?,
            docker: all(&mut place.docker.iter())?,
            ..self.host.clone()
        })
    }
}

impl Place {
    /// Where containerd keeps things unless it is told otherwise.
    fn usual() -> Self {
        let Host { root, state, .. } = Host::default();
        Self { root, state, ..Self::default() }
    }

    fn of(root: impl Into<PathBuf>, state: impl Into<PathBuf>, config: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), state: state.into(), config: Some(config.into()), ..Self::default() }
    }

    fn of_docker(data: &Path, exec: &Path) -> Self {
        let (root, state) = (data.join("containerd/daemon"), exec.join("containerd/daemon"));
        let place = Self::of(root, state, exec.join("containerd/containerd.toml"));
        Self { docker: vec![data.to_owned()], runtime_roots: vec![exec.join("runtime-runc")], ..place }
    }

    fn rootless(uid: u32, home: &Path) -> [Self; 2] {
        let (share, run) = (home.join(".local/share"), PathBuf::from(format!("/run/user/{uid}")));
        let config = home.join(".config/containerd/config.toml");
        let place = Self::of(share.join("containerd"), run.join("containerd"), config);
        [Self { is_rootless: true, ..place }, Self::of_docker(&share.join("docker"), &run.join("docker"))]
    }

    /// Paths as the host sees them: those that a rootless containerd sees below its two directories.
    fn outside(&self, config: &mut Config) {
        let usual = Self::usual();
        let map = |path: &mut PathBuf| {
            for (theirs, ours) in [(&usual.root, &self.root), (&usual.state, &self.state)] {
                if let Ok(rest) = path.strip_prefix(theirs) {
                    *path = ours.join(rest);
                    return;
                }
            }
        };
        config.snapshotters.values_mut().chain(&mut config.runtime_roots).for_each(map);
    }
}

/// The file system and number of a directory that containerd has written into; `None` if it is none, or not there.
fn id_of_store(root: &Path) -> io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    let absent = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let meta = match fs::metadata(root) {
        Err(e) if absent(&e) => return Ok(None),
        meta => meta?,
    };
    let id = Some((meta.dev(), meta.ino()));
    match root.read_dir() {
        Ok(entries) => {
            let is_ours = |name: &[u8]| name.starts_with(b"io.containerd.");
            let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
            Ok(id.filter(|_| names.any(|name| is_ours(name.as_encoded_bytes()))))
        }
        Err(e) if absent(&e) => Ok(None),
        // It is there, and who opens it will be told why not.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(id),
        Err(e) => Err(e),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}
