//! Request bodies to objects: JSON, YAML and Kubernetes protobuf, checked against the schema.

mod encode;
mod flow;
mod node;
mod proto;
mod scalar;
pub(crate) mod transcode;
mod typed;
mod wire;
mod yaml;

use serde_json::Value;

use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::schema::{self, TypeSchema};
pub(crate) use node::{Node, TOO_DEEP, is_too_deep};
pub(crate) use scalar::{decode_base64, encode_base64};
pub(crate) use typed::as_stored;

/// Media types that bodies may have.
pub const ACCEPTED: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What becomes of unknown and repeated fields (the query parameter `fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Dropped without a word.
    Ignore,
    /// Dropped with a warning each.
    #[default]
    Warn,
    /// The request fails.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter; none and the empty text are the default, Warn.
    ///
    /// # Errors
    /// The unknown value, for the caller's message.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        match text {
            None | Some("" | "Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(other.to_owned()),
        }
    }
}

/// A decoded object.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object with `apiVersion` and `kind`, in the form upstream would write it: unknown fields dropped, zero
    /// values left out, required ones filled in, quantities and times canonical. No defaults are set yet.
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

fn encoding(content_type: Option<&str>) -> Result<Encoding, ApiError> {
    let media = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
    match media.to_ascii_lowercase().as_str() {
        "" | "*/*" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        _ => Err(ApiError::unsupported_media_type(&ACCEPTED)),
    }
}

/// Decodes a request body into an object of the expected kind. A body without `apiVersion` or `kind` gets the expected
/// ones.
///
/// # Errors
/// 415 for an unknown content type, 400 with upstream's text for everything else: malformed text, another kind, wrong
/// types, and with [`FieldValidation::Strict`] unknown or repeated fields.
pub fn decode_body(
    content_type: Option<&str>,
    body: &[u8],
    expected: &GroupVersionKind,
    schema: &TypeSchema,
    field_validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let unrecognized = |why: String| unrecognized(&expected.kind, &why, body);
    let node = match encoding(content_type)? {
        Encoding::Json => parse_json_object(body).map_err(&unrecognized)?,
        Encoding::Yaml => node::parse_yaml(body).map_err(&unrecognized)?,
        Encoding::Protobuf => return decode_protobuf(body, expected, schema, &unrecognized),
    };
    let actual = named_kind(&node, expected).map_err(unrecognized)?;
    check_kind(&actual, expected)?;
    let handled = |why: &str| cannot_be_handled(&actual, expected, why);
    let (mut object, outcome) = typed::decode(node, schema);
    if let Some(error) = outcome.error {
        return Err(handled(&error));
    }
    let mut warnings = Vec::new();
    if !outcome.strict.is_empty() {
        match field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => warnings = outcome.strict,
            FieldValidation::Strict => {
                return Err(handled(&format!("strict decoding error: {}", outcome.strict.join(", "))));
            }
        }
    }
    set_kind(&mut object, expected);
    Ok(Decoded { object, warnings })
}

/// The error about a body that is no object of the expected kind.
pub(crate) fn unrecognized(kind: &str, why: &str, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summary(body)
    ))
}

/// Reads a body without a schema; none for protobuf, which has no meaning without one.
///
/// # Errors
/// 415 for an unknown content type, 400 for malformed text.
pub(crate) fn untyped(content_type: Option<&str>, body: &[u8], kind: &str) -> Result<Option<Node>, ApiError> {
    let node = match encoding(content_type)? {
        Encoding::Json => parse_json_object(body),
        Encoding::Yaml => node::parse_yaml(body),
        Encoding::Protobuf => return Ok(None),
    };
    node.map(Some).map_err(|why| unrecognized(kind, &why, body))
}

/// Group, version and kind that a document names; empty where it names none.
pub(crate) fn kind_of(node: &Node) -> Result<GroupVersionKind, String> {
    named_kind(node, &GroupVersionKind::new("", "", ""))
}

/// Names that an object of a document has more than once: `duplicate field "spec.n"`.
pub(crate) fn repeated(node: &Node, path: &mut String, out: &mut Vec<String>) {
    let length = path.len();
    match node {
        Node::Object(members) => {
            let mut seen = std::collections::HashSet::with_capacity(members.len());
            for (name, value) in members {
                path.push('.');
                path.push_str(name);
                if !seen.insert(name.as_str()) && out.len() < 100 {
                    out.push(format!(
                        "duplicate field {}",
                        crate::error::quote(path.trim_start_matches('.'))
                    ));
                }
                repeated(value, path, out);
                path.truncate(length);
            }
        }
        Node::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                path.push_str(&format!("[{i}]"));
                repeated(item, path, out);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Reads a configuration of server-side apply: YAML, of which JSON is a part. It is not checked against a schema;
/// names that are repeated in an object are told as warnings.
///
/// # Errors
/// 400 for what is no YAML or no object, and with [`FieldValidation::Strict`] for repeated names.
pub fn decode_configuration(body: &[u8], validation: FieldValidation) -> Result<Decoded, ApiError> {
    let wrong = |why: String| ApiError::bad_request(format!("error decoding patch: {why}"));
    let node =
        node::parse_yaml(body).map_err(|why| wrong(format!("error converting YAML to JSON: {why}")))?;
    if !matches!(node, Node::Object(_) | Node::Null) {
        return Err(wrong(format!(
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type \
             map[string]interface {{}}",
            node.go_kind()
        )));
    }
    let repeats = if validation == FieldValidation::Ignore { Vec::new() } else { yaml::repeated_keys(body) };
    let warnings: Vec<String> =
        repeats.iter().map(|(line, key)| format!("line {line}: key {key} already set in map")).collect();
    if validation == FieldValidation::Strict && !warnings.is_empty() {
        return Err(ApiError::bad_request(format!(
            "error strict decoding patch: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
            warnings.join("\n  ")
        )));
    }
    Ok(Decoded { object: node.into_value(), warnings })
}

/// Decodes a value that was computed here (by a patch) as if it had been sent: drops and reports unknown fields, checks
/// types, canonical form.
///
/// # Errors
/// The first type error, in Go's words.
pub fn decode_value(value: Value, schema: &TypeSchema) -> Result<(Value, Vec<String>), String> {
    if node::is_too_deep(&value) {
        return Err(node::TOO_DEEP.to_owned());
    }
    let (object, outcome) = typed::decode(Node::from_value(value), schema);
    match outcome.error {
        Some(error) => Err(error),
        None => Ok((object, outcome.strict)),
    }
}

/// As [`decode_value`] for the outcome of a strategic merge patch, whose type errors upstream words differently.
pub(crate) fn decode_unstructured(value: Value, schema: &TypeSchema) -> Result<(Value, Vec<String>), String> {
    if node::is_too_deep(&value) {
        return Err(node::TOO_DEEP.to_owned());
    }
    let (object, outcome) = typed::decode_unstructured(Node::from_value(value), schema);
    match outcome.error {
        Some(error) => Err(error),
        None => Ok((object, outcome.strict)),
    }
}

/// Checks that a computed value still is of the expected kind.
pub(crate) fn same_kind(value: &Value, expected: &GroupVersionKind) -> Result<(), String> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut actual = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    if actual.kind.is_empty() {
        actual.kind.clone_from(&expected.kind);
    }
    if actual.version.is_empty() {
        actual.version.clone_from(&expected.version);
        actual.group.clone_from(&expected.group);
    }
    if actual == *expected { Ok(()) } else { Err(kind_mismatch(&actual, expected)) }
}

/// Reads JSON as it was sent.
pub(crate) fn parse_node(text: &[u8]) -> Result<Node, String> {
    node::parse_json(text)
}

/// The object as a Kubernetes protobuf body, none when its kind is not in the type table.
#[must_use]
pub fn encode_protobuf(object: &Value) -> Option<Vec<u8>> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let gvk = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    let ty = match gvk.group.as_str() {
        // Served in every group's place, so the table has no kind for them.
        "meta.k8s.io" => schema::by_name(&format!("meta.v1.{}", gvk.kind)),
        _ => schema::by_gvk(&gvk),
    };
    ty.map(|ty| encode::encode(object, ty))
}

/// What Go writes for a struct of this type in which nothing is set.
pub(crate) fn zero(ty: &TypeSchema) -> Value {
    typed::finish(serde_json::Map::new(), ty)
}

/// Reads JSON without a schema.
///
/// # Errors
/// Go's text for what is malformed.
pub fn parse_json(text: &[u8]) -> Result<Value, String> {
    node::parse_json(text).map(Node::into_value)
}

/// Reads YAML without a schema.
///
/// # Errors
/// A text for what is malformed.
pub fn parse_yaml(text: &[u8]) -> Result<Value, String> {
    node::parse_yaml(text).map(Node::into_value)
}

fn parse_json_object(body: &[u8]) -> Result<Node, String> {
    let prefix = "couldn't get version/kind; json parse error:";
    let node = node::parse_json(body).map_err(|e| format!("{prefix} {e}"))?;
    if !matches!(node, Node::Object(_) | Node::Null) {
        return Err(format!(
            "{prefix} json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            node.go_kind()
        ));
    }
    Ok(node)
}

fn named_kind(node: &Node, expected: &GroupVersionKind) -> Result<GroupVersionKind, String> {
    let text = |name: &str| match node.get(name) {
        None | Some(Node::Null) => Ok(""),
        Some(Node::String(s)) => Ok(s.as_str()),
        Some(other) => Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{name} \
             of type string",
            other.go_kind()
        )),
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    if api_version.matches('/').count() > 1 {
        return Err(format!(
            "couldn't get version/kind; json parse error: unexpected GroupVersion string: {api_version}"
        ));
    }
    let mut actual = GroupVersionKind::from_api_version(api_version, kind);
    if actual.kind.is_empty() {
        actual.kind.clone_from(&expected.kind);
    }
    if actual.version.is_empty() && actual.group.is_empty() {
        actual.version.clone_from(&expected.version);
        actual.group.clone_from(&expected.group);
    }
    Ok(actual)
}

fn cannot_be_handled(actual: &GroupVersionKind, expected: &GroupVersionKind, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{} in version {} cannot be handled as a {}: {why}",
        actual.kind,
        crate::error::quote(&actual.version),
        expected.kind
    ))
}

/// Kinds that any group's endpoint takes.
fn group_less(kind: &str) -> bool {
    matches!(kind, "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "GetOptions")
}

fn check_kind(actual: &GroupVersionKind, expected: &GroupVersionKind) -> Result<(), ApiError> {
    if actual == expected || (group_less(&actual.kind) && actual.kind == expected.kind) {
        return Ok(());
    }
    if schema::by_gvk(actual).is_some() && actual.kind == expected.kind {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            actual.api_version(),
            expected.api_version()
        )));
    }
    Err(cannot_be_handled(actual, expected, &kind_mismatch(actual, expected)))
}

fn kind_mismatch(actual: &GroupVersionKind, expected: &GroupVersionKind) -> String {
    if schema::by_gvk(actual).is_none() {
        return format!(
            "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            crate::error::quote(&actual.kind),
            crate::error::quote(&actual.api_version())
        );
    }
    let internal = match expected.group.split('.').next().unwrap_or_default() {
        "" => "core",
        group => group,
    };
    format!(
        "converting ({}.{}) to ({internal}.{}): unknown conversion",
        actual.version, actual.kind, expected.kind
    )
}

fn decode_protobuf(
    body: &[u8],
    expected: &GroupVersionKind,
    schema: &TypeSchema,
    unrecognized: &dyn Fn(String) -> ApiError,
) -> Result<Decoded, ApiError> {
    let envelope = proto::unwrap(body).map_err(unrecognized)?;
    let mut actual = GroupVersionKind::from_api_version(&envelope.api_version, &envelope.kind);
    if actual.kind.is_empty() {
        actual.kind.clone_from(&expected.kind);
    }
    if actual.version.is_empty() && actual.group.is_empty() {
        actual.version.clone_from(&expected.version);
        actual.group.clone_from(&expected.group);
    }
    check_kind(&actual, expected)?;
    let handled = |why: String| cannot_be_handled(&actual, expected, &why);
    let mut object = match envelope.content_type.as_str() {
        "" | "application/vnd.kubernetes.protobuf" => proto::decode(envelope.raw, schema).map_err(handled)?,
        "application/json" => {
            let (object, outcome) = typed::decode(node::parse_json(envelope.raw).map_err(handled)?, schema);
            match outcome.error {
                Some(error) => return Err(handled(error)),
                None => object,
            }
        }
        other => return Err(handled(format!("unknown content type {other:?} in the protobuf envelope"))),
    };
    set_kind(&mut object, expected);
    Ok(Decoded { object, warnings: Vec::new() })
}

/// The zero value of a type of the table, as Go writes it.
pub(crate) fn zero_object(name: &str) -> Value {
    schema::by_name(name)
        .map_or_else(|| Value::Object(serde_json::Map::new()), |ty| typed::finish(serde_json::Map::new(), ty))
}

pub(crate) fn set_kind(object: &mut Value, gvk: &GroupVersionKind) {
    if let Value::Object(map) = object {
        map.insert("apiVersion".to_owned(), gvk.api_version().into());
        map.insert("kind".to_owned(), gvk.kind.clone().into());
    }
}

/// The beginning of a body for an error message: text when it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let head = body.get(..MAX).unwrap_or(body);
    let more = if body.len() > MAX { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

#[cfg(test)]
mod tests;
