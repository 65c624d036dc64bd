//! delete and deletecollection.

mod options;

use super::modify::{Change, Outcome, modify};
use super::{Context, Reply, lifecycle};
use crate::custom;
use crate::error::ApiError;
use crate::object::{self, is_deleting, list_at, meta, meta_mut};
use crate::registry::{Grace, pod};
use crate::request::{DeleteOptions, ListOptions, Propagation};
use crate::table::IncludeObject;
use futures::StreamExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) use options::of_value;

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Deletions of a collection at one time.
const PARALLEL: usize = 16;

/// Checks the UID and the version that the deletion is about.
pub(super) fn preconditions(context: &Context, options: &DeleteOptions, old: &Value) -> Result<(), ApiError> {
    let resource = &context.resource;
    if resource.group() == custom::GROUP && resource.plural() == custom::DEFINITIONS {
        return custom::preconditions(options.uid.as_deref(), options.resource_version.as_deref(), old);
    }
    let conflict =
        |why: String| ApiError::conflict(resource.group(), resource.kind(), meta(old, "name"), &why);
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

fn bump_generation(metadata: &mut serde_json::Map<String, Value>) {
    let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or_default();
    if generation > 0 {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

fn deletion_time(object: &Value) -> Option<jiff::Timestamp> {
    meta(object, "deletionTimestamp").parse().ok()
}

fn deletion_grace(object: &Value) -> i64 {
    // A negative period means one second.
    let present = object::int_at(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or_default();
    if present < 0 { 1 } else { present }
}

fn set_deletion(object: &mut Value, time: jiff::Timestamp, grace: i64) {
    let metadata = meta_mut(object);
    metadata.insert("deletionTimestamp".into(), object::format_time(time).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

/// What a deletion with a period of grace does.
enum Graceful {
    /// It begins, or ends sooner than it would have: the object was changed.
    Begun(i64),
    /// It runs already, and goes on.
    Running,
    /// There is none, or no time is left.
    No,
}

/// Begins the graceful deletion of an object that has one.
fn graceful(new: &mut Value, old: &Value, asked: Option<i64>) -> Graceful {
    let now = jiff::Timestamp::now();
    if !is_deleting(old) {
        let grace = pod::deletion_grace(old, asked);
        set_deletion(new, now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now), grace);
        bump_generation(meta_mut(new));
        return Graceful::Begun(grace);
    }
    let present = deletion_grace(old);
    if present == 0 {
        return Graceful::No;
    }
    match asked.map(|grace| if grace < 0 { 1 } else { grace }) {
        // A running deletion can be made shorter, never longer.
        Some(grace) if grace < present => {
            let deadline = deletion_time(old).unwrap_or(now);
            let sooner = jiff::SignedDuration::from_secs(present - grace);
            set_deletion(new, deadline.saturating_sub(sooner).unwrap_or(deadline), grace);
            Graceful::Begun(grace)
        }
        _ => Graceful::Running,
    }
}

/// What a deletion does to the object.
fn computed(context: &Context, options: &DeleteOptions, old: &Value) -> Result<Change, ApiError> {
    preconditions(context, options, old)?;
    crate::admission::node::delete(&context.user, &context.resource, &context.info.subresource, old)?;
    let resource = &context.resource;
    let mut new = old.clone();
    if resource.kind() == "Namespace" {
        if !is_deleting(old) {
            return Ok(Change::Mark(terminating(new, options)));
        }
        if !list_at(old, &["spec", "finalizers"]).is_empty() {
            return Ok(Change::Mark(new));
        }
    }
    if custom::is_definition(resource) && !is_deleting(old) {
        return Ok(Change::Mark(custom::deleted(new)));
    }
    let grace = match resource.strategy.grace {
        Grace::Pod => graceful(&mut new, old, options.grace_period),
        Grace::None => Graceful::No,
    };
    if matches!(grace, Graceful::Running) {
        // Not even its finalizers change any more.
        return Ok(Change::Put(old.clone()));
    }
    propagate(&mut new, options.propagation, resource.strategy.orphan_dependents);
    let held = object::finalizers(&new).next().is_some();
    Ok(match grace {
        Graceful::Begun(0) if !held => Change::MarkThenRemove(new),
        Graceful::Begun(_) => Change::Put(new),
        _ if !held => Change::Remove(new),
        _ => {
            let now = jiff::Timestamp::now();
            if !is_deleting(old) {
                bump_generation(meta_mut(&mut new));
            }
            set_deletion(&mut new, deletion_time(old).filter(|t| *t <= now).unwrap_or(now), 0);
            Change::Put(new)
        }
    })
}

/// The first deletion of a namespace only marks it: what it holds has to go before it.
fn terminating(mut new: Value, options: &DeleteOptions) -> Value {
    let orphan = options.propagation.map(|p| p == Propagation::Orphan);
    let foreground = match options.orphan_dependents {
        Some(orphan) => Some(!orphan),
        None => options.propagation.map(|p| p == Propagation::Foreground),
    };
    let mut finalizers: Vec<String> = object::finalizers(&new).map(str::to_owned).collect();
    for (name, wanted) in [(ORPHAN, orphan), (FOREGROUND, foreground)] {
        let has = finalizers.iter().any(|f| f == name);
        match wanted {
            Some(true) if !has => finalizers.push(name.to_owned()),
            Some(false) => finalizers.retain(|f| f != name),
            _ => {}
        }
    }
    let metadata = meta_mut(&mut new);
    metadata.insert("deletionTimestamp".into(), object::now().into());
    let finalizers = (!finalizers.is_empty()).then(|| finalizers.into());
    object::set_or_remove(metadata, "finalizers", finalizers);
    object::map_mut(&mut new, "status").insert("phase".into(), "Terminating".into());
    new
}

/// Namespaces that a cluster cannot be without.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Deletes the named object.
pub(super) async fn run(context: &Context, options: &DeleteOptions) -> Result<Outcome, ApiError> {
    if context.resource.kind() == "Namespace" && IMMORTAL.contains(&context.info.name.as_str()) {
        let why = "this namespace may not be deleted";
        return Err(ApiError::forbidden("", "namespaces", &context.info.name, why));
    }
    let outcome =
        modify(context, options.dry_run, |stored| computed(context, options, &stored.object)).await?;
    if custom::is_definition(&context.resource) && !options.dry_run {
        // Who was told that a definition goes can create nothing of it.
        context.core.served().close(&outcome.object);
    }
    Ok(outcome)
}

pub(super) async fn delete(context: &Context) -> Result<Reply, ApiError> {
    let name = context.info.name.as_str();
    let system = crate::validation::SYSTEM_CLASSES.iter().any(|(class, _)| *class == name);
    if context.resource.kind() == "PriorityClass" && system {
        let why = "this is a system priority class and cannot be deleted";
        return Err(ApiError::forbidden(context.resource.group(), context.resource.plural(), name, why));
    }
    let accepted = context.accepted()?;
    let options = options::of_request(context)?;
    let warnings = orphan_warning(context, &options);
    let outcome = run(context, &options).await?;
    if outcome.removed && !context.resource.strategy.delete_returns_object {
        let status = lifecycle::success(context, &outcome.object);
        return Ok(Reply::value(200, &status, accepted).warn(warnings));
    }
    // Who asks with the old option for the dependents to go is told that they have not gone yet.
    let code = if !outcome.removed && options.orphan_dependents == Some(false) { 202 } else { 200 };
    let include = IncludeObject::default();
    Ok(Reply::of_value(code, &context.resource, &outcome.object, accepted, include).warn(warnings))
}

/// What a kind says to a deletion that lets it choose what becomes of the dependents.
fn orphan_warning(context: &Context, options: &DeleteOptions) -> Vec<String> {
    let silent = options.propagation.is_some();
    context.resource.strategy.orphan_warning.filter(|_| !silent).map(str::to_owned).into_iter().collect()
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
    let delete_options = options::of_request(context)?;
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
            seat: parking_lot::Mutex::new(None),
            cache: Arc::clone(&context.cache),
        };
        deletions.push(delete_one(one, delete_options.clone()));
    }
    let results: Vec<Result<(), ApiError>> =
        futures::stream::iter(deletions).buffer_unordered(PARALLEL).collect().await;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
    if context.resource.custom.is_some() {
        super::list::end_of(&mut metadata);
    }
    let list = super::list::concatenated(&context.resource, &metadata, chosen.iter().map(|e| &e.encoded));
    let value: Value = serde_json::from_slice(&list).map_err(ApiError::internal)?;
    Ok(Reply::value(200, &value, accepted).warn(warnings))
}
