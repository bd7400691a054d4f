//! `Sandbox`: a machine's containerd directories in a temporary folder, taken from a fixture, and `dewar` run on them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use dewar::host::Host;
use serde_json::Value;

pub const DEWAR: &str = env!("CARGO_BIN_EXE_dewar");

/// Ids of the store fixture's containers that are no words (`fixtures/scene.py`).
pub const WORKER: &str = "87eba76e7f3164534045ba922e7770fb58bbd14ad732bbf5ba6f11cc56989e6e";

pub const META_DB: &str = "io.containerd.metadata.v1.bolt/meta.db";

/// The releases of containerd whose stores are fixtures.
pub const VERSIONS: [&str; 3] = ["1.6", "1.7", "2.1"];

/// A file or folder of `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// What is stored beside a fixture: the right answers, by others.
pub fn expected(path: &str) -> Value {
    json(&fs::read(fixture(path)).unwrap())
}

pub fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(bytes)))
}

/// A database of `fixtures/bolt`.
pub fn bolt(name: &str) -> Vec<u8> {
    use std::io::Read;
    let file = fs::File::open(fixture(&format!("bolt/{name}.db.gz"))).unwrap();
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// `bytes` with every `from` replaced by `to`, which is as long.
pub fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let (mut bytes, mut at) = (bytes.to_vec(), 0);
    while let Some(found) = bytes[at..].windows(from.len()).position(|part| part == from) {
        bytes[at + found..at + found + to.len()].copy_from_slice(to);
        at += found + to.len();
    }
    bytes
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// False, said aloud, where `what` cannot be done without root; with `DEWAR_LIVE=1` that is a failure.
pub fn is_root_for(what: &str) -> bool {
    assert!(is_root() || std::env::var_os("DEWAR_LIVE").is_none(), "DEWAR_LIVE is set, but {what} needs root");
    if !is_root() {
        eprintln!("skipped: {what} needs root");
    }
    is_root()
}

/// Copies a tree of plain files and folders.
pub fn copy_tree(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        match entry.file_type().is_dir() {
            true => fs::create_dir_all(target).unwrap(),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Every file below `dir` with its content, by path; folders have none.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let entries = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let content = entry.file_type().is_file().then(|| fs::read(entry.path()).unwrap());
            (entry.path().strip_prefix(dir).unwrap().to_owned(), content)
        })
        .collect()
}

pub struct Sandbox {
    temp: tempfile::TempDir,
}

/// What a run of `dewar` said.
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        let code = output.status.code().unwrap_or(-1);
        Self { code, stdout: output.stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// Exit status, then what was printed where: for snapshots.
    pub fn shown(&self) -> String {
        format!("exit {}\n{}{}", self.code, self.text(), self.stderr)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, if the exit status is `code`.
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.text(), self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    pub fn json(&self) -> Value {
        json(&self.stdout)
    }
}

impl Sandbox {
    /// Directories without anything in them.
    pub fn empty() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// The same in memory, where there is such a place: for tests that write thousands of files.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::within(memory) } else { Self::empty() }
    }

    fn within(dir: &Path) -> Self {
        let temp = tempfile::tempdir_in(dir).unwrap();
        // Some tests run as another user below.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let sandbox = Self { temp };
        fs::create_dir(sandbox.root()).unwrap();
        fs::create_dir(sandbox.state()).unwrap();
        sandbox
    }

    /// The small store of plain files.
    pub fn store() -> Self {
        let sandbox = Self::empty();
        copy_tree(&fixture("store/root"), &sandbox.root());
        copy_tree(&fixture("store/state"), &sandbox.state());
        sandbox
    }

    /// The whole store of one release; `None`, said aloud, where there is no root to unpack it.
    pub fn rich(version: &str) -> Option<Self> {
        if !is_root_for("unpacking devices and owners") {
            return None;
        }
        let sandbox = Self::empty();
        let unpacked = Command::new("tar")
            .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "--warning=no-timestamp", "-xpzf"])
            .arg(fixture(&format!("containerd/{version}.tar.gz")))
            .arg("-C")
            .arg(sandbox.temp.path())
            .status();
        assert!(unpacked.unwrap().success());
        Some(sandbox)
    }

    /// Only a meta.db with these bytes.
    pub fn meta_db(bytes: &[u8]) -> Self {
        let sandbox = Self::empty();
        fs::create_dir(sandbox.root().join(META_DB).parent().unwrap()).unwrap();
        fs::write(sandbox.root().join(META_DB), bytes).unwrap();
        sandbox
    }

    /// containerd's persistent directory.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// containerd's volatile directory.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// A path beside the two.
    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A blob of the content store.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.root().join("io.containerd.content.v1.content/blobs/sha256").join(hex)
    }

    /// The same places, for the library.
    pub fn host(&self) -> Host {
        Host { root: self.root(), state: self.state(), runc_root: self.path("runc"), ..Host::default() }
    }

    /// `dewar` on these directories, started in the folder that holds them; nothing of our environment changes what it does.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(DEWAR);
        command
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(self.state())
            .args(args)
            .current_dir(self.temp.path());
        for name in ["CONTAINERD_NAMESPACE", "SOURCE_DATE_EPOCH", "CARGO", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command
    }

    pub fn dewar(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// The text with what differs between runs taken out: this folder's path, digests, hex ids of images.
    pub fn plain(&self, text: &str) -> String {
        digests_out(&text.replace(self.temp.path().to_str().unwrap(), "TEMP"))
    }
}

/// `sha256:…` in place of every digest: they change when fixtures are made anew.
pub fn digests_out(text: &str) -> String {
    let mut parts = text.split("sha256:");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        plain += "sha256:…";
        plain += rest;
    }
    plain
}

/// The entry of an `index.json` or an index with this name, media type or digest.
pub fn entry<'v>(index: &'v Value, wanted: &str) -> &'v Value {
    let all = index["manifests"].as_array().unwrap();
    let is_it = |e: &&Value| {
        e["annotations"]["io.containerd.image.name"] == wanted || e["mediaType"] == wanted || e["digest"] == wanted
    };
    all.iter().find(is_it).unwrap_or_else(|| panic!("no {wanted} in {index:#}"))
}

/// A JSON blob of a layout.
pub fn document(layout: &Path, entry: &Value) -> Value {
    json(&blob(layout, entry))
}

/// A blob of a layout.
pub fn blob(layout: &Path, entry: &Value) -> Vec<u8> {
    fs::read(blob_path(layout, entry)).unwrap()
}

pub fn blob_path(layout: &Path, entry: &Value) -> PathBuf {
    layout.join("blobs").join(entry["digest"].as_str().unwrap().replace(':', "/"))
}

/// `index.json`, without what is attached to its checkpoints ([`records`]): the last entry is a checkpoint.
pub fn index(layout: &Path) -> Value {
    let mut whole = whole_index(layout);
    whole["manifests"].as_array_mut().unwrap().retain(|entry| !is_record(entry));
    whole
}

/// `index.json`, all of it.
pub fn whole_index(layout: &Path) -> Value {
    json(&fs::read(layout.join("index.json")).unwrap())
}

/// The entries of acquisition records.
pub fn records(layout: &Path) -> Vec<Value> {
    let whole = whole_index(layout);
    whole["manifests"].as_array().unwrap().iter().filter(|entry| is_record(entry)).cloned().collect()
}

fn is_record(entry: &Value) -> bool {
    entry["artifactType"] == "application/vnd.dewar.evidence.v1+json"
}
