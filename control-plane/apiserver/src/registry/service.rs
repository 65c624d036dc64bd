//! Hooks of services; addresses and ports are in `crate::allocation`.

use crate::object::{list_at, str_at};
use serde_json::Value;

/// What a service says that has no effect, or will have none one day.
pub(super) fn warnings(object: &Value) -> Vec<String> {
    let spec = |field: &str| str_at(object, &["spec", field]);
    let mut out = Vec::new();
    if !list_at(object, &["spec", "externalIPs"]).is_empty() {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if !spec("externalName").is_empty() && spec("type") != "ExternalName" {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if spec("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}
