//! overlayfs.
