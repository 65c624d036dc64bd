//! Laws of server-side apply and of the bookkeeping of managed fields, over random services.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::managers::{self, Operation};
use super::*;
use crate::schema;

fn service() -> &'static TypeSchema {
    schema::by_name("core.v1.Service").unwrap()
}

fn one_version(_: &Value, _: &str) -> Option<(Value, &'static TypeSchema)> {
    None
}

fn writer(manager: &str, time: u8) -> (String, String) {
    (manager.to_owned(), format!("2026-01-01T00:00:{time:02}Z"))
}

fn with<T>(who: &(String, String), run: impl FnOnce(&Writer<'_, '_>) -> T) -> T {
    run(&Writer {
        manager: &who.0,
        subresource: "",
        api_version: "v1",
        time: &who.1,
        owns: Owns::AllBut(&[&["status"]]),
        schema: service(),
        decode: &codec::decode_value,
        convert: &one_version,
    })
}

fn applied(
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    time: u8,
    force: bool,
) -> Result<Value, ApiError> {
    let configuration = Configuration { object: config, force, kind: "Service" };
    with(&writer(manager, time), |w| apply(live, &configuration, w))
}

fn updated(live: Option<&Value>, new: &Value, manager: &str, time: u8) -> Value {
    let (mut new, _) = codec::decode_value(new.clone(), service()).unwrap();
    // An object of which nobody owns anything is not tracked any more.
    new["metadata"]["annotations"] = json!({"made": "by"});
    with(&writer(manager, time), |w| track(live, &mut new, w));
    new
}

fn labels() -> impl Strategy<Value = Option<BTreeMap<String, String>>> {
    prop::option::of(prop::collection::btree_map("[a-d]", "[x-z]", 0..4))
}

/// Ports with different keys; some leave the protocol to its default.
fn ports() -> impl Strategy<Value = Option<Vec<Value>>> {
    let port = (1..5_i64, prop::option::of(prop_oneof![Just("TCP"), Just("UDP")]), prop::option::of("[a-c]"));
    prop::option::of(prop::collection::vec(port, 0..4).prop_map(|list| {
        let mut seen = Vec::new();
        let mut out = Vec::new();
        for (port, protocol, name) in list {
            if seen.contains(&(port, protocol.unwrap_or("TCP"))) {
                continue;
            }
            seen.push((port, protocol.unwrap_or("TCP")));
            let mut item = json!({"port": port});
            if let Some(protocol) = protocol {
                item["protocol"] = protocol.into();
            }
            if let Some(name) = name {
                item["name"] = name.into();
            }
            out.push(item);
        }
        out
    }))
}

fn config() -> impl Strategy<Value = Value> {
    let finalizers = prop::option::of(prop::collection::btree_set("e.com/[a-c]", 0..3));
    (labels(), finalizers, ports(), labels(), prop::option::of("[xy]"), prop::option::of(any::<bool>()))
        .prop_map(|(labels, finalizers, ports, selector, name, flag)| {
            let mut out =
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {}});
            let mut set = |pointer: &str, field: &str, value: Option<Value>| {
                if let Some(value) = value {
                    out.pointer_mut(pointer).unwrap()[field] = value;
                }
            };
            set("/metadata", "labels", labels.map(|l| json!(l)));
            set("/metadata", "finalizers", finalizers.map(|f| json!(f)));
            set("/spec", "ports", ports.map(Value::from));
            set("/spec", "selector", selector.map(|s| json!(s)));
            set("/spec", "externalName", name.map(Value::from));
            set("/spec", "publishNotReadyAddresses", flag.map(Value::from));
            out
        })
}

fn sets(object: &Value) -> BTreeMap<String, FieldSet> {
    managers::of(object).into_iter().map(|e| (format!("{:?}", e.id), e.set)).collect()
}

fn bare(object: &Value) -> Value {
    without_entries(object)
}

