//! Functions of lists, sets and maps.

use super::library::{Args, Out, boolean, fail, integer, list, mismatch};
use super::meter;
use super::values::elements;
use cel::ExecutionError;
use cel::common::types::{
    CelBool, CelDouble, CelDuration, CelInt, CelList, CelMap, CelMapKey, CelOptional, CelString, CelUInt,
};
use cel::common::value::{CowVal, Val};
use std::cmp::Ordering;
use std::collections::HashMap;

pub(super) fn boxed<'v>(items: Vec<Box<dyn Val + 'v>>) -> CelList<'v> {
    items.into()
}

/// Pairs of keys and values, or of places and items.
pub(super) fn pairs<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let value = args.first().ok_or_else(mismatch)?;
    let pair = |key: Box<dyn Val + 'v>, value: Box<dyn Val + 'v>| -> Box<dyn Val + 'v> {
        Box::new(boxed(vec![key, value]))
    };
    let out: Vec<Box<dyn Val + 'v>> = match value.as_ref().downcast_ref::<CelMap>() {
        Some(map) => map
            .inner()
            .iter()
            .map(|(key, value)| pair(key.inner().clone_as_boxed(), value.clone_as_boxed()))
            .collect(),
        None => list(&args, 0)?
            .into_iter()
            .enumerate()
            .map(|(at, item)| {
                let at = i64::try_from(at).unwrap_or(i64::MAX);
                pair(Box::new(CelInt::from(at)), item.clone_as_boxed())
            })
            .collect(),
    };
    Ok(CowVal::owned(boxed(out)))
}

fn key_of(value: &dyn Val) -> Result<CelMapKey<'static>, ExecutionError> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        return Ok(CelMapKey::from(text.inner().to_owned()));
    }
    if let Some(i) = value.downcast_ref::<CelInt>() {
        return Ok(CelMapKey::from(*i.inner()));
    }
    if let Some(u) = value.downcast_ref::<CelUInt>() {
        return Ok(CelMapKey::from(*u.inner()));
    }
    if let Some(b) = value.downcast_ref::<CelBool>() {
        return Ok(CelMapKey::from(*b.inner()));
    }
    Err(fail("unsupported key type"))
}

fn inserted<'v>(
    map: &mut HashMap<CelMapKey<'v>, Box<dyn Val + 'v>>,
    key: &dyn Val,
    value: Box<dyn Val + 'v>,
) -> Result<(), ExecutionError> {
    match map.insert(key_of(key)?, value) {
        Some(_) => Err(fail("insert failed: key already exists")),
        None => Ok(()),
    }
}

pub(super) fn from_pairs<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let mut out = HashMap::new();
    for pair in list(&args, 0)? {
        let pair = elements(pair).ok_or_else(mismatch)?;
        let [key, value] = pair.as_slice() else { return Err(mismatch()) };
        inserted(&mut out, *key, value.clone_as_boxed())?;
    }
    Ok(CowVal::owned(CelMap::from(out)))
}

pub(super) fn merged<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let mut out = HashMap::new();
    for map in list(&args, 0)? {
        let map = map.downcast_ref::<CelMap>().ok_or_else(mismatch)?;
        for (key, value) in map.inner() {
            inserted(&mut out, key.inner(), value.clone_as_boxed())?;
        }
    }
    Ok(CowVal::owned(CelMap::from(out)))
}

fn contains(all: &[&dyn Val], item: &dyn Val) -> bool {
    all.iter().any(|other| item.equals(*other))
}

/// Compares every pair of two lists: what that costs is known before.
fn two_lists<'b, 'v>(args: &Args<'b, 'v>, test: impl Fn(&[&dyn Val], &[&dyn Val]) -> bool) -> Out<'b, 'v> {
    let (a, b) = (list(args, 0)?, list(args, 1)?);
    meter::spend((a.len() as u64).saturating_mul(b.len() as u64))?;
    let (a, b): (Vec<&dyn Val>, Vec<&dyn Val>) =
        (a.into_iter().map(|v| v as &dyn Val).collect(), b.into_iter().map(|v| v as &dyn Val).collect());
    boolean(test(&a, &b))
}

