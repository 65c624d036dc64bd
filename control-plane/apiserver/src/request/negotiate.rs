//! The representation of the answer: media type, Table and PartialObjectMetadata views.

use crate::error::ApiError;

/// Encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

/// Which form of an object or list is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The object.
    Object,
    /// A Table of this `meta.k8s.io` version.
    Table(&'static str),
    /// A PartialObjectMetadata (list) of this `meta.k8s.io` version.
    Partial(&'static str),
}

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Encoding.
    pub format: Format,
    /// Form.
    pub view: View,
    /// Indented for people.
    pub pretty: bool,
}

impl Accepted {
    /// Plain JSON.
    pub const JSON: Accepted = Accepted { format: Format::Json, view: View::Object, pretty: false };
}

/// Media types served.
pub const SERVED: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

struct Clause<'a> {
    main: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let main = parts.next().filter(|main| !main.is_empty())?;
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                if key == "q" {
                    quality = value.parse().unwrap_or(1.0);
                } else {
                    parameters.push((key, value.trim_matches('"')));
                }
            }
            Some(Clause { main, parameters, quality })
        })
        .collect();
    // Stable: clauses of one quality stay in the client's order.
    out.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    out
}

fn mismatch(asked: &str, is: &str, object: &str) -> ApiError {
    ApiError::not_acceptable_because(format!(
        "you requested {asked}, but the requested object is {is} ({object})"
    ))
}

/// Chooses from an Accept header. `list`: whether the answer is a collection; `watch`: only framed JSON is served.
/// `object` names the answer's type for the error when single and list are confused.
pub fn accept(
    header: Option<&str>,
    pretty: bool,
    list: bool,
    watch: bool,
    object: &str,
) -> Result<Accepted, ApiError> {
    let header = header.map(str::trim).filter(|h| !h.is_empty()).unwrap_or("application/json");
    for clause in clauses(header) {
        let format = match clause.main {
            "application/json" | "*/*" | "application/*" => Format::Json,
            "application/yaml" if !watch => Format::Yaml,
            _ => continue,
        };
        let parameter = |name: &str| clause.parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
        let version = match parameter("v") {
            Some("v1") | None => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            Some(_) => None,
        };
        let own_group = parameter("g").is_none_or(|g| g == "meta.k8s.io");
        let view = match (parameter("as"), version) {
            (None, _) => View::Object,
            (Some("Table"), Some(version)) if own_group => View::Table(version),
            (Some("PartialObjectMetadata"), Some(version)) if own_group => {
                if list && !watch {
                    return Err(mismatch("PartialObjectMetadata", "a list", object));
                }
                View::Partial(version)
            }
            (Some("PartialObjectMetadataList"), Some(version)) if own_group => {
                if !list || watch {
                    return Err(mismatch("PartialObjectMetadataList", "not a list", object));
                }
                View::Partial(version)
            }
            _ => continue,
        };
        return Ok(Accepted { format, view, pretty });
    }
    Err(ApiError::not_acceptable(SERVED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_and_client_go_headers() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(
            accept(Some(kubectl), false, true, false, "*core.Pod").map(|a| a.view),
            Ok(View::Table("v1"))
        );
        let typed = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(Some(typed), false, true, false, "*core.Pod").map(|a| a.view), Ok(View::Object));
        let meta = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(
            accept(Some(meta), false, true, false, "*core.Pod").map(|a| a.view),
            Ok(View::Partial("v1"))
        );
        assert_eq!(accept(None, false, false, false, "*core.Pod").map(|a| a.format), Ok(Format::Json));
        assert_eq!(accept(Some("*/*"), false, false, false, "*core.Pod").map(|a| a.format), Ok(Format::Json));
        assert_eq!(
            accept(Some("application/yaml"), false, false, false, "*core.Pod").map(|a| a.format),
            Ok(Format::Yaml)
        );
        let error = accept(Some("text/plain"), false, false, false, "*core.Pod").expect_err("not served");
        assert_eq!(error.code(), 406);
    }
}
