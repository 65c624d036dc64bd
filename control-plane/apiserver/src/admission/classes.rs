//! Classes that other objects refer to: how admission finds them, and what it fills in from the default ones.

use crate::cache::Filter;
use crate::error::ApiError;
use crate::object::{get, map_mut, meta, str_at};
use crate::server::Core;
use serde_json::Value;

/// An object without namespace by name. What the cache does not have yet, the store is asked for.
pub(super) async fn find(
    core: &Core,
    group: &str,
    plural: &str,
    name: &str,
) -> Result<Option<Value>, ApiError> {
    let Some(row) = core.builtin.find(group, "v1", plural) else { return Ok(None) };
    let cache = core.cache(row);
    cache.wait_loaded().await?;
    if let Some(entry) = cache.get("", name) {
        return Ok(Some(entry.encoded.parse()));
    }
    cache.wait_fresh().await?;
    Ok(cache.get("", name).map(|entry| entry.encoded.parse()))
}

/// All objects of a kind whose bytes contain a text: a cheap test before the object is parsed.
pub(super) async fn mentioning(
    core: &Core,
    group: &str,
    plural: &str,
    text: &str,
) -> Result<Vec<Value>, ApiError> {
    let Some(row) = core.builtin.find(group, "v1", plural) else { return Ok(Vec::new()) };
    let cache = core.cache(row);
    cache.wait_loaded().await?;
    let found = cache.snapshot(&Filter::default(), None).entries.into_iter().filter(|entry| {
        entry.encoded.full().windows(text.len().max(1)).any(|window| window == text.as_bytes())
    });
    Ok(found.map(|entry| entry.encoded.parse()).collect())
}

/// The newest of the classes that an annotation makes the default one; of equally old ones the first by name.
async fn default_class(
    core: &Core,
    group: &str,
    plural: &str,
    annotations: &[&str],
) -> Result<Option<String>, ApiError> {
    let classes = mentioning(core, group, plural, "is-default-class").await?;
    let is_default =
        |class: &Value| annotations.iter().any(|a| str_at(class, &["metadata", "annotations", a]) == "true");
    let mut defaults: Vec<&Value> = classes.iter().filter(|class| is_default(class)).collect();
    defaults.sort_by(|a, b| {
        let created = |class: &Value| meta(class, "creationTimestamp").to_owned();
        created(b).cmp(&created(a)).then_with(|| meta(a, "name").cmp(meta(b, "name")))
    });
    Ok(defaults.first().map(|class| meta(class, "name").to_owned()))
}

const STORAGE_CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// A claim that names no class gets the default one.
pub(super) async fn default_storage_class(core: &Core, claim: &mut Value) -> Result<(), ApiError> {
    let named = get(claim, &["spec", "storageClassName"]).is_some()
        || get(claim, &["metadata", "annotations", STORAGE_CLASS_ANNOTATION]).is_some();
    if named {
        return Ok(());
    }
    let annotations =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if let Some(name) = default_class(core, "storage.k8s.io", "storageclasses", &annotations).await? {
        map_mut(claim, "spec").insert("storageClassName".into(), name.into());
    }
    Ok(())
}

/// An Ingress that names no class, in the old way or the new one, gets the default one.
pub(super) async fn default_ingress_class(core: &Core, ingress: &mut Value) -> Result<(), ApiError> {
    let named = get(ingress, &["spec", "ingressClassName"]).is_some()
        || get(ingress, &["metadata", "annotations", "kubernetes.io/ingress.class"]).is_some();
    if named {
        return Ok(());
    }
    let annotations = ["ingressclass.kubernetes.io/is-default-class"];
    if let Some(name) = default_class(core, "networking.k8s.io", "ingressclasses", &annotations).await? {
        map_mut(ingress, "spec").insert("ingressClassName".into(), name.into());
    }
    Ok(())
}

fn class_of(claim: &Value) -> &str {
    match str_at(claim, &["metadata", "annotations", STORAGE_CLASS_ANNOTATION]) {
        "" => str_at(claim, &["spec", "storageClassName"]),
        class => class,
    }
}

/// A claim may grow when it is bound and its class allows it.
pub(super) async fn claim_growth(core: &Core, new: &Value, old: &Value) -> Result<(), ApiError> {
    use kelp_model::quantity::Quantity;
    let size = |claim: &Value| {
        let text = str_at(claim, &["spec", "resources", "requests", "storage"]);
        Quantity::parse(text).unwrap_or_else(|_| Quantity::from_milli(0))
    };
    if size(new) <= size(old) {
        return Ok(());
    }
    let refuse = |why: &str| Err(ApiError::forbidden("", "persistentvolumeclaims", meta(new, "name"), why));
    if str_at(old, &["status", "phase"]) != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let class = class_of(new);
    let growable = !class.is_empty()
        && class == class_of(old)
        && find(core, "storage.k8s.io", "storageclasses", class)
            .await?
            .is_some_and(|class| crate::object::bool_at(&class, &["allowVolumeExpansion"]));
    if growable {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}
