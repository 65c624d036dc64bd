//! Addresses and node ports of Services: which are taken, which a Service gets. Pure: the caller keeps the structure in
//! memory, fills it from the stored Services, and serializes access.
//!
//! Order of a write: [`prepare_create`] or [`prepare_update`], validation, [`Allocator::allocate`], the write itself, then
//! [`Taken`] is either given to [`Allocator::undo`] (the write failed, or was a dry run) or to [`Allocator::settle`].

mod prepare;
mod range;

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Value, json};

pub use prepare::{prepare_create, prepare_update};
pub use range::{Addresses, AllocationError, IpRange, PortRange};

use crate::error::{ApiError, FieldError};
use crate::validation;

/// What a Service took, and what it will not need any more once it is written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[must_use = "undo or settle it"]
pub struct Taken {
    ips: Vec<IpAddr>,
    ports: Vec<i64>,
    free_ips: Vec<IpAddr>,
    free_ports: Vec<i64>,
    /// Namespace and name of the Service.
    owner: (String, String),
}

impl Taken {
    /// Addresses that the Service did not have before.
    #[must_use]
    pub fn new_addresses(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Addresses that the Service has no more.
    #[must_use]
    pub fn freed_addresses(&self) -> &[IpAddr] {
        &self.free_ips
    }

    /// Namespace and name of the Service.
    #[must_use]
    pub fn owner(&self) -> (&str, &str) {
        (&self.owner.0, &self.owner.1)
    }
}

/// The addresses and node ports of a cluster.
#[derive(Debug, Clone)]
pub struct Allocator {
    /// The cluster's own ranges, one or two of different families; the first is the default family's.
    own: Vec<IpRange>,
    addresses: Addresses,
    /// Addresses of stored Services, with namespace and name.
    owners: HashMap<IpAddr, (String, String)>,
    ports: PortRange,
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { "IPv6" } else { "IPv4" }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

impl Allocator {
    /// An allocator with nothing taken. The first range's family is the default.
    #[must_use]
    pub fn new(ranges: Vec<IpRange>, ports: PortRange) -> Self {
        let addresses = Addresses::new(ranges.clone());
        Allocator { own: ranges, addresses, owners: HashMap::new(), ports }
    }

    /// The address of the `kubernetes` Service.
    #[must_use]
    pub fn first(&self) -> Option<IpAddr> {
        self.own.first().map(IpRange::first)
    }

    /// Addresses are taken from these ranges from now on; families that the cluster does not have are left out.
    pub fn use_ranges(&mut self, ranges: Vec<IpRange>) {
        let known = |range: &IpRange| self.own.iter().any(|own| own.is_ipv6() == range.is_ipv6());
        self.addresses.ranges = ranges.into_iter().filter(known).collect();
    }

    /// The addresses.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The addresses, for objects that name them.
    pub fn addresses_mut(&mut self) -> &mut Addresses {
        &mut self.addresses
    }

    /// Addresses of stored Services, with namespace and name.
    pub fn owners(&self) -> impl Iterator<Item = (IpAddr, &str, &str)> {
        self.owners.iter().map(|(ip, (namespace, name))| (*ip, namespace.as_str(), name.as_str()))
    }

    fn default_family(&self) -> &'static str {
        if self.own.first().is_some_and(IpRange::is_ipv6) { "IPv6" } else { "IPv4" }
    }

    /// Marks what a stored Service has as taken.
    pub fn insert(&mut self, service: &Value) {
        for ip in addresses(service) {
            self.addresses.mark(ip);
            self.owners.insert(ip, owner(service));
        }
        for port in ports(service) {
            let _ = self.ports.take(port);
        }
    }

    /// Frees what a removed Service had.
    pub fn remove(&mut self, service: &Value) {
        self.free(&addresses(service), &ports(service));
    }

    fn free(&mut self, ips: &[IpAddr], ports: &[i64]) {
        for ip in ips {
            self.addresses.release(*ip);
            self.owners.remove(ip);
        }
        for port in ports {
            self.ports.release(*port);
        }
    }

    /// The write failed or was a dry run: what was taken for it is free again.
    pub fn undo(&mut self, taken: Taken) {
        self.free(&taken.ips, &taken.ports);
    }

    /// The write succeeded: what the Service had before and has no more is free.
    pub fn settle(&mut self, taken: Taken) {
        for ip in &taken.ips {
            self.owners.insert(*ip, taken.owner.clone());
        }
        self.free(&taken.free_ips, &taken.free_ports);
    }

