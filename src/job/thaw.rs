//! `dewar thaw`: undoes a freeze that a killed `dewar`, and its watchdog, left behind.

use std::path::Path;

use crate::{
    error::{Error, Result},
    freeze::{
        marker::{self, Marker},
        recover,
    },
    host::Host,
};

/// What was found in one marker, and what came of it.
#[derive(Debug)]
pub struct Thawed {
    /// `<namespace>/<id>`, or the marker's file name if it cannot be read.
    pub container: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a marker.
#[derive(Debug)]
pub enum Outcome {
    /// Nobody held it any more: it is as it was before the freeze.
    Restored,
    /// A `dewar` is at work on it under this pid: left alone.
    InProgress(i32),
    /// Of an earlier boot: the marker was removed, there was nothing to undo.
    Stale,
    /// It could not be undone.
    Failed(Error),
}

/// Restores everything that is held by nobody. A marker that cannot be read does not hide the others.
pub fn thaw(host: &Host) -> Result<Vec<Thawed>> {
    let boot = marker::boot_id(host)?;
    Ok(marker::all(host)?.iter().map(|path| thaw_one(host, &boot, path)).collect())
}

fn thaw_one(host: &Host, boot: &str, path: &Path) -> Thawed {
    let name = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match Marker::read(path) {
        Ok(marker) => {
            let outcome = undo(host, boot, path, &marker).unwrap_or_else(Outcome::Failed);
            Thawed { container: marker.container, outcome }
        }
        Err(e) => Thawed { container: name(), outcome: Outcome::Failed(e) },
    }
}

fn undo(host: &Host, boot: &str, path: &Path, marker: &Marker) -> Result<Outcome> {
    if marker.boot_id != boot {
        marker::remove(path)?;
        return Ok(Outcome::Stale);
    }
    if host.is_alive(marker.owner)? {
        return Ok(Outcome::InProgress(marker.owner.pid));
    }
    recover::take_over(host, path, marker)?;
    Ok(Outcome::Restored)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        freeze::{cgroup::Former, marker::MarkerFile},
        id::TaskPid,
        runtime::CgroupVersion,
    };

    fn host(temp: &Path) -> Host {
        Host { run: temp.join("run"), ..Host::default() }
    }

    fn mark(host: &Host, temp: &Path, name: &str, change: impl FnOnce(&mut Marker)) -> std::path::PathBuf {
        let cgroup = temp.join(name);
        fs::create_dir(&cgroup).unwrap();
        fs::write(cgroup.join("freezer.state"), "FROZEN").unwrap();
        let gone = TaskPid { pid: i32::MAX, started: 1 };
        let mut marker = Marker {
            container: format!("default/{name}"),
            cgroup: cgroup.clone(),
            cgroup_version: CgroupVersion::V1,
            former: Former::Running,
            boot_id: marker::boot_id(host).unwrap(),
            init: gone,
            owner: gone,
            watchdog: None,
            criu: None,
        };
        change(&mut marker);
        MarkerFile::create(&host.run.join(format!("frozen/{name}.json")), marker).unwrap();
        cgroup.join("freezer.state")
    }

    #[test]
    fn each_marker_is_judged_by_itself() {
        let temp = tempfile::tempdir().unwrap();
        let host = host(temp.path());
        let us = std::process::id().cast_signed();
        let started = host.proc_stat(us).unwrap().unwrap().started;
        let left = mark(&host, temp.path(), "left", |_| ());
        let paused = mark(&host, temp.path(), "paused", |m| m.former = Former::Paused);
        let held = mark(&host, temp.path(), "held", |m| m.owner = TaskPid { pid: us, started });
        let old = mark(&host, temp.path(), "old", |m| m.boot_id = "another".into());
        let lost = mark(&host, temp.path(), "lost", |_| ());
        fs::remove_file(&lost).unwrap();
        fs::write(host.run.join("frozen/broken.json"), "{").unwrap();

        let found = thaw(&host).unwrap();
        let words: Vec<_> =
            found.iter().map(|t| format!("{} {:.8}", t.container, format!("{:?}", t.outcome))).collect();
        assert_eq!(
            words,
            [
                "broken Failed(M",
                "default/held InProgre",
                "default/left Restored",
                "default/lost Restored",
                "default/old Stale",
                "default/paused Restored",
            ]
        );
        let state = |path| fs::read_to_string(path).unwrap();
        assert_eq!([state(left), state(paused), state(held), state(old)], ["THAWED", "FROZEN", "FROZEN", "FROZEN"]);
        assert_eq!(marker::all(&host).unwrap().len(), 2);
    }
}
