//! When something happened that changed the endpoints of a Service, for those who measure how long it takes until nodes
//! follow: the annotation that upstream's tracker writes.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Annotation of a slice with the time of the change that led to its last write (RFC 3339).
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was seen of a Service.
#[derive(Debug, Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// The times of changes that were seen, by the key of their Service.
#[derive(Debug, Default)]
pub struct TriggerTimes(HashMap<String, Seen>);

impl TriggerTimes {
    /// Takes over a Service and its pods as they are now; returns the first change since the last time: of a pod's
    /// readiness, or the Service's creation. A Service that is new here counts from its creation. (Of an object that
    /// changed twice in between, only the second change is known.)
    pub fn observe<'a>(
        &mut self,
        key: &str,
        service: &Service,
        pods: impl IntoIterator<Item = &'a Pod>,
    ) -> Option<Timestamp> {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let mut seen = Seen { service: created, pods: HashMap::new() };
        for pod in pods {
            if let (Some(name), Some(time)) = (&pod.metadata.name, readiness_changed(pod)) {
                seen.pods.insert(name.clone(), time);
            }
        }
        let changed = self.0.get(key).map(|before| {
            let pods =
                seen.pods.iter().filter(|(name, time)| before.pods.get(*name).is_none_or(|old| old < time));
            let service = created.filter(|created| before.service.is_none_or(|old| old < *created));
            pods.map(|(_, time)| *time).chain(service).min()
        });
        self.0.insert(key.to_owned(), seen);
        changed.unwrap_or(created)
    }

    /// Forgets a Service.
    pub fn forget(&mut self, key: &str) {
        self.0.remove(key);
    }
}

/// When the pod became ready or ceased to be.
fn readiness_changed(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Writes the time of the change that a slice is written for; without one there is no annotation.
pub fn annotate(slice: &mut EndpointSlice, trigger: Option<Timestamp>) {
    match trigger {
        Some(time) => {
            let annotations = slice.metadata.annotations.get_or_insert_default();
            annotations.insert(TRIGGER_TIME.to_owned(), time.to_string());
        }
        None => {
            if let Some(annotations) = &mut slice.metadata.annotations {
                annotations.remove(TRIGGER_TIME);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(created: &str) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "creationTimestamp": created}})).unwrap()
    }

    fn pod(name: &str, ready: Option<&str>) -> Pod {
        let conditions =
            ready.map(|time| json!([{"type": "Ready", "status": "True", "lastTransitionTime": time}]));
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    #[test]
    fn the_first_change_since_the_last_time_counts() {
        let mut times = TriggerTimes::default();
        let service = service("2026-01-01T00:00:00Z");
        let mut observe = |pods: &[Pod]| times.observe("n/s", &service, pods).map(|time| time.to_string());
        let (a, b) = (pod("a", Some("2026-01-01T00:00:09Z")), pod("b", Some("2026-01-01T00:00:05Z")));
        assert_eq!(observe(std::slice::from_ref(&a)).as_deref(), Some("2026-01-01T00:00:00Z"), "new here");
        assert_eq!(observe(std::slice::from_ref(&a)), None);
        assert_eq!(observe(&[a.clone(), b.clone(), pod("c", None)]).as_deref(), Some("2026-01-01T00:00:05Z"));
        let (a, b) = (pod("a", Some("2026-01-01T00:01:00Z")), pod("b", Some("2026-01-01T00:02:00Z")));
        assert_eq!(observe(&[a.clone(), b.clone()]).as_deref(), Some("2026-01-01T00:01:00Z"));
        assert_eq!(observe(std::slice::from_ref(&b)), None, "one that goes leaves no time");
        assert_eq!(observe(&[a, b]).as_deref(), Some("2026-01-01T00:01:00Z"), "one that comes back counts");
        times.forget("n/s");
        assert!(times.observe("n/s", &service, []).is_some());
    }

    #[test]
    fn a_service_that_was_made_again_counts_from_then() {
        let mut times = TriggerTimes::default();
        times.observe("n/s", &service("2026-01-01T00:00:00Z"), []);
        let again = service("2026-01-01T01:00:00Z");
        assert_eq!(times.observe("n/s", &again, []).unwrap().to_string(), "2026-01-01T01:00:00Z");
    }

    #[test]
    fn the_annotation_goes_with_its_reason() {
        let mut slice = EndpointSlice::default();
        annotate(&mut slice, None);
        assert_eq!(slice.metadata.annotations, None);
        annotate(&mut slice, Some("2026-01-01T00:00:00.25Z".parse().unwrap()));
        assert_eq!(slice.metadata.annotations.as_ref().unwrap()[TRIGGER_TIME], "2026-01-01T00:00:00.25Z");
        annotate(&mut slice, None);
        assert_eq!(slice.metadata.annotations, Some(Default::default()));
    }
}
