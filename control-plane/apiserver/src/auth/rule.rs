//! Policy rules: what a rule allows, and whether rules hold what others grant.

use super::Attributes;
use crate::error::quote;
use crate::object::list_at;
use serde_json::{Map, Value};

/// A PolicyRule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) urls: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) verbs: Vec<String>,
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == value)
}

/// Whether a rule's resource is the one asked for: `*`, itself, or `*/sub`.
fn is_resource(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    match rule.split_once('/') {
        Some((own, sub)) => sub == subresource && (own == "*" || own == resource),
        None => false,
    }
}

fn covers_url(rule: &str, path: &str) -> bool {
    rule == "*"
        || rule == path
        || rule.strip_suffix('*').is_some_and(|_| path.starts_with(rule.trim_end_matches('*')))
}

impl Rule {
    /// From a PolicyRule object.
    pub(crate) fn parse(rule: &Value) -> Self {
        let texts = |field: &str| {
            list_at(rule, &[field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Rule {
            groups: texts("apiGroups"),
            resources: texts("resources"),
            urls: texts("nonResourceURLs"),
            names: texts("resourceNames"),
            verbs: texts("verbs"),
        }
    }

    /// The rules of a role.
    pub(crate) fn of_role(role: &Value) -> Vec<Rule> {
        list_at(role, &["rules"]).iter().map(Rule::parse).collect()
    }

    /// As a PolicyRule object.
    pub(crate) fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (field, list) in [
            ("apiGroups", &self.groups),
            ("nonResourceURLs", &self.urls),
            ("resourceNames", &self.names),
            ("resources", &self.resources),
        ] {
            if !list.is_empty() {
                out.insert(field.to_owned(), list.clone().into());
            }
        }
        out.insert("verbs".to_owned(), self.verbs.clone().into());
        Value::Object(out)
    }

    /// Whether the rule allows what is asked.
    pub(crate) fn allows(&self, a: &Attributes<'_>) -> bool {
        if !a.is_resource {
            return has(&self.verbs, &a.verb) && self.urls.iter().any(|url| covers_url(url, &a.path));
        }
        has(&self.verbs, &a.verb)
            && has(&self.groups, &a.group)
            && self.resources.iter().any(|r| is_resource(r, &a.resource, &a.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| *name == *a.name))
    }

    /// The single grants that the rule consists of.
    fn grants(&self) -> Vec<Rule> {
        let one = |text: &str| vec![text.to_owned()];
        let mut out = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let grant = Rule {
                        groups: one(group),
                        resources: one(resource),
                        verbs: one(verb),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        out.push(grant);
                    } else {
                        out.extend(self.names.iter().map(|name| Rule { names: one(name), ..grant.clone() }));
                    }
                }
            }
        }
        for url in &self.urls {
            out.extend(self.verbs.iter().map(|verb| Rule {
                urls: one(url),
                verbs: one(verb),
                ..Rule::default()
            }));
        }
        out
    }

    /// Whether a single grant is within this rule.
    fn covers(&self, grant: &Rule) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|w| has(own, w));
        let resources = |wanted: &[String]| {
            wanted.iter().all(|w| {
                let (resource, sub) = w.split_once('/').unwrap_or((w.as_str(), ""));
                self.resources.iter().any(|own| own == w || is_resource(own, resource, sub))
            })
        };
        all(&self.verbs, &grant.verbs)
            && all(&self.groups, &grant.groups)
            && resources(&grant.resources)
            && grant.urls.iter().all(|url| self.urls.iter().any(|own| covers_url(own, url)))
            && (self.names.is_empty()
                || (!grant.names.is_empty() && grant.names.iter().all(|name| self.names.contains(name))))
    }

    /// As messages show it (upstream's `CompactString`).
    fn text(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// A list as Go's `%q` prints it: `["a" "b"]`.
pub(crate) fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|text| quote(text)).collect::<Vec<_>>().join(" "))
}

/// The single grants of `wanted` that no rule of `own` holds.
pub(crate) fn missing(own: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(Rule::grants).filter(|grant| !own.iter().any(|rule| rule.covers(grant))).collect()
}

