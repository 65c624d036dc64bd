//! The representation of the answer: media type, Table and PartialObjectMetadata views. The rules are those of upstream's
//! `negotiation` package: clauses by quality, then by how specific they are; a clause whose parameters the endpoint does
//! not serve is passed over.

use crate::error::ApiError;

/// Encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Format {
    /// The media type of whole answers.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// The media type of watch streams; `None`: this format has no framing.
    pub fn stream_type(self) -> Option<&'static str> {
        match self {
            Format::Json => Some("application/json"),
            Format::Yaml => None,
            Format::Protobuf => Some("application/vnd.kubernetes.protobuf;stream=watch"),
        }
    }
}

/// Which form of an object or list is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// Media types of watch streams, as the error message lists them.
const STREAMED: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// Formats in the server's order of preference.
const FORMATS: [Format; 3] = [Format::Json, Format::Yaml, Format::Protobuf];

/// What an endpoint can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Its objects have a protobuf form.
    pub protobuf: bool,
    /// It serves PartialObjectMetadata.
    pub transforms: bool,
    /// It serves Table, too.
    pub tables: bool,
    /// The answer is a collection.
    pub list: bool,
    /// The answer is a watch stream.
    pub watch: bool,
    /// The answer's type as error messages name it.
    pub object: &'a str,
}

impl Endpoint<'_> {
    /// Errors and what is no resource: any format, nothing transformed.
    pub const PLAIN: Endpoint<'static> =
        Endpoint { protobuf: true, transforms: false, tables: false, list: false, watch: false, object: "" };
}

struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn matches(&self, format: Format) -> bool {
        let (main, sub) = format.media_type().split_once('/').unwrap_or_default();
        (self.main == "*" && self.sub == "*") || (self.main == main && (self.sub == "*" || self.sub == sub))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let (main, sub) = match parts.next()? {
                "*" => ("*", "*"),
                text => text.split_once('/').filter(|(_, sub)| !sub.contains('/'))?,
            };
            let mut clause = Clause { main, sub, parameters: Vec::new(), quality: 1.0 };
            for part in parts {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                if key.trim() == "q" {
                    clause.quality = value.trim().parse().unwrap_or(0.0);
                } else {
                    clause.parameters.push((key.trim(), value.trim()));
                }
            }
            Some(clause)
        })
        .collect();
    // Stable: equal clauses stay in the client's order.
    out.sort_by(|a, b| {
        b.quality
            .total_cmp(&a.quality)
            .then((a.main == "*").cmp(&(b.main == "*")))
            .then((a.sub == "*").cmp(&(b.sub == "*")))
    });
    out
}

fn mismatch(asked: &str, is: &str, object: &str) -> ApiError {
    ApiError::not_acceptable_because(format!(
        "you requested {asked}, but the requested object is {is} ({object})"
    ))
}

/// The transformation a clause asks for, if the endpoint serves it in a format.
fn view(
    clause: &Clause<'_>,
    format: Format,
    endpoint: &Endpoint<'_>,
) -> Option<(View, Option<&'static str>)> {
    let asked = ["as", "g", "v"].map(|name| clause.parameter(name));
    let [kind, group, version] = asked;
    if asked.iter().all(Option::is_none) {
        let served = endpoint.protobuf || format != Format::Protobuf;
        return served.then_some((View::Object, None));
    }
    if !endpoint.transforms || group != Some("meta.k8s.io") {
        return None;
    }
    let version = match version {
        Some("v1") => "v1",
        Some("v1beta1") => "v1beta1",
        _ => return None,
    };
    match kind {
        // A Table has no protobuf form.
        Some("Table") => {
            (endpoint.tables && format != Format::Protobuf).then_some((View::Table(version), Some("Table")))
        }
        Some("PartialObjectMetadata") => Some((View::Partial(version), Some("PartialObjectMetadata"))),
        Some("PartialObjectMetadataList") => {
            Some((View::Partial(version), Some("PartialObjectMetadataList")))
        }
        _ => None,
    }
}

/// Chooses from an Accept header for an endpoint.
///
/// # Errors
/// 406 with upstream's texts.
pub fn negotiate(header: Option<&str>, pretty: bool, endpoint: &Endpoint<'_>) -> Result<Accepted, ApiError> {
    let header = header.unwrap_or_default();
    if header.is_empty() {
        return Ok(Accepted { pretty, ..Accepted::JSON });
    }
    for clause in clauses(header) {
        for format in FORMATS.into_iter().filter(|format| clause.matches(*format)) {
            let stream = clause.parameter("stream").unwrap_or_default();
            if !stream.is_empty() && (stream != "watch" || format.stream_type().is_none()) {
                continue;
            }
            if clause.parameter("sv").is_some_and(|v| !v.is_empty() && (v != "v1" || !endpoint.transforms)) {
                continue;
            }
            let Some((view, kind)) = view(&clause, format, endpoint) else { continue };
            match kind {
                Some(kind @ "PartialObjectMetadata") if endpoint.list && !endpoint.watch => {
                    return Err(mismatch(kind, "a list", endpoint.object));
                }
                Some(kind @ "PartialObjectMetadataList") if !endpoint.list || endpoint.watch => {
                    return Err(mismatch(kind, "not a list", endpoint.object));
                }
                _ => {}
            }
            if endpoint.watch && format.stream_type().is_none() {
                return Err(ApiError::not_acceptable(STREAMED));
            }
            let pretty = pretty || clause.parameter("pretty") == Some("1");
            return Ok(Accepted { format, view, pretty });
        }
    }
    Err(ApiError::not_acceptable(SERVED))
}

