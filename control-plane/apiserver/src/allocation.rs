//! Cluster addresses and node ports of services.

use crate::config::Config;
use crate::error::{ApiError, FieldError};
use crate::object::{list_at, map_mut, meta, str_at};
use crate::storage::StoreHandle;
use kelp_store::RangeRequest;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::marker::PhantomData;
use std::net::Ipv4Addr;

/// Takes addresses and ports for services.
pub(crate) struct ServiceAllocator {
    store: StoreHandle,
    base: u32,
    lock: tokio::sync::Mutex<()>,
    pending: Mutex<HashSet<String>>,
    node_ports: std::ops::RangeInclusive<u16>,
}

/// Numbers taken.
pub(crate) struct Held<'a>(PhantomData<&'a ()>);

impl Held<'_> {
    pub(crate) fn nothing() -> Self {
        Held(PhantomData)
    }

    /// The write succeeded.
    pub(crate) fn keep(self) {}
}

impl ServiceAllocator {
    pub(crate) fn new(config: &Config, store: StoreHandle) -> Result<Self, String> {
        let first = config.service_cidrs.first().map(String::as_str).unwrap_or_default();
        let base: Ipv4Addr = first
            .split('/')
            .next()
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| format!("service range {first} is no address range"))?;
        Ok(ServiceAllocator {
            store,
            base: base.into(),
            lock: tokio::sync::Mutex::default(),
            pending: Mutex::default(),
            node_ports: config.node_ports.clone(),
        })
    }

    pub(crate) fn first(&self) -> String {
        Ipv4Addr::from(self.base + 1).to_string()
    }

    pub(crate) async fn allocate(
        &self,
        old: Option<&Value>,
        object: &mut Value,
        _dry: bool,
    ) -> Result<Held<'_>, ApiError> {
        let _guard = self.lock.lock().await;
        let answer = self.store.range(RangeRequest::prefix("/registry/services/")).await?;
        let mut used: HashSet<String> = HashSet::new();
        let mut ports: HashSet<i64> = HashSet::new();
        for kv in &answer.kvs {
            let Ok(service) = serde_json::from_slice::<Value>(&kv.value) else { continue };
            if meta(&service, "name") == meta(object, "name")
                && meta(&service, "namespace") == meta(object, "namespace")
            {
                continue;
            }
            used.insert(str_at(&service, &["spec", "clusterIP"]).to_owned());
            for port in list_at(&service, &["spec", "ports"]) {
                ports.extend(crate::object::int_at(port, &["nodePort"]));
            }
        }
        self.pending.lock().clear();
        let kind = str_at(object, &["spec", "type"]).to_owned();
        if kind == "ExternalName" {
            return Ok(Held::nothing());
        }
        let mut wanted = str_at(object, &["spec", "clusterIP"]).to_owned();
        if wanted.is_empty()
            && let Some(old) = old
        {
            wanted = str_at(old, &["spec", "clusterIP"]).to_owned();
        }
        if wanted.is_empty() {
            let free = (256..65535).map(|n| Ipv4Addr::from(self.base + n).to_string());
            let free = free.into_iter().find(|ip| !used.contains(ip));
            wanted = free.ok_or_else(|| ApiError::internal("range is full"))?;
        } else if wanted != "None" && used.contains(&wanted) {
            let why = format!("failed to allocate IP {wanted}: provided IP is already allocated");
            let error = FieldError::invalid("spec.clusterIPs", json!([wanted]), why);
            return Err(ApiError::invalid("", "Service", meta(object, "name"), &[error]));
        }
        let node_port = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
        let range = self.node_ports.clone();
        let spec = map_mut(object, "spec");
        spec.insert("clusterIP".into(), wanted.clone().into());
        spec.insert("clusterIPs".into(), json!([wanted]));
        spec.entry("type").or_insert(json!("ClusterIP"));
        spec.entry("ipFamilies").or_insert(json!(["IPv4"]));
        spec.entry("ipFamilyPolicy").or_insert(json!("SingleStack"));
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let own = crate::object::int_at(port, &["nodePort"]).unwrap_or_default();
            if node_port && own == 0 {
                let free = range.clone().map(i64::from).find(|p| !ports.contains(p));
                let free = free.ok_or_else(|| ApiError::internal("range is full"))?;
                ports.insert(free);
                port["nodePort"] = free.into();
            }
        }
        Ok(Held::nothing())
    }

    pub(crate) async fn release(&self, _object: &Value) {}
}
