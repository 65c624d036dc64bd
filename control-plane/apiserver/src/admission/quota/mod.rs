//! ResourceQuota: the last check before a write. What an object uses is counted on the status of every quota that is
//! about it, in one transaction that fails when a quota was changed meanwhile: concurrent writes cannot exceed a quota.

use crate::cache::Filter;
use crate::error::ApiError;
use crate::object::{get, meta};
use crate::registry::Resource;
use crate::server::Core;
use crate::storage::{self, Stored};
use kelp_model::quantity::Quantity;
use kelp_model::quota::Evaluator;
use kelp_model::quota::amounts::{Amounts, add, amounts};
use kelp_store::{Compare, Op, TxnRequest};
use serde_json::Value;

/// Attempts of a count that others overtake.
const ATTEMPTS: usize = 32;

/// A write whose use is counted.
pub(super) struct Request<'a> {
    pub(super) resource: &'a Resource,
    pub(super) subresource: &'a str,
    pub(super) object: &'a Value,
    /// The stored object, at an update.
    pub(super) old: Option<&'a Value>,
    pub(super) dry: bool,
}

/// Checks the quotas of the object's namespace, and counts the object unless it is a dry run.
pub(super) async fn charge(core: &Core, request: &Request<'_>) -> Result<(), ApiError> {
    let resource = request.resource;
    if !resource.namespaced {
        return Ok(());
    }
    let Some(evaluator) = Evaluator::of(resource.group(), resource.plural()) else { return Ok(()) };
    if !evaluator.handles(request.subresource, request.object, request.old) {
        return Ok(());
    }
    let Some(row) = core.builtin.find("", "v1", "resourcequotas") else { return Ok(()) };
    let namespace = meta(request.object, "namespace");
    let cache = core.cache(row);
    cache.wait_loaded().await?;
    let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
    let names: Vec<String> =
        cache.snapshot(&filter, None).entries.iter().map(|entry| entry.name().to_owned()).collect();
    if names.is_empty() {
        return Ok(());
    }
    for _ in 0..ATTEMPTS {
        let mut quotas: Vec<Stored> = Vec::with_capacity(names.len());
        for name in &names {
            quotas.extend(storage::read(&core.store, row, &row.key(namespace, name)).await?);
        }
        let mut txn = TxnRequest { compares: Vec::new(), then: Vec::new(), or_else: Vec::new() };
        for (index, used) in counted(&evaluator, request, &quotas)? {
            let Some(stored) = quotas.get(index) else { continue };
            let key = row.key(namespace, meta(&stored.object, "name"));
            let mut object = stored.object.clone();
            object["status"]["used"] =
                used.iter().map(|(name, q)| (name.clone(), Value::from(q.to_string()))).collect();
            crate::handlers::track_own(&core.builtin, row, "status", &stored.object, &mut object)?;
            txn.compares.push(Compare::mod_revision(key.clone(), stored.revision));
            txn.then.push(Op::Put {
                key: key.into(),
                value: storage::to_stored(row, &object)?.into(),
                lease: 0,
            });
        }
        if request.dry || txn.then.is_empty() || core.store.txn(txn).await?.succeeded {
            return Ok(());
        }
    }
    Err(ApiError::modified("", "resourcequotas", names.first().map_or("", String::as_str)))
}

/// The use of every quota that the write changes, by the quota's place.
fn counted(
    evaluator: &Evaluator,
    request: &Request<'_>,
    quotas: &[Stored],
) -> Result<Vec<(usize, Amounts)>, ApiError> {
    let (resource, object) = (request.resource, request.object);
    let refuse =
        |why: &str| ApiError::forbidden(resource.group(), resource.plural(), meta(object, "name"), why);
    let now = jiff::Timestamp::now().as_second();
    let matches = |quota: &Value, object: &Value| {
        names_of(evaluator, quota).next().is_some() && evaluator.in_scopes(quota, object)
    };
    let mut concerned = Vec::new();
    for (index, quota) in quotas.iter().enumerate().map(|(i, q)| (i, &q.object)) {
        if !matches(quota, object) {
            continue;
        }
        let name = meta(quota, "name");
        let names: Vec<&str> = names_of(evaluator, quota).collect();
        if let Some(why) = evaluator.missing(&names, object) {
            return Err(refuse(&format!("failed quota: {name}: {why}")));
        }
        if names.iter().any(|n| get(quota, &["status", "used", n]).is_none()) {
            return Err(refuse(&format!("status unknown for quota: {name}, resources: {}", sorted(names))));
        }
        concerned.push((index, quota));
    }
    let usage = evaluator.usage(object, now);
    let negative: Vec<&str> = usage.iter().filter(|(_, q)| q.signum() < 0).map(|(n, _)| n.as_str()).collect();
    if !negative.is_empty() {
        return Err(refuse(&format!("quota usage is negative for resource(s): {}", sorted(negative))));
    }
    let more = request.old.map(|old| increase(&usage, &evaluator.usage(old, now)));
    let mut changed = Vec::new();
    for (index, quota) in concerned {
        let charged = match (request.old, &more) {
            (Some(old), Some(more)) if matches(quota, old) => more,
            _ => &usage,
        };
        let hard = amounts(get(quota, &["status", "hard"]));
        let asked: Amounts = charged
            .iter()
            .filter(|(name, q)| !q.is_zero() && hard.contains_key(*name))
            .map(|(name, q)| (name.clone(), *q))
            .collect();
        if asked.is_empty() {
            continue;
        }
        let used = amounts(get(quota, &["status", "used"]));
        let mut total = used.clone();
        add(&mut total, &asked);
        if request.subresource != "status" {
            let exceeded: Vec<&String> = asked
                .keys()
                .filter(|name| total.get(*name).zip(hard.get(*name)).is_some_and(|(t, h)| t > h))
                .collect();
            if !exceeded.is_empty() {
                return Err(refuse(&format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    meta(quota, "name"),
                    listed(&asked, &exceeded),
                    listed(&used, &exceeded),
                    listed(&hard, &exceeded)
                )));
            }
        }
        changed.push((index, total));
    }
    Ok(changed)
}

/// The resources of a quota that objects of the kind count for.
fn names_of<'a>(evaluator: &'a Evaluator, quota: &'a Value) -> impl Iterator<Item = &'a str> {
    let hard = get(quota, &["status", "hard"]).and_then(Value::as_object).into_iter().flatten();
    hard.map(|(name, _)| name.as_str()).filter(move |name| evaluator.counts(name))
}

/// What is used more than before.
fn increase(now: &Amounts, before: &Amounts) -> Amounts {
    now.iter()
        .map(|(name, q)| {
            let more = before.get(name).map_or(*q, |b| *q - *b);
            (name.clone(), if more.signum() < 0 { Quantity::ZERO } else { more })
        })
        .collect()
}

fn sorted(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.join(",")
}

fn listed(all: &Amounts, names: &[&String]) -> String {
    all.iter()
        .filter(|(name, _)| names.contains(name))
        .map(|(name, q)| format!("{name}={q}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests;
