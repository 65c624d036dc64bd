//! Cluster addresses and node ports of services: the allocator of this server, filled from the store at first use.
//!
//! Every cluster address has an IPAddress object, which is written and removed in the same transaction as its Service.
//! ServiceCIDR objects say which ranges addresses are taken from.

use crate::allocator::{self, Allocator, IpRange, PortRange, Taken};
use crate::config::Config;
use crate::error::ApiError;
use crate::registry::Resource;
use crate::storage::{Also, StoreHandle};
use kelp_store::{Compare, Op, RangeRequest};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

const SERVICES: &str = "/registry/services/";
const RANGES: &str = "/registry/networking.k8s.io/servicecidrs/";

/// Takes addresses and ports for services.
pub(crate) struct ServiceAllocator {
    store: StoreHandle,
    /// The ranges of the configuration, as given.
    own: Vec<String>,
    /// The row of IPAddress objects.
    objects: Arc<Resource>,
    /// Nothing taken.
    blank: Allocator,
    state: Mutex<Option<Allocator>>,
    /// Held while the state is read from the store.
    loading: tokio::sync::Mutex<()>,
}

/// What a write holds until it is known how it ended.
enum Holding {
    Nothing,
    /// Numbers of a Service.
    Numbers(Taken),
    /// The address that an IPAddress object names.
    Name(IpAddr),
}

/// Numbers taken for a write; they go back unless the write is said to have succeeded.
pub(crate) struct Held<'a> {
    allocator: Option<&'a ServiceAllocator>,
    holding: Holding,
}

impl Held<'_> {
    pub(crate) fn nothing() -> Self {
        Held { allocator: None, holding: Holding::Nothing }
    }

    /// What is to be written in the same transaction.
    pub(crate) fn also(&self) -> Also {
        match (self.allocator, &self.holding) {
            (Some(allocator), Holding::Numbers(taken)) => allocator.objects_of(taken),
            _ => Also::default(),
        }
    }

    /// The write succeeded.
    pub(crate) fn keep(mut self) {
        let Some(allocator) = self.allocator.take() else { return };
        let mut state = allocator.state.lock();
        let Some(state) = state.as_mut() else { return };
        match std::mem::replace(&mut self.holding, Holding::Nothing) {
            Holding::Nothing => {}
            Holding::Numbers(taken) => state.settle(taken),
            Holding::Name(ip) => state.addresses_mut().name(ip),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(allocator) = self.allocator.take()
            && let Holding::Numbers(taken) = std::mem::replace(&mut self.holding, Holding::Nothing)
            && let Some(state) = allocator.state.lock().as_mut()
        {
            state.undo(taken);
        }
    }
}

/// Ranges that can be read; others were refused when they were created.
fn parsed(ranges: &[String]) -> Vec<IpRange> {
    ranges.iter().filter_map(|range| IpRange::parse(range).ok()).collect()
}

fn cidrs(object: &Value) -> impl Iterator<Item = String> {
    crate::object::list_at(object, &["spec", "cidrs"]).iter().filter_map(Value::as_str).map(str::to_owned)
}

impl ServiceAllocator {
    pub(crate) fn new(config: &Config, store: StoreHandle, objects: Arc<Resource>) -> Result<Self, String> {
        let own = config.service_cidrs.clone();
        let ranges = own.iter().map(|c| IpRange::parse(c)).collect::<Result<Vec<_>, _>>()?;
        let ipv6 = ranges.iter().filter(|r| r.is_ipv6()).count();
        if ranges.is_empty() || ipv6 > 1 || ranges.len() - ipv6 > 1 {
            return Err("give one service range for each address family, the default one first".to_owned());
        }
        let ports = PortRange::new(*config.node_ports.start(), *config.node_ports.end());
        Ok(ServiceAllocator {
            store,
            own,
            objects,
            blank: Allocator::new(ranges, ports),
            state: Mutex::new(None),
            loading: tokio::sync::Mutex::default(),
        })
    }

    /// The address of the `kubernetes` service.
    pub(crate) fn first(&self) -> String {
        self.blank.first().map(|ip| ip.to_string()).unwrap_or_default()
    }

    /// The ranges of the configuration.
    pub(crate) fn own_ranges(&self) -> &[String] {
        &self.own
    }

    async fn stored(&self, prefix: &str) -> Result<Vec<Value>, ApiError> {
        let answer = self.store.range(RangeRequest::prefix(prefix.to_owned())).await?;
        Ok(answer.kvs.iter().filter_map(|kv| serde_json::from_slice(&kv.value).ok()).collect())
    }

    /// Reads what is stored once; all later changes go through this allocator.
    async fn load(&self) -> Result<(), ApiError> {
        if self.state.lock().is_some() {
            return Ok(());
        }
        let _guard = self.loading.lock().await;
        if self.state.lock().is_some() {
            return Ok(());
        }
        let mut allocator = self.blank.clone();
        for service in self.stored(SERVICES).await? {
            allocator.insert(&service);
        }
        for object in self.stored(&self.objects.storage_prefix).await? {
            if let Ok(ip) = crate::object::meta(&object, "name").parse() {
                allocator.addresses_mut().name(ip);
            }
        }
        let mut ranges = self.own.clone();
        let objects = self.stored(RANGES).await?;
        ranges.extend(objects.iter().filter(|o| !crate::object::is_deleting(o)).flat_map(cidrs));
        allocator.use_ranges(self.distinct(&ranges));
        *self.state.lock() = Some(allocator);
        Ok(())
    }

