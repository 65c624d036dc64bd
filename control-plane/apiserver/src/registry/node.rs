//! Hooks of nodes.

use crate::object::{list_at, map_mut, str_at};
use serde_json::{Value, json};

/// `spec.podCIDR` is the first of `spec.podCIDRs`; where they differ the older field counts.
pub(crate) fn align_cidrs(object: &mut Value) {
    let single = str_at(object, &["spec", "podCIDR"]).to_owned();
    let first = list_at(object, &["spec", "podCIDRs"]).first().and_then(Value::as_str).map(str::to_owned);
    match (single.is_empty(), first) {
        (true, Some(first)) => {
            map_mut(object, "spec").insert("podCIDR".into(), first.into());
        }
        (false, first) if first.as_ref() != Some(&single) => {
            map_mut(object, "spec").insert("podCIDRs".into(), json!([single]));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_field_sets_the_other() {
        let align = |spec: Value| {
            let mut node = json!({"spec": spec});
            align_cidrs(&mut node);
            node["spec"].take()
        };
        let both = json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]});
        assert_eq!(align(json!({"podCIDR": "10.0.0.0/24"})), both);
        assert_eq!(align(json!({"podCIDRs": ["10.0.0.0/24"]})), both);
        assert_eq!(align(json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.1.0/24", "fd00::/64"]})), both);
        let dual = json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"]});
        assert_eq!(align(dual.clone()), dual);
        assert_eq!(align(json!({})), json!({}));
    }
}
