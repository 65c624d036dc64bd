//! Messages of `v1beta1` of the device plugin API and of `v1` of the pod resources API (upstream's
//! `k8s.io/kubelet/pkg/apis`).

use prost::Message;
use std::collections::HashMap;

/// `v1beta1.Empty` and every message without fields.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// What a plugin wants.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Options {
    /// It is told before a container starts.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// It is asked which devices to give.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// `RegisterRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Register {
    /// Version of the API.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Name of the plugin's socket beside the agent's.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// Resource that its devices are offered as.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What it wants.
    #[prost(message, optional, tag = "4")]
    pub options: Option<Options>,
}

/// `ListAndWatchResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Listed {
    /// All devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// `Device`.
#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `Healthy`, or not.
    #[prost(string, tag = "2")]
    pub health: String,
    /// Where it is.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

/// `TopologyInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct Topology {
    /// NUMA nodes.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

/// `NUMANode`.
#[derive(Clone, PartialEq, Message)]
pub struct NumaNode {
    /// Its number.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// `PreStartContainerRequest`, and one of the requests of `AllocateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct DeviceIds {
    /// The devices.
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

/// `PreferredAllocationRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredRequests {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<PreferredRequest>,
}

/// `ContainerPreferredAllocationRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredRequest {
    /// Devices to choose of.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// Devices that must be among them.
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    /// How many.
    #[prost(int32, tag = "3")]
    pub allocation_size: i32,
}

/// `PreferredAllocationResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Preferred {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<DeviceIds>,
}

/// `AllocateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateRequest {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<DeviceIds>,
}

/// `AllocateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateResponse {
    /// One a container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<Allocated>,
}

/// `ContainerAllocateResponse`: what a container needs for its devices.
#[derive(Clone, PartialEq, Message)]
pub struct Allocated {
    /// Variables.
    #[prost(map = "string, string", tag = "1")]
    pub envs: HashMap<String, String>,
    /// Mounts.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device nodes.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
    /// Annotations for the runtime.
    #[prost(map = "string, string", tag = "4")]
    pub annotations: HashMap<String, String>,
    /// Devices by their names in the Container Device Interface.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// `Mount`.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// In the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// On the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Read-only.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// `DeviceSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct DeviceSpec {
    /// In the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// On the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// `CDIDevice`.
#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `v1.ListPodResourcesResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PodResourcesList {
    /// The pods.
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

/// `v1.GetPodResourcesRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PodName {
    /// Name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
}

/// `v1.GetPodResourcesResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct OnePodResources {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod_resources: Option<PodResources>,
}

/// `v1.PodResources`.
#[derive(Clone, PartialEq, Message)]
pub struct PodResources {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its containers.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// `v1.ContainerResources`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerResources {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Devices.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
    /// CPUs that are its own.
    #[prost(int64, repeated, tag = "3")]
    pub cpu_ids: Vec<i64>,
}

/// `v1.ContainerDevices`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerDevices {
    /// Resource.
    #[prost(string, tag = "1")]
    pub resource_name: String,
    /// Ids.
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
    /// Where they are.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<Topology>,
}

/// `v1.AllocatableResourcesResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct AllocatableResources {
    /// Devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<ContainerDevices>,
    /// CPUs that can be given to containers alone.
    #[prost(int64, repeated, tag = "2")]
    pub cpu_ids: Vec<i64>,
}
