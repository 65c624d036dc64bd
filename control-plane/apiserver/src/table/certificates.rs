//! Rows of certificate signing requests.

use super::*;
use crate::object::{int_at, list_at, str_at};

/// CertificateSigningRequests.
pub static CSR_TABLE: TableSpec =
    TableSpec { columns: CERTIFICATE_SIGNING_REQUEST, cells: row_of, conditions: no_conditions };

fn row_of(object: &Value, now: Timestamp) -> Vec<Value> {
    let signer = match str_at(object, &["spec", "signerName"]) {
        "" => "<none>",
        signer => signer,
    };
    let duration = int_at(object, &["spec", "expirationSeconds"]).map_or_else(|| "<none>".to_owned(), human);
    vec![
        meta(object, "name").into(),
        age(object, now),
        signer.into(),
        str_at(object, &["spec", "username"]).into(),
        duration.into(),
        state(object).into(),
    ]
}

/// What became of a request: the first of these that holds, and what came after.
fn state(object: &Value) -> String {
    let conditions = list_at(object, &["status", "conditions"]);
    let has = |kind: &str| conditions.iter().any(|c| str_at(c, &["type"]) == kind);
    let mut out = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        out.push_str(",Failed");
    }
    if !str_at(object, &["status", "certificate"]).is_empty() {
        out.push_str(",Issued");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        assert_eq!(state(&json!({})), "Pending");
        let both = json!({"status": {"certificate": "eA==", "conditions": [{"type": "Approved"}, {"type": "Failed"}]}});
        assert_eq!(state(&both), "Approved,Failed,Issued");
        let cells = row_of(
            &json!({"metadata": {"name": "c"}, "spec": {"expirationSeconds": 3600, "username": "u"}}),
            Timestamp::now(),
        );
        assert_eq!(cells, ["c", "<unknown>", "<none>", "u", "60m", "Pending"]);
    }
}
