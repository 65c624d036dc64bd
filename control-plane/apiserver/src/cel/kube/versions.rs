//! Semantic versions.

use super::{Args, Out, Own, boolean, fail, integer, own, text, value};
use std::cmp::Ordering;

/// A version by <https://semver.org/spec/v2.0.0.html>.
#[derive(Debug, Clone)]
pub(in crate::cel) struct Semver {
    numbers: [u64; 3],
    before: Vec<String>,
}

impl Semver {
    fn parse(text: &str, normalize: bool) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no semantic version");
        let mut rest = text;
        if normalize {
            rest = rest.strip_prefix('v').unwrap_or(rest);
        }
        let (rest, build) = rest.split_once('+').map_or((rest, None), |(a, b)| (a, Some(b)));
        let (core, before) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
        let is_part =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let parts = |all: Option<&str>| -> Result<Vec<String>, String> {
            let Some(all) = all else { return Ok(Vec::new()) };
            let parts: Vec<String> = all.split('.').map(str::to_owned).collect();
            if parts.iter().all(|part| is_part(part)) { Ok(parts) } else { Err(wrong()) }
        };
        let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let leading_zero = |part: &str| is_number(part) && part.len() > 1 && part.starts_with('0');
        let before = parts(before)?;
        if before.iter().any(|part| leading_zero(part)) {
            return Err(wrong());
        }
        parts(build)?;
        let mut numbers = Vec::new();
        for part in core.split('.') {
            let part = if normalize && part.len() > 1 { part.trim_start_matches('0') } else { part };
            let part = if part.is_empty() && normalize { "0" } else { part };
            if part.is_empty() || !is_number(part) || leading_zero(part) {
                return Err(wrong());
            }
            numbers.push(part.parse().map_err(|_| wrong())?);
        }
        while normalize && numbers.len() < 3 {
            numbers.push(0);
        }
        Ok(Semver { numbers: numbers.try_into().map_err(|_| wrong())?, before })
    }

    pub(super) fn order(&self, other: &Self) -> Ordering {
        let part = |a: &String, b: &String| match (a.parse::<u64>(), b.parse::<u64>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => a.cmp(b),
        };
        let before = || match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let pairs = self.before.iter().zip(&other.before);
                let first = pairs.map(|(a, b)| part(a, b)).find(|order| *order != Ordering::Equal);
                first.unwrap_or_else(|| self.before.len().cmp(&other.before.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then_with(before)
    }
}

fn normalize(args: &Args<'_, '_>) -> bool {
    let flag = args.get(1).and_then(|flag| flag.as_ref().downcast_ref::<cel::common::types::CelBool>());
    flag.is_some_and(|flag| *flag.inner())
}

pub(in crate::cel) fn semver<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Semver(Semver::parse(text(&args, 0)?, normalize(&args)).map_err(fail)?))
}

pub(in crate::cel) fn is_semver<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(Semver::parse(text(&args, 0)?, normalize(&args)).is_ok())
}

fn number<'b, 'v>(args: &Args<'b, 'v>, at: usize) -> Out<'b, 'v> {
    match own(args, 0)? {
        Own::Semver(version) => {
            let number = version.numbers.get(at).copied().unwrap_or_default();
            integer(i64::try_from(number).unwrap_or(i64::MAX))
        }
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn major<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    number(&args, 0)
}

pub(in crate::cel) fn minor<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    number(&args, 1)
}

pub(in crate::cel) fn patch<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    number(&args, 2)
}
