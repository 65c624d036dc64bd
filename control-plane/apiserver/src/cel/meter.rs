//! What an evaluation costs. The `cel` crate counts nothing, so expressions are rewritten when they are compiled: every
//! turn of a loop, and everything whose time grows with its operands, passes through a function that counts. An
//! evaluation that costs too much fails.
//!
//! The unit is that of cel-go: one node of the expression, ten characters of a text.

use super::values::elements;
use cel::ExecutionError;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::{CelBytes, CelInt, CelList, CelMap, CelOptional, CelString};
use cel::common::value::{CowVal, Val};
use std::cell::Cell;

/// What one expression may cost (`PerCallLimit` of `k8s.io/apiserver/pkg/apis/cel`).
pub(crate) const PER_EXPRESSION: u64 = 1_000_000;
/// What all rules of one object may cost (`RuntimeCELCostBudget`).
pub(crate) const PER_OBJECT: u64 = 10_000_000;

pub(super) const CHARGE: &str = "@charge";
pub(super) const SIZED: &str = "@sized";
pub(super) const COPIED: &str = "@copied";
pub(super) const COUNTED: &str = "@counted";
pub(super) const SQUARED: &str = "@squared";
pub(super) const TEXT: &str = "@text";
pub(super) const MATCHES: &str = "@matches";
pub(super) const REPLACE: &str = "@replace";
pub(super) const JOIN: &str = "@join";

/// Parts of a value that are copied for one unit. cel-go shares values, so this is our own, and small.
const PARTS_PER_UNIT: u64 = 4;
/// Pairs of values that are compared for one unit, where cel-go uses a hash.
pub(super) const PAIRS_PER_UNIT: u64 = 16;

thread_local! {
    static SPENT: Cell<u64> = const { Cell::new(0) };
    static LIMIT: Cell<u64> = const { Cell::new(PER_EXPRESSION) };
}

/// Begins to count anew.
pub(super) fn begin(limit: u64) {
    SPENT.set(0);
    LIMIT.set(limit);
}

/// What was spent since it began.
pub(super) fn spent() -> u64 {
    SPENT.get()
}

/// Whether the limit was passed.
pub(super) fn exceeded() -> bool {
    SPENT.get() > LIMIT.get()
}

/// Counts.
pub(super) fn spend(cost: u64) -> Result<(), ExecutionError> {
    let now = SPENT.get().saturating_add(cost);
    SPENT.set(now);
    if now > LIMIT.get() {
        return Err(ExecutionError::function_error(
            CHARGE,
            "operation cancelled: actual cost limit exceeded",
        ));
    }
    Ok(())
}

/// `@charge(cost, value)`: the value.
pub(super) fn charge<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let cost = args.first().and_then(|a| a.downcast_ref::<CelInt>()).map_or(1, |cost| *cost.inner());
    spend(u64::try_from(cost).unwrap_or(1))?;
    args.pop().ok_or_else(ExecutionError::missing_argument_or_target)
}

/// `@sized(value)`: the value, at the cost of its size.
pub(super) fn sized<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    weigh(value.as_ref())?;
    Ok(value)
}

fn weigh(value: &dyn Val) -> Result<(), ExecutionError> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        return spend(text.inner().len() as u64 / 10);
    }
    if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        return spend(bytes.inner().len() as u64 / 10);
    }
    if let Some(list) = value.downcast_ref::<CelList>() {
        spend(list.inner().len() as u64)?;
        return list.inner().iter().try_for_each(|item| weigh(item.as_ref()));
    }
    if let Some(map) = value.downcast_ref::<CelMap>() {
        spend(map.inner().len() as u64)?;
        return map.inner().values().try_for_each(|item| weigh(item.as_ref()));
    }
    if let Some(inner) = value.downcast_ref::<CelOptional>().and_then(|optional| optional.option()) {
        return weigh(inner);
    }
    if let Some(items) = value.as_iterable() {
        let mut items = items.iter();
        while let Some(item) = items.next() {
            spend(1)?;
            weigh(item)?;
        }
    }
    Ok(())
}

