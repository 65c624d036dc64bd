//! Addresses in answers of what is proxied, made to lead through the proxy.

use http::header::{self, HeaderMap};

/// Rewrites addresses that a proxied server gives.
pub(super) struct Rewriter {
    /// Path of the proxy: what stands before the path there.
    prefix: String,
    /// Where the server is, as the proxy knows it.
    source: String,
    /// Where it is, as the client knows it.
    asked: String,
}

impl Rewriter {
    /// For a request to `path` that became one to `behind` at `source`.
    pub(super) fn new(path: &str, behind: &str, source: String, headers: &HeaderMap) -> Self {
        let prefix = path.strip_suffix(behind).unwrap_or(path).to_owned();
        let asked = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Rewriter { prefix, source, asked }
    }

    /// The address through the proxy; those of other servers, and relative ones, stay.
    pub(super) fn rewrite(&self, address: &str) -> String {
        let (origin, rest) = match address.split_once("://") {
            Some((scheme, rest)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, rest) = rest.split_at(end);
                if host != self.source && host != self.asked {
                    return address.to_owned();
                }
                // What the client itself asked for keeps its scheme and host.
                let origin = if host == self.asked { format!("{scheme}://{host}") } else { String::new() };
                (origin, if rest.is_empty() { "/" } else { rest })
            }
            _ if address.starts_with("//") => return address.to_owned(),
            _ => (String::new(), address),
        };
        if !rest.starts_with('/') {
            return address.to_owned();
        }
        if rest.starts_with(&self.prefix) {
            return format!("{origin}{rest}");
        }
        format!("{origin}{}{rest}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_proxied_server_change() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, http::HeaderValue::from_static("api.test:6443"));
        let prefix = "/api/v1/namespaces/n/services/s/proxy";
        let rewriter = Rewriter::new(&format!("{prefix}/a"), "/a", "10.0.0.1:80".to_owned(), &headers);
        assert_eq!(rewriter.rewrite("/login?next=1"), format!("{prefix}/login?next=1"));
        assert_eq!(rewriter.rewrite("login"), "login");
        assert_eq!(rewriter.rewrite("http://10.0.0.1:80/x/"), format!("{prefix}/x/"));
        assert_eq!(rewriter.rewrite("https://api.test:6443/x"), format!("https://api.test:6443{prefix}/x"));
        assert_eq!(rewriter.rewrite("https://other.test/x"), "https://other.test/x");
        assert_eq!(rewriter.rewrite("//other.test/x"), "//other.test/x");
        assert_eq!(rewriter.rewrite(&format!("{prefix}/y")), format!("{prefix}/y"));
    }
}
