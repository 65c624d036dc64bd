//! The families that this process counts, with upstream's names, labels, bounds and texts (Kubernetes 1.36, `pkg/kubelet/metrics`
//! and the packages that register beside it), and with CoreDNS's for cluster DNS.
//!
//! What stands for something that this node does not have (the managers of exclusive CPUs and memory, the queue of an
//! event-driven PLEG, intents of image pulls on disk) is shown all the same, at zero: dashboards and alerts name it.

use super::{Kind, Metric};

/// Bounds of upstream's start durations, seconds.
const STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0,
    480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Prometheus' default bounds, seconds.
const DEFAULT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of a runtime's calls, seconds: 5 ms, each 2.5 times the one before.
const CALLS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078_125,
    0.195_312_5,
    0.488_281_25,
    1.220_703_125,
    3.051_757_812_5,
    7.629_394_531_25,
    19.073_486_328_125,
    47.683_715_820_312_5,
    119.209_289_550_781_25,
    298.023_223_876_953_1,
    745.058_059_692_382_8,
];
/// Bounds of storage operations, seconds.
const STORAGE: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// Bounds of counts: powers of two.
const FEW: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0];
/// Bounds of an admission, ms.
const ADMISSION: &[f64] =
    &[0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6, 819.2];
/// Bounds of a resize, ms: 10, each twice the one before.
const RESIZES: &[f64] = &[
    10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0, 5120.0, 10_240.0, 20_480.0, 40_960.0,
    81_920.0, 163_840.0,
];
/// Bounds of a status's way to the API server, seconds.
const STATUS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Bounds of a connection's latency, seconds.
const CONNECTION: &[f64] = DEFAULT;

/// CoreDNS's bounds, seconds.
const DNS_TIMES: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192,
];

macro_rules! families {
    ($($name:ident $kind:ident $(($bounds:expr))? $text:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = concat!("`", $help, "`")]
            pub static $name: Metric = Metric {
                name: $text,
                help: $help,
                labels: &[$($label),*],
                kind: Kind::$kind $(($bounds))?,
            };
        )*
        /// All of them.
        pub(super) static ALL: &[&Metric] = &[$(&$name),*];
    };
}

