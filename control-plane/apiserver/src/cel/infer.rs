//! Which overload of a function fits its arguments, and what it gives.

use super::Type;
use super::functions::{Overload, Shape};

/// What the type parameters of an overload stand for.
type Bindings<'s> = [Option<Type<'s>>; 2];

/// The more telling of two types that fit each other.
pub(super) fn join<'s>(a: &Type<'s>, b: &Type<'s>) -> Type<'s> {
    match (a, b) {
        (Type::Free | Type::Error, other) | (other, Type::Free | Type::Error) => other.clone(),
        (Type::List(x), Type::List(y)) => Type::list(join(x, y)),
        (Type::Optional(x), Type::Optional(y)) => Type::optional(join(x, y)),
        (Type::Map(k, v), Type::Map(l, w)) => Type::map(join(k, l), join(v, w)),
        (Type::Named("null_type"), other) => other.clone(),
        (Type::Dyn, _) | (_, Type::Dyn) => Type::Dyn,
        (a, b) if a.fits(b) || b.fits(a) => a.clone(),
        _ => Type::Dyn,
    }
}

fn bind<'s>(shape: &Shape, argument: &Type<'s>, bound: &mut Bindings<'s>) -> bool {
    match (shape, argument) {
        (Shape::Any | Shape::Free, _) => true,
        (Shape::Param(at), argument) => {
            let Some(slot) = bound.get_mut(usize::from(*at)) else { return false };
            match slot {
                None => {
                    *slot = Some(argument.clone());
                    true
                }
                Some(known) if argument.fits(known) || known.fits(argument) => {
                    *slot = Some(join(known, argument));
                    true
                }
                Some(_) => false,
            }
        }
        (_, Type::Dyn | Type::Error | Type::Free) => true,
        (Shape::Named(a), Type::Named(b)) => a == b,
        (Shape::List(a), Type::List(b)) | (Shape::Optional(a), Type::Optional(b)) => bind(a, b, bound),
        (Shape::Map(a, b), Type::Map(c, d)) => bind(a, c, bound) && bind(b, d, bound),
        (Shape::Kind, Type::Kind(_)) => true,
        _ => false,
    }
}

fn result<'s>(shape: &Shape, bound: &Bindings<'s>) -> Type<'s> {
    match shape {
        Shape::Any => Type::Dyn,
        Shape::Free => Type::Free,
        Shape::Param(at) => bound.get(usize::from(*at)).cloned().flatten().unwrap_or(Type::Dyn),
        Shape::Named(name) => Type::Named(name),
        Shape::List(of) => Type::list(result(of, bound)),
        Shape::Optional(of) => Type::optional(result(of, bound)),
        Shape::Map(key, value) => Type::map(result(key, bound), result(value, bound)),
        Shape::Kind => Type::Kind(Type::Dyn.into()),
    }
}

/// The type of a call; `None` when no overload fits. With arguments that are only known at evaluation several may
/// fit: what they agree on is the result.
pub(super) fn call<'s>(overloads: &[Overload], member: bool, arguments: &[Type<'s>]) -> Option<Type<'s>> {
    let mut found: Option<Type<'s>> = None;
    let candidates = overloads.iter().filter(|o| o.member == member && o.parameters.len() == arguments.len());
    for overload in candidates {
        let mut bound = Bindings::default();
        if !overload.parameters.iter().zip(arguments).all(|(p, a)| bind(p, a, &mut bound)) {
            continue;
        }
        let given = result(&overload.result, &bound);
        found = Some(match found {
            Some(before) if before.fits(&given) && !before.is_dynamic() && !given.is_dynamic() => before,
            Some(_) => Type::Dyn,
            None => given,
        });
    }
    found
}