pub(super) fn sets_contains<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    two_lists(&args, |a, b| b.iter().all(|item| contains(a, *item)))
}

pub(super) fn sets_equivalent<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    two_lists(&args, |a, b| {
        a.iter().all(|item| contains(b, *item)) && b.iter().all(|item| contains(a, *item))
    })
}

pub(super) fn sets_intersects<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    two_lists(&args, |a, b| a.iter().any(|item| contains(b, *item)))
}

pub(super) fn place<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let item = args.get(1).ok_or_else(mismatch)?;
    let at = list(&args, 0)?.iter().position(|other| other.equals(item.as_ref()));
    integer(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1))
}

pub(super) fn last_place<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let item = args.get(1).ok_or_else(mismatch)?;
    let at = list(&args, 0)?.iter().rposition(|other| other.equals(item.as_ref()));
    integer(at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1))
}

pub(super) fn includes<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let item = args.get(1).ok_or_else(mismatch)?;
    boolean(list(&args, 0)?.iter().any(|other| other.equals(item.as_ref())))
}

fn compared(a: &dyn Val, b: &dyn Val) -> Result<Ordering, ExecutionError> {
    a.as_comparer().ok_or_else(mismatch)?.compare(b)
}

pub(super) fn is_sorted<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    for pair in list(&args, 0)?.windows(2) {
        if let [a, b] = pair
            && compared(*a, *b)? == Ordering::Greater
        {
            return boolean(false);
        }
    }
    boolean(true)
}

fn extreme<'b, 'v>(args: &Args<'b, 'v>, name: &str, wanted: Ordering) -> Out<'b, 'v> {
    let mut items = list(args, 0)?.into_iter();
    let Some(mut best) = items.next() else { return Err(fail(format!("{name} called on empty list"))) };
    for item in items {
        if compared(item, best)? == wanted {
            best = item;
        }
    }
    Ok(CowVal::Owned(best.clone_as_boxed()))
}

pub(super) fn min<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    extreme(&args, "min", Ordering::Less)
}

pub(super) fn max<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    extreme(&args, "max", Ordering::Greater)
}

pub(super) fn sum<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let items = list(&args, 0)?;
    let Some(first) = items.first() else { return integer(0) };
    let overflow = || fail("integer overflow");
    if first.downcast_ref::<CelInt>().is_some() {
        let numbers = items.iter().filter_map(|item| item.downcast_ref::<CelInt>());
        let sum = numbers.map(|i| *i.inner()).try_fold(0_i64, i64::checked_add);
        return integer(sum.ok_or_else(overflow)?);
    }
    if first.downcast_ref::<CelUInt>().is_some() {
        let numbers = items.iter().filter_map(|item| item.downcast_ref::<CelUInt>());
        let sum = numbers.map(|u| *u.inner()).try_fold(0_u64, u64::checked_add);
        return Ok(CowVal::owned(CelUInt::from(sum.ok_or_else(overflow)?)));
    }
    if first.downcast_ref::<CelDouble>().is_some() {
        let numbers = items.iter().filter_map(|item| item.downcast_ref::<CelDouble>());
        return Ok(CowVal::owned(CelDouble::from(numbers.map(|d| *d.inner()).sum::<f64>())));
    }
    let mut sum = chrono::Duration::zero();
    for item in &items {
        let duration = item.downcast_ref::<CelDuration>().ok_or_else(mismatch)?;
        sum = sum.checked_add(duration.inner()).ok_or_else(overflow)?;
    }
    Ok(CowVal::owned(CelDuration::from(sum)))
}

fn optional<'b, 'v>(item: Option<&(dyn Val + 'v)>) -> Out<'b, 'v> {
    Ok(CowVal::owned(match item {
        Some(item) => CelOptional::of(item.clone_as_boxed()),
        None => CelOptional::none(),
    }))
}

pub(super) fn first<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    optional(list(&args, 0)?.first().copied())
}

pub(super) fn last<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    optional(list(&args, 0)?.last().copied())
}
