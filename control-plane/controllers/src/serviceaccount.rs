//! The `default` ServiceAccount of each namespace.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::{Change, key_of};
use crate::queue::Queue;
use crate::write;

/// Name of the account.
const NAME: &str = "default";

/// Starts the controller. Reads Namespaces and ServiceAccounts; writes ServiceAccounts.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let namespaces = context.informer::<Namespace>();
    let accounts = context.informer::<ServiceAccount>();
    let queue = Queue::new();
    let q = queue.clone();
    namespaces.on_change(move |change| q.add(key_of(&change.object().metadata)));
    let q = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Deleted(account) = change
            && account.metadata.name.as_deref() == Some(NAME)
        {
            q.add(account.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let client = context.client.clone();
    context.workers("serviceaccount", &queue, 1, move |namespace| {
        let (namespaces, accounts, client) = (namespaces.clone(), accounts.clone(), client.clone());
        async move {
            let Some(object) = namespaces.get(&namespace) else { return Ok(()) };
            if object.metadata.deletion_timestamp.is_some()
                || accounts.get(&format!("{namespace}/{NAME}")).is_some()
            {
                return Ok(());
            }
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(NAME.into()),
                    namespace: Some(namespace.to_string()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(client, &namespace);
            match api.create(&write::post_params(), &account).await.map_err(Error::from) {
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
                other => other.map(|_| ()),
            }
        }
    });
    Ok(())
}
