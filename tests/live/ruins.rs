//! Without meta.db, and without more: what still lives, or has just died, comes home and comes back.

use serde_json::Value;

use crate::harness::{Cgroup, Containerd, Lab, dewar_ok, until};

const ROOT: &str = "/var/lib/containerd";
const META: &str = "io.containerd.metadata.v1.bolt/meta.db";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.db";
const CONTENT: &str = "io.containerd.content.v1.content";

fn redis(lab: &Lab, command: &[&str]) -> String {
    lab.ask("redis", &[&["/usr/bin/redis-cli", "-s", "/tmp/r.sock"], command].concat()).trim().to_owned()
}

/// redis with keys, a file of its own and a file deleted; the daemon is dead, and these of its files are gone.
fn in_ruins(lab: &Lab, lost: &[&str]) {
    lab.start_containerd();
    lab.import("redis");
    let args = ["/usr/bin/redis-server", "--save", "", "--unixsocket", "/tmp/r.sock", "--enable-debug-command", "yes"];
    lab.run("redis", "redis", &args, &[]);
    until("redis answers", || {
        lab.inside("redis", &["/usr/bin/redis-cli", "-s", "/tmp/r.sock", "ping"]).status.success()
    });
    redis(lab, &["debug", "populate", "1000"]);
    lab.ask("redis", &["/bin/sh", "-c", "echo written > /data/file; rm -rf /etc/passwd"]);
    lab.kill_containerd();
    lost.iter().for_each(|path| drop(lab.sh(&format!("rm -r {ROOT}/{path}"))));
}

/// The row of `ls`, which must say that the record is put together.
#[track_caller]
fn listed(lab: &Lab) -> Value {
    let done = lab.dewar(&["ls", "--json"]);
    let rows: Value = serde_json::from_slice(&done.stdout).expect("--json prints JSON");
    let row =
        rows.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == "redis")).expect("it is listed").clone();
    assert_eq!(row["record"], "salvaged", "{row:#}");
    assert!(row["why"].as_str().is_some_and(|why| why.contains("meta.db")), "{row:#}");
    row
}

/// The report of a checkpoint with findings, of a sound bundle.
#[track_caller]
fn checkpoint(lab: &Lab) -> Value {
    let done = lab.dewar(&["checkpoint", "redis", "-o", "/tmp/layout", "--ref", "localhost/c:1", "--json"]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    let report: Value = serde_json::from_slice(&done.stdout).expect("--json prints JSON");
    report[0].clone()
}

/// On a fresh node stock tools bring it back: keys, files, deletions.
#[track_caller]
fn comes_back(lab: &Lab) {
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.restore("redis", "localhost/c:1");
    assert_eq!(redis(lab, &["dbsize"]), "1000");
    has_its_files(|command| lab.inside("redis", command));
}

#[track_caller]
fn has_its_files(ask: impl Fn(&[&str]) -> std::process::Output) {
    assert_eq!(ask(&["/bin/cat", "/data/file"]).stdout, b"written\n");
    assert!(!ask(&["/bin/cat", "/etc/passwd"]).status.success(), "what was deleted stays deleted");
    assert!(ask(&["/bin/sh", "-c", "test -x /usr/bin/redis-server"]).status.success(), "the image is below");
}

fn lives_without(lost: &[&str], containerd: Containerd, cgroup: Cgroup) {
    let Some(lab) = Lab::start(containerd, cgroup) else { return };
    in_ruins(&lab, lost);
    let row = listed(&lab);
    assert_eq!((&row["status"], &row["snapshotter"]), (&"running".into(), &"overlayfs".into()), "{row:#}");
    assert_eq!(row["pid"].as_u64(), Some(u64::from(lab.pid("redis"))));
    let report = checkpoint(&lab);
    assert_eq!(report["memory"], "dumped", "{report:#}");
    assert_eq!(redis(&lab, &["dbsize"]), "1000", "it goes on");
    comes_back(&lab);
}

macro_rules! lives {
    ($($name:ident: $lost:expr, $containerd:ident, $cgroup:ident;)*) => {$(
        #[test]
        fn $name() {
            lives_without(&$lost, Containerd::$containerd, Cgroup::$cgroup);
        }
    )*};
}

lives! {
    without_meta_db_of_containerd_1_6: [META], V1_6, V1;
    without_meta_db_of_containerd_1_7: [META], V1_7, V1;
    without_meta_db_of_containerd_2_1: [META], V2_1, V1;
    without_meta_db_on_cgroup_v2: [META], V2_1, V2;
    without_both_databases_of_containerd_1_6: [META, SNAPSHOTS], V1_6, V1;
    without_both_databases_of_containerd_1_7: [META, SNAPSHOTS], V1_7, V1;
    without_both_databases_of_containerd_2_1: [META, SNAPSHOTS], V2_1, V1;
    without_meta_db_and_content: [META, CONTENT], V2_1, V1;
    without_databases_and_content_of_containerd_1_6: [META, SNAPSHOTS, CONTENT], V1_6, V1;
    without_databases_and_content_of_containerd_2_1: [META, SNAPSHOTS, CONTENT], V2_1, V1;
}

/// meta.db is there, and an older one: it has never heard of the container, which lives.
#[test]
fn a_living_container_that_meta_db_lacks_is_found_beside_the_others() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    lab.start_containerd();
    lab.import("busybox");
    lab.run("before", "busybox", &["/bin/sh", "-c", "while :; do sleep 1; done"], &[]);
    lab.kill_containerd();
    lab.sh(&format!("cp {ROOT}/{META} /tmp/older"));
    in_ruins(&lab, &[]);
    lab.sh(&format!("cp /tmp/older {ROOT}/{META}"));
    listed(&lab);
    let rows = dewar_ok(&lab, &["ls"]);
    assert!(rows.contains("before") && rows.lines().count() == 3, "{rows}");
    // Another root beside the same state is not its store.
    lab.sh("mkdir -p /tmp/empty /tmp/copy; cp -a /var/lib/containerd/io.containerd.metadata.v1.bolt /tmp/copy");
    assert_eq!(lab.dewar(&["--root", "/tmp/empty", "ls"]).status.code(), Some(2));
    assert!(!dewar_ok(&lab, &["--root", "/tmp/copy", "ls"]).contains("redis"));
    assert_eq!(checkpoint(&lab)["memory"], "dumped");
    comes_back(&lab);
}

