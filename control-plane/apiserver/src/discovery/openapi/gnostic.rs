//! The protobuf form of OpenAPI documents, `openapi.v2.Document` and `openapi.v3.Document` of gnostic
//! (`OpenAPIv2.proto`, `OpenAPIv3.proto`): messages as tables of members with their numbers.

use serde_json::Value;

/// How a member is written.
enum Kind {
    Text,
    Bool,
    Int,
    Double,
    /// A scalar or any value, as an `Any` with its YAML (JSON is YAML).
    Any,
    /// One message or scalar for every item of a list.
    List(&'static Kind),
    Message(&'static Message),
    /// A message with only this member.
    Wrapped(u32, &'static Kind),
    /// An object as a message of (name, value) pairs in this member.
    Named(u32, &'static Kind),
    /// A choice of the value (1) and a reference (2).
    OrReference(&'static Message),
    /// `additionalProperties`: a schema (1) or a boolean (2).
    OrBool(&'static Kind),
    /// v3 `default`: a number (1), a boolean (2) or a string (3).
    Scalar,
    /// v2 parameter: of the body (1) or another (2), which is of the query (3), path (4) or a header (1).
    Parameter,
    /// v2 parameter in a list: the parameter (1) or a reference (2).
    ParameterItem,
}

/// Members of a message: JSON name, number, kind.
struct Message {
    members: &'static [(&'static str, u32, Kind)],
    /// Number of the list of `x-` members, 0 for none.
    extensions: u32,
}

/// Which document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// `openapi.v2.Document`.
    V2,
    /// `openapi.v3.Document`.
    V3,
}

const LIST_OF_TEXT: Kind = Kind::List(&Kind::Text);
const REFERENCE: u32 = 1;

static INFO_V2: Message =
    Message { members: &[("title", 1, Kind::Text), ("version", 2, Kind::Text)], extensions: 7 };
static INFO_V3: Message =
    Message { members: &[("title", 1, Kind::Text), ("version", 6, Kind::Text)], extensions: 7 };

/// `ExternalDocs` of both versions.
static EXTERNAL_DOCS: Message =
    Message { members: &[("description", 1, Kind::Text), ("url", 2, Kind::Text)], extensions: 3 };

static SCHEMA_V2: Message = Message {
    members: &[
        ("$ref", 1, Kind::Text),
        ("format", 2, Kind::Text),
        ("title", 3, Kind::Text),
        ("description", 4, Kind::Text),
        ("default", 5, Kind::Any),
        ("multipleOf", 6, Kind::Double),
        ("maximum", 7, Kind::Double),
        ("exclusiveMaximum", 8, Kind::Bool),
        ("minimum", 9, Kind::Double),
        ("exclusiveMinimum", 10, Kind::Bool),
        ("maxLength", 11, Kind::Int),
        ("minLength", 12, Kind::Int),
        ("pattern", 13, Kind::Text),
        ("maxItems", 14, Kind::Int),
        ("minItems", 15, Kind::Int),
        ("uniqueItems", 16, Kind::Bool),
        ("maxProperties", 17, Kind::Int),
        ("minProperties", 18, Kind::Int),
        ("required", 19, LIST_OF_TEXT),
        ("enum", 20, Kind::List(&Kind::Any)),
        ("additionalProperties", 21, Kind::OrBool(&Kind::Message(&SCHEMA_V2))),
        ("type", 22, Kind::Wrapped(1, &Kind::Text)),
        ("items", 23, Kind::Wrapped(1, &Kind::Message(&SCHEMA_V2))),
        ("allOf", 24, Kind::List(&Kind::Message(&SCHEMA_V2))),
        ("properties", 25, Kind::Named(1, &Kind::Message(&SCHEMA_V2))),
        ("externalDocs", 29, Kind::Message(&EXTERNAL_DOCS)),
        ("example", 30, Kind::Any),
    ],
    extensions: 31,
};

static SCHEMA_V3: Message = Message {
    members: &[
        ("nullable", 1, Kind::Bool),
        ("externalDocs", 6, Kind::Message(&EXTERNAL_DOCS)),
        ("example", 7, Kind::Any),
        ("title", 9, Kind::Text),
        ("multipleOf", 10, Kind::Double),
        ("maximum", 11, Kind::Double),
        ("exclusiveMaximum", 12, Kind::Bool),
        ("minimum", 13, Kind::Double),
        ("exclusiveMinimum", 14, Kind::Bool),
        ("maxLength", 15, Kind::Int),
        ("minLength", 16, Kind::Int),
        ("pattern", 17, Kind::Text),
        ("maxItems", 18, Kind::Int),
        ("minItems", 19, Kind::Int),
        ("uniqueItems", 20, Kind::Bool),
        ("maxProperties", 21, Kind::Int),
        ("minProperties", 22, Kind::Int),
        ("required", 23, LIST_OF_TEXT),
        ("enum", 24, Kind::List(&Kind::Any)),
        ("type", 25, Kind::Text),
        ("allOf", 26, Kind::List(&Kind::OrReference(&SCHEMA_V3))),
        ("oneOf", 27, Kind::List(&Kind::OrReference(&SCHEMA_V3))),
        ("anyOf", 28, Kind::List(&Kind::OrReference(&SCHEMA_V3))),
        ("not", 29, Kind::Message(&SCHEMA_V3)),
        ("items", 30, Kind::Wrapped(1, &Kind::OrReference(&SCHEMA_V3))),
        ("properties", 31, Kind::Named(1, &Kind::OrReference(&SCHEMA_V3))),
        ("additionalProperties", 32, Kind::OrBool(&Kind::OrReference(&SCHEMA_V3))),
        ("default", 33, Kind::Scalar),
        ("description", 34, Kind::Text),
        ("format", 35, Kind::Text),
    ],
    extensions: 36,
};

static BODY_PARAMETER: Message = Message {
    members: &[
        ("description", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("required", 4, Kind::Bool),
        ("schema", 5, Kind::Message(&SCHEMA_V2)),
    ],
    extensions: 6,
};
static QUERY_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Kind::Bool),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 6, Kind::Text),
        ("format", 7, Kind::Text),
        ("uniqueItems", 20, Kind::Bool),
    ],
    extensions: 23,
};
/// Path and header parameters have the same numbers.
static PATH_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Kind::Bool),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("name", 4, Kind::Text),
        ("type", 5, Kind::Text),
        ("format", 6, Kind::Text),
        ("uniqueItems", 19, Kind::Bool),
    ],
    extensions: 22,
};
static PARAMETER_V3: Message = Message {
    members: &[
        ("name", 1, Kind::Text),
        ("in", 2, Kind::Text),
        ("description", 3, Kind::Text),
        ("required", 4, Kind::Bool),
        ("schema", 10, Kind::OrReference(&SCHEMA_V3)),
    ],
    extensions: 14,
};

