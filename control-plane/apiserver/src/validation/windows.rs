//! What pods for Windows may say, and what pods for Linux may not.

use kelp_model::names;
use serde_json::Value;

use super::podspec::each_container;
use super::{Errors, at, flag, invalid_each, list, set, text};
use crate::error::FieldError;

/// Fields that mean nothing on Windows: of the pod's security context, or of the spec where upstream's internal form has
/// them in the security context too.
const POD_FIELDS: [(&str, bool); 14] = [
    ("appArmorProfile", false),
    ("seLinuxOptions", false),
    ("hostUsers", true),
    ("hostPID", true),
    ("hostIPC", true),
    ("seccompProfile", false),
    ("fsGroup", false),
    ("fsGroupChangePolicy", false),
    ("sysctls", false),
    ("shareProcessNamespace", true),
    ("runAsUser", false),
    ("runAsGroup", false),
    ("supplementalGroups", false),
    ("supplementalGroupsPolicy", false),
];

const CONTAINER_FIELDS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// The operating system a pod names, and what follows from it.
pub(super) fn system(spec: &Value, path: &str, errs: &mut Errors) {
    if !set(spec, "os") {
        return;
    }
    match text(at(spec, "os"), "name") {
        "" => errs.push(FieldError::required(format!("{path}.os.name"), "cannot be empty")),
        "linux" => for_linux(spec, path, errs),
        "windows" => for_windows(spec, path, errs),
        other => errs.push(FieldError::not_supported(format!("{path}.os"), other, &["linux", "windows"])),
    }
}

fn for_linux(spec: &Value, path: &str, errs: &mut Errors) {
    let holders = std::iter::once((spec, path.to_owned())).chain(each_container(spec, path));
    for (holder, path) in holders {
        if set(at(holder, "securityContext"), "windowsOptions") {
            let detail = "windows options cannot be set for a linux pod";
            errs.push(FieldError::forbidden(format!("{path}.securityContext.windowsOptions"), detail));
        }
    }
}

fn for_windows(spec: &Value, path: &str, errs: &mut Errors) {
    const DETAIL: &str = "cannot be set for a windows pod";
    let sc = at(spec, "securityContext");
    for (field, of_spec) in POD_FIELDS {
        let present = match field {
            "hostPID" | "hostIPC" => flag(spec, field),
            "sysctls" => !list(sc, field).is_empty(),
            _ if of_spec => set(spec, field),
            _ => set(sc, field),
        };
        if present {
            let holder = if of_spec { "" } else { ".securityContext" };
            errs.push(FieldError::forbidden(format!("{path}{holder}.{field}"), DETAIL));
        }
    }
    for (c, path) in each_container(spec, path) {
        for field in CONTAINER_FIELDS {
            if set(at(c, "securityContext"), field) {
                errs.push(FieldError::forbidden(format!("{path}.securityContext.{field}"), DETAIL));
            }
        }
    }
}

/// Containers that are processes of the host: all of a pod's, or none.
pub(super) fn host_process(spec: &Value, path: &str, errs: &mut Errors) {
    let asked =
        |holder: &Value| at(at(at(holder, "securityContext"), "windowsOptions"), "hostProcess").as_bool();
    let of_pod = asked(spec);
    let (mut all, mut some) = (0, 0);
    for (c, path) in each_container(spec, path) {
        let own = asked(c);
        all += 1;
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            errs.push(FieldError::invalid(
                format!("{path}.securityContext.windowsOptions.hostProcess"),
                Value::Bool(own),
                format!("pod hostProcess value must be identical if both are specified, was {pod}"),
            ));
        }
        if own.or(of_pod) == Some(true) {
            some += 1;
        }
    }
    if some == 0 {
        return;
    }
    if some != all {
        let detail =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errs.push(FieldError::invalid(path, "", detail));
    }
    if !flag(spec, "hostNetwork") {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errs.push(FieldError::invalid(format!("{path}.hostNetwork"), Value::Bool(false), detail));
    }
}

/// `windowsOptions` of a security context.
pub(super) fn options(options: &Value, path: &str, errs: &mut Errors) {
    const MAX_SPEC: usize = 64 * 1024;
    let given = |field: &str| at(options, field).as_str();
    if let Some(name) = given("gmsaCredentialSpecName") {
        invalid_each(errs, &format!("{path}.gmsaCredentialSpecName"), name, names::dns1123_subdomain(name));
    }
    if let Some(spec) = given("gmsaCredentialSpec") {
        let detail = match spec.len() {
            0 => "gmsaCredentialSpec cannot be an empty string",
            size if size > MAX_SPEC => "gmsaCredentialSpec size must be under 64 KiB",
            _ => "",
        };
        if !detail.is_empty() {
            errs.push(FieldError::invalid(format!("{path}.gmsaCredentialSpec"), spec, detail));
        }
    }
    if let Some(name) = given("runAsUserName") {
        for detail in user_name(name) {
            errs.push(FieldError::invalid(format!("{path}.runAsUserName"), name, detail));
        }
    }
}

/// What is wrong with `DOMAIN\user` or `user`.
fn user_name(name: &str) -> Vec<&'static str> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string"];
    }
    // Go's class [[:cntrl:]] is ASCII's.
    if name.bytes().any(|b| b.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters"];
    }
    if name.matches('\\').count() > 1 {
        return vec!["runAsUserName cannot contain more than one backslash"];
    }
    let (domain, user) = match name.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut out = Vec::new();
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            out.push("runAsUserName's Domain length must be under 256 characters");
        }
        if !net_bios(domain) && !domain.split('.').all(dns_label) {
            out.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        out.push("runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        out.push("runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        out.push("runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        out.push(r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#);
    }
    out
}

fn net_bios(domain: &str) -> bool {
    let count = domain.chars().count();
    (1..=15).contains(&count)
        && !domain.starts_with('.')
        && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

fn dns_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

#[cfg(test)]
mod tests {
    use super::user_name;

    #[test]
    fn names_of_users() {
        for good in ["Administrator", "CONTOSO\\user", "some.domain.org\\a b", ".NET~1"] {
            assert!(user_name(good).is_empty(), "{good}");
        }
        for (bad, count) in
            [("", 1), ("a\u{7}", 1), ("a\\b\\c", 1), (".\\", 2), ("-.-\\a|", 1), ("..", 1), ("a@b", 1)]
        {
            assert_eq!(user_name(bad).len(), count, "{bad:?}: {:?}", user_name(bad));
        }
    }
}
