use serde_json::json;

use super::super::{create, update, update_status};
use crate::codec::{self, FieldValidation};
use crate::error::FieldError;
use crate::gvk::GroupVersionKind;
use crate::{defaults, schema};
use serde_json::Value;

fn prepared(api_version: &str, kind: &str, mut body: Value) -> (GroupVersionKind, Value) {
    let gvk = GroupVersionKind::from_api_version(api_version, kind);
    body["apiVersion"] = api_version.into();
    body["kind"] = kind.into();
    if body["metadata"].get("name").is_none() {
        body["metadata"]["name"] = "a".into();
    }
    let schema = schema::by_gvk(&gvk).expect("schema");
    let decoded =
        codec::decode_body(None, body.to_string().as_bytes(), &gvk, schema, FieldValidation::Strict);
    let mut object = decoded.expect("decodes").object;
    defaults::apply(&gvk, &mut object);
    (gvk, object)
}

fn texts(errs: &[FieldError]) -> Vec<String> {
    errs.iter().map(ToString::to_string).collect()
}

fn refused(api_version: &str, kind: &str, body: Value) -> Vec<String> {
    let (gvk, object) = prepared(api_version, kind, body);
    texts(&create(&gvk, &object))
}

fn namespaced(mut body: Value) -> Value {
    body["metadata"]["namespace"] = "default".into();
    body
}

fn changed(api_version: &str, kind: &str, body: Value, change: impl Fn(&mut Value)) -> Vec<String> {
    let (gvk, mut old) = prepared(api_version, kind, body);
    assert_eq!(texts(&create(&gvk, &old)), [""; 0]);
    old["metadata"]["resourceVersion"] = "1".into();
    let mut new = old.clone();
    change(&mut new);
    let mut out = texts(&update(&gvk, &new, &old));
    out.dedup();
    out
}

#[test]
fn ingresses() {
    const API: &str = "networking.k8s.io/v1";
    assert_eq!(
        refused(API, "Ingress", namespaced(json!({"spec": {}}))),
        ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
    );
    let rules = json!([
        {"host": "10.0.0.1", "http": {"paths": [{"path": "a//b", "pathType": "Prefix", "backend": {}}]}},
        {"host": "*", "http": {"paths": [{"path": "/", "backend": {"service": {"name": "s"}}}]}},
        {"http": {"paths": [{"path": "x", "pathType": "Odd",
            "backend": {"service": {"name": "s", "port": {"name": "p", "number": 1}}}}]}}]);
    assert_eq!(
        refused(API, "Ingress", namespaced(json!({"spec": {"rules": rules}}))),
        [
            "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must be an absolute path",
            "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must not contain '//'",
            "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            "spec.rules[1].host: Invalid value: \"*\": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "spec.rules[1].http.paths[0].pathType: Required value: pathType must be specified",
            "spec.rules[2].http.paths[0].pathType: Unsupported value: \"Odd\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"",
            "spec.rules[2].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
        ]
    );
    assert_eq!(
        refused(
            API,
            "IngressClass",
            json!({"spec": {"controller": "x", "parameters": {"kind": "K", "name": "n", "scope": "Namespace"}}})
        ),
        [
            "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
        ]
    );
    let class = json!({"spec": {"controller": "a.io/b"}});
    assert_eq!(
        changed(API, "IngressClass", class, |c| c["spec"]["controller"] = "a.io/c".into()),
        ["spec.controller: Invalid value: \"a.io/c\": field is immutable"]
    );
}