static RESPONSE_V2: Message = Message {
    members: &[("description", 1, Kind::Text), ("schema", 2, Kind::Wrapped(1, &Kind::Message(&SCHEMA_V2)))],
    extensions: 5,
};
static MEDIA_TYPE: Message =
    Message { members: &[("schema", 1, Kind::OrReference(&SCHEMA_V3))], extensions: 5 };
static RESPONSE_V3: Message = Message {
    members: &[("description", 1, Kind::Text), ("content", 3, Kind::Named(1, &Kind::Message(&MEDIA_TYPE)))],
    extensions: 5,
};
static BODY_V3: Message = Message {
    members: &[
        ("description", 1, Kind::Text),
        ("content", 2, Kind::Named(1, &Kind::Message(&MEDIA_TYPE))),
        ("required", 3, Kind::Bool),
    ],
    extensions: 4,
};

static OPERATION_V2: Message = Message {
    members: &[
        ("tags", 1, LIST_OF_TEXT),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("produces", 6, LIST_OF_TEXT),
        ("consumes", 7, LIST_OF_TEXT),
        ("parameters", 8, Kind::List(&Kind::ParameterItem)),
        ("responses", 9, Kind::Named(1, &Kind::OrReference(&RESPONSE_V2))),
        ("schemes", 10, LIST_OF_TEXT),
        ("deprecated", 11, Kind::Bool),
    ],
    extensions: 13,
};
static OPERATION_V3: Message = Message {
    members: &[
        ("tags", 1, LIST_OF_TEXT),
        ("description", 3, Kind::Text),
        ("operationId", 5, Kind::Text),
        ("parameters", 6, Kind::List(&Kind::OrReference(&PARAMETER_V3))),
        ("requestBody", 7, Kind::OrReference(&BODY_V3)),
        ("responses", 8, Kind::Named(2, &Kind::OrReference(&RESPONSE_V3))),
        ("deprecated", 10, Kind::Bool),
    ],
    extensions: 13,
};

