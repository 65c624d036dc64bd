//! Keeps what depends on other objects true while the server runs: flow control's own objects and whether schemas name a level
//! that exists, ranges of service addresses and the objects of addresses. It waits for changes; nothing is polled.

use super::cluster;
use crate::cache::Filter;
use crate::error::ApiError;
use crate::handlers;
use crate::object::{finalizers, is_deleting, list_at, meta, meta_mut, str_at};
use crate::server::Core;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(20);
/// Pause after a failure, before the same is tried again.
const RETRY: Duration = Duration::from_secs(1);

const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// Runs until the server ends.
pub(super) fn start(core: &Arc<Core>) {
    let schemas = [(FLOW_CONTROL, "flowschemas"), (FLOW_CONTROL, "prioritylevelconfigurations")];
    let addresses = [(NETWORKING, "servicecidrs"), (NETWORKING, "ipaddresses")];
    spawn(core, schemas, |core| Box::pin(flows(core)));
    spawn(core, addresses, |core| Box::pin(ranges(core)));
}

type Reconcile = for<'a> fn(&'a Arc<Core>) -> BoxFuture<'a, Result<(), ApiError>>;

fn spawn(core: &Arc<Core>, kinds: [(&'static str, &'static str); 2], reconcile: Reconcile) {
    let core = core.clone();
    tokio::spawn(async move {
        let shutdown = core.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = keep(&core, &kinds, reconcile) => {}
        }
    });
}

