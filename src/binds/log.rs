//! The container's log: the file its records name and those that were rotated away from it, as one plain tar.
//!
//! The shim writes it, not the container, so it need not be copied while that is held still: then each file is only
//! opened, and its length noted. Later just that much is copied, from the very file, wherever rotation has put it.

use std::{
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

use super::path;
use crate::{
    error::{At, Result},
    host::Host,
    interrupt,
    layout::{Blob, BlobWriter, Staging},
    ledger,
    pax::{self, Header, Type},
    tree::{Dir, Kind, Node},
};

/// A container's log, as annotations call it.
pub const LOG: &str = "log";

/// Rotation keeps a handful (kubelet: 5); more than this are not held open at once.
const MAX_FILES: usize = 64;

/// Content is copied in pieces of this size.
const PIECE: usize = 256 << 10;

/// The files of a log, held with the lengths they had.
pub struct Held {
    /// Where the records say it is.
    pub path: String,
    /// Older files that are too many.
    pub left_out: usize,
    files: Vec<LogFile>,
}

/// A name and the file that had it.
type LogFile = (Vec<u8>, Node);

/// Finds the log at `path` of the host and what was rotated away from it. An error says why there is none.
pub fn hold(host: &Host, path: &str) -> Result<Held, String> {
    let lost = |e: io::Error| format!("{path}: {e}");
    let whole = Path::new(path);
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(format!("{path:?} names no file"));
    };
    let root = Node::open(&host.sysroot.as_deref().unwrap_or("/".as_ref()).join(".")).map_err(lost)?;
    // Directories may be links, as /var/log is on some hosts; the file itself must be one.
    let found = path::walk(&root, parent.as_os_str().as_bytes()).map_err(lost)?;
    let dir = found.node.unwrap_or(root).dir().map_err(lost)?;
    let current = dir.child(name.as_bytes()).map_err(lost)?;
    if current.meta.kind != Kind::File {
        return Err(format!("{path} is no regular file"));
    }
    let (rotated, left_out) = newest_rotated(&dir, name.as_bytes()).map_err(lost)?;
    let mut files = vec![(name.as_bytes().to_vec(), current)];
    files.extend(rotated);
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Held { path: path.to_owned(), left_out, files })
}

/// The newest files that were rotated away from `log`, and how many more there are. So many are looked at as there are, but
/// few are held open.
fn newest_rotated(dir: &Dir, log: &[u8]) -> io::Result<(Vec<LogFile>, usize)> {
    let look = |name: Vec<u8>| {
        let meta = dir.child(&name).ok()?.meta;
        (meta.kind == Kind::File).then_some(((meta.mtime.secs, meta.mtime.nanos), name))
    };
    let names = dir.names()?.into_iter().filter(|name| is_rotated(name, log));
    let mut found: Vec<_> = names.filter_map(look).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    let all = found.len();
    let open = |(_, name): (_, Vec<u8>)| dir.child(&name).ok().map(|node| (name, node));
    let kept: Vec<_> = found.into_iter().take(MAX_FILES - 1).filter_map(open).collect();
    let left_out = all - kept.len();
    Ok((kept, left_out))
}

/// `0.log.20231114-221320` and `0.log.20231114-221320.gz` (kubelet, `logs/container_log_manager.go`), `x-json.log.1`
/// (nerdctl).
fn is_rotated(name: &[u8], log: &[u8]) -> bool {
    let suffix = name.strip_prefix(log).and_then(|rest| rest.strip_prefix(b"."));
    suffix.map(|rest| rest.strip_suffix(b".gz").unwrap_or(rest)).is_some_and(|rest| {
        rest.first().is_some_and(u8::is_ascii_digit) && rest.iter().all(|b| b.is_ascii_digit() || b"-.".contains(b))
    })
}

impl Held {
    /// Stores the files as a blob, each as long as it was when it was held; and says what could not be.
    pub fn seal(self, staging: &Staging) -> Result<(Blob, Vec<String>)> {
        let (mut blob, mut findings) = (staging.blob()?, Vec::new());
        ledger::tree(&format!("log {}", self.path));
        for (name, node) in &self.files {
            if let Err(e) = store(&mut blob, name, node)? {
                findings.push(format!("log {}: {}: {e}", self.path, name.escape_ascii()));
            }
        }
        blob.write_all(&pax::END).at("store the log", &self.path)?;
        Ok((blob.complete()?, findings))
    }
}

