//! State that all requests share.

use super::ServerError;
use super::metrics::{Metered, Metrics, StoreTimes};
use crate::allocation::{Held, ServiceAllocator};
use crate::auth::{Policy, SigningKey, Tokens};
use crate::cache::Cache;
use crate::config::Config;
use crate::discovery::{Discovery, Documents};
use crate::error::ApiError;
use crate::flowcontrol::FlowControl;
use crate::registry::{Allocation, Registry, Resource};
use crate::storage::{Also, StoreHandle};
use kelp_store::Store;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Objects with a life time share a lease for this part of it, so that not every event makes a lease.
const LEASE_SHARE: Duration = Duration::from_secs(60);

/// What is served at a moment: never changed, only replaced.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) registry: Registry,
    /// In the order of the registry's rows.
    caches: Vec<Arc<Cache>>,
    /// Discovery of the registry.
    pub(crate) discovery: Discovery,
}

impl Served {
    /// The built-in resources with their caches, and custom ones.
    fn new(builtin: &Registry, own: &[Arc<Cache>], custom: Vec<Arc<Cache>>) -> Self {
        let registry = builtin.with(custom.iter().map(|cache| cache.resource.clone()));
        let caches = own.iter().chain(&custom);
        let by_resource: HashMap<*const Resource, &Arc<Cache>> =
            caches.map(|cache| (Arc::as_ptr(&cache.resource), cache)).collect();
        let caches = registry.rows().iter();
        let caches = caches.filter_map(|row| by_resource.get(&Arc::as_ptr(row)).map(|c| Arc::clone(c)));
        Served { caches: caches.collect(), discovery: Discovery::default(), registry }
    }

    /// Lets no objects of a definition be created any more.
    pub(crate) fn close(&self, definition: &Value) {
        let of = |path: &[&str]| crate::object::str_at(definition, path);
        let (group, plural) = (of(&["spec", "group"]), of(&["spec", "names", "plural"]));
        let rows = self.registry.rows().iter().filter(|row| row.group() == group && row.plural() == plural);
        rows.filter_map(|row| row.custom.as_ref()).for_each(|c| c.definition().creations.close(true));
    }

    /// The resource of a path, and its cache.
    pub(crate) fn find(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<(&Arc<Resource>, &Arc<Cache>)> {
        let at = self.registry.position(group, version, plural)?;
        Some((self.registry.rows().get(at)?, self.caches.get(at)?))
    }
}

/// Everything a request needs.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) store: StoreHandle,
    /// The built-in resources.
    pub(crate) builtin: Registry,
    pub(crate) policy: Policy,
    pub(crate) tokens: Tokens,
    pub(crate) shutdown: CancellationToken,
    pub(crate) flow: Arc<FlowControl>,
    /// Requests being served that only read, and that write.
    pub(crate) in_flight: [AtomicUsize; 2],
    pub(crate) metrics: Metrics,
    /// Times of the store's operations.
    pub(crate) store_times: Arc<StoreTimes>,
    pub(crate) documents: Documents,
    /// The first objects exist.
    pub(crate) started: AtomicBool,
    /// TLS with which nodes are asked, once it was needed.
    pub(crate) node_tls: OnceLock<Arc<rustls::ClientConfig>>,
    /// Caches of the built-in resources, in the order of their rows.
    caches: Vec<Arc<Cache>>,
    served: RwLock<Arc<Served>>,
    services: ServiceAllocator,
    /// Lease in use for each life time: its identity and when another one is due.
    leases: Mutex<HashMap<i64, (i64, Instant)>>,
}

/// The key that signs tokens, from the configuration if it has one.
fn signing_key(config: &Config) -> Result<SigningKey, ServerError> {
    let key = match &config.service_account_key {
        Some(key) => SigningKey::from_pem(&key.0),
        None => SigningKey::generate(),
    };
    key.map_err(|why| ServerError::Config(format!("the key of service account tokens cannot be used: {why}")))
}

