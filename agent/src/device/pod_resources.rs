//! The pod resources API: which devices and CPUs containers have, for monitoring on the node.

use super::api::{
    AllocatableResources, ContainerDevices, ContainerResources, Empty, NumaNode, OnePodResources, PodName,
    PodResources, PodResourcesList, Topology,
};
use super::{Devices, Known, State};
use crate::cpus::Cpus;
use crate::grpc;
use crate::server::PodIndex;
use k8s_openapi::api::core::v1::Pod;
use kelp_model::pod::spec::{Kind, containers, is_terminal};
use std::io;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Answers at a socket until `shutdown`.
///
/// # Errors
/// The socket cannot be made.
pub async fn serve(
    devices: Devices,
    cpus: Cpus,
    pods: PodIndex,
    socket: PathBuf,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener = grpc::listen(&socket)?;
    let answer = move |request: http::Request<hyper::body::Incoming>| {
        let (devices, cpus, pods) = (devices.clone(), cpus.clone(), pods.clone());
        async move {
            crate::metrics::POD_RESOURCES.count(&["v1"]);
            match request.uri().path() {
                "/v1.PodResourcesLister/List" => {
                    grpc::unary(request, |_: Empty| async move { Ok(list(&devices, &cpus, &pods)) }).await
                }
                "/v1.PodResourcesLister/GetAllocatableResources" => {
                    grpc::unary(request, |_: Empty| async move { Ok(allocatable(&devices, &cpus)) }).await
                }
                "/v1.PodResourcesLister/Get" => {
                    grpc::unary(request, |name: PodName| async move { get(&devices, &cpus, &pods, &name) })
                        .await
                }
                _ => grpc::unknown(&request),
            }
        }
    };
    grpc::serve(listener, answer, shutdown).await;
    Ok(())
}

fn device(state: &State, resource: &str, id: &str) -> ContainerDevices {
    let known: Option<&Known> = state.resources.get(resource).and_then(|r| r.devices.get(id));
    let nodes = known.and_then(|k| k.numa.as_ref());
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: nodes.map(|n| Topology { nodes: n.iter().map(|id| NumaNode { id: *id }).collect() }),
    }
}

fn of_pod(state: &State, cpus: &Cpus, pod: &Pod) -> PodResources {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let granted = state.allocated.get(&uid);
    let spec = pod.spec.clone().unwrap_or_default();
    // Init containers that do not go on have given theirs to the others.
    let shown = containers(&spec).filter(|(kind, _)| *kind != Kind::Init);
    let containers = shown.map(|(_, container)| {
        let own = granted.and_then(|g| g.get(&container.name)).into_iter().flatten();
        let devices =
            own.flat_map(|(resource, grant)| grant.ids.iter().map(|id| device(state, resource, id)));
        let cpu_ids = cpus.exclusive(&uid, &container.name);
        ContainerResources { name: container.name.clone(), devices: devices.collect(), cpu_ids }
    });
    PodResources {
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        containers: containers.collect(),
    }
}

fn list(devices: &Devices, cpus: &Cpus, pods: &PodIndex) -> PodResourcesList {
    let state = devices.0.state.lock();
    let pods = pods.read();
    let active = pods.values().filter(|pod| !is_terminal(pod));
    PodResourcesList { pod_resources: active.map(|pod| of_pod(&state, cpus, pod)).collect() }
}

fn get(devices: &Devices, cpus: &Cpus, pods: &PodIndex, name: &PodName) -> Result<OnePodResources, Status> {
    let key = (name.pod_namespace.clone(), name.pod_name.clone());
    let found = pods.read().get(&key).cloned();
    let pod = found.ok_or_else(|| {
        Status::unknown(format!("pod {} in namespace {} not found", name.pod_name, name.pod_namespace))
    })?;
    Ok(OnePodResources { pod_resources: Some(of_pod(&devices.0.state.lock(), cpus, &pod)) })
}

fn allocatable(devices: &Devices, cpus: &Cpus) -> AllocatableResources {
    let state = devices.0.state.lock();
    let healthy = state.resources.iter().flat_map(|(resource, known)| {
        known.devices.iter().filter(|(_, d)| d.healthy).map(move |(id, _)| (resource, id))
    });
    let devices = healthy.map(|(resource, id)| device(&state, resource, id)).collect();
    AllocatableResources { devices, cpu_ids: cpus.allocatable() }
}
