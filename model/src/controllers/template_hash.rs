//! The `pod-template-hash` label: which replica set a pod template belongs to.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Label that a Deployment adds to each of its ReplicaSets and their pods.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Letters and digits that form no words (the alphabet of `generateName` suffixes).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short name-safe digest of a template; `collisions` separates templates whose digests are equal.
///
/// The digest is FNV-1a of the template's JSON, whose members are in a fixed order. It need not equal
/// another implementation's: the replica set of a template is found by comparing templates.
#[must_use]
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash = Fnv(0x811c_9dc5);
    hash.write(serde_json::to_string(template).unwrap_or_default().as_bytes());
    if let Some(count) = collisions {
        hash.write(&count.to_le_bytes());
    }
    hash.0.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

/// Whether two templates are the same, not looking at the hash label.
#[must_use]
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    fn without_hash(t: &PodTemplateSpec) -> PodTemplateSpec {
        let mut t = t.clone();
        if let Some(meta) = &mut t.metadata {
            if let Some(labels) = &mut meta.labels {
                labels.remove(POD_TEMPLATE_HASH);
            }
            if meta.labels.as_ref().is_some_and(|l| l.is_empty()) {
                meta.labels = None;
            }
            if meta.annotations.as_ref().is_some_and(|a| a.is_empty()) {
                meta.annotations = None;
            }
            // The server may write a null or zero time into a template; it means nothing.
            meta.creation_timestamp = None;
        }
        t
    }
    without_hash(a) == without_hash(b)
}

struct Fnv(u32);

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = json!({"app": "w"});
        if let Some(hash) = hash {
            labels[POD_TEMPLATE_HASH] = hash.into();
        }
        serde_json::from_value(
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
        .unwrap()
    }

    #[test]
    fn hash_depends_on_template_and_collisions_only() {
        let one = template_hash(&template("app:1", None), None);
        assert_eq!(one, template_hash(&template("app:1", None), None));
        assert_ne!(one, template_hash(&template("app:2", None), None));
        assert_ne!(one, template_hash(&template("app:1", None), Some(1)));
        assert!((1..=10).contains(&one.len()) && one.bytes().all(|b| ALPHABET.contains(&b)));
    }

    #[test]
    fn the_label_does_not_make_templates_differ() {
        assert!(same_template(&template("app:1", Some("abc")), &template("app:1", None)));
        assert!(!same_template(&template("app:2", None), &template("app:1", None)));
    }
}
