//! Claims, volumes, classes and what drivers say about nodes.

use super::Cluster;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kelp_model::scheduling::volumes::{Storage, key};
use kube::ResourceExt;
use std::collections::HashMap;
use std::sync::Arc;

/// A kind of objects about storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageKind {
    /// PersistentVolumeClaim.
    Claim,
    /// PersistentVolume.
    Volume,
    /// StorageClass.
    Class,
    /// CSINode.
    CsiNode,
    /// CSIDriver.
    CsiDriver,
    /// CSIStorageCapacity.
    CsiCapacity,
}

impl StorageKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Claim, Self::Volume, Self::Class, Self::CsiNode, Self::CsiDriver, Self::CsiCapacity];
}

/// An object about storage.
#[derive(Debug, Clone)]
pub enum StorageObject {
    /// A claim.
    Claim(Arc<PersistentVolumeClaim>),
    /// A volume.
    Volume(Arc<PersistentVolume>),
    /// A class.
    Class(Arc<StorageClass>),
    /// What drivers say about a node.
    CsiNode(Arc<CSINode>),
    /// A driver.
    CsiDriver(Arc<CSIDriver>),
    /// How much room a driver has somewhere.
    CsiCapacity(Arc<CSIStorageCapacity>),
}

impl StorageObject {
    /// Its kind.
    pub fn kind(&self) -> StorageKind {
        match self {
            Self::Claim(_) => StorageKind::Claim,
            Self::Volume(_) => StorageKind::Volume,
            Self::Class(_) => StorageKind::Class,
            Self::CsiNode(_) => StorageKind::CsiNode,
            Self::CsiDriver(_) => StorageKind::CsiDriver,
            Self::CsiCapacity(_) => StorageKind::CsiCapacity,
        }
    }

    /// `namespace/name` of a claim or a capacity, the name of the others.
    pub fn key(&self) -> String {
        match self {
            Self::Claim(o) => key(o),
            Self::Volume(o) => o.name_any(),
            Self::Class(o) => o.name_any(),
            Self::CsiNode(o) => o.name_any(),
            Self::CsiDriver(o) => o.name_any(),
            Self::CsiCapacity(o) => format!("{}/{}", o.namespace().unwrap_or_default(), o.name_any()),
        }
    }
}

fn put<T: ResourceExt>(map: &mut HashMap<String, Arc<T>>, key: String, object: Arc<T>) -> bool {
    let version = object.resource_version();
    map.insert(key, object).is_none_or(|old| old.resource_version() != version)
}

impl Cluster {
    /// The objects about storage.
    pub fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    /// Takes in an object's present state; says whether it changed.
    pub fn apply_storage(&mut self, object: StorageObject) -> bool {
        let storage = Arc::make_mut(&mut self.storage);
        let key = object.key();
        match object {
            StorageObject::Claim(o) => put(&mut storage.claims, key, o),
            StorageObject::Volume(o) => put(&mut storage.volumes, key, o),
            StorageObject::Class(o) => put(&mut storage.classes, key, o),
            StorageObject::CsiNode(o) => put(&mut storage.csi_nodes, key, o),
            StorageObject::CsiDriver(o) => put(&mut storage.drivers, key, o),
            StorageObject::CsiCapacity(o) => put(&mut storage.capacities, key, o),
        }
    }

    /// Removes an object.
    pub fn remove_storage(&mut self, kind: StorageKind, key: &str) {
        let storage = Arc::make_mut(&mut self.storage);
        match kind {
            StorageKind::Claim => drop(storage.claims.remove(key)),
            StorageKind::Volume => drop(storage.volumes.remove(key)),
            StorageKind::Class => drop(storage.classes.remove(key)),
            StorageKind::CsiNode => drop(storage.csi_nodes.remove(key)),
            StorageKind::CsiDriver => drop(storage.drivers.remove(key)),
            StorageKind::CsiCapacity => drop(storage.capacities.remove(key)),
        }
    }

    /// Replaces all objects of a kind; gives back those that changed.
    pub fn replace_storage(&mut self, kind: StorageKind, objects: Vec<StorageObject>) -> Vec<StorageObject> {
        let keys: std::collections::HashSet<String> = objects.iter().map(StorageObject::key).collect();
        let storage = Arc::make_mut(&mut self.storage);
        match kind {
            StorageKind::Claim => storage.claims.retain(|key, _| keys.contains(key)),
            StorageKind::Volume => storage.volumes.retain(|key, _| keys.contains(key)),
            StorageKind::Class => storage.classes.retain(|key, _| keys.contains(key)),
            StorageKind::CsiNode => storage.csi_nodes.retain(|key, _| keys.contains(key)),
            StorageKind::CsiDriver => storage.drivers.retain(|key, _| keys.contains(key)),
            StorageKind::CsiCapacity => storage.capacities.retain(|key, _| keys.contains(key)),
        }
        let mut changed = objects;
        changed.retain(|object| self.apply_storage(object.clone()));
        changed
    }
}
