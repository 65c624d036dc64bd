//! The ConfigMaps of each namespace that every pod's token volume names: `kube-root-ca.crt`, by which pods verify the API
//! server, and `openshift-service-ca.crt`, by which they verify services whose certificates the cluster signs.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::informer::key_of;
use crate::queue::Queue;
use crate::write;

/// A ConfigMap: its name, the key of the bundle, and what it says about itself.
struct Published {
    name: &'static str,
    key: &'static str,
    description: &'static str,
}

const PUBLISHED: [Published; 2] = [
    Published {
        name: "kube-root-ca.crt",
        key: "ca.crt",
        description: "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints \
            such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions \
            of Kubernetes clusters.",
    },
    // The cluster has one authority; the name is that of the distribution whose token volumes refer to it.
    Published {
        name: "openshift-service-ca.crt",
        key: "service-ca.crt",
        description: "Contains a CA bundle that can be used to verify services whose certificates the cluster's \
            authority signs.",
    },
];

/// Starts the controller, if there is a bundle to publish. Reads Namespaces and the ConfigMaps of the names; writes these.
pub fn start(context: &Arc<Context>) -> Result<()> {
    let Some(bundle) = context.config.root_ca.clone() else { return Ok(()) };
    for published in &PUBLISHED {
        publish(context, published, &bundle);
    }
    Ok(())
}

fn publish(context: &Arc<Context>, published: &'static Published, bundle: &str) {
    let name = published.name;
    let namespaces = context.informer::<Namespace>();
    // Other ConfigMaps are not kept in memory.
    let maps = context.informers.selected::<ConfigMap>(&format!("metadata.name={name}"));
    let queue = Queue::new();
    let q = queue.clone();
    namespaces.on_change(move |change| q.add(key_of(&change.object().metadata)));
    let q = queue.clone();
    maps.on_change(move |change| {
        let meta = &change.object().metadata;
        if meta.name.as_deref() == Some(name) {
            q.add(meta.namespace.clone().unwrap_or_default());
        }
    });
    let (client, bundle) = (context.client.clone(), bundle.to_owned());
    context.workers("root-ca", &queue, 1, move |namespace| {
        let (namespaces, maps, client, bundle) =
            (namespaces.clone(), maps.clone(), client.clone(), bundle.clone());
        async move {
            let Some(object) = namespaces.get(&namespace) else { return Ok(()) };
            if object.metadata.deletion_timestamp.is_some() {
                return Ok(());
            }
            let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
            let data = Some(BTreeMap::from([(published.key.to_owned(), bundle)]));
            let annotation = ("kubernetes.io/description".to_owned(), published.description.to_owned());
            if let Some(existing) = maps.get(&format!("{namespace}/{name}")) {
                let mut wanted = ConfigMap::clone(&existing);
                wanted.data = data;
                wanted.metadata.annotations.get_or_insert_default().extend([annotation]);
                write::update(&api, &*existing, &wanted).await?;
                return Ok(());
            }
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    namespace: Some(namespace.to_string()),
                    annotations: Some(BTreeMap::from([annotation])),
                    ..ObjectMeta::default()
                },
                data,
                ..ConfigMap::default()
            };
            match api.create(&write::post_params(), &map).await.map_err(Error::from) {
                Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
                other => other.map(|_| ()),
            }
        }
    });
}
