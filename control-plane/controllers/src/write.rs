//! Writing an object: only what changed, only over the version that was read.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kelp_model::controllers::merge::merge_diff;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result, ignore_not_found};

/// Name under which writes are recorded in `managedFields`.
pub const FIELD_MANAGER: &str = "kube-controller-manager";

/// Parameters of creations.
#[must_use]
pub fn post_params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

/// Parameters of patches.
#[must_use]
pub fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// The time now, in the API's resolution of a second.
#[must_use]
pub fn now() -> Time {
    Time(whole_seconds(Timestamp::now()))
}

fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// Writes the difference between `old` (as read) and `new`; nothing when there is none (then `None`).
///
/// # Errors
/// A conflict when the object is no longer the version `old`.
pub async fn update<K>(api: &Api<K>, old: &K, new: &K) -> Result<Option<K>>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    match difference(old, new, "status")? {
        None => Ok(None),
        Some(patch) => Ok(Some(api.patch(&old.name_any(), &patch_params(), &Patch::Merge(&patch)).await?)),
    }
}

/// The same for the status (and annotations, which the server takes along).
///
/// # Errors
/// A conflict when the object is no longer the version `old`.
pub async fn update_status<K>(api: &Api<K>, old: &K, new: &K) -> Result<Option<K>>
where
    K: Resource + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    match difference(old, new, "spec")? {
        None => Ok(None),
        Some(patch) => {
            Ok(Some(api.patch_status(&old.name_any(), &patch_params(), &Patch::Merge(&patch)).await?))
        }
    }
}

/// The merge patch from `old` to `new` without the field `except`, bound to the version and UID of `old`.
fn difference<K: Resource + Serialize>(old: &K, new: &K, except: &str) -> Result<Option<Value>> {
    let json =
        |k: &K| serde_json::to_value(k).map_err(|e| Error::Failed(format!("cannot write object: {e}")));
    let Some(mut patch) = merge_diff(&json(old)?, &json(new)?) else { return Ok(None) };
    let Some(object) = patch.as_object_mut() else { return Ok(None) };
    object.remove(except);
    if object.is_empty() {
        return Ok(None);
    }
    let meta = object.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(meta) = meta.as_object_mut() {
        let old = old.meta();
        for (key, value) in [("resourceVersion", &old.resource_version), ("uid", &old.uid)] {
            if let Some(value) = value {
                meta.insert(key.into(), value.as_str().into());
            }
        }
    }
    Ok(Some(patch))
}

/// Deletes exactly this object (not a later one of its name); fine when it is gone.
///
/// # Errors
/// Refusals other than "not found".
pub async fn delete<K>(api: &Api<K>, object: &K, policy: Option<PropagationPolicy>) -> Result<()>
where
    K: Resource + DeserializeOwned + Clone + std::fmt::Debug,
{
    let params = DeleteParams {
        propagation_policy: policy,
        preconditions: Some(Preconditions { uid: object.meta().uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    ignore_not_found(api.delete(&object.name_any(), &params).await)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_bound_to_the_version_read() {
        let rs = |v: Value| -> ReplicaSet { serde_json::from_value(v).unwrap() };
        let old = rs(json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": 1, "selector": {}}, "status": {"replicas": 1, "readyReplicas": 1}}));
        let mut new = old.clone();
        new.spec.as_mut().unwrap().replicas = Some(2);
        new.status.as_mut().unwrap().ready_replicas = None;
        let meta = json!({"resourceVersion": "7", "uid": "u"});
        assert_eq!(
            difference(&old, &new, "status").unwrap(),
            Some(json!({"metadata": meta, "spec": {"replicas": 2}}))
        );
        assert_eq!(
            difference(&old, &new, "spec").unwrap(),
            Some(json!({"metadata": meta, "status": {"readyReplicas": null}}))
        );
        new.status = old.status.clone();
        assert_eq!(difference(&old, &new, "spec").unwrap(), None);
    }
}
