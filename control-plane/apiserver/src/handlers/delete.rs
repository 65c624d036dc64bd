//! delete and deletecollection.

use super::modify::{Change, Outcome, modify};
use super::{Context, Reply, lifecycle};
use crate::codec;
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::machinery::{self, FieldValidation};
use crate::object::{self, is_deleting, list_at, meta, meta_mut};
use crate::registry::{Grace, pod};
use crate::request::{DeleteOptions, ListOptions, Propagation, dry_run};
use crate::table::IncludeObject;
use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Deletions of a collection at one time.
const PARALLEL: usize = 16;

/// Options from the body and, where the body says nothing, the query.
pub(super) fn options(context: &Context) -> Result<DeleteOptions, ApiError> {
    let query = &context.query;
    let body = if context.body.is_empty() { json!({}) } else { body(context)? };
    let text = |name: &str| object::str_at(&body, &[name]).to_owned();
    let grace_period = object::int_at(&body, &["gracePeriodSeconds"]).or(query.int("gracePeriodSeconds")?);
    let policy = match text("propagationPolicy") {
        empty if empty.is_empty() => query.text("propagationPolicy").to_owned(),
        policy => policy,
    };
    let orphan = object::get(&body, &["orphanDependents"])
        .and_then(Value::as_bool)
        .or(query.get("orphanDependents").map(|_| query.flag("orphanDependents")));
    let propagation = match (policy.as_str(), orphan) {
        ("", None) => None,
        ("", Some(true)) => Some(Propagation::Orphan),
        ("", Some(false)) => Some(Propagation::Background),
        ("Background", None) => Some(Propagation::Background),
        ("Foreground", None) => Some(Propagation::Foreground),
        ("Orphan", None) => Some(Propagation::Orphan),
        (_, Some(_)) => {
            let error = crate::error::FieldError::invalid(
                "propagationPolicy",
                policy.as_str(),
                "orphanDependents and deletionPropagation cannot be both set",
            );
            return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
        (other, None) => {
            let error = crate::error::FieldError::not_supported(
                "propagationPolicy",
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            );
            return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
    };
    let in_body = list_at(&body, &["dryRun"]).iter().filter_map(Value::as_str);
    let dry = dry_run(query.all("dryRun").chain(in_body), "DeleteOptions")?;
    let precondition =
        |name: &str| object::get(&body, &["preconditions", name]).and_then(Value::as_str).map(str::to_owned);
    Ok(DeleteOptions {
        grace_period,
        propagation,
        uid: precondition("uid"),
        resource_version: precondition("resourceVersion"),
        dry_run: dry,
    })
}

fn body(context: &Context) -> Result<Value, ApiError> {
    let kind = GroupVersionKind::new("", "v1", "DeleteOptions");
    let media = context.content_type.as_deref().unwrap_or("application/json");
    if media.starts_with("application/json") {
        // Upstream decodes these options with another scheme, whose words differ.
        let value = codec::parse_json(&context.body).map_err(|why| {
            ApiError::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
        })?;
        let named = object::str_at(&value, &["kind"]);
        if !matches!(named, "" | "DeleteOptions") {
            return Err(ApiError::bad_request(format!(
                "no kind {} is registered for version {} in scheme \
                 \"pkg/apis/meta/internalversion/scheme/register.go:27\"",
                crate::error::quote(named),
                crate::error::quote(object::str_at(&value, &["apiVersion"]))
            )));
        }
    }
    Ok(machinery::decode(context.content_type.as_deref(), &context.body, &kind, FieldValidation::Ignore)?
        .object)
}

fn preconditions(context: &Context, options: &DeleteOptions, old: &Value) -> Result<(), ApiError> {
    let resource = &context.resource;
    let conflict = |why: String| ApiError::conflict(resource.group, resource.kind, meta(old, "name"), &why);
    if let Some(uid) = &options.uid
        && uid != meta(old, "uid")
    {
        return Err(conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have \
             been deleted and then recreated",
            meta(old, "uid")
        )));
    }
    if let Some(version) = &options.resource_version
        && version != meta(old, "resourceVersion")
    {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record \
             ({}). The object might have been modified",
            meta(old, "resourceVersion")
        )));
    }
    Ok(())
}

/// Sets the finalizers that a propagation policy asks for. Without one the object's own finalizers decide, and after
/// them the kind's default.
fn propagate(object: &mut Value, propagation: Option<Propagation>, orphan_by_default: bool) {
    let decided = object::finalizers(object).any(|f| f == FOREGROUND || f == ORPHAN);
    let default = (orphan_by_default && !decided).then_some(Propagation::Orphan);
    let Some(propagation) = propagation.or(default) else { return };
    let wanted = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let mut all: Vec<String> =
        object::finalizers(object).filter(|f| *f != FOREGROUND && *f != ORPHAN).map(str::to_owned).collect();
    all.extend(wanted.map(str::to_owned));
    let value = (!all.is_empty()).then(|| all.into());
    object::set_or_remove(meta_mut(object), "finalizers", value);
}

