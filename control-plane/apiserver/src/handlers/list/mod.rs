//! list: from the cache by concatenating bytes, at the newest or an earlier revision; what the cache has forgotten comes
//! from the store.

mod render;
mod token;

use super::get::include;
use super::{Context, Reply};
use crate::cache::{Entry, Filter, Slice, Wanted, selected};
use crate::error::ApiError;
use crate::object::Encoded;
use crate::request::{ListOptions, VersionMatch, resource_version};
use crate::storage;
use kelp_store::{RangeRequest, StoreError};
use render::ListMeta;
use serde_json::Value;
use std::sync::Arc;
use token::Token;

/// Keys read from the store in one go when a selector leaves fewer than are asked for.
const CHUNK: usize = 500;

pub(super) async fn list(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(false)?;
    let options = ListOptions::parse(&context.query, false)?;
    let filter = context.filter(&options)?;
    let slice = page(context, &options, &filter).await?;
    let include = include(context, accepted)?;
    let next = slice.next.map(|start| Token { revision: slice.revision, start }.render());
    let meta = ListMeta { revision: slice.revision, next, remaining: slice.remaining };
    Ok(render::list(&context.resource, &meta, slice.entries, accepted, include))
}

/// Everything before the first item.
fn head(resource: &crate::registry::Resource, metadata: &Value) -> Vec<u8> {
    format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.list_kind(),
        resource.api_version()
    )
    .into_bytes()
}

/// The bytes of a list.
pub(super) fn concatenated<'a>(
    resource: &crate::registry::Resource,
    metadata: &Value,
    items: impl Iterator<Item = &'a Encoded> + Clone,
) -> Vec<u8> {
    let size: usize = items.clone().map(|e| e.full().len()).sum();
    let mut out = Vec::with_capacity(size + 256);
    out.extend_from_slice(&head(resource, metadata));
    for (index, item) in items.enumerate() {
        append(&mut out, resource, item, index == 0);
    }
    out.extend_from_slice(b"]}\n");
    out
}

/// Lists of custom resources say that they do not go on, too.
pub(super) fn end_of(metadata: &mut Value) {
    if let Some(map) = metadata.as_object_mut() {
        map.entry("continue").or_insert_with(|| "".into());
    }
}

/// Appends an item. Those of custom resources say what they are.
fn append(out: &mut Vec<u8>, resource: &crate::registry::Resource, item: &Encoded, first: bool) {
    if resource.custom.is_some() {
        out.extend_from_slice(if first { b"" } else { b"," });
        out.extend_from_slice(item.full());
    } else {
        out.extend_from_slice(if first { b"{" } else { b",{" });
        out.extend_from_slice(item.item_tail());
    }
}

/// What a list shows, by its options; the cases are those of upstream's cache (`storage/cacher/delegator`).
async fn page(context: &Context, options: &ListOptions, filter: &Filter) -> Result<Slice, ApiError> {
    let cache = context.cache();
    let newest = |start: Option<&str>, limit| {
        let wanted = Wanted { start, limit, count: true, ..Wanted::default() };
        cache.slice(filter, &wanted).ok_or_else(|| ApiError::internal("the cache has no newest revision"))
    };
    if !options.continue_token.is_empty() {
        let token = Token::parse(&options.continue_token)?;
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        if token.revision > 0 {
            return match at(context, options, filter, token.revision, Some(&token.start)).await {
                Err(error) if error.code() == 410 => {
                    Err(ApiError::continue_expired(Token { revision: -1, start: token.start }.render()))
                }
                other => other,
            };
        }
        cache.wait_fresh().await?;
        return newest(Some(&token.start), options.limit);
    }
    let wanted = resource_version(&options.resource_version)
        .map_err(|error| ApiError::bad_request(format!("invalid resource version: {error}")))?;
    match (options.version_match, options.resource_version.as_str()) {
        (Some(VersionMatch::Exact), _) => at(context, options, filter, wanted, None).await,
        (_, "0") => {
            cache.wait_loaded().await?;
            // Upstream ignores the limit here and answers with everything it has.
            newest(None, 0)
        }
        (None, version) if !version.is_empty() && options.limit > 0 => {
            // A first page at a version is that of exactly this version.
            at(context, options, filter, wanted, None).await
        }
        (_, version) if !version.is_empty() => {
            cache.wait_for(wanted).await?;
            newest(None, options.limit)
        }
        _ => {
            cache.wait_fresh().await?;
            newest(None, options.limit)
        }
    }
}

/// The objects at exactly this revision.
async fn at(
    context: &Context,
    options: &ListOptions,
    filter: &Filter,
    revision: i64,
    start: Option<&str>,
) -> Result<Slice, ApiError> {
    let cache = context.cache();
    cache.wait_for(revision).await?;
    let present = revision >= cache.revision();
    if !present && storage::compacted(&context.core.store, revision).await?.is_some() {
        return Err(ApiError::expired("The resourceVersion for the provided list is too old."));
    }
    let wanted = Wanted { revision: Some(revision), start, limit: options.limit, count: true };
    match cache.slice(filter, &wanted) {
        Some(slice) => Ok(slice),
        None => from_store(context, options.limit, filter, revision, start).await,
    }
}

/// The same out of the store, which remembers more than the cache.
async fn from_store(
    context: &Context,
    limit: usize,
    filter: &Filter,
    revision: i64,
    start: Option<&str>,
) -> Result<Slice, ApiError> {
    let resource = &context.resource;
    let prefix = resource.prefix(&filter.namespace);
    let mut request = RangeRequest::prefix(prefix.clone());
    request.key = format!("{prefix}{}", start.unwrap_or_default()).into();
    request.revision = revision;
    request.limit = match limit {
        0 => 0,
        _ if filter.selects() => limit.max(CHUNK),
        _ => limit,
    };
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    loop {
        let answer = context.core.store.range(request.clone()).await.map_err(|error| match error {
            StoreError::FutureRevision { revision: current } => {
                ApiError::too_large_resource_version(revision, current)
            }
            other => other.into(),
        })?;
        let after = answer.count.saturating_sub(answer.kvs.len());
        if let Some(last) = answer.kvs.last() {
            request.key = [&last.key, &b"\0"[..]].concat().into();
        }
        entries.extend(answer.kvs.iter().filter_map(|kv| {
            let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(&*resource.storage_prefix)?;
            let encoded = crate::cache::served(resource, &kv.value, kv.mod_revision)?;
            Some(Arc::new(Entry::new(resource, key, encoded)))
        }));
        let slice = selected(resource, filter, limit, entries, after, revision);
        if !answer.more || limit == 0 || slice.entries.len() >= limit {
            return Ok(slice);
        }
        // Too few were selected: what was, stays, and the next keys are looked at.
        entries = slice.entries;
    }
}
