//! OpenAPI v2 from the parts of v3 documents: the same facts in the older form.

use super::schema::PREFIX;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A schema of v3 as v2 has it: references keep their siblings, defaults are left out, alternatives have one type.
pub(super) fn schema(value: &Value) -> Value {
    let Some(object) = value.as_object() else { return value.clone() };
    let mut out = Map::new();
    for (key, value) in object {
        match key.as_str() {
            "default" => {}
            "$ref" => {
                let name = value.as_str().unwrap_or_default().trim_start_matches(PREFIX);
                out.insert("$ref".to_owned(), format!("#/definitions/{name}").into());
            }
            // A reference with siblings, see `Schemas::property`.
            "allOf" if value.as_array().is_some_and(|all| all.len() == 1) => {
                if let Value::Object(inner) = schema(&value[0]) {
                    out.extend(inner);
                }
            }
            "oneOf" => {
                out.insert("type".to_owned(), "string".into());
            }
            "properties" => {
                let all: Map<String, Value> = value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, property)| (name.clone(), schema(property)))
                    .collect();
                out.insert(key.clone(), all.into());
            }
            "items" | "additionalProperties" | "not" => {
                out.insert(key.clone(), schema(value));
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    out.into()
}

/// Parameters that operations refer to, by the name they got.
#[derive(Default)]
pub(super) struct Parameters {
    /// Name and parameter.
    pub(super) all: BTreeMap<String, Value>,
}

impl Parameters {
    /// A reference to a parameter.
    fn refer(&mut self, parameter: &Value) -> Value {
        let mut flat = parameter.clone();
        if let Some(map) = flat.as_object_mut()
            && let Some(Value::Object(schema)) = map.remove("schema")
        {
            map.extend(schema);
        }
        let name = format!(
            "{}-{:08x}",
            flat["name"].as_str().unwrap_or_default(),
            // Parameters of one name differ in few ways; a checksum of the text tells them apart.
            checksum(&flat.to_string())
        );
        let out = json!({"$ref": format!("#/parameters/{name}")});
        self.all.insert(name, flat);
        out
    }

    /// A path item of v3 as v2 has it.
    pub(super) fn item(&mut self, item: &Value) -> Value {
        let mut out = Map::new();
        for (method, operation) in item.as_object().into_iter().flatten() {
            let value = if method == "parameters" {
                operation.as_array().into_iter().flatten().map(|p| self.refer(p)).collect()
            } else {
                self.operation(operation)
            };
            out.insert(method.clone(), value);
        }
        out.into()
    }

    fn operation(&mut self, operation: &Value) -> Value {
        let mut out = Map::new();
        let mut parameters: Vec<Value> = Vec::new();
        let mut consumes = vec![Value::from("*/*")];
        let mut produces: Vec<Value> = Vec::new();
        for (key, value) in operation.as_object().into_iter().flatten() {
            match key.as_str() {
                "parameters" => {
                    parameters.extend(value.as_array().into_iter().flatten().map(|p| self.refer(p)))
                }
                "requestBody" => {
                    let (types, schema) = content(value);
                    consumes = types;
                    let mut body = json!({"in": "body", "name": "body", "schema": schema});
                    if value["required"] == true {
                        body["required"] = true.into();
                    }
                    parameters.push(if body["required"] == true { body } else { self.refer_body(body) });
                }
                "responses" => {
                    let mut responses = Map::new();
                    for (code, response) in value.as_object().into_iter().flatten() {
                        let (types, schema) = content(response);
                        let mut answer = json!({"description": response["description"]});
                        if !schema.is_null() {
                            answer["schema"] = schema;
                        }
                        if produces.is_empty() {
                            produces = types;
                        }
                        responses.insert(code.clone(), answer);
                    }
                    out.insert(key.clone(), responses.into());
                }
                _ => {
                    out.insert(key.clone(), value.clone());
                }
            }
        }
        if !parameters.is_empty() {
            out.insert("parameters".to_owned(), parameters.into());
        }
        out.insert("consumes".to_owned(), consumes.into());
        out.insert("produces".to_owned(), produces.into());
        out.insert("schemes".to_owned(), json!(["https"]));
        out.into()
    }

    /// A body that many operations share.
    fn refer_body(&mut self, body: Value) -> Value {
        let name = format!("body-{:08x}", checksum(&body.to_string()));
        let out = json!({"$ref": format!("#/parameters/{name}")});
        self.all.insert(name, body);
        out
    }
}

fn checksum(text: &str) -> u32 {
    // FNV-1a.
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Media types and schema of a body or answer.
fn content(value: &Value) -> (Vec<Value>, Value) {
    let Some(types) = value["content"].as_object() else { return (Vec::new(), Value::Null) };
    let body = types.values().next().map_or(Value::Null, |first| schema(&first["schema"]));
    (types.keys().map(|t| Value::from(t.as_str())).collect(), body)
}