#[test]
fn network_policies() {
    const API: &str = "networking.k8s.io/v1";
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Out"], "ingress": [{
        "ports": [{"protocol": "ICMP"}, {"port": 80, "endPort": 79}, {"port": "web", "endPort": 90}, {"endPort": 1}],
        "from": [{}, {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16", "10.0.0.0/8", "x"]}}]}]});
    assert_eq!(
        refused(API, "NetworkPolicy", namespaced(json!({"spec": spec}))),
        [
            "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
            "spec.ingress[0].ports[1].endPort: Invalid value: 80: must be greater than or equal to `port`",
            "spec.ingress[0].ports[2].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            "spec.ingress[0].ports[3].endPort: Invalid value: 1: may not be specified when `port` is not specified",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[1].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[1].ipBlock.except[2]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
            "spec.policyTypes[1]: Unsupported value: \"Out\": supported values: \"Ingress\", \"Egress\"",
        ]
    );
}

#[test]
fn service_ranges_and_addresses() {
    const API: &str = "networking.k8s.io/v1";
    for (ranges, want) in [
        (json!([]), "spec.cidrs: Required value: at least one CIDR required"),
        (
            json!(["10.0.0.1/8"]),
            "spec.cidrs[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix length",
        ),
        (
            json!(["010.0.0.0/8"]),
            "spec.cidrs[0]: Invalid value: \"010.0.0.0/8\": must not have leading 0s in IP or prefix length",
        ),
        (
            json!(["FD00::/8"]),
            "spec.cidrs[0]: Invalid value: \"FD00::/8\": must be in canonical form (\"fd00::/8\")",
        ),
        (
            json!(["10.0.0.0/8", "11.0.0.0/8"]),
            "spec.cidrs: Invalid value: {\"CIDRs\":[\"10.0.0.0/8\",\"11.0.0.0/8\"]}: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96",
        ),
    ] {
        assert_eq!(refused(API, "ServiceCIDR", json!({"spec": {"cidrs": ranges}})), [want]);
    }
    let one = || json!({"spec": {"cidrs": ["10.0.0.0/8"]}});
    assert_eq!(
        changed(API, "ServiceCIDR", one(), |c| c["spec"]["cidrs"] = json!(["11.0.0.0/8"])),
        ["spec.cidrs[0]: Invalid value: \"11.0.0.0/8\": field is immutable"]
    );
    assert_eq!(
        changed(API, "ServiceCIDR", one(), |c| c["spec"]["cidrs"] = json!(["10.0.0.0/8", "fd00::/8"])),
        [""; 0]
    );
    let parent = json!({"parentRef": {"resource": "services", "name": "s"}});
    for (name, want) in [
        (
            "10.0.0.01",
            "metadata.name: Invalid value: \"10.0.0.01\": ParseAddr(\"10.0.0.01\"): IPv4 field has octet with leading zero",
        ),
        ("FD00::1", "metadata.name: Invalid value: \"FD00::1\": must be a canonical form IP address"),
        ("x", "metadata.name: Invalid value: \"x\": ParseAddr(\"x\"): unable to parse IP"),
    ] {
        let body = json!({"metadata": {"name": name}, "spec": parent});
        assert_eq!(refused(API, "IPAddress", body), [want]);
    }
    assert_eq!(
        refused(API, "IPAddress", json!({"metadata": {"name": "10.0.0.1"}, "spec": {}})),
        ["spec.parentRef: Required value"]
    );
}

#[test]
fn storage() {
    const API: &str = "storage.k8s.io/v1";
    assert_eq!(
        refused(
            API,
            "StorageClass",
            json!({"provisioner": "", "reclaimPolicy": "Recycle", "volumeBindingMode": "Late"})
        ),
        [
            "provisioner: Required value",
            "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
            "volumeBindingMode: Unsupported value: \"Late\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
        ]
    );
    let class = json!({"provisioner": "a.io/b", "parameters": {"a": "b"}});
    assert_eq!(
        changed(API, "StorageClass", class, |c| {
            c["parameters"] = json!({});
            c["provisioner"] = "c".into();
            c["reclaimPolicy"] = "Retain".into();
            c["volumeBindingMode"] = "WaitForFirstConsumer".into();
            c["allowVolumeExpansion"] = true.into();
        }),
        [
            "parameters: Forbidden: updates to parameters are forbidden.",
            "provisioner: Forbidden: updates to provisioner are forbidden.",
            "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
            "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
        ]
    );
    assert_eq!(
        refused(API, "VolumeAttachment", json!({"spec": {"attacher": "", "nodeName": "n", "source": {}}})),
        [
            "spec.attacher: Required value",
            "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            "spec.attacher: Required value",
            "spec.attacher: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ]
    );
    let driver = json!({"spec": {"tokenRequests": [{"audience": "a"}, {"audience": "a"}, {"audience": "b", "expirationSeconds": 5}]}});
    assert_eq!(
        refused(API, "CSIDriver", driver),
        [
            "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            "spec.tokenRequests[2].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
        ]
    );
    assert_eq!(
        changed(API, "CSIDriver", json!({"spec": {}}), |d| d["spec"]["attachRequired"] = false.into()),
        ["spec.attachedRequired: Invalid value: false: field is immutable"]
    );
    assert_eq!(
        refused(API, "VolumeAttributesClass", json!({"driverName": "d"})),
        ["parameters: Required value: must contain at least one key/value pair"]
    );
    let capacity = namespaced(json!({"storageClassName": "", "capacity": "-1"}));
    assert_eq!(refused(API, "CSIStorageCapacity", capacity).len(), 2);
}

#[test]
fn classes() {
    const API: &str = "scheduling.k8s.io/v1";
    assert_eq!(
        refused(API, "PriorityClass", json!({"value": 1_000_000_001, "preemptionPolicy": "Maybe"})),
        [
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            "preemptionPolicy: Unsupported value: \"Maybe\": supported values: \"PreemptLowerPriority\", \"Never\"",
        ]
    );
    assert_eq!(
        refused(API, "PriorityClass", json!({"metadata": {"name": "system-x"}, "value": 1})),
        [
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"
        ]
    );
    assert_eq!(
        changed(API, "PriorityClass", json!({"value": 1}), |c| c["value"] = 2.into()),
        ["value: Forbidden: may not be changed in an update."]
    );
    assert_eq!(
        changed("node.k8s.io/v1", "RuntimeClass", json!({"handler": "h"}), |c| c["handler"] = "x".into()),
        ["handler: Invalid value: \"x\": field is immutable"]
    );
}

#[test]
fn flow_control() {
    const API: &str = "flowcontrol.apiserver.k8s.io/v1";
    let spec = json!({"priorityLevelConfiguration": {"name": ""}, "matchingPrecedence": 1,
        "distinguisherMethod": {"type": "ByMoon"},
        "rules": [{"subjects": [{"kind": "User"}, {"kind": "Moon"}]},
            {"subjects": [{"kind": "Group", "group": {"name": "g"}, "user": {"name": "u"}}],
             "resourceRules": [{"verbs": ["fly"], "apiGroups": ["*", "a"], "resources": [], "namespaces": ["A"]}],
             "nonResourceRules": [{"verbs": [], "nonResourceURLs": ["x", "/a/*b"]}]}]});
    let found = refused(API, "FlowSchema", json!({"spec": spec}));
    for want in [
        "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
        "spec.distinguisherMethod.type: Unsupported value: {\"Type\":\"ByMoon\"}: supported values: \"ByNamespace\", \"ByUser\"",
        "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
        "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
        "spec.rules[0].subjects[1].kind: Unsupported value: \"Moon\": supported values: \"Group\", \"ServiceAccount\", \"User\"",
        "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
        "spec.rules[1].subjects[0].user: Forbidden: user is forbidden when subject kind is not 'User'",
        "spec.rules[1].resourceRules[0].verbs: Unsupported value: [\"fly\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"",
        "spec.rules[1].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"x\": must start with slash",
        "spec.rules[1].nonResourceRules[0].nonResourceURLs[1]: Invalid value: \"/a/*b\": wildcard can only do suffix matching",
    ] {
        assert!(found.iter().any(|f| f == want), "{want}\nin {found:#?}");
    }
    let queues = json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue",
        "queuing": {"queues": 1000, "handSize": 8}}}});
    assert_eq!(
        refused(API, "PriorityLevelConfiguration", json!({"spec": queues})),
        [
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 1000 and handSize 8 should not be greater than 60"
        ]
    );
    let mut fixed = crate::bootstrap::flowcontrol::mandatory("FlowSchema", "exempt").expect("mandatory");
    fixed["spec"]["rules"] = json!([]);
    assert!(refused(API, "FlowSchema", fixed)[0].ends_with("spec of 'exempt' must equal the fixed value"));
}

