//! RuntimeClasses: the handler that a pod asks to be run by.

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

/// Finds the handler of a pod. Every handler of this node is the one runtime that there is.
#[derive(Clone)]
pub struct Classes {
    client: kube::Client,
    handlers: Vec<String>,
}

impl Classes {
    /// `handlers`: names beside the empty one, under which RuntimeClasses know the runtime.
    pub fn new(client: kube::Client, handlers: Vec<String>) -> Self {
        Self { client, handlers }
    }

    /// The handler that the RuntimeClass `class` of the pod `uid` names.
    ///
    /// # Errors
    /// There is no such class, it cannot be read, or this node does not have its handler; the text is for the event.
    pub async fn handler(&self, uid: &str, class: Option<&str>) -> Result<String, String> {
        let Some(name) = class.filter(|name| !name.is_empty()) else { return Ok(String::new()) };
        let classes: Api<RuntimeClass> = Api::all(self.client.clone());
        let class = match classes.get_opt(name).await {
            Ok(Some(class)) => class,
            Ok(None) => return Err(format!("runtimeclass.node.k8s.io {name:?} not found")),
            Err(error) => return Err(format!("failed to lookup RuntimeClass {name}: {error}")),
        };
        if class.handler.is_empty() || self.handlers.contains(&class.handler) {
            return Ok(class.handler);
        }
        // In the words of the runtime that clients know.
        Err(format!(
            "rpc error: code = Unknown desc = unable to get OCI runtime for sandbox {uid:?}: no runtime for {:?} is configured",
            class.handler
        ))
    }
}