static ITEM_V2: Message = Message {
    members: &[
        ("get", 2, Kind::Message(&OPERATION_V2)),
        ("put", 3, Kind::Message(&OPERATION_V2)),
        ("post", 4, Kind::Message(&OPERATION_V2)),
        ("delete", 5, Kind::Message(&OPERATION_V2)),
        ("options", 6, Kind::Message(&OPERATION_V2)),
        ("head", 7, Kind::Message(&OPERATION_V2)),
        ("patch", 8, Kind::Message(&OPERATION_V2)),
        ("parameters", 9, Kind::List(&Kind::ParameterItem)),
    ],
    extensions: 10,
};
static ITEM_V3: Message = Message {
    members: &[
        ("get", 4, Kind::Message(&OPERATION_V3)),
        ("put", 5, Kind::Message(&OPERATION_V3)),
        ("post", 6, Kind::Message(&OPERATION_V3)),
        ("delete", 7, Kind::Message(&OPERATION_V3)),
        ("options", 8, Kind::Message(&OPERATION_V3)),
        ("head", 9, Kind::Message(&OPERATION_V3)),
        ("patch", 10, Kind::Message(&OPERATION_V3)),
        ("parameters", 13, Kind::List(&Kind::OrReference(&PARAMETER_V3))),
    ],
    extensions: 14,
};

static API_KEY: Message = Message {
    members: &[
        ("type", 1, Kind::Text),
        ("name", 2, Kind::Text),
        ("in", 3, Kind::Text),
        ("description", 4, Kind::Text),
    ],
    extensions: 5,
};
static SECURITY_SCHEME: Message = Message {
    members: &[
        ("type", 1, Kind::Text),
        ("description", 2, Kind::Text),
        ("name", 3, Kind::Text),
        ("in", 4, Kind::Text),
    ],
    extensions: 9,
};
static COMPONENTS: Message = Message {
    members: &[
        ("schemas", 1, Kind::Named(1, &Kind::OrReference(&SCHEMA_V3))),
        ("securitySchemes", 7, Kind::Named(1, &Kind::OrReference(&SECURITY_SCHEME))),
    ],
    extensions: 10,
};

static DOCUMENT_V2: Message = Message {
    members: &[
        ("swagger", 1, Kind::Text),
        ("info", 2, Kind::Message(&INFO_V2)),
        ("paths", 8, Kind::Named(2, &Kind::Message(&ITEM_V2))),
        ("definitions", 9, Kind::Named(1, &Kind::Message(&SCHEMA_V2))),
        ("parameters", 10, Kind::Named(1, &Kind::Parameter)),
        ("security", 12, Kind::List(&Kind::Named(1, &Kind::List(&Kind::Text)))),
        ("securityDefinitions", 13, Kind::Named(1, &Kind::Wrapped(2, &Kind::Message(&API_KEY)))),
    ],
    extensions: 16,
};
static DOCUMENT_V3: Message = Message {
    members: &[
        ("openapi", 1, Kind::Text),
        ("info", 2, Kind::Message(&INFO_V3)),
        ("paths", 4, Kind::Named(1, &Kind::Message(&ITEM_V3))),
        ("components", 5, Kind::Message(&COMPONENTS)),
    ],
    extensions: 9,
};

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire), out);
}

fn bytes(number: u32, content: &[u8], out: &mut Vec<u8>) {
    key(number, 2, out);
    varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// A message that `fill` writes.
fn nested(number: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(number, &inner, out);
}

fn message(message: &Message, value: &Value, out: &mut Vec<u8>) {
    let Some(object) = value.as_object() else { return };
    for (name, number, kind) in message.members {
        if let Some(value) = object.get(*name) {
            member(*number, kind, value, out);
        }
    }
    if message.extensions == 0 {
        return;
    }
    for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
        nested(message.extensions, out, |pair| {
            bytes(1, name.as_bytes(), pair);
            member(2, &Kind::Any, value, pair);
        });
    }
}