fn canonical(config: &Value) -> Value {
    codec::decode_value(config.clone(), service()).unwrap().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn applying_twice_is_applying_once(first in config(), mine in config()) {
        let live = updated(None, &first, "other", 1);
        let once = applied(Some(&live), &mine, "me", 2, true).unwrap();
        let mut twice = applied(Some(&once), &mine, "me", 3, false).unwrap();
        keep_times(&mut twice, &once);
        prop_assert_eq!(&once, &twice);
    }

    #[test]
    fn applying_nothing_gives_back_what_was_there(first in config(), mine in config()) {
        // What nobody had before goes with its only owner; what others own stays as the last writer left it.
        let none = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
        let live = applied(None, &first, "other", 1, false).unwrap();
        let Ok(both) = applied(Some(&live), &mine, "me", 2, false) else { return Ok(()) };
        let left = applied(Some(&both), &none, "me", 3, false).unwrap();
        // Only the order of items may be another.
        let difference = compare::compare(&bare(&left), &bare(&live), service());
        prop_assert!(difference.taken().is_empty() && difference.removed.is_empty(), "{:?}", difference);
        let (left, live) = (sets(&left), sets(&live));
        prop_assert!(left.iter().all(|(who, set)| live.get(who) == Some(set)), "{:?}\n{:?}", left, live);
    }

    #[test]
    fn a_forced_apply_says_what_was_applied(first in config(), mine in config()) {
        let live = updated(None, &first, "other", 1);
        let result = applied(Some(&live), &mine, "me", 2, true).unwrap();
        let mine = canonical(&mine);
        for field in ["selector", "externalName"] {
            if let Some(value) = mine["spec"].get(field) {
                prop_assert_eq!(&result["spec"][field], value);
            }
        }
        for (key, value) in mine["metadata"]["labels"].as_object().into_iter().flatten() {
            prop_assert_eq!(&result["metadata"]["labels"][key], value);
        }
        // Nobody else owns what the forced apply changed.
        let changed = compare::compare(&bare(&live), &bare(&result), service()).taken();
        for entry in managers::of(&result).iter().filter(|e| !e.applied()) {
            prop_assert!(entry.set.intersection(&changed).is_empty());
        }
    }

    #[test]
    fn an_apply_without_force_takes_nothing(first in config(), mine in config()) {
        let live = updated(None, &first, "other", 1);
        match applied(Some(&live), &mine, "me", 2, false) {
            Ok(result) => {
                let owned = &sets(&live)[&format!("{:?}", managers::of(&live)[0].id)];
                let changed = compare::compare(&bare(&live), &bare(&result), service());
                prop_assert!(owned.intersection(&changed.taken()).is_empty());
                prop_assert!(owned.intersection(&changed.removed).is_empty());
            }
            Err(error) => {
                prop_assert_eq!(error.code(), 409);
                prop_assert!(error.details().is_some_and(|d| !d.causes.is_empty()));
            }
        }
    }

    #[test]
    fn a_merge_is_idempotent_and_keeps_what_is_new(old in config(), new in config()) {
        let (old, new) = (canonical(&old), new);
        let once = merge::merge(&old, &new, service());
        prop_assert_eq!(&merge::merge(&once, &new, service()), &once);
        let difference = compare::compare(&canonical(&once), &once, service());
        prop_assert!(difference.modified.is_empty());
        // Every field of the new object is in the outcome.
        let missing = shape::field_set(&new, service()).difference(&shape::field_set(&once, service()));
        // An empty map adds nothing to one that is not.
        let maps = [".spec", ".spec.selector", ".metadata.labels"];
        prop_assert!(missing.paths().iter().all(|p| maps.contains(&p.as_str())), "{:?}", missing.paths());
    }

    #[test]
    fn equal_objects_do_not_differ(object in config()) {
        let object = canonical(&object);
        let difference = compare::compare(&object, &object, service());
        prop_assert!(difference.taken().is_empty() && difference.removed.is_empty());
    }

    #[test]
    fn differences_are_opposite(a in config(), b in config()) {
        let (a, b) = (canonical(&a), canonical(&b));
        let (there, back) = (compare::compare(&a, &b, service()), compare::compare(&b, &a, service()));
        prop_assert_eq!(&there.added, &back.removed);
        prop_assert_eq!(&there.removed, &back.added);
        prop_assert_eq!(&there.modified, &back.modified);
    }

    #[test]
    fn sets_survive_their_written_form(object in config()) {
        let set = shape::field_set(&object, service());
        prop_assert_eq!(FieldSet::from_value(&set.to_value()), Ok(set));
    }

    #[test]
    fn set_operations(a in config(), b in config()) {
        let (a, b) = (shape::field_set(&a, service()), shape::field_set(&b, service()));
        let both = a.intersection(&b);
        prop_assert_eq!(&a.difference(&b).union(&both), &a);
        prop_assert_eq!(&a.clone().union(&b), &b.clone().union(&a));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
    }

    #[test]
    fn every_update_has_an_owner_and_only_one(states in prop::collection::vec(config(), 2..14)) {
        let mut live = updated(None, &states[0], "m0", 0);
        for (i, state) in states.iter().enumerate().skip(1) {
            let before = live.clone();
            let name = format!("m{}", i % 13);
            live = updated(Some(&before), state, &name, u8::try_from(i).unwrap());
            let changed = stripped(compare::compare(&bare(&before), &bare(&live), service()).taken());
            let changed = changed.without(&[&["status"]]);
            let entries = managers::of(&live);
            for entry in &entries {
                let own = entry.id.manager == name || entry.id.manager == "ancient-changes";
                prop_assert!(own || entry.set.intersection(&changed).is_empty());
            }
            if !changed.is_empty() {
                let mine = entries.iter().find(|e| e.id.manager == name).map(|e| e.set.clone());
                let mine = mine.unwrap_or_default();
                let lost = changed.difference(&mine);
                prop_assert!(lost.is_empty(), "{:?}", lost.paths());
            }
            let updates = entries.iter().filter(|e| e.id.operation == Operation::Update).count();
            prop_assert!(updates <= 10, "{} entries", updates);
        }
    }

    #[test]
    fn an_equal_update_changes_nothing(first in config()) {
        let live = updated(None, &first, "one", 1);
        prop_assert_eq!(&updated(Some(&live), &live, "two", 2), &live);
    }
}
