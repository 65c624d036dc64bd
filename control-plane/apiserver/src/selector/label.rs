//! Label selectors in their string form.

use crate::error::{ApiError, quote};
use std::collections::BTreeSet;

/// A parsed label selector; all requirements must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    op: Op,
    values: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Exists,
    NotExists,
    In,
    NotIn,
    Greater,
    Less,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    End,
    Open,
    Close,
    Comma,
    Not,
    Equal,
    DoubleEqual,
    NotEqual,
    Greater,
    Less,
    In,
    NotIn,
    Word(String),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::End => "",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Not => "!",
            Token::Equal => "=",
            Token::DoubleEqual => "==",
            Token::NotEqual => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::In => "in",
            Token::NotIn => "notin",
            Token::Word(word) => word,
        }
    }
}

fn tokens(input: &str) -> Vec<Token> {
    const SPECIAL: &str = "=!(),<>";
    let chars: Vec<char> = input.chars().collect();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        if matches!(c, ' ' | '\t' | '\r' | '\n') {
            at += 1;
            continue;
        }
        let next = chars.get(at + 1).copied();
        let (token, length) = match (c, next) {
            ('=', Some('=')) => (Token::DoubleEqual, 2),
            ('!', Some('=')) => (Token::NotEqual, 2),
            ('=', _) => (Token::Equal, 1),
            ('!', _) => (Token::Not, 1),
            ('(', _) => (Token::Open, 1),
            (')', _) => (Token::Close, 1),
            (',', _) => (Token::Comma, 1),
            ('>', _) => (Token::Greater, 1),
            ('<', _) => (Token::Less, 1),
            _ => {
                let word: String = chars
                    .iter()
                    .skip(at)
                    .take_while(|c| !SPECIAL.contains(**c) && !matches!(c, ' ' | '\t' | '\r' | '\n'))
                    .collect();
                let length = word.chars().count();
                let token = match word.as_str() {
                    "in" => Token::In,
                    "notin" => Token::NotIn,
                    _ => Token::Word(word),
                };
                (token, length)
            }
        };
        out.push(token);
        at += length;
    }
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

/// In a value's place `in` and `notin` are ordinary words.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    KeyOrOperator,
    Values,
}

impl Parser {
    fn look(&self, place: Place) -> Token {
        let token = self.tokens.get(self.at).cloned().unwrap_or(Token::End);
        match (place, token) {
            (Place::Values, token @ (Token::In | Token::NotIn)) => Token::Word(token.text().to_owned()),
            (_, token) => token,
        }
    }

