use super::*;
use crate::discovery::tests::{header_of, recorded};
use std::collections::{BTreeMap, BTreeSet};

fn unpacked(packed: &Packed) -> Value {
    serde_json::from_slice(&document::unpack(&packed.gzip).expect("gzip")).expect("JSON")
}

/// Without texts for people.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, value)| !(*key == "description" && value.is_string()))
            .map(|(key, value)| match (key.as_str(), value) {
                // The order of required members and of kinds says nothing.
                ("required" | "x-kubernetes-group-version-kind", Value::Array(items)) => {
                    let mut items: Vec<Value> = items.iter().map(plain).collect();
                    items.sort_by_key(Value::to_string);
                    (key.clone(), items.into())
                }
                _ => (key.clone(), plain(value)),
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// Paths of values that differ.
fn differences(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for key in keys {
                let at = format!("{at} {key}");
                match (ours.get(key), theirs.get(key)) {
                    (Some(ours), Some(theirs)) => differences(&at, ours, theirs, out),
                    (Some(_), None) => out.push(format!("{at}: too much")),
                    (None, _) => out.push(format!("{at}: missing")),
                }
            }
        }
        _ if ours == theirs => {}
        _ => out.push(format!("{at}: {ours} is not {theirs}")),
    }
}

/// Whether the row of a path is in the registry.
fn is_known(registry: &Registry, about: &About, path: &str) -> bool {
    let About::Version(group, version) = about else { return true };
    let rest =
        path.trim_start_matches(&format!("/{}/", root_of(group, version))).trim_start_matches("watch/");
    let rest = rest.strip_prefix("namespaces/{namespace}/").unwrap_or(rest);
    let mut parts = rest.split('/');
    let plural = parts.next().unwrap_or_default();
    let Some(row) = registry.find(group, version, plural) else { return plural.is_empty() };
    match parts.nth(1) {
        Some(sub) => row.subresource(sub).is_some(),
        None => true,
    }
}

#[test]
fn documents_equal_the_recorded_ones() {
    let Some(dir) = recorded() else {
        eprintln!("no recorded documents: set KELP_SHARED to check against them");
        return;
    };
    let registry = Registry::builtin();
    let (mut wrong, mut absent, mut seen) = (Vec::new(), Vec::new(), 0);
    let all = document::all(&registry);
    for (name, about) in &all {
        let file = dir.join("openapi-v3").join(format!("{}.json", name.replace('/', "_")));
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let theirs = plain(&serde_json::from_str(&text).expect("JSON"));
        let ours = plain(&unpacked(&document::v3_json(&registry, about).expect("built")));
        let paths = |value: &Value| value["paths"].as_object().cloned().unwrap_or_default();
        let (my_paths, their_paths) = (paths(&ours), paths(&theirs));
        for (path, item) in &their_paths {
            if is_known(&registry, about, path) {
                let mine = my_paths.get(path).unwrap_or(&Value::Null);
                differences(path, mine, item, &mut wrong);
                seen += 1;
            } else {
                absent.push(path.clone());
            }
        }
        wrong.extend(
            my_paths.keys().filter(|p| !their_paths.contains_key(*p)).map(|p| format!("{p}: too much")),
        );
        let schemas = |value: &Value| value["components"]["schemas"].as_object().cloned().unwrap_or_default();
        let theirs_all = schemas(&theirs);
        for (schema, value) in schemas(&ours) {
            differences(
                &format!("{name} {schema}"),
                &value,
                theirs_all.get(&schema).unwrap_or(&Value::Null),
                &mut wrong,
            );
        }
        for part in ["openapi", "info"] {
            differences(name, &ours[part], &theirs[part], &mut wrong);
        }
        differences(
            name,
            &ours["components"]["securitySchemes"],
            &theirs["components"]["securitySchemes"],
            &mut wrong,
        );
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(absent.is_empty(), "no row serves\n{}", absent.join("\n"));
    assert!(seen > 390, "only {seen} paths were compared");
    let unknown: Vec<String> = std::fs::read_dir(dir.join("openapi-v3"))
        .expect("the directory")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
        .filter(|file| !all.keys().any(|name| name.replace('/', "_") == *file))
        .collect();
    assert!(unknown.is_empty(), "these documents are not served: {unknown:?}");
}

/// Every text of a document by the place of what it describes.
fn texts(document: &Value) -> BTreeMap<String, String> {
    fn visit(at: &str, value: &Value, out: &mut BTreeMap<String, String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("description", Value::String(text)) => {
                            out.insert(at.to_owned(), text.clone());
                        }
                        _ => visit(&format!("{at} {key}"), value, out),
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let name = item["name"].as_str().map_or_else(|| index.to_string(), str::to_owned);
                    let place = item["in"].as_str().unwrap_or_default();
                    visit(&format!("{at} {place} {name}"), item, out);
                }
            }
            _ => {}
        }
    }
    let mut out = BTreeMap::new();
    visit("", document, &mut out);
    out
}

