//! Which fields an endpoint writes, for `managedFields`: what a subresource's strategy resets, it does not own
//! (`GetResetFields` of the strategies in `pkg/registry`).

use super::{Resource, SubresourceKind};
use crate::patch::apply::{Owns, Paths};

const STATUS: Owns = Owns::AllBut(&[&["status"]]);
const SPEC: Owns = Owns::AllBut(&[&["spec"]]);
const SPEC_AND_METADATA: Owns = Owns::AllBut(&[&["spec"], &["metadata"]]);
const RESIZED: Paths = &[
    &["spec", "containers", "*", "resources"],
    &["spec", "containers", "*", "resizePolicy"],
    &["spec", "initContainers", "*", "resources"],
    &["spec", "initContainers", "*", "resizePolicy"],
    &["spec", "resources"],
];

/// Subresources whose rule is not that of their name alone.
const SPECIAL: &[(&str, &str, &str, Owns)] = &[
    (
        "",
        "Pod",
        "status",
        Owns::AllBut(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]),
    ),
    ("", "Pod", "resize", Owns::Only(RESIZED)),
    ("", "Pod", "ephemeralcontainers", Owns::Only(&[&["spec", "ephemeralContainers"]])),
    ("apps", "Deployment", "status", Owns::AllBut(&[&["spec"], &["metadata", "labels"]])),
    ("storage.k8s.io", "VolumeAttachment", "status", SPEC_AND_METADATA),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", "status", SPEC_AND_METADATA),
    ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", "status", SPEC_AND_METADATA),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        "approval",
        Owns::AllBut(&[&["spec"], &["status", "certificate"]]),
    ),
    ("certificates.k8s.io", "CertificateSigningRequest", "", Owns::AllBut(&[&["spec"], &["status"]])),
];

/// The fields that writes through a subresource (empty: the object itself) own.
pub(crate) fn owned(resource: &Resource, subresource: &str) -> Owns {
    let special = SPECIAL.iter().find(|(group, kind, name, _)| {
        (*group, *kind, *name) == (resource.group(), resource.kind(), subresource)
    });
    if let Some((.., owns)) = special {
        return *owns;
    }
    // Writes through the status of a custom resource change no metadata.
    if resource.custom.is_some() && subresource == "status" {
        return SPEC_AND_METADATA;
    }
    let has_status = resource.subresources.iter().any(|s| s.does == SubresourceKind::Status);
    match subresource {
        "status" => SPEC,
        _ if has_status => STATUS,
        _ => Owns::ALL,
    }
}
