//! JSONPath as client-go's `util/jsonpath` understands it, for printer columns: one path, missing keys give nothing.

use serde_json::Value;
use std::cmp::Ordering;

/// Nesting of filters that is still read.
const MAX_DEPTH: usize = 8;

/// A step of a path.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// All members or items.
    All,
    /// Everything below, and the value itself.
    Below,
    /// Items from, to (without), every so many.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    /// Several of the above.
    Union(Vec<Step>),
    /// Items that an expression selects.
    Filter(Operand, Option<(Relation, Operand)>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Value(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Relation {
    Equal,
    Differs,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Path(Vec<Step>);

impl Path {
    /// Reads a path such as `.spec.list[?(@.type=="a")].name`; none when it is malformed.
    pub(crate) fn parse(text: &str) -> Option<Path> {
        let mut parser = Parser { rest: text.trim(), depth: 0 };
        let path = parser.path()?;
        parser.rest.is_empty().then_some(path)
    }

    /// The values that the path leads to; none for one that does not fit the object.
    pub(crate) fn find<'v>(&self, root: &'v Value) -> Option<Vec<&'v Value>> {
        let mut found = vec![root];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.take(value, &mut next)?;
            }
            found = next;
        }
        Some(found)
    }
}

struct Parser<'t> {
    rest: &'t str,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn path(&mut self) -> Option<Path> {
        let mut steps = Vec::new();
        self.eat("$");
        loop {
            if self.eat("..") {
                steps.push(Step::Below);
                if !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if self.eat(".") {
                if self.rest.starts_with('[') {
                    continue;
                }
                steps.push(self.name()?);
            } else if self.eat("[") {
                steps.push(self.brackets()?);
            } else {
                return Some(Path(steps));
            }
        }
    }

    fn name(&mut self) -> Option<Step> {
        if self.eat("*") {
            return Some(Step::All);
        }
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => out.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ']' | ' ' | ')' | '=' | '<' | '>' | '!' | ',' | '{' | '}' => {
                    end = at;
                    break;
                }
                c => out.push(c),
            }
        }
        self.rest = self.rest.get(end..).unwrap_or_default();
        (!out.is_empty()).then_some(Step::Field(out))
    }

    fn brackets(&mut self) -> Option<Step> {
        self.space();
        if self.eat("?(") {
            let filter = self.filter()?;
            self.space();
            return (self.eat(")") && self.closed()).then_some(filter);
        }
        let mut steps = vec![self.element()?];
        self.space();
        while self.eat(",") {
            self.space();
            steps.push(self.element()?);
            self.space();
        }
        if !self.closed() {
            return None;
        }
        if steps.len() == 1 { steps.pop() } else { Some(Step::Union(steps)) }
    }

    fn closed(&mut self) -> bool {
        self.space();
        self.eat("]")
    }

    fn element(&mut self) -> Option<Step> {
        if self.eat("*") {
            return Some(Step::All);
        }
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(Step::Field);
        }
        let first = self.number()?;
        if !self.eat(":") {
            return first.map(Step::Index);
        }
        let end = self.number()?;
        let every = if self.eat(":") { self.number()?.unwrap_or(1) } else { 1 };
        Some(Step::Slice(first, end, every))
    }

    /// A number if there is one; none when it is malformed.
    fn number(&mut self) -> Option<Option<i64>> {
        let end = self.rest.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        if digits.is_empty() { Some(None) } else { digits.parse().ok().map(Some) }
    }

    fn quoted(&mut self) -> Option<String> {
        let mut chars = self.rest.char_indices();
        let (_, quote) = chars.next()?;
        let mut out = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => out.push(chars.next()?.1),
                c if c == quote => {
                    self.rest = self.rest.get(at + 1..).unwrap_or_default();
                    return Some(out);
                }
                c => out.push(c),
            }
        }
        None
    }

    fn filter(&mut self) -> Option<Step> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        self.space();
        let left = self.operand()?;
        self.space();
        let relations = [
            ("==", Relation::Equal),
            ("!=", Relation::Differs),
            ("<=", Relation::LessOrEqual),
            (">=", Relation::GreaterOrEqual),
            ("<", Relation::Less),
            (">", Relation::Greater),
        ];
        let relation = relations.into_iter().find(|(text, _)| self.eat(text)).map(|(_, relation)| relation);
        let test = match relation {
            Some(relation) => {
                self.space();
                Some((relation, self.operand()?))
            }
            None => None,
        };
        self.depth -= 1;
        Some(Step::Filter(left, test))
    }

    fn operand(&mut self) -> Option<Operand> {
        if self.eat("@") {
            return self.path().map(Operand::Path);
        }
        if self.rest.starts_with(['\'', '"']) {
            return self.quoted().map(|text| Operand::Value(text.into()));
        }
        let end = self.rest.find([' ', ')', '=', '<', '>', '!']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let value: Value = serde_json::from_str(word).ok()?;
        (!value.is_object() && !value.is_array()).then_some(Operand::Value(value))
    }
}

