//! URLs.

use super::{Args, Out, Own, boolean, fail, own, string, text, value};
use cel::common::types::{CelList, CelMap, CelMapKey, CelString};
use cel::common::value::{CowVal, Val};
use std::collections::HashMap;

/// A URL as Go's `url.ParseRequestURI` sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cel) struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

pub(super) fn parse_url(text: &str) -> Option<Url> {
    let bad = |c: char| c.is_control() || c == ' ';
    if text.is_empty() || text.contains(bad) {
        return None;
    }
    let (scheme, rest) = match text.split_once(':') {
        _ if text.starts_with('/') => ("", text),
        Some((scheme, rest)) => {
            let letters = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
            let begins = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
            if !begins || !scheme.bytes().all(letters) {
                return None;
            }
            (scheme, rest)
        }
        None => return None,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) =
        match rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) {
            Some(after) => {
                let at = after.find('/').unwrap_or(after.len());
                let (authority, path) = after.split_at(at);
                (authority.rsplit_once('@').map_or(authority, |(_, host)| host), path)
            }
            None => ("", rest),
        };
    if !rest.starts_with('/') || !escapes_are_whole(path) {
        return None;
    }
    let port = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.1,
        None => host.find(':').map_or("", |at| host.split_at(at).1),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Url {
        scheme: scheme.to_ascii_lowercase(),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

fn escapes_are_whole(path: &str) -> bool {
    path.split('%').skip(1).all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}

pub(in crate::cel) fn url<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let text = text(&args, 0)?;
    let parsed = parse_url(text).ok_or_else(|| {
        fail(format!(
            "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
        ))
    })?;
    value(Own::Url(parsed))
}

pub(in crate::cel) fn is_url<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    boolean(parse_url(text(&args, 0)?).is_some())
}

fn of_url<'b, 'v>(args: &Args<'b, 'v>, part: fn(&Url) -> String) -> Out<'b, 'v> {
    match own(args, 0)? {
        Own::Url(url) => string(part(url)),
        _ => Err(fail("no such overload")),
    }
}

pub(in crate::cel) fn scheme<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_url(&args, |url| url.scheme.clone())
}

pub(in crate::cel) fn host<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_url(&args, |url| url.host.clone())
}

/// Host and port of an authority.
fn split_host(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').unwrap_or((rest, ""));
        return (inside, after.trim_start_matches(':'));
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

pub(in crate::cel) fn hostname<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_url(&args, |url| split_host(&url.host).0.to_owned())
}

pub(in crate::cel) fn port<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_url(&args, |url| split_host(&url.host).1.to_owned())
}

pub(in crate::cel) fn path<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    of_url(&args, |url| url.path.clone())
}

pub(in crate::cel) fn query<'b, 'v>(args: Args<'b, 'v>) -> Out<'b, 'v> {
    let Own::Url(url) = own(&args, 0)? else { return Err(fail("no such overload")) };
    let mut values: HashMap<String, Vec<Box<dyn Val + 'v>>> = HashMap::new();
    for (name, value) in url::form_urlencoded::parse(url.query.as_bytes()) {
        let value: Box<dyn Val + 'v> = Box::new(CelString::from(value.into_owned()));
        values.entry(name.into_owned()).or_default().push(value);
    }
    let mut out: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::new();
    for (name, all) in values {
        let list: CelList<'v> = all.into();
        out.insert(CelMapKey::from(name), Box::new(list));
    }
    Ok(CowVal::owned(CelMap::from(out)))
}
