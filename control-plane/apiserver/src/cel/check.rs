//! The walk over an expression that gives every part its type.

use super::functions::{overloads, type_named};
use super::infer::{call, join};
use super::types::{BOOL, INT};
use super::{Issue, Type};
use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, MapExpr, SourceInfo,
};
use std::collections::BTreeSet;

/// State of one check.
pub(super) struct Checker<'s, 'i> {
    info: &'i SourceInfo,
    /// Variables, inner scopes last.
    scope: Vec<(String, Type<'s>)>,
    used: BTreeSet<String>,
    issues: Vec<Issue>,
}

/// `a.b.c` as text, if the expression is nothing but names.
fn qualified(expression: &IdedExpr) -> Option<String> {
    match &expression.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => {
            Some(format!("{}.{}", qualified(&select.operand)?, select.field))
        }
        _ => None,
    }
}

fn identifier(expression: Option<&IdedExpr>) -> Option<&str> {
    match &expression?.expr {
        Expr::Ident(name) => Some(name),
        _ => None,
    }
}

impl<'s, 'i> Checker<'s, 'i> {
    pub(super) fn new(info: &'i SourceInfo) -> Self {
        Checker { info, scope: Vec::new(), used: BTreeSet::new(), issues: Vec::new() }
    }

    /// Makes a variable known.
    pub(super) fn declare(&mut self, name: &str, ty: Type<'s>) {
        self.scope.push((name.to_owned(), ty));
    }

    /// Whether a variable was referred to.
    pub(super) fn used(&self, name: &str) -> bool {
        self.used.contains(name)
    }

    pub(super) fn into_issues(self) -> Vec<Issue> {
        self.issues
    }

