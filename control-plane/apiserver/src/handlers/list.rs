//! list: from the cache by concatenating bytes, or from the store at an older revision.

use super::get::{include, version};
use super::{Context, Reply};
use crate::cache::{Entry, Filter};
use crate::error::ApiError;
use crate::object::Encoded;
use crate::request::{Accepted, Format, ListOptions, VersionMatch, View};
use crate::table;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use kelp_store::{RangeRequest, StoreError};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Base64 of tokens, as lenient as Go's.
const ENCODING: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// One page of a list.
struct Page {
    entries: Vec<Arc<Entry>>,
    revision: i64,
    /// Where the next page begins, relative to the namespace.
    next: Option<String>,
    remaining: Option<usize>,
}

/// Where a list goes on: revision (negative: the newest) and first key.
struct Token {
    revision: i64,
    start: String,
}

impl Token {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let bad = |why: &str| {
            ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = ENCODING
            .decode(text.trim_end_matches('='))
            .map_err(|_| bad("illegal base64 data at input byte 0"))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().copied().unwrap_or_default() as char;
            bad(&format!("invalid character '{first}' looking for beginning of value"))
        })?;
        if crate::object::str_at(&value, &["v"]) != "meta.k8s.io/v1" {
            let version = crate::object::str_at(&value, &["v"]);
            return Err(bad(&format!(
                "server does not recognize this encoded version {}",
                crate::error::quote(version)
            )));
        }
        let revision = crate::object::int_at(&value, &["rv"]).unwrap_or_default();
        if revision == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        let start = crate::object::str_at(&value, &["start"]).to_owned();
        if start.is_empty() {
            return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(Token { revision, start })
    }

    fn render(&self) -> String {
        let value = json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start});
        ENCODING.encode(value.to_string())
    }
}

