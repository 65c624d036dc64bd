//! Eviction: a deletion of a pod that its disruption budget may refuse.

use super::managed::Write;
use super::modify::{Change, modify};
use super::update::{Part, computed};
use super::{Context, Reply, binding, delete, lifecycle};
use crate::cache::Filter;
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::machinery::Model;
use crate::object::{self, get, int_at, is_deleting, list_at, meta, str_at};
use crate::registry::pod;
use crate::request::{DeleteOptions, RequestInfo, WriteOptions};
use crate::storage;
use kelp_model::selector::Selector;
use serde_json::{Value, json};

/// Attempts at a deletion that other writes of the pod overtake.
const ATTEMPTS: usize = 20;

/// A budget whose controller has not confirmed this many evictions allows no more.
const MAX_DISRUPTED: usize = 2000;

/// Seconds after which a client may ask again while the budget is being worked on.
const RETRY_AFTER: u32 = 10;

const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

pub(super) async fn evict(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let query = WriteOptions::parse(&context.query, "CreateOptions")?;
    let kind = GroupVersionKind::new("policy", "v1", "Eviction");
    let decoded = Model::BuiltIn(kind.clone()).decode(
        context.content_type.as_deref(),
        &context.body,
        query.validation,
    )?;
    let mut eviction = decoded.object;
    if meta(&eviction, "name") != context.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    lifecycle::place(context, &mut eviction)?;
    let options = delete_options(&eviction, &query)?;
    if !ignoring_budgets(context, &options).await? {
        within_budget(context, &options).await?;
    }
    Ok(binding::done(accepted).warn(decoded.warnings))
}

/// The options of the deletion; a dry run may be asked for in them or in the query.
fn delete_options(eviction: &Value, query: &WriteOptions) -> Result<DeleteOptions, ApiError> {
    let none = json!({});
    let mut options = delete::of_value(get(eviction, &["deleteOptions"]).unwrap_or(&none))?;
    options.dry_run |= query.dry_run;
    Ok(options)
}

async fn read(context: &Context) -> Result<Value, ApiError> {
    let found = storage::read(&context.core.store, &context.resource, &context.key()).await?;
    found.map(|stored| stored.object).ok_or_else(|| context.not_found())
}

fn has_ended(pod: &Value) -> bool {
    matches!(str_at(pod, &["status", "phase"]), "Succeeded" | "Failed") || is_deleting(pod)
}

/// Pods whose end disrupts nothing: they ended, go already, or have not begun.
fn counts_for_nothing(pod: &Value) -> bool {
    has_ended(pod) || str_at(pod, &["status", "phase"]) == "Pending"
}

/// Deletes a pod that no budget protects; `false` when budgets are to be asked.
async fn ignoring_budgets(context: &Context, options: &DeleteOptions) -> Result<bool, ApiError> {
    for attempt in 1.. {
        let pod = read(context).await?;
        if !counts_for_nothing(&pod) {
            return Ok(false);
        }
        let mut own = options.clone();
        if !has_ended(&pod) && own.resource_version.is_none() {
            // A pod that begins to run meanwhile is another matter.
            own.resource_version = Some(meta(&pod, "resourceVersion").to_owned());
        }
        match remove(context, own).await {
            Err(error) if is_conflict(&error) && options.resource_version.is_none() && attempt < ATTEMPTS => {
            }
            other => return other.map(|()| true),
        }
    }
    Ok(false)
}

fn is_conflict(error: &ApiError) -> bool {
    error.reason() == "Conflict"
}