impl Step {
    /// Adds what the step leads to from a value; none when it cannot be taken from it.
    fn take<'v>(&self, value: &'v Value, out: &mut Vec<&'v Value>) -> Option<()> {
        match self {
            Step::Field(name) => out.extend(value.get(name)),
            Step::All => match value {
                Value::Array(items) => out.extend(items),
                Value::Object(members) => out.extend(members.values()),
                _ => {}
            },
            Step::Below => below(value, out),
            Step::Index(at) => {
                let items = list(value)?;
                let at = if *at < 0 { *at + items.len() as i64 } else { *at };
                out.push(items.get(usize::try_from(at).ok()?)?);
            }
            Step::Slice(from, to, every) => {
                let items = list(value)?;
                let length = items.len() as i64;
                let place = |at: i64| (if at < 0 { at + length } else { at }).clamp(0, length) as usize;
                let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
                let every = usize::try_from(*every).ok().filter(|every| *every > 0)?;
                out.extend(items.get(from..to).unwrap_or_default().iter().step_by(every));
            }
            Step::Union(steps) => {
                for step in steps {
                    step.take(value, out)?;
                }
            }
            Step::Filter(left, test) => {
                let items = list(value)?;
                out.extend(items.iter().filter(|item| selects(item, left, test.as_ref())));
            }
        }
        Some(())
    }
}

/// The items of a list; none of null.
fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        Value::Null => Some(&[]),
        _ => None,
    }
}

fn below<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| below(item, out)),
        Value::Object(members) => members.values().for_each(|member| below(member, out)),
        _ => {}
    }
}

fn selects(item: &Value, left: &Operand, test: Option<&(Relation, Operand)>) -> bool {
    let value = |operand: &Operand| match operand {
        Operand::Value(value) => Some(value.clone()),
        Operand::Path(path) => path.find(item)?.first().map(|value| (*value).clone()),
    };
    let Some(left) = value(left) else { return false };
    let Some((relation, right)) = test else { return true };
    let Some(right) = value(right) else { return false };
    let order = match (&left, &right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    match relation {
        Relation::Equal => order == Some(Ordering::Equal),
        Relation::Differs => order.is_some_and(|order| order != Ordering::Equal),
        Relation::Less => order == Some(Ordering::Less),
        Relation::LessOrEqual => order.is_some_and(|order| order != Ordering::Greater),
        Relation::Greater => order == Some(Ordering::Greater),
        Relation::GreaterOrEqual => order.is_some_and(|order| order != Ordering::Less),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_client_go_s_do() {
        let object = json!({"spec": {"n": 5, "l": ["p", "q", "r"], "a.b": 1, "m": {"x": 1, "y": 2}},
            "status": {"conditions": [{"type": "Ready", "status": "True", "n": 3}, {"type": "Other", "n": 7}]}});
        for (path, found) in [
            (".spec.n", json!([5])),
            (".spec.l[*]", json!(["p", "q", "r"])),
            (".spec.l[-1]", json!(["r"])),
            (".spec.l[0:2]", json!(["p", "q"])),
            (".spec.l[0,2]", json!(["p", "r"])),
            (".spec.l[::2]", json!(["p", "r"])),
            (".spec['a.b']", json!([1])),
            (r".spec.a\.b", json!([1])),
            (".spec.m.*", json!([1, 2])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.n > 5)].type", json!(["Other"])),
            (".status.conditions[?(@.status)].type", json!(["Ready"])),
            (".missing.at.all", json!([])),
            ("..type", json!(["Ready", "Other"])),
        ] {
            let parsed = Path::parse(path).unwrap_or_else(|| panic!("{path} is a path"));
            let values = parsed.find(&object).unwrap_or_else(|| panic!("{path} fits"));
            assert_eq!(json!(values), found, "{path}");
        }
        assert_eq!(Path::parse(".spec.l[9]").and_then(|p| p.find(&object).map(|v| v.len())), None);
        for path in [".spec[", ".a[?(@.b==", ".a[x]", ".a b"] {
            assert_eq!(Path::parse(path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[.\\[\\]?()@*$'\"a-c0-9:,=<>! -]{0,24}") {
            let object = json!({"a": [{"b": 1}, {"c": "x"}], "b": {"a": [1, 2, 3]}});
            if let Some(path) = Path::parse(&text) {
                let _ = path.find(&object);
            }
        }
    }
}
