//! get.

use super::{Context, Reply};
use crate::error::{ApiError, FieldError};
use crate::request::{Accepted, View, resource_version};
use crate::storage;
use crate::table::IncludeObject;

/// `includeObject` of a request for a Table; others do not look at it.
pub(super) fn include(context: &Context, accepted: Accepted) -> Result<IncludeObject, ApiError> {
    if !matches!(accepted.view, View::Table(_)) {
        return Ok(IncludeObject::default());
    }
    let text = context.query.text("includeObject");
    IncludeObject::parse(text).ok_or_else(|| {
        let why = "must be 'Metadata', 'Object', 'None', or empty";
        let error = FieldError::invalid("includeObject", text, why);
        ApiError::bad_request(format!("Unable to convert to Table as requested: {error}"))
    })
}

/// A resourceVersion parameter; a malformed one is a 500 as upstream answers.
pub(super) fn version(text: &str) -> Result<i64, ApiError> {
    resource_version(text).map_err(ApiError::plain_internal)
}

pub(super) async fn get(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let wanted = version(context.query.text("resourceVersion"))?;
    let include = include(context, accepted)?;
    let store = &context.core.store;
    if wanted > store.revision() {
        context.cache().wait_for(wanted).await?;
    }
    let cache = context.cache();
    let found = if cache.is_current() {
        cache.get(context.namespace(), &context.info.name).map(|entry| entry.encoded.clone())
    } else {
        storage::read_encoded(store, &context.resource, &context.key()).await?
    };
    let encoded = found.ok_or_else(|| context.not_found())?;
    Ok(Reply::object(200, &context.resource, &encoded, accepted, include))
}