    /// Ranges to take from: those of the configuration first, none twice.
    fn distinct(&self, ranges: &[String]) -> Vec<IpRange> {
        let mut out: Vec<IpRange> = Vec::new();
        for range in parsed(&self.own).into_iter().chain(parsed(ranges)) {
            if !out.contains(&range) {
                out.push(range);
            }
        }
        out
    }

    /// Addresses are taken from these ranges and the configuration's.
    pub(crate) async fn use_ranges(&self, ranges: &[String]) -> Result<(), ApiError> {
        self.load().await?;
        if let Some(state) = self.state.lock().as_mut() {
            state.use_ranges(self.distinct(ranges));
        }
        Ok(())
    }

    /// Whether a taken address is in one of these ranges alone, and in none of the other ones.
    pub(crate) async fn needs(&self, ranges: &[String], others: &[String]) -> Result<bool, ApiError> {
        self.load().await?;
        let state = self.state.lock();
        Ok(state.as_ref().is_some_and(|s| s.addresses().only_in(&parsed(ranges), &parsed(others))))
    }

    /// IPAddress objects of the addresses of stored Services.
    pub(crate) async fn wanted_objects(&self) -> Result<Vec<Value>, ApiError> {
        self.load().await?;
        let state = self.state.lock();
        let owners = state.iter().flat_map(Allocator::owners);
        Ok(owners.map(|(ip, namespace, name)| object_of(ip, (namespace, name))).collect())
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
        let Some(allocator) = state.as_mut() else { return Ok(Held::nothing()) };
        let taken = allocator.allocate(object, old, dry)?;
        Ok(Held { allocator: Some(self), holding: Holding::Numbers(taken) })
    }

    /// Notes the address of a new IPAddress object.
    pub(crate) async fn note(&self, object: &Value) -> Result<Held<'_>, ApiError> {
        self.load().await?;
        Ok(match crate::object::meta(object, "name").parse() {
            Ok(ip) => Held { allocator: Some(self), holding: Holding::Name(ip) },
            Err(_) => Held::nothing(),
        })
    }

    /// Frees what a removed service had.
    pub(crate) fn release(&self, object: &Value) {
        if let Some(state) = self.state.lock().as_mut() {
            state.remove(object);
        }
    }

    /// The IPAddress object of an address is gone.
    pub(crate) fn forget(&self, object: &Value) {
        if let Some(state) = self.state.lock().as_mut()
            && let Ok(ip) = crate::object::meta(object, "name").parse()
        {
            state.addresses_mut().forget(ip);
        }
    }

    fn key(&self, ip: IpAddr) -> String {
        self.objects.key("", &ip.to_string())
    }

    /// The objects of addresses that a Service got and gave up.
    fn objects_of(&self, taken: &Taken) -> Also {
        let mut also = Also::default();
        for ip in taken.new_addresses() {
            let mut object = object_of(*ip, taken.owner());
            let metadata = crate::object::meta_mut(&mut object);
            metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
            metadata.insert("creationTimestamp".into(), crate::object::now().into());
            metadata.insert("managedFields".into(), managed());
            let value = crate::object::encode(&self.objects.head(), &object);
            also.compares.push(Compare::mod_revision(self.key(*ip), 0));
            also.ops.push(Op::Put { key: self.key(*ip).into(), value: value.into(), lease: 0 });
        }
        also.ops.extend(taken.freed_addresses().iter().map(|ip| Op::delete(self.key(*ip))));
        also
    }

    /// The objects of a removed Service's addresses.
    pub(crate) fn objects_of_removed(&self, service: &Value) -> Also {
        let ops = allocator::addresses(service).into_iter().map(|ip| Op::delete(self.key(ip)));
        Also { ops: ops.collect(), ..Also::default() }
    }
}

/// The IPAddress object of a Service's address, as upstream makes it.
fn object_of(ip: IpAddr, (namespace, name): (&str, &str)) -> Value {
    let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
    json!({"kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": ip.to_string(), "labels": {
            "ipaddress.kubernetes.io/ip-family": family,
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}})
}

/// Who wrote the fields of such an object.
fn managed() -> Value {
    json!([{"manager": "kube-apiserver", "operation": "Update", "apiVersion": "networking.k8s.io/v1",
        "time": crate::object::now(), "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:labels": {".": {}, "f:ipaddress.kubernetes.io/ip-family": {},
                "f:ipaddress.kubernetes.io/managed-by": {}}},
            "f:spec": {"f:parentRef": {".": {}, "f:name": {}, "f:namespace": {}, "f:resource": {}}}}}])
}