#[test]
fn texts_are_the_recorded_ones() {
    let Some(dir) = recorded() else {
        eprintln!("no recorded documents: set KELP_SHARED to check against them");
        return;
    };
    let registry = Registry::builtin();
    let (mut equal, mut values, mut lists, mut wrong) = (0, 0, 0, Vec::new());
    for (name, about) in document::all(&registry) {
        let file = dir.join("openapi-v3").join(format!("{}.json", name.replace('/', "_")));
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let theirs = texts(&serde_json::from_str(&text).expect("JSON"));
        let ours = texts(&unpacked(&document::v3_json(&registry, &about).expect("built")));
        for (at, theirs) in theirs {
            let schema = at.strip_prefix(" components schemas ").and_then(|rest| rest.split(' ').next());
            let is_list = schema.is_some_and(|name| name.ends_with("List") || name.ends_with(".WatchEvent"));
            let is_option = at.starts_with(" paths ") && at.contains(" parameters ");
            match ours.get(&at) {
                Some(ours) if *ours == theirs => equal += 1,
                // What the values of an enumeration mean is in no source of ours.
                Some(ours) if head(ours) == head(&theirs) => values += 1,
                // k8s-openapi has one generic type for all lists, and no texts of query parameters.
                _ if is_list => lists += 1,
                None if is_option => {}
                ours => wrong.push(format!("{at}: {ours:?} is not {theirs:?}")),
            }
        }
    }
    eprintln!("{equal} texts are equal, {values} lack the meanings of values, {lists} are of lists");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal > 10_000, "only {equal} texts are equal");
}

/// A text without the meanings of its values.
fn head(text: &str) -> &str {
    text.split("Possible enum values:").next().unwrap_or_default().trim_end()
}

#[test]
fn every_type_and_field_has_a_text() {
    let registry = Registry::builtin();
    let (mut without, mut seen) = (BTreeSet::new(), 0);
    for about in document::all(&registry).values() {
        let document = unpacked(&document::v3_json(&registry, about).expect("built"));
        for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let described = fields.map(|(field, value)| (format!("{name}.{field}"), value));
            for (name, value) in described.chain([(name.clone(), schema)]) {
                seen += 1;
                if !value["description"].is_string() {
                    without.insert(name);
                }
            }
        }
    }
    assert!(seen > 3000, "only {seen} types and fields");
    // Upstream has none for these either, but for a few of WatchEvent and Info.
    let short = without.iter().filter(|name| !name.contains("JSONSchemaProps")).collect::<Vec<_>>();
    assert!(short.len() < 40, "{short:#?}");
}

#[test]
fn every_reference_leads_somewhere() {
    let registry = Registry::builtin();
    for (name, about) in document::all(&registry) {
        let document = unpacked(&document::v3_json(&registry, &about).expect("built"));
        for part in document.to_string().split(&format!("\"{}", schema::PREFIX)).skip(1) {
            let schema = part.split('"').next().expect("a name");
            assert!(document["components"]["schemas"][schema].is_object(), "{name}: {schema}");
        }
    }
    let document = unpacked(&document::v2_json(&registry).expect("built"));
    for (place, prefix) in [("definitions", "\"#/definitions/"), ("parameters", "\"#/parameters/")] {
        let text = document.to_string();
        assert!(text.contains(prefix));
        for part in text.split(prefix).skip(1) {
            let name = part.split('"').next().expect("a name");
            assert!(document[place][name].is_object(), "{place} {name}");
        }
    }
}

