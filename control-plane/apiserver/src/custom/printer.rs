//! Columns of custom resources in Tables (`additionalPrinterColumns`).

use super::jsonpath::Path;
use crate::object::{int_at, meta, str_at};
use crate::table::{Column, since};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Type of a column's cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Number,
    Boolean,
    Date,
}

/// The columns of one version.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    definitions: Value,
    columns: Vec<(Kind, Path)>,
}

impl Printer {
    /// From the definition's columns; without any there is the age. Columns after a malformed one are left out, as
    /// upstream does.
    pub(crate) fn new(columns: &[Value]) -> Self {
        let age = json!({"name": "Age", "type": "date", "description": Column::AGE.description,
            "jsonPath": ".metadata.creationTimestamp"});
        let columns = if columns.is_empty() { std::slice::from_ref(&age) } else { columns };
        let name = Column::NAME;
        let mut definitions = vec![json!({"name": name.name, "type": name.kind, "format": name.format,
            "description": name.description, "priority": 0})];
        let mut cells = Vec::new();
        for column in columns {
            let json_path = str_at(column, &["jsonPath"]);
            let Some(path) = Path::parse(json_path) else { break };
            let kind = match str_at(column, &["type"]) {
                "integer" => Kind::Integer,
                "number" => Kind::Number,
                "boolean" => Kind::Boolean,
                "date" => Kind::Date,
                _ => Kind::Text,
            };
            let description = match str_at(column, &["description"]) {
                "" => format!("Custom resource definition column (in JSONPath format): {json_path}"),
                text => text.to_owned(),
            };
            definitions.push(json!({"name": str_at(column, &["name"]), "type": str_at(column, &["type"]),
                "format": str_at(column, &["format"]), "description": description,
                "priority": int_at(column, &["priority"]).unwrap_or_default()}));
            cells.push((kind, path));
        }
        Printer { definitions: definitions.into(), columns: cells }
    }

    /// Column definitions as JSON.
    pub(crate) fn definitions(&self) -> Value {
        self.definitions.clone()
    }

    /// One cell a column.
    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut out = vec![meta(object, "name").into()];
        out.extend(self.columns.iter().map(|(kind, path)| {
            let found = path.find(object).unwrap_or_default();
            found.first().map_or(Value::Null, |value| cell(*kind, value, now))
        }));
        out
    }
}

fn cell(kind: Kind, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        (Kind::Text, Value::String(_)) => value.clone(),
        (Kind::Text, other) => other.to_string().into(),
        (Kind::Integer, Value::Number(n)) => {
            n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Into::into)
        }
        (Kind::Number, Value::Number(_)) | (Kind::Boolean, Value::Bool(_)) => value.clone(),
        (Kind::Date, Value::String(text)) if text.is_empty() => "<unknown>".into(),
        (Kind::Date, Value::String(text)) if text.parse::<Timestamp>().is_err() => "<invalid>".into(),
        (Kind::Date, Value::String(text)) => since(text, now).into(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_the_type_of_their_column() {
        let printer = Printer::new(&[
            json!({"name": "N", "type": "integer", "jsonPath": ".spec.n"}),
            json!({"name": "S", "type": "string", "jsonPath": ".spec.s", "priority": 1}),
            json!({"name": "D", "type": "date", "jsonPath": ".spec.d", "description": "when"}),
        ]);
        let cells = |spec: Value| {
            printer.cells(&json!({"metadata": {"name": "x"}, "spec": spec}), Timestamp::UNIX_EPOCH)
        };
        assert_eq!(
            cells(json!({"n": 5, "s": {"o": 1}, "d": "no"})),
            json!(["x", 5, "{\"o\":1}", "<invalid>"]).as_array().cloned().unwrap()
        );
        assert_eq!(
            cells(json!({"n": "5", "s": "t"})),
            json!(["x", null, "t", null]).as_array().cloned().unwrap()
        );
        assert_eq!(cells(json!({"n": 1.9})), json!(["x", 1, null, null]).as_array().cloned().unwrap());
        let definitions = printer.definitions();
        assert_eq!(definitions.pointer("/2/priority"), Some(&json!(1)));
        assert_eq!(definitions.pointer("/3/description"), Some(&json!("when")));
        assert_eq!(Printer::new(&[]).definitions().pointer("/1/name"), Some(&json!("Age")));
    }
}
