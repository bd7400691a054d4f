//! Tests of the whole library and of the program, on real files; none needs a daemon.

/// `checkpoint` of containers without a live task.
mod checkpoint;
/// `Sandbox`: a machine's containerd directories from a fixture, and `dewar` run on them.
mod harness;
/// `ls` shows what `ctr` showed.
mod ls;
/// A real overlay of the kernel, what it shows, and unpackers that are not ours.
mod overlay;
/// Layers and bind mounts: what is written restores to what was there.
mod rw;
