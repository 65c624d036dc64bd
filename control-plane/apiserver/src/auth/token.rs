//! Tokens of service accounts: what they claim, and whether that still holds.

use super::jwt::{self, Bad, SigningKey};
use super::rule::quoted;
use super::{CREDENTIAL_ID, UserInfo, account_name};
use crate::cache::Entry;
use crate::error::ApiError;
use crate::object::{get, meta, str_at};
use crate::server::Core;
use base64::Engine;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// Issuer of the tokens in Secrets, which upstream's controllers make.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// A clock may differ by this many seconds, and a deleted object counts this much longer (upstream's leeway).
const LEEWAY: i64 = 60;
/// Tokens whose signature was checked are remembered, so many.
const REMEMBERED: usize = 4096;

/// Signs and checks tokens.
pub(crate) struct Tokens {
    key: SigningKey,
    issuer: String,
    /// Whom tokens are for that name nobody else: this server.
    audiences: Vec<String>,
    /// Claims of tokens whose signature is good, by the token's digest.
    checked: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

/// A proven identity, and for which of the audiences that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub(crate) user: UserInfo,
    pub(crate) audiences: Vec<String>,
}

/// What a new token says.
pub(crate) struct Grant<'a> {
    /// Account.
    pub(crate) account: &'a Value,
    /// Object that the token dies with: `pod`, `node` or `secret`, and the object.
    pub(crate) bound: Option<(&'static str, &'a Value)>,
    /// Node of the bound pod: name, and uid if it exists.
    pub(crate) node: Option<(String, Option<String>)>,
    /// Seconds.
    pub(crate) lifetime: i64,
    /// Seconds after which use is reported, 0 for never.
    pub(crate) warn_after: i64,
    /// Audiences.
    pub(crate) audiences: &'a [String],
}

impl Tokens {
    pub(crate) fn new(key: SigningKey, issuer: String) -> Self {
        Tokens { key, audiences: vec![issuer.clone()], issuer, checked: Mutex::default() }
    }

    /// This server's audiences.
    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Issuer of tokens, an address.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Keys to check tokens by.
    pub(crate) fn key_set(&self) -> Value {
        self.key.key_set()
    }

    /// A new token.
    pub(crate) fn issue(&self, grant: &Grant<'_>, now: Timestamp) -> Result<String, ApiError> {
        let (namespace, name) = (meta(grant.account, "namespace"), meta(grant.account, "name"));
        let reference = |object: &Value| json!({"name": meta(object, "name"), "uid": meta(object, "uid")});
        let now = now.as_second();
        let mut own = json!({"namespace": namespace, "serviceaccount": reference(grant.account)});
        if let Some((kind, object)) = grant.bound {
            own[kind] = reference(object);
        }
        if let Some((name, uid)) = &grant.node {
            own["node"] = json!({"name": name});
            if let Some(uid) = uid {
                own["node"]["uid"] = uid.as_str().into();
            }
        }
        if grant.warn_after > 0 {
            own["warnafter"] = (now + grant.warn_after).into();
        }
        let claims = json!({"aud": grant.audiences, "exp": now + grant.lifetime, "iat": now, "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(), "kubernetes.io": own, "nbf": now,
            "sub": account_name(namespace, name)});
        self.key.sign(&claims).map_err(ApiError::internal)
    }

    /// The claims of a token that this server signed, from memory when it was seen before.
    fn verified(&self, token: &str) -> Result<Arc<Value>, Bad> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.checked.lock().get(&digest) {
            return Ok(claims.clone());
        }
        let claims = Arc::new(self.key.verify(token)?);
        let mut checked = self.checked.lock();
        if checked.len() >= REMEMBERED {
            checked.clear();
        }
        checked.insert(digest, claims.clone());
        Ok(claims)
    }
}

/// Who a token proves its bearer to be, for one of the audiences; `None` when it is no token of this server.
///
/// # Errors
/// Why a token of this server proves nothing (any more), in upstream's words.
pub(crate) async fn authenticate(
    core: &Core,
    token: &str,
    wanted: &[String],
) -> Result<Option<Proven>, String> {
    let tokens = &core.tokens;
    let Some(unchecked) = jwt::claims(token) else { return Ok(None) };
    let issuer = str_at(&unchecked, &["iss"]);
    if issuer != tokens.issuer && issuer != LEGACY_ISSUER {
        return Ok(None);
    }
    let claims =
        tokens.verified(token).map_err(|_| "go-jose/go-jose: error in cryptographic primitive".to_owned())?;
    let listed: Vec<String> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    // Tokens without audiences are for this server.
    let listed = if listed.is_empty() { tokens.audiences.clone() } else { listed };
    let audiences: Vec<String> = listed.iter().filter(|a| wanted.contains(a)).cloned().collect();
    if audiences.is_empty() {
        return Err(format!(
            "token audiences {} is invalid for the target audiences {}",
            quoted(&listed),
            quoted(wanted)
        ));
    }
    let user = if issuer == LEGACY_ISSUER {
        legacy(core, token, &claims).await?
    } else {
        bound(core, &claims, Timestamp::now()).await?
    };
    Ok(Some(Proven { user, audiences }))
}