#[test]
fn version_two_says_the_same_in_its_own_form() {
    let registry = Registry::builtin();
    let document = unpacked(&document::v2_json(&registry).expect("built"));
    assert_eq!(document["swagger"], "2.0");
    let spec = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(spec["containers"]["items"]["$ref"], "#/definitions/io.k8s.api.core.v1.Container");
    let affinity = plain(&spec["affinity"]);
    assert_eq!(affinity, json!({"$ref": "#/definitions/io.k8s.api.core.v1.Affinity"}));
    assert!(spec["affinity"]["description"].is_string());
    let quantity = document["definitions"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]["type"].clone();
    assert_eq!(quantity, "string");
    let either = plain(&document["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]);
    assert_eq!(either, json!({"type": "string", "format": "int-or-string"}));
    let item = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
    let patch = &item["patch"];
    assert_eq!(patch["consumes"].as_array().map(Vec::len), Some(4));
    assert_eq!(patch["operationId"], "patchCoreV1NamespacedPod");
    let parameter = |reference: &Value| {
        let name = reference["$ref"].as_str().expect("a reference").trim_start_matches("#/parameters/");
        document["parameters"][name].clone()
    };
    let named: Vec<Value> = patch["parameters"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|p| p["in"] != "body")
        .map(parameter)
        .collect();
    assert!(named.contains(&json!({"name": "force", "in": "query", "type": "boolean", "uniqueItems": true})));
    let container = &document["definitions"]["io.k8s.api.core.v1.Container"]["properties"];
    assert_eq!(
        (plain(&container["name"]), &container["resources"]["default"]),
        (json!({"type": "string"}), &Value::Null)
    );
}

/// Fields of a protobuf message: number and content (of length-delimited ones).
fn fields(mut data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        while let Some((first, rest)) = data.split_first() {
            *data = rest;
            value |= u64::from(first & 0x7f) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut out = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let content = match key & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            1 => data.split_off(..8).expect("eight bytes").to_vec(),
            _ => {
                let length = usize::try_from(varint(&mut data)).expect("a length");
                data.split_off(..length).expect("the content").to_vec()
            }
        };
        out.push((u32::try_from(key >> 3).expect("a number"), content));
    }
    out
}

fn field(data: &[u8], number: u32) -> Vec<u8> {
    fields(data).into_iter().find(|(n, _)| *n == number).map(|(_, content)| content).unwrap_or_default()
}

/// The value of a name in a list of pairs.
fn named(list: &[u8], number: u32, name: &str) -> Vec<u8> {
    fields(list)
        .into_iter()
        .filter(|(n, _)| *n == number)
        .find(|(_, pair)| field(pair, 1) == name.as_bytes())
        .map(|(_, pair)| field(&pair, 2))
        .unwrap_or_default()
}

#[test]
fn protobuf_forms_have_the_numbers_of_gnostic() {
    let registry = Registry::builtin();
    let packed = document::v2_protobuf(&registry).expect("built");
    let v2 = document::unpack(&packed.gzip).expect("gzip");
    assert_eq!(field(&v2, 1), b"2.0");
    let pods = named(&field(&v2, 8), 2, "/api/v1/namespaces/{namespace}/pods");
    assert_eq!(field(&field(&pods, 2), 5), b"listCoreV1NamespacedPod");
    let kind = named(&field(&pods, 2), 13, "x-kubernetes-group-version-kind");
    assert_eq!(serde_json::from_slice::<Value>(&field(&kind, 2)).expect("JSON")["kind"], "Pod");
    let spec = named(&field(&v2, 9), 1, "io.k8s.api.core.v1.PodSpec");
    let containers = named(&field(&spec, 25), 1, "containers");
    assert_eq!(field(&field(&containers, 22), 1), b"array");
    assert_eq!(field(&named(&containers, 31, "x-kubernetes-patch-merge-key"), 2), b"\"name\"\n");
    let about = document::About::Version("apps".into(), "v1".into());
    let packed = document::v3_protobuf(&registry, &about).expect("built");
    let v3 = document::unpack(&packed.gzip).expect("gzip");
    let one = named(&field(&v3, 4), 1, "/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let parameters: Vec<Vec<u8>> = fields(&field(&one, 10))
        .into_iter()
        .filter(|(number, _)| *number == 6)
        .map(|(_, choice)| field(&field(&choice, 1), 1))
        .collect();
    assert!(parameters.contains(&b"fieldValidation".to_vec()));
    let components: Vec<Vec<u8>> = fields(&v3).into_iter().filter(|(n, _)| *n == 5).map(|(_, c)| c).collect();
    let schemas = components.iter().map(|c| field(c, 1)).find(|s| !s.is_empty()).expect("schemas");
    let deployment = field(&named(&schemas, 1, "io.k8s.api.apps.v1.Deployment"), 1);
    let spec = field(&named(&field(&deployment, 31), 1, "spec"), 1);
    assert_eq!(
        field(&field(&field(&spec, 26), 2), 1),
        b"#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"
    );
}

#[test]
fn answers_can_be_kept() {
    let registry = Registry::builtin();
    let documents = Documents::default();
    let ask = |path: &str, query: &str, pairs: &[(header::HeaderName, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(name, value.parse().expect("a header"));
        }
        let query = Query::parse(query);
        documents.serve(&registry, &Request { path, query: &query, headers: &headers })
    };
    let get = |path: &str, query: &str, pairs: &[(header::HeaderName, &str)]| {
        ask(path, query, pairs).expect("a document").expect("an answer")
    };
    let index = get("/openapi/v3", "", &[]);
    let tag = header_of(&index, header::ETAG);
    assert_eq!(get("/openapi/v3", "", &[(header::IF_NONE_MATCH, &tag)]).code, 304);
    assert!(documents.0.lock().is_empty(), "the index needs no document");
    let urls = crate::discovery::tests::body(&index);
    let url = urls["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL").to_owned();
    let (path, query) = url.split_once('?').expect("a query");
    let kept = get(path, query, &[]);
    assert_eq!(header_of(&kept, header::CACHE_CONTROL), "public, immutable");
    assert!(header_of(&kept, header::EXPIRES).ends_with("GMT"));
    let moved = get(path, "hash=old", &[]);
    assert_eq!((moved.code, header_of(&moved, header::LOCATION)), (301, url.clone()));
    let before = documents.0.lock().len();
    let known = url.split_once('=').map(|(_, hash)| format!("\"{hash}\"")).expect("a hash");
    assert_eq!(get("/openapi/v3/api/v1", "", &[]).code, 200);
    assert_eq!(get(path, "", &[(header::IF_NONE_MATCH, &known)]).code, 304);
    assert_eq!(documents.0.lock().len(), before + 1, "a document is built once and for its readers only");
    let open = get(path, "", &[(header::ACCEPT_ENCODING, "gzip")]);
    assert_eq!(header_of(&open, header::CONTENT_ENCODING), "gzip");
    assert_eq!(header_of(&open, header::CACHE_CONTROL), "");
    let wire = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";
    let protobuf = get(path, query, &[(header::ACCEPT, wire)]);
    assert_eq!(protobuf.content_type, "application/com.github.proto-openapi.spec.v3.v1.0+protobuf");
    assert!(ask("/openapi/v3/apis/none/v1", "", &[]).is_none());
    let refused = ask(path, "", &[(header::ACCEPT, "text/html")]).expect("a document");
    assert_eq!(refused.err().map(|e| e.code()), Some(406));
    let v2 = get("/openapi/v2", "", &[]);
    assert_eq!(get("/openapi/v2", "", &[(header::IF_NONE_MATCH, &header_of(&v2, header::ETAG))]).code, 304);
}
