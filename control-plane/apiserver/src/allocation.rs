//! Cluster addresses and node ports of services: the allocator of this server, filled from the store at first use.

use crate::allocator::{Allocator, IpRange, PortRange, Taken};
use crate::config::Config;
use crate::error::ApiError;
use crate::storage::StoreHandle;
use kelp_store::RangeRequest;
use parking_lot::Mutex;
use serde_json::Value;

/// Takes addresses and ports for services.
pub(crate) struct ServiceAllocator {
    store: StoreHandle,
    /// Nothing taken.
    blank: Allocator,
    state: Mutex<Option<Allocator>>,
    /// Held while the state is read from the store.
    loading: tokio::sync::Mutex<()>,
}

/// Numbers taken for a write; they go back unless the write is said to have succeeded.
pub(crate) struct Held<'a>(Option<(&'a ServiceAllocator, Taken)>);

impl Held<'_> {
    pub(crate) fn nothing() -> Self {
        Held(None)
    }

    /// The write succeeded.
    pub(crate) fn keep(mut self) {
        if let Some((allocator, taken)) = self.0.take()
            && let Some(state) = allocator.state.lock().as_mut()
        {
            state.settle(taken);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some((allocator, taken)) = self.0.take()
            && let Some(state) = allocator.state.lock().as_mut()
        {
            state.undo(taken);
        }
    }
}

impl ServiceAllocator {
    pub(crate) fn new(config: &Config, store: StoreHandle) -> Result<Self, String> {
        let ranges = config.service_cidrs.iter().map(|c| IpRange::parse(c)).collect::<Result<Vec<_>, _>>()?;
        let ipv6 = ranges.iter().filter(|r| r.is_ipv6()).count();
        if ranges.is_empty() || ipv6 > 1 || ranges.len() - ipv6 > 1 {
            return Err("give one service range for each address family, the default one first".to_owned());
        }
        let ports = PortRange::new(*config.node_ports.start(), *config.node_ports.end());
        Ok(ServiceAllocator {
            store,
            blank: Allocator::new(ranges, ports),
            state: Mutex::new(None),
            loading: tokio::sync::Mutex::default(),
        })
    }

    /// The address of the `kubernetes` service.
    pub(crate) fn first(&self) -> String {
        self.blank.first().map(|ip| ip.to_string()).unwrap_or_default()
    }

    /// Reads the stored services once; all later changes go through this allocator.
    async fn load(&self) -> Result<(), ApiError> {
        if self.state.lock().is_some() {
            return Ok(());
        }
        let _guard = self.loading.lock().await;
        if self.state.lock().is_some() {
            return Ok(());
        }
        let answer = self.store.range(RangeRequest::prefix("/registry/services/")).await?;
        let mut allocator = self.blank.clone();
        for kv in &answer.kvs {
            if let Ok(service) = serde_json::from_slice::<Value>(&kv.value) {
                allocator.insert(&service);
            }
        }
        *self.state.lock() = Some(allocator);
        Ok(())
    }

    /// Fills in what a new or changed service gets.
    pub(crate) async fn allocate(
        &self,
        old: Option<&Value>,
        object: &mut Value,
        dry: bool,
    ) -> Result<Held<'_>, ApiError> {
        self.load().await?;
        let mut state = self.state.lock();
        match state.as_mut() {
            Some(allocator) => allocator.allocate(object, old, dry).map(|taken| Held(Some((self, taken)))),
            None => Ok(Held::nothing()),
        }
    }

    /// Frees what a removed service had.
    pub(crate) async fn release(&self, object: &Value) {
        if let Some(state) = self.state.lock().as_mut() {
            state.remove(object);
        }
    }
}
