//! CEL expressions in schemas. Their static checks: what cel-go reports when upstream compiles a rule of
//! `x-kubernetes-validations`. The `cel` crate parses and evaluates, but knows no types and counts no cost; the types
//! are checked here, and expressions are rewritten so that evaluating them has a bounded cost.
//!
//! Language: <https://github.com/google/cel-spec/blob/master/doc/langdef.md>; Kubernetes' libraries and the types of
//! schemas: <https://kubernetes.io/docs/reference/using-api/cel/>.

mod check;
mod collections;
mod eval;
mod functions;
mod infer;
mod kube;
mod library;
mod meter;
mod rewrite;
mod texts;
mod types;
mod values;

pub(crate) use eval::{Failure, Outcome, Program, Variables};
pub(crate) use meter::PER_OBJECT;
pub use types::{RESERVED, Type};
pub(crate) use values::{optional, value};

use cel::common::ast::SourceInfo;
use serde_json::Value;

/// Nesting of an expression that is still parsed.
const MAX_DEPTH: u16 = 96;

/// Stack that parsing and checking an expression may take: the parser takes up to 100 KiB for each level that expressions
/// nest.
const STACK: usize = 64 << 20;

/// Runs on a stack that nested expressions do not exhaust: threads of servers have small ones.
fn with_stack<T>(f: impl FnOnce() -> T) -> T {
    stacker::grow(STACK, f)
}

/// Outcome of a check.
#[derive(Debug)]
pub struct Checked<'s> {
    /// Type of the expression's value.
    pub output: Type<'s>,
    /// The expression refers to `oldSelf`.
    pub uses_old_self: bool,
}

/// A fault at a place of the source.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Issue {
    /// Offset in characters.
    offset: u32,
    text: String,
}

/// Checks an expression in which `self` (and `oldSelf`, optional on request) is a value of `schema`.
///
/// # Errors
/// All faults in one text, as cel-go prints issues: the place, the reason, the line and a mark below it.
pub fn check<'s>(
    schema: &'s Value,
    resource_root: bool,
    optional_old_self: bool,
    source: &str,
) -> Result<Checked<'s>, String> {
    with_stack(|| check_here(schema, resource_root, optional_old_self, source))
}

fn check_here<'s>(
    schema: &'s Value,
    resource_root: bool,
    optional_old_self: bool,
    source: &str,
) -> Result<Checked<'s>, String> {
    let parser = cel::parser::Parser::new()
        .enable_optional_syntax(true)
        .enable_ident_escape_syntax(true)
        .max_recursion_depth(MAX_DEPTH);
    let (expression, info) = parser.parse_with_source_info(source).map_err(|errors| {
        let issues = errors.errors.iter().map(|e| (e.pos.0, e.pos.1, e.msg.as_str()));
        issues.map(|(line, column, text)| shown(source, line, column, text)).collect::<Vec<_>>().join("\n")
    })?;
    let own = Type::of_schema(schema, resource_root).ok_or("the schema has no type for expressions")?;
    let old = if optional_old_self { Type::optional(own.clone()) } else { own.clone() };
    let mut checker = check::Checker::new(&info);
    checker.declare("self", own);
    checker.declare("oldSelf", old);
    let output = checker.check(&expression);
    let uses_old_self = checker.used("oldSelf");
    let mut issues = checker.into_issues();
    if issues.is_empty() {
        return Ok(Checked { output, uses_old_self });
    }
    issues.sort();
    Err(issues.iter().map(|issue| located(&info, issue)).collect::<Vec<_>>().join("\n"))
}

fn located(info: &SourceInfo, issue: &Issue) -> String {
    let mut rest = issue.offset as usize;
    let mut line = 1;
    for text in info.source.split('\n') {
        let length = text.chars().count() + 1;
        if rest < length {
            break;
        }
        rest -= length;
        line += 1;
    }
    shown(&info.source, line, isize::try_from(rest).unwrap_or(0) + 1, &issue.text)
}

/// `line` and `column` count from one.
fn shown(source: &str, line: isize, column: isize, text: &str) -> String {
    let mut out = format!("ERROR: <input>:{line}:{column}: {text}");
    let snippet = usize::try_from(line - 1).ok().and_then(|at| source.lines().nth(at));
    if let Some(snippet) = snippet {
        let dots = usize::try_from(column - 1).unwrap_or(0);
        out.push_str(&format!("\n | {snippet}\n | {}^", ".".repeat(dots)));
    }
    out
}

#[cfg(test)]
mod tests;