/// Deletes a pod if its budget, when it has one, allows it.
async fn within_budget(context: &Context, options: &DeleteOptions) -> Result<(), ApiError> {
    let pod = read(context).await?;
    let budgets = budgets(context, &pod).await?;
    if budgets.len() > 1 {
        return Err(ApiError::plain_internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let mut own = options.clone();
    let mut unhealthy = None;
    if let Some(budget) = budgets.first() {
        let name = meta(budget, "name");
        if !is_ready(&pod) && lets_unhealthy_go(budget) {
            // It is not counted; it must not become healthy before it goes.
            unhealthy = Some(name);
            own.resource_version.get_or_insert_with(|| meta(&pod, "resourceVersion").to_owned());
        } else {
            take(context, name, options.dry_run).await?;
        }
    }
    match remove(context, own).await {
        Err(error) if is_conflict(&error) && options.resource_version.is_none() => {
            Err(unhealthy.map_or(error, still_processed))
        }
        other => other,
    }
}

/// The budgets that select a pod. A budget that selects everything selects nothing.
async fn budgets(context: &Context, pod: &Value) -> Result<Vec<Value>, ApiError> {
    let labels = get(pod, &["metadata", "labels"]).and_then(Value::as_object);
    let Some(labels) = labels.filter(|l| !l.is_empty()) else { return Ok(Vec::new()) };
    let labels: std::collections::BTreeMap<String, String> =
        labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect();
    let Some(row) = context.core.builtin.find("policy", "v1", "poddisruptionbudgets") else {
        return Ok(Vec::new());
    };
    let cache = context.core.cache(row);
    cache.wait_fresh().await?;
    let filter = Filter { namespace: context.namespace().to_owned(), ..Filter::default() };
    let all = cache.snapshot(&filter, None).entries;
    let all = all.iter().map(|entry| entry.encoded.parse());
    let selects = |budget: &Value| {
        let selector = Selector::from_label_selector_value(budget.pointer("/spec/selector"));
        selector.is_ok_and(|s| !s.is_everything() && s.matches(&labels))
    };
    Ok(all.filter(selects).collect())
}

fn is_ready(pod: &Value) -> bool {
    list_at(pod, &["status", "conditions"])
        .iter()
        .any(|c| str_at(c, &["type"]) == "Ready" && str_at(c, &["status"]) == "True")
}

/// Whether an unready pod may go without being counted.
fn lets_unhealthy_go(budget: &Value) -> bool {
    let count = |name: &str| int_at(budget, &["status", name]).unwrap_or_default();
    str_at(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (count("currentHealthy") >= count("desiredHealthy") && count("desiredHealthy") > 0)
}

fn still_processed(budget: &str) -> ApiError {
    let cause = format!("The disruption budget {budget} is still being processed by the server.");
    ApiError::too_many_requests(REFUSED, RETRY_AFTER).with_cause("DisruptionBudget", &cause, "")
}

/// Counts an eviction on a budget.
async fn take(context: &Context, budget: &str, dry: bool) -> Result<(), ApiError> {
    let row = context.core.builtin.find("policy", "v1", "poddisruptionbudgets");
    let resource = row.ok_or_else(ApiError::unknown_resource)?.clone();
    let own = Context {
        info: RequestInfo {
            is_resource: true,
            verb: "update",
            group: "policy".to_owned(),
            version: "v1".to_owned(),
            resource: resource.plural().to_owned(),
            subresource: "status".to_owned(),
            namespace: context.namespace().to_owned(),
            name: budget.to_owned(),
            ..RequestInfo::default()
        },
        ..Context::as_server(&context.core, resource)
    };
    let options = WriteOptions::default();
    let write = Write::of(&own, &options, "status");
    let pod = &context.info.name;
    modify(&own, dry, |stored| {
        let new = counted(&stored.object, pod)?;
        Ok(Change::Put(computed(&own, Part::Status, new, stored, Some(&write))?))
    })
    .await
    .map(|_| ())
}

/// The budget after one more eviction, or why there is none.
fn counted(budget: &Value, pod: &str) -> Result<Value, ApiError> {
    let name = meta(budget, "name");
    let count = |field: &str| int_at(budget, &["status", field]).unwrap_or_default();
    if count("observedGeneration") < int_at(budget, &["metadata", "generation"]).unwrap_or_default() {
        return Err(still_processed(name));
    }
    let forbidden = |why: &str| Err(ApiError::forbidden("policy", "poddisruptionbudget", name, why));
    let allowed = count("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = get(budget, &["status", "disruptedPods"]).and_then(Value::as_object);
    if disrupted.is_some_and(|d| d.len() > MAX_DISRUPTED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let failed = list_at(budget, &["status", "conditions"]).iter().find(|c| {
            let text = |field: &str| str_at(c, &[field]);
            text("type") == "DisruptionAllowed" && text("status") == "False" && text("reason") == "SyncFailed"
        });
        let cause = match failed {
            Some(condition) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                str_at(condition, &["message"])
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                count("desiredHealthy"),
                count("currentHealthy")
            ),
        };
        return Err(ApiError::too_many_requests(REFUSED, 0).with_cause("DisruptionBudget", &cause, ""));
    }
    let mut new = budget.clone();
    let observed = count("observedGeneration");
    let status = object::map_mut(&mut new, "status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    if allowed == 1 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods",
            "message": "", "observedGeneration": observed});
        pod::set_condition(status, condition);
    }
    let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    disrupted[pod] = object::now().into();
    Ok(new)
}

/// Says on the pod why it goes, then deletes it.
async fn remove(context: &Context, mut options: DeleteOptions) -> Result<(), ApiError> {
    if !options.dry_run {
        let marked = modify(context, false, |stored| {
            delete::preconditions(context, &options, &stored.object)?;
            let mut new = stored.object.clone();
            let condition = json!({"type": "DisruptionTarget", "status": "True",
                "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting", "lastProbeTime": null});
            pod::set_condition(object::map_mut(&mut new, "status"), condition);
            Ok(Change::Put(new))
        })
        .await?;
        if options.resource_version.is_some() {
            options.resource_version = Some(marked.revision.to_string());
        }
    }
    delete::run(context, &options).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 1}, "spec": {},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 3,
                "desiredHealthy": 2, "conditions": [{"type": "DisruptionAllowed", "status": "True",
                    "reason": "SufficientPods", "message": "", "observedGeneration": 1}]}})
    }

    #[test]
    fn an_eviction_is_counted_until_none_is_allowed() {
        let once = counted(&budget(2), "p").expect("allowed");
        assert_eq!(once["status"]["disruptionsAllowed"], 1);
        assert_eq!(once["status"]["conditions"][0]["status"], "True");
        let twice = counted(&once, "q").expect("allowed");
        assert_eq!(twice["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(twice["status"]["disruptedPods"].as_object().map(|d| d.len()), Some(2));
        let error = counted(&twice, "r").expect_err("refused");
        assert_eq!((error.code(), error.retry_after()), (429, None));
        let causes = error.details().map(|d| d.causes.clone()).unwrap_or_default();
        assert_eq!(causes[0].message, "The disruption budget b needs 2 healthy pods and has 3 currently");
    }

    #[test]
    fn budgets_that_are_not_ready_refuse() {
        let mut stale = budget(2);
        stale["metadata"]["generation"] = 2.into();
        assert_eq!(counted(&stale, "p").map_err(|e| e.retry_after()), Err(Some(RETRY_AFTER)));
        assert_eq!(counted(&budget(-1), "p").map_err(|e| e.code()), Err(403));
    }
}