    /// Fills in the address families, addresses and ports of a Service; `old` is its state before an update. Takes them:
    /// nothing is taken when it fails.
    ///
    /// # Errors
    /// 422 with upstream's text for a request that cannot be met, 500 when nothing is free.
    pub fn allocate(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        dry: bool,
    ) -> Result<Taken, ApiError> {
        let mut taken = Taken { owner: owner(service), ..Taken::default() };
        match self.fill(service, old, dry, &mut taken) {
            Ok(()) => {
                if let Some(old) = old {
                    let (ips, ports_now) = (addresses(service), ports(service));
                    taken.free_ips = addresses(old).into_iter().filter(|ip| !ips.contains(ip)).collect();
                    taken.free_ports = ports(old).into_iter().filter(|p| !ports_now.contains(p)).collect();
                }
                Ok(taken)
            }
            Err(error) => {
                self.undo(taken);
                Err(error)
            }
        }
    }

    fn fill(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        dry: bool,
        taken: &mut Taken,
    ) -> Result<(), ApiError> {
        let name = service.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = spec_text(service, "type").to_owned();
        if kind != "ExternalName" {
            self.families(service, &name)?;
            self.cluster_ips(service, &name, old, dry, taken)?;
        }
        self.node_ports(service, &name, old, taken)?;
        self.health_port(service, old, taken)
    }

