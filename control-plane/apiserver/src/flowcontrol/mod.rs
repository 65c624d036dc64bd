//! API Priority and Fairness: FlowSchemas sort requests into priority levels, whose seats are shared fairly between flows.
//!
//! The rules are those of upstream's `util/flowcontrol`: matching by precedence, nominal limits by shares, seats lent to
//! other levels by demand, shuffle-sharded queues served by virtual finish time. A request that finds a free seat takes
//! one lock for a moment; everything else is paid by requests that wait.

mod borrow;
mod config;
mod estimate;
mod level;
mod metrics;
mod queues;
mod retry;
mod rules;

pub(crate) use estimate::{Estimate, ListWork};
pub(crate) use level::Seat;
pub(crate) use rules::Asked;

use crate::cache::{Cache, Filter};
use config::{Config, Schema};
use http::HeaderValue;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Limits move to where the demand is this often, if there are requests at all.
const ADJUST_PERIOD: Duration = Duration::from_secs(10);

/// Flow control of one server.
pub(crate) struct FlowControl {
    config: RwLock<Arc<Config>>,
    /// Seats of all levels together.
    seats: usize,
    start: Instant,
    /// Milliseconds after the start when limits are adjusted next.
    due: AtomicI64,
    following: AtomicBool,
}

/// Identities for the headers of the answer.
#[derive(Debug, Clone)]
pub(crate) struct Classified {
    pub(crate) schema: HeaderValue,
    pub(crate) level: HeaderValue,
}

/// A request that was sorted, before it has a seat.
pub(crate) struct Sorted {
    schema: Arc<Schema>,
    pub(crate) classified: Classified,
    /// Hash of its flow.
    flow: u64,
}

/// There is no seat: the client may come back after so many seconds.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) retry_after: u32,
}

impl FlowControl {
    /// With the mandatory objects alone, until [`follow`](Self::follow) has read the others.
    pub(crate) fn new(seats: usize) -> Arc<Self> {
        Arc::new(FlowControl {
            config: RwLock::new(Arc::new(Config::digest(seats, &[], &[], None))),
            seats,
            start: Instant::now(),
            due: AtomicI64::new(0),
            following: AtomicBool::new(false),
        })
    }

    /// Keeps the configuration equal to the objects. Reads the caches of FlowSchema and PriorityLevelConfiguration.
    pub(crate) async fn follow(
        self: Arc<Self>,
        schemas: Arc<Cache>,
        levels: Arc<Cache>,
        shutdown: CancellationToken,
    ) {
        if self.following.swap(true, Ordering::Relaxed) {
            return;
        }
        let work = async {
            loop {
                if schemas.wait_loaded().await.is_ok() && levels.wait_loaded().await.is_ok() {
                    break;
                }
            }
            let (mut schema_changes, mut level_changes) = (schemas.changes(), levels.changes());
            loop {
                schema_changes.mark_unchanged();
                level_changes.mark_unchanged();
                self.digest(&schemas, &levels);
                tokio::select! {
                    changed = schema_changes.changed() => if changed.is_err() { return },
                    changed = level_changes.changed() => if changed.is_err() { return },
                }
            }
        };
        let _ = shutdown.run_until_cancelled(work).await;
    }

    fn digest(&self, schemas: &Cache, levels: &Cache) {
        let objects = |cache: &Cache| -> Vec<serde_json::Value> {
            let all = cache.snapshot(&Filter::default(), None);
            all.entries.iter().map(|entry| entry.encoded.parse()).collect()
        };
        let (schemas, levels) = (objects(schemas), objects(levels));
        let old = self.config.read().clone();
        let new = Arc::new(Config::digest(self.seats, &schemas, &levels, Some(&old)));
        borrow::adjust(&new.levels);
        *self.config.write() = new;
    }

    /// Sorts a request.
    pub(crate) fn sort(&self, asked: &Asked<'_>) -> Sorted {
        let config = self.config.read().clone();
        let schema = config.schema(asked);
        let flow = if schema.level.queues {
            let digest = Sha256::new()
                .chain_update(schema.name.as_bytes())
                .chain_update([0])
                .chain_update(schema.distinguisher(asked).as_bytes())
                .finalize();
            digest.first_chunk().map_or(0, |first: &[u8; 8]| u64::from_le_bytes(*first))
        } else {
            0
        };
        let classified = Classified { schema: schema.uid.clone(), level: schema.level.uid.clone() };
        Sorted { schema, classified, flow }
    }

    /// Takes seats for a sorted request, after waiting for them at most `limit` if need be.
    pub(crate) async fn seat(
        &self,
        sorted: &Sorted,
        estimate: &Estimate<'_>,
        limit: Duration,
    ) -> Result<Seat, Rejected> {
        self.adjust();
        let schema = &sorted.schema;
        let work = estimate.work(schema.level.max_seats);
        schema.level.level.clone().take(work, sorted.flow, &schema.stats, limit).await.map_err(|()| {
            let now = self.start.elapsed().as_secs() as i64;
            Rejected { retry_after: schema.level.level.dropped(now) }
        })
    }

    /// Moves limits to where the demand is, when that is due.
    fn adjust(&self) {
        let now = self.start.elapsed().as_millis() as i64;
        let due = self.due.load(Ordering::Relaxed);
        let next = now + ADJUST_PERIOD.as_millis() as i64;
        if now >= due && self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            borrow::adjust(&self.config.read().clone().levels);
        }
    }

    /// Appends the metrics.
    pub(crate) fn render(&self, out: &mut String) {
        metrics::render(&self.config.read().clone(), out);
    }
}

#[cfg(test)]
mod tests;