impl Core {
    pub(crate) fn new(
        config: Config,
        store: Arc<impl Store>,
        shutdown: CancellationToken,
    ) -> Result<Arc<Self>, ServerError> {
        let store_times = Arc::new(StoreTimes::default());
        let store: StoreHandle = Arc::new(Metered::new(store, store_times.clone()));
        let builtin =
            if config.kubelet_client.is_some() { Registry::with_metrics() } else { Registry::builtin() };
        let addresses = builtin.find("networking.k8s.io", "v1", "ipaddresses").cloned();
        let addresses = addresses
            .ok_or_else(|| ServerError::Config("addresses have no row in the registry".to_owned()))?;
        let caches: Vec<_> = builtin
            .rows()
            .iter()
            .map(|row| Cache::new(row.clone(), store.clone(), shutdown.clone()))
            .collect();
        let served = Served::new(&builtin, &caches, Vec::new());
        Ok(Arc::new(Core {
            services: ServiceAllocator::new(&config, store.clone(), addresses)
                .map_err(ServerError::Config)?,
            flow: FlowControl::new(config.max_read_requests + config.max_write_requests),
            in_flight: Default::default(),
            metrics: Metrics::default(),
            store_times,
            documents: Documents::default(),
            served: RwLock::new(Arc::new(served)),
            started: AtomicBool::new(false),
            node_tls: OnceLock::new(),
            tokens: Tokens::new(signing_key(&config)?, config.service_account_issuer.clone()),
            config,
            policy: Policy::new(caches.iter(), crate::bootstrap::policy::node_rules(), shutdown.clone()),
            store,
            builtin,
            shutdown,
            caches,
            leases: Mutex::default(),
        }))
    }

    /// The cache of a built-in resource.
    pub(crate) fn cache(&self, resource: &Resource) -> &Arc<Cache> {
        let at = self.builtin.position(resource.group(), resource.version(), resource.plural());
        // Every row has one, see `new`; only rows are asked for.
        &self.caches[at.unwrap_or_default()]
    }

    /// What is served at this moment.
    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.read().clone()
    }

    /// Serves these custom resources besides the built-in ones from now on.
    pub(crate) fn serve_custom(&self, custom: Vec<Arc<Cache>>) {
        let served = Arc::new(Served::new(&self.builtin, &self.caches, custom));
        *self.served.write() = served;
    }

    /// Lets flow control follow its objects.
    pub(crate) fn follow_flow_control(&self) {
        const GROUP: &str = "flowcontrol.apiserver.k8s.io";
        let cache = |plural| self.builtin.find(GROUP, "v1", plural).map(|row| self.cache(row).clone());
        if let (Some(schemas), Some(levels)) = (cache("flowschemas"), cache("prioritylevelconfigurations")) {
            tokio::spawn(self.flow.clone().follow(schemas, levels, self.shutdown.clone()));
        }
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
            Allocation::Address if old.is_none() => self.services.note(object).await,
            Allocation::Address => Ok(Held::nothing()),
        }
    }

    /// Gives the numbers of a removed object back.
    pub(crate) async fn release(&self, resource: &Resource, object: &Value) {
        match resource.strategy.allocation {
            Allocation::None => {}
            Allocation::Service => self.services.release(object),
            Allocation::Address => self.services.forget(object),
        }
    }

    /// What goes in the same transaction as a removed object.
    pub(crate) fn removed_too(&self, resource: &Resource, object: &Value) -> Also {
        match resource.strategy.allocation {
            Allocation::Service => self.services.objects_of_removed(object),
            _ => Also::default(),
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

    /// Ranges of service addresses that the configuration gives.
    pub(crate) fn service_ranges(&self) -> &[String] {
        self.services.own_ranges()
    }

    /// Addresses are taken from these ranges and the configuration's.
    pub(crate) async fn use_service_ranges(&self, ranges: &[String]) -> Result<(), ApiError> {
        self.services.use_ranges(ranges).await
    }

    /// Whether a taken address is in these ranges and in none of the other ones.
    pub(crate) async fn needs_service_ranges(
        &self,
        ranges: &[String],
        others: &[String],
    ) -> Result<bool, ApiError> {
        self.services.needs(ranges, others).await
    }

    /// IPAddress objects of Services that somebody removed, or that an older server did not make.
    pub(crate) async fn lost_addresses(&self) -> Result<Vec<Value>, ApiError> {
        let wanted = self.services.wanted_objects().await?;
        let Some(row) = self.builtin.find("networking.k8s.io", "v1", "ipaddresses") else {
            return Ok(Vec::new());
        };
        let cache = self.cache(row);
        // What is wanted was written before: after this the cache has it.
        cache.wait_fresh().await?;
        let lost = |object: &Value| cache.get("", crate::object::meta(object, "name")).is_none();
        Ok(wanted.into_iter().filter(lost).collect())
    }
}
