//! The functions that expressions call: the `cel` crate's standard library, strings and lists, and what Kubernetes adds
//! to them. No crate that goes with this version of `cel` has the latter.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#cel-community-libraries>, `pkg/cel/library` of
//! k8s.io/apiserver.

use super::collections;
use super::kube::{self, Own};
use super::meter::{self, CHARGE, COPIED, COUNTED, JOIN, MATCHES, REPLACE, SIZED, SQUARED, TEXT};
use super::rewrite::{FROM_PAIRS, MERGED, PAIRS};
use super::texts;
use super::values::elements;
use cel::common::functions::Function;
use cel::common::types::{
    BOOL_TYPE, CelBool, CelDuration, CelInt, CelString, DYN_TYPE, INT_TYPE, LIST_TYPE, STRING_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};

pub(super) type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
pub(super) type Out<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

pub(super) fn fail(message: impl ToString) -> ExecutionError {
    ExecutionError::function_error("", message)
}

pub(super) fn mismatch() -> ExecutionError {
    ExecutionError::no_such_overload("", Vec::new())
}

/// The text that an argument is.
pub(super) fn text<'a>(args: &'a Args<'_, '_>, at: usize) -> Result<&'a str, ExecutionError> {
    let value = args.get(at).ok_or_else(mismatch)?;
    value.as_ref().downcast_ref::<CelString>().map(CelString::inner).ok_or_else(mismatch)
}

pub(super) fn int(args: &Args<'_, '_>, at: usize) -> Result<i64, ExecutionError> {
    let value = args.get(at).ok_or_else(mismatch)?;
    value.as_ref().downcast_ref::<CelInt>().map(|i| *i.inner()).ok_or_else(mismatch)
}

pub(super) fn list<'a, 'v>(
    args: &'a Args<'_, 'v>,
    at: usize,
) -> Result<Vec<&'a (dyn Val + 'v)>, ExecutionError> {
    args.get(at).and_then(|value| elements(value.as_ref())).ok_or_else(mismatch)
}

pub(super) fn boolean<'b, 'v>(value: bool) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelBool::from(value)))
}

pub(super) fn integer<'b, 'v>(value: i64) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelInt::from(value)))
}

pub(super) fn string<'b, 'v>(value: impl Into<String>) -> Out<'b, 'v> {
    Ok(CowVal::owned(CelString::from(value.into())))
}

fn seconds<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let duration = chrono::Duration::try_seconds(int(&args, 0)?).ok_or_else(|| fail("range"))?;
    Ok(CowVal::owned(CelDuration::from(duration)))
}

/// Global functions, by name and parameters.
const GLOBAL: &[(&str, &[Type], Function)] = &[
    (CHARGE, &[INT_TYPE, DYN_TYPE], meter::charge),
    (SIZED, &[DYN_TYPE], meter::sized),
    (COPIED, &[DYN_TYPE], meter::copied),
    (COUNTED, &[DYN_TYPE], meter::counted),
    (SQUARED, &[DYN_TYPE], meter::squared),
    (TEXT, &[DYN_TYPE], meter::measured),
    (MATCHES, &[STRING_TYPE, STRING_TYPE], texts::matches),
    (REPLACE, &[STRING_TYPE, STRING_TYPE, STRING_TYPE], texts::replace),
    (REPLACE, &[STRING_TYPE, STRING_TYPE, STRING_TYPE, INT_TYPE], texts::replace),
    (JOIN, &[LIST_TYPE], texts::join),
    (JOIN, &[LIST_TYPE, STRING_TYPE], texts::join),
    (PAIRS, &[DYN_TYPE], collections::pairs),
    (FROM_PAIRS, &[DYN_TYPE], collections::from_pairs),
    (MERGED, &[DYN_TYPE], collections::merged),
    ("sets.contains", &[LIST_TYPE, LIST_TYPE], collections::sets_contains),
    ("sets.equivalent", &[LIST_TYPE, LIST_TYPE], collections::sets_equivalent),
    ("sets.intersects", &[LIST_TYPE, LIST_TYPE], collections::sets_intersects),
    ("jsonpatch.escapeKey", &[STRING_TYPE], texts::escape_key),
    ("duration", &[INT_TYPE], seconds),
    ("url", &[STRING_TYPE], kube::url),
    ("isURL", &[STRING_TYPE], kube::is_url),
    ("ip", &[STRING_TYPE], kube::ip),
    ("isIP", &[STRING_TYPE], kube::is_ip),
    ("ip.isCanonical", &[STRING_TYPE], kube::is_canonical),
    ("cidr", &[STRING_TYPE], kube::cidr),
    ("isCIDR", &[STRING_TYPE], kube::is_cidr),
    ("string", &[kube::IP], kube::shown),
    ("string", &[kube::CIDR], kube::shown),
    ("quantity", &[STRING_TYPE], kube::quantity),
    ("isQuantity", &[STRING_TYPE], kube::is_quantity),
    ("semver", &[STRING_TYPE], kube::semver),
    ("semver", &[STRING_TYPE, BOOL_TYPE], kube::semver),
    ("isSemver", &[STRING_TYPE], kube::is_semver),
    ("isSemver", &[STRING_TYPE, BOOL_TYPE], kube::is_semver),
    ("format.named", &[STRING_TYPE], kube::named_format),
];

