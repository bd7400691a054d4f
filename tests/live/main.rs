//! Live tests: real containerd, runc and CRIU, in instances of the lab (README.md beside this file).
//!
//! Where the lab cannot run, each test says why and passes; with `DEWAR_LIVE=1` it fails instead.
#![forbid(unsafe_code)]

mod binds; // what is mounted into a container, and its log
mod carry; // the main job: killed daemon, checkpoint, lost node, restored by a fresh containerd
mod churn; // files that change in every way while they are checkpointed
mod deep; // committed snapshots against their layers
mod docker; // Docker: both daemons killed, its containers come home
mod evidence; // nothing is touched: the hash of a disk, the times of every file, every call of the system
mod exact; // what no other differ keeps: owners, holes, paths, trees without an upperdir
mod fsck; // the health of nodes, with real accidents; whose a thing is
mod harness; // Lab: an instance of the lab, as tests see it
mod inspect; // what a bundle's memory image tells is what procfs told
mod intrusion; // planted truth: a scripted intrusion, all of it found and nothing else
mod killed; // killed at any instant, the container runs again
mod lab; // the lab proves itself: stock tools make the round trip, nothing survives an instance
mod late; // writes that land long after the times of their files have moved
mod nodes; // where real configurations put stores; pods of every release, chosen by name
mod pod; // a pod, run by CRI without a kubelet
mod random; // random changes to a file system, unpacked by containerd and umoci
mod raw; // memory without CRIU, opened by gdb; what else is volatile
mod readme; // the examples of README.md, as they stand there
mod rebuild; // images whose layers are gone are made again from their snapshots
mod refusal; // what stands in the way is said, and the rest comes home
mod ruins; // without meta.db, and without more: what lives comes home and comes back
mod runtimes; // crun, an unknown runtime, a damaged state: frozen and carried, or refused
mod seal; // sealed: no plaintext is ever on the disk, and it comes back
mod snapshotters; // containerd's other snapshotters: btrfs, blockfile, erofs
mod timeline; // when what happened: planted truth, and mactime
mod tools; // other people's tools open what is written, and show the same files
mod tree; // all that can be seen of a directory tree, and how two differ