    /// Completes `ipFamilyPolicy` and `ipFamilies`.
    fn families(&self, service: &mut Value, name: &str) -> Result<(), ApiError> {
        let fail = |errs: &[FieldError]| Err(ApiError::invalid("", "Service", name, errs));
        let spec = service.get("spec").cloned().unwrap_or_default();
        let headless = list(&spec, "clusterIPs").first().is_some_and(|ip| ip == "None");
        let selects = spec.get("selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
        let free_choice = headless && !selects;
        let errs = validation::service_cluster_ips(service);
        if !errs.is_empty() {
            return fail(&errs);
        }
        let mut policy = text(&spec, "ipFamilyPolicy").to_owned();
        if policy.is_empty() {
            policy = if free_choice { "RequireDualStack" } else { "SingleStack" }.to_owned();
        }
        let mut families: Vec<String> =
            list(&spec, "ipFamilies").iter().filter_map(|f| f.as_str().map(str::to_owned)).collect();
        let ips: Vec<IpAddr> =
            list(&spec, "clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect();
        let mut errs = Vec::new();
        if policy == "SingleStack" {
            for (count, what) in [(ips.len(), "cluster IPs"), (families.len(), "IP families")] {
                if count == 2 {
                    let detail = format!(
                        "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                    );
                    errs.push(FieldError::invalid("spec.ipFamilyPolicy", policy.as_str(), detail));
                }
            }
        }
        if !errs.is_empty() {
            return fail(&errs);
        }
        for ip in ips.iter().skip(families.len()) {
            families.push(family(*ip).to_owned());
        }
        let dual = self.own.len() > 1;
        if !free_choice {
            if policy == "RequireDualStack" && !dual {
                let detail = "this cluster is not configured for dual-stack services";
                errs.push(FieldError::invalid("spec.ipFamilyPolicy", policy.as_str(), detail));
            }
            for (i, f) in families.iter().enumerate() {
                if !self.own.iter().any(|r| r.is_ipv6() == (f == "IPv6")) {
                    let path = format!("spec.ipFamilies[{i}]");
                    errs.push(FieldError::invalid(path, f.as_str(), "not configured on this cluster"));
                }
            }
            if !errs.is_empty() {
                return fail(&errs);
            }
        }
        if families.is_empty() {
            families.push(self.default_family().to_owned());
        }
        if policy != "SingleStack" && families.len() == 1 && (dual || free_choice) {
            families.push(other(&families[0]).to_owned());
        }
        if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("ipFamilyPolicy".to_owned(), policy.into());
            spec.insert("ipFamilies".to_owned(), json!(families));
        }
        Ok(())
    }

    fn cluster_ips(
        &mut self,
        service: &mut Value,
        name: &str,
        old: Option<&Value>,
        dry: bool,
        taken: &mut Taken,
    ) -> Result<(), ApiError> {
        let spec = service.get("spec").cloned().unwrap_or_default();
        let wanted: Vec<&str> = list(&spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
        if wanted.first() == Some(&"None") {
            return Ok(());
        }
        let own = old.map(addresses).unwrap_or_default();
        let mut ips = Vec::new();
        for (i, f) in list(&spec, "ipFamilies").iter().filter_map(Value::as_str).enumerate() {
            let explicit = wanted.get(i).and_then(|ip| ip.parse::<IpAddr>().ok());
            if let Some(ip) = explicit.filter(|ip| own.contains(ip)) {
                ips.push(ip);
                continue;
            }
            if !self.own.iter().any(|own| own.is_ipv6() == (f == "IPv6")) {
                continue;
            }
            let got = match explicit {
                Some(ip) => self.addresses.take(ip, dry).map(|()| ip),
                None => self.addresses.take_next(f == "IPv6"),
            };
            match (got, explicit) {
                (Ok(ip), _) => {
                    taken.ips.push(ip);
                    ips.push(ip);
                }
                (Err(why), Some(ip)) => {
                    let detail = format!("failed to allocate IP {ip}: {why}");
                    let error = FieldError::invalid("spec.clusterIPs", json!(wanted), detail);
                    return Err(ApiError::invalid("", "Service", name, &[error]));
                }
                (Err(why), None) => {
                    return Err(ApiError::internal(format!("failed to allocate a serviceIP: {why}")));
                }
            }
        }
        if let (Some(first), Some(spec)) =
            (ips.first(), service.get_mut("spec").and_then(Value::as_object_mut))
        {
            spec.insert("clusterIP".to_owned(), first.to_string().into());
            let all: Vec<String> = ips.iter().map(ToString::to_string).collect();
            spec.insert("clusterIPs".to_owned(), json!(all));
        }
        Ok(())
    }

    fn node_ports(
        &mut self,
        service: &mut Value,
        name: &str,
        old: Option<&Value>,
        taken: &mut Taken,
    ) -> Result<(), ApiError> {
        let spec = service.get("spec").cloned().unwrap_or_default();
        if !matches!(text(&spec, "type"), "NodePort" | "LoadBalancer") {
            return Ok(());
        }
        let automatic = needs_node_ports(&spec);
        let own: Vec<i64> = old.map(service_ports).unwrap_or_default();
        let wanted = list(&spec, "ports");
        let mut given: Vec<i64> = wanted.iter().map(|p| number(p, "nodePort")).collect();
        for i in 0..given.len() {
            let port = number(&wanted[i], "port");
            // Ports that differ in protocol only share a node port.
            let sibling = |given: &[i64]| {
                let same = |j: &usize| *j != i && number(&wanted[*j], "port") == port && given[*j] != 0;
                (0..given.len()).find(same).map(|j| given[j])
            };
            if given[i] == 0 {
                if !automatic {
                    continue;
                }
                given[i] = match sibling(&given) {
                    Some(shared) => shared,
                    None => {
                        let next = self.ports.take_next().map_err(|why| {
                            ApiError::internal(format!("failed to allocate a nodePort: {why}"))
                        })?;
                        taken.ports.push(next);
                        next
                    }
                };
            }
            let held = own.contains(&given[i]) || taken.ports.contains(&given[i]);
            if !held {
                if let Err(why) = self.ports.take(given[i]) {
                    let path = format!("spec.ports[{i}].nodePort");
                    let error = FieldError::invalid(path, given[i], why.to_string());
                    return Err(ApiError::invalid("", "Service", name, &[error]));
                }
                taken.ports.push(given[i]);
            }
        }
        let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for (port, number) in ports.into_iter().flatten().zip(given) {
            if let Some(port) = port.as_object_mut().filter(|_| number != 0) {
                port.insert("nodePort".to_owned(), number.into());
            }
        }
        Ok(())
    }

    fn health_port(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        taken: &mut Taken,
    ) -> Result<(), ApiError> {
        let spec = service.get("spec").cloned().unwrap_or_default();
        if !needs_health_port(&spec) {
            return Ok(());
        }
        let wanted = number(&spec, "healthCheckNodePort");
        let own =
            old.and_then(|o| o.get("spec")).map(|s| number(s, "healthCheckNodePort")).unwrap_or_default();
        if wanted != 0 && wanted == own {
            return Ok(());
        }
        let got = if wanted == 0 {
            self.ports.take_next().map_err(|why| {
                ApiError::internal(format!("failed to allocate a HealthCheck NodePort: {why}"))
            })?
        } else {
            self.ports.take(wanted).map_err(|why| {
                ApiError::internal(format!(
                    "failed to allocate requested HealthCheck NodePort {wanted}: {why}"
                ))
            })?;
            wanted
        };
        taken.ports.push(got);
        if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("healthCheckNodePort".to_owned(), got.into());
        }
        Ok(())
    }
}

fn owner(service: &Value) -> (String, String) {
    let field = |name: &str| crate::object::meta(service, name).to_owned();
    (field("namespace"), field("name"))
}

/// The cluster addresses of a Service.
pub fn addresses(service: &Value) -> Vec<IpAddr> {
    let Some(spec) = service.get("spec").filter(|s| needs_addresses(s)) else { return Vec::new() };
    list(spec, "clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn service_ports(service: &Value) -> Vec<i64> {
    let ports = service.get("spec").map(|s| list(s, "ports")).unwrap_or_default();
    ports.iter().map(|p| number(p, "nodePort")).filter(|p| *p != 0).collect()
}

/// All node ports of a Service, the health check's included.
fn ports(service: &Value) -> Vec<i64> {
    let mut out = service_ports(service);
    out.extend(service.get("spec").map(|s| number(s, "healthCheckNodePort")).filter(|p| *p != 0));
    out.sort_unstable();
    out.dedup();
    out
}

fn needs_addresses(spec: &Value) -> bool {
    matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false),
        _ => false,
    }
}

fn needs_health_port(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn spec_text<'a>(service: &'a Value, name: &str) -> &'a str {
    service.get("spec").map(|s| text(s, name)).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> i64 {
    value.get(name).and_then(Value::as_i64).unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests;
