//! Who sends a request: by certificate, by token, or nobody in particular.

use super::token::{self, Proven};
use super::{ANONYMOUS, UserInfo, bootstrap_token};
use crate::error::ApiError;
use crate::server::Core;
use base64::Engine;
use http::HeaderMap;
use http::header::{self, HeaderValue};

/// What the WebSocket subprotocol that carries a token begins with (upstream's `websocket.ProtocolAuthenticator`).
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

/// What is known of a peer before its request is read.
#[derive(Debug, Clone)]
pub(crate) enum Credentials {
    /// A client in this process that acts as this user; an anonymous one may bring a token.
    Known(UserInfo),
    /// A connection, with the identity of its verified certificate.
    Connection(Option<UserInfo>),
}

/// The token in a request's headers. A token in the WebSocket subprotocols is taken out of them.
///
/// # Errors
/// 401 for a subprotocol that holds no token, or no other one beside.
fn bearer(headers: &mut HeaderMap) -> Result<Option<String>, ApiError> {
    if let Some(value) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let mut parts = value.trim().splitn(3, ' ');
        let scheme = parts.next().unwrap_or_default();
        let token = parts.next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
            return Ok(Some(token.to_owned()));
        }
    }
    let upgrade = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Ok(None);
    }
    let protocols: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|protocol| protocol.trim().to_owned()))
        .collect();
    let (tokens, others): (Vec<_>, Vec<_>) =
        protocols.into_iter().partition(|protocol| protocol.starts_with(WEBSOCKET_BEARER));
    let encoded = match tokens.as_slice() {
        [] => return Ok(None),
        [one] => one.strip_prefix(WEBSOCKET_BEARER).unwrap_or_default(),
        _ => return Err(ApiError::unauthorized()),
    };
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|token| !token.is_empty() && !others.is_empty())
        .ok_or_else(ApiError::unauthorized)?;
    if let Ok(value) = HeaderValue::from_str(&others.join(",")) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(Some(token))
}

/// The user of a request. Its credentials are taken out of the headers.
///
/// # Errors
/// 401 for a token that proves nothing.
pub(crate) async fn authenticate(
    core: &Core,
    credentials: &Credentials,
    headers: &mut HeaderMap,
) -> Result<UserInfo, ApiError> {
    let user = match credentials {
        Credentials::Connection(Some(user)) => user.clone(),
        Credentials::Known(user) if user.name != ANONYMOUS => user.clone(),
        Credentials::Known(_) | Credentials::Connection(None) => match bearer(headers)? {
            None => UserInfo::anonymous(),
            Some(token) => match by_token(core, &token, core.tokens.audiences()).await {
                Ok(proven) => proven.user,
                Err(why) => {
                    tracing::debug!(%why, "a request is not authenticated");
                    return Err(ApiError::unauthorized());
                }
            },
        },
    };
    headers.remove(header::AUTHORIZATION);
    Ok(user)
}

/// Who a token proves its bearer to be.
///
/// # Errors
/// Why not, in the words of upstream's token reviews.
pub(crate) async fn by_token(core: &Core, token: &str, audiences: &[String]) -> Result<Proven, String> {
    const INVALID: &str = "invalid bearer token";
    match token::authenticate(core, token, audiences).await {
        Ok(Some(proven)) => return Ok(proven),
        Ok(None) => {}
        Err(why) => return Err(format!("[{INVALID}, {why}]")),
    }
    // Tokens without audiences are for this server.
    let own: Vec<String> =
        core.tokens.audiences().iter().filter(|a| audiences.contains(a)).cloned().collect();
    match bootstrap_token::authenticate(core, token).await {
        Some(user) if !own.is_empty() => Ok(Proven { user, audiences: own }),
        _ => Err(INVALID.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &[(&'static str, &str)]) -> (Result<Option<String>, u16>, Option<String>) {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().expect("header"));
        }
        let token = bearer(&mut headers).map_err(|e| e.code());
        let left = headers.get("sec-websocket-protocol").and_then(|v| v.to_str().ok()).map(str::to_owned);
        (token, left)
    }

    #[test]
    fn tokens_in_headers() {
        assert_eq!(found(&[("authorization", "Bearer abc")]).0, Ok(Some("abc".into())));
        assert_eq!(found(&[("authorization", "bearer  abc")]).0, Ok(None));
        assert_eq!(found(&[("authorization", "Basic abc")]).0, Ok(None));
        assert_eq!(found(&[]).0, Ok(None));
    }

    #[test]
    fn tokens_in_subprotocols() {
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("tok");
        let own = format!("{WEBSOCKET_BEARER}{encoded}");
        let both = format!("v4.channel.k8s.io, {own}, v5.channel.k8s.io");
        let upgrade = ("upgrade", "websocket");
        assert_eq!(
            found(&[upgrade, ("sec-websocket-protocol", &both)]),
            (Ok(Some("tok".into())), Some("v4.channel.k8s.io,v5.channel.k8s.io".into()))
        );
        assert_eq!(found(&[upgrade, ("sec-websocket-protocol", &own)]).0, Err(401));
        assert_eq!(found(&[upgrade, ("sec-websocket-protocol", "v4.channel.k8s.io")]).0, Ok(None));
        assert_eq!(found(&[("sec-websocket-protocol", &both)]).0, Ok(None));
        let bad = format!("x, {WEBSOCKET_BEARER}!");
        assert_eq!(found(&[upgrade, ("sec-websocket-protocol", &bad)]).0, Err(401));
    }
}