families! {
    EVICTIONS Counter "kubelet_evictions" ["eviction_signal"] "[ALPHA] Cumulative number of pod evictions by eviction signal";
    REJECTIONS Counter "kubelet_admission_rejections_total" ["reason"] "[ALPHA] Cumulative number pod admission rejections by the Kubelet.";
    STARTED_CONTAINERS Counter "kubelet_started_containers_total" ["container_type"] "[ALPHA] Cumulative number of containers started";
    STARTED_CONTAINERS_ERRORS Counter "kubelet_started_containers_errors_total" ["container_type", "code"] "[ALPHA] Cumulative number of errors when starting containers";
    TERMINATED_CONTAINERS Counter "kubelet_terminated_containers_total" ["container_type", "exit_code", "reason"] "[ALPHA] Cumulative number of containers that terminated, by type, exit code and reason";
    STARTED_PODS Counter "kubelet_started_pods_total" [] "[ALPHA] Cumulative number of pods started";
    STARTED_PODS_ERRORS Counter "kubelet_started_pods_errors_total" [] "[ALPHA] Cumulative number of errors when starting pods";
    STARTED_USER_PODS Counter "kubelet_started_user_namespaced_pods_total" [] "[ALPHA] Cumulative number of pods with user namespaces started";
    STARTED_USER_PODS_ERRORS Counter "kubelet_started_user_namespaced_pods_errors_total" [] "[ALPHA] Cumulative number of errors when starting pods with user namespaces";
    MIRROR_PODS Gauge "kubelet_mirror_pods" [] "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    RESTARTED_PODS Counter "kubelet_restarted_pods_total" ["static"] "[ALPHA] Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them";
    CONTAINERS_PER_POD Histogram(FEW) "kubelet_containers_per_pod_count" [] "[ALPHA] The number of containers per pod.";
    POD_START Histogram(STARTS) "kubelet_pod_start_duration_seconds" [] "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
    POD_START_SLI Histogram(STARTS) "kubelet_pod_start_sli_duration_seconds" [] "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    POD_START_TOTAL Histogram(STARTS) "kubelet_pod_start_total_duration_seconds" [] "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    FIRST_NETWORK_POD Gauge "kubelet_first_network_pod_start_sli_duration_seconds" [] "[ALPHA] Duration in seconds to start the first network pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch";
    RUN_SANDBOX Histogram(DEFAULT) "kubelet_run_podsandbox_duration_seconds" ["runtime_handler"] "[ALPHA] Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.";
    POD_WORKER Histogram(DEFAULT) "kubelet_pod_worker_duration_seconds" ["operation_type"] "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync";
    POD_WORKER_START Histogram(DEFAULT) "kubelet_pod_worker_start_duration_seconds" [] "[ALPHA] Duration in seconds from kubelet seeing a pod to starting a worker.";
    STATUS_SYNC Histogram(STATUS) "kubelet_pod_status_sync_duration_seconds" [] "[ALPHA] Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.";
    WATCH_DROPPED Counter "kubelet_pod_watch_events_dropped_total" [] "[ALPHA] Cumulative number of pod watch events dropped.";
    ORPHANED_PODS Counter "kubelet_orphaned_runtime_pods_total" [] "[ALPHA] Number of pods that have been detected in the container runtime without being already known to the pod worker.";
    ORPHAN_VOLUMES Gauge "kubelet_orphan_pod_cleaned_volumes" [] "[ALPHA] The total number of orphaned Pods whose volumes were cleaned in the last periodic sweep.";
    ORPHAN_VOLUMES_ERRORS Gauge "kubelet_orphan_pod_cleaned_volumes_errors" [] "[ALPHA] The number of orphaned Pods whose volumes failed to be cleaned in the last periodic sweep.";
    RUNTIME_OPERATIONS Counter "kubelet_runtime_operations_total" ["operation_type"] "[ALPHA] Cumulative number of runtime operations by operation type.";
    RUNTIME_ERRORS Counter "kubelet_runtime_operations_errors_total" ["operation_type"] "[ALPHA] Cumulative number of runtime operation errors by operation type.";
    RUNTIME_DURATION Histogram(CALLS) "kubelet_runtime_operations_duration_seconds" ["operation_type"] "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.";
    CGROUPS Histogram(DEFAULT) "kubelet_cgroup_manager_duration_seconds" ["operation_type"] "[ALPHA] Duration in seconds for cgroup manager operations. Broken down by method.";
    CGROUP_VERSION Gauge "kubelet_cgroup_version" [] "[ALPHA] cgroup version on the hosts.";
    PLEG_LIST Histogram(DEFAULT) "kubelet_pleg_relist_duration_seconds" [] "[ALPHA] Duration in seconds for relisting pods in PLEG.";
    PLEG_POD Histogram(DEFAULT) "kubelet_pleg_pod_relist_duration_seconds" [] "[ALPHA] Duration in seconds for relisting a single pod in PLEG.";
    PLEG_INTERVAL Histogram(DEFAULT) "kubelet_pleg_relist_interval_seconds" [] "[ALPHA] Interval in seconds between relisting in PLEG.";
    PLEG_SEEN Gauge "kubelet_pleg_last_seen_seconds" [] "[ALPHA] Timestamp in seconds when PLEG was last seen active.";
    PLEG_DISCARDED Counter "kubelet_pleg_discard_events" [] "[ALPHA] The number of discard events in PLEG.";
    EVENTED_PLEG_ERRORS Counter "kubelet_evented_pleg_connection_error_count" [] "[ALPHA] The number of errors encountered during the establishment of streaming connection with the CRI runtime.";
    EVENTED_PLEG_SUCCESSES Counter "kubelet_evented_pleg_connection_success_count" [] "[ALPHA] The number of times a streaming client was obtained to receive CRI Events.";
    EVENTED_PLEG_LATENCY Histogram(CONNECTION) "kubelet_evented_pleg_connection_latency_seconds" [] "[ALPHA] The latency of streaming connection with the CRI runtime, measured in seconds.";
    REQUESTED_RESIZES Counter "kubelet_container_requested_resizes_total" ["resource", "requirement", "operation"] "[ALPHA] Number of requested resizes, counted at the container level. Different resources on the same container are counted separately.";
    RESIZE_DURATION Histogram(RESIZES) "kubelet_pod_resize_duration_milliseconds" ["success"] "[ALPHA] Duration in milliseconds to actuate a pod resize";
    RESIZES_IN_PROGRESS Gauge "kubelet_pod_in_progress_resizes" [] "[ALPHA] Number of in-progress resizes for pods.";
    DEFERRED_RESIZES Counter "kubelet_pod_deferred_accepted_resizes_total" ["retry_trigger"] "[ALPHA] Cumulative number of resizes that were accepted after being deferred.";
    INFEASIBLE_RESIZES Counter "kubelet_pod_infeasible_resizes_total" ["reason_detail"] "[ALPHA] Number of infeasible resizes for pods, broken down by reason.";
    ENSURE_IMAGE Counter "kubelet_image_manager_ensure_image_requests_total" ["present_locally", "pull_policy", "pull_required"] "[ALPHA] Number of ensure-image requests processed by the kubelet.";
    MUST_PULL Counter "kubelet_imagemanager_image_mustpull_checks_total" ["result"] "[ALPHA] Counter for how many times kubelet checked whether credentials need to be re-verified to access an image";
    PULL_RECORDS_DISK Gauge "kubelet_imagemanager_ondisk_pulledrecords" [] "[ALPHA] Number of ImagePulledRecords stored on disk.";
    PULL_INTENTS_DISK Gauge "kubelet_imagemanager_ondisk_pullintents" [] "[ALPHA] Number of ImagePullIntents stored on disk.";
    PULL_RECORDS_MEMORY Gauge "kubelet_imagemanager_inmemory_pulledrecords_usage_percent" [] "[ALPHA] The ImagePulledRecords in-memory cache usage in percent.";
    PULL_INTENTS_MEMORY Gauge "kubelet_imagemanager_inmemory_pullintents_usage_percent" [] "[ALPHA] The ImagePullIntents in-memory cache usage in percent.";
    IMAGE_VOLUMES Counter "kubelet_image_volume_requested_total" [] "[ALPHA] Number of requested image volumes.";
    IMAGE_VOLUMES_MOUNTED Counter "kubelet_image_volume_mounted_succeed_total" [] "[ALPHA] Number of successful image volume mounts.";
    IMAGE_VOLUMES_FAILED Counter "kubelet_image_volume_mounted_errors_total" [] "[ALPHA] Number of failed image volume mounts.";
    HTTP_FALLBACKS Counter "kubelet_lifecycle_handler_http_fallbacks_total" [] "[ALPHA] The number of times lifecycle handlers successfully fell back to http from https.";
    SLEEPS_CUT Counter "kubelet_sleep_action_terminated_early_total" [] "[ALPHA] The number of times lifecycle sleep handler got terminated before it finishes";
    HTTP_REQUESTS Counter "kubelet_http_requests_total" ["method", "path", "server_type", "long_running"] "[ALPHA] Number of the http requests received since the server started";
    HTTP_INFLIGHT Gauge "kubelet_http_inflight_requests" ["method", "path", "server_type", "long_running"] "[ALPHA] Number of the inflight http requests";
    HTTP_DURATION Histogram(DEFAULT) "kubelet_http_requests_duration_seconds" ["method", "path", "server_type", "long_running"] "[ALPHA] Duration in seconds to serve http requests";
    WEBSOCKETS Counter "kubelet_websocket_streaming_requests_total" ["subresource"] "[ALPHA] Number of WebSocket streaming requests";
    STARTUP Gauge "kubelet_node_startup_duration_seconds" [] "[ALPHA] Duration in seconds of node startup in total.";
    STARTUP_BEFORE Gauge "kubelet_node_startup_pre_kubelet_duration_seconds" [] "[ALPHA] Duration in seconds of node startup before kubelet starts.";
    STARTUP_UNREGISTERED Gauge "kubelet_node_startup_pre_registration_duration_seconds" [] "[ALPHA] Duration in seconds of node startup before registration.";
    STARTUP_REGISTRATION Gauge "kubelet_node_startup_registration_duration_seconds" [] "[ALPHA] Duration in seconds of node startup during registration.";
    STARTUP_REGISTERED Gauge "kubelet_node_startup_post_registration_duration_seconds" [] "[ALPHA] Duration in seconds of node startup after registration.";
    SHUTDOWN_START Gauge "kubelet_graceful_shutdown_start_time_seconds" [] "[ALPHA] Last graceful shutdown start time since unix epoch in seconds";
    SHUTDOWN_END Gauge "kubelet_graceful_shutdown_end_time_seconds" [] "[ALPHA] Last graceful shutdown end time since unix epoch in seconds";
    CPU_PINNED Counter "kubelet_cpu_manager_pinning_requests_total" [] "[ALPHA] The number of cpu core allocations which required pinning.";
    CPU_PINNED_ERRORS Counter "kubelet_cpu_manager_pinning_errors_total" [] "[ALPHA] The number of cpu core allocations which required pinning failed.";
    CPU_SHARED Gauge "kubelet_cpu_manager_shared_pool_size_millicores" [] "[ALPHA] The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.";
    CPU_EXCLUSIVE Gauge "kubelet_cpu_manager_exclusive_cpu_allocation_count" [] "[ALPHA] The total number of CPUs exclusively allocated to containers running on this node";
    MEMORY_PINNED Counter "kubelet_memory_manager_pinning_requests_total" [] "[ALPHA] The number of memory pages allocations which required pinning.";
    MEMORY_PINNED_ERRORS Counter "kubelet_memory_manager_pinning_errors_total" [] "[ALPHA] The number of memory pages allocations which required pinning that failed.";
    TOPOLOGY Counter "kubelet_topology_manager_admission_requests_total" [] "[ALPHA] The number of admission requests where resources have to be aligned.";
    TOPOLOGY_ERRORS Counter "kubelet_topology_manager_admission_errors_total" [] "[ALPHA] The number of admission request failures where resources could not be aligned.";
    TOPOLOGY_DURATION Histogram(ADMISSION) "kubelet_topology_manager_admission_duration_ms" [] "[ALPHA] Duration in milliseconds to serve a pod admission request.";
    VOLUME_MEASURED Histogram(DEFAULT) "kubelet_volume_metric_collection_duration_seconds" ["metric_source"] "[ALPHA] Duration in seconds to calculate volume stats";
    STORAGE_OPERATIONS Histogram(STORAGE) "storage_operation_duration_seconds" ["volume_plugin", "operation_name", "status", "migrated"] "[ALPHA] Storage operation duration";
    VOLUME_OPERATIONS Histogram(STORAGE) "volume_operation_total_seconds" ["plugin_name", "operation_name"] "[ALPHA] Storage operation end to end duration in seconds";
    DEVICE_REGISTRATIONS Counter "kubelet_device_plugin_registration_total" ["resource_name"] "[ALPHA] Cumulative number of device plugin registrations. Broken down by resource name.";
    POD_RESOURCES Counter "kubelet_pod_resources_endpoint_requests_total" ["server_api_version"] "[ALPHA] Cumulative number of requests to the PodResource endpoint. Broken down by server api version.";
    PROBES Counter "prober_probe_total" ["probe_type", "result", "container", "pod", "namespace", "pod_uid"] "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    PROBE_DURATION Histogram(DEFAULT) "prober_probe_duration_seconds" ["probe_type", "container", "pod", "namespace"] "[ALPHA] Duration in seconds for a probe response.";
    DNS_REQUESTS Counter "coredns_dns_requests_total" ["zone", "proto", "family", "type"] "Counter of DNS requests made per zone, protocol and family.";
    DNS_RESPONSES Counter "coredns_dns_responses_total" ["zone", "rcode"] "Counter of response status codes.";
    DNS_DURATION Histogram(DNS_TIMES) "coredns_dns_request_duration_seconds" ["zone"] "Histogram of the time (in seconds) each request took per zone.";
    DNS_CACHE_HITS Counter "coredns_cache_hits_total" ["type"] "The count of cache hits.";
    DNS_CACHE_MISSES Counter "coredns_cache_misses_total" [] "The count of cache misses.";
}
