//! Macros that the `cel` crate leaves as calls, expanded into what it evaluates: those with two variables, and those of
//! optional values.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue};

/// Pairs of a map's keys and values, or of a list's places and items.
pub(super) const PAIRS: &str = "@pairs";
/// A map of pairs.
pub(super) const FROM_PAIRS: &str = "@fromPairs";
/// A map of maps of one entry each.
pub(super) const MERGED: &str = "@merged";

const RESULT: &str = "@result";
const PAIR: &str = "@pair";

fn at(id: u64, expr: Expr) -> IdedExpr {
    IdedExpr { id, expr }
}

fn call(id: u64, name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    at(id, Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }))
}

fn ident(id: u64, name: &str) -> IdedExpr {
    at(id, Expr::Ident(name.to_owned()))
}

fn boolean(id: u64, value: bool) -> IdedExpr {
    at(id, Expr::Literal(LiteralValue::Boolean(value.into())))
}

fn integer(id: u64, value: i64) -> IdedExpr {
    at(id, Expr::Literal(LiteralValue::Int(value.into())))
}

fn list(id: u64, elements: Vec<IdedExpr>) -> IdedExpr {
    at(id, Expr::List(ListExpr::new(elements)))
}

/// `body` with a variable: a loop that never turns.
fn bind(id: u64, variable: &str, value: IdedExpr, body: IdedExpr) -> IdedExpr {
    at(
        id,
        Expr::Comprehension(Box::new(ComprehensionExpr {
            iter_range: list(id, Vec::new()),
            iter_var: "#unused".to_owned(),
            iter_var2: None,
            accu_var: variable.to_owned(),
            accu_init: value,
            loop_cond: boolean(id, false),
            loop_step: ident(id, variable),
            result: body,
        })),
    )
}

/// `body` in a turn over pairs, with its two variables.
fn with_pair(id: u64, names: &[String; 2], body: IdedExpr) -> IdedExpr {
    let part = |place| call(id, "_[_]", vec![ident(id, PAIR), integer(id, place)]);
    let [first, second] = names;
    bind(id, first, part(0), bind(id, second, part(1), body))
}

fn over(
    id: u64,
    range: IdedExpr,
    init: IdedExpr,
    cond: IdedExpr,
    step: IdedExpr,
    result: IdedExpr,
) -> IdedExpr {
    at(
        id,
        Expr::Comprehension(Box::new(ComprehensionExpr {
            iter_range: call(id, PAIRS, vec![range]),
            iter_var: PAIR.to_owned(),
            iter_var2: None,
            accu_var: RESULT.to_owned(),
            accu_init: init,
            loop_cond: cond,
            loop_step: step,
            result,
        })),
    )
}

/// A list of what `body` gives for each pair that the filter lets through.
fn collected(
    id: u64,
    range: IdedExpr,
    names: &[String; 2],
    filter: Option<IdedExpr>,
    body: IdedExpr,
) -> IdedExpr {
    let item = with_pair(id, names, body);
    let step = call(id, "_+_", vec![ident(id, RESULT), list(id, vec![item])]);
    let step = match filter {
        Some(filter) => {
            let guard = with_pair(id, names, filter);
            call(id, "_?_:_", vec![guard, step, ident(id, RESULT)])
        }
        None => step,
    };
    over(id, range, list(id, Vec::new()), boolean(id, true), step, ident(id, RESULT))
}

