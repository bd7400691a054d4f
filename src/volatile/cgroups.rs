//! Limits and use: the files of the cgroups that the container's processes are in, of both versions.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use super::{bounded, entry_name};
use crate::{
    host::Host,
    name::AnyText,
    oci::volatile::{Cgroup, Text},
};

/// A file of a cgroup that is longer tells of something else than limits and use.
const MAX_FILE: u64 = 16 << 10;

/// How many cgroups are read: a container has one for each hierarchy, and some below if it runs an init of its own.
const MAX_CGROUPS: usize = 64;

/// The cgroups of these processes, in the kernel's order of hierarchies; and what could not be read.
pub fn read(host: &Host, pids: &[i32]) -> (Vec<Cgroup>, Vec<String>) {
    let (mut seen, mut all, mut notes) = (BTreeSet::new(), Vec::new(), Vec::new());
    for &pid in pids {
        let text = bounded(host.proc_of(pid, "cgroup"), 1 << 20).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines().filter(|line| seen.insert((*line).to_owned())) {
            if all.len() == MAX_CGROUPS {
                notes.push(format!("more than {MAX_CGROUPS} cgroups: the others were not read"));
                return (all, notes);
            }
            match one(host, line) {
                Some(cgroup) => all.push(cgroup),
                None => notes.push(format!("the cgroup {line} is mounted nowhere below {}", host.cgroup.display())),
            }
        }
    }
    (all, notes)
}

/// `6:memory:/default/redis`, `0::/default/redis`.
fn one(host: &Host, line: &str) -> Option<Cgroup> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let dir = dir(host, controllers, within(path)?)?;
    let mut files: Vec<Text> = fs::read_dir(&dir).ok()?.flatten().filter_map(|entry| file(&entry)).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Some(Cgroup { controllers: controllers.into(), path: AnyText::from(path.to_owned()), files })
}

/// A hierarchy is mounted under the names of its controllers, or one of them; version 2 at the top, or as `unified`.
fn dir(host: &Host, controllers: &str, path: PathBuf) -> Option<PathBuf> {
    let names = controllers.split(',').map(|name| name.trim_start_matches("name="));
    let tops: Vec<&str> =
        if controllers.is_empty() { vec!["", "unified"] } else { [controllers].into_iter().chain(names).collect() };
    let dirs = tops.into_iter().map(|top| host.cgroup.join(top).join(&path));
    dirs.into_iter().find(|dir| dir.join("cgroup.procs").exists())
}

/// Below the hierarchy's top, by names only.
fn within(path: &str) -> Option<PathBuf> {
    let below = Path::new(path).strip_prefix("/").ok()?;
    below.components().all(|part| matches!(part, Component::Normal(_))).then(|| below.to_owned())
}

/// A file that can be read, and says something.
fn file(entry: &fs::DirEntry) -> Option<Text> {
    let meta = entry.metadata().ok().filter(|meta| meta.is_file() && meta.permissions().mode() & 0o444 != 0)?;
    let _ = meta;
    let bytes = bounded(entry.path(), MAX_FILE).ok().filter(|bytes| !bytes.is_empty())?;
    Some(Text { name: entry_name(entry).text, text: AnyText::from(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_versions_are_found_and_no_path_leads_out() {
        let temp = tempfile::tempdir().unwrap();
        let host = Host { proc: temp.path().join("proc"), cgroup: temp.path().join("cgroup"), ..Host::default() };
        fs::create_dir_all(host.proc.join("7")).unwrap();
        let text = "3:cpu,cpuacct:/c/web\n2:name=systemd:/../../etc\n1:memory:/gone\n0::/c/web\n";
        fs::write(host.proc.join("7/cgroup"), text).unwrap();
        for (dir, file) in [("cpuacct/c/web", "cpuacct.usage"), ("unified/c/web", "cpu.stat")] {
            let dir = host.cgroup.join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), "7\n").unwrap();
            fs::write(dir.join(file), "1\n").unwrap();
            fs::write(dir.join("empty"), "").unwrap();
        }
        let (all, notes) = read(&host, &[7, 7, 8]);
        let told: Vec<_> =
            all.iter().map(|c| (c.controllers.as_str(), c.files.len(), c.files[1].name.as_str())).collect();
        assert_eq!(told, [("cpu,cpuacct", 2, "cpuacct.usage"), ("", 2, "cpu.stat")]);
        assert_eq!(notes.len(), 2);
    }
}
