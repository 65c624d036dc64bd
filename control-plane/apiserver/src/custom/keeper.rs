//! The task that follows the definitions: it gives them their names, serves what they define, and removes the objects of
//! those that go. It waits for changes of the definitions, and of the objects while it waits for them to be gone.

use super::naming::{self, Condition, Taken};
use super::{CLEANUP, DEFINITIONS, Definition, GROUP, definition};
use crate::cache::{Cache, Filter};
use crate::error::ApiError;
use crate::handlers;
use crate::object::{finalizers, get, is_deleting, list_at, meta, meta_mut, set_or_remove, str_at};
use crate::registry::Resource;
use crate::server::Core;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(5);
/// Pause after a failure, before the same is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A cache a version, and whether the version is served.
type Caches = Vec<(Arc<Cache>, bool)>;

/// A definition that is served.
struct Shown {
    /// What it was made of: while its `spec` and the names stay the same, so do the caches and those who watch them.
    definition: Arc<Definition>,
    names: Value,
    terminating: bool,
    caches: Caches,
    /// The cache of the version that objects are stored in.
    stored: Arc<Cache>,
}

/// Follows the definitions.
pub(crate) struct Keeper {
    core: Arc<Core>,
    own: Arc<Cache>,
    shown: HashMap<String, Shown>,
}

