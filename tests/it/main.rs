//! Tests of the whole library and of the program, on real files; none needs a daemon.

/// The bolt reader on databases that containerd wrote.
mod bolt;
/// `checkpoint` of containers without a live task.
mod checkpoint;
/// Damaged databases: what is left is listed, and nothing that never was.
mod damage;
/// `fsck --deep`: snapshots against their layers.
mod deep;
/// Same stores, same name, same time: the same bytes.
mod determinism;
/// Bad input: what is said, and that nothing half-written stays.
mod errors;
/// Acquisition records: complete, and nothing of them can be changed unnoticed.
mod evidence;
/// `fsck` finds every damage, and only that.
mod fsck;
/// `fsck` on records that contradict one another.
mod fsck_records;
/// The fuzzed parsers on the inputs that are kept.
mod fuzz;
/// `Sandbox`: a machine's containerd directories from a fixture, and `dewar` run on them.
mod harness;
/// Hostile bytes: fixtures cut at every length, every byte changed.
mod hostile;
/// `inspect` tells what a bundle holds: ours, and one that containerd wrote.
mod inspect;
/// Crashes, two runs at once, other programs' entries, wrong directories.
mod layout;
/// `ls` shows what `ctr` showed.
mod ls;
/// A real overlay of the kernel, what it shows, and unpackers that are not ours.
mod overlay;
/// Random changes to a real overlay: the layer, unpacked by others, shows what the kernel showed.
mod random;
/// Every command of README.md that needs no live node.
mod readme;
/// Images whose blobs are gone are made again from their snapshots.
mod rebuild;
/// No meta.db: what else is left of the containers, and hostile remains.
mod ruins;
/// Layers and bind mounts: what is written restores to what was there.
mod rw;
/// What is sealed says nothing without a key, and gives the same bytes back with one.
mod seal;
/// What is written once, or not at all.
mod shared;
/// Snapshotters that keep no overlay of the kernel's: what is not here is named, what was not unmounted is said.
mod snapshotters;
/// Where a host's stores are: config.toml, products' places, another host's file system; several at once.
mod stores;
mod tar_form;
/// `-o x.tar` and `-o -`: the same layout as one plain tar.
mod timeline; // when what happened, in formats that examiners load
/// Trees that change, break or lie while they are read.
mod trouble;
/// `verify` finds every damage, all at once.
mod verify;
/// `whois` tells whose a thing is.
mod whois;
/// Databases that another writer of bolt files made: large, random, at work.
mod writer;
