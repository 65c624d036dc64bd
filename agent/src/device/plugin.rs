//! Plugins register at a socket of the agent; the agent then asks each for its devices, as long as it is there.

use super::api::{self, Empty, Listed, Register};
use super::{ANSWER, Devices};
use crate::grpc;
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// The version of the API.
const VERSION: &str = "v1beta1";
/// The agent's socket among the plugins'.
const SOCKET: &str = "kubelet.sock";

/// Takes registrations below `dir` until `shutdown`.
///
/// # Errors
/// The socket cannot be made.
pub async fn serve(devices: Devices, dir: PathBuf, shutdown: CancellationToken) -> io::Result<()> {
    std::fs::create_dir_all(&dir)?;
    clear(&dir);
    let listener = grpc::listen(&dir.join(SOCKET))?;
    let watched = shutdown.clone();
    let answer = move |request: http::Request<hyper::body::Incoming>| {
        let (devices, dir, shutdown) = (devices.clone(), dir.clone(), watched.clone());
        async move {
            match request.uri().path() {
                "/v1beta1.Registration/Register" => {
                    let handler = async |plugin: Register| register(&devices, &dir, plugin, shutdown);
                    grpc::unary(request, handler).await
                }
                _ => grpc::unknown(&request),
            }
        }
    };
    grpc::serve(listener, answer, shutdown).await;
    Ok(())
}

/// Sockets from before: plugins that run notice that they are gone, and register again.
fn clear(dir: &Path) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_socket()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A plugin says that it is there.
fn register(
    devices: &Devices,
    dir: &Path,
    plugin: Register,
    shutdown: CancellationToken,
) -> Result<Empty, Status> {
    if plugin.version != VERSION {
        return Err(Status::unknown(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            plugin.version
        )));
    }
    let name = &plugin.resource_name;
    let is_extended = name.contains('/')
        && !name.contains("kubernetes.io/")
        && kelp_model::names::qualified_name(name).is_empty();
    if !is_extended {
        return Err(Status::unknown(format!("the ResourceName {name:?} is invalid")));
    }
    let endpoint = Path::new(&plugin.endpoint);
    // A name, not a way to somewhere else.
    if endpoint.components().count() != 1 || endpoint.file_name().is_none() {
        return Err(Status::unknown(format!("the endpoint {:?} is no file name", plugin.endpoint)));
    }
    crate::metrics::DEVICE_REGISTRATIONS.count(&[name]);
    let (devices, socket) = (devices.clone(), dir.join(endpoint));
    tokio::spawn(async move {
        let name = plugin.resource_name.clone();
        let followed = shutdown.run_until_cancelled(follow(devices, socket, plugin)).await;
        if let Some(Err(status)) = followed {
            tracing::warn!(resource = name, error = grpc::text(&status), "a device plugin cannot be used");
        }
    });
    Ok(Empty {})
}

/// Follows the devices of a plugin as long as it is there.
async fn follow(devices: Devices, socket: PathBuf, plugin: Register) -> Result<(), Status> {
    let client = grpc::Client::connect(&socket).await?;
    let options = match plugin.options {
        Some(options) => options,
        None => {
            let method = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
            client.unary::<_, api::Options>(method, Empty {}, ANSWER).await?
        }
    };
    let resource = plugin.resource_name;
    tracing::info!(resource, "device plugin registered");
    let generation = devices.registered(&resource, client.clone(), options);
    let method = "/v1beta1.DevicePlugin/ListAndWatch";
    let result = async {
        let mut lists = client.server_streaming::<_, Listed>(method, Empty {}).await?;
        while let Some(list) = lists.message().await? {
            devices.listed(&resource, generation, list.devices);
        }
        Ok(())
    };
    let result = result.await;
    tracing::info!(resource, "device plugin gone");
    devices.stopped(&resource, generation);
    result
}