/// An object by name; `None` when there is none, however fresh one looks.
async fn find(core: &Core, plural: &str, namespace: &str, name: &str) -> Result<Option<Arc<Entry>>, String> {
    let Some(row) = core.builtin.find("", "v1", plural) else { return Ok(None) };
    let cache = core.cache(row);
    cache.wait_loaded().await.map_err(|e| e.message().to_owned())?;
    if let Some(found) = cache.get(namespace, name) {
        return Ok(Some(found));
    }
    cache.wait_fresh().await.map_err(|e| e.message().to_owned())?;
    Ok(cache.get(namespace, name))
}

/// Whether an object's deletion began too long ago.
fn deleted(object: &Value, now: Timestamp) -> bool {
    let at = meta(object, "deletionTimestamp").parse::<Timestamp>();
    at.is_ok_and(|at| at.as_second() < now.as_second() - LEEWAY)
}

/// The account that a token names, if it is still the one.
async fn account(core: &Core, namespace: &str, name: &str) -> Result<Value, String> {
    match find(core, "serviceaccounts", namespace, name).await? {
        Some(found) => Ok(found.encoded.parse()),
        None => Err(ApiError::not_found("", "serviceaccounts", name).message().to_owned()),
    }
}

/// Checks the times of a token.
fn in_time(claims: &Value, now: Timestamp) -> Result<(), String> {
    let at = |field: &str| claims.get(field).and_then(Value::as_i64);
    let now = now.as_second();
    if at("nbf").is_some_and(|begin| now + LEEWAY < begin) {
        return Err("service account token is not valid yet".to_owned());
    }
    if at("exp").is_some_and(|end| now - LEEWAY > end) {
        return Err("service account token has expired".to_owned());
    }
    if at("iat").is_some_and(|issued| now + LEEWAY < issued) {
        return Err("service account token is issued in the future".to_owned());
    }
    Ok(())
}

const INVALIDATED: &str = "service account token has been invalidated";

async fn bound(core: &Core, claims: &Value, now: Timestamp) -> Result<UserInfo, String> {
    in_time(claims, now)?;
    let own = |path: &[&str]| {
        let mut whole = vec!["kubernetes.io"];
        whole.extend(path);
        str_at(claims, &whole).to_owned()
    };
    let (namespace, name) = (own(&["namespace"]), own(&["serviceaccount", "name"]));
    let account = account(core, &namespace, &name).await?;
    let (uid, claimed) = (meta(&account, "uid"), own(&["serviceaccount", "uid"]));
    if uid != claimed {
        return Err(format!("service account UID ({uid}) does not match claim ({claimed})"));
    }
    if deleted(&account, now) {
        return Err("service account has been deleted".to_owned());
    }
    let mut user = UserInfo::service_account(&namespace, &name, uid);
    let has = |kind: &str| get(claims, &["kubernetes.io", kind]).is_some();
    let pod = has("pod");
    for (kind, plural, text) in
        [("secret", "secrets", "secret"), ("pod", "pods", "pod"), ("node", "nodes", "node")]
    {
        // The node of a pod's token is information, not a bond.
        if !has(kind) || (kind == "node" && pod) {
            continue;
        }
        let within = if kind == "node" { "" } else { namespace.as_str() };
        let found = find(core, plural, within, &own(&[kind, "name"])).await?;
        let object = found.ok_or(INVALIDATED)?.encoded.parse();
        let (uid, claimed) = (meta(&object, "uid"), own(&[kind, "uid"]));
        if uid != claimed {
            return Err(format!(
                "{text} UID ({uid}) does not match service account {text} ref claim ({claimed})"
            ));
        }
        if deleted(&object, now) {
            return Err(INVALIDATED.to_owned());
        }
    }
    let mut say = |key: &str, value: String| {
        if !value.is_empty() {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
        }
    };
    for kind in ["pod", "node"] {
        say(&format!("{kind}-name"), own(&[kind, "name"]));
        say(&format!("{kind}-uid"), own(&[kind, "uid"]));
    }
    let id = str_at(claims, &["jti"]);
    if !id.is_empty() {
        user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
    }
    let warn = get(claims, &["kubernetes.io", "warnafter"]).and_then(Value::as_i64);
    if let Some(after) = warn.filter(|after| *after > 0 && now.as_second() > *after) {
        tracing::debug!(user = %user.name, seconds = now.as_second() - after, "a token is used after its time");
    }
    Ok(user)
}

