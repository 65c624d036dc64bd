//! The store behind an object-safe handle, and the keys of objects.

mod objects;

pub use objects::*;

use futures::future::BoxFuture;
use kelp_store::{
    Lease, RangeRequest, RangeResponse, Store, StoreError, TxnRequest, TxnResponse, WatchRequest, Watcher,
};
use std::sync::Arc;

/// [`Store`] with boxed futures, so that the server is one type whatever the engine.
pub trait DynStore: Send + Sync + 'static {
    /// See [`Store::range`].
    fn range(&self, req: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>>;
    /// See [`Store::txn`].
    fn txn(&self, req: TxnRequest) -> BoxFuture<'_, Result<TxnResponse, StoreError>>;
    /// See [`Store::watch`].
    fn watch(&self, req: WatchRequest) -> BoxFuture<'_, Result<Watcher, StoreError>>;
    /// See [`Store::compact`].
    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<(), StoreError>>;
    /// See [`Store::lease_grant`].
    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, StoreError>>;
    /// See [`Store::revision`].
    fn revision(&self) -> i64;
}

impl<S: Store> DynStore for S {
    fn range(&self, req: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        Box::pin(Store::range(self, req))
    }
    fn txn(&self, req: TxnRequest) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(Store::txn(self, req))
    }
    fn watch(&self, req: WatchRequest) -> BoxFuture<'_, Result<Watcher, StoreError>> {
        Box::pin(Store::watch(self, req))
    }
    fn compact(&self, revision: i64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(Store::compact(self, revision))
    }
    fn lease_grant(&self, id: i64, ttl: i64) -> BoxFuture<'_, Result<Lease, StoreError>> {
        Box::pin(Store::lease_grant(self, id, ttl))
    }
    fn revision(&self) -> i64 {
        Store::revision(self)
    }
}

/// A shared store of any engine.
pub type StoreHandle = Arc<dyn DynStore>;