async fn keep(core: &Arc<Core>, kinds: &[(&str, &str)], reconcile: Reconcile) {
    let mut changes: Vec<watch::Receiver<u64>> = kinds
        .iter()
        .filter_map(|(group, plural)| core.builtin.find(group, "v1", plural))
        .map(|row| core.cache(row).changes())
        .collect();
    loop {
        for change in &mut changes {
            change.mark_unchanged();
        }
        let pause = match reconcile(core).await {
            Ok(()) => {
                let any = changes.iter_mut().map(|change| Box::pin(change.changed()));
                if futures::future::select_all(any).await.0.is_err() {
                    return;
                }
                SETTLE
            }
            Err(error) => {
                tracing::warn!(%error, "cannot keep the server's own objects");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn flows(core: &Arc<Core>) -> Result<(), ApiError> {
    cluster::flow_control(core).await?;
    dangling(core).await
}

async fn all(core: &Core, group: &str, plural: &str) -> Result<Vec<Value>, ApiError> {
    let row = core.builtin.find(group, "v1", plural).ok_or_else(ApiError::unknown_resource)?;
    let cache = core.cache(row);
    cache.wait_fresh().await?;
    let entries = cache.snapshot(&Filter::default(), None).entries;
    Ok(entries.into_iter().map(|entry| entry.encoded.parse()).collect())
}

/// Writes; what somebody else changed in between is looked at again with their change.
async fn write(
    core: &Arc<Core>,
    plural: (&str, &str),
    subresource: &'static str,
    object: Value,
) -> Result<(), ApiError> {
    let (group, plural) = plural;
    match handlers::internal_part(core, "update", group, plural, subresource, object).await {
        Err(error) if matches!(error.code(), 404 | 409) => Ok(()),
        other => other,
    }
}

/// Says of every flow schema whether its level exists.
async fn dangling(core: &Arc<Core>) -> Result<(), ApiError> {
    let levels = all(core, FLOW_CONTROL, "prioritylevelconfigurations").await?;
    for schema in all(core, FLOW_CONTROL, "flowschemas").await? {
        let level = str_at(&schema, &["spec", "priorityLevelConfiguration", "name"]);
        let found = levels.iter().any(|l| meta(l, "name") == level);
        let (status, reason, rest) = match found {
            true => ("False", "Found", "and it exists"),
            false => ("True", "NotFound", "but there is no such object"),
        };
        let quoted = crate::error::quote(level);
        let message =
            format!("This FlowSchema references the PriorityLevelConfiguration object named {quoted} {rest}");
        let wanted = json!({"type": "Dangling", "status": status, "reason": reason, "message": message});
        if let Some(object) = with_condition(&schema, wanted) {
            write(core, (FLOW_CONTROL, "flowschemas"), "status", object).await?;
        }
    }
    Ok(())
}

/// The object with a condition; `None` when it has it already.
fn with_condition(object: &Value, mut wanted: Value) -> Option<Value> {
    let mut conditions = list_at(object, &["status", "conditions"]).to_vec();
    let place = conditions.iter().position(|c| c.get("type") == wanted.get("type"));
    let present = place.and_then(|i| conditions.get(i));
    let field = |value: &Value, name: &str| value.get(name).cloned().unwrap_or_default();
    let same = |name: &str| present.is_some_and(|p| field(p, name) == field(&wanted, name));
    if ["status", "reason", "message"].into_iter().all(same) {
        return None;
    }
    let since = match present.filter(|_| same("status")) {
        Some(present) => field(present, "lastTransitionTime"),
        None => crate::object::now().into(),
    };
    wanted["lastTransitionTime"] = since;
    match place {
        Some(i) => {
            if let Some(slot) = conditions.get_mut(i) {
                *slot = wanted;
            }
        }
        None => conditions.push(wanted),
    }
    let mut object = object.clone();
    object["status"]["conditions"] = conditions.into();
    Some(object)
}

/// Ranges of service addresses: new ones are protected and ready, those being deleted go when no address needs them.
async fn ranges(core: &Arc<Core>) -> Result<(), ApiError> {
    const RANGES: (&str, &str) = (NETWORKING, "servicecidrs");
    for object in core.lost_addresses().await? {
        handlers::internal(core, "create", NETWORKING, "ipaddresses", object)
            .await
            .or_else(|error| if error.code() == 409 { Ok(()) } else { Err(error) })?;
    }
    let objects = all(core, NETWORKING, RANGES.1).await?;
    let cidrs = |object: &Value| -> Vec<String> {
        let list = list_at(object, &["spec", "cidrs"]);
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let live: Vec<String> = objects.iter().filter(|o| !is_deleting(o)).flat_map(&cidrs).collect();
    core.use_service_ranges(&live).await?;
    if !objects.iter().any(|o| meta(o, "name") == cluster::DEFAULT_RANGE) {
        let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": cluster::DEFAULT_RANGE}, "spec": {"cidrs": core.service_ranges()}});
        super::ensure(core, NETWORKING, RANGES.1, range).await?;
    }
    for object in &objects {
        let protected = finalizers(object).any(|f| f == FINALIZER);
        let is_default = meta(object, "name") == cluster::DEFAULT_RANGE;
        let mut changed = object.clone();
        if !is_deleting(object) {
            if !protected {
                let mut all = list_at(object, &["metadata", "finalizers"]).to_vec();
                all.push(FINALIZER.into());
                meta_mut(&mut changed).insert("finalizers".into(), all.into());
                write(core, RANGES, "", changed).await?;
                continue;
            }
            let message = match is_default {
                true => "Kubernetes default Service CIDR is ready",
                false => "Kubernetes Service CIDR is ready",
            };
            let ready = json!({"type": "Ready", "status": "True", "reason": "", "message": message});
            if let Some(object) = with_condition(object, ready) {
                write(core, RANGES, "status", object).await?;
            }
            continue;
        }
        if !protected {
            continue;
        }
        if core.needs_service_ranges(&cidrs(object), &live).await? {
            let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or \
                           create a new ServiceCIDR";
            let ready =
                json!({"type": "Ready", "status": "False", "reason": "Terminating", "message": message});
            if let Some(object) = with_condition(object, ready) {
                write(core, RANGES, "status", object).await?;
            }
            continue;
        }
        let mut all = list_at(object, &["metadata", "finalizers"]).to_vec();
        all.retain(|f| f != FINALIZER);
        let all = (!all.is_empty()).then(|| Value::from(all));
        crate::object::set_or_remove(meta_mut(&mut changed), "finalizers", all);
        write(core, RANGES, "", changed).await?;
    }
    Ok(())
}