/// It died with the daemon: its state directory is left, and no memory.
#[test]
fn a_stopped_container_comes_home_without_meta_db() {
    for lost in [&[META][..], &[META, SNAPSHOTS]] {
        let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
        in_ruins(&lab, lost);
        lab.sh(&format!("kill -KILL {}", lab.pid("redis")));
        until("it has ended", || listed(&lab)["status"] == "stopped");
        let report = checkpoint(&lab);
        assert_eq!(report["memory"], "none", "{report:#}");
        lab.lose_node();
        lab.start_containerd();
        lab.import_layout("/tmp/layout");
        let image = "localhost/c:1-rootfs";
        lab.sh(&format!("ctr run -d {image} files /bin/sh -c 'while :; do sleep 1; done'"));
        has_its_files(|command| lab.inside("files", command));
        // Its spec is known, so it is a container again, which can be started.
        lab.sh("ctr containers restore --rw redis localhost/c:1 && ctr containers info redis | grep -q redis-server");
    }
}

/// Its task was deleted and meta.db is gone: all that names it is its snapshot.
#[test]
fn a_snapshot_alone_brings_its_files_home() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    in_ruins(&lab, &[]);
    lab.start_containerd();
    lab.sh("ctr task kill -s KILL redis; sleep 1; ctr task rm redis 2>/dev/null || true");
    lab.kill_containerd();
    lab.sh(&format!("rm {ROOT}/{META}"));
    let row = listed(&lab);
    assert_eq!(row["status"], "none", "{row:#}");
    let report = checkpoint(&lab);
    assert!(report["findings"].to_string().contains("its spec is not known"), "{report:#}");
    lab.lose_node();
    lab.start_containerd();
    lab.import_layout("/tmp/layout");
    lab.sh("ctr run -d localhost/c:1-rootfs files /bin/sh -c 'while :; do sleep 1; done'");
    has_its_files(|command| lab.inside("files", command));
}

/// A meta.db cut in the middle may have lost anybody: what it lost is found beside what it kept, nothing twice.
#[test]
fn a_cut_meta_db_and_what_is_left_are_joined() {
    let Some(lab) = Lab::start(Containerd::V2_1, Cgroup::V1) else { return };
    in_ruins(&lab, &[SNAPSHOTS]);
    let size = lab.sh(&format!("stat -c %s {ROOT}/{META}"));
    for pages in 1..size.trim().parse::<u32>().expect("a size is a number") / 4096 {
        lab.sh(&format!(
            "[ -e /tmp/whole ] || cp {ROOT}/{META} /tmp/whole; head -c $(({pages} * 4096)) /tmp/whole > {ROOT}/{META}"
        ));
        let done = lab.dewar(&["ls", "--json"]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // 0: only pages that were free are lost.
        assert!(matches!(done.status.code(), Some(0 | 1)), "{pages} pages: {said}");
        let rows: Value = serde_json::from_slice(&done.stdout).expect("--json prints JSON");
        let ids: Vec<_> = rows.as_array().into_iter().flatten().map(|row| row["id"].as_str()).collect();
        assert_eq!(ids, [Some("redis")], "{pages} pages");
    }
    lab.sh(&format!("head -c 16384 /tmp/whole > {ROOT}/{META}"));
    assert_eq!(checkpoint(&lab)["memory"], "dumped");
    comes_back(&lab);
}
