//! What an evicted pod is told.

use super::{Candidate, Observations, Threshold};
use crate::pod::spec::containers;
use crate::quantity::{Format, Quantity};
use std::fmt::Write;

/// The text, and what the event's annotations say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// `status.message` and the event's text.
    pub message: String,
    /// Annotations of the event.
    pub annotations: Vec<(&'static str, String)>,
}

fn bytes(amount: u64) -> Quantity {
    Quantity::new(i64::try_from(amount).unwrap_or(i64::MAX), Format::BinarySi)
}

/// Upstream's text for a pod that goes because of the first of these thresholds.
pub fn message(
    candidate: &Candidate,
    reason: &Threshold,
    driving: &[Threshold],
    observed: &Observations,
) -> Details {
    let resource = reason.signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    let of_resource = driving.iter().filter(|t| t.signal.resource() == resource);
    if let Some((threshold, now)) = of_resource.filter_map(|t| Some((t, observed.get(&t.signal)?))).next() {
        let quantity = threshold.value.of(&now.capacity);
        // Writing to a String cannot fail.
        let _ = write!(text, "Threshold quantity: {quantity}, available: {}. ", now.available);
    }
    let (Some(usage), Some(spec)) = (&candidate.usage, &candidate.pod.spec) else {
        return Details { message: text, annotations: Vec::new() };
    };
    let mut annotations = Vec::new();
    let request_of = |list: Option<
        &std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    >| {
        list.and_then(|r| r.get(resource)).map(|q| Quantity::parse(&q.0).unwrap_or(Quantity::ZERO))
    };
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let ("memory", Some(request)) = (resource, request_of(of_pod)) {
        let name = candidate.pod.metadata.name.as_deref().unwrap_or_default();
        let used = bytes(usage.memory);
        let _ = write!(
            text,
            "Pod {name} was using {used}, request is {request}, has larger consumption of {resource}. "
        );
        annotations.push(("offending_pod", name.to_owned()));
        annotations.push(("offending_pod_usage", used.to_string()));
    }
    let (mut names, mut amounts) = (Vec::new(), Vec::new());
    for container in &usage.containers {
        let Some((_, of_spec)) = containers(spec).find(|(_, c)| c.name == container.name) else { continue };
        let used = match resource {
            "memory" => bytes(container.memory),
            "ephemeral-storage" => bytes(container.rootfs.0.saturating_add(container.logs.0)),
            _ => continue,
        };
        let request = request_of(of_spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
        let request = request.unwrap_or(Quantity::ZERO);
        if used > request {
            let name = &container.name;
            let _ = write!(
                text,
                "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
            );
            names.push(name.clone());
            amounts.push(used.to_string());
        }
    }
    annotations.push(("offending_containers", names.join(",")));
    annotations.push(("offending_containers_usage", amounts.join(",")));
    annotations.push(("starved_resource", resource.to_owned()));
    Details { message: text, annotations }
}
