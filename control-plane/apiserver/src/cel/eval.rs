//! Evaluation of expressions, at a bounded cost.

use super::{MAX_DEPTH, library, meter, rewrite, with_stack};
use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::common::types::{CelBool, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError};
use std::sync::{Arc, LazyLock};

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(library::environment()));

/// Stack that evaluating one level takes at most, in bytes, in builds that are not optimized.
const FRAME: usize = 128 << 10;
/// Stack besides that.
const SPARE: usize = 256 << 10;

/// An expression that was compiled.
#[derive(Debug)]
pub(crate) struct Program {
    expression: IdedExpr,
    /// What it costs without its loops.
    base: u64,
    /// The stack it takes, in bytes.
    stack: usize,
    pub(crate) uses_old_self: bool,
}

/// Why an evaluation has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It costs too much for one expression.
    TooExpensive,
    /// In cel-go's words.
    Error(String),
}

/// What an evaluation gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Bool(bool),
    Text(String),
    /// Anything else.
    Other,
}

/// The variables of a rule.
pub(crate) struct Variables<'v> {
    pub(crate) own: Box<dyn Val + 'v>,
    pub(crate) old: Option<Box<dyn Val + 'v>>,
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "self" => Some(CowVal::Borrowed(self.own.as_ref())),
            "oldSelf" => self.old.as_ref().map(|old| CowVal::Borrowed(old.as_ref())),
            _ => None,
        }
    }
}

impl Program {
    /// Compiles an expression that was checked before.
    ///
    /// # Errors
    /// The parser's, of an expression that was not.
    pub(crate) fn compile(source: &str) -> Result<Self, String> {
        with_stack(|| Self::compile_here(source))
    }

    fn compile_here(source: &str) -> Result<Self, String> {
        let parser = ENV
            .parser()
            .enable_optional_syntax(true)
            .enable_ident_escape_syntax(true)
            .max_recursion_depth(MAX_DEPTH);
        let mut expression = parser.parse(source).map_err(|errors| {
            // Not as the crate prints them: a mark far to the right makes it panic.
            errors.errors.iter().map(|error| error.msg.as_str()).collect::<Vec<_>>().join("; ")
        })?;
        rewrite::expand(&mut expression);
        let uses_old_self = mentions(&expression, "oldSelf");
        let base = meter::rewrite(&mut expression);
        let stack = depth(&expression).saturating_mul(FRAME).saturating_add(SPARE);
        Ok(Program { expression, base, uses_old_self, stack })
    }

    /// Evaluates; what it cost comes with the outcome. It may cost as much as `budget`, and not more than one
    /// expression may.
    pub(crate) fn run(&self, variables: &Variables<'_>, budget: u64) -> (Result<Outcome, Failure>, u64) {
        stacker::maybe_grow(self.stack, self.stack, || self.run_here(variables, budget))
    }

    fn run_here(&self, variables: &Variables<'_>, budget: u64) -> (Result<Outcome, Failure>, u64) {
        meter::begin(meter::PER_EXPRESSION.min(budget.saturating_add(1)));
        if meter::spend(self.base).is_err() {
            return (Err(Failure::TooExpensive), meter::spent());
        }
        let mut context = Context::with_env(ENV.clone());
        context.set_variable_resolver(variables);
        let result = cel::Value::resolve_val(&self.expression, &context);
        let outcome = match result {
            _ if meter::exceeded() => Err(Failure::TooExpensive),
            Ok(value) => Ok(outcome(value.as_ref())),
            Err(error) => Err(Failure::Error(words(&error))),
        };
        (outcome, meter::spent())
    }
}

fn outcome(value: &dyn Val) -> Outcome {
    if let Some(b) = value.downcast_ref::<CelBool>() {
        return Outcome::Bool(*b.inner());
    }
    match value.downcast_ref::<CelString>() {
        Some(text) => Outcome::Text(text.inner().to_owned()),
        None => Outcome::Other,
    }
}

/// cel-go's text for an error.
fn words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::NoSuchOverload(_)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::UnsupportedIndex(..) => "no such overload".to_owned(),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::Overflow(..) => "integer overflow".to_owned(),
        ExecutionError::IndexOutOfBounds(index) => match index {
            cel::Value::Int(at) => format!("index out of bounds: {at}"),
            other => format!("index out of bounds: {other:?}"),
        },
        ExecutionError::UndeclaredReference(name) => format!("no such attribute(s): {name}"),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

/// The parts of an expression.
fn parts(expression: &IdedExpr) -> Vec<&IdedExpr> {
    match &expression.expr {
        Expr::Select(select) => vec![&select.operand],
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => {
            let entries = map.entries.iter().flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            });
            entries.collect()
        }
        Expr::Comprehension(c) => {
            vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => Vec::new(),
    }
}

/// Whether an expression names a variable.
fn mentions(expression: &IdedExpr, name: &str) -> bool {
    matches!(&expression.expr, Expr::Ident(own) if own == name)
        || parts(expression).into_iter().any(|part| mentions(part, name))
}

/// How many levels an expression has.
fn depth(expression: &IdedExpr) -> usize {
    1 + parts(expression).into_iter().map(depth).max().unwrap_or(0)
}

#[cfg(test)]
mod tests;
