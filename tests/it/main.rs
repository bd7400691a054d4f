//! Tests of the whole library, on real files.

/// A real overlay of the kernel, what it shows, and unpackers that are not ours.
mod overlay;
/// Layers and bind mounts: what is written restores to what was there.
mod rw;
