use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

#[test]
fn lookups() {
    let pod = by_gvk(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
    assert_eq!((pod.name.as_ref(), pod.go_name().as_str()), ("core.v1.Pod", "v1.Pod"));
    let spec = pod.field("spec").unwrap().ty.object().unwrap();
    let containers = spec.field("containers").unwrap();
    assert_eq!(containers.ty.go_name(), "[]v1.Container");
    assert_eq!((containers.number, containers.patch_merge), (2, true));
    assert_eq!(containers.list, ListKind::Map(vec!["name".into()]));
    assert!(by_name("core.v1.Volume").unwrap().field("emptyDir").is_some());
    assert!(by_gvk(&GroupVersionKind::new("apps", "v1", "DeleteOptions")).is_some());
    assert!(by_gvk(&GroupVersionKind::new("apps", "v1", "Pod")).is_none());
    assert!(kinds().count() > 130 && types().count() > 580);
}

#[test]
fn protobuf_numbers_are_unique() {
    for ty in types() {
        let own = ty.fields.iter().map(|f| f.number).chain(ty.inlined.iter().map(|(n, _)| *n));
        let mut numbers: Vec<u32> = own.filter(|n| *n > 0).collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all, "{}", ty.name);
    }
}

/// The directory of recorded OpenAPI documents, when this machine has it.
fn recorded() -> Option<PathBuf> {
    let root = std::env::var_os("KELP_SHARED").map(PathBuf::from).or_else(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().ok()?;
        Some(workspace.parent()?.join("shared"))
    })?;
    let dir = root.join("data/kubernetes-1.36/openapi-v3");
    dir.is_dir().then_some(dir)
}

fn openapi_name(name: &str) -> String {
    let group = name.split('.').next().unwrap_or_default();
    let prefix = match group {
        "meta" => "io.k8s.apimachinery.pkg.apis",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis",
        _ => "io.k8s.api",
    };
    format!("{prefix}.{name}")
}

fn same_type(ty: &Type, schema: &Value) -> bool {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    let reference = reference.map(|r| r.trim_start_matches("#/components/schemas/"));
    let (kind, format) = (schema["type"].as_str(), schema["format"].as_str());
    let ends = |name: &str| reference.is_some_and(|r| r.ends_with(name));
    match ty {
        Type::String(_) => kind == Some("string") && format.is_none(),
        Type::Bool => kind == Some("boolean"),
        Type::Int32 => (kind, format) == (Some("integer"), Some("int32")),
        Type::Int64 => (kind, format) == (Some("integer"), Some("int64")),
        Type::Float64 => kind == Some("number"),
        Type::Bytes => format == Some("byte"),
        Type::Quantity => ends(".Quantity"),
        Type::IntOrString => ends(".IntOrString"),
        Type::Time => ends(".Time"),
        Type::MicroTime => ends(".MicroTime"),
        Type::Raw => ends(".RawExtension"),
        Type::FieldsV1 => ends(".FieldsV1"),
        Type::Json | Type::Deduced => ends(".JSON"),
        Type::SchemaOrArray(_) => ends(".JSONSchemaPropsOrArray"),
        Type::SchemaOrBool(_) => ends(".JSONSchemaPropsOrBool"),
        Type::SchemaOrStrings(_) => ends(".JSONSchemaPropsOrStringArray"),
        Type::List(t) | Type::Wrapped(t) => kind == Some("array") && same_type(t, &schema["items"]),
        Type::Map(t) => kind == Some("object") && same_type(t, &schema["additionalProperties"]),
        Type::Object(r) => reference == Some(openapi_name(&r.get().name).as_str()),
    }
}

/// Every type and field of the recorded documents is in the table with the same facts, and the other way round.
#[test]
fn agrees_with_the_recorded_openapi_documents() {
    let Some(dir) = recorded() else {
        eprintln!("no recorded OpenAPI documents: set KELP_SHARED to check against them");
        return;
    };
    let mut schemas = serde_json::Map::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let Ok(mut document) = serde_json::from_str::<Value>(&text) else { continue };
        if let Some(Value::Object(all)) = document.pointer_mut("/components/schemas").map(Value::take) {
            schemas.extend(all);
        }
    }
    assert!(schemas.len() > 500);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for ty in types() {
        let Some(schema) = schemas.get(&openapi_name(&ty.name)) else { continue };
        seen += 1;
        if ty.atomic != (schema["x-kubernetes-map-type"] == "atomic") {
            wrong.push(format!("{}: atomic", ty.name));
        }
        let empty = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&empty);
        for (name, property) in properties {
            let Some(field) = ty.field(name) else {
                wrong.push(format!("{}.{name}: missing", ty.name));
                continue;
            };
            if !same_type(&field.ty, property) {
                wrong.push(format!("{}.{name}: {:?} is not {property}", ty.name, field.ty));
            }
            let required = schema["required"].as_array().is_some_and(|r| r.iter().any(|n| n == name));
            let list = match property["x-kubernetes-list-type"].as_str() {
                Some("atomic") => ListKind::Atomic,
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(
                    property["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(|k| k.as_str().unwrap_or_default().to_owned().into())
                        .collect(),
                ),
                _ => ListKind::Unset,
            };
            let strategy = property["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
            let default = field.default.as_deref().map(|d| serde_json::from_str::<Value>(d).unwrap());
            let zero = |v: &Value| {
                v.is_null()
                    || *v == ""
                    || *v == 0
                    || *v == false
                    || v.as_object().is_some_and(|o| o.is_empty())
            };
            let facts = [
                ("required", field.required == required),
                (
                    "list type",
                    field.list == list
                        || (field.atomic && matches!(list, ListKind::Unset | ListKind::Atomic)),
                ),
                ("patch strategy", field.patch_merge == strategy.contains("merge")),
                ("retain keys", field.patch_retain_keys == strategy.contains("retainKeys")),
                (
                    "merge key",
                    field.merge_key.as_deref() == property["x-kubernetes-patch-merge-key"].as_str(),
                ),
                ("default", default.as_ref() == Some(&property["default"]) || zero(&property["default"])),
            ];
            for (what, right) in facts {
                if !right {
                    wrong.push(format!("{}.{name}: {what}", ty.name));
                }
            }
        }
        for field in ty.fields.iter().filter(|f| !properties.contains_key(f.name.as_ref())) {
            wrong.push(format!("{}.{}: not in the document", ty.name, field.name));
        }
        for gvk in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let text = |k: &str| gvk[k].as_str().unwrap_or_default();
            let gvk = GroupVersionKind::new(text("group"), text("version"), text("kind"));
            if gvk.kind != "WatchEvent" && by_gvk(&gvk).is_none() && gvk.version == "v1" {
                wrong.push(format!("{gvk} is unknown"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 550, "only {seen} types are in the documents");
}
