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
    reference.parse::<Reference>().map_err(|error| ImageError::Reference {
        reference: reference.to_owned(),
        message: error.to_string(),
    })
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
}