/// Chooses from an Accept header. `list`: whether the answer is a collection; `watch`: a stream.
/// `object` names the answer's type for the error when single and list are confused.
pub fn accept(
    header: Option<&str>,
    pretty: bool,
    list: bool,
    watch: bool,
    object: &str,
) -> Result<Accepted, ApiError> {
    negotiate(
        header,
        pretty,
        &Endpoint { protobuf: true, transforms: true, tables: true, list, watch, object },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(header: &str, list: bool, watch: bool) -> Result<(Format, View), String> {
        accept(Some(header), false, list, watch, "*core.Pod")
            .map(|a| (a.format, a.view))
            .map_err(|e| e.message().to_owned())
    }

    #[test]
    fn kubectl_and_client_go_headers() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(one(kubectl, true, false), Ok((Format::Json, View::Table("v1"))));
        let typed = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(one(typed, true, false), Ok((Format::Protobuf, View::Object)));
        let meta = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(one(meta, true, false), Ok((Format::Protobuf, View::Partial("v1"))));
        assert_eq!(
            one("application/vnd.kubernetes.protobuf;stream=watch", true, true),
            Ok((Format::Protobuf, View::Object))
        );
        assert_eq!(accept(None, false, false, false, "").map(|a| a.format), Ok(Format::Json));
    }

    #[test]
    fn wildcards_and_qualities() {
        for wide in ["*/*", "*", "application/*", "text/html, */*;q=0.1"] {
            assert_eq!(one(wide, false, false), Ok((Format::Json, View::Object)), "{wide}");
        }
        assert_eq!(
            one("application/json;q=0.5, application/yaml", false, false),
            Ok((Format::Yaml, View::Object))
        );
        assert_eq!(one("*/*, application/yaml", false, false), Ok((Format::Yaml, View::Object)));
        let table_or_proto = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io";
        assert_eq!(one(table_or_proto, true, false), Ok((Format::Json, View::Table("v1beta1"))));
    }

    #[test]
    fn what_is_not_served() {
        let only = "only the following media types are accepted: ";
        let all = format!("{only}application/json, application/yaml, application/vnd.kubernetes.protobuf");
        for header in [
            "text/plain",
            "application/json;as=Table;v=v2;g=meta.k8s.io",
            "application/json;as=Pod;v=v1;g=meta.k8s.io",
            "application/json;g=meta.k8s.io",
            "application/json;stream=other",
            "application/cbor",
        ] {
            assert_eq!(one(header, true, false), Err(all.clone()), "{header}");
        }
        assert_eq!(
            one("application/yaml", true, true),
            Err(format!(
                "{only}application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            ))
        );
        assert_eq!(
            one("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", true, false),
            Err("you requested PartialObjectMetadata, but the requested object is a list (*core.Pod)"
                .to_owned())
        );
        // What is answered and not stored has no table, but metadata.
        let review = Endpoint { transforms: true, ..Endpoint::PLAIN };
        let asked = |kind: &str| format!("application/json;as={kind};v=v1;g=meta.k8s.io");
        assert_eq!(negotiate(Some(&asked("Table")), false, &review).unwrap_err().code(), 406);
        assert!(negotiate(Some(&asked("PartialObjectMetadata")), false, &review).is_ok());
        let custom = Endpoint { protobuf: false, transforms: true, tables: true, ..Endpoint::PLAIN };
        let typed = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(negotiate(Some(typed), false, &custom).map(|a| a.format), Ok(Format::Json));
        assert!(negotiate(Some("application/vnd.kubernetes.protobuf"), false, &custom).is_err());
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert!(negotiate(Some(table), false, &Endpoint::PLAIN).is_err());
    }

    proptest! {
        #[test]
        fn no_header_panics(header in ".{0,80}", list in any::<bool>(), watch in any::<bool>()) {
            let _ = one(&header, list, watch);
        }

        /// The server's choice is one that the header names.
        #[test]
        fn the_choice_is_acceptable(wanted in proptest::sample::subsequence(SERVED.to_vec(), 1..4)) {
            let (format, _) = one(&wanted.join(","), false, false).expect("served");
            prop_assert_eq!(wanted.first().copied(), Some(format.media_type()));
        }
    }
}
