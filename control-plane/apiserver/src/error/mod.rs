//! Errors of the API: upstream's `metav1.Status` for every reason, and the field errors of validation.

mod field;

pub use field::*;

use serde_json::{Map, Value, json};
use std::fmt;

/// An answer that says why a request was not served; rendered as a `v1.Status` object.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError(Box<Inner>);

#[derive(Debug, Clone, PartialEq)]
struct Inner {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Details>,
    continue_token: Option<String>,
}

/// The `details` of a Status: what the error is about.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Name of the object, empty when not known.
    pub name: String,
    /// API group of the kind.
    pub group: String,
    /// Resource (or kind, for `Invalid` and preconditions).
    pub kind: String,
    /// Single causes.
    pub causes: Vec<Cause>,
    /// Seconds after which the client may try again; 0 is not said.
    pub retry_after_seconds: u32,
}

/// One cause inside [`Details`].
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    /// Machine-readable reason, e.g. `FieldValueInvalid`.
    pub reason: String,
    /// Text.
    pub message: String,
    /// Field path, may be empty.
    pub field: String,
}

/// Group and resource of an error's subject, e.g. `deployments.apps`.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>, details: Option<Details>) -> Self {
        ApiError(Box::new(Inner { code, reason, message: message.into(), details, continue_token: None }))
    }

    fn about(group: &str, kind: &str, name: &str) -> Option<Details> {
        Some(Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() })
    }

    /// 404 `NotFound`: no object of this name.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(group, resource), quote(name));
        Self::new(404, "NotFound", message, Self::about(group, resource, name))
    }

    /// 404 `NotFound`: the path names no resource of this server.
    pub fn unknown_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(404, "NotFound", message, Some(Details::default()))
    }

    /// 409 `AlreadyExists`.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(group, resource), quote(name));
        Self::new(409, "AlreadyExists", message, Self::about(group, resource, name))
    }

    /// 409 `AlreadyExists` for a generated name that was taken each time.
    pub fn generate_name_conflict(group: &str, resource: &str, name: &str) -> Self {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            quote(name)
        );
        let mut details = Details { retry_after_seconds: 1, ..Details::default() };
        (details.name, details.group, details.kind) = (name.into(), group.into(), resource.into());
        Self::new(409, "AlreadyExists", message, Some(details))
    }

    /// 409 `Conflict` with the reason why.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, resource), quote(name));
        Self::new(409, "Conflict", message, Self::about(group, resource, name))
    }

    /// 409 `Conflict`: the object's resourceVersion is not the one the client saw.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 409 `Conflict` of server-side apply, with one cause a conflicting field.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::new(409, "Conflict", message, Some(Details { causes, ..Details::default() }))
    }

    /// 422 `Invalid`: the object breaks rules of its kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut seen = Vec::new();
        for error in errors {
            let text = error.to_string();
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        let all = if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) };
        let message = format!("{} {} is invalid: {all}", qualified(group, kind), quote(name));
        let mut details =
            Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() };
        details.causes = errors.iter().map(FieldError::cause).collect();
        Self::new(422, "Invalid", message, Some(details))
    }

    /// 422 `Invalid` as the generic answer to a patch that cannot be applied.
    pub fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(422, "Invalid", message, Some(Details::default()))
    }

    /// 400 `BadRequest`.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, None)
    }

    /// 403 `Forbidden` about an object: `pods "a" is forbidden: why`.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let subject = qualified(group, resource);
        let message = match (subject.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{subject} is forbidden: {why}"),
            (false, false) => format!("{subject} {} is forbidden: {why}", quote(name)),
        };
        Self::new(403, "Forbidden", message, Self::about(group, resource, name))
    }

    /// With words before the message.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        self.0.message.insert_str(0, prefix);
        self
    }

    /// Adds a cause, e.g. `NamespaceTerminating`.
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
        self.0.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Tells the client to come back after so many seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.0.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// 401 `Unauthorized`.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", None)
    }

    /// 405 `MethodNotAllowed`.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, Some(Details::default()))
    }

    /// 405 `MethodNotAllowed` of an object that exists but does not support the action.
    pub fn not_supported(group: &str, resource: &str, action: &str) -> Self {
        let message =
            format!("{action} is not supported on resources of kind {}", quote(&qualified(group, resource)));
        Self::new(405, "MethodNotAllowed", message, Self::about(group, resource, ""))
    }

    /// 406 `NotAcceptable`: no representation the client accepts.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message, None)
    }

    /// 406 `NotAcceptable` with its own words.
    pub fn not_acceptable_because(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message, None)
    }

    /// 415 `UnsupportedMediaType` for a request body.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message, None)
    }

    /// 415 for a patch type that the resource does not know.
    pub fn unsupported_patch_type() -> Self {
        Self::new(415, "UnsupportedMediaType", "415: Unsupported Media Type", Some(Details::default()))
    }

    /// 410 `Expired`: a resourceVersion or continue token that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message, None)
    }

    /// 410 `Expired` of a continue token, with a token that continues inconsistently.
    pub fn continue_expired(token: String) -> Self {
        let mut error = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a \
             new list without the continue parameter, or use the continue token in this response to retrieve \
             the remainder of the results. Continuing with the provided token results in an inconsistent \
             list - objects that were created, modified, or deleted between the time the first chunk was \
             returned and now may show up in the list.",
        );
        error.0.continue_token = Some(token);
        error
    }

    /// 410 `Gone`.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message, None)
    }

    /// 429 `TooManyRequests`; the client may retry after so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        let details = Details { retry_after_seconds: retry_after, ..Details::default() };
        Self::new(429, "TooManyRequests", message, Some(details))
    }

    /// 504 `Timeout`.
    pub fn timeout(message: impl fmt::Display, retry_after: u32) -> Self {
        let details = Details { retry_after_seconds: retry_after, ..Details::default() };
        Self::new(504, "Timeout", format!("Timeout: {message}"), Some(details))
    }

    /// 504 `Timeout`: the resourceVersion is newer than anything this server has seen.
    pub fn too_large_resource_version(wanted: i64, current: i64) -> Self {
        Self::timeout(format_args!("Too large resource version: {wanted}, current: {current}"), 1).with_cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// 500 `InternalError`.
    pub fn internal(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let cause = Cause { reason: String::new(), message: message.clone(), field: String::new() };
        let details = Details { causes: vec![cause], ..Details::default() };
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"), Some(details))
    }

    /// 500 without a reason, as upstream answers to some unparsable parameters.
    pub fn plain_internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message, None)
    }

    /// 503 `ServiceUnavailable`.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message, None)
    }

    /// 413 `RequestEntityTooLarge`; `limit` in bytes.
    pub fn request_too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message, None)
    }

    /// 413 `RequestEntityTooLarge` with its own words.
    pub fn request_too_large_because(why: &str) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {why}"), None)
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// Machine-readable reason.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// Text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the error is about.
    pub fn details(&self) -> Option<&Details> {
        self.0.details.as_ref()
    }

    /// Seconds for the `Retry-After` header, if any.
    pub fn retry_after(&self) -> Option<u32> {
        self.0.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
    }

    /// The Status object.
    pub fn to_status(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.0.continue_token {
            metadata.insert("continue".into(), token.as_str().into());
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.0.message, "code": self.0.code,
        });
        if !self.0.reason.is_empty() {
            status["reason"] = self.0.reason.into();
        }
        if let Some(details) = &self.0.details {
            status["details"] = details.to_value();
        }
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, value) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind)] {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), self.retry_after_seconds.into());
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, value) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !value.is_empty() {
                out.insert(key.into(), value.as_str().into());
            }
        }
        Value::Object(out)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl From<kelp_store::StoreError> for ApiError {
    fn from(error: kelp_store::StoreError) -> Self {
        use kelp_store::StoreError as E;
        match error {
            E::Compacted { .. } => ApiError::expired("The resourceVersion for the provided list is too old."),
            E::NoSpace { .. } | E::Closed => ApiError::service_unavailable(error.to_string()),
            other => ApiError::internal(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_every_cause_once_in_the_message() {
        let errors = [
            FieldError::required("spec.selector", ""),
            FieldError::invalid("spec.x", json!({"a": 1}), "no"),
            FieldError::required("spec.selector", ""),
        ];
        let status = ApiError::invalid("apps", "Deployment", "w", &errors).to_status();
        assert_eq!(
            status["message"],
            "Deployment.apps \"w\" is invalid: [spec.selector: Required value, spec.x: Invalid value: {\"a\":1}: no]"
        );
        assert_eq!(status["details"]["causes"].as_array().map(Vec::len), Some(3));
        assert_eq!(status["code"], 422);
    }

    #[test]
    fn subjects_are_qualified_by_group() {
        assert_eq!(ApiError::not_found("", "pods", "a").message(), "pods \"a\" not found");
        assert_eq!(
            ApiError::modified("apps", "deployments", "d").message(),
            "Operation cannot be fulfilled on deployments.apps \"d\": the object has been modified; please \
             apply your changes to the latest version and try again"
        );
        assert_eq!(ApiError::not_found("", "pods", "a").to_status()["metadata"], json!({}));
    }

    #[test]
    fn go_quoting() {
        assert_eq!(quote("a\"b\\\n\u{1}é"), "\"a\\\"b\\\\\\n\\x01é\"");
    }
}
