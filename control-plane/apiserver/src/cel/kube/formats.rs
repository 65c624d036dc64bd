//! Formats of texts, by name.

use super::parse_url;
use super::{Args, Out, Own, fail, own, text, value};
use cel::common::types::{CelList, CelOptional, CelString};
use cel::common::value::{CowVal, Val};
use kelp_model::names;

/// A named format: its name, how it is made and what it says of a text.
#[derive(Debug)]
pub(in crate::cel) struct Format {
    pub(in crate::cel) name: &'static str,
    pub(in crate::cel) make: cel::common::functions::Function,
    faults: fn(&str) -> Vec<String>,
}

/// A name that may go on after a trailing dash, as those that names are generated from.
fn prefix(text: &str, check: fn(&str) -> Vec<String>) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) => check(&format!("{rest}a")),
        None => check(text),
    }
}

fn of_format(format: &str, text: &str) -> Vec<String> {
    if crate::structural::is_format(format, text) { Vec::new() } else { vec![format!("invalid {format}")] }
}

macro_rules! formats {
    ($($name:literal $make:ident $faults:expr),* $(,)?) => {
        /// The formats, by name.
        pub(in crate::cel) static FORMATS: &[Format] = &[$(Format { name: $name, make: $make, faults: $faults }),*];
        $(fn $make<'b, 'v>(_: Args<'b, 'v>) -> Out<'b, 'v> {
            by_name($name).map_or_else(|| Err(fail("no such format")), |format| value(Own::Format(format)))
        })*
    };
}

formats! {
    "dns1123Label" dns1123_label names::dns1123_label,
    "dns1123Subdomain" dns1123_subdomain names::dns1123_subdomain,
    "dns1035Label" dns1035_label names::dns1035_label,
    "qualifiedName" qualified_name names::qualified_name,
    "dns1123LabelPrefix" dns1123_label_prefix |text| prefix(text, names::dns1123_label),
    "dns1123SubdomainPrefix" dns1123_subdomain_prefix |text| prefix(text, names::dns1123_subdomain),
    "dns1035LabelPrefix" dns1035_label_prefix |text| prefix(text, names::dns1035_label),
    "labelValue" label_value names::label_value,
    "uri" uri |text| match parse_url(text) {
        Some(_) => Vec::new(),
        None => vec![format!("parse {text:?}: invalid URI for request")],
    },
    "uuid" uuid |text| match of_format("uuid", text).is_empty() {
        true => Vec::new(),
        false => vec!["does not match the UUID format".to_owned()],
    },
    "byte" byte |text| match of_format("byte", text).is_empty() {
        true => Vec::new(),
        false => vec!["invalid base64".to_owned()],
    },
    "date" date |text| match of_format("date", text).is_empty() {
        true => Vec::new(),
        false => vec!["invalid date".to_owned()],
    },
    "datetime" datetime |text| match of_format("datetime", text).is_empty() {
        true => Vec::new(),
        false => vec!["invalid datetime".to_owned()],
    },
}

fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

pub(in crate::cel) fn named_format<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    Ok(CowVal::owned(match by_name(text(&args, 0)?) {
        Some(format) => CelOptional::of(Box::new(Own::Format(format))),
        None => CelOptional::none(),
    }))
}

pub(in crate::cel) fn validate<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let Own::Format(format) = own(&args, 0)? else { return Err(fail("no such overload")) };
    let faults = (format.faults)(text(&args, 1)?);
    if faults.is_empty() {
        return Ok(CowVal::owned(CelOptional::none()));
    }
    let faults: Vec<Box<dyn Val + 'v>> =
        faults.into_iter().map(|fault| -> Box<dyn Val + 'v> { Box::new(CelString::from(fault)) }).collect();
    let list: CelList<'v> = faults.into();
    Ok(CowVal::owned(CelOptional::of(Box::new(list))))
}
