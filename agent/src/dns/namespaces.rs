//! Follows which namespaces there are.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kelp_model::dns::Namespaces;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// Something the API told of namespaces; their names are all that matters.
pub type NamespaceEvent = Event<PartialObjectMeta<Namespace>>;

/// The watch of an API; it is re-established with a growing pause.
pub fn watch_namespaces(client: &Client) -> impl Stream<Item = NamespaceEvent> + Send + use<> {
    watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .filter_map(|event| async move {
            event.inspect_err(|error| tracing::debug!(%error, "watch of namespaces interrupted")).ok()
        })
}

/// Keeps `namespaces` in step until `shutdown` or the end of the events.
pub(super) async fn follow(
    events: impl Stream<Item = NamespaceEvent> + Send,
    namespaces: Arc<RwLock<Namespaces>>,
    shutdown: CancellationToken,
) {
    let mut events = std::pin::pin!(events);
    let work = async {
        let mut list = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Event::Init => list.clear(),
                Event::InitApply(namespace) => list.push(namespace.name_any()),
                Event::InitDone => namespaces.write().reset(std::mem::take(&mut list)),
                Event::Apply(namespace) => namespaces.write().add(&namespace.name_any()),
                Event::Delete(namespace) => namespaces.write().remove(&namespace.name_any()),
            }
        }
    };
    shutdown.run_until_cancelled(work).await;
}
