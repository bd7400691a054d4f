//! containerd's other snapshotters, as a user meets them: the daemon is killed, `dewar` checkpoints what runs and what has
//! stopped, the node is lost, a fresh containerd with the same snapshotter restores; files and memory are right, the store is
//! as it was, and of what `dewar` mounted to read it nothing is left, however it ended.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Cgroup, Containerd, Lab, dewar_json, dewar_ok, until},
    tree::Tree,
};

/// A containerd and one of its snapshotters, on a disk of its own where that is needed.
pub struct Scene {
    pub lab: Lab,
    snapshotter: &'static str,
}

/// What `/etc/containerd/config.toml` says, and what must be there before containerd starts.
const PREPARE: &str = r#"
case $snapshotter in
btrfs)
    dir=/var/lib/containerd/io.containerd.snapshotter.v1.btrfs
    rm -f /var/lib/disk.img
    truncate -s 1G /var/lib/disk.img
    mkfs.btrfs -q /var/lib/disk.img > /dev/null
    mkdir -p $dir
    mount -o loop /var/lib/disk.img $dir ;;
blockfile)
    [ -e /var/lib/scratch.img ] || { truncate -s 64M /var/lib/scratch.img; mkfs.ext4 -q /var/lib/scratch.img; } ;;
esac
mkdir -p /etc/containerd
{
    echo "version = 2"
    case $snapshotter in
    blockfile)
        echo '[plugins."io.containerd.snapshotter.v1.blockfile"]'
        echo '  scratch_file = "/var/lib/scratch.img"'
        echo '  fs_type = "ext4"'
        echo '  mount_options = []' ;;
    erofs)
        echo '[plugins."io.containerd.service.v1.diff-service"]'
        echo "  default = [$differs]" ;;
    esac
} > /etc/containerd/config.toml
"#;

/// Whatever a layer can say: additions, changes, deletions, a directory in a directory's place, links of both kinds, a hole.
const CHANGES: &str = r#"
echo new > /etc/new; echo changed > /etc/passwd; rm /bin/many; ln /etc/group /etc/linked; ln -s nowhere /etc/pointer
rm -r /home; mkdir /home; echo other > /home/other; mkfifo /pipe; chmod 2751 /etc; chown 7:8 /etc/new
dd if=/dev/zero of=/hole bs=1 count=1 seek=8388607 2> /dev/null; touch -d @86400 /etc/old; mkdir -p /a/b/c; echo x > /a/b/c/d
"#;

