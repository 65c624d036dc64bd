//! How far a pull is.

use super::manifest::Descriptor;
use serde::Serialize;

/// A step of a pull. Layers are downloaded several at a time, so that their steps are mixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Progress {
    /// The registry has said what the image is made of.
    Resolved {
        /// Digest that the reference stands for.
        digest: String,
        /// Layers of the image.
        layers: usize,
        /// Those that the node does not have.
        missing: usize,
        /// Bytes of those, compressed.
        bytes: u64,
    },
    /// A layer is on its way: told when it begins or goes on, and then at each hundredth of it, though not more often than
    /// every MiB.
    Downloading {
        /// Digest of the layer as the registry has it.
        digest: String,
        /// Bytes that are here, with those of earlier attempts.
        done: u64,
        /// Bytes of the layer; 0 when the manifest does not say it.
        size: u64,
    },
    /// A layer is here and is what its digest says.
    Downloaded {
        /// Digest of the layer as the registry has it.
        digest: String,
        /// Bytes of the layer.
        size: u64,
    },
    /// Every layer is here; they are unpacked now.
    Unpacking,
}

/// Takes the steps of a pull; called from several tasks, and must not block.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Least distance between two tellings of one download, bytes.
const LEAST: u64 = 1 << 20;

/// Tells of one download, not too often.
pub(super) struct Meter<'a> {
    blob: &'a Descriptor,
    tell: Tell<'a>,
    next: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(blob: &'a Descriptor, tell: Tell<'a>) -> Self {
        Self { blob, tell, next: 0 }
    }

    /// The download begins after `done` bytes, or goes on there.
    pub(super) fn begin(&mut self, done: u64) {
        self.next = done.saturating_add((self.blob.size / 100).max(LEAST));
        (self.tell)(Progress::Downloading { digest: self.blob.digest.clone(), done, size: self.blob.size });
    }

    /// `done` bytes are here.
    pub(super) fn reached(&mut self, done: u64) {
        if done >= self.next {
            self.begin(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[test]
    fn at_most_a_hundred_steps_and_none_below_a_mebibyte() {
        for (size, most) in [(300u64 << 20, 101), (5 << 20, 6), (1000, 1), (0, 41)] {
            let blob: Descriptor =
                serde_json::from_value(serde_json::json!({"digest": "sha256:a", "size": size})).unwrap();
            let told = Mutex::new(Vec::new());
            let tell = |progress: Progress| told.lock().push(progress);
            let mut meter = Meter::new(&blob, &tell);
            meter.begin(0);
            let end = if size == 0 { 40 << 20 } else { size };
            for done in (0..=end).step_by(16 << 10) {
                meter.reached(done);
            }
            assert_eq!(told.lock().len(), most, "{size}");
        }
    }
}