#[test]
fn admission() {
    const API: &str = "admissionregistration.k8s.io/v1";
    let hook = json!({"name": "a.b", "clientConfig": {"url": "http://u@h/?q#f", "service": {"name": "s", "namespace": "n"}},
        "rules": [{"operations": ["*", "CREATE"], "apiGroups": [], "apiVersions": ["v1"], "resources": ["pods", "*", "pods/*", "pods/x"]}],
        "sideEffects": "Some", "admissionReviewVersions": ["v3"], "timeoutSeconds": 31,
        "matchConditions": [{"name": "", "expression": " "}]});
    assert_eq!(
        refused(API, "ValidatingWebhookConfiguration", json!({"webhooks": [hook]})),
        [
            "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
            "webhooks[0].rules[0].apiGroups: Required value",
            "webhooks[0].rules[0].resources[3]: Invalid value: \"pods/x\": if 'pods/*' is present, must not specify pods/x",
            "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
            "webhooks[0].matchConditions[0].expression: Required value",
            "webhooks[0].matchConditions[0].name: Required value",
            "webhooks[0].admissionReviewVersions: Invalid value: [\"v3\"]: must include at least one of v1, v1beta1",
        ]
    );
    let spec = json!({"paramKind": {"apiVersion": "a/b/c", "kind": "x y"}, "matchConstraints": {},
        "variables": [{"name": "if", "expression": "1"}]});
    assert_eq!(
        refused(API, "ValidatingAdmissionPolicy", json!({"spec": spec}))[..],
        [
            "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            "spec.paramKind.kind: Invalid value: \"x y\": may have mixed case, but should otherwise match: a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            "spec.matchConstraints.resourceRules: Required value",
            "spec.variables[0].name: Invalid value: \"if\": name is not a valid CEL identifier",
            "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
            "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
        ]
    );
    assert_eq!(
        refused(
            API,
            "ValidatingAdmissionPolicyBinding",
            json!({"spec": {"paramRef": {}, "validationActions": ["Deny", "Warn"]}})
        ),
        [
            "spec.policyName: Required value",
            "spec.paramRef: Required value: one of name or selector must be specified",
            "spec.paramRef.parameterNotFoundAction: Required value",
            "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        ]
    );
}

#[test]
fn devices() {
    const API: &str = "resource.k8s.io/v1";
    let requests = json!([{"name": "a"}, {"name": "a", "exactly": {"deviceClassName": "", "allocationMode": "All", "count": 2}}]);
    let devices = json!({"requests": requests, "constraints": [{"requests": ["b"]}], "config": [{}]});
    assert_eq!(
        refused(API, "ResourceClaim", namespaced(json!({"spec": {"devices": devices}}))),
        [
            "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            "spec.devices.requests[1].exactly.deviceClassName: Required value",
            "spec.devices.requests[1].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'",
            "spec.devices.requests[1].name: Duplicate value: \"a\"",
            "spec.devices.constraints[0].requests[0]: Invalid value: \"b\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            "spec.devices.constraints[0].matchAttribute: Required value",
            "spec.devices.config[0].opaque: Required value",
        ]
    );
    let slice = json!({"driver": "d.io", "pool": {"name": "p"}, "allNodes": true, "nodeName": "n",
        "devices": [{"name": "x", "attributes": {"a-b": {"int": 1}, "v": {"version": "1"}}}]});
    let found = refused(API, "ResourceSlice", json!({"spec": slice}));
    assert_eq!(found[0], "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero");
    assert!(
        found[1].starts_with("spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of"),
        "{found:?}"
    );
    let (gvk, mut old) = prepared(API, "ResourceClaim", namespaced(json!({"spec": {"devices": {}}})));
    old["metadata"]["resourceVersion"] = "1".into();
    let mut new = old.clone();
    new["status"] = json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]});
    assert_eq!(
        texts(&update_status(&gvk, &new, &old)),
        ["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]
    );
}

#[test]
fn api_services() {
    const API: &str = "apiregistration.k8s.io/v1";
    let spec = json!({"group": "g.io", "version": "v1", "groupPriorityMinimum": 0, "versionPriority": 1001, "insecureSkipTLSVerify": true});
    assert_eq!(
        refused(API, "APIService", json!({"spec": spec})),
        [
            "metadata.name: Invalid value: \"a\": must be `spec.version+\".\"+spec.group`: \"v1.g.io\"",
            "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
            "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000",
            "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
        ]
    );
}
