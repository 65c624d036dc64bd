//! Objects by key, and by what they are looked up by.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use kelp_model::controllers::owner::controller_of;
use kube::Resource;
use kube::core::ObjectMeta;

/// Index by namespace.
pub const NAMESPACE: &str = "namespace";
/// Index by the UID of the controlling owner.
pub const OWNER: &str = "owner";

/// `namespace/name`, or `name`.
#[must_use]
pub fn key_of(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

type Values<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    values: Values<K>,
    keys: HashMap<String, HashSet<Arc<str>>>,
}

/// The objects of one kind.
pub struct Cache<K> {
    objects: HashMap<Arc<str>, Arc<K>>,
    indices: HashMap<&'static str, Index<K>>,
}

impl<K: Resource + 'static> Default for Cache<K> {
    fn default() -> Self {
        let mut cache = Self { objects: HashMap::new(), indices: HashMap::new() };
        cache.add_index(NAMESPACE, Box::new(|o| o.meta().namespace.clone().into_iter().collect()));
        cache.add_index(
            OWNER,
            Box::new(|o| controller_of(o.meta()).map(|r| r.uid.clone()).into_iter().collect()),
        );
        cache
    }
}

impl<K: Resource> Cache<K> {
    /// Adds an index over all objects, also those there already.
    pub fn add_index(&mut self, name: &'static str, values: Values<K>) {
        let mut index = Index { values, keys: HashMap::new() };
        for (key, object) in &self.objects {
            index.insert(key, object);
        }
        self.indices.insert(name, index);
    }

    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.objects.get(key).cloned()
    }

    /// All objects.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.objects.values().cloned().collect()
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects found under a value of an index.
    #[must_use]
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let keys = self.indices.get(index).and_then(|i| i.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.objects.get(key).cloned()).collect()
    }

    /// How many objects are found under a value of an index.
    #[must_use]
    pub fn count_by_index(&self, index: &str, value: &str) -> usize {
        self.indices.get(index).and_then(|i| i.keys.get(value)).map_or(0, HashSet::len)
    }

    /// Puts an object in; the one that was there before.
    pub fn insert(&mut self, object: Arc<K>) -> Option<Arc<K>> {
        let key: Arc<str> = key_of(object.meta()).into();
        let old = self.objects.get(&key).cloned();
        for index in self.indices.values_mut() {
            if let Some(old) = &old {
                index.remove(&key, old);
            }
            index.insert(&key, &object);
        }
        self.objects.insert(key, object);
        old
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &str) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for index in self.indices.values_mut() {
            index.remove(key, &old);
        }
        Some(old)
    }
}

impl<K> Index<K> {
    fn insert(&mut self, key: &Arc<str>, object: &K) {
        for value in (self.values)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &str, object: &K) {
        for value in (self.values)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}