/// Parts of a value, with long texts as several.
fn parts(value: &dyn Val) -> u64 {
    let inner = if let Some(text) = value.downcast_ref::<CelString>() {
        text.inner().len() as u64 / 64
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        map.inner().values().map(|item| parts(item.as_ref())).sum()
    } else if let Some(optional) = value.downcast_ref::<CelOptional>() {
        optional.option().map_or(0, parts)
    } else {
        elements(value).into_iter().flatten().map(parts).sum()
    };
    inner + 1
}

/// `@copied(value)`: the value, at the cost of a copy, which the `cel` crate makes of what is put into lists and
/// variables.
pub(super) fn copied<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    spend(parts(value.as_ref()) / PARTS_PER_UNIT)?;
    Ok(value)
}

/// `@counted(value)`: the value, at the cost of looking at each item of a list; members of maps are found at once.
pub(super) fn counted<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    if value.downcast_ref::<CelMap>().is_none() {
        spend(elements(value.as_ref()).map_or(0, |items| items.len() as u64))?;
    }
    Ok(value)
}

/// `@text(value)`: the value, at the cost of counting the characters of a text.
pub(super) fn measured<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    if let Some(text) = value.downcast_ref::<CelString>() {
        spend(text.inner().len() as u64 / 1000)?;
    }
    Ok(value)
}

/// `@squared(list)`: the list, at the cost of comparing each item with every other one.
pub(super) fn squared<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or_else(ExecutionError::missing_argument_or_target)?;
    weigh(value.as_ref())?;
    let count = elements(value.as_ref()).map_or(0, |items| items.len() as u64);
    spend(count.saturating_mul(count) / PAIRS_PER_UNIT)?;
    Ok(value)
}

/// Functions whose time grows with their operands.
const GROWS: &[&str] = &[
    "_==_",
    "_!=_",
    "_+_",
    "_<_",
    "_<=_",
    "_>_",
    "_>=_",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "replace",
    "split",
    "join",
    "lowerAscii",
    "upperAscii",
    "trim",
    "substring",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "format",
    "reverse",
    "find",
    "findAll",
    "sort",
    "flatten",
    "slice",
    "isSorted",
    "sum",
    "min",
    "max",
    "includes",
    "string",
    "bytes",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "@sortByAssociatedKeys",
    "quantity",
    "url",
    "ip",
    "cidr",
    "semver",
    "duration",
    "timestamp",
    "strings.quote",
    "jsonpatch.escapeKey",
    "validate",
];

/// Functions that copy their operands.
const COPIES: &[&str] = &["@pairs", "@fromPairs", "@merged"];

/// Functions whose results are copies, or as large as a number says.
const GIVES_COPIES: &[&str] = &[
    "_?._",
    "_[?_]",
    "optional.of",
    "optional.ofNonZeroValue",
    "value",
    "or",
    "orValue",
    "first",
    "last",
    "lists.range",
    "min",
    "max",
];

/// First parts of the names of global functions.
const SPACES: &[&str] = &["sets", "strings", "jsonpatch", "optional", "lists"];

/// Functions and what takes their place.
const REPLACED: &[(&str, &str)] = &[("matches", MATCHES), ("replace", REPLACE), ("join", JOIN)];

fn wrapped(function: &str, args: Vec<IdedExpr>) -> Expr {
    Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args })
}

fn wrap(expression: &mut IdedExpr, function: &str) {
    // Constants are as large as the expression, and the accumulator of a loop is recognized by its name.
    let fixed = match &expression.expr {
        Expr::Literal(_) => true,
        Expr::Ident(name) => name.starts_with('@'),
        _ => false,
    };
    if !fixed {
        let inner = std::mem::take(expression);
        *expression = IdedExpr { id: inner.id, expr: wrapped(function, vec![inner]) };
    }
}

fn wrap_charge(expression: &mut IdedExpr, cost: u64) {
    let inner = std::mem::take(expression);
    let id = inner.id;
    let cost = LiteralValue::Int(i64::try_from(cost).unwrap_or(i64::MAX).into());
    let cost = IdedExpr { id, expr: Expr::Literal(cost) };
    *expression = IdedExpr { id, expr: wrapped(CHARGE, vec![cost, inner]) };
}

