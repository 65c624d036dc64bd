use super::*;
use crate::scheduling::LabelMap;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn volume(name: &str, size: &str, more: Value) -> PersistentVolume {
    let mut json = json!({"metadata": {"name": name}, "status": {"phase": "Available"}, "spec": {
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c"}});
    merge(&mut json, &more);
    serde_json::from_value(json).expect("volume")
}

fn claim(size: &str, more: Value) -> PersistentVolumeClaim {
    let mut json = json!({"metadata": {"name": "d", "namespace": "n", "uid": "u"}, "spec": {
        "resources": {"requests": {"storage": size}}, "accessModes": ["ReadWriteOnce"], "storageClassName": "c"}});
    merge(&mut json, &more);
    serde_json::from_value(json).expect("claim")
}

fn found(claim: &PersistentVolumeClaim, volumes: &[PersistentVolume]) -> Option<String> {
    find_volume(claim, volumes.iter(), None, &BTreeSet::new(), false).and_then(|v| v.metadata.name.clone())
}

#[test]
fn the_smallest_that_fits() {
    let volumes = [
        volume("ten", "10Gi", json!({})),
        volume("five", "5Gi", json!({})),
        volume("one", "1Gi", json!({})),
        volume("other-class", "3Gi", json!({"spec": {"storageClassName": "x"}})),
        volume("block", "3Gi", json!({"spec": {"volumeMode": "Block"}})),
        volume("taken", "3Gi", json!({"spec": {"claimRef": {"name": "z", "namespace": "n", "uid": "z"}}})),
        volume("going", "3Gi", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        volume("released", "3Gi", json!({"status": {"phase": "Released"}})),
        volume("labelled", "20Gi", json!({"metadata": {"labels": {"disk": "fast"}}})),
        volume("shared", "2Gi", json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}})),
    ];
    for (claim, want) in [
        (claim("2Gi", json!({})), Some("five")),
        (claim("1Gi", json!({})), Some("one")),
        (claim("30Gi", json!({})), None),
        (claim("1Gi", json!({"spec": {"volumeMode": "Block"}})), Some("block")),
        (claim("1Gi", json!({"spec": {"selector": {"matchLabels": {"disk": "fast"}}}})), Some("labelled")),
        (claim("1Gi", json!({"spec": {"accessModes": ["ReadOnlyMany"]}})), Some("shared")),
        (claim("1Gi", json!({"spec": {"accessModes": ["ReadWriteMany"]}})), None),
        (claim("1Gi", json!({"spec": {"storageClassName": ""}})), None),
        (
            claim(
                "1Gi",
                json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "x"}}}),
            ),
            Some("other-class"),
        ),
    ] {
        assert_eq!(found(&claim, &volumes).as_deref(), want, "{claim:?}");
    }
}

#[test]
fn a_reserved_volume_goes_first() {
    let reserved = |uid: Value| {
        volume("mine", "9Gi", json!({"spec": {"claimRef": {"name": "d", "namespace": "n", "uid": uid}}}))
    };
    let small = volume("small", "1Gi", json!({}));
    let c = claim("1Gi", json!({}));
    assert_eq!(found(&c, &[small.clone(), reserved(Value::Null)]).as_deref(), Some("mine"));
    assert_eq!(found(&c, &[small.clone(), reserved("u".into())]).as_deref(), Some("mine"));
    assert_eq!(found(&c, &[small, reserved("earlier".into())]).as_deref(), Some("small"));
}

#[test]
fn a_node_sees_what_it_can_reach() {
    let on = |name: &str, host: &str| {
        let terms = json!([{"matchExpressions": [{"key": "host", "operator": "In", "values": [host]}]}]);
        volume(name, "1Gi", json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}))
    };
    let volumes = [on("a", "n1"), on("b", "n2")];
    let labels: LabelMap = [("host", "n2")].into_iter().collect();
    let c = claim("1Gi", json!({}));
    let of = |taken: &[&str]| {
        let taken = taken.iter().copied().collect();
        find_volume(&c, volumes.iter(), Some(("n2", &labels)), &taken, false)
            .and_then(|v| v.metadata.name.clone())
    };
    assert_eq!(of(&[]).as_deref(), Some("b"));
    assert_eq!(of(&["b"]), None);
    assert!(find_volume(&c, volumes.iter(), None, &BTreeSet::new(), true).is_none());
}

#[test]
fn requests_that_do_not_fit_say_why() {
    let c = claim("2Gi", json!({}));
    for (more, want) in [
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            "the volume is marked for deletion \"v\"",
        ),
        (json!({"spec": {"capacity": {"storage": "1Gi"}}}), "requested PV is too small"),
        (json!({"spec": {"storageClassName": "x"}}), "storageClassName does not match"),
        (json!({"spec": {"volumeMode": "Block"}}), "incompatible volumeMode"),
        (json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), "incompatible accessMode"),
    ] {
        assert_eq!(check_request(&c, &volume("v", "2Gi", more)), Err(want.to_owned()));
    }
    assert_eq!(check_request(&c, &volume("v", "2Gi", json!({}))), Ok(()));
}

#[test]
fn a_binding_says_who_decided_it() {
    let (v, c) = (volume("v", "5Gi", json!({})), claim("2Gi", json!({"metadata": {"resourceVersion": "7"}})));
    let bound = bind_volume(&v, &c);
    let reference = bound.spec.as_ref().and_then(|s| s.claim_ref.clone()).expect("reference");
    assert_eq!((reference.uid.as_deref(), reference.resource_version.as_deref()), (Some("u"), Some("7")));
    assert!(bound.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(BOUND_BY_CONTROLLER)));
    assert_eq!(bind_volume(&bound, &c), bound, "the second time changes nothing");
    let mine = bind_claim(&c, &bound);
    assert_eq!(volume_name(&mine), "v");
    assert!(is_complete(&mine));
    assert_eq!(bind_claim(&mine, &bound), mine);
    let status = bound_status(&mine, "Bound", Some(&bound));
    assert_eq!(status.capacity.as_ref().map(|c| c["storage"].0.as_str()), Some("5Gi"));
    let free = unbind_volume(&bound);
    assert_eq!((free.spec.and_then(|s| s.claim_ref), free.metadata.annotations), (None, Some([].into())));
    // Reserved by the user: no annotation, and the reservation outlives the binding.
    let reserved = volume("v", "5Gi", json!({"spec": {"claimRef": {"name": "d", "namespace": "n"}}}));
    let bound = bind_volume(&reserved, &c);
    assert_eq!(bound.metadata.annotations, None);
    let free = unbind_volume(&bound).spec.and_then(|s| s.claim_ref).expect("reservation");
    assert_eq!((free.name.as_deref(), free.uid), (Some("d"), None));
}

proptest! {
    /// Whatever volumes there are and in whatever order: what is found fits, and nothing smaller does.
    #[test]
    fn the_choice_does_not_depend_on_the_order(sizes in proptest::collection::vec(1u32..40, 0..8), want in 1u32..40) {
        let mut volumes: Vec<_> = sizes.iter().enumerate()
            .map(|(i, size)| volume(&format!("v{i}"), &format!("{size}Gi"), json!({}))).collect();
        let c = claim(&format!("{want}Gi"), json!({}));
        let first = found(&c, &volumes);
        volumes.reverse();
        prop_assert_eq!(&found(&c, &volumes), &first);
        let least = sizes.iter().filter(|size| **size >= want).min();
        let size = first.and_then(|name| sizes.get(name.strip_prefix('v')?.parse::<usize>().ok()?).copied());
        prop_assert_eq!(size.as_ref(), least);
    }
}
