use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::Type;

fn gvk(group: &str, kind: &str) -> GroupVersionKind {
    GroupVersionKind::new(group, "v1", kind)
}

fn decode(expected: &GroupVersionKind, body: &[u8], how: FieldValidation) -> Result<Decoded, ApiError> {
    let schema = crate::schema::by_gvk(expected).unwrap();
    decode_body(Some("application/json"), body, expected, schema, how)
}

fn pod(body: &str) -> Result<Decoded, ApiError> {
    decode(&gvk("", "Pod"), body.as_bytes(), FieldValidation::Strict)
}

fn message(result: Result<Decoded, ApiError>) -> String {
    result.map_or_else(|e| e.message().to_owned(), |d| format!("decoded {}", d.object))
}

#[test]
fn upstream_messages() {
    let p = "Pod in version \"v1\" cannot be handled as a Pod: ";
    for (body, want) in [
        (
            "",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)".to_owned(),
        ),
        (
            r#"{"spec":{"containers":"x"}}"#,
            format!("{p}json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container"),
        ),
        (
            r#"{"spec":{"containerz":[]}}"#,
            format!("{p}strict decoding error: unknown field \"spec.containerz\""),
        ),
        (
            r#"{"spec":{"containers":[{"nam":1,"name":"a","name":"b"}]}}"#,
            format!("{p}strict decoding error: unknown field \"spec.containers[0].nam\", duplicate field \"spec.containers[0].name\""),
        ),
        (
            r#"{"metadata":{"labels":{"a":1}}}"#,
            format!("{p}json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"),
        ),
        (
            r#"{"spec":{"terminationGracePeriodSeconds":1.5}}"#,
            format!("{p}json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.terminationGracePeriodSeconds of type int64"),
        ),
        (
            r#"{"spec":{"containers":[{"resources":{"requests":{"cpu":"lots"}}}]}}"#,
            format!("{p}quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        ),
        (
            r#"{"apiVersion":"v1","kind":"Service"}"#,
            "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion".to_owned(),
        ),
        (
            r#"{"apiVersion":"v1","kind":"Foo"}"#,
            "Foo in version \"v1\" cannot be handled as a Pod: no kind \"Foo\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"".to_owned(),
        ),
        (
            "[1]",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b315d)".to_owned(),
        ),
        (
            r#"{"a" 1}"#,
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: invalid character '1' after object key ({\"a\" 1})".to_owned(),
        ),
    ] {
        assert_eq!(message(pod(body)), want, "{body}");
    }
    let secret = decode(&gvk("", "Secret"), br#"{"data":{"a":"%%%"}}"#, FieldValidation::Strict);
    assert_eq!(
        message(secret),
        "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 0"
    );
    let media = decode_body(
        Some("text/html"),
        b"",
        &gvk("", "Pod"),
        crate::schema::by_gvk(&gvk("", "Pod")).unwrap(),
        FieldValidation::Warn,
    );
    assert_eq!(media.unwrap_err().code(), 415);
}

#[test]
fn objects_are_as_go_writes_them() {
    let body = r#"{"metadata":{"name":"a","labels":{},"creationTimestamp":null},"zzz":1,
        "spec":{"hostNetwork":false,"priority":0,"volumes":[],"nodeName":"",
                "containers":[{"name":"c","resources":{"limits":{"memory":"1024Mi","cpu":0.5}},"stdin":null}]}}"#;
    let d = decode(&gvk("", "Pod"), body.as_bytes(), FieldValidation::Warn).unwrap();
    assert_eq!(d.warnings, ["unknown field \"zzz\""]);
    assert_eq!(
        d.object,
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {},
               "spec": {"priority": 0, "containers": [
                   {"name": "c", "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}}]}})
    );
    let d = decode(&gvk("apps", "Deployment"), b"{}", FieldValidation::Strict).unwrap();
    assert_eq!(
        d.object,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "status": {},
               "spec": {"selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}}}})
    );
    let d =
        decode(&gvk("", "Service"), br#"{"spec":{"ports":[{"port":80}]}}"#, FieldValidation::Strict).unwrap();
    assert_eq!(d.object["spec"]["ports"], json!([{"port": 80, "targetPort": 0}]));
}

#[test]
fn yaml() {
    let schema = crate::schema::by_gvk(&gvk("", "ConfigMap")).unwrap();
    let body = b"kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata:\n  k: \"1\"\n";
    let d = decode_body(
        Some("application/yaml; charset=utf-8"),
        body,
        &gvk("", "ConfigMap"),
        schema,
        FieldValidation::Strict,
    );
    assert_eq!(d.unwrap().object["data"]["k"], "1");
    let d = decode_body(
        Some("application/yaml"),
        b"data: {k: 1}",
        &gvk("", "ConfigMap"),
        schema,
        FieldValidation::Strict,
    );
    assert_eq!(
        message(d),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
    );
}

/// An object of the type that uses every field once; `depth` bounds recursive types.
fn sample(ty: &TypeSchema, depth: usize) -> Value {
    let mut out = serde_json::Map::new();
    // Protobuf carries the kind in the envelope only.
    let type_meta =
        |name: &str| ty.inlined.iter().any(|(n, _)| *n == 0) && matches!(name, "apiVersion" | "kind");
    for field in ty.fields.iter().filter(|f| !type_meta(&f.name)) {
        if let Some(value) = sample_value(&field.ty, depth) {
            out.insert(field.name.to_string(), value);
        }
    }
    Value::Object(out)
}

fn sample_value(ty: &Type, depth: usize) -> Option<Value> {
    Some(match ty {
        Type::String(_) => "text".into(),
        Type::Bool => true.into(),
        Type::Int32 => (-7).into(),
        Type::Int64 => (1i64 << 40).into(),
        Type::Float64 => 1.5.into(),
        Type::Bytes => "AP8=".into(),
        Type::Quantity => "1500m".into(),
        Type::IntOrString => "25%".into(),
        Type::Time => "2024-05-06T07:08:09Z".into(),
        Type::MicroTime => "2024-05-06T07:08:09.123456Z".into(),
        Type::Raw | Type::FieldsV1 | Type::Json | Type::Deduced => json!({"f:a": {}}),
        Type::SchemaOrArray(r) => json!([sample(r.get(), depth.checked_sub(1)?)]),
        Type::SchemaOrBool(_) => true.into(),
        Type::SchemaOrStrings(_) => json!(["a"]),
        Type::List(t) | Type::Wrapped(t) => json!([sample_value(t, depth)?, sample_value(t, depth)?]),
        Type::Map(t) => json!({"k": sample_value(t, depth)?, "l": sample_value(t, depth)?}),
        Type::Object(r) => sample(r.get(), depth.checked_sub(1)?),
    })
}

/// Every field of every kind survives JSON and protobuf.
#[test]
fn every_kind_round_trips() {
    let mut count = 0;
    for kind in crate::schema::kinds() {
        let schema = crate::schema::by_gvk(kind).unwrap();
        if kind.kind == "WatchEvent" {
            continue;
        }
        let mut object = sample(schema, 5);
        set_kind(&mut object, kind);
        let (want, outcome) = typed::decode(Node::from_value(object.clone()), schema);
        assert_eq!(outcome.error, None, "{kind}");
        assert!(outcome.strict.is_empty(), "{kind}: {:?}", outcome.strict);
        // Where the depth ends, empty objects are filled in; everything that was given stays.
        let again = typed::decode(Node::from_value(want.clone()), schema).0;
        assert_eq!(again, want, "{kind}");
        let body = encode_protobuf(&want).unwrap();
        if kind.kind.starts_with("Table") || kind.kind.starts_with("AdmissionReview") {
            continue;
        }
        let got = decode_body(
            Some("application/vnd.kubernetes.protobuf"),
            &body,
            kind,
            schema,
            FieldValidation::Strict,
        );
        assert_eq!(got.unwrap_or_else(|e| panic!("{kind}: {e}")).object, want, "{kind}");
        count += 1;
    }
    assert!(count > 130, "{count}");
}

proptest! {
    #[test]
    fn json_never_panics(body in "[\\[\\]{}:,\"a-c0-9.eE\\\\u+ tfn-]{0,60}") {
        let _ = pod(&body);
    }

    #[test]
    fn json_agrees_with_serde(body in "[\\[\\]{}:,\"a0-9.e-]{0,24}") {
        let ours = node::parse_json(body.as_bytes()).is_ok();
        // serde_json refuses numbers beyond f64's range, Go's scanner does not.
        let theirs = serde_json::from_str::<Box<serde_json::value::RawValue>>(&body).is_ok();
        prop_assert_eq!(ours, theirs, "{}", body);
    }

    #[test]
    fn bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), kind in 0usize..100) {
        let kind = crate::schema::kinds().nth(kind).unwrap();
        let schema = crate::schema::by_gvk(kind).unwrap();
        let mut proto = proto::MAGIC.to_vec();
        proto.extend_from_slice(&body);
        for (media, body) in [("application/json", &body), ("application/yaml", &body), ("application/vnd.kubernetes.protobuf", &proto)] {
            let _ = decode_body(Some(media), body, kind, schema, FieldValidation::Warn);
        }
        let _ = proto::decode(&body, schema);
    }

    #[test]
    fn damaged_protobuf_never_panics(at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<proptest::sample::Index>()) {
        let kind = gvk("", "Pod");
        let schema = crate::schema::by_gvk(&kind).unwrap();
        let mut object = sample(schema, 5);
        set_kind(&mut object, &kind);
        let mut body = encode_protobuf(&object).unwrap();
        let i = at.index(body.len());
        body[i] = byte;
        body.truncate(cut.index(body.len()) + 1);
        let _ = decode_body(Some("application/vnd.kubernetes.protobuf"), &body, &kind, schema, FieldValidation::Warn);
    }
}

/// Bodies that kubectl 1.32 sent, in base64.
#[test]
fn bodies_of_a_real_client() {
    let from = |golden: &str, group: &str, kind: &str| {
        let body = scalar::decode_base64(golden).unwrap();
        let kind = gvk(group, kind);
        let schema = crate::schema::by_gvk(&kind).unwrap();
        let media = Some("application/vnd.kubernetes.protobuf");
        let d = decode_body(media, &body, &kind, schema, FieldValidation::Strict).unwrap();
        assert_eq!(encode_protobuf(&d.object).map(|b| proto::unwrap(&b).unwrap().kind), Some(kind.kind));
        d.object
    };
    assert_eq!(
        from(include_str!("golden/deployment.b64"), "apps", "Deployment"),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
               "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                        "template": {"metadata": {"labels": {"app": "web"}},
                                     "spec": {"containers": [{"name": "nginx", "image": "nginx:1", "resources": {},
                                                              "ports": [{"containerPort": 80}]}]}}},
               "status": {}})
    );
    assert_eq!(
        from(include_str!("golden/service.b64"), "", "Service")["spec"],
        json!({"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080}],
               "selector": {"app": "s"}, "type": "ClusterIP"})
    );
    assert_eq!(from(include_str!("golden/secret.b64"), "", "Secret")["data"], json!({"a": "Yg=="}));
    assert_eq!(
        from(include_str!("golden/resourcequota.b64"), "", "ResourceQuota")["spec"],
        json!({"hard": {"cpu": "1", "memory": "1Gi"}})
    );
    assert_eq!(
        from(include_str!("golden/tokenrequest.b64"), "authentication.k8s.io", "TokenRequest")["spec"],
        json!({"audiences": null, "boundObjectRef": null, "expirationSeconds": 3600})
    );
    assert_eq!(
        from(include_str!("golden/ingress.b64"), "networking.k8s.io", "Ingress")["spec"]["rules"],
        json!([{"host": "a.b", "http": {"paths": [{"path": "/c", "pathType": "Exact",
                "backend": {"service": {"name": "d", "port": {"number": 80}}}}]}}])
    );
}
