//! Subresources that a node serves.

use super::{Context, Reply};
use crate::error::{ApiError, FieldError};
use crate::object::{meta, str_at};
use crate::storage;
use serde_json::Value;

/// The named object.
pub(super) async fn stored(context: &Context) -> Result<Value, ApiError> {
    let found = storage::read(&context.core.store, &context.resource, &context.key()).await?;
    found.map(|s| s.object).ok_or_else(|| context.not_found())
}

/// The container that a request means, or why it means none.
pub(super) fn container(asked: &str, pod: &Value) -> Result<String, ApiError> {
    let name = meta(pod, "name");
    let all = |field: &str| {
        crate::object::list_at(pod, &["spec", field]).iter().map(|c| str_at(c, &["name"])).collect::<Vec<_>>()
    };
    let (containers, init) = (all("containers"), all("initContainers"));
    if !asked.is_empty() {
        let known = [&containers, &init, &all("ephemeralContainers")].iter().any(|l| l.contains(&asked));
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    if let [only] = containers.as_slice() {
        return Ok((*only).to_owned());
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
    let tail = context.query.int("tailLines")?;
    if let Some(value) = tail.filter(|v| *v < 0) {
        errors.push(FieldError::invalid("tailLines", value, "must be greater than or equal to 0"));
    }
    if let Some(value) = context.query.int("limitBytes")?.filter(|v| *v < 1) {
        errors.push(FieldError::invalid("limitBytes", value, "must be greater than 0"));
    }
    let seconds = context.query.int("sinceSeconds")?;
    if seconds.is_some() && !context.query.text("sinceTime").is_empty() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden("", why));
    } else if let Some(value) = seconds.filter(|v| *v < 1) {
        errors.push(FieldError::invalid("sinceSeconds", value, "must be greater than 0"));
    }
    match context.query.text("stream") {
        "" | "All" => {}
        "Stdout" | "Stderr" if tail.is_some() => {
            let why = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden("tailLines", why));
        }
        "Stdout" | "Stderr" => {}
        other => errors.push(FieldError::not_supported("stream", other, &["All", "Stderr", "Stdout"])),
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("", "PodLogOptions", &context.info.name, &errors))
}

/// The log of a container, which the pod's node has.
pub(super) async fn log(context: &Context) -> Result<Reply, ApiError> {
    let pod = stored(context).await?;
    log_options(context)?;
    container(context.query.text("container"), &pod)?;
    if str_at(&pod, &["spec", "nodeName"]).is_empty() {
        // Nothing was written yet, and nothing will be said about it.
        return Ok(Reply::bytes(204, "", ""));
    }
    super::kubelet::log(context, &pod).await
}
