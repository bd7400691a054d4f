//! Writes that land long after the times of their files have moved (`programs/late.c`): by aio, io_uring, a loop device, and by
//! a call that takes its time. The disk is made so slow that such a write begins, its file is old enough to be believed and is
//! copied ahead, and only then it lands.
//!
//! What is judged is the layer: that of the live container, which ends in the same instant, and that of what it has left on
//! the disk, which nobody copies ahead, are the same to the byte.

use std::{thread::sleep, time::Duration};

use crate::harness::{Cgroup, Containerd, FrozenState, Lab, cannot_run, dewar_json, dewar_ok, until};

/// So slow that a write of 256 KiB would take minutes.
const SLOW: u32 = 1024;

/// Sets how many bytes a second a container may write (block layer throttling of cgroup v1), 0 for as fast as it can.
fn throttle(lab: &Lab, id: &str, rate: u32) {
    lab.sh(&format!(
        "d=$(stat -c %Hd:%Ld /var/lib); s=/sys/dev/block/$d; [ ! -e $s/partition ] || d=$(cat $s/../dev)
         echo \"$d {rate}\" > $(ls -d /sys/fs/cgroup/blkio/*/{id})/blkio.throttle.write_bps_device"
    ));
}

/// A container whose disk is slow; when this goes, whatever happened, it is fast again: what waits for a disk cannot be killed.
struct Slow<'l>(&'l Lab, &'l str);

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        throttle(self.0, self.1, 0);
    }
}

/// The digest of the rw layer in the checkpoint `reference`, which is unpacked in `/tmp/<name>`.
fn layer(lab: &Lab, name: &str, reference: &str) -> String {
    let shown = dewar_json(lab, &["inspect", "/tmp/layout", reference, "--json"]);
    let members = shown[0]["members"].as_array().expect("members");
    let layer = members.iter().find(|m| m["media_type"].as_str().is_some_and(|kind| kind.contains("layer.v1.tar")));
    let digest = layer.expect("a layer")["digest"].as_str().expect("a digest").to_owned();
    let blob = digest.replace(':', "/");
    lab.sh(&format!("rm -rf /tmp/{name}; mkdir /tmp/{name}; tar -C /tmp/{name} -xf /tmp/layout/blobs/{blob}"));
    digest
}

/// How many bytes of a file are not of the write.
fn left(lab: &Lab, path: &str) -> String {
    lab.sh(&format!("tr -d n < {path} | wc -c")).trim().to_owned()
}

fn is_there(lab: &Lab, id: &str, path: &str) -> bool {
    lab.inside(id, &["/bin/ls", path]).status.success()
}

/// A container in which a write of this kind has begun, and does not end.
fn begun<'l>(lab: &'l Lab, way: &'l str, begin: impl FnOnce(&Lab)) -> Slow<'l> {
    lab.run(way, "programs", &["/bin/late", way], &[]);
    until("its files are there", || is_there(lab, way, "/run/ready"));
    throttle(lab, way, SLOW);
    let slow = Slow(lab, way);
    begin(lab);
    lab.ask(way, &["/bin/touch", "/run/go"]);
    until("its write has begun", || is_there(lab, way, "/run/issued"));
    // A file that was written to a moment ago is read again in any case.
    sleep(Duration::from_secs(4));
    assert_ne!(left(lab, &format!("/proc/{}/root/var/lib/{way}", lab.pid(way))), "0", "{way}: it has landed already");
    slow
}

/// Checkpoints it while the write is under way, and lets that land when all was copied ahead.
#[track_caller]
fn assert_it_lands_in_the_layer(slow: Slow) {
    let Slow(lab, way) = slow;
    let args = [
        "--daemon-running",
        "checkpoint",
        way,
        "-o",
        "/tmp/layout",
        "--ref",
        "localhost/live:1",
        "--task",
        "raw",
        "--exit",
    ];
    let mut dewar = lab.command("dewar").args(args).spawn().expect("bash runs the lab script");
    until("all is copied ahead", || lab.freezer_state(way) != FrozenState::Thawed);
    drop(slow);
    assert!(dewar.wait().expect("nobody else waits for it").success());
    until("it has ended", || dewar_ok(lab, &["--daemon-running", "ls"]).contains("stopped"));
    dewar_ok(lab, &["--daemon-running", "checkpoint", way, "-o", "/tmp/layout", "--ref", "localhost/dead:1"]);
    let (live, dead) = (layer(lab, "live", "localhost/live:1"), layer(lab, "dead", "localhost/dead:1"));
    let differ = lab.sh("diff -rq /tmp/live /tmp/dead || true");
    assert!(live == dead && differ.is_empty(), "{way}: not of the moment of its end: {differ}");
    assert_eq!(left(lab, &format!("/tmp/dead/var/lib/{way}")), "0", "{way}: the write has failed");
    lab.sh(&format!("rm -r /tmp/layout; ctr task rm {way}; ctr containers rm {way}"));
}

fn lab() -> Option<Lab> {
    let lab = Lab::start_with_disks(Containerd::V2_1, Cgroup::V1)?;
    if !lab.try_sh("ls /sys/fs/cgroup/blkio/*/blkio.throttle.write_bps_device || ls /sys/fs/cgroup/blkio/blkio.throttle.write_bps_device").status.success() {
        cannot_run("no throttling of cgroup v1 on this machine");
        return None;
    }
    lab.start_containerd();
    lab.import("programs");
    Some(lab)
}

fn lands(ways: &[&str]) {
    let Some(lab) = lab() else { return };
    for way in ways {
        assert_it_lands_in_the_layer(begun(&lab, way, |_| {}));
    }
}

#[test]
fn a_write_whose_caller_does_not_wait_is_in_the_layer() {
    lands(&["aio", "headless"]);
}

#[test]
fn a_write_by_io_uring_is_in_the_layer_whoever_holds_ring_and_file() {
    lands(&["ring", "vectors", "buffers", "files", "undescribed"]);
}

#[test]
fn a_write_that_takes_its_time_is_in_the_layer() {
    lands(&["call", "thread"]);
}

/// The machine's, not the instance's: let go whatever becomes of the test.
struct Loop<'l>(&'l Lab);

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        self.0.try_sh("losetup -d $(cat /tmp/loop)");
    }
}

/// A loop device past the page cache, whose file lies in the rw layer (all instances see it, so no other has a file of that
/// name). The program only keeps the container from standing still too early; who writes to the device belongs to the
/// container's cgroup of the block layer alone.
#[test]
fn a_write_to_a_loop_device_is_in_the_layer_that_its_file_is_in() {
    let Some(lab) = lab() else { return };
    let (mut writer, _device) = (None, Loop(&lab));
    let slow = begun(&lab, "nobody", |lab| {
        lab.sh(&format!(
            "losetup --direct-io=on -f --show /proc/{}/root/var/lib/nobody > /tmp/loop",
            lab.pid("nobody")
        ));
        let script = "echo $$ > $(ls -d /sys/fs/cgroup/blkio/*/nobody)/cgroup.procs; tr '\\0' n < /dev/zero | dd of=$(cat /tmp/loop) bs=256K count=1 iflag=fullblock oflag=direct";
        writer = Some(lab.command("bash").args(["-c", script]).spawn().expect("bash runs the lab script"));
        sleep(Duration::from_secs(1));
    });
    assert_it_lands_in_the_layer(slow);
    writer.take().map(|mut writer| writer.wait());
}
