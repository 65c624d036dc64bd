//! Quantities, and the order that they share with versions.

use super::{Args, Out, Own, boolean, fail, int, integer, own, text, value};
use cel::common::types::CelDouble;
use cel::common::value::CowVal;
use kelp_model::quantity::Quantity;
use std::cmp::Ordering;

pub(in crate::cel) fn quantity<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Quantity(Quantity::parse(text(&args, 0)?).map_err(fail)?))
}

pub(in crate::cel) fn is_quantity<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(Quantity::parse(text(&args, 0)?).is_ok())
}

fn the_quantity<'a>(args: &'a Args<'_, '_>, at: usize) -> Result<&'a Quantity, cel::ExecutionError> {
    match own(args, at)? {
        Own::Quantity(quantity) => Ok(quantity),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn sign<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let number = the_quantity(&args, 0)?.as_f64();
    integer(if number > 0.0 {
        1
    } else if number < 0.0 {
        -1
    } else {
        0
    })
}

/// The number of a quantity that is one and fits.
fn whole(quantity: &Quantity) -> Option<i64> {
    let fits = quantity.is_multiple_of_scale(0) && quantity.as_f64().abs() < i64::MAX as f64;
    fits.then(|| quantity.value())
}

pub(in crate::cel) fn is_integer<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(whole(the_quantity(&args, 0)?).is_some())
}

pub(in crate::cel) fn as_integer<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let number = whole(the_quantity(&args, 0)?);
    integer(number.ok_or_else(|| fail("cannot convert value to integer"))?)
}

pub(in crate::cel) fn as_float<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelDouble::from(the_quantity(&args, 0)?.as_f64())))
}

/// The second operand: a quantity, or a whole number.
fn operand(args: &Args<'_, '_>) -> Result<Quantity, cel::ExecutionError> {
    match the_quantity(args, 1) {
        Ok(quantity) => Ok(*quantity),
        Err(_) => Quantity::parse(&int(args, 1)?.to_string()).map_err(fail),
    }
}

pub(in crate::cel) fn add<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Quantity(*the_quantity(&args, 0)? + operand(&args)?))
}

pub(in crate::cel) fn sub<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    value(Own::Quantity(*the_quantity(&args, 0)? - operand(&args)?))
}

fn order(args: &Args<'_, '_>) -> Result<Ordering, cel::ExecutionError> {
    match (own(args, 0)?, own(args, 1)?) {
        (Own::Quantity(a), Own::Quantity(b)) => Ok(a.cmp(b)),
        (Own::Semver(a), Own::Semver(b)) => Ok(a.order(b)),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn is_greater<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(order(&args)? == Ordering::Greater)
}

pub(in crate::cel) fn is_less<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(order(&args)? == Ordering::Less)
}

pub(in crate::cel) fn compare<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    integer(match order(&args)? {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    })
}
