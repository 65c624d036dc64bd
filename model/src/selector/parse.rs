//! The grammar of label selectors.

use super::{Operator, Requirement, SelectorError};
use crate::names;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

const SPECIAL: &[u8] = b"=!(),><";

fn literal(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "in" => Token::In,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::Open,
        _ => return None,
    })
}

/// The next token of `text`, its literal, and the rest.
fn lex(text: &str) -> (Token, String, &str) {
    let text = text.trim_start_matches([' ', '\t', '\r', '\n']);
    let bytes = text.as_bytes();
    let Some(&first) = bytes.first() else { return (Token::End, String::new(), "") };
    if SPECIAL.contains(&first) {
        // The longest operator wins: `==` before `=`.
        let mut best = None;
        let mut end = 0;
        while end < bytes.len() && SPECIAL.contains(&bytes[end]) {
            end += 1;
            match literal(&text[..end]) {
                Some(token) => best = Some((token, end)),
                None if best.is_some() => break,
                None => {}
            }
        }
        return match best {
            Some((token, end)) => (token, text[..end].to_owned(), &text[end..]),
            None => (Token::Error, format!("error expected: keyword found '{}'", &text[..end]), &text[end..]),
        };
    }
    let end =
        bytes.iter().position(|b| SPECIAL.contains(b) || b" \t\r\n\0".contains(b)).unwrap_or(bytes.len());
    let word = &text[..end];
    // A NUL ends the text, as in upstream.
    let rest = if bytes.get(end) == Some(&0) { "" } else { &text[end..] };
    (literal(word).unwrap_or(Token::Identifier), word.to_owned(), rest)
}

struct Parser {
    items: Vec<(Token, String)>,
    position: usize,
}

impl Parser {
    fn new(text: &str) -> Self {
        let mut items = Vec::new();
        let mut rest = text;
        loop {
            let (token, lit, next) = lex(rest);
            rest = next;
            items.push((token, lit));
            if token == Token::End {
                return Self { items, position: 0 };
            }
        }
    }

    fn peek(&self) -> (Token, &str) {
        // The last item is the end; reading past it stays there.
        match self.items.get(self.position).or(self.items.last()) {
            Some((Token::In | Token::NotIn, lit)) => (Token::Identifier, lit),
            Some((token, lit)) => (*token, lit),
            None => (Token::End, ""),
        }
    }

    fn next(&mut self) -> (Token, String) {
        let (token, lit) = self.peek();
        let out = (token, lit.to_owned());
        self.position += 1;
        out
    }

    fn next_operator(&mut self) -> (Token, String) {
        let out = self.items.get(self.position).cloned().unwrap_or((Token::End, String::new()));
        self.position += 1;
        out
    }
}

fn fail<T>(message: String) -> Result<T, SelectorError> {
    Err(SelectorError(message))
}

/// The message for a bad label key at `path`.
pub(super) fn key_error(key: &str, path: &str) -> Option<String> {
    let bad = names::qualified_name(key);
    (!bad.is_empty()).then(|| format!("{path}: Invalid value: {key:?}: {}", bad.join("; ")))
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut p = Parser::new(text);
    let mut out = Vec::new();
    loop {
        let (token, lit) = p.peek();
        match token {
            Token::Identifier | Token::Not => {
                let r = requirement(&mut p)
                    .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
                out.push(r);
                match p.next() {
                    (Token::End, _) => return Ok(out),
                    (Token::Comma, _) => {
                        let (t, l) = p.peek();
                        if t != Token::Identifier && t != Token::Not {
                            return fail(format!("found '{l}', expected: identifier after ','"));
                        }
                    }
                    (_, l) => return fail(format!("found '{l}', expected: ',' or 'end of string'")),
                }
            }
            Token::End => return Ok(out),
            _ => return fail(format!("found '{lit}', expected: !, identifier, or 'end of string'")),
        }
    }
}

fn requirement(p: &mut Parser) -> Result<Requirement, SelectorError> {
    let (mut token, mut key) = p.next();
    let mut operator = None;
    if token == Token::Not {
        operator = Some(Operator::DoesNotExist);
        (token, key) = p.next();
    }
    if token != Token::Identifier {
        return fail(format!("found '{key}', expected: identifier"));
    }
    if let Some(e) = key_error(&key, "<nil>") {
        return fail(e);
    }
    if operator.is_none() && matches!(p.peek().0, Token::End | Token::Comma) {
        operator = Some(Operator::Exists);
    }
    if let Some(operator) = operator {
        return Requirement::new(key, operator, []);
    }
    let (token, lit) = p.next_operator();
    let operator = match token {
        Token::In => Operator::In,
        Token::Equals => Operator::Equals,
        Token::DoubleEquals => Operator::DoubleEquals,
        Token::Greater => Operator::GreaterThan,
        Token::Less => Operator::LessThan,
        Token::NotIn => Operator::NotIn,
        Token::NotEquals => Operator::NotEquals,
        _ => return fail(format!("found '{lit}', expected: in, notin, =, ==, !=, gt, lt")),
    };
    let values = match operator {
        Operator::In | Operator::NotIn => values(p)?,
        _ => vec![exact_value(p)?],
    };
    Requirement::new(key, operator, values)
}

fn exact_value(p: &mut Parser) -> Result<String, SelectorError> {
    if matches!(p.peek().0, Token::End | Token::Comma) {
        return Ok(String::new());
    }
    match p.next() {
        (Token::Identifier, lit) => Ok(lit),
        (_, lit) => fail(format!("found '{lit}', expected: identifier")),
    }
}

fn values(p: &mut Parser) -> Result<Vec<String>, SelectorError> {
    let (token, lit) = p.next();
    if token != Token::Open {
        return fail(format!("found '{lit}' expected: '('"));
    }
    let (token, lit) = p.peek();
    let lit = lit.to_owned();
    match token {
        Token::Identifier | Token::Comma => {
            let out = identifiers(p)?;
            if p.next().0 != Token::Close {
                return fail(format!("found '{lit}', expected: ')'"));
            }
            Ok(out)
        }
        Token::Close => {
            p.next();
            Ok(vec![String::new()])
        }
        _ => fail(format!("found '{lit}', expected: ',', ')' or identifier")),
    }
}

fn identifiers(p: &mut Parser) -> Result<Vec<String>, SelectorError> {
    let mut out = Vec::new();
    loop {
        match p.next() {
            (Token::Identifier, lit) => {
                out.push(lit);
                match p.peek() {
                    (Token::Comma, _) => {}
                    (Token::Close, _) => return Ok(out),
                    (_, lit) => return fail(format!("found '{lit}', expected: ',' or ')'")),
                }
            }
            (Token::Comma, _) => {
                if out.is_empty() {
                    out.push(String::new());
                }
                match p.peek().0 {
                    Token::Close => {
                        out.push(String::new());
                        return Ok(out);
                    }
                    Token::Comma => out.push(String::new()),
                    _ => {}
                }
            }
            (_, lit) => return fail(format!("found '{lit}', expected: ',', or identifier")),
        }
    }
}