/// A token out of a Secret: good as long as the Secret holds it.
async fn legacy(core: &Core, token: &str, claims: &Value) -> Result<UserInfo, String> {
    let own = |field: &str| {
        let claim = format!("kubernetes.io/serviceaccount/{field}");
        str_at(claims, &[&claim]).to_owned()
    };
    let (namespace, secret) = (own("namespace"), own("secret.name"));
    let (name, uid) = (own("service-account.name"), own("service-account.uid"));
    for (value, claim) in [
        (&namespace, "namespace"),
        (&secret, "secretName"),
        (&name, "serviceAccountName"),
        (&uid, "serviceAccountUID"),
    ] {
        if value.is_empty() {
            return Err(format!("{claim} claim is missing"));
        }
    }
    if str_at(claims, &["sub"]) != account_name(&namespace, &name) {
        return Err("subject claim is invalid".to_owned());
    }
    let invalid = || "Token has been invalidated".to_owned();
    let found = find(core, "secrets", &namespace, &secret).await?.ok_or_else(invalid)?.encoded.parse();
    if !meta(&found, "deletionTimestamp").is_empty() {
        return Err(invalid());
    }
    let kept = base64::engine::general_purpose::STANDARD.decode(str_at(&found, &["data", "token"]));
    if kept.ok().as_deref() != Some(token.as_bytes()) {
        return Err("Token does not match server's copy".to_owned());
    }
    let account = account(core, &namespace, &name).await?;
    if !meta(&account, "deletionTimestamp").is_empty() {
        return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
    }
    if meta(&account, "uid") != uid {
        return Err(format!("ServiceAccount UID ({}) does not match claim ({uid})", meta(&account, "uid")));
    }
    Ok(UserInfo::service_account(&namespace, &name, &uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_a_token() {
        let tokens = Tokens::new(SigningKey::generate().expect("a key"), "https://issuer".to_owned());
        let account = json!({"metadata": {"namespace": "ns", "name": "a", "uid": "u"}});
        let pod = json!({"metadata": {"name": "p", "uid": "v"}});
        let grant = Grant {
            account: &account,
            bound: Some(("pod", &pod)),
            node: Some(("n".to_owned(), None)),
            lifetime: 600,
            warn_after: 60,
            audiences: &["x".to_owned()],
        };
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let token = tokens.issue(&grant, now).expect("a token");
        let mut claims = tokens.key.verify(&token).expect("verified");
        let id = claims["jti"].take();
        assert!(id.as_str().is_some_and(|id| id.len() == 36));
        assert_eq!(
            claims,
            json!({"aud": ["x"], "exp": 1_000_600, "iat": 1_000_000, "nbf": 1_000_000, "iss": "https://issuer",
                "jti": null, "sub": "system:serviceaccount:ns:a", "kubernetes.io": {"namespace": "ns",
                "serviceaccount": {"name": "a", "uid": "u"}, "pod": {"name": "p", "uid": "v"}, "node": {"name": "n"},
                "warnafter": 1_000_060}})
        );
        assert_eq!(tokens.verified(&token).map(|c| c["exp"].clone()), Ok(json!(1_000_600)));
        assert_eq!(tokens.verified(&token).map(|c| c["exp"].clone()), Ok(json!(1_000_600)));
    }

    #[test]
    fn times() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let claims = json!({"exp": 1000, "nbf": 500, "iat": 500});
        assert_eq!(in_time(&claims, at(700)), Ok(()));
        assert_eq!(in_time(&claims, at(1060)), Ok(()));
        assert_eq!(in_time(&claims, at(1061)), Err("service account token has expired".to_owned()));
        assert_eq!(in_time(&claims, at(439)), Err("service account token is not valid yet".to_owned()));
        assert_eq!(
            in_time(&json!({"iat": 500}), at(1)),
            Err("service account token is issued in the future".to_owned())
        );
        let gone = json!({"metadata": {"deletionTimestamp": "1970-01-01T00:10:00Z"}});
        assert!(!deleted(&gone, at(660)));
        assert!(deleted(&gone, at(661)));
    }
}