/// Single grants of the same resource as one rule.
fn compact(grants: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for grant in grants {
        let same = out.iter_mut().find(|rule| {
            grant.urls.is_empty()
                && rule.urls.is_empty()
                && (&rule.groups, &rule.resources, &rule.names)
                    == (&grant.groups, &grant.resources, &grant.names)
        });
        match same {
            Some(rule) => rule.verbs.extend(grant.verbs),
            None => out.push(grant),
        }
    }
    out
}

/// Missing grants for a message: one line a resource, sorted.
pub(crate) fn describe(missing: Vec<Rule>) -> String {
    let mut lines: Vec<String> = compact(missing).iter().map(Rule::text).collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::UserInfo;
    use proptest::prelude::*;

    fn list(text: &str) -> Vec<String> {
        text.split(',').filter(|t| !t.is_empty()).map(|t| t.replace("core", "")).collect()
    }

    fn rule(groups: &str, resources: &str, verbs: &str, names: &str) -> Rule {
        Rule {
            groups: list(groups),
            resources: list(resources),
            verbs: list(verbs),
            names: list(names),
            urls: vec![],
        }
    }

    fn ask(rule: &Rule, verb: &str, group: &str, resource: &str, name: &str) -> bool {
        let user = UserInfo::default();
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let mut a = Attributes::empty(&user);
        (a.verb, a.group, a.resource, a.subresource, a.name) =
            (verb.into(), group.into(), resource.into(), sub.into(), name.into());
        rule.allows(&a)
    }

    #[test]
    fn what_a_rule_allows() {
        let pods = rule("core", "pods,*/scale", "get,list", "");
        assert!(ask(&pods, "get", "", "pods", "x"));
        assert!(ask(&pods, "get", "", "deployments/scale", "x"));
        assert!(!ask(&pods, "get", "", "pods/log", "x"));
        assert!(!ask(&pods, "get", "apps", "pods", "x"));
        assert!(!ask(&pods, "watch", "", "pods", ""));
        let named = rule("core", "secrets", "get", "a,b");
        assert!(ask(&named, "get", "", "secrets", "b"));
        assert!(!ask(&named, "get", "", "secrets", ""));
        assert!(ask(&rule("*", "*", "*", ""), "fly", "x", "y/z", ""));
    }

    #[test]
    fn what_a_rule_covers() {
        let own = [rule("core", "pods", "*", ""), rule("core", "secrets", "get", "a")];
        assert!(missing(&own, &[rule("core", "pods", "get,fly", "x")]).is_empty());
        assert_eq!(missing(&own, &[rule("core", "secrets", "get", "")]).len(), 1);
        assert!(missing(&own, &[rule("core", "secrets", "get", "a")]).is_empty());
        let text = describe(missing(&own, &[rule("core", "pods,secrets", "get,list", "a")]));
        assert_eq!(
            text,
            "{APIGroups:[\"\"], Resources:[\"secrets\"], ResourceNames:[\"a\"], Verbs:[\"list\"]}"
        );
        let urls = |list: &[&str]| Rule {
            urls: list.iter().map(|u| (*u).to_owned()).collect(),
            verbs: vec!["get".into()],
            ..Rule::default()
        };
        assert!(missing(&[urls(&["/api/*"])], &[urls(&["/api/x"])]).is_empty());
        assert_eq!(missing(&[urls(&["/api"])], &[urls(&["/api/x"])]).len(), 1);
    }

    fn any_list() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(proptest::sample::select(vec!["a", "b", "*"]).prop_map(str::to_owned), 1..3)
    }

    proptest! {
        /// Rules that cover a grant allow what the grant allows.
        #[test]
        fn covering_is_allowing(groups in any_list(), resources in any_list(), verbs in any_list(),
                                g in "[ab]", r in "[ab]", v in "[ab]") {
            let own = Rule { groups, resources, verbs, ..Rule::default() };
            let wanted = rule(&g, &r, &v, "");
            prop_assert_eq!(missing(std::slice::from_ref(&own), &[wanted]).is_empty(), ask(&own, &v, &g, &r, "n"));
        }
    }
}
