//! Subresources with an action of their own: binding, eviction, and what a node serves.

use super::modify::{Change, modify};
use super::{Context, Reply, delete, lifecycle};
use crate::error::{ApiError, FieldError};
use crate::gvk::GroupVersionKind;
use crate::machinery;
use crate::object::{meta, str_at};
use crate::registry::pod;
use crate::request::{DeleteOptions, WriteOptions};
use crate::storage;
use serde_json::{Value, json};

/// The named object.
pub(super) async fn stored(context: &Context) -> Result<Value, ApiError> {
    let found = storage::read(&context.core.store, &context.resource, &context.key()).await?;
    found.map(|s| s.object).ok_or_else(|| context.not_found())
}

/// POST to `bindings`: the pod is named by the body.
pub(super) async fn bind_named(mut context: Context) -> Result<Reply, ApiError> {
    let kind = GroupVersionKind::new("", "v1", "Binding");
    let ignore = machinery::FieldValidation::Ignore;
    let decoded = machinery::decode(context.content_type.as_deref(), &context.body, &kind, ignore)?;
    context.info.name = meta(&decoded.object, "name").to_owned();
    let pods = context.core.registry.find("", "v1", "pods").ok_or_else(ApiError::unknown_resource)?.clone();
    context.resource = pods;
    bind(&context).await
}

pub(super) async fn bind(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let WriteOptions { dry_run: dry, validation, .. } = WriteOptions::parse(&context.query, "CreateOptions")?;
    let kind = GroupVersionKind::new("", "v1", "Binding");
    let decoded = machinery::decode(context.content_type.as_deref(), &context.body, &kind, validation)?;
    let mut binding = decoded.object;
    let named = meta(&binding, "name");
    if !named.is_empty() && named != context.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    lifecycle::place(context, &mut binding)?;
    let mut errors = Vec::new();
    let target = str_at(&binding, &["target", "kind"]);
    if !target.is_empty() && target != "Node" {
        errors.push(FieldError::not_supported("target.kind", target, &["Node", "<empty>"]));
    }
    if str_at(&binding, &["target", "name"]).is_empty() {
        errors.push(FieldError::required("target.name", ""));
    }
    if !errors.is_empty() {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = if texts.len() == 1 { texts.concat() } else { format!("[{}]", texts.join(", ")) };
        return Err(ApiError::plain_internal(text));
    }
    modify(context, dry, |stored| {
        let conflict = |why: &str| ApiError::conflict("", "pods/binding", &context.info.name, why);
        let uid = meta(&binding, "uid");
        let present = meta(&stored.object, "uid");
        if !uid.is_empty() && uid != present {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {uid}, UID in object meta: {present}",
                context.key()
            );
            return Err(ApiError::conflict("", "pods", &context.info.name, &why));
        }
        let version = meta(&binding, "resourceVersion");
        if !version.is_empty() && version != meta(&stored.object, "resourceVersion") {
            return Err(conflict(&format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object \
                 meta: {}",
                meta(&stored.object, "resourceVersion")
            )));
        }
        pod::bind(&stored.object, &binding).map(Change::Put).map_err(|why| conflict(&why))
    })
    .await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(Reply::value(201, &status, accepted).warn(decoded.warnings))
}

pub(super) async fn evict(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let WriteOptions { dry_run: dry, validation, .. } = WriteOptions::parse(&context.query, "CreateOptions")?;
    let kind = GroupVersionKind::new("policy", "v1", "Eviction");
    let decoded = machinery::decode(context.content_type.as_deref(), &context.body, &kind, validation)?;
    let mut eviction = decoded.object;
    lifecycle::place(context, &mut eviction)?;
    let text = |path: &[&str]| match str_at(&eviction, path) {
        "" => None,
        text => Some(text.to_owned()),
    };
    let options = DeleteOptions {
        grace_period: crate::object::int_at(&eviction, &["deleteOptions", "gracePeriodSeconds"]),
        propagation: None,
        uid: text(&["deleteOptions", "preconditions", "uid"]),
        resource_version: text(&["deleteOptions", "preconditions", "resourceVersion"]),
        dry_run: dry,
    };
    delete::delete_with(context, &options, accepted).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(Reply::value(201, &status, accepted))
}

/// The container a log request means, or why it means none.
fn log_container(context: &Context, pod: &Value) -> Result<(), ApiError> {
    let name = meta(pod, "name");
    let all = |field: &str| {
        crate::object::list_at(pod, &["spec", field]).iter().map(|c| str_at(c, &["name"])).collect::<Vec<_>>()
    };
    let (containers, init) = (all("containers"), all("initContainers"));
    let asked = context.query.text("container");
    if !asked.is_empty() {
        let known = [&containers, &init, &all("ephemeralContainers")].iter().any(|l| l.contains(&asked));
        return if known {
            Ok(())
        } else {
            Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    if containers.len() == 1 {
        return Ok(());
    }
    let inits = if init.is_empty() {
        String::new()
    } else {
        format!(" or one of the init containers: [{}]", init.join(" "))
    };
    Err(ApiError::bad_request(format!(
        "a container name must be specified for pod {name}, choose one of: [{}]{inits}",
        containers.join(" ")
    )))
}

fn log_options(context: &Context) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = context.query.int(field)?.filter(|v| *v < least) {
            let text =
                if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(field, value, text));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("", "PodLogOptions", &context.info.name, &errors))
}

/// Streams and reports of a node: the object must exist; only logs are served yet.
pub(super) async fn connect(context: &Context) -> Result<Reply, ApiError> {
    let object = stored(context).await?;
    let unscheduled = context.resource.kind == "Pod" && str_at(&object, &["spec", "nodeName"]).is_empty();
    if context.info.subresource == "log" {
        log_options(context)?;
        log_container(context, &object)?;
        if unscheduled {
            // Nothing was written yet, and nothing will be said about it.
            return Ok(Reply::bytes(204, "", ""));
        }
    }
    if context.info.subresource == "log" && context.resource.kind == "Pod" {
        return super::kubelet::log(context, &object).await;
    }
    if unscheduled {
        return Err(ApiError::bad_request(format!(
            "pod {} does not have a host assigned",
            meta(&object, "name")
        )));
    }
    Err(ApiError::service_unavailable(format!(
        "{} of {} is not served by this server yet",
        context.info.subresource, context.resource.plural
    )))
}
