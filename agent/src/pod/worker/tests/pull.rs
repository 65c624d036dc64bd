//! Images that are not there are pulled.

use super::*;
use crate::image::ImageStore;
use crate::image::registry::{CredentialProviders, Puller, RegistryConfig};

fn world(dir: &Path) -> World {
    let store = ImageStore::open(dir).unwrap();
    let puller = Puller::new(store, RegistryConfig::default(), CredentialProviders::default());
    World { pulls: Some(Pulls::new(puller, None)), ..World::new() }
}

#[tokio::test]
async fn a_registry_that_refuses_connections() {
    let dir = tempfile::tempdir().unwrap();
    let world = world(dir.path());
    let mut node = world.agent();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let image = format!("127.0.0.1:{port}/absent:1");
    let spec = json!({
        "imagePullSecrets": [{"name": "none"}],
        "containers": [{"name": "c", "image": image, "imagePullPolicy": "Always"}],
    });
    node.create(&pod("p", spec));
    node.until("pulling failed", |n| waiting(&n.api.status("p"), 0) == "ErrImagePull").await;
    let cause = format!(
        "failed to pull and unpack image {image:?}: failed to resolve image: failed to do request: Head \
         \"https://127.0.0.1:{port}/v2/absent/manifests/1\": dial tcp 127.0.0.1:{port}: connect: connection refused"
    );
    let message = |status: &PodStatus| {
        let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
        state.waiting.unwrap().message.unwrap_or_default()
    };
    assert_eq!(message(&node.api.status("p")), cause);
    node.until("backing off", |n| waiting(&n.api.status("p"), 0) == "ImagePullBackOff").await;
    let backing_off = format!("Back-off pulling image {image:?}: ErrImagePull: {cause}");
    assert_eq!(message(&node.api.status("p")), backing_off);
    for event in [
        "FailedToRetrieveImagePullSecret  Unable to retrieve some image pull secrets (none); attempting to pull the image \
         may not succeed."
            .to_owned(),
        format!("Pulling spec.containers{{c}} Pulling image {image:?}"),
        format!("Failed spec.containers{{c}} Failed to pull image {image:?}: {cause}"),
        "Failed spec.containers{c} Error: ErrImagePull".to_owned(),
        format!("BackOff spec.containers{{c}} Back-off pulling image {image:?}"),
        "Failed spec.containers{c} Error: ImagePullBackOff".to_owned(),
    ] {
        node.until(&event, |n| n.api.has_event(&event)).await;
    }
    node.delete("p", 0);
    node.until("deleted", |n| n.api.pod("p").is_none()).await;
    node.stop().await;
}