    fn fault(&mut self, at: u64, text: String) -> Type<'s> {
        let offset = self.info.offset_for(at).map_or(0, |(start, _)| start);
        self.issues.push(Issue { offset, text });
        Type::Error
    }

    fn variable(&self, name: &str) -> Option<Type<'s>> {
        self.scope.iter().rev().find(|(own, _)| own == name).map(|(_, ty)| ty.clone())
    }

    /// The type of an expression; faults are noted. The parser bounds the depth.
    pub(super) fn check(&mut self, expression: &IdedExpr) -> Type<'s> {
        match &expression.expr {
            Expr::Unspecified => Type::Error,
            Expr::Literal(literal) => Type::Named(match literal {
                LiteralValue::Boolean(_) => "bool",
                LiteralValue::Bytes(_) => "bytes",
                LiteralValue::Double(_) => "double",
                LiteralValue::Int(_) => "int",
                LiteralValue::Null => "null_type",
                LiteralValue::String(_) => "string",
                LiteralValue::UInt(_) => "uint",
            }),
            Expr::Ident(name) => match self.variable(name) {
                Some(ty) => {
                    self.used.insert(name.clone());
                    ty
                }
                None => type_named(name).unwrap_or_else(|| self.undeclared(expression.id, name)),
            },
            Expr::Select(select) => {
                if let Some(name) = qualified(expression)
                    && let Some(ty) = type_named(&name)
                {
                    return ty;
                }
                let operand = self.check(&select.operand);
                let field = self.select(expression.id, &operand, &select.field);
                if select.test { BOOL } else { field }
            }
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.map(map),
            Expr::Struct(s) => self.undeclared(expression.id, &s.type_name),
            Expr::Call(c) => self.call(expression.id, c),
            Expr::Comprehension(c) => self.comprehension(c),
        }
    }

    fn undeclared(&mut self, at: u64, name: &str) -> Type<'s> {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, at: u64, operand: &Type<'s>, field: &str) -> Type<'s> {
        match operand {
            Type::Dyn | Type::Free => Type::Dyn,
            Type::Error => Type::Error,
            Type::Map(_, value) => (**value).clone(),
            Type::Optional(of) => {
                let of = of.clone();
                Type::optional(self.select(at, &of, field))
            }
            Type::Object { .. } | Type::Metadata => match operand.field(field) {
                Some(ty) => ty,
                None => self.fault(at, format!("undefined field '{field}'")),
            },
            other => self.fault(at, format!("type '{other}' does not support field selection")),
        }
    }

    fn elements(&mut self, mut known: Type<'s>, at: u64, next: Type<'s>) -> Type<'s> {
        // Literals hold values of one type.
        if !next.fits(&known) && !known.fits(&next) {
            return self.fault(at, format!("expected type '{known}' but found '{next}'"));
        }
        known = join(&known, &next);
        known
    }

    fn list(&mut self, list: &ListExpr) -> Type<'s> {
        let mut of = Type::Free;
        for (at, element) in list.elements.iter().enumerate() {
            let mut ty = self.check(element);
            if list.optional_indices.contains(&at)
                && let Type::Optional(inner) = &ty
            {
                ty = (**inner).clone();
            }
            of = self.elements(of, element.id, ty);
        }
        Type::list(of)
    }

    fn map(&mut self, map: &MapExpr) -> Type<'s> {
        let (mut keys, mut values) = (Type::Free, Type::Free);
        for entry in &map.entries {
            let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
            let key = self.check(&entry.key);
            let mut value = self.check(&entry.value);
            if entry.optional
                && let Type::Optional(inner) = &value
            {
                value = (**inner).clone();
            }
            keys = self.elements(keys, entry.key.id, key);
            values = self.elements(values, entry.value.id, value);
        }
        Type::map(keys, values)
    }

    fn call(&mut self, at: u64, c: &CallExpr) -> Type<'s> {
        if let Some(target) = &c.target {
            // `sets.contains(…)`: a function's name, unless its first part is a variable.
            let name = qualified(target).map(|prefix| format!("{prefix}.{}", c.func_name));
            let shadowed = name
                .as_deref()
                .and_then(|n| n.split('.').next())
                .is_some_and(|root| self.variable(root).is_some());
            if let Some(name) = name.filter(|name| !shadowed && overloads(name).is_some()) {
                let arguments: Vec<_> = c.args.iter().map(|a| self.check(a)).collect();
                return self.resolve(at, &name, None, &arguments);
            }
            if let Some(ty) = self.two_variables(c, target) {
                return ty;
            }
        }
        match (c.func_name.as_str(), c.args.as_slice()) {
            ("_?._", [operand, field]) => return self.optional_select(at, operand, field),
            ("_[?_]", [operand, index]) => {
                let operand = self.check(operand);
                let of = if let Type::Optional(of) = &operand { (**of).clone() } else { operand };
                let index = self.check(index);
                return Type::optional(self.resolve(at, "_[_]", None, &[of, index]));
            }
            _ => {}
        }
        let receiver = c.target.as_ref().map(|target| self.check(target));
        if let ([binding, body], Some(Type::Optional(of)), "optMap" | "optFlatMap") =
            (c.args.as_slice(), &receiver, c.func_name.as_str())
            && let Some(name) = identifier(Some(binding))
        {
            let result = self.within(&[(name, (**of).clone())], body);
            return if c.func_name == "optMap" { Type::optional(result) } else { result };
        }
        let arguments: Vec<_> = c.args.iter().map(|a| self.check(a)).collect();
        if c.func_name == "type"
            && let ([of], None) = (arguments.as_slice(), &receiver)
        {
            return Type::Kind(of.clone().into());
        }
        if c.func_name == "_[_]"
            && let [Type::Optional(of), index] = arguments.as_slice()
        {
            return Type::optional(self.resolve(at, "_[_]", None, &[(**of).clone(), index.clone()]));
        }
        self.resolve(at, &c.func_name, receiver, &arguments)
    }

    fn resolve(
        &mut self,
        at: u64,
        name: &str,
        receiver: Option<Type<'s>>,
        arguments: &[Type<'s>],
    ) -> Type<'s> {
        let Some(known) = overloads(name) else { return self.undeclared(at, name) };
        let member = receiver.is_some();
        let all: Vec<Type<'s>> = receiver.iter().chain(arguments).cloned().collect();
        if all.iter().any(|ty| matches!(ty, Type::Error)) {
            // The fault is already told; the result is as if the argument could be anything.
            return call(known, member, &all).unwrap_or(Type::Error);
        }
        if let Some(ty) = call(known, member, &all) {
            return ty;
        }
        let texts: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let applied = match &receiver {
            Some(receiver) => format!("{receiver}.({})", texts.join(", ")),
            None => format!("({})", texts.join(", ")),
        };
        self.fault(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn optional_select(&mut self, at: u64, operand: &IdedExpr, field: &IdedExpr) -> Type<'s> {
        let operand = self.check(operand);
        let of = if let Type::Optional(of) = &operand { (**of).clone() } else { operand };
        let Expr::Literal(LiteralValue::String(name)) = &field.expr else { return Type::optional(Type::Dyn) };
        Type::optional(self.select(at, &of, name.inner()))
    }

    /// Checks `body` with more variables.
    fn within(&mut self, variables: &[(&str, Type<'s>)], body: &IdedExpr) -> Type<'s> {
        let depth = self.scope.len();
        for (name, ty) in variables {
            self.declare(name, ty.clone());
        }
        let ty = self.check(body);
        self.scope.truncate(depth);
        ty
    }

    fn range(&mut self, at: u64, range: &Type<'s>) -> (Type<'s>, Type<'s>) {
        match range {
            Type::List(of) => (INT, (**of).clone()),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Free => (Type::Dyn, Type::Dyn),
            other => {
                let why = "cannot be range of a comprehension (must be list, map, or dynamic)";
                let text = format!("expression of type '{other}' {why}");
                (self.fault(at, text), Type::Error)
            }
        }
    }

    /// The macros with two variables, which the parser leaves as calls.
    fn two_variables(&mut self, c: &CallExpr, target: &IdedExpr) -> Option<Type<'s>> {
        let (first, second) = (identifier(c.args.first())?, identifier(c.args.get(1))?);
        let (filter, body) = match (c.func_name.as_str(), c.args.get(2..)?) {
            ("all" | "exists" | "exists_one" | "existsOne", [body]) => (None, body),
            ("transformList" | "transformMap" | "transformMapEntry", [body]) => (None, body),
            ("transformList" | "transformMap" | "transformMapEntry", [filter, body]) => (Some(filter), body),
            _ => return None,
        };
        let range = self.check(target);
        let (key, value) = self.range(target.id, &range);
        let variables = [(first, key.clone()), (second, value)];
        if let Some(filter) = filter {
            let ty = self.within(&variables, filter);
            self.boolean(filter.id, &ty);
        }
        let ty = self.within(&variables, body);
        Some(match c.func_name.as_str() {
            "transformList" => Type::list(ty),
            "transformMap" => Type::map(key, ty),
            "transformMapEntry" => ty,
            _ => {
                self.boolean(body.id, &ty);
                BOOL
            }
        })
    }

    fn boolean(&mut self, at: u64, ty: &Type<'s>) {
        if !ty.fits(&BOOL) {
            self.fault(at, format!("expected type 'bool' but found '{ty}'"));
        }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr) -> Type<'s> {
        let range = self.check(&c.iter_range);
        let (key, value) = self.range(c.iter_range.id, &range);
        let accumulator = self.check(&c.accu_init);
        let mut variables = vec![(c.accu_var.as_str(), accumulator.clone())];
        match (&c.iter_var2, &range) {
            (Some(second), _) => variables.extend([(c.iter_var.as_str(), key), (second.as_str(), value)]),
            // A map is walked by its keys.
            (None, Type::Map(..)) => variables.push((c.iter_var.as_str(), key)),
            (None, _) => variables.push((c.iter_var.as_str(), value)),
        }
        let condition = self.within(&variables, &c.loop_cond);
        self.boolean(c.loop_cond.id, &condition);
        let step = self.within(&variables, &c.loop_step);
        let after = join(&accumulator, &step);
        let depth = self.scope.len();
        self.declare(&c.accu_var, after);
        let result = self.check(&c.result);
        self.scope.truncate(depth);
        result
    }
}
