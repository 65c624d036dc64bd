//! What others need to check tokens of service accounts: the issuer's description (OpenID Connect Discovery) and its
//! keys (RFC 7517).

use super::Core;
use crate::handlers::Reply;
use serde_json::{Value, json};
use std::net::SocketAddr;

const KEYS: &str = "/openid/v1/jwks";

/// Answers the issuer's paths; `None` for others.
pub(super) fn serve(core: &Core, path: &str) -> Option<Reply> {
    match path.trim_end_matches('/') {
        "/.well-known/openid-configuration" => {
            let address = SocketAddr::new(core.config.advertise_address, core.config.advertise_port);
            let description = description(core.tokens.issuer(), &format!("https://{address}{KEYS}"));
            Some(Reply::bytes(200, "application/json", description.to_string()))
        }
        KEYS => Some(Reply::bytes(200, "application/jwk-set+json", core.tokens.key_set().to_string())),
        _ => None,
    }
}

fn description(issuer: &str, keys: &str) -> Value {
    json!({"issuer": issuer, "jwks_uri": keys, "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"]})
}
