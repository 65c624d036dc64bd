//! Bootstrap tokens: `id.secret`, kept in Secrets of `kube-system`, by which new nodes ask for their certificates.

use super::UserInfo;
use crate::object::str_at;
use crate::server::Core;
use base64::Engine;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// Parts of a bootstrap token: six and sixteen lower-case letters and digits.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// Who a bootstrap token proves its bearer to be; `None` for anything but a good one.
pub(crate) async fn authenticate(core: &Core, token: &str) -> Option<UserInfo> {
    let (id, secret) = split(token)?;
    let row = core.builtin.find("", "v1", "secrets")?;
    let cache = core.cache(row);
    cache.wait_fresh().await.ok()?;
    let found = cache.get("kube-system", &format!("bootstrap-token-{id}"))?;
    user_of(&found.encoded.parse(), id, secret, Timestamp::now())
}

fn user_of(object: &Value, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let data = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(str_at(object, &["data", key])).ok()?;
        String::from_utf8(bytes).ok()
    };
    let gone = !crate::object::meta(object, "deletionTimestamp").is_empty();
    if gone || str_at(object, &["type"]) != TYPE {
        return None;
    }
    // Digests are compared, so that the time taken says nothing about the secret.
    if Sha256::digest(data("token-secret")?) != Sha256::digest(secret) || data("token-id")? != id {
        return None;
    }
    let expiration = data("expiration").unwrap_or_default();
    // A time that cannot be read has passed.
    if !expiration.is_empty() && !expiration.parse::<Timestamp>().is_ok_and(|end| now < end) {
        return None;
    }
    if data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        let rest = group.strip_prefix("system:bootstrappers:")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let good = rest.len() <= 256
            && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
            && rest.bytes().last().is_some_and(plain);
        if !good {
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Some(UserInfo::authenticated(format!("system:bootstrap:{id}"), groups))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(change: impl FnOnce(&mut Value)) -> Value {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let mut object = json!({"metadata": {}, "type": TYPE, "data": {"token-id": "abcdef",
            "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "expiration": "2030-01-01T00:00:00Z", "auth-extra-groups": "system:bootstrappers:x"}});
        change(&mut object);
        if let Some(data) = object["data"].as_object_mut() {
            data.values_mut().for_each(|v| *v = encode(v.as_str().unwrap_or_default()).into());
        }
        object
    }

    fn user(object: &Value, token_secret: &str) -> Option<String> {
        let now = "2029-01-01T00:00:00Z".parse().expect("a time");
        user_of(object, "abcdef", token_secret, now).map(|user| user.groups.join(","))
    }

    #[test]
    fn what_a_token_proves() {
        let good = "0123456789abcdef";
        let groups = "system:bootstrappers,system:bootstrappers:x,system:authenticated";
        assert_eq!(user(&secret(|_| {}), good).as_deref(), Some(groups));
        assert_eq!(user(&secret(|_| {}), "0123456789abcdee"), None);
        for (key, value) in [
            ("expiration", "2028-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("usage-bootstrap-authentication", "false"),
            ("token-id", "abcdeg"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:x-"),
        ] {
            assert_eq!(user(&secret(|o| o["data"][key] = value.into()), good), None, "{key}={value}");
        }
        assert_eq!(user(&secret(|o| o["type"] = "Opaque".into()), good), None);
        assert_eq!(split("abcdef.0123456789abcdef"), Some(("abcdef", good)));
        assert_eq!(split("ABCDEF.0123456789abcdef"), None);
        assert_eq!(split("abcdef.0123"), None);
    }
}
