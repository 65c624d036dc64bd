//! Amounts of resources: what pods request and nodes offer.

use crate::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// CPU a container without a request counts as in scores, thousandths.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// Memory a container without a request counts as in scores, bytes.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource. Sums saturate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of local storage.
    pub ephemeral_storage: i64,
    /// Everything else (huge pages in bytes, devices by number), sorted by name.
    pub scalars: Vec<(Arc<str>, i64)>,
}

type List = BTreeMap<String, ApiQuantity>;

fn quantity(q: &ApiQuantity) -> Quantity {
    // The API server turns malformed quantities away; one from elsewhere counts as nothing.
    Quantity::parse(&q.0).unwrap_or(Quantity::ZERO)
}

impl Resources {
    /// The amounts of a resource list. `pods`, which is a limit and not an amount, is left out.
    pub fn from_list(list: Option<&List>) -> Self {
        let mut out = Self::default();
        for (name, q) in list.into_iter().flatten() {
            let q = quantity(q);
            match name.as_str() {
                "cpu" => out.milli_cpu = q.milli_value(),
                "memory" => out.memory = q.value(),
                "ephemeral-storage" => out.ephemeral_storage = q.value(),
                "pods" => {}
                _ => out.scalars.push((name.as_str().into(), q.value())),
            }
        }
        out
    }

    /// The amount of a resource that has no field of its own.
    pub fn scalar(&self, name: &str) -> i64 {
        self.scalars.iter().find(|(n, _)| &**n == name).map_or(0, |(_, amount)| *amount)
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            match self.scalars.binary_search_by(|(n, _)| n.cmp(name)) {
                Ok(at) => self.scalars[at].1 = with(self.scalars[at].1, *amount),
                Err(at) => self.scalars.insert(at, (name.clone(), with(0, *amount))),
            }
        }
    }

    /// Adds amounts.
    pub fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes amounts away.
    pub fn sub(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    /// Raises each amount to at least `other`'s.
    pub fn max(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    /// Whether nothing is requested.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory == 0
            && self.ephemeral_storage == 0
            && self.scalars.iter().all(|(_, amount)| *amount == 0)
    }
}

/// What a pod takes of a node: its containers and sidecars together, or its largest init container (with the
/// sidecars started before it) if that is more, and the pod's overhead. Requests of the pod as a whole take the place
/// of its containers'.
pub fn pod_requests(spec: &PodSpec) -> Resources {
    requests(spec, &|_| {})
}

/// As [`pod_requests`], where containers without a CPU or memory request count as [`DEFAULT_MILLI_CPU`] and
/// [`DEFAULT_MEMORY`]: CPU and memory for scoring.
pub fn pod_requests_non_zero(spec: &PodSpec) -> (i64, i64) {
    let whole = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let given = |c: &Container, name: &str| {
        c.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key(name))
    };
    let filled = requests(spec, &|(c, r): (&Container, &mut Resources)| {
        if !given(c, "cpu") && !whole.is_some_and(|w| w.contains_key("cpu")) {
            r.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !given(c, "memory") && !whole.is_some_and(|w| w.contains_key("memory")) {
            r.memory = DEFAULT_MEMORY;
        }
    });
    (filled.milli_cpu, filled.memory)
}

fn requests(spec: &PodSpec, fill: &dyn Fn((&Container, &mut Resources))) -> Resources {
    let of = |c: &Container| {
        let mut r = Resources::from_list(c.resources.as_ref().and_then(|r| r.requests.as_ref()));
        fill((c, &mut r));
        r
    };
    let mut sum = Resources::default();
    for container in &spec.containers {
        sum.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut largest_init = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum.add(&own);
            sidecars.add(&own);
            largest_init.max(&sidecars);
        } else {
            let mut at_once = sidecars.clone();
            at_once.add(&own);
            largest_init.max(&at_once);
        }
    }
    sum.max(&largest_init);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let given = Resources::from_list(Some(whole));
        if whole.contains_key("cpu") {
            sum.milli_cpu = given.milli_cpu;
        }
        if whole.contains_key("memory") {
            sum.memory = given.memory;
        }
        for (name, amount) in given.scalars {
            sum.scalars.retain(|(n, _)| *n != name);
            sum.add(&Resources { scalars: vec![(name, amount)], ..Resources::default() });
        }
    }
    sum.add(&Resources::from_list(spec.overhead.as_ref()));
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).expect("pod spec")
    }

    #[test]
    fn requests_of_containers_init_containers_and_sidecars() {
        let cpu = |amount: &str| serde_json::json!({"requests": {"cpu": amount}});
        let s = spec(serde_json::json!({
            "containers": [{"name": "a", "resources": cpu("100m")}, {"name": "b", "resources": cpu("200m")}],
            "initContainers": [
                {"name": "i1", "resources": cpu("350m")},
                {"name": "s", "restartPolicy": "Always", "resources": cpu("50m")},
                {"name": "i2", "resources": cpu("400m")},
            ],
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        }));
        // i2 beside s: 450m is more than a + b + s: 350m.
        assert_eq!(pod_requests(&s).milli_cpu, 460);
        assert_eq!(pod_requests(&s).memory, 1 << 20);
        assert_eq!(pod_requests_non_zero(&s), (460, 3 * DEFAULT_MEMORY + (1 << 20)));
    }

    #[test]
    fn the_pod_as_a_whole_goes_first() {
        let s = spec(serde_json::json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m", "example.com/gpu": "2"}}}],
            "resources": {"requests": {"cpu": "1"}},
        }));
        let found = pod_requests(&s);
        assert_eq!((found.milli_cpu, found.scalar("example.com/gpu"), found.memory), (1000, 2, 0));
        assert_eq!(pod_requests_non_zero(&s), (1000, DEFAULT_MEMORY));
    }

    proptest! {
        #[test]
        fn adding_and_taking_away_leaves_what_was(
            a in proptest::collection::btree_map("[a-d]", 0i64..1 << 40, 0..4),
            b in proptest::collection::btree_map("[a-d]", 0i64..1 << 40, 0..4),
            cpu in 0i64..1 << 40, memory in 0i64..1 << 40,
        ) {
            let make = |m: &BTreeMap<String, i64>| Resources {
                milli_cpu: cpu, memory, ephemeral_storage: 0,
                scalars: m.iter().map(|(n, v)| (n.as_str().into(), *v)).collect(),
            };
            let (x, y) = (make(&a), make(&b));
            let mut z = x.clone();
            z.add(&y);
            z.sub(&y);
            prop_assert_eq!((z.milli_cpu, z.memory), (x.milli_cpu, x.memory));
            for name in ["a", "b", "c", "d"] {
                prop_assert_eq!(z.scalar(name), x.scalar(name));
            }
        }
    }
}