/// The outer error is the bundle's, the inner one the file's.
fn store(out: &mut BlobWriter, name: &[u8], node: &Node) -> Result<io::Result<()>> {
    let file = match node.data() {
        Ok(file) => file,
        Err(e) => return Ok(Err(e)),
    };
    let meta = &node.meta;
    let header = Header {
        kind: Type::File,
        path: name,
        link: b"",
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        size: meta.size,
        mtime: meta.mtime,
        device: (0, 0),
        // A log has none but the host's own labels.
        xattrs: &[],
    };
    let mut write = |bytes: &[u8]| out.write_all(bytes).at("store the log", Path::new("of the container"));
    if ledger::takes_entries() {
        ledger::entry(name, meta.told());
    }
    write(&header.encode())?;
    let (mut at, mut buf, mut told) = (0, vec![0; PIECE], Ok(()));
    while at < meta.size {
        interrupt::check()?;
        let want = usize::try_from(meta.size - at).map_or(PIECE, |left| left.min(PIECE));
        let len = match file.read_at(&mut buf[..want], at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(len) if len > 0 => len,
            short => {
                let why = short.err().map_or_else(|| "it was cut short meanwhile".to_owned(), |e| e.to_string());
                told = Err(io::Error::other(format!("{why}; from byte {at} on it is stored as zeros")));
                buf.fill(0);
                break;
            }
        };
        write(&buf[..len])?;
        at += len as u64;
    }
    while at < meta.size {
        interrupt::check()?;
        let len = usize::try_from(meta.size - at).map_or(PIECE, |left| left.min(PIECE));
        write(&buf[..len])?;
        at += len as u64;
    }
    write(&vec![0; pax::padding(meta.size)])?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read};

    use super::*;
    use crate::layout::Layout;

    #[test]
    fn rotated_files_are_told_by_their_names() {
        for (name, is) in [
            ("0.log.20231114-221320", true),
            ("0.log.20231114-221320.gz", true),
            ("0.log.1", true),
            ("0.log", false),
            ("0.log.", false),
            ("0.log.20231114-221320.tmp", false),
            ("0.log.old", false),
            ("00.log.1", false),
            ("1.log.1", false),
            ("0.log.gz", false),
        ] {
            assert_eq!(is_rotated(name.as_bytes(), b"0.log"), is, "{name}");
        }
    }

    fn host(sysroot: &Path) -> Host {
        Host { sysroot: Some(sysroot.to_owned()), ..Host::default() }
    }

    /// Name and content of every file of a sealed log.
    fn sealed(held: Held) -> (Vec<(String, String)>, Vec<String>) {
        let temp = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_create(&temp.path().join("layout")).unwrap();
        let staging = layout.stage().unwrap();
        let (blob, findings) = held.seal(&staging).unwrap();
        let tar = staging.read_blob(&blob.digest).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        });
        (entries.collect(), findings)
    }

    #[test]
    fn a_log_is_as_long_as_it_was_when_it_was_held_wherever_rotation_puts_it() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("real/pods/web");
        fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/real", temp.path().join("log")).unwrap();
        fs::write(dir.join("0.log"), "then\n").unwrap();
        fs::write(dir.join("0.log.20231114-221320"), "before\n").unwrap();
        fs::write(dir.join("1.log"), "another's\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.join("0.log.1")).unwrap();
        let held = hold(&host(temp.path()), "/log/pods/web/0.log").unwrap();
        // The shim writes on, and rotates.
        fs::write(dir.join("0.log"), "then\nnow\n").unwrap();
        fs::rename(dir.join("0.log"), dir.join("0.log.20231114-221321")).unwrap();
        fs::remove_file(dir.join("0.log.20231114-221320")).unwrap();
        fs::write(dir.join("0.log"), "new\n").unwrap();
        let (files, findings) = sealed(held);
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(files, [pair("0.log", "then\n"), pair("0.log.20231114-221320", "before\n")]);
        assert!(findings.is_empty());
    }

    #[test]
    fn of_too_many_rotated_files_the_oldest_are_left_out_and_counted() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..2000 {
            let file = fs::File::create(temp.path().join(format!("0.log.{i}"))).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(i)).unwrap();
        }
        fs::write(temp.path().join("0.log"), "now").unwrap();
        let held = hold(&host(temp.path()), "/0.log").unwrap();
        assert_eq!(held.left_out, 2000 - 63);
        let (files, _) = sealed(held);
        assert_eq!((files.len(), files[0].0.as_str(), files[1].0.as_str()), (64, "0.log", "0.log.1937"));
    }

    #[test]
    fn a_log_that_is_cut_short_is_told() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("0.log"), "much was said\n").unwrap();
        let held = hold(&host(temp.path()), "/0.log").unwrap();
        fs::write(temp.path().join("0.log"), "much").unwrap();
        let (files, findings) = sealed(held);
        assert_eq!(files[0].1, format!("much{}", "\0".repeat(10)));
        assert!(findings[0].contains("cut short"), "{findings:?}");
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", temp.path().join("link.log")).unwrap();
        nix::unistd::mkfifo(&temp.path().join("pipe.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in ["/link.log", "/pipe.log", "/", "/missing.log", "/no/such/dir.log"] {
            assert!(hold(&host(temp.path()), path).is_err(), "{path}");
        }
    }
}
