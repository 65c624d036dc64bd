//! Hash maps for what there is by the hundred thousand: endpoints.
//!
//! The standard library's hash resists senders who choose keys to collide, and takes most of a look-up for it. These keys
//! are addresses and ports that the API admitted; the seed still differs from process to process.

use foldhash::fast::RandomState;

/// A hash map with a quick hash.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// A hash set with a quick hash.
pub type HashSet<K> = std::collections::HashSet<K, RandomState>;
