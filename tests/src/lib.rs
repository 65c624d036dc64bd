//! Scenarios across crates, driven by real clients against a sandbox cluster.
//!
//! [`Cluster`] brings a sandbox up and takes it down again, also when the test fails; [`Snapshot`] shows what was left
//! behind; [`ApiServer`] is the API server alone for tests with real clients; the `client` program of this crate makes requests from a sandbox host.

mod apiserver;
mod cluster;
pub mod kubelet;
mod node;
mod recordings;
mod snapshot;
mod upstream;
mod wait;

pub use apiserver::{ApiServer, clients};
pub use cluster::{Client, Cluster, kelp};
pub use node::NodeFacts;
pub use recordings::expected;
pub use snapshot::Snapshot;
pub use upstream::Upstream;
pub use wait::eventually;
pub use xtask::sandbox::{enter as sandbox_enter, start_host, stop_host};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the `client` program prints.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Answers by their text.
    pub answers: BTreeMap<String, usize>,
    /// Failed requests, as the error of each, at most 20.
    pub failures: Vec<String>,
    /// Number of failed requests.
    pub failed: usize,
    /// Bytes of a transfer that arrived as they should.
    pub bytes: u64,
    /// From connect to the end of the answer, µs: `p50`, `p90`, `p99`, `p999` and `max` of a load.
    #[serde(default)]
    pub latency_us: BTreeMap<String, u64>,
    /// Requests of a load that took longer than 900 ms: a segment that was lost or refused is sent again after one second at
    /// first, or the answer took that long.
    #[serde(default)]
    pub slow: usize,
    /// How long a load took.
    #[serde(default)]
    pub milliseconds: u64,
}

/// Byte number `i` of the stream that `samples/hello` serves at `/bytes`.
pub fn pattern(i: u64) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}
