//! Upstream's names of the kinds of volumes.

use super::claims::Claimed;
use k8s_openapi::api::core::v1::Volume;

/// The plugin that would serve a volume; `claimed` is what its claim is bound to.
#[must_use]
pub fn plugin(volume: &Volume, claimed: Option<&Claimed>) -> &'static str {
    if let Some(spec) = claimed.and_then(|c| c.volume.spec.as_ref()) {
        return match () {
            () if spec.csi.is_some() => "kubernetes.io/csi",
            () if spec.host_path.is_some() => "kubernetes.io/host-path",
            () if spec.local.is_some() => "kubernetes.io/local-volume",
            () => "kubernetes.io/persistent-claim",
        };
    }
    match () {
        () if volume.empty_dir.is_some() => "kubernetes.io/empty-dir",
        () if volume.host_path.is_some() => "kubernetes.io/host-path",
        () if volume.config_map.is_some() => "kubernetes.io/configmap",
        () if volume.secret.is_some() => "kubernetes.io/secret",
        () if volume.downward_api.is_some() => "kubernetes.io/downward-api",
        () if volume.projected.is_some() => "kubernetes.io/projected",
        () if volume.csi.is_some() => "kubernetes.io/csi",
        () if volume.image.is_some() => "kubernetes.io/image",
        () => "kubernetes.io/persistent-claim",
    }
}

/// Notes how long an operation on a volume took, and whether it succeeded.
pub fn operated(plugin: &str, operation: &str, begin: std::time::Instant, is_ok: bool) {
    let status = if is_ok { "success" } else { "fail-unknown" };
    crate::metrics::STORAGE_OPERATIONS.took(&[plugin, operation, status, "false"], begin);
    if is_ok {
        crate::metrics::VOLUME_OPERATIONS.took(&[plugin, operation], begin);
    }
}
