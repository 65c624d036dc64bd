//! Slices of devices.

use kelp_model::names;
use serde_json::Value;
use std::collections::BTreeSet;

use super::{EFFECTS, at_most, pool_name, qualified, unique_names};
use crate::error::FieldError;
use crate::validation::storage::driver_name;
use crate::validation::{
    Errors, at, flag, immutable, int, invalid_each, list, map, one_of, selector, set, text,
};

const MAX_DEVICES: usize = 128;
/// Fewer devices when one of them has taints or counters.
const MAX_RICH_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_ATTRIBUTES: i64 = 32;
const MAX_VALUE: usize = 64;
const MAX_TAINTS: usize = 16;
/// Longest key of an attribute as paths show it: a domain, a slash and a name.
const MAX_KEY: usize = 63 + 1 + 32;

pub(super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    check(new, errs);
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    immutable(errs, "spec.pool.name", at(at(after, "pool"), "name"), at(at(before, "pool"), "name"));
    for field in ["driver", "nodeName"] {
        immutable(errs, &format!("spec.{field}"), at(after, field), at(before, field));
    }
}

pub(super) fn check(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    driver_name(text(spec, "driver"), "spec.driver", errs);
    let pool = at(spec, "pool");
    pool_name(text(pool, "name"), "spec.pool.name", errs);
    let count = int(pool, "resourceSliceCount").unwrap_or_default();
    if count <= 0 {
        errs.push(FieldError::invalid("spec.pool.resourceSliceCount", count, "must be greater than zero"));
    }
    let generation = int(pool, "generation").unwrap_or_default();
    if generation < 0 {
        let detail = "must be greater than or equal to zero";
        errs.push(FieldError::invalid("spec.pool.generation", generation, detail));
    }
    place(spec, errs);
    for (i, device) in list(spec, "devices").iter().enumerate() {
        one(device, &format!("spec.devices[{i}]"), errs);
    }
    let rich = |d: &Value| !list(d, "taints").is_empty() || !list(d, "consumesCounters").is_empty();
    let max = if list(spec, "devices").iter().any(rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    at_most(spec, "devices", "spec", max, errs);
    unique_names(spec, "devices", "spec", errs);
    at_most(spec, "sharedCounters", "spec", MAX_COUNTER_SETS, errs);
    let mut seen = BTreeSet::new();
    for (i, set) in list(spec, "sharedCounters").iter().enumerate() {
        let path = format!("spec.sharedCounters[{i}]");
        let name = text(set, "name");
        invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
        if map(set, "counters").next().is_none() {
            errs.push(FieldError::required(format!("{path}.counters"), ""));
        }
        if !seen.insert(name) {
            errs.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
}

/// Where the devices are: exactly one way to say it.
fn place(spec: &Value, errs: &mut Errors) {
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut given = Vec::new();
    if set(spec, "nodeName") {
        let name = text(spec, "nodeName");
        if name.is_empty() {
            let detail = "must be either unset or set to a non-empty string";
            errs.push(FieldError::invalid("spec.nodeName", name, detail));
        } else {
            given.push("`nodeName`");
            invalid_each(errs, "spec.nodeName", name, names::dns1123_subdomain(name));
        }
    }
    if set(spec, "nodeSelector") {
        given.push("`nodeSelector`");
        let selector = at(spec, "nodeSelector");
        selector::node_selector(selector, "spec.nodeSelector", errs);
        if list(selector, "nodeSelectorTerms").len() != 1 {
            let path = "spec.nodeSelector.nodeSelectorTerms";
            let detail = "must have exactly one node selector term";
            errs.push(FieldError::invalid(path, at(selector, "nodeSelectorTerms"), detail));
        }
    }
    for (field, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        if flag(spec, field) {
            given.push(shown);
        } else if set(spec, field) {
            let detail = "must be either unset or set to true";
            errs.push(FieldError::invalid(format!("spec.{field}"), at(spec, field), detail));
        }
    }
    match given.len() {
        0 => errs.push(FieldError::required("spec", ONE)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            errs.push(FieldError::invalid("spec", shown, format!("{ONE}, but multiple fields are set")));
        }
    }
}

fn shortened(key: &str) -> String {
    if key.len() <= MAX_KEY || !key.is_ascii() {
        return key.to_owned();
    }
    let rest = MAX_KEY - 3;
    let (head, tail) = (rest.div_ceil(2), rest / 2);
    format!("{}...{}", key.get(..head).unwrap_or_default(), key.get(key.len() - tail..).unwrap_or_default())
}

fn one(device: &Value, path: &str, errs: &mut Errors) {
    let name = text(device, "name");
    invalid_each(errs, &format!("{path}.name"), name, names::dns1123_label(name));
    for (key, value) in map(device, "attributes") {
        let path = format!("{path}.attributes[{}]", shortened(key));
        qualified(key, &path, errs);
        attribute(value, &path, errs);
    }
    for (key, _) in map(device, "capacity") {
        qualified(key, &format!("{path}.capacity[{}]", shortened(key)), errs);
    }
    let count = i64::try_from(map(device, "attributes").count() + map(device, "capacity").count());
    let count = count.unwrap_or(i64::MAX);
    if count > MAX_ATTRIBUTES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errs.push(FieldError::invalid(path, count, detail));
    }
    for (i, taint) in list(device, "taints").iter().enumerate() {
        let path = format!("{path}.taints[{i}]");
        let (key, value) = (text(taint, "key"), text(taint, "value"));
        invalid_each(errs, &format!("{path}.key"), key, names::qualified_name(key));
        if !value.is_empty() {
            invalid_each(errs, &format!("{path}.value"), value, names::label_value(value));
        }
        one_of(errs, &format!("{path}.effect"), text(taint, "effect"), &EFFECTS);
    }
    at_most(device, "taints", path, MAX_TAINTS, errs);
}

fn attribute(value: &Value, path: &str, errs: &mut Errors) {
    const ONE: &str = "exactly one value must be specified";
    if set(value, "string") && text(value, "string").len() > MAX_VALUE {
        errs.push(FieldError::too_long(format!("{path}.string"), MAX_VALUE));
    }
    if set(value, "version") {
        let version = text(value, "version");
        let path = format!("{path}.version");
        if !semantic_version(version) {
            let detail = "must be a string compatible with semver.org spec 2.0.0";
            errs.push(FieldError::invalid(path.as_str(), version, detail));
        }
        if version.len() > MAX_VALUE {
            errs.push(FieldError::too_long(path, MAX_VALUE));
        }
    }
    let fields = ["bool", "int", "string", "version", "bools", "ints", "strings", "versions"];
    match fields.into_iter().filter(|field| set(value, field)).count() {
        0 => errs.push(FieldError::required(path, ONE)),
        1 => {}
        _ => errs.push(FieldError::invalid(path, value, ONE)),
    }
}

/// Three numbers without leading zeros, an optional pre-release, an optional build.
fn semantic_version(version: &str) -> bool {
    let number =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let pre = |s: &str| word(s) && (number(s) || !s.bytes().all(|b| b.is_ascii_digit()));
    let (rest, build) = match version.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (version, None),
    };
    let (core, release) = match rest.split_once('-') {
        Some((core, release)) => (core, Some(release)),
        None => (rest, None),
    };
    core.split('.').count() == 3
        && core.split('.').all(number)
        && release.is_none_or(|r| r.split('.').all(pre))
        && build.is_none_or(|b| b.split('.').all(word))
}

#[cfg(test)]
mod tests {
    use super::semantic_version;

    #[test]
    fn versions() {
        for good in ["1.2.3", "0.0.0", "1.2.3-alpha.1", "1.2.3+b.5", "1.2.3-0a+x-y"] {
            assert!(semantic_version(good), "{good}");
        }
        for bad in ["1.2", "01.2.3", "1.2.3-01", "1.2.3-", "1.2.3+", "v1.2.3", "1.2.3.4", ""] {
            assert!(!semantic_version(bad), "{bad}");
        }
    }
}
