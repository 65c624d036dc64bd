//! Acting as somebody else, by request headers.

use super::{Authorizer, UNAUTHENTICATED, UserInfo, denied};
use crate::error::ApiError;
use crate::request::RequestInfo;
use http::HeaderMap;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok())
}

/// The user that a request acts as.
///
/// # Errors
/// 403 when the caller may not act as that user or as a member of one of the groups; 400 for groups without a user.
pub fn impersonated(
    authorizer: &dyn Authorizer,
    caller: &UserInfo,
    headers: &HeaderMap,
) -> Result<Option<UserInfo>, ApiError> {
    let groups: Vec<String> = values(headers, GROUP).map(str::to_owned).collect();
    let extra = headers.keys().any(|name| name.as_str() == UID || name.as_str().starts_with(EXTRA));
    let Some(name) = values(headers, USER).next().filter(|name| !name.is_empty()) else {
        if groups.is_empty() && !extra {
            return Ok(None);
        }
        return Err(ApiError::plain_internal(format!("requested {groups:?} without impersonating a user")));
    };
    let users = std::iter::once(("users", name));
    for (resource, name) in users.chain(groups.iter().map(|g| ("groups", g.as_str()))) {
        let info = RequestInfo {
            is_resource: true,
            verb: "impersonate",
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        if !authorizer.allows(caller, &info) {
            return Err(denied(caller, &info));
        }
    }
    if name == "system:anonymous" {
        let groups = if groups.is_empty() { vec![UNAUTHENTICATED.to_owned()] } else { groups };
        return Ok(Some(UserInfo { name: name.to_owned(), groups }));
    }
    Ok(Some(UserInfo::authenticated(name, groups)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ComponentPolicy;

    #[test]
    fn only_who_may_acts_as_another() {
        let mut headers = HeaderMap::new();
        let admin = UserInfo::admin("admin");
        assert_eq!(impersonated(&ComponentPolicy, &admin, &headers), Ok(None));
        headers.insert(GROUP, "g".parse().expect("header"));
        assert!(impersonated(&ComponentPolicy, &admin, &headers).is_err());
        headers.insert(USER, "bob".parse().expect("header"));
        let bob = impersonated(&ComponentPolicy, &admin, &headers).expect("allowed").expect("somebody");
        assert_eq!(
            (bob.name.as_str(), bob.in_group("g"), bob.in_group("system:masters")),
            ("bob", true, false)
        );
        let error = impersonated(&ComponentPolicy, &bob, &headers).expect_err("bob may not");
        assert_eq!(error.code(), 403);
    }
}