/// Rewrites an expression so that it counts; what it costs once, without its loops.
pub(super) fn rewrite(expression: &mut IdedExpr) -> u64 {
    match &mut expression.expr {
        Expr::Unspecified | Expr::Literal(_) => 0,
        Expr::Ident(_) => 1,
        Expr::Select(select) => 1 + rewrite(&mut select.operand),
        Expr::List(list) => {
            let cost = list.elements.iter_mut().map(rewrite).sum::<u64>();
            list.elements.iter_mut().for_each(|element| wrap(element, COPIED));
            10 + cost
        }
        Expr::Map(map) => {
            let entries = map.entries.iter_mut().map(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    let cost = rewrite(&mut entry.key) + rewrite(&mut entry.value);
                    wrap(&mut entry.value, COPIED);
                    cost
                }
                EntryExpr::StructField(field) => rewrite(&mut field.value),
            });
            30 + entries.sum::<u64>()
        }
        Expr::Struct(_) => 40,
        Expr::Call(_) => rewrite_call(expression),
        Expr::Comprehension(comprehension) => {
            let once = rewrite(&mut comprehension.iter_range)
                + rewrite(&mut comprehension.accu_init)
                + rewrite(&mut comprehension.result);
            let turn = 1 + rewrite(&mut comprehension.loop_cond) + rewrite(&mut comprehension.loop_step);
            wrap(&mut comprehension.iter_range, COPIED);
            // An empty list is how the `cel` crate recognizes loops that append.
            if !matches!(comprehension.accu_init.expr, Expr::List(_)) {
                wrap(&mut comprehension.accu_init, COPIED);
            }
            charge_turns(comprehension, turn);
            1 + once
        }
    }
}

fn rewrite_call(expression: &mut IdedExpr) -> u64 {
    let Expr::Call(call) = &mut expression.expr else { return 0 };
    let mut cost = 1;
    if let Some(target) = &mut call.target {
        cost += rewrite(target);
    }
    cost += call.args.iter_mut().map(rewrite).sum::<u64>();
    let space = match call.target.as_ref().map(|target| &target.expr) {
        Some(Expr::Ident(space)) if SPACES.contains(&space.as_str()) => Some(space.as_str()),
        _ => None,
    };
    let in_space = space.is_some();
    let name = space.map_or_else(|| call.func_name.clone(), |space| format!("{space}.{}", call.func_name));
    let with = match name.as_str() {
        name if GROWS.contains(&name) => Some(SIZED),
        name if COPIES.contains(&name) => Some(COPIED),
        "@in" => Some(COUNTED),
        "distinct" => Some(SQUARED),
        "size" => Some(TEXT),
        _ => None,
    };
    if let Some(with) = with {
        if !in_space && let Some(target) = &mut call.target {
            wrap(target, with);
        }
        // A list that a loop appends is known by its form; its elements are counted.
        let appended = |arg: &IdedExpr| name == "_+_" && matches!(arg.expr, Expr::List(_));
        call.args.iter_mut().filter(|arg| !appended(arg)).for_each(|arg| wrap(arg, with));
    }
    // What the `cel` crate does without a bound is done by functions of our own.
    if let Some((_, own)) = REPLACED.iter().find(|(replaced, _)| *replaced == name) {
        let target = call.target.take().map(|target| *target);
        call.args.splice(0..0, target);
        call.func_name = (*own).to_owned();
    }
    if GIVES_COPIES.contains(&name.as_str()) {
        wrap(expression, COPIED);
    }
    cost
}

/// Counts every turn of a loop, where the `cel` crate still sees what kind of loop it is.
fn charge_turns(comprehension: &mut ComprehensionExpr, cost: u64) {
    let accumulator = comprehension.accu_var.clone();
    let is_accumulator = |e: &IdedExpr| matches!(&e.expr, Expr::Ident(name) if *name == accumulator);
    if matches!(comprehension.loop_cond.expr, Expr::Literal(_)) && is_accumulator(&comprehension.result) {
        // `map` and `filter`, which append to a list in place.
        if let Expr::Call(call) = &mut comprehension.loop_step.expr
            && call.target.is_none()
        {
            match (call.func_name.as_str(), call.args.as_mut_slice()) {
                ("_?_:_", [guard, _, _]) => return wrap_charge(guard, cost),
                ("_+_", [_, items]) => {
                    if let Expr::List(list) = &mut items.expr
                        && let Some(item) = list.elements.first_mut()
                    {
                        return wrap_charge(item, cost);
                    }
                }
                _ => {}
            }
        }
    }
    wrap_charge(&mut comprehension.loop_cond, cost);
}
