use super::*;
use crate::scheduling::node::tests::{labelled_node, pod_of};
use serde_json::{Value, json};

fn claim(name: &str, spec: Value) -> Arc<PersistentVolumeClaim> {
    let mut json = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late",
                 "resources": {"requests": {"storage": "1Gi"}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        json["spec"][key] = value.clone();
    }
    if spec.get("volumeName").is_some() {
        json["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    }
    Arc::new(serde_json::from_value(json).expect("claim"))
}

fn volume(name: &str, host: &str, more: Value) -> Arc<PersistentVolume> {
    let terms = json!([{"matchExpressions": [{"key": "host", "operator": "In", "values": [host]}]}]);
    let mut json = json!({"metadata": {"name": name, "resourceVersion": "1"}, "status": {"phase": "Available"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late", "capacity": {"storage": "1Gi"},
                 "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        json[key] = value.clone();
    }
    Arc::new(serde_json::from_value(json).expect("volume"))
}

fn storage(
    claims: &[Arc<PersistentVolumeClaim>],
    volumes: &[Arc<PersistentVolume>],
    provisioner: &str,
) -> Storage {
    let class = json!({"metadata": {"name": "late"}, "provisioner": provisioner,
        "volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies":
        [{"matchLabelExpressions": [{"key": "host", "values": ["n1", "n2"]}]}]});
    Storage {
        claims: claims.iter().map(|c| (key(c), c.clone())).collect(),
        volumes: volumes.iter().map(|v| (name(v).to_owned(), v.clone())).collect(),
        classes: [("late".to_owned(), Arc::new(serde_json::from_value(class).expect("class")))].into(),
        ..Storage::default()
    }
}

fn pod(name: &str, claims: &[&str]) -> PodInfo {
    let volumes: Vec<Value> =
        claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
    pod_of(name, json!({"containers": [], "volumes": volumes}), &[])
}

fn node(name: &str) -> NodeInfo {
    labelled_node(name, "4", "4Gi", &[("host", name)])
}

#[test]
fn claims_that_keep_a_pod_away() {
    let bound = claim("bound", json!({"volumeName": "v"}));
    let immediate = claim("immediate", json!({"storageClassName": "now"}));
    let mut lost = PersistentVolumeClaim::clone(&claim("lost", json!({"volumeName": "gone"})));
    lost.status = serde_json::from_value(json!({"phase": "Lost"})).ok();
    let s = storage(&[bound, immediate, Arc::new(lost)], &[], NO_PROVISIONER);
    let fails = |name: &str| s.claims_of(&pod("p", &[name])).expect_err(name);
    assert_eq!(fails("absent"), "persistentvolumeclaim \"absent\" not found");
    assert_eq!(fails("immediate"), "pod has unbound immediate PersistentVolumeClaims");
    assert_eq!(
        fails("lost"),
        "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"gone\""
    );
    let claims = s.claims_of(&pod("p", &["bound"])).expect("claims");
    assert_eq!(s.decide(&claims, &node("n1"), &Assumed::default()).err(), Some(vec![MISSING]));
    let ephemeral = pod_of("p", json!({"containers": [], "volumes": [{"name": "e", "ephemeral": {}}]}), &[]);
    assert_eq!(
        s.claims_of(&ephemeral).expect_err("no claim"),
        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-e\""
    );
}

#[test]
fn a_pod_goes_where_its_volumes_are_and_no_volume_is_given_twice() {
    let (c, d) = (claim("c", json!({})), claim("d", json!({})));
    let s = storage(&[c, d], &[volume("v1", "n1", json!({}))], NO_PROVISIONER);
    let claims = s.claims_of(&pod("p", &["c"])).expect("claims");
    let mut assumed = Assumed::default();
    assert_eq!(s.decide(&claims, &node("n2"), &assumed).err(), Some(vec![NO_VOLUME]));
    let decision = s.decide(&claims, &node("n1"), &assumed).expect("decision");
    assert_eq!(name(&decision.bindings[0].0), "v1");
    let both = s.claims_of(&pod("q", &["c", "d"])).expect("claims");
    assert!(s.decide(&both, &node("n1"), &assumed).is_err());
    assumed.add(&decision, "n1");
    let other = s.claims_of(&pod("r", &["d"])).expect("claims");
    assert!(s.decide(&other, &node("n1"), &assumed).is_err());
    assert!(
        s.decide(&claims, &node("n1"), &assumed).is_ok(),
        "a second pod of the claim goes to the same node"
    );
    assert!(s.decide(&claims, &node("n2"), &assumed).is_err());
    assumed.remove(&decision);
    assert!(s.decide(&other, &node("n1"), &assumed).is_ok());
}

#[test]
fn a_volume_is_made_where_the_class_allows() {
    let s = storage(&[claim("c", json!({}))], &[], "example.com/disk");
    let claims = s.claims_of(&pod("p", &["c"])).expect("claims");
    let mut assumed = Assumed::default();
    let decision = s.decide(&claims, &node("n1"), &assumed).expect("decision");
    assert_eq!(decision.provisions.len(), 1);
    assert!(s.decide(&claims, &node("n3"), &assumed).is_err());
    assumed.add(&decision, "n1");
    assert!(s.decide(&claims, &node("n2"), &assumed).is_err());
    let mut later = s;
    let mut written = PersistentVolumeClaim::clone(&claims.delayed[0]);
    written.metadata.resource_version = Some("2".into());
    later.claims.insert("default/c".into(), Arc::new(written));
    assumed.prune(&later);
    assert!(later.decide(&claims, &node("n2"), &assumed).is_ok());
}

#[test]
fn zones_and_limits() {
    let zone = json!({"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": "a__b"}}});
    let mut s = storage(
        &[
            claim("c", json!({"volumeName": "v"})),
            claim("x", json!({"volumeName": "x"})),
            claim("y", json!({"volumeName": "y"})),
        ],
        &[volume("v", "n1", zone)],
        NO_PROVISIONER,
    );
    let claims = s.claims_of(&pod("p", &["c"])).expect("claims");
    let zoned = |zone| labelled_node("n", "1", "1Gi", &[("topology.kubernetes.io/zone", zone)]);
    assert!(s.is_in_zone(&claims, &zoned("a")) && s.is_in_zone(&claims, &zoned("b")));
    assert!(!s.is_in_zone(&claims, &zoned("c")) && !s.is_in_zone(&claims, &node("n1")));
    for name in ["x", "y"] {
        let csi = json!({"csi": {"driver": "d", "volumeHandle": name}});
        s.volumes.insert(name.into(), volume(name, "n1", json!({"spec": csi})));
    }
    let limit = json!({"metadata": {"name": "n1"}, "spec": {"drivers": [{"name": "d", "nodeID": "n1",
        "topologyKeys": [], "allocatable": {"count": 1}}]}});
    s.csi_nodes.insert("n1".into(), Arc::new(serde_json::from_value(limit).expect("node")));
    let mut n = node("n1");
    assert!(s.has_room(&pod("p", &["x"]), &n));
    n.add_pod(Arc::new(pod("p", &["x"])));
    assert!(s.has_room(&pod("q", &["x"]), &n), "the volume is there already");
    assert!(!s.has_room(&pod("q", &["y"]), &n));
    assert!(s.has_room(&pod("q", &["c"]), &n));
}

#[test]
fn room_that_drivers_tell_of() {
    let wanted = claim("c", json!({}));
    let mut s = storage(std::slice::from_ref(&wanted), &[], "d.example.com");
    let claims = s.claims_of(&pod("p", &["c"])).unwrap();
    let decide = |s: &Storage, name: &str| {
        s.decide(&claims, &node(name), &Assumed::default()).map(|d| d.provisions.len())
    };
    assert_eq!(decide(&s, "n1"), Ok(1), "the driver says nothing");
    let driver = json!({"metadata": {"name": "d.example.com"}, "spec": {"storageCapacity": true}});
    s.drivers.insert("d.example.com".into(), Arc::new(serde_json::from_value(driver).unwrap()));
    assert_eq!(decide(&s, "n1"), Err(vec![NO_ROOM]), "nobody told of room");
    let capacity = |name: &str, host: &str, class: &str, more: Value| {
        let mut json = json!({"metadata": {"name": name}, "storageClassName": class,
            "nodeTopology": {"matchLabels": {"host": host}}});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (name.to_owned(), Arc::new(serde_json::from_value(json).unwrap()))
    };
    s.capacities = HashMap::from([
        capacity("a", "n1", "late", json!({"capacity": "2Gi"})),
        capacity("b", "n2", "late", json!({"capacity": "9Gi", "maximumVolumeSize": "512Mi"})),
        capacity("c", "n2", "other", json!({"capacity": "9Gi"})),
    ]);
    assert_eq!(decide(&s, "n1"), Ok(1));
    assert_eq!(decide(&s, "n2"), Err(vec![NO_ROOM]), "no volume may be that large");
    assert_eq!(decide(&s, "n3"), Err(vec![NO_VOLUME]), "the class does not reach it");
}