impl Keeper {
    /// Serves what is defined already, then follows the definitions until the server ends.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn start(core: &Arc<Core>) -> Result<(), ApiError> {
        let row = core.builtin.find(GROUP, "v1", DEFINITIONS).ok_or_else(ApiError::unknown_resource)?;
        let own = core.cache(row).clone();
        let mut keeper = Keeper { core: core.clone(), own, shown: HashMap::new() };
        let all = keeper.definitions().await?;
        keeper.publish(&all);
        let shutdown = core.shutdown.clone();
        tokio::spawn(async move { shutdown.run_until_cancelled(keeper.run()).await });
        Ok(())
    }

    async fn run(&mut self) {
        let mut changes = self.own.changes();
        loop {
            changes.mark_unchanged();
            let mut waits = match self.reconcile().await {
                Ok(waits) => waits,
                Err(error) => {
                    tracing::warn!(%error, "cannot look after the definitions of custom resources");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let any =
                std::iter::once(&mut changes).chain(&mut waits).map(|change| Box::pin(change.changed()));
            // Caches end with the server alone, or with this task's own doing.
            _ = futures::future::select_all(any).await;
            tokio::time::sleep(SETTLE).await;
        }
    }

    async fn definitions(&self) -> Result<Vec<Value>, ApiError> {
        self.own.wait_fresh().await?;
        let entries = self.own.snapshot(&Filter::default(), None).entries;
        Ok(entries.into_iter().map(|entry| entry.encoded.parse()).collect())
    }

    async fn reconcile(&mut self) -> Result<Vec<watch::Receiver<u64>>, ApiError> {
        let mut all = self.definitions().await?;
        for at in 0..all.len() {
            if let Some(named) = named(&all, at)
                && self.write("status", named.clone()).await?.is_some()
                && let Some(slot) = all.get_mut(at)
            {
                *slot = named;
            }
        }
        // Who sees that a definition is established can use it.
        self.publish(&all);
        for definition in &all {
            if naming::has(definition, "NamesAccepted") && !naming::has(definition, "Established") {
                let mut new = definition.clone();
                let established = Condition {
                    kind: "Established",
                    is_true: true,
                    reason: "InitialNamesAccepted",
                    message: "the initial names have been accepted".to_owned(),
                };
                naming::set(&mut new, &established, &crate::object::now());
                self.write("status", new).await?;
            }
        }
        let mut waits = Vec::new();
        for definition in all.iter().filter(|d| is_deleting(d) && finalizers(d).any(|f| f == CLEANUP)) {
            waits.extend(self.clean(definition).await?);
        }
        Ok(waits)
    }

    /// Writes a definition; none when somebody else changed it meanwhile, which brings it here again.
    async fn write(&self, subresource: &'static str, object: Value) -> Result<Option<Value>, ApiError> {
        match handlers::written(&self.core, "update", GROUP, DEFINITIONS, subresource, object).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if matches!(error.code(), 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_builtin(&self, definition: &Value) -> bool {
        let (group, plural) =
            (str_at(definition, &["spec", "group"]), str_at(definition, &["spec", "names", "plural"]));
        self.core.builtin.rows().iter().any(|row| row.group() == group && row.plural() == plural)
    }

    /// Serves these definitions, as far as their names were accepted, and no others.
    fn publish(&mut self, all: &[Value]) {
        let mut gone = std::mem::take(&mut self.shown);
        let mut changed = false;
        let serves = |d: &&Value| naming::has(d, "NamesAccepted") || naming::has(d, "Established");
        let all: Vec<&Value> = all.iter().filter(serves).filter(|d| !self.is_builtin(d)).collect();
        for object in all {
            let part = |path: &[&str]| get(object, path).cloned().unwrap_or_default();
            let names = part(&["status", "acceptedNames"]);
            let spec = object.get("spec");
            let terminating = naming::is_terminating(object);
            let name = meta(object, "name").to_owned();
            let known = gone.remove(&name);
            let same = known
                .as_ref()
                .is_some_and(|known| Some(&known.definition.spec) == spec && known.names == names);
            let caches = match known {
                Some(known) if same && known.terminating == terminating => {
                    self.shown.insert(name, known);
                    continue;
                }
                Some(mut known) if same => {
                    changed = true;
                    known.definition.creations.close(terminating);
                    known.terminating = terminating;
                    self.shown.insert(name, known);
                    continue;
                }
                other => {
                    changed = true;
                    let made = self.caches(object, other.as_ref().map(|old| &old.definition));
                    if let Some(old) = other {
                        gone.insert(name.clone(), old);
                    }
                    made
                }
            };
            let Some((definition, caches, stored)) = caches else { continue };
            self.shown.insert(name, Shown { definition, names, terminating, caches, stored });
        }
        if changed || !gone.is_empty() {
            let mut names: Vec<&String> = self.shown.keys().collect();
            names.sort();
            let shown = names.into_iter().filter_map(|name| self.shown.get(name));
            let served = shown.flat_map(|shown| &shown.caches).filter(|(_, served)| *served);
            self.core.serve_custom(served.map(|(cache, _)| cache.clone()).collect());
        }
        for old in gone.into_values() {
            old.caches.iter().for_each(|(cache, _)| cache.retire());
        }
    }

    /// A definition, the caches of its versions, and that of the stored one. `before`: what it was until now.
    fn caches(
        &self,
        object: &Value,
        before: Option<&Arc<Definition>>,
    ) -> Option<(Arc<Definition>, Caches, Arc<Cache>)> {
        let mut definition = Definition::parse(object)
            .inspect_err(|why| tracing::error!(definition = meta(object, "name"), why, "cannot be served"))
            .ok()?;
        if let Some(before) = before {
            // Creations of its old form may be under way.
            definition.creations = before.creations.clone();
            definition.creations.close(naming::is_terminating(object));
        }
        let definition = Arc::new(definition);
        let new = |resource: Resource| {
            Cache::new(Arc::new(resource), self.core.store.clone(), self.core.shutdown.child_token())
        };
        let rows = definition::resources(object, &definition);
        let caches: Caches = rows.into_iter().map(|(row, served)| (new(row), served)).collect();
        let is_stored =
            |cache: &Cache| cache.resource.custom.as_ref().is_some_and(|custom| custom.is_stored());
        let stored = caches.iter().find(|(cache, _)| is_stored(cache)).map(|(cache, _)| cache.clone())?;
        Some((definition, caches, stored))
    }

    /// Removes the objects of a definition that goes, then the finalizer that kept it; what to wait for.
    async fn clean(&self, definition: &Value) -> Result<Option<watch::Receiver<u64>>, ApiError> {
        let mut new = definition.clone();
        let now = crate::object::now();
        let terminating = |is_true, reason, message: &str| Condition {
            kind: "Terminating",
            is_true,
            reason,
            message: message.to_owned(),
        };
        let last = match self.shown.get(meta(definition, "name")) {
            _ if self.is_builtin(definition) => terminating(
                false,
                "OverlappingBuiltInResource",
                "instances overlap with built-in resources in storage",
            ),
            Some(shown) if naming::has(definition, "Established") => {
                let begun =
                    terminating(true, "InstanceDeletionInProgress", "CustomResource deletion is in progress");
                if naming::set(&mut new, &begun, &now) {
                    match self.write("status", new).await? {
                        Some(written) => new = written,
                        None => return Ok(None),
                    }
                }
                let changes = shown.stored.changes();
                // What began before the definition was to go is among the objects then.
                shown.definition.creations.ended().await;
                shown.stored.wait_fresh().await?;
                let objects = shown.stored.snapshot(&Filter::default(), None).entries;
                if !objects.is_empty() {
                    handlers::delete_all(&self.core, &shown.stored, &objects).await?;
                    return Ok(Some(changes));
                }
                terminating(false, "InstanceDeletionCompleted", "removed all instances")
            }
            _ => terminating(false, "NeverEstablished", "resource was never established"),
        };
        naming::set(&mut new, &last, &now);
        let Some(mut written) = self.write("status", new).await? else { return Ok(None) };
        let mut rest = list_at(&written, &["metadata", "finalizers"]).to_vec();
        rest.retain(|finalizer| finalizer != CLEANUP);
        let rest = (!rest.is_empty()).then(|| Value::from(rest));
        set_or_remove(meta_mut(&mut written), "finalizers", rest);
        self.write("", written).await?;
        Ok(None)
    }
}

/// A definition with the names it gets; none when it has them, and what is to be said of them, already.
fn named(all: &[Value], at: usize) -> Option<Value> {
    let definition = all.get(at)?;
    let mut new = definition.clone();
    let now = crate::object::now();
    let mut changed = false;
    if let Some(approval) = naming::approval(definition) {
        changed |= naming::set(&mut new, &approval, &now);
    }
    let part = |path: &[&str]| get(definition, path).cloned().unwrap_or_default();
    if part(&["spec", "names"]) != part(&["status", "acceptedNames"])
        || !naming::has(definition, "NamesAccepted")
    {
        let taken = Taken::of(all.iter(), str_at(definition, &["spec", "group"]));
        let (names, conditions) = naming::decide(definition, &taken);
        changed |= names != part(&["status", "acceptedNames"]);
        new["status"]["acceptedNames"] = names;
        for condition in &conditions {
            changed |= naming::set(&mut new, condition, &now);
        }
    }
    changed.then_some(new)
}
