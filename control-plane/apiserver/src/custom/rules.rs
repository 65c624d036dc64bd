//! The rules (`x-kubernetes-validations`) of a schema, compiled once for all objects. Source: `apiserver/schema/cel` of
//! apiextensions-apiserver.

use crate::cel::{Failure, Outcome, PER_OBJECT, Program, Variables, optional, value};
use crate::error::{BadValue, FieldError, quote};
use crate::structural::{Additional, ListType, Path, Rule, Structural};
use serde_json::Value;
use std::collections::BTreeMap;

/// Longest message that an expression may give, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

#[derive(Debug)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    /// Where the fault is shown, below the rule's own place.
    place: Option<String>,
}

/// Compiled rules of a schema and of what is in it.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    own: Vec<Compiled>,
    root: bool,
    all_of: Vec<Rules>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
    properties: BTreeMap<Box<str>, Rules>,
}

/// Whether there are rules in a schema or in what it describes.
fn has_rules(schema: &Structural) -> bool {
    !schema.rules.is_empty()
        || schema.items.as_deref().is_some_and(has_rules)
        || schema.additional_schema().is_some_and(has_rules)
        || schema.properties.values().any(has_rules)
}

/// An old and a new value at the same place, as far as the place can be found again.
#[derive(Clone, Copy)]
struct Pair<'v> {
    new: &'v Value,
    old: &'v Value,
}

struct Run<'v> {
    path: Path,
    errs: Vec<FieldError>,
    budget: i64,
    /// Of an update.
    before: Option<&'v Value>,
}

impl Rules {
    /// Compiles the rules of a resource; none when it has none.
    pub(super) fn compile(schema: &Structural) -> Option<Self> {
        if has_rules(schema) { Self::of(schema, schema, true) } else { None }
    }

    /// `rules` says what is to hold, `node` what the values are: different ones below `allOf`.
    fn of(rules: &Structural, node: &Structural, root: bool) -> Option<Self> {
        let own = rules.rules.iter().filter(|rule| !rule.rule.trim().is_empty());
        let additional = match (&rules.additional, &node.additional) {
            (Some(Additional::Schema(rules)), Some(Additional::Schema(node))) => {
                Self::of(rules, node, node.embedded)
            }
            _ => None,
        };
        let items = rules.items.as_deref().zip(node.items.as_deref());
        let properties = rules.properties.iter().filter_map(|(name, rules)| {
            let node = node.properties.get(name)?;
            Some((name.clone(), Self::of(rules, node, node.embedded)?))
        });
        let out = Rules {
            own: own.map(|rule| Compiled::of(rule, node)).collect(),
            root,
            all_of: rules.limits.all_of.iter().filter_map(|rules| Self::of(rules, node, root)).collect(),
            items: items.and_then(|(rules, node)| Self::of(rules, node, node.embedded)).map(Box::new),
            additional: additional.map(Box::new),
            properties: properties.collect(),
        };
        let empty = out.own.is_empty()
            && out.all_of.is_empty()
            && out.items.is_none()
            && out.additional.is_none()
            && out.properties.is_empty();
        (!empty).then_some(out)
    }

    /// Checks an object; `old` is what it was before an update.
    pub(super) fn check(&self, new: &Value, old: Option<&Value>, schema: &Structural) -> Vec<FieldError> {
        let mut run = Run {
            path: Path::default(),
            errs: Vec::new(),
            budget: i64::try_from(PER_OBJECT).unwrap_or(i64::MAX),
            before: old,
        };
        let pair = old.map(|old| Pair { new, old });
        run.node(self, new, old, pair, schema);
        run.errs
    }
}

impl Compiled {
    fn of(rule: &Rule, node: &Structural) -> Self {
        let message = &rule.message_expression;
        Compiled {
            program: Program::compile(&rule.rule),
            message: (!message.is_empty()).then(|| Program::compile(message).ok()).flatten(),
            place: (!rule.field_path.is_empty()).then(|| place(&rule.field_path, node)).flatten(),
            rule: rule.clone(),
        }
    }

    /// What the rule is called in messages.
    fn name(&self) -> &str {
        match self.rule.message.trim() {
            "" => self.rule.rule.trim(),
            message => message,
        }
    }

