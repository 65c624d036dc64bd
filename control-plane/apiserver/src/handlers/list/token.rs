//! Continue tokens: URL-safe base64 of `{"v":"meta.k8s.io/v1","rv":…,"start":…}`, as upstream's `storage/continue.go`.

use crate::codec::{Node, parse_node};
use crate::error::ApiError;
use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use serde_json::Value;

/// Base64 of tokens, as lenient as Go's.
const ENCODING: GeneralPurpose =
    GeneralPurpose::new(&base64::alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Where a list goes on: revision (negative: the newest) and first key, relative to the list's prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) revision: i64,
    pub(super) start: String,
}

fn decode(text: &str) -> Result<Vec<u8>, String> {
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let symbol = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let at = match clean.find(|c| !symbol(c)) {
        // Where it stands in the text as it was sent.
        Some(_) => text.find(|c| !symbol(c) && !matches!(c, '\r' | '\n')),
        None => (clean.len() % 4 == 1).then(|| text.len().saturating_sub(1)),
    };
    match at {
        Some(at) => Err(format!("illegal base64 data at input byte {at}")),
        None => ENCODING.decode(&clean).map_err(|_| "illegal base64 data at input byte 0".to_owned()),
    }
}

/// A member's value of the wrong type, as Go's decoder words it.
fn wrong(node: &Node, field: &str, want: &str) -> String {
    let found = match node {
        Node::Number(text) => format!("number {text}"),
        other => other.go_kind().to_owned(),
    };
    let found = if want == "string" { node.go_kind() } else { &found };
    format!("json: cannot unmarshal {found} into Go struct field continueToken.{field} of type {want}")
}

fn text(node: &Node, field: &str) -> Result<String, String> {
    match node.get(field) {
        None | Some(Node::Null) => Ok(String::new()),
        Some(Node::String(text)) => Ok(text.clone()),
        Some(other) => Err(wrong(other, field, "string")),
    }
}

fn parse(token: &str) -> Result<Token, String> {
    let invalid = |why: String| format!("continue key is not valid: {why}");
    let bytes = decode(token).map_err(invalid)?;
    let node = parse_node(&bytes).map_err(invalid)?;
    if !matches!(node, Node::Object(_) | Node::Null) {
        let found = node.go_kind();
        let why = format!("json: cannot unmarshal {found} into Go value of type storage.continueToken");
        return Err(invalid(why));
    }
    let version = text(&node, "v").map_err(invalid)?;
    let revision = match node.get("rv") {
        None | Some(Node::Null) => 0,
        Some(Node::Number(number)) => match number.parse() {
            Ok(revision) => revision,
            Err(_) => return Err(invalid(wrong(&Node::Number(number.clone()), "rv", "int64"))),
        },
        Some(other) => return Err(invalid(wrong(other, "rv", "int64"))),
    };
    let start = text(&node, "start").map_err(invalid)?;
    if version != "meta.k8s.io/v1" {
        return Err(invalid(format!("server does not recognize this encoded version {version}")));
    }
    if revision == 0 {
        return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned()));
    }
    if start.is_empty() {
        return Err(invalid("encoded start key empty (version meta.k8s.io/v1)".to_owned()));
    }
    // A key that leads out of the list's prefix would show what the client may not see.
    let relative = start.strip_prefix('/').unwrap_or(&start);
    if relative.split('/').any(|part| matches!(part, "" | "." | "..")) && !relative.is_empty() {
        return Err(invalid(start));
    }
    Ok(Token { revision, start: relative.to_owned() })
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// 400 with upstream's texts.
    pub(super) fn parse(token: &str) -> Result<Self, ApiError> {
        parse(token).map_err(|why| ApiError::bad_request(format!("invalid continue token: {why}")))
    }

    /// The token as it is sent.
    pub(super) fn render(&self) -> String {
        let start = Value::from(self.start.as_str());
        ENCODING.encode(format!("{{\"v\":\"meta.k8s.io/v1\",\"rv\":{},\"start\":{start}}}", self.revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_survive_the_way_there_and_back(revision in 1i64.., start in "[a-z0-9.-]{1,20}(/[a-z]{1,9})?\0") {
            let clean = !start.trim_end_matches('\0').split('/').any(|part| matches!(part, "." | ".."));
            prop_assume!(clean);
            let token = Token { revision, start };
            prop_assert_eq!(Token::parse(&token.render()), Ok(token));
        }

        #[test]
        fn no_token_panics(text in ".{0,40}") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn no_content_panics(text in ".{0,40}") {
            let _ = Token::parse(&ENCODING.encode(text));
        }
    }

    #[test]
    fn tokens_are_written_as_upstream_writes_them() {
        let token = Token { revision: 1, start: "a\0".to_owned() };
        assert_eq!(token.render(), "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJhXHUwMDAwIn0");
    }

    #[test]
    fn bad_tokens() {
        let message = |text: &str| {
            let error = Token::parse(text).expect_err("bad");
            error
                .message()
                .strip_prefix("invalid continue token: continue key is not valid: ")
                .map(str::to_owned)
        };
        let of = |json: &str| message(&ENCODING.encode(json)).expect("prefix");
        assert_eq!(message("zzz").as_deref(), Some("invalid character 'Ï' looking for beginning of value"));
        assert_eq!(message("e30=").as_deref(), Some("illegal base64 data at input byte 3"));
        assert_eq!(message("e3+w").as_deref(), Some("illegal base64 data at input byte 2"));
        assert_eq!(message("e30ab").as_deref(), Some("illegal base64 data at input byte 4"));
        assert_eq!(of("{}"), "server does not recognize this encoded version ");
        assert_eq!(of("{\"v\":\"v2\"}"), "server does not recognize this encoded version v2");
        assert_eq!(of("[]"), "json: cannot unmarshal array into Go value of type storage.continueToken");
        assert_eq!(
            of("{\"v\":1}"),
            "json: cannot unmarshal number into Go struct field continueToken.v of type string"
        );
        assert_eq!(
            of("{\"v\":\"meta.k8s.io/v1\",\"rv\":1.5}"),
            "json: cannot unmarshal number 1.5 into Go struct field continueToken.rv of type int64"
        );
        assert_eq!(
            of("{\"v\":\"meta.k8s.io/v1\"}"),
            "incorrect encoded start resourceVersion (version meta.k8s.io/v1)"
        );
        assert_eq!(
            of("{\"v\":\"meta.k8s.io/v1\",\"rv\":5}"),
            "encoded start key empty (version meta.k8s.io/v1)"
        );
        assert_eq!(of("{\"v\":\"meta.k8s.io/v1\",\"rv\":5,\"start\":\"../a\"}"), "../a");
        assert_eq!(of("{\"v\":\"meta.k8s.io/v1\",\"rv\":5,\"start\":\"a//b\"}"), "a//b");
    }
}
