//! Signed tokens (RFC 7515, compact form) with ES256, and the public keys for others to check them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What a public key on P-256 begins with in its DER form (SubjectPublicKeyInfo of RFC 5480).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Longest token looked at, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// The key that signs tokens.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    /// Digest of the public key, as upstream names keys.
    id: String,
}

/// Why a token is not good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bad {
    /// No token in compact form.
    Malformed,
    /// Signed by another key, or changed.
    Signature,
}

impl SigningKey {
    /// From a PKCS #8 PEM private key on P-256.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|e| e.to_string())?;
        Self::from_der(der.secret_pkcs8_der())
    }

    /// A new key, for a server that was given none: its tokens are void after a restart.
    pub(crate) fn generate() -> Result<Self, String> {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|e| e.to_string())?;
        Self::from_der(der.as_ref())
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der, &random)
            .map_err(|e| format!("not a PKCS #8 key on P-256: {e}"))?;
        let digest = Sha256::new().chain_update(SPKI).chain_update(pair.public_key()).finalize();
        Ok(SigningKey { pair, random, id: BASE64.encode(digest) })
    }

    /// Signs claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, String> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let mut token =
            format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self.pair.sign(&self.random, token.as_bytes()).map_err(|e| e.to_string())?;
        token.push('.');
        token.push_str(&BASE64.encode(signature.as_ref()));
        Ok(token)
    }

    /// The claims of a token that this key signed.
    pub(crate) fn verify(&self, token: &str) -> Result<Value, Bad> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Bad::Malformed)?;
        let claims = claims(token).ok_or(Bad::Malformed)?;
        let header = signed.split('.').next().and_then(decode).ok_or(Bad::Malformed)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(Bad::Signature);
        }
        let signature = BASE64.decode(signature).map_err(|_| Bad::Malformed)?;
        UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, self.pair.public_key())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| Bad::Signature)?;
        Ok(claims)
    }

    /// The JSON Web Key Set (RFC 7517) that the key is checked by.
    pub(crate) fn key_set(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        // The uncompressed form: 4, then both coordinates.
        let part = |from: usize| BASE64.encode(point.get(from..from + 32).unwrap_or_default());
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": part(1), "y": part(33)}]})
    }
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

/// The claims of a token, whoever signed it.
pub(crate) fn claims(token: &str) -> Option<Value> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    decode(claims).filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_was_signed_is_verified() {
        let key = SigningKey::generate().expect("a key");
        let claims = json!({"iss": "x", "n": 1});
        let token = key.sign(&claims).expect("signed");
        assert_eq!(key.verify(&token), Ok(claims.clone()));
        assert_eq!(SigningKey::generate().expect("a key").verify(&token), Err(Bad::Signature));
        let (head, rest) = token.split_once('.').expect("parts");
        let (_, signature) = rest.split_once('.').expect("parts");
        let forged = format!("{head}.{}.{signature}", BASE64.encode(json!({"iss": "x", "n": 2}).to_string()));
        assert_eq!(key.verify(&forged), Err(Bad::Signature));
        let none = format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(claims.to_string()));
        assert_eq!(key.verify(&none), Err(Bad::Signature));
        assert_eq!(key.verify("garbage"), Err(Bad::Malformed));
    }

    #[test]
    fn pem_keys_of_the_authority_are_read() {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let key = SigningKey::from_pem(pair.serialize_pem().as_bytes()).expect("read");
        let set = key.key_set();
        let x = BASE64.decode(set["keys"][0]["x"].as_str().expect("x")).expect("base64");
        assert_eq!(&rcgen::PublicKeyData::der_bytes(&pair)[1..33], x.as_slice());
        assert!(SigningKey::from_pem(b"no key").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}", parts in "[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,20}") {
            let key = SigningKey::generate().expect("a key");
            prop_assert!(key.verify(&text).is_err());
            prop_assert!(key.verify(&parts).is_err());
        }
    }
}