    fn default_message(&self) -> String {
        match self.rule.message.trim() {
            "" => format!("failed rule: {}", self.name()),
            message => message.to_owned(),
        }
    }
}

/// The path of a field, from `.a['b.c']` to `a.b.c`; keys of maps are shown as such.
fn place(field_path: &str, schema: &Structural) -> Option<String> {
    let mut path = Path::default();
    let (mut rest, mut schema) = (field_path, Some(schema));
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix("['") {
            let end = quoted.find("']")?;
            name = quoted.get(..end)?.replace("\\'", "'").replace("\\\\", "\\");
            rest = quoted.get(end + 2..)?;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            name = after.get(..end)?.to_owned();
            rest = after.get(end..)?;
        }
        match schema.filter(|s| s.properties.is_empty()).and_then(Structural::additional_schema) {
            Some(inner) => {
                path.push_key(&name);
                schema = Some(inner);
            }
            None => {
                path.push_field(&name);
                schema = schema.and_then(|s| s.properties.get(name.as_str()));
            }
        }
    }
    Some(path.as_str().to_owned())
}

impl<'v> Run<'v> {
    /// Checks a value and what is in it. `old` is what it was; `pair` the nearest place around it that is known to be
    /// the same one as before.
    fn node(
        &mut self,
        rules: &Rules,
        new: &'v Value,
        old: Option<&'v Value>,
        pair: Option<Pair<'v>>,
        schema: &Structural,
    ) {
        if new.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        self.own(rules, new, old, pair, schema);
        for all_of in &rules.all_of {
            if self.budget < 0 {
                return;
            }
            self.node(all_of, new, old, pair, schema);
        }
        match new {
            Value::Array(items) => self.items(rules, items, old, pair, schema),
            Value::Object(members) => {
                for (name, member) in members {
                    if self.budget < 0 {
                        return;
                    }
                    let before = old.and_then(|old| old.get(name));
                    let deeper = match before {
                        // What a resource is, is converted along: the old one says nothing of it.
                        _ if self.path.len() == 0 && matches!(name.as_str(), "apiVersion" | "kind") => None,
                        Some(old) if pair.is_some() => Some(Pair { new: member, old }),
                        _ => pair,
                    };
                    let length = self.path.len();
                    if let (Some(inner), Some(schema)) = (&rules.additional, schema.additional_schema()) {
                        self.path.push_key(name);
                        self.node(inner, member, before, deeper, schema);
                    } else if let (Some(inner), Some(schema)) =
                        (rules.properties.get(name.as_str()), schema.properties.get(name.as_str()))
                    {
                        self.path.push_field(name);
                        self.node(inner, member, before, deeper, schema);
                    }
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }

    fn items(
        &mut self,
        rules: &Rules,
        items: &'v [Value],
        old: Option<&'v Value>,
        pair: Option<Pair<'v>>,
        schema: &Structural,
    ) {
        let (Some(rules), Some(inner)) = (&rules.items, schema.items.as_deref()) else { return };
        let olds = old.and_then(Value::as_array).filter(|_| schema.list == ListType::Map);
        for (at, item) in items.iter().enumerate() {
            if self.budget < 0 {
                return;
            }
            // Only items that keys identify are found again.
            let same =
                |other: &&Value| schema.list_keys.iter().all(|key| other.get(&**key) == item.get(&**key));
            let before = olds.and_then(|olds| olds.iter().find(same));
            let deeper = match before {
                Some(old) if pair.is_some() => Some(Pair { new: item, old }),
                _ => pair,
            };
            let length = self.path.len();
            self.path.push_index(at);
            self.node(rules, item, before, deeper, inner);
            self.path.truncate(length);
        }
    }

    fn shown(&self, place: Option<&str>) -> String {
        let mut path = self.path.clone();
        if let Some(place) = place {
            path.push_field(place);
        }
        path.shown()
    }

    /// A fault of the rule itself, which is shown with the type of the value.
    fn broken(&mut self, schema: &Structural, why: String) {
        let kind = BadValue::from(&*schema.kind);
        self.errs.push(FieldError::invalid(self.shown(None), kind, why));
    }

    fn stop(&mut self, schema: &Structural, why: String) {
        self.broken(schema, why);
        self.budget = -1;
    }

    fn own(
        &mut self,
        rules: &Rules,
        new: &Value,
        old: Option<&Value>,
        pair: Option<Pair<'_>>,
        schema: &Structural,
    ) {
        const SPENT: &str =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        if rules.own.is_empty() {
            return;
        }
        if self.budget <= 0 {
            return self.stop(schema, SPENT.to_owned());
        }
        let plain = Variables {
            own: value(new, schema, rules.root),
            old: old.map(|old| value(old, schema, rules.root)),
        };
        let with_optional = rules.own.iter().any(|rule| rule.rule.optional_old_self).then(|| Variables {
            own: plain.own.clone_as_boxed(),
            old: Some(optional(plain.old.as_deref())),
        });
        for rule in &rules.own {
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    self.broken(schema, format!("rule compile error: {why}"));
                    continue;
                }
            };
            if program.uses_old_self && old.is_none() && !rule.rule.optional_old_self {
                continue;
            }
            let variables = with_optional.as_ref().filter(|_| rule.rule.optional_old_self).unwrap_or(&plain);
            let left = u64::try_from(self.budget).unwrap_or_default();
            let (result, cost) = program.run(variables, left);
            if cost > left {
                return self.stop(schema, SPENT.to_owned());
            }
            self.budget -= i64::try_from(cost).unwrap_or(i64::MAX);
            match result {
                Ok(Outcome::Bool(true)) => {}
                Ok(_) => {
                    let same = |pair: Pair<'_>| self.before.is_some() && pair.new == pair.old;
                    if !program.uses_old_self && pair.is_some_and(same) {
                        // It was so before.
                        continue;
                    }
                    self.failed(rule, &plain, new, schema);
                    if self.budget < 0 {
                        return;
                    }
                }
                Err(Failure::TooExpensive) => {
                    return self.stop(
                        schema,
                        format!(
                            "'operation cancelled: actual cost limit exceeded': no further validation rules will be \
                             run due to call cost exceeds limit for rule: {}",
                            rule.name()
                        ),
                    );
                }
                Err(Failure::Error(why)) if why.starts_with("no such overload") => self.broken(
                    schema,
                    format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {}",
                        rule.name()
                    ),
                ),
                Err(Failure::Error(why)) => {
                    self.broken(schema, format!("{why} evaluating rule: {}", rule.name()));
                }
            }
        }
    }