    fn take(&mut self, place: Place) -> Token {
        let token = self.look(place);
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.look(Place::Values) {
                Token::Word(_) | Token::Not => {
                    out.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.take(Place::Values) {
                        Token::End => return Ok(out),
                        Token::Comma => match self.look(Place::Values) {
                            Token::Word(_) | Token::Not => {}
                            other => {
                                return Err(format!(
                                    "found '{}', expected: identifier after ','",
                                    other.text()
                                ));
                            }
                        },
                        other => {
                            return Err(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            ));
                        }
                    }
                }
                Token::End => return Ok(out),
                other => {
                    return Err(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut negated = false;
        let mut token = self.take(Place::Values);
        if token == Token::Not {
            negated = true;
            token = self.take(Place::Values);
        }
        let Token::Word(key) = token else {
            return Err(format!("found '{}', expected: identifier", token.text()));
        };
        check_key(&key)?;
        let single = |op, values| Requirement { key: key.clone(), op, values };
        if matches!(self.look(Place::Values), Token::End | Token::Comma) || negated {
            let op = if negated { Op::NotExists } else { Op::Exists };
            return Ok(single(op, BTreeSet::new()));
        }
        let operator = self.take(Place::KeyOrOperator);
        let op = match operator {
            Token::In | Token::Equal | Token::DoubleEqual => Op::In,
            Token::NotIn | Token::NotEqual => Op::NotIn,
            Token::Greater => Op::Greater,
            Token::Less => Op::Less,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        let values = match operator {
            Token::In | Token::NotIn => self.value_list()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        for value in &values {
            if matches!(op, Op::Greater | Op::Less) {
                if value.parse::<i64>().is_err() {
                    return Err(format!(
                        "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        quote(value)
                    ));
                }
            } else {
                check_value(&key, value)?;
            }
        }
        Ok(single(op, values))
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.look(Place::Values) {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn value_list(&mut self) -> Result<BTreeSet<String>, String> {
        match self.take(Place::Values) {
            Token::Open => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut out = BTreeSet::new();
        loop {
            match self.take(Place::Values) {
                Token::Word(word) => {
                    out.insert(word);
                    match self.take(Place::Values) {
                        Token::Comma => {
                            if self.look(Place::Values) == Token::Close {
                                out.insert(String::new());
                            }
                        }
                        Token::Close => return Ok(out),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Comma => {
                    out.insert(String::new());
                    if self.look(Place::Values) == Token::Close {
                        out.insert(String::new());
                    }
                }
                Token::Close => {
                    if out.is_empty() {
                        out.insert(String::new());
                    }
                    return Ok(out);
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
    }
}

fn name_part(text: &str) -> bool {
    let alnum = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && alnum(text.chars().next())
        && alnum(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = key.split_once('/').unwrap_or(("", key));
    let prefix_ok = !key.contains('/')
        || (!prefix.is_empty()
            && prefix.len() <= 253
            && prefix.split('.').all(|part| {
                !part.is_empty()
                    && !part.starts_with('-')
                    && !part.ends_with('-')
                    && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            }));
    if prefix_ok && name_part(name) {
        return Ok(());
    }
    Err(format!(
        "key: Invalid value: {}: name part must consist of alphanumeric characters, '-', '_' or '.', and must \
         start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used \
         for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
        quote(key)
    ))
}

fn check_value(key: &str, value: &str) -> Result<(), String> {
    if value.is_empty() || name_part(value) {
        return Ok(());
    }
    Err(format!(
        "values[0][{key}]: Invalid value: {}: a valid label must be an empty string or consist of alphanumeric \
         characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  \
         or 'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        quote(value)
    ))
}

impl LabelSelector {
    /// Parses `a=b,c in (d,e),!f`; an error is a 400 with upstream's words.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        Parser { tokens: tokens(text), at: 0 }.parse().map(LabelSelector).map_err(ApiError::bad_request)
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, looked up by key, match.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = label(&requirement.key);
            match requirement.op {
                Op::Exists => value.is_some(),
                Op::NotExists => value.is_none(),
                Op::In => value.is_some_and(|v| requirement.values.contains(v)),
                Op::NotIn => !value.is_some_and(|v| requirement.values.contains(v)),
                Op::Greater | Op::Less => {
                    let bound = requirement.values.first().and_then(|v| v.parse::<i64>().ok());
                    match (value.and_then(|v| v.parse::<i64>().ok()), bound) {
                        (Some(value), Some(bound)) if requirement.op == Op::Greater => value > bound,
                        (Some(value), Some(bound)) => value < bound,
                        _ => false,
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        LabelSelector::parse(selector)
            .expect("valid selector")
            .matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn operators() {
        let labels = [("e", "prod"), ("t", "1"), ("in", "x")];
        for yes in [
            "",
            "e",
            "!f",
            "e=prod",
            "e==prod",
            "e!=dev",
            "e in (prod,dev)",
            "e notin (dev)",
            "f notin (dev)",
            "t>0",
            "t<2",
            "e=prod,t=1",
            "in=x",
            " e = prod , !f",
            "f!=x",
        ] {
            assert!(matches(yes, &labels), "{yes}");
        }
        for no in ["f", "!e", "e=dev", "e!=prod", "e in ()", "t>1", "t<1", "e>1", "e notin (prod)", "e="] {
            assert!(!matches(no, &labels), "{no}");
        }
    }

    #[test]
    fn errors_have_upstream_words() {
        let error = LabelSelector::parse("a===b").expect_err("bad");
        assert_eq!(error.message(), "unable to parse requirement: found '=', expected: identifier");
        assert!(LabelSelector::parse("a,").is_err());
        assert!(LabelSelector::parse("a in b").is_err());
        assert!(LabelSelector::parse("-a=b").is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in ".{0,60}") {
            let _ = LabelSelector::parse(&text);
        }

        #[test]
        fn equality_of_valid_labels(key in "[a-z]([a-z0-9.-]{0,8}[a-z0-9])?", value in "[a-z0-9]([a-z0-9_.-]{0,8}[a-z0-9])?") {
            let selector = format!("{key}={value}");
            prop_assert!(matches(&selector, &[(&key, &value)]));
            prop_assert!(!matches(&selector, &[(&key, "other-value")]) || value == "other-value");
        }
    }
}
