//! Images: archive import, one unpacked directory a layer, and the database of names.
//!
//! Layout of the store directory (one file system, any that can carry `trusted.*` extended attributes):
//!
//! ```text
//! lock                      taken by whoever changes the store, also another process (`kelp image import`)
//! images/<hex>.json         one record an image; <hex> is the digest of its config. Renamed into place last
//! layers/<16 hex>/          a layer unpacked for overlayfs, named by its chain id
//! layers/<16 hex>.json      its record; a layer without one is not complete and is swept
//! downloads/<hex>          content being fetched from registries, verified; gone once it is imported
//! leases/<hex>/<user>       an empty file for each container whose root is made of the image
//! used/<hex>                a file whose time says when the image was used last
//! tmp/                      unfinished work; swept under the lock
//! ```
//!
//! Nothing is held in memory that the directory does not say: a process that did not make a change sees it at its
//! next call.

mod archive;
pub mod gc;
mod record;
mod reference;
pub mod registry;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod unpack;

pub use record::{Image, ImageConfig};
pub use reference::normalize;
pub use store::ImageStore;

use std::path::Path;

/// Between pod and volume in the name of a volume's lease; no name of a container has it.
const VOLUME: &str = "_volume:";

/// Who holds an image for a volume of a pod, as the store notes it.
#[must_use]
pub fn volume_lease(pod: &str, volume: &str) -> String {
    format!("{pod}{VOLUME}{volume}")
}

/// The pod whose volume a lease is for.
#[must_use]
pub fn pod_of_volume_lease(lease: &str) -> Option<&str> {
    lease.split_once(VOLUME).map(|(pod, _)| pod)
}

/// What can go wrong with images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A reference breaks the grammar.
    #[error("image reference {reference:?} is not valid: {message}")]
    Reference {
        /// What the user wrote.
        reference: String,
        /// The rule it breaks.
        message: String,
    },
    /// The archive is not an image, or is damaged.
    #[error("image archive {archive}: {message}")]
    Archive {
        /// Path of the archive.
        archive: String,
        /// What is wrong, naming the file or layer.
        message: String,
    },
    /// There is no such image.
    #[error("image {0:?} is not on this node")]
    NotFound(String),
    /// Containers are made of the image.
    #[error("image {image} is in use by {users}; remove these containers first")]
    InUse {
        /// Image id.
        image: String,
        /// Containers, `<sandbox>_<container>`, separated by commas.
        users: String,
    },
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

impl ImageError {
    fn io(action: &str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action: format!("cannot {action} {}", path.display()), source: source.into() }
    }
}
