//! Which objects belong to an owner: those with its controller reference, and orphans its selector takes in.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Api;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::informer::Kind;
use crate::write;

/// An owner that may adopt and release objects of kind `K`.
pub struct Claim<'a, O, K> {
    /// API of the owners, to look whether the owner still exists before it adopts.
    pub owners: Api<O>,
    /// The owner as cached.
    pub owner: &'a O,
    /// API of the objects.
    pub api: Api<K>,
    /// The reference adopted objects get.
    pub reference: OwnerReference,
}

impl<O: Kind, K: Kind + Serialize> Claim<'_, O, K> {
    /// Adopts matching `orphans`, releases those of `owned` that no longer match, and returns what belongs to the owner.
    ///
    /// # Errors
    /// An adoption or release that was refused, also because the object changed in the meantime: counting without it would
    /// create one too many.
    pub async fn run(
        &self,
        owned: Vec<Arc<K>>,
        orphans: Vec<Arc<K>>,
        matches: impl Fn(&K) -> bool,
    ) -> Result<Vec<Arc<K>>> {
        let deleted = self.owner.meta().deletion_timestamp.is_some();
        let mut mine = Vec::with_capacity(owned.len());
        for object in owned {
            if matches(&object) {
                mine.push(object);
            } else if !deleted {
                self.release(&object).await?;
            }
        }
        if deleted {
            return Ok(mine);
        }
        let mut may_adopt = false;
        for object in orphans {
            if !matches(&object) || object.meta().deletion_timestamp.is_some() {
                continue;
            }
            if !may_adopt {
                self.check_owner_is_alive().await?;
                may_adopt = true;
            }
            let mut adopted = K::clone(&object);
            adopted.meta_mut().owner_references.get_or_insert_default().push(self.reference.clone());
            if let Some(written) = unless_gone(write::update(&self.api, &object, &adopted).await)? {
                mine.push(Arc::new(written.unwrap_or(adopted)));
            }
        }
        Ok(mine)
    }

    async fn release(&self, object: &K) -> Result<()> {
        let mut released = object.clone();
        if let Some(references) = &mut released.meta_mut().owner_references {
            references.retain(|r| r.uid != self.reference.uid);
        }
        unless_gone(write::update(&self.api, object, &released).await)?;
        Ok(())
    }

    /// The cache may show an owner that was deleted: its orphans must not be taken back.
    async fn check_owner_is_alive(&self) -> Result<()> {
        let name = self.owner.meta().name.as_deref().unwrap_or_default();
        let live = self.owners.get_metadata(name).await?;
        if live.metadata.uid != self.owner.meta().uid || live.metadata.deletion_timestamp.is_some() {
            return Err(Error::Failed(format!("{name} was deleted and adopts nothing any more")));
        }
        Ok(())
    }
}

fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