/// Member functions, by name, receiver and parameters.
const MEMBERS: &[(&str, Type, &[Type], Function)] = &[
    ("indexOf", LIST_TYPE, &[DYN_TYPE], collections::place),
    ("lastIndexOf", LIST_TYPE, &[DYN_TYPE], collections::last_place),
    ("includes", LIST_TYPE, &[DYN_TYPE], collections::includes),
    ("isSorted", LIST_TYPE, &[], collections::is_sorted),
    ("min", LIST_TYPE, &[], collections::min),
    ("max", LIST_TYPE, &[], collections::max),
    ("sum", LIST_TYPE, &[], collections::sum),
    ("first", LIST_TYPE, &[], collections::first),
    ("last", LIST_TYPE, &[], collections::last),
    ("find", STRING_TYPE, &[STRING_TYPE], texts::find),
    ("findAll", STRING_TYPE, &[STRING_TYPE], texts::find_all),
    ("findAll", STRING_TYPE, &[STRING_TYPE, INT_TYPE], texts::find_all),
    ("getScheme", kube::URL, &[], kube::scheme),
    ("getHost", kube::URL, &[], kube::host),
    ("getHostname", kube::URL, &[], kube::hostname),
    ("getPort", kube::URL, &[], kube::port),
    ("getEscapedPath", kube::URL, &[], kube::path),
    ("getQuery", kube::URL, &[], kube::query),
    ("family", kube::IP, &[], kube::family),
    ("isUnspecified", kube::IP, &[], kube::is_unspecified),
    ("isLoopback", kube::IP, &[], kube::is_loopback),
    ("isLinkLocalMulticast", kube::IP, &[], kube::is_link_local_multicast),
    ("isLinkLocalUnicast", kube::IP, &[], kube::is_link_local_unicast),
    ("isGlobalUnicast", kube::IP, &[], kube::is_global_unicast),
    ("containsIP", kube::CIDR, &[STRING_TYPE], kube::contains_ip),
    ("containsIP", kube::CIDR, &[kube::IP], kube::contains_ip),
    ("containsCIDR", kube::CIDR, &[STRING_TYPE], kube::contains_cidr),
    ("containsCIDR", kube::CIDR, &[kube::CIDR], kube::contains_cidr),
    ("ip", kube::CIDR, &[], kube::cidr_ip),
    ("masked", kube::CIDR, &[], kube::masked),
    ("prefixLength", kube::CIDR, &[], kube::prefix_length),
    ("sign", kube::QUANTITY, &[], kube::sign),
    ("isInteger", kube::QUANTITY, &[], kube::is_integer),
    ("asInteger", kube::QUANTITY, &[], kube::as_integer),
    ("asApproximateFloat", kube::QUANTITY, &[], kube::as_float),
    ("add", kube::QUANTITY, &[kube::QUANTITY], kube::add),
    ("add", kube::QUANTITY, &[INT_TYPE], kube::add),
    ("sub", kube::QUANTITY, &[kube::QUANTITY], kube::sub),
    ("sub", kube::QUANTITY, &[INT_TYPE], kube::sub),
    ("isGreaterThan", kube::QUANTITY, &[kube::QUANTITY], kube::is_greater),
    ("isLessThan", kube::QUANTITY, &[kube::QUANTITY], kube::is_less),
    ("compareTo", kube::QUANTITY, &[kube::QUANTITY], kube::compare),
    ("isGreaterThan", kube::SEMVER, &[kube::SEMVER], kube::is_greater),
    ("isLessThan", kube::SEMVER, &[kube::SEMVER], kube::is_less),
    ("compareTo", kube::SEMVER, &[kube::SEMVER], kube::compare),
    ("major", kube::SEMVER, &[], kube::major),
    ("minor", kube::SEMVER, &[], kube::minor),
    ("patch", kube::SEMVER, &[], kube::patch),
    ("validate", kube::FORMAT, &[STRING_TYPE], kube::validate),
];

fn types(all: &[Type]) -> Vec<Type> {
    all.iter().map(Type::to_owned).collect()
}

/// The environment of all expressions.
///
/// # Errors
/// A function that is declared twice.
fn declared() -> Result<Env, cel::DeclarationError> {
    let mut env = Env::stdlib().with_optional_support(true);
    env.add_extension(cel::extensions::strings)?;
    env.add_extension(cel::extensions::lists)?;
    for (name, parameters, function) in GLOBAL {
        let id = format!("{name}_{}", parameters.iter().map(Type::name).collect::<Vec<_>>().join("_"));
        env.add_overload(name, &id, types(parameters), *function)?;
    }
    for (name, receiver, parameters, function) in MEMBERS {
        let names: Vec<&str> = parameters.iter().map(Type::name).collect();
        let id = format!("{}_{name}_{}", receiver.name(), names.join("_"));
        env.add_member_overload(name, &id, receiver.to_owned(), types(parameters), *function)?;
    }
    for format in kube::FORMATS {
        env.add_overload(
            &format!("format.{}", format.name),
            &format!("format_{}", format.name),
            Vec::new(),
            format.make,
        )?;
    }
    for own in [kube::IP, kube::CIDR, kube::URL, kube::QUANTITY, kube::SEMVER] {
        env.add_type(own)?;
    }
    Ok(env)
}

/// As [`declared`]; what cannot be declared (a test sees to it that there is nothing) is left out with what follows.
pub(super) fn environment() -> Env {
    declared().unwrap_or_else(|error| {
        tracing::error!(%error, "expressions lack functions");
        Env::stdlib()
    })
}

/// The value of Kubernetes' own types that an argument is.
pub(super) fn own<'a>(args: &'a Args<'_, '_>, at: usize) -> Result<&'a Own, ExecutionError> {
    let value = args.get(at).ok_or_else(mismatch)?;
    value.as_ref().downcast_ref::<Own>().ok_or_else(mismatch)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_function_is_declared_once() {
        super::declared().expect("declarations");
    }
}
