use super::*;
use crate::object::Encoded;
use crate::registry::Registry;

fn row(group: &str, plural: &str) -> Arc<Resource> {
    Registry::builtin().find(group, "v1", plural).expect("row").clone()
}

fn entries(resource: &Resource, count: usize, padding: usize) -> Vec<Arc<Entry>> {
    (0..count)
        .map(|n| {
            let data = "x".repeat(padding);
            let json = format!(
                "{{\"metadata\":{{\"name\":\"n{n:05}\",\"namespace\":\"d\"}},\"data\":{{\"k\":\"{data}\"}}}}"
            );
            let encoded =
                Encoded::from_stored(&resource.head(), json.as_bytes(), 10 + n as i64).expect("object");
            Arc::new(Entry::new(resource, &format!("d/n{n:05}"), encoded))
        })
        .collect()
}

fn meta() -> ListMeta {
    ListMeta { revision: 99, next: Some("token".to_owned()), remaining: Some(3) }
}

fn bytes(reply: Reply) -> (Vec<u8>, usize) {
    match reply.body {
        ReplyBody::Full(bytes) => (bytes.to_vec(), 1),
        ReplyBody::Chunks(parts) => {
            let parts: Vec<Bytes> = parts.collect();
            (parts.concat(), parts.len())
        }
        ReplyBody::Stream(_) => panic!("a list is no stream"),
    }
}

fn rendered(count: usize, padding: usize, format: Format, view: View) -> (Vec<u8>, usize) {
    let resource = row("", "configmaps");
    let accepted = Accepted { format, view, pretty: false };
    let items = entries(&resource, count, padding);
    bytes(list(&resource, &meta(), items, accepted, IncludeObject::Metadata))
}

#[test]
fn json_and_protobuf_say_the_same_in_one_piece_and_in_parts() {
    for (count, padding) in [(0, 0), (1, 0), (3, 10), (500, 2000)] {
        let (json, parts) = rendered(count, padding, Format::Json, View::Object);
        assert_eq!(parts > 1, count == 500);
        let mut json: Value = serde_json::from_slice(&json).expect("JSON");
        let (proto, parts) = rendered(count, padding, Format::Protobuf, View::Object);
        assert_eq!(parts > 1, count == 500);
        let gvk = crate::gvk::GroupVersionKind::new("", "v1", "ConfigMapList");
        let ty = schema::by_gvk(&gvk).expect("type");
        let content = Some("application/vnd.kubernetes.protobuf");
        let decoded =
            crate::codec::decode_body(content, &proto, &gvk, ty, Default::default()).expect("decodes");
        // Items of a decoded list are whole objects; the rest must be the same.
        for item in decoded.object["items"].as_array().into_iter().flatten() {
            assert_eq!(item.get("kind"), None);
        }
        if count == 0 {
            json["items"] = Value::Null;
        }
        assert_eq!(decoded.object, json);
    }
}

#[test]
fn tables_and_metadata() {
    let (table, _) = rendered(2, 0, Format::Json, View::Table("v1"));
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][1]["cells"][0], "n00001");
    assert_eq!(table["rows"][1]["object"]["metadata"]["name"], "n00001");
    assert_eq!(table["rows"][1]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["metadata"]["remainingItemCount"], 3);
    let (partial, _) = rendered(2, 0, Format::Json, View::Partial("v1"));
    let partial: Value = serde_json::from_slice(&partial).expect("JSON");
    assert_eq!(partial["items"][0]["metadata"]["resourceVersion"], "10");
    assert_eq!(partial["items"][0].get("data"), None);
    let (none, _) = rendered(0, 0, Format::Json, View::Partial("v1"));
    let none: Value = serde_json::from_slice(&none).expect("JSON");
    assert_eq!(none["items"], Value::Null);
    let (proto, _) = rendered(2, 0, Format::Protobuf, View::Partial("v1"));
    assert!(proto.starts_with(b"k8s\0"));
    let text = String::from_utf8_lossy(&proto);
    assert!(text.contains("PartialObjectMetadataList") && text.contains("n00001") && text.contains("token"));
    let (yaml, _) = rendered(2, 0, Format::Yaml, View::Object);
    assert!(String::from_utf8_lossy(&yaml).contains("kind: ConfigMapList"));
}