fn member(number: u32, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    match kind {
        Kind::Text => {
            if let Some(text) = value.as_str() {
                bytes(number, text.as_bytes(), out);
            }
        }
        Kind::Bool => {
            if let Some(set) = value.as_bool() {
                key(number, 0, out);
                varint(u64::from(set), out);
            }
        }
        Kind::Int => {
            if let Some(value) = value.as_i64() {
                key(number, 0, out);
                // Negative numbers are written in two's complement.
                varint(value as u64, out);
            }
        }
        Kind::Double => {
            if let Some(value) = value.as_f64() {
                key(number, 1, out);
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        Kind::Any => nested(number, out, |any| {
            let mut text = value.to_string();
            text.push('\n');
            bytes(2, text.as_bytes(), any);
        }),
        Kind::List(kind) => {
            for item in value.as_array().into_iter().flatten() {
                member(number, kind, item, out);
            }
        }
        Kind::Message(inner) => nested(number, out, |out| message(inner, value, out)),
        Kind::Wrapped(inside, kind) => nested(number, out, |out| member(*inside, kind, value, out)),
        Kind::Named(inside, kind) => nested(number, out, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                named(*inside, name, kind, value, out);
            }
        }),
        Kind::OrReference(inner) => nested(number, out, |out| match value.get("$ref") {
            Some(reference) => nested(2, out, |out| member(REFERENCE, &Kind::Text, reference, out)),
            None => nested(1, out, |out| message(inner, value, out)),
        }),
        Kind::ParameterItem => nested(number, out, |out| match value.get("$ref") {
            Some(reference) => nested(2, out, |out| member(REFERENCE, &Kind::Text, reference, out)),
            None => member(1, &Kind::Parameter, value, out),
        }),
        Kind::OrBool(kind) => nested(number, out, |out| match value {
            Value::Bool(_) => member(2, &Kind::Bool, value, out),
            _ => member(1, kind, value, out),
        }),
        Kind::Scalar => {
            let (inside, kind) = match value {
                Value::Number(_) => (1, &Kind::Double),
                Value::Bool(_) => (2, &Kind::Bool),
                Value::String(_) => (3, &Kind::Text),
                // The message cannot hold others.
                _ => return,
            };
            nested(number, out, |out| member(inside, kind, value, out));
        }
        Kind::Parameter => nested(number, out, |out| {
            let place = |number, of: &Message, out: &mut Vec<u8>| {
                nested(2, out, |out| nested(number, out, |out| message(of, value, out)));
            };
            match value["in"].as_str() {
                Some("body") => nested(1, out, |out| message(&BODY_PARAMETER, value, out)),
                Some("path") => place(4, &PATH_PARAMETER, out),
                Some("header") => place(1, &PATH_PARAMETER, out),
                _ => place(3, &QUERY_PARAMETER, out),
            }
        }),
    }
}

/// A pair of name and value.
fn named(number: u32, name: &str, kind: &Kind, value: &Value, out: &mut Vec<u8>) {
    nested(number, out, |pair| {
        bytes(1, name.as_bytes(), pair);
        match kind {
            // A list under a name is a message of its own (`StringArray`).
            Kind::List(_) => nested(2, pair, |out| member(1, kind, value, out)),
            _ => member(2, kind, value, pair),
        }
    });
}

/// A document whose paths (and v2 definitions) are handed over one by one, so that it never exists as a tree.
pub(super) struct Writer {
    version: Version,
    paths: Vec<u8>,
    schemas: Vec<u8>,
}

impl Writer {
    pub(super) fn new(version: Version) -> Self {
        Writer { version, paths: Vec::new(), schemas: Vec::new() }
    }

    /// Adds a path.
    pub(super) fn path(&mut self, path: &str, item: &Value) {
        let (number, of) = match self.version {
            Version::V2 => (2, &ITEM_V2),
            Version::V3 => (1, &ITEM_V3),
        };
        named(number, path, &Kind::Message(of), item, &mut self.paths);
    }

    /// Adds a schema.
    pub(super) fn schema(&mut self, name: &str, schema: &Value) {
        let kind = match self.version {
            Version::V2 => Kind::Message(&SCHEMA_V2),
            Version::V3 => Kind::OrReference(&SCHEMA_V3),
        };
        named(1, name, &kind, schema, &mut self.schemas);
    }

    /// The document, with all members but paths and schemas from `rest`.
    pub(super) fn finish(self, rest: &Value) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.paths.len() + self.schemas.len() + (64 << 10));
        match self.version {
            Version::V2 => {
                message(&DOCUMENT_V2, rest, &mut out);
                bytes(8, &self.paths, &mut out);
                bytes(9, &self.schemas, &mut out);
            }
            Version::V3 => {
                // Parts of a message that stand apart are put together by readers.
                message(&DOCUMENT_V3, rest, &mut out);
                bytes(4, &self.paths, &mut out);
                nested(5, &mut out, |components| bytes(1, &self.schemas, components));
            }
        }
        out
    }
}
