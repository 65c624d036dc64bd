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
