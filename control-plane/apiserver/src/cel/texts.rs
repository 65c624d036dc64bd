//! Functions of texts. Those that the `cel` crate has, too, are here for their cost: it neither keeps compiled regular
//! expressions nor bounds what comes out.

use super::collections::boxed;
use super::library::{Args, Out, boolean, fail, int, list, mismatch, string, text};
use super::meter;
use cel::ExecutionError;
use cel::common::types::CelString;
use cel::common::value::{CowVal, Val};
use regex::{Regex, RegexBuilder};
use std::cell::RefCell;
use std::collections::VecDeque;

/// What compiling an expression costs: it may take some milliseconds.
const REGEX_COST: u64 = 1000;
/// Largest compiled expression, in bytes.
const REGEX_SIZE: usize = 1 << 20;
/// Compiled expressions that are kept.
const REGEXES: usize = 64;

thread_local! {
    static COMPILED: RefCell<VecDeque<(String, Regex)>> = const { RefCell::new(VecDeque::new()) };
}

fn regex(pattern: &str) -> Result<Regex, ExecutionError> {
    let known = COMPILED
        .with_borrow(|all| all.iter().find(|(own, _)| own == pattern).map(|(_, regex)| regex.clone()));
    if let Some(regex) = known {
        return Ok(regex);
    }
    meter::spend(REGEX_COST + pattern.len() as u64 / 4)?;
    let regex = RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
    let regex = regex.map_err(|error| fail(format!("error parsing regexp: {error}")))?;
    COMPILED.with_borrow_mut(|all| {
        all.truncate(REGEXES - 1);
        all.push_front((pattern.to_owned(), regex.clone()));
    });
    Ok(regex)
}

pub(super) fn matches<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(regex(text(&args, 1)?)?.is_match(text(&args, 0)?))
}

/// Replaces, at the cost of what comes out: that can be the product of what goes in.
pub(super) fn replace<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let (all, old, new) = (text(&args, 0)?, text(&args, 1)?, text(&args, 2)?);
    let most =
        if args.len() > 3 { usize::try_from(int(&args, 3)?).unwrap_or(usize::MAX) } else { usize::MAX };
    let count = all.matches(old).take(most).count() as u64;
    meter::spend(count.saturating_mul(new.len() as u64).saturating_add(all.len() as u64) / 10)?;
    string(all.replacen(old, new, most))
}

/// Joins texts, at the cost of what comes out.
pub(super) fn join<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let separator = if args.len() > 1 { text(&args, 1)? } else { "" };
    let items = list(&args, 0)?;
    let texts: Option<Vec<&str>> =
        items.iter().map(|item| item.downcast_ref::<CelString>().map(CelString::inner)).collect();
    let texts = texts.ok_or_else(mismatch)?;
    let length: u64 = texts.iter().map(|text| (text.len() + separator.len()) as u64).sum();
    meter::spend(length / 10)?;
    string(texts.join(separator))
}

pub(super) fn find<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let found = regex(text(&args, 1)?)?;
    string(found.find(text(&args, 0)?).map_or("", |found| found.as_str()))
}

pub(super) fn find_all<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let limit =
        if args.len() > 2 { usize::try_from(int(&args, 2)?).unwrap_or(usize::MAX) } else { usize::MAX };
    let pattern = regex(text(&args, 1)?)?;
    let found = pattern.find_iter(text(&args, 0)?).take(limit);
    let found = found.map(|m| -> Box<dyn Val + 'v> { Box::new(CelString::from(m.as_str().to_owned())) });
    Ok(CowVal::owned(boxed(found.collect())))
}

pub(super) fn escape_key<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    string(text(&args, 0)?.replace('~', "~0").replace('/', "~1"))
}
