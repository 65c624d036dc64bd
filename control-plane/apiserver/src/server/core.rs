//! State that all requests share.

use super::ServerError;
use super::metrics::Metrics;
use crate::allocation::{Held, ServiceAllocator};
use crate::auth::Policy;
use crate::cache::Cache;
use crate::config::Config;
use crate::discovery::Discovery;
use crate::error::ApiError;
use crate::registry::{Allocation, Registry, Resource};
use crate::storage::StoreHandle;
use kelp_store::Store;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Objects with a life time share a lease for this part of it, so that not every event makes a lease.
const LEASE_SHARE: Duration = Duration::from_secs(60);

/// Everything a request needs.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) store: StoreHandle,
    pub(crate) registry: Registry,
    pub(crate) policy: Policy,
    pub(crate) shutdown: CancellationToken,
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) writes: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) discovery: Discovery,
    /// The first objects exist.
    pub(crate) started: AtomicBool,
    caches: HashMap<(&'static str, &'static str, &'static str), Arc<Cache>>,
    services: ServiceAllocator,
    /// Lease in use for each life time: its identity and when another one is due.
    leases: Mutex<HashMap<i64, (i64, Instant)>>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        store: Arc<impl Store>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, ServerError> {
        let store: StoreHandle = store;
        let registry = Registry::builtin();
        let caches: HashMap<_, _> = registry
            .rows()
            .iter()
            .map(|row| {
                let key = (row.group, row.version, row.plural);
                (key, Cache::new(row.clone(), store.clone(), shutdown.clone()))
            })
            .collect();
        Ok(Arc::new(Core {
            services: ServiceAllocator::new(&config, store.clone()).map_err(ServerError::Config)?,
            reads: Arc::new(Semaphore::new(config.max_read_requests)),
            writes: Arc::new(Semaphore::new(config.max_write_requests)),
            metrics: Metrics::default(),
            discovery: Discovery::default(),
            started: AtomicBool::new(false),
            config,
            policy: Policy::new(caches.values(), crate::bootstrap::policy::node_rules(), shutdown.clone()),
            store,
            registry,
            shutdown,
            caches,
            leases: Mutex::default(),
        }))
    }

    /// The cache of a resource.
    pub(crate) fn cache(&self, resource: &Resource) -> &Arc<Cache> {
        // Every row has one, see `new`.
        &self.caches[&(resource.group, resource.version, resource.plural)]
    }

    /// Takes numbers for a new or changed object; they go back unless kept.
    pub(crate) async fn allocate(
        &self,
        resource: &Resource,
        old: Option<&Value>,
        object: &mut Value,
        dry: bool,
    ) -> Result<Held<'_>, ApiError> {
        match resource.strategy.allocation {
            Allocation::None => Ok(Held::nothing()),
            Allocation::Service => self.services.allocate(old, object, dry).await,
        }
    }

    /// Gives the numbers of a removed object back.
    pub(crate) async fn release(&self, resource: &Resource, object: &Value) {
        if resource.strategy.allocation == Allocation::Service {
            self.services.release(object).await;
        }
    }

    /// The lease for an object of a resource with a life time, 0 for none.
    pub(crate) async fn lease(&self, resource: &Resource) -> Result<i64, ApiError> {
        let ttl = resource.strategy.ttl_seconds;
        if ttl == 0 {
            return Ok(0);
        }
        let now = Instant::now();
        if let Some((id, due)) = self.leases.lock().get(&ttl).copied()
            && now < due
        {
            return Ok(id);
        }
        let lease = self.store.lease_grant(0, ttl + LEASE_SHARE.as_secs() as i64).await?;
        self.leases.lock().insert(ttl, (lease.id, now + LEASE_SHARE));
        Ok(lease.id)
    }
}

impl Core {
    /// Address of the `kubernetes` Service.
    pub(crate) fn first_service_address(&self) -> String {
        self.services.first()
    }
}