impl Scene {
    pub fn start(containerd: Containerd, snapshotter: &'static str) -> Option<Self> {
        let scene = Self { lab: Lab::start_with_disks(containerd, Cgroup::V1)?, snapshotter };
        scene.start_containerd(r#""erofs", "walking""#);
        scene.import("cat /images/programs.tar");
        Some(scene)
    }

    fn start_containerd(&self, differs: &str) {
        self.lab.sh(&format!("snapshotter={} differs='{differs}'; {PREPARE}", self.snapshotter));
        self.lab.start_containerd();
    }

    pub fn import(&self, from: &str) {
        // The transfer service of 2.1 unpacks for its own snapshotter only.
        let local = if self.lab.containerd == Containerd::V2_1 { "--local" } else { "" };
        self.lab.sh(&format!("{from} | ctr images import {local} --snapshotter {} -", self.snapshotter));
    }

    pub fn run(&self, id: &str, args: &[&str]) {
        self.lab.run(id, "programs", args, &["--snapshotter", self.snapshotter]);
    }

    /// A container that has changed its files in every way and now only waits.
    fn run_changed(&self, id: &str) {
        self.run(
            id,
            &["/bin/sh", "-c", &format!("[ -e /ready ] || {{{CHANGES}touch /ready; }}; while :; do sleep 1; done")],
        );
        until("it has made its changes", || self.lab.inside(id, &["/bin/ls", "/ready"]).status.success());
        let root = format!("/proc/{}/root", self.lab.pid(id));
        self.lab.sh(&format!(
            "setfattr -n user.note -v kept {root}/etc/new; setfattr -n user.image -v x {root}/bin/witness; sync"
        ));
    }

    /// The files of a container that runs, without what is mounted in it.
    fn files(&self, id: &str) -> Tree {
        let root = format!("/proc/{}/root/proc/{}/root/.", self.lab.init(), self.lab.pid(id));
        let tree = Tree::of(&PathBuf::from(root));
        assert!(tree.len() > 30, "the files of all layers are seen");
        tree
    }

    /// The process is killed; nobody who would clear up is there.
    fn stop(&self, id: &str) {
        let pid = self.lab.pid(id);
        self.lab.sh(&format!("kill -KILL {pid}"));
        until("it has ended", || !self.lab.try_sh(&format!("kill -0 {pid}")).status.success());
    }

    /// All that our reading could change: content, times, attributes of everything in the store.
    fn store(&self) -> BTreeSet<String> {
        // find reads directories, and that moves their access times, once. No way of reading where a symbolic link points
        // leaves its access time alone.
        let lines = self.lab.sh(&format!(
            "cd /var/lib/containerd/*.{}; find . > /dev/null
             find . -mount ! -type l -printf '%p %y %m %A@ %T@ %C@ %s\\n'
             find . -mount -type l -printf '%p %l %T@ %C@\\n'
             find . -mount -type f -size +0 -exec sh -c 'for f; do echo \"$f $(tar --atime-preserve=system -cf - $f | sha256sum)\"; done' - {{}} +",
            self.snapshotter
        ));
        lines.lines().map(str::to_owned).collect()
    }

    /// Loop devices on files of the store, and all mounts: ours must be gone, the daemon's may stay.
    fn mounts(&self) -> BTreeSet<String> {
        let lines = self.lab.sh(&format!(
            "cat /proc/mounts
             losetup --list --noheadings --output MAJ:MIN,BACK-MAJ:MIN,BACK-INO > /tmp/loops
             find /var/lib/containerd/*.{} /var/lib/disk.img -mount -type f -printf '%i\\n' 2> /dev/null | sort -u > /tmp/inodes || true
             awk 'NR == FNR {{ ours[$1]; next }} $3 in ours' /tmp/inodes /tmp/loops",
            self.snapshotter
        ));
        lines.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn assert_nothing_left(&self, before: &BTreeSet<String>) {
        // A loop device clears itself a moment after its last user is gone.
        until("no mount and no loop device of ours is left", || self.mounts().is_subset(before));
        assert_eq!(self.lab.sh("pgrep -lx 'dewar|mount|losetup' || true"), "", "no process is left");
    }
}

/// Live and stopped containers of one snapshotter come home, and go on elsewhere.
fn is_carried(containerd: Containerd, snapshotter: &'static str) {
    let Some(scene) = Scene::start(containerd, snapshotter) else { return };
    let lab = &scene.lab;
    // A writer that notices when its memory and its file are not of one instant.
    scene.run("witness", &["/bin/witness", "16", "/var/lib/witness", "1"]);
    ["still", "ended"].iter().for_each(|id| scene.run_changed(id));
    until("the witness answers", || lab.inside("witness", &["/bin/witness", "ask"]).status.success());
    lab.kill_containerd();
    let (still, ended) = (scene.files("still"), scene.files("ended"));
    scene.stop("ended");

    let mounts = scene.mounts();
    changes_are_told(&scene);
    let args = ["checkpoint", "witness", "still", "ended", "-o", "/tmp/layout", "--json"];
    let reports = dewar_json(lab, &args);
    for (report, memory) in reports.as_array().unwrap().iter().zip(["dumped", "dumped", "none"]) {
        assert_eq!((&report["findings"], &report["memory"]), (&json!([]), &json!(memory)), "{report}");
    }
    assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"));
    lab.ask("witness", &["/bin/witness", "ask"]);
    scene.assert_nothing_left(&mounts);

    lab.lose_node();
    // The erofs differ makes an image of the rw layer beside the container's files, where nothing mounts it: of containerd's
    // own checkpoints, too, nothing comes back through it.
    scene.start_containerd(r#""walking""#);
    scene.import("tar -C /tmp/layout -cf - .");
    for (id, report) in ["witness", "still"].iter().zip(reports.as_array().unwrap()) {
        lab.restore(id, report["ref"].as_str().unwrap());
    }
    lab.ask("witness", &["/bin/witness", "ask"]);
    // CRIU makes a directory in /tmp, and removes it.
    let differences = scene.files("still").differences(&still);
    assert!(differences.lines().all(|line| line.starts_with("tmp: other mtime")), "{differences}");
    // What had stopped has no memory: it is started anew, with the files it had.
    let reference = reports[2]["ref"].as_str().unwrap();
    lab.sh(&format!("ctr containers restore --rw ended {reference}"));
    until("it runs", || lab.inside("ended", &["/bin/ls", "/ready"]).status.success());
    assert_eq!(scene.files("ended").differences(&ended), "");
}

/// `diff` names what was changed, and nothing else.
fn changes_are_told(scene: &Scene) {
    let told = dewar_ok(&scene.lab, &["diff", "still"]);
    for line in [
        "A /a/b/c/d  (file, 2 B)",
        "A /etc/linked",
        "A /etc/new  (file, 4 B)",
        "A /etc/pointer  (symlink)",
        "A /home/other",
        "A /hole  (file, 8.00 MiB)",
        "C /bin/witness",
        "C /etc/passwd  (file, 8 B)",
        "D /bin/many",
    ] {
        assert!(told.lines().any(|found| found.starts_with(line)), "{line} in {told}");
    }
    assert!(!told.contains("/bin/busybox") && !told.contains("lost+found"), "{told}");
    // From where the daemon's mount cannot be seen the container's own leads to the same.
    let elsewhere = "umount /run/containerd/io.containerd.runtime.v2.task/default/still/rootfs && dewar diff still";
    assert_eq!(scene.lab.sh(&format!("unshare --mount sh -c '{elsewhere}'")), told);
}

macro_rules! carried {
    ($($name:ident: $containerd:ident, $snapshotter:literal;)*) => {$(
        #[test]
        fn $name() {
            is_carried(Containerd::$containerd, $snapshotter);
        }
    )*};
}

carried! {
    a_container_on_btrfs_of_containerd_1_6_is_carried: V1_6, "btrfs";
    a_container_on_btrfs_of_containerd_1_7_is_carried: V1_7, "btrfs";
    a_container_on_btrfs_of_containerd_2_1_is_carried: V2_1, "btrfs";
    a_container_on_blockfile_of_containerd_1_7_is_carried: V1_7, "blockfile";
    a_container_on_blockfile_of_containerd_2_1_is_carried: V2_1, "blockfile";
    a_container_on_erofs_of_containerd_2_1_is_carried: V2_1, "erofs";
}

/// Read while nobody has it mounted, the store keeps every byte and every time, those of access too.
#[test]
fn a_store_that_nobody_uses_is_the_same_to_the_last_bit_afterwards() {
    for snapshotter in ["btrfs", "blockfile", "erofs"] {
        let Some(scene) = Scene::start(Containerd::V2_1, snapshotter) else { return };
        scene.run_changed("ended");
        scene.lab.kill_containerd();
        scene.stop("ended");
        scene.lab.sh("umount /run/containerd/io.containerd.runtime.v2.task/default/ended/rootfs; sync");
        let (mounts, store) = (scene.mounts(), scene.store());
        let report = dewar_json(&scene.lab, &["checkpoint", "ended", "-o", "/tmp/layout", "--json"]);
        assert_eq!(report[0]["findings"], json!([]));
        assert!(report[0]["files"]["whiteouts"].as_u64() > Some(0), "{report}");
        scene.assert_nothing_left(&mounts);
        let now = scene.store();
        assert_eq!(now.symmetric_difference(&store).collect::<Vec<_>>(), [""; 0], "{snapshotter}");
    }
}

/// Layers whose blobs are gone are made again from the file systems of the snapshots.
#[test]
fn an_image_without_its_blobs_comes_home_from_each_snapshotter() {
    for snapshotter in ["btrfs", "blockfile", "erofs"] {
        let Some(scene) = Scene::start(Containerd::V2_1, snapshotter) else { return };
        let lab = &scene.lab;
        scene.run_changed("still");
        lab.kill_containerd();
        lab.sh("cd /var/lib/containerd/io.containerd.content.v1.content/blobs/sha256
             for blob in *; do [ \"$(head -c 1 $blob)\" = '{' ] || rm $blob; done");
        let still = scene.files("still");
        let ran = lab.dewar(&["checkpoint", "still", "-o", "/tmp/layout", "--ref", "localhost/s:1", "--json"]);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(said.contains("made again from"), "{snapshotter}: {said}");
        // Of overlay's layers each lies by itself, of the others' only the lowest.
        assert_eq!(ran.status.code(), Some(i32::from(snapshotter != "erofs")), "{snapshotter}: {said}");
        assert!(said.contains("byte for byte (as written by"), "{snapshotter}: {said}");
        assert!(dewar_ok(lab, &["verify", "/tmp/layout"]).starts_with("sound"));
        lab.lose_node();
        scene.start_containerd(r#""walking""#);
        scene.import("tar -C /tmp/layout -cf - .");
        lab.restore("still", "localhost/s:1");
        let differences = scene.files("still").differences(&still);
        assert!(differences.lines().all(|line| line.starts_with("tmp: other mtime")), "{snapshotter}: {differences}");
    }
}

/// Killed at any instant, `dewar` leaves no mount, no loop device, no process.
#[test]
fn nothing_of_what_was_mounted_is_left_by_a_killed_run() {
    for snapshotter in ["blockfile", "erofs"] {
        let Some(scene) = Scene::start(Containerd::V2_1, snapshotter) else { return };
        scene.run_changed("still");
        scene.lab.kill_containerd();
        let mounts = scene.mounts();
        let has_loop = mounts.iter().any(|line| line.trim_start().starts_with("7:"));
        assert_eq!(has_loop, snapshotter == "blockfile", "the daemon's own loop devices are seen: {mounts:?}");
        let args = ["checkpoint", "still", "-o", "/tmp/layout", "--task", "never"];
        let start = Instant::now();
        dewar_ok(&scene.lab, &args);
        let whole = start.elapsed();
        for round in 0..20 {
            let mut command = scene.lab.command("dewar");
            let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(whole.mul_f64(f64::from(round) / 20.0));
            scene.lab.kill(child);
            sleep(Duration::from_millis(20));
            scene.assert_nothing_left(&mounts);
        }
    }
}
