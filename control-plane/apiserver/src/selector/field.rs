//! Field selectors.

use crate::error::{ApiError, quote};

/// A parsed field selector; all terms must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Terms in their order.
    pub terms: Vec<FieldTerm>,
}

/// `field=value` or `field!=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// Field label.
    pub field: String,
    /// Value it is compared with.
    pub value: String,
    /// `=` or `!=`.
    pub equal: bool,
}

fn unescape(text: &str, whole: &str) -> Result<String, ApiError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => {
                    return Err(ApiError::bad_request(format!(
                        "invalid field selector: invalid escape sequence: \\{c}"
                    )));
                }
                None => {
                    return Err(ApiError::bad_request(format!(
                        "invalid selector: {}; can't understand '{text}'",
                        quote(whole)
                    )));
                }
            },
            '=' => {
                return Err(ApiError::bad_request(
                    "invalid field selector: unescaped character in value: =".to_owned(),
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(text.get(start..).unwrap_or_default());
    out
}

impl FieldSelector {
    /// Parses `a=b,c!=d`; an error is a 400 with upstream's words.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for term in split_terms(text).into_iter().filter(|t| !t.is_empty()) {
            let parts = ["!=", "==", "="]
                .iter()
                .filter_map(|op| term.find(op).map(|at| (at, *op)))
                .min_by_key(|(at, op)| (*at, std::cmp::Reverse(op.len())));
            let Some((at, op)) = parts else {
                return Err(ApiError::bad_request(format!(
                    "invalid selector: {}; can't understand '{term}'",
                    quote(text)
                )));
            };
            let field = term.get(..at).unwrap_or_default().to_owned();
            let value = unescape(term.get(at + op.len()..).unwrap_or_default(), text)?;
            terms.push(FieldTerm { field, value, equal: op != "!=" });
        }
        Ok(FieldSelector { terms })
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value a field must have, if a term says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_terms() {
        let selector = FieldSelector::parse(r"spec.nodeName=n\,1,status.phase!=Failed,a==b").expect("valid");
        assert_eq!(selector.exact("spec.nodeName"), Some("n,1"));
        assert_eq!(selector.exact("a"), Some("b"));
        assert_eq!(selector.exact("status.phase"), None);
        assert_eq!(selector.terms.len(), 3);
        assert!(FieldSelector::parse("abc").is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,60}") {
            let _ = FieldSelector::parse(&text);
        }
    }
}
