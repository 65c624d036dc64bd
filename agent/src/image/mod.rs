//! Images: a content store, OCI archive import, and overlayfs snapshots.
