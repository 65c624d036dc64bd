//! The kinds that the server serves, as they come and go with the definitions of custom resources.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::context::Context;
use crate::error::Result;
use crate::informer::{Informers, MetaChange};
use crate::queue::Queue;

/// A definition is gone before the server has stopped to serve what it defined; there is no other event about that.
const SETTLE: Duration = Duration::from_secs(2);
/// The only key of the queue.
const LOOK: &str = "kinds";

/// A kind in the version that the server recommends.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedKind {
    /// How it is reached.
    pub resource: ApiResource,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    verbs: Vec<String>,
}

impl ServedKind {
    /// Whether all of these can be done with its objects.
    #[must_use]
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|own| own == verb))
    }

    fn key(&self) -> (String, String) {
        (self.resource.group.clone(), self.resource.plural.clone())
    }
}

/// What happened to a kind. One that is served in another version now goes and comes.
#[derive(Debug, PartialEq)]
pub enum KindChange<'a> {
    /// It is served.
    Added(&'a ServedKind),
    /// It is served no more.
    Removed(&'a ServedKind),
}

/// Is told of changes, in order; must not block. Returns what becomes true when it knows all objects of a new kind.
type Handler = Box<dyn Fn(&KindChange<'_>) -> Option<watch::Receiver<bool>> + Send + Sync>;

#[derive(Default)]
struct State {
    followed: bool,
    /// By group and plural.
    known: BTreeMap<(String, String), ServedKind>,
    handlers: Vec<Handler>,
}

impl State {
    /// Tells the handlers what differs, and `forget` of what is gone before that of what is new; what to wait for.
    fn replace(
        &mut self,
        served: Vec<ServedKind>,
        forget: impl Fn(&ServedKind),
    ) -> Vec<watch::Receiver<bool>> {
        let new: BTreeMap<_, _> = served.into_iter().map(|kind| (kind.key(), kind)).collect();
        let old = std::mem::take(&mut self.known);
        for (_, kind) in old.iter().filter(|(key, kind)| new.get(*key) != Some(kind)) {
            for handler in &self.handlers {
                handler(&KindChange::Removed(kind));
            }
            forget(kind);
        }
        let added = new.iter().filter(|(key, kind)| old.get(*key) != Some(kind));
        let told = added.flat_map(|(_, kind)| self.handlers.iter().map(move |h| h(&KindChange::Added(kind))));
        let waits = told.flatten().collect();
        self.known = new;
        waits
    }
}

/// The kinds, followed once somebody asks.
pub struct Kinds {
    client: Client,
    informers: Arc<Informers>,
    look: Queue,
    state: Mutex<State>,
    complete: watch::Sender<bool>,
}

impl Kinds {
    /// No kinds yet.
    #[must_use]
    pub fn new(client: Client, informers: Arc<Informers>) -> Self {
        let (look, state) = (Queue::new(), Mutex::default());
        Self { client, informers, look, state, complete: watch::Sender::new(false) }
    }

    /// The kind of a group, if it is known to be served. If not, the server is asked again.
    pub fn find(&self, group: &str, kind: &str) -> Option<ServedKind> {
        let state = self.state.lock();
        let found =
            state.known.values().find(|k| k.resource.group == group && k.resource.kind == kind).cloned();
        if found.is_none() {
            self.look.add(LOOK);
        }
        found
    }

    /// Becomes true once the handlers know all objects of the kinds that the server had at first.
    pub fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Asks the server. Only one looks at a time, so that an older answer never follows a newer one.
    async fn look(&self, context: &Context) -> Result<()> {
        let served = served(&self.client).await?;
        let forget = |kind: &ServedKind| self.informers.forget(&kind.resource);
        let waits = self.state.lock().replace(served, forget);
        if !*self.complete.borrow() {
            let complete = self.complete.clone();
            context.spawn(async move {
                for mut synced in waits {
                    // The sender is dropped when the kind goes.
                    let _ = synced.wait_for(|synced| *synced).await;
                }
                complete.send_replace(true);
            });
        }
        Ok(())
    }
}

/// Tells `handler` of the kinds that are served, and of those that come and go.
pub fn follow(
    context: &Arc<Context>,
    handler: impl Fn(&KindChange<'_>) -> Option<watch::Receiver<bool>> + Send + Sync + 'static,
) {
    let kinds = &context.kinds;
    let first = {
        let mut state = kinds.state.lock();
        for kind in state.known.values() {
            handler(&KindChange::Added(kind));
        }
        state.handlers.push(Box::new(handler));
        !std::mem::replace(&mut state.followed, true)
    };
    if !first {
        return;
    }
    kinds.look.add(LOOK);
    let look = kinds.look.clone();
    let definitions = ApiResource::erase::<CustomResourceDefinition>(&());
    context.informers.metadata(&definitions).on_meta(Box::new(move |change| {
        look.add(LOOK);
        if matches!(change, MetaChange::Gone(_)) {
            look.add_after(LOOK, SETTLE);
        }
    }));
    let own = context.clone();
    context.workers("kinds", &kinds.look, 1, move |_| {
        let own = own.clone();
        async move { own.kinds.look(&own).await }
    });
}

async fn served(client: &Client) -> Result<Vec<ServedKind>> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let groups = discovery.groups();
    let all = groups.flat_map(|group| group.recommended_resources()).map(|(resource, capabilities)| {
        let namespaced = capabilities.scope == Scope::Namespaced;
        ServedKind { resource, namespaced, verbs: capabilities.operations }
    });
    Ok(all.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::GroupVersionKind;

    fn kind(group: &str, version: &str, name: &str) -> ServedKind {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
        ServedKind { resource, namespaced: true, verbs: vec!["list".to_owned(), "watch".to_owned()] }
    }

    #[test]
    fn handlers_are_told_what_differs() {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut state = State::default();
        let t = told.clone();
        state.handlers.push(Box::new(move |change| {
            t.lock().push(match change {
                KindChange::Added(kind) => format!("+{}/{}", kind.resource.version, kind.resource.kind),
                KindChange::Removed(kind) => format!("-{}/{}", kind.resource.version, kind.resource.kind),
            });
            Some(watch::Sender::new(false).subscribe())
        }));
        let forgot = told.clone();
        let mut replace = |kinds: Vec<ServedKind>| {
            state.replace(kinds, |kind| forgot.lock().push(format!("forget {}", kind.resource.version))).len()
        };
        assert_eq!(replace(vec![kind("", "v1", "Pod"), kind("a.example", "v1", "Foo")]), 2);
        assert_eq!(replace(vec![kind("", "v1", "Pod"), kind("a.example", "v2", "Foo")]), 1);
        assert_eq!(replace(vec![kind("", "v1", "Pod")]), 0);
        assert_eq!(
            *told.lock(),
            ["+v1/Pod", "+v1/Foo", "-v1/Foo", "forget v1", "+v2/Foo", "-v2/Foo", "forget v2"]
        );
    }

    #[test]
    fn all_verbs_are_needed() {
        assert!(kind("", "v1", "Pod").can(&["list", "watch"]));
        assert!(!kind("", "v1", "Pod").can(&["list", "delete"]));
    }
}