pub(super) async fn list(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted_list(false)?;
    let include = include(context)?;
    let options = ListOptions::parse(&context.query, false)?;
    let filter = context.filter(&options)?;
    let page = page(context, &options, &filter).await?;
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if let Some(start) = page.next {
        metadata.insert("continue".into(), Token { revision: page.revision, start }.render().into());
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    let metadata = Value::Object(metadata);
    let resource = &context.resource;
    let encoded = || page.entries.iter().map(|e| &e.encoded);
    Ok(match accepted {
        Accepted { format: Format::Json, view: View::Object, pretty: false } => {
            Reply::bytes(200, "application/json", concatenated(resource, &metadata, encoded()))
        }
        Accepted { view: View::Table(version), .. } => {
            let all: Vec<Encoded> = encoded().cloned().collect();
            Reply::value(200, &table::table(resource.table, metadata, &all, include, version, true), accepted)
        }
        Accepted { view: View::Partial(version), .. } => {
            let items: Vec<Value> = encoded().map(|e| table::partial(&e.parse(), version)).collect();
            let items = if items.is_empty() { Value::Null } else { items.into() };
            let list = json!({"kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata, "items": items});
            Reply::value(200, &list, accepted)
        }
        Accepted { view: View::Object, .. } => {
            let list: Value =
                serde_json::from_slice(&concatenated(resource, &metadata, encoded())).unwrap_or_default();
            Reply::value(200, &list, accepted)
        }
    })
}

/// The bytes of a list.
pub(super) fn concatenated<'a>(
    resource: &crate::registry::Resource,
    metadata: &Value,
    items: impl Iterator<Item = &'a Encoded> + Clone,
) -> Vec<u8> {
    let size: usize = items.clone().map(|e| e.full().len()).sum();
    let mut out = Vec::with_capacity(size + 256);
    out.extend_from_slice(
        format!(
            "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
            resource.list_kind(),
            resource.api_version()
        )
        .as_bytes(),
    );
    for (index, item) in items.enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        out.extend_from_slice(item.item_tail());
    }
    out.extend_from_slice(b"]}\n");
    out
}

async fn page(context: &Context, options: &ListOptions, filter: &Filter) -> Result<Page, ApiError> {
    let cache = context.cache();
    if !options.continue_token.is_empty() {
        let token = Token::parse(&options.continue_token)?;
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        if token.revision > 0 {
            return match from_store(context, options, filter, token.revision, Some(&token.start)).await {
                Err(error) if error.code() == 410 => {
                    Err(ApiError::continue_expired(Token { revision: -1, start: token.start }.render()))
                }
                other => other,
            };
        }
        cache.wait_fresh().await?;
        return Ok(from_cache(context, options, filter, Some(&token.start)));
    }
    let wanted = version(&options.resource_version).map_err(|error| {
        if options.version_match.is_some() {
            ApiError::bad_request(format!("invalid resource version: {error}"))
        } else {
            error
        }
    })?;
    match (options.version_match, options.resource_version.as_str()) {
        (Some(VersionMatch::Exact), _) => {
            if wanted > context.core.store.revision() {
                return Err(ApiError::too_large_resource_version(wanted, context.core.store.revision()));
            }
            from_store(context, options, filter, wanted, None).await
        }
        (_, "0") => {
            cache.wait_loaded().await?;
            // Upstream ignores the limit here and answers with everything it has.
            let all = ListOptions { limit: 0, ..options.clone() };
            Ok(from_cache(context, &all, filter, None))
        }
        (None, version) if !version.is_empty() && options.limit > 0 => {
            // A first page at a version is that of exactly this version.
            cache.wait_for(wanted).await?;
            from_store(context, options, filter, wanted, None).await
        }
        (_, version) if !version.is_empty() => {
            cache.wait_for(wanted).await?;
            Ok(from_cache(context, options, filter, None))
        }
        _ => {
            cache.wait_fresh().await?;
            Ok(from_cache(context, options, filter, None))
        }
    }
}

fn from_cache(context: &Context, options: &ListOptions, filter: &Filter, start: Option<&str>) -> Page {
    let snapshot = context.cache().snapshot(filter, start);
    cut(context, options, filter, snapshot.entries, snapshot.revision)
}

/// Applies filter and limit.
fn cut(
    context: &Context,
    options: &ListOptions,
    filter: &Filter,
    entries: Vec<Arc<Entry>>,
    revision: i64,
) -> Page {
    let total = entries.len();
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut selected = Vec::with_capacity(total.min(limit));
    let mut seen = 0;
    for entry in entries {
        if selected.len() == limit {
            break;
        }
        seen += 1;
        if filter.matches(&context.resource, &entry) {
            selected.push(entry);
        }
    }
    let next = (seen < total).then(|| {
        let last = selected.last().map(|e: &Arc<Entry>| e.key.to_string()).unwrap_or_default();
        let prefix =
            if filter.namespace.is_empty() { String::new() } else { format!("{}/", filter.namespace) };
        format!("{}\0", last.strip_prefix(&prefix).unwrap_or(&last))
    });
    let remaining = (next.is_some() && !filter.selects()).then(|| total - seen);
    Page { entries: selected, revision, next, remaining }
}

async fn from_store(
    context: &Context,
    options: &ListOptions,
    filter: &Filter,
    revision: i64,
    start: Option<&str>,
) -> Result<Page, ApiError> {
    let prefix = context.resource.prefix(&filter.namespace);
    let mut request = RangeRequest::prefix(prefix.clone());
    if let Some(start) = start {
        request.key = format!("{prefix}{start}").into();
    }
    request.revision = revision;
    let answer = context.core.store.range(request).await.map_err(|error| match error {
        StoreError::FutureRevision { revision: current } => {
            ApiError::too_large_resource_version(revision, current)
        }
        other => other.into(),
    })?;
    let entries = answer
        .kvs
        .iter()
        .filter_map(|kv| {
            let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(context.resource.storage_prefix)?;
            let encoded = crate::cache::served(&context.resource, &kv.value, kv.mod_revision)?;
            Some(Arc::new(Entry::new(&context.resource, key, encoded)))
        })
        .collect();
    Ok(cut(context, options, filter, entries, revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_survive_the_way_there_and_back(revision in 1i64.., start in "[a-z/]{1,20}") {
            let token = Token::parse(&Token { revision, start: start.clone() }.render()).expect("own token");
            prop_assert_eq!((token.revision, token.start), (revision, start));
        }

        #[test]
        fn no_token_panics(text in ".{0,40}") {
            let _ = Token::parse(&text);
        }
    }

    #[test]
    fn foreign_token() {
        let error = Token::parse("zzz").err().expect("bad");
        assert_eq!(
            error.message(),
            "invalid continue token: continue key is not valid: invalid character 'Ï' looking for beginning of value"
        );
    }
}
