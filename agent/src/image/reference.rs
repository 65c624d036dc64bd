//! Image references as users write them, in the one form the store keeps.

use super::ImageError;
use oci_spec::distribution::Reference;

/// The canonical form of a reference: a registry, a repository path and a tag (`latest` when there is none) or a
/// digest. This is naming only; nothing is contacted.
///
/// # Errors
/// [`ImageError::Reference`] when `reference` does not follow the reference grammar of the OCI distribution spec.
pub fn normalize(reference: &str) -> Result<String, ImageError> {
    parse(reference).map(|r| r.whole())
}

pub(super) fn parse(reference: &str) -> Result<Reference, ImageError> {
    // What looks like an image's id is not a name.
    let parsed = if is_full_hex(reference) { None } else { reference.parse::<Reference>().ok() };
    parsed.ok_or_else(|| ImageError::Reference { reference: reference.to_owned(), message: why(reference) })
}

/// Why a reference cannot be parsed, in the words that users know from other tools.
fn why(reference: &str) -> String {
    if is_full_hex(reference) {
        return format!("invalid repository name ({reference}), cannot specify 64-byte hexadecimal strings");
    }
    let rest = match reference.split_once('/') {
        Some((host, rest)) if is_host(host) => rest.to_owned(),
        Some(_) => reference.to_owned(),
        None => format!("library/{reference}"),
    };
    let (name, digest) = match rest.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (rest.as_str(), None),
    };
    let path = name.split(':').next().unwrap_or_default();
    if path.chars().any(char::is_uppercase) {
        return format!("invalid reference format: repository name ({path}) must be lowercase");
    }
    if path.len() > MAX_PATH {
        return format!("repository name must not be more than {MAX_PATH} characters");
    }
    digest.and_then(why_not_digest).unwrap_or("invalid reference format").to_owned()
}

/// Longest path of a repository, characters.
const MAX_PATH: usize = 255;

/// The first component names a registry, not a part of the path.
fn is_host(component: &str) -> bool {
    component == "localhost" || component.contains(['.', ':']) || component.chars().any(char::is_uppercase)
}

/// Why a well-formed digest is none.
fn why_not_digest(digest: &str) -> Option<&'static str> {
    let (algorithm, hex) = digest.split_once(':')?;
    if hex.len() < 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Some("unsupported digest algorithm"),
    };
    match hex.len() == length {
        true => {
            Some("invalid checksum digest format").filter(|_| hex.bytes().any(|b| b.is_ascii_uppercase()))
        }
        false => Some("invalid checksum digest length"),
    }
}

/// `sha256:` and 64 hex digits.
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_full_hex)
}

fn is_full_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_get_registry_path_and_tag() {
        let whole = normalize("hello:dev").unwrap();
        assert!(whole.ends_with("/library/hello:dev"), "{whole}");
        assert_eq!(normalize("hello").unwrap(), normalize("hello:latest").unwrap());
        assert_eq!(normalize(&whole).unwrap(), whole);
        assert_eq!(normalize("reg.example:5000/a/b:1").unwrap(), "reg.example:5000/a/b:1");
        assert!(normalize("Hello World").is_err());
        assert!(normalize("").is_err());
    }

    #[test]
    fn refusals_say_why() {
        let hex = "0123456789abcdef".repeat(4);
        let long = "a".repeat(256);
        for (reference, message) in [
            (
                "Not_A_Valid:Name:x",
                "invalid reference format: repository name (library/Not_A_Valid) must be lowercase"
                    .to_owned(),
            ),
            (
                "reg.example/Upper/x",
                "invalid reference format: repository name (Upper/x) must be lowercase".to_owned(),
            ),
            ("a b", "invalid reference format".to_owned()),
            ("name:tag:tag", "invalid reference format".to_owned()),
            (&hex, format!("invalid repository name ({hex}), cannot specify 64-byte hexadecimal strings")),
            (&long, "repository name must not be more than 255 characters".to_owned()),
            (&format!("n@sha256:{}", &hex[1..]), "invalid checksum digest length".to_owned()),
            (&format!("n@md5:{}", &hex[32..]), "unsupported digest algorithm".to_owned()),
        ] {
            let error = normalize(reference).unwrap_err();
            let ImageError::Reference { message: seen, .. } = error else { panic!("{error}") };
            assert_eq!(seen, message, "{reference}");
        }
    }
}