fn two_variables(
    id: u64,
    name: &str,
    range: IdedExpr,
    names: &[String; 2],
    mut args: Vec<IdedExpr>,
) -> Option<IdedExpr> {
    let body = args.pop()?;
    let filter = args.pop();
    Some(match (name, filter) {
        ("all", None) => {
            let cond = call(id, "@not_strictly_false", vec![ident(id, RESULT)]);
            let step = call(id, "_&&_", vec![ident(id, RESULT), with_pair(id, names, body)]);
            over(id, range, boolean(id, true), cond, step, ident(id, RESULT))
        }
        ("exists", None) => {
            let not = call(id, "!_", vec![ident(id, RESULT)]);
            let cond = call(id, "@not_strictly_false", vec![not]);
            let step = call(id, "_||_", vec![ident(id, RESULT), with_pair(id, names, body)]);
            over(id, range, boolean(id, false), cond, step, ident(id, RESULT))
        }
        ("exists_one" | "existsOne", None) => {
            let one = call(id, "_+_", vec![ident(id, RESULT), integer(id, 1)]);
            let step = call(id, "_?_:_", vec![with_pair(id, names, body), one, ident(id, RESULT)]);
            let result = call(id, "_==_", vec![ident(id, RESULT), integer(id, 1)]);
            over(id, range, integer(id, 0), boolean(id, true), step, result)
        }
        ("transformList", filter) => collected(id, range, names, filter, body),
        ("transformMap", filter) => {
            let [first, _] = names;
            let pair = list(id, vec![ident(id, first), body]);
            call(id, FROM_PAIRS, vec![collected(id, range, names, filter, pair)])
        }
        ("transformMapEntry", filter) => call(id, MERGED, vec![collected(id, range, names, filter, body)]),
        _ => return None,
    })
}

fn name_of(expression: Option<&IdedExpr>) -> Option<String> {
    match &expression?.expr {
        Expr::Ident(name) => Some(name.clone()),
        _ => None,
    }
}

const TWO: &[&str] =
    &["all", "exists", "exists_one", "existsOne", "transformList", "transformMap", "transformMapEntry"];

/// Expands all macros of an expression.
pub(super) fn expand(expression: &mut IdedExpr) {
    match &mut expression.expr {
        Expr::Select(select) => expand(&mut select.operand),
        Expr::List(list) => list.elements.iter_mut().for_each(expand),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| {
            if let cel::common::ast::EntryExpr::MapEntry(entry) = &mut entry.expr {
                expand(&mut entry.key);
                expand(&mut entry.value);
            }
        }),
        Expr::Comprehension(c) => {
            for part in
                [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
            {
                expand(part);
            }
        }
        Expr::Call(c) => {
            if let Some(target) = &mut c.target {
                expand(target);
            }
            c.args.iter_mut().for_each(expand);
            let id = expression.id;
            let Expr::Call(c) = &mut expression.expr else { return };
            if c.target.is_none() {
                return;
            }
            let names = [name_of(c.args.first()), name_of(c.args.get(1))];
            if let ([Some(first), Some(second)], true) = (names, TWO.contains(&c.func_name.as_str()))
                && matches!(c.args.len(), 3 | 4)
                && let Some(range) = c.target.clone()
            {
                let rest = c.args.get(2..).unwrap_or_default().to_vec();
                if let Some(new) = two_variables(id, &c.func_name, *range, &[first, second], rest) {
                    *expression = new;
                }
                return;
            }
            if matches!(c.func_name.as_str(), "optMap" | "optFlatMap")
                && let (Some(name), Some(body), Some(target)) =
                    (name_of(c.args.first()), c.args.get(1).cloned(), c.target.clone())
            {
                let flat = c.func_name == "optFlatMap";
                *expression = optional(id, *target, &name, body, flat);
            }
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

/// `target.optMap(name, body)`.
fn optional(id: u64, target: IdedExpr, name: &str, body: IdedExpr, flat: bool) -> IdedExpr {
    const HELD: &str = "@optional";
    let member = |function: &str| {
        at(
            id,
            Expr::Call(CallExpr {
                func_name: function.to_owned(),
                target: Some(Box::new(ident(id, HELD))),
                args: Vec::new(),
            }),
        )
    };
    let constructor = |function: &str, args: Vec<IdedExpr>| {
        at(
            id,
            Expr::Call(CallExpr {
                func_name: function.to_owned(),
                target: Some(Box::new(ident(id, "optional"))),
                args,
            }),
        )
    };
    let value = bind(id, name, member("value"), body);
    let value = if flat { value } else { constructor("of", vec![value]) };
    let none = constructor("none", Vec::new());
    let chosen = call(id, "_?_:_", vec![member("hasValue"), value, none]);
    bind(id, HELD, target, chosen)
}
