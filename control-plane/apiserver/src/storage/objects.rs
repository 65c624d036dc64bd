//! Reading and writing single objects.

use super::StoreHandle;
use crate::error::ApiError;
use crate::object::{self, Encoded};
use crate::registry::Resource;
use kelp_store::{Compare, KeyValue, Op, OpResult, RangeRequest, StoreError, TxnRequest};
use serde_json::Value;

/// An object with its revision; the value carries it as resourceVersion.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The object in the served form.
    pub object: Value,
    /// Revision.
    pub revision: i64,
    /// Bytes as stored.
    raw: bytes::Bytes,
}

/// What is written in the same transaction as an object.
#[derive(Debug, Default)]
pub struct Also {
    /// What has to hold besides.
    pub compares: Vec<Compare>,
    /// What is written besides.
    pub ops: Vec<Op>,
}

/// Result of a conditional write.
pub enum Written {
    /// Done; revision of the write.
    Done(i64),
    /// The object was at another revision: its present state, `None` when it does not exist.
    Conflict(Option<Stored>),
}

/// The value as it is stored.
pub fn to_stored(resource: &Resource, object: &Value) -> Result<Vec<u8>, ApiError> {
    if let Some(custom) = &resource.custom {
        return custom.to_stored(object);
    }
    Ok(match &resource.stored_as {
        None => object::encode(&resource.head(), object),
        Some(form) => {
            let mut object = object.clone();
            (form.encode)(&mut object);
            object::encode(&object::head(form.kind, form.api_version), &object)
        }
    })
}

fn stored(resource: &Resource, kv: KeyValue) -> Result<Stored, ApiError> {
    let damaged = || {
        let key = String::from_utf8_lossy(&kv.key).into_owned();
        ApiError::internal(format!("the stored value of {key} is no JSON object"))
    };
    let mut value: Value = serde_json::from_slice(&kv.value).map_err(|_| damaged())?;
    if !value.is_object() {
        return Err(damaged());
    }
    if let Some(custom) = &resource.custom {
        custom.read(&mut value)?;
    }
    if let Some(form) = &resource.stored_as {
        (form.decode)(&mut value);
    }
    value["kind"] = resource.kind().into();
    value["apiVersion"] = resource.api_version().into();
    object::meta_mut(&mut value).insert("resourceVersion".into(), kv.mod_revision.to_string().into());
    Ok(Stored { object: value, revision: kv.mod_revision, raw: kv.value })
}

/// Reads an object.
pub async fn read(store: &StoreHandle, resource: &Resource, key: &str) -> Result<Option<Stored>, ApiError> {
    let answer = store.range(RangeRequest::key(key.to_owned())).await?;
    answer.kvs.into_iter().next().map(|kv| stored(resource, kv)).transpose()
}

/// Reads an object as served bytes.
pub async fn read_encoded(
    store: &StoreHandle,
    resource: &Resource,
    key: &str,
) -> Result<Option<Encoded>, ApiError> {
    let answer = store.range(RangeRequest::key(key.to_owned())).await?;
    Ok(answer.kvs.first().and_then(|kv| crate::cache::served(resource, &kv.value, kv.mod_revision)))
}

impl Stored {
    /// An object as if it had been read.
    #[cfg(test)]
    pub(crate) fn for_test(object: Value, revision: i64) -> Self {
        Stored { object, revision, raw: bytes::Bytes::new() }
    }

    /// Whether writing the object would change nothing.
    pub fn is_same(&self, bytes: &[u8]) -> bool {
        self.raw == bytes
    }
}

/// The oldest revision that is kept, if `revision` is older. What was compacted away is expired for clients, whatever the
/// cache still knows: the next server would not know it.
pub async fn compacted(store: &StoreHandle, revision: i64) -> Result<Option<i64>, ApiError> {
    let mut request = RangeRequest::key("/registry/health");
    (request.revision, request.count_only) = (revision, true);
    match store.range(request).await {
        Err(StoreError::Compacted { compact_revision }) => Ok(Some(compact_revision)),
        Err(StoreError::FutureRevision { .. }) | Ok(_) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn conditional(
    store: &StoreHandle,
    resource: &Resource,
    key: &str,
    expected: i64,
    then: Op,
    also: Also,
) -> Result<Written, ApiError> {
    let mut compares = vec![Compare::mod_revision(key.to_owned(), expected)];
    let more = !also.compares.is_empty();
    compares.extend(also.compares);
    let mut ops = vec![then];
    ops.extend(also.ops);
    let answer =
        store.txn(TxnRequest { compares, then: ops, or_else: vec![Op::get(key.to_owned())] }).await?;
    if answer.succeeded {
        return Ok(Written::Done(answer.revision));
    }
    let present = match answer.results.into_iter().next() {
        Some(OpResult::Range(range)) => range.kvs.into_iter().next(),
        _ => None,
    };
    if more && present.as_ref().map_or(0, |kv| kv.mod_revision) == expected {
        // The object is as expected, so that what goes with it is not: an address of the same name came in between.
        return Err(ApiError::internal("failed to allocate a serviceIP: the address was taken meanwhile"));
    }
    Ok(Written::Conflict(present.map(|kv| stored(resource, kv)).transpose()?))
}

/// Writes bytes if the object is still at `expected` (0: does not exist).
pub async fn write(
    store: &StoreHandle,
    resource: &Resource,
    key: &str,
    expected: i64,
    bytes: Vec<u8>,
    lease: i64,
    also: Also,
) -> Result<Written, ApiError> {
    let put = Op::Put { key: key.to_owned().into(), value: bytes.into(), lease };
    conditional(store, resource, key, expected, put, also).await
}

/// Deletes the object if it is still at `expected`.
pub async fn remove(
    store: &StoreHandle,
    resource: &Resource,
    key: &str,
    expected: i64,
    also: Also,
) -> Result<Written, ApiError> {
    conditional(store, resource, key, expected, Op::delete(key.to_owned()), also).await
}