fn mark(object: &mut Value, grace: i64) {
    let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    let generation = object::int_at(object, &["metadata", "generation"]).unwrap_or_default();
    let metadata = meta_mut(object);
    metadata.insert("deletionTimestamp".into(), object::format_time(deadline).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if generation > 0 {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// What a deletion does to the object.
fn computed(context: &Context, options: &DeleteOptions, old: &Value) -> Result<Change, ApiError> {
    preconditions(context, options, old)?;
    crate::admission::node::delete(&context.user, &context.resource, old)?;
    let resource = &context.resource;
    let mut new = old.clone();
    if resource.kind == "Namespace" {
        return namespace(old, new);
    }
    propagate(&mut new, options.propagation, resource.strategy.orphan_dependents);
    let held = object::finalizers(&new).next().is_some();
    if resource.strategy.grace == Grace::Pod {
        let grace = pod::deletion_grace(old, options.grace_period);
        if is_deleting(old) {
            let present = object::int_at(old, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
            // A running deletion can be made shorter, never longer.
            if grace < present {
                let requested = old
                    .pointer("/metadata/deletionTimestamp")
                    .and_then(Value::as_str)
                    .and_then(|t| t.parse::<jiff::Timestamp>().ok())
                    .unwrap_or_else(jiff::Timestamp::now);
                let deadline = requested - jiff::SignedDuration::from_secs(present - grace);
                let metadata = meta_mut(&mut new);
                metadata.insert("deletionTimestamp".into(), object::format_time(deadline).into());
                metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            }
            let left = object::int_at(&new, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
            return Ok(if left == 0 && !held { Change::MarkThenRemove(new) } else { Change::Put(new) });
        }
        mark(&mut new, grace);
        return Ok(if grace == 0 && !held { Change::MarkThenRemove(new) } else { Change::Put(new) });
    }
    if !held {
        return Ok(Change::Remove(new));
    }
    if !is_deleting(old) {
        mark(&mut new, 0);
    }
    Ok(Change::Put(new))
}

/// The first deletion only marks: what the namespace holds has to go before it.
fn namespace(old: &Value, mut new: Value) -> Result<Change, ApiError> {
    if !is_deleting(old) {
        let metadata = meta_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), object::now().into());
        object::map_mut(&mut new, "status").insert("phase".into(), "Terminating".into());
        return Ok(Change::Mark(new));
    }
    let held = !list_at(old, &["spec", "finalizers"]).is_empty() || object::finalizers(old).next().is_some();
    Ok(if held { Change::Mark(new) } else { Change::Remove(new) })
}

/// Namespaces that a cluster cannot be without.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

async fn run(context: &Context, options: &DeleteOptions) -> Result<Outcome, ApiError> {
    if context.resource.kind == "Namespace" && IMMORTAL.contains(&context.info.name.as_str()) {
        let why = "this namespace may not be deleted";
        return Err(ApiError::forbidden("", "namespaces", &context.info.name, why));
    }
    modify(context, options.dry_run, |stored| computed(context, options, &stored.object)).await
}

pub(super) async fn delete(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = options(context)?;
    let warnings = orphan_warning(context, &options);
    Ok(delete_with(context, &options, accepted).await?.warn(warnings))
}

/// What a kind says to a deletion that lets it choose what becomes of the dependents.
fn orphan_warning(context: &Context, options: &DeleteOptions) -> Vec<String> {
    let silent = options.propagation.is_some();
    context.resource.strategy.orphan_warning.filter(|_| !silent).map(str::to_owned).into_iter().collect()
}

/// A deletion with given options, as eviction needs it too.
pub(super) async fn delete_with(
    context: &Context,
    options: &DeleteOptions,
    accepted: crate::request::Accepted,
) -> Result<Reply, ApiError> {
    let outcome = run(context, options).await?;
    if outcome.removed && !context.resource.strategy.delete_returns_object {
        return Ok(Reply::value(200, &lifecycle::success(context, &outcome.object), accepted));
    }
    Ok(Reply::of_value(200, &context.resource, &outcome.object, accepted, IncludeObject::default()))
}

/// Boxed, so that the stream of them has a type without lifetimes.
fn delete_one(context: Context, options: DeleteOptions) -> BoxFuture<'static, Result<(), ApiError>> {
    Box::pin(async move {
        match run(&context, &options).await {
            // Somebody else was faster.
            Err(error) if error.code() == 404 => Ok(()),
            other => other.map(|_| ()),
        }
    })
}

pub(super) async fn delete_collection(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(false)?;
    let delete_options = options(context)?;
    let warnings = orphan_warning(context, &delete_options);
    let options = ListOptions::parse(&context.query, false)?;
    let filter = context.filter(&options)?;
    let cache = context.cache();
    cache.wait_fresh().await?;
    let snapshot = cache.snapshot(&filter, None);
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let chosen: Vec<_> =
        snapshot.entries.into_iter().filter(|e| filter.matches(&context.resource, e)).take(limit).collect();
    let mut deletions = Vec::with_capacity(chosen.len());
    for entry in &chosen {
        let mut info = context.info.clone();
        info.name = entry.name().to_owned();
        info.namespace = entry.namespace().to_owned();
        let one = Context {
            core: context.core.clone(),
            info,
            query: context.query.clone(),
            accept: None,
            content_type: None,
            pretty: false,
            body: bytes::Bytes::new(),
            user: context.user.clone(),
            user_agent: context.user_agent.clone(),
            resource: Arc::clone(&context.resource),
        };
        deletions.push(delete_one(one, delete_options.clone()));
    }
    let results: Vec<Result<(), ApiError>> =
        futures::stream::iter(deletions).buffer_unordered(PARALLEL).collect().await;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    let metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    let list = super::list::concatenated(&context.resource, &metadata, chosen.iter().map(|e| &e.encoded));
    let value: Value = serde_json::from_slice(&list).map_err(ApiError::internal)?;
    Ok(Reply::value(200, &value, accepted).warn(warnings))
}
