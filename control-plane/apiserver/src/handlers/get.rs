//! get.

use super::{Context, Reply};
use crate::error::ApiError;
use crate::storage;
use crate::table::IncludeObject;

/// `includeObject` of a request.
pub(super) fn include(context: &Context) -> Result<IncludeObject, ApiError> {
    IncludeObject::parse(context.query.text("includeObject")).ok_or_else(|| {
        ApiError::bad_request(
            "unrecognized includeObject value: expected one of \"\", \"None\", \"Metadata\", \"Object\"",
        )
    })
}

/// A resourceVersion parameter; a malformed one is a 500 as upstream answers.
pub(super) fn version(text: &str) -> Result<i64, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse::<i64>().ok().filter(|v| *v >= 0).ok_or_else(|| {
        ApiError::plain_internal(format!(
            "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
            crate::error::quote(text)
        ))
    })
}

pub(super) async fn get(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let wanted = version(context.query.text("resourceVersion"))?;
    let include = include(context)?;
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
