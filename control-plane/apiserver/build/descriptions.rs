//! Texts of types and fields, taken from the schemas that k8s-openapi has of upstream's API.

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Adds types of a module with all types that they refer to.
macro_rules! add {
    ($generator:ident, $($module:ident)::+: $($kind:ident)+) => {{
        use $($module)::+ as module;
        $($generator.subschema_for::<module::$kind>();)+
    }};
}

/// The kinds that the API server knows: what they refer to follows.
fn add_kinds(generator: &mut SchemaGenerator) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
    use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
    use pkg::apis::meta;
    add!(generator, api::admissionregistration::v1:
        MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration
        ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration);
    add!(generator, apiextensions::v1: CustomResourceDefinition);
    add!(generator, apiregistration::v1: APIService);
    add!(generator, api::apps::v1: ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet);
    add!(generator, api::authentication::v1: SelfSubjectReview TokenRequest TokenReview);
    add!(generator, api::authorization::v1:
        LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview);
    add!(generator, api::autoscaling::v1: HorizontalPodAutoscaler Scale);
    add!(generator, api::autoscaling::v2: HorizontalPodAutoscaler);
    add!(generator, api::batch::v1: CronJob Job);
    add!(generator, api::certificates::v1: CertificateSigningRequest);
    add!(generator, api::coordination::v1: Lease);
    add!(generator, api::core::v1:
        Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount);
    add!(generator, api::discovery::v1: EndpointSlice);
    add!(generator, api::events::v1: Event);
    add!(generator, api::flowcontrol::v1: FlowSchema PriorityLevelConfiguration);
    add!(generator, api::networking::v1: IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR);
    add!(generator, api::node::v1: RuntimeClass);
    add!(generator, api::policy::v1: Eviction PodDisruptionBudget);
    add!(generator, api::rbac::v1: ClusterRole ClusterRoleBinding Role RoleBinding);
    add!(generator, api::resource::v1: DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice);
    add!(generator, api::scheduling::v1: PriorityClass);
    add!(generator, api::storage::v1:
        CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass);
    add!(generator, meta::v1: APIGroup APIGroupList APIResourceList APIVersions DeleteOptions ListMeta Patch Status);
    add!(generator, pkg::version: Info);
    generator.subschema_for::<meta::v1::WatchEvent<api::core::v1::Pod>>();
}

/// `TYPE` and `TYPE/FIELD` with their texts.
fn texts(definitions: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |schema: &Value| Some(schema.get("description")?.as_str()?.trim_end().to_owned());
    let mut out = BTreeMap::new();
    for (name, schema) in definitions {
        if let Some(text) = text(schema) {
            out.insert(name.clone(), text);
        }
        let fields = schema.get("properties").and_then(Value::as_object);
        for (field, schema) in fields.into_iter().flatten() {
            if let Some(text) = text(schema) {
                out.insert(format!("{name}/{field}"), text);
            }
        }
    }
    out
}

/// The texts, each as `NAME NUL TEXT SOH`, sorted by name, compressed.
pub(crate) fn packed() -> io::Result<Vec<u8>> {
    let mut generator = SchemaSettings::default().into_generator();
    add_kinds(&mut generator);
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    for (name, text) in texts(generator.definitions()) {
        if name.contains(['\0', '\x01']) || text.contains(['\0', '\x01']) {
            return Err(io::Error::other(format!("the text of {name} has control characters")));
        }
        write!(out, "{name}\0{text}\x01")?;
    }
    out.finish()
}