    /// Says that a rule does not hold.
    fn failed(&mut self, rule: &Compiled, variables: &Variables<'_>, new: &Value, schema: &Structural) {
        let path = self.shown(rule.place.as_deref());
        let mut detail = rule.default_message();
        if let Some(message) = &rule.message {
            let left = u64::try_from(self.budget).unwrap_or_default();
            let (result, cost) = message.run(variables, left);
            let source = quote(&rule.rule.message_expression);
            let stop = match &result {
                _ if cost > left => Some(
                    "messageExpression evaluation failed due to running out of cost budget, no further validation \
                     rules will be run"
                        .to_owned(),
                ),
                Err(Failure::TooExpensive) => Some(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: \
                     {source}"
                )),
                _ => None,
            };
            if let Some(why) = stop {
                self.errs.push(FieldError::invalid(path, BadValue::from(&*schema.kind), why));
                self.budget = -1;
                return;
            }
            self.budget -= i64::try_from(cost).unwrap_or(i64::MAX);
            if let Ok(Outcome::Text(text)) = result {
                let text = text.trim();
                if !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n') {
                    detail = text.to_owned();
                }
            }
        }
        let shown = match &*schema.kind {
            "object" | "array" => BadValue::Omitted,
            _ => BadValue::from(new.clone()),
        };
        self.errs.push(match &*rule.rule.reason {
            "FieldValueForbidden" => FieldError::forbidden(path, detail),
            "FieldValueRequired" => FieldError::required(path, detail),
            "FieldValueDuplicate" => FieldError::duplicate(path, shown),
            _ => FieldError::invalid(path, shown, detail),
        });
    }
}

#[cfg(test)]
mod tests;
