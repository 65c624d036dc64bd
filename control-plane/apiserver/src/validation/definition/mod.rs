//! Custom resource definitions: upstream's rules for the definition itself.
//!
//! Upstream checks its internal form, where what all versions say alike stands once beside them: paths name that form.

mod columns;
mod defaults;
mod expressions;
mod naming;
mod openapi;
mod shown;
mod structural;
mod value;

pub(crate) use naming::approval_state;

use kelp_model::names;
use serde_json::Value;
use std::collections::BTreeSet;

use super::{Errors, at, flag, immutable, list, meta, same, set, text, texts, webhook};
use crate::error::{BadValue, FieldError};
use crate::gvk::GroupVersionKind;

/// What all versions of a definition say alike, `None` where they differ or say nothing.
struct Common<'a> {
    /// Each of the four parts stands beside the versions.
    schema_is_common: bool,
    subresources_are_common: bool,
    columns_are_common: bool,
    fields_are_common: bool,
    versions: &'a [Value],
}

impl<'a> Common<'a> {
    fn of(spec: &'a Value) -> Self {
        let versions = list(spec, "versions");
        let alike = |field: &str| {
            let first = versions.first().map(|v| at(v, field));
            first.is_some_and(|first| versions.iter().all(|v| same(at(v, field), first)))
        };
        Common {
            schema_is_common: alike("schema"),
            subresources_are_common: alike("subresources"),
            columns_are_common: alike("additionalPrinterColumns"),
            fields_are_common: alike("selectableFields"),
            versions,
        }
    }

    fn common(&self, is: bool, field: &str) -> &'a Value {
        self.versions.first().filter(|_| is).map_or(super::NULL, |v| at(v, field))
    }

    fn own(is: bool, version: &'a Value, field: &str) -> &'a Value {
        if is { super::NULL } else { at(version, field) }
    }
}

/// Rules of a new definition, its metadata included.
pub(super) fn create(gvk: &GroupVersionKind, object: &Value, errs: &mut Errors) {
    let definition = at(object, "spec");
    meta::create(gvk, object, errs);
    let name = text(at(object, "metadata"), "name");
    let wanted = format!("{}.{}", text(at(definition, "names"), "plural"), text(definition, "group"));
    if name != wanted && !name.is_empty() {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errs.push(FieldError::invalid("metadata.name", name, detail));
    }
    spec(definition, true, true, errs);
    whole(object, None, errs);
}

/// Rules of a changed definition; the metadata was looked at.
pub(super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    let reviews = at(at(before, "conversion"), "webhook");
    let recognized = list(reviews, "conversionReviewVersions").is_empty()
        || texts(reviews, "conversionReviewVersions").any(|v| REVIEWS.contains(&v));
    let has_schema = |version: &Value| set(at(version, "schema"), "openAPIV3Schema");
    let schemas = list(before, "versions").iter().all(has_schema);
    spec(after, recognized, schemas, errs);
    let established = list(at(old, "status"), "conditions")
        .iter()
        .any(|c| text(c, "type") == "Established" && text(c, "status") == "True");
    if established {
        immutable(errs, "spec.scope", at(after, "scope"), at(before, "scope"));
        let kind = |s: &Value| at(at(s, "names"), "kind").clone();
        immutable(errs, "spec.names.kind", &kind(after), &kind(before));
    }
    immutable(errs, "spec.group", at(after, "group"), at(before, "group"));
    let plural = |s: &Value| at(at(s, "names"), "plural").clone();
    immutable(errs, "spec.names.plural", &plural(after), &plural(before));
    whole(new, Some(old), errs);
}

/// Rules of a changed status.
pub(super) fn status(new: &Value, errs: &mut Errors) {
    naming::accepted(at(at(new, "status"), "acceptedNames"), "status.acceptedNames", errs);
}

/// What concerns more than the specification.
fn whole(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    status(object, errs);
    stored_versions(object, errs);
    naming::approval(object, old, errs);
    let preserves = |o: &Value| flag(at(o, "spec"), "preserveUnknownFields");
    if preserves(object) && !old.is_some_and(preserves) {
        let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errs.push(FieldError::invalid("spec.preserveUnknownFields", Value::Bool(true), detail));
    }
}

fn stored_versions(object: &Value, errs: &mut Errors) {
    const PATH: &str = "status.storedVersions";
    let shown = at(at(object, "status"), "storedVersions");
    let stored: Vec<&str> = texts(at(object, "status"), "storedVersions").collect();
    if stored.is_empty() {
        let null = BadValue::Text("null".to_owned());
        errs.push(FieldError::invalid(PATH, null, "must have at least one stored version"));
        return;
    }
    let versions = list(at(object, "spec"), "versions");
    for version in versions.iter().filter(|v| flag(v, "storage")) {
        let name = text(version, "name");
        if !stored.contains(&name) {
            let detail = format!("must have the storage version {name}");
            errs.push(FieldError::invalid(PATH, shown, detail));
        }
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| text(v, "name") == *name) {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errs.push(FieldError::invalid(format!("{PATH}[{i}]"), *name, detail));
        }
    }
}

fn spec(spec: &Value, recognized: bool, schemas: bool, errs: &mut Errors) {
    let group = text(spec, "group");
    if group.is_empty() {
        errs.push(FieldError::required("spec.group", ""));
    } else {
        let messages = names::dns1123_subdomain(group);
        if !messages.is_empty() {
            errs.push(FieldError::invalid("spec.group", group, messages.join(",")));
        } else if !group.contains('.') {
            let detail = "should be a domain with at least one dot";
            errs.push(FieldError::invalid("spec.group", group, detail));
        }
    }
    super::one_of(errs, "spec.scope", text(spec, "scope"), &["Cluster", "Namespaced"]);
    let common = Common::of(spec);
    let shared = common.common(common.schema_is_common, "schema");
    let preserves = flag(spec, "preserveUnknownFields");
    if !set(shared, "openAPIV3Schema") {
        for (i, version) in common.versions.iter().enumerate() {
            let own = Common::own(common.schema_is_common, version, "schema");
            if set(own, "openAPIV3Schema") {
                continue;
            }
            let path = format!("spec.versions[{i}].schema.openAPIV3Schema");
            if schemas {
                errs.push(FieldError::required(path, ""));
            } else if !preserves && flag(version, "served") {
                errs.push(FieldError::required(path, "because otherwise all fields are pruned"));
            }
        }
    }
    if preserves
        && common.versions.iter().any(|v| openapi::has_defaults(at(at(v, "schema"), "openAPIV3Schema")))
    {
        let detail = "must be false in order to use defaults in the schema";
        errs.push(FieldError::invalid("spec.preserveUnknownFields", Value::Bool(true), detail));
    }
    versions(spec, &common, errs);
    naming::resource_names(at(spec, "names"), errs);
    let any_status = common.versions.iter().any(|v| set(at(v, "subresources"), "status"));
    schema(shared, any_status, "spec.validation", errs);
    let subresources = common.common(common.subresources_are_common, "subresources");
    columns::subresources(subresources, "spec.subresources", errs);
    if common.columns_are_common
        && let Some(first) = common.versions.first()
    {
        columns::columns(list(first, "additionalPrinterColumns"), "spec.additionalPrinterColumns", errs);
    }
    if common.fields_are_common
        && let Some(first) = common.versions.first()
        && !list(first, "selectableFields").is_empty()
    {
        if shared.is_null() {
            let detail = "may only be set when validations.schema is included";
            errs.push(FieldError::invalid("spec.selectableFields", "", detail));
        } else {
            let fields = list(first, "selectableFields");
            columns::selectable(fields, at(shared, "openAPIV3Schema"), "spec.selectableFields", errs);
        }
    }
    conversion(at(spec, "conversion"), preserves, recognized, errs);
}

fn versions(spec: &Value, common: &Common<'_>, errs: &mut Errors) {
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for (i, version) in common.versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(version, "name");
        unique &= seen.insert(name);
        naming::label(name, &format!("{path}.name"), "", errs);
        deprecation(version, &path, errs);
        let own = |is: bool, field: &str| Common::own(is, version, field);
        // What the version says itself, or what all say.
        let status = set(at(version, "subresources"), "status");
        let schema_of = own(common.schema_is_common, "schema");
        schema(schema_of, status, &format!("{path}.schema"), errs);
        let subresources = own(common.subresources_are_common, "subresources");
        columns::subresources(subresources, &format!("{path}.subresources"), errs);
        if !common.columns_are_common {
            let path = format!("{path}.additionalPrinterColumns");
            columns::columns(list(version, "additionalPrinterColumns"), &path, errs);
        }
        if !common.fields_are_common && !list(version, "selectableFields").is_empty() {
            let path = format!("{path}.selectableFields");
            if set(schema_of, "openAPIV3Schema") {
                let fields = list(version, "selectableFields");
                columns::selectable(fields, at(schema_of, "openAPIV3Schema"), &path, errs);
            } else {
                let detail = "may only be set when `version.schema.openAPIV3Schema` is not included";
                errs.push(FieldError::invalid(path, "", detail));
            }
        }
    }
    let storage = common.versions.iter().filter(|v| flag(v, "storage")).count();
    let mut bad = |detail: &str| {
        errs.push(FieldError::invalid("spec.versions", shown::versions(common), detail));
    };
    if !unique {
        bad("must contain unique version names");
    }
    if storage != 1 {
        bad("must have exactly one version marked as storage version");
    }
    if let Some(first) = list(spec, "versions").first() {
        naming::label(text(first, "name"), "spec.version", "", errs);
    }
}

fn deprecation(version: &Value, path: &str, errs: &mut Errors) {
    if !set(version, "deprecationWarning") {
        return;
    }
    let warning = text(version, "deprecationWarning");
    let path = format!("{path}.deprecationWarning");
    let mut bad = |detail: String| errs.push(FieldError::invalid(path.as_str(), warning, detail));
    if !flag(version, "deprecated") {
        return bad("can only be set for deprecated versions".to_owned());
    }
    if warning.len() > 256 {
        bad("must be <= 256 characters long".to_owned());
    }
    if warning.is_empty() {
        bad("must not be an empty string".to_owned());
    }
    let hidden = |c: char| c.is_control() || (c.is_whitespace() && c != ' ');
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| hidden(*c)) {
        bad(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

fn conversion(conversion: &Value, preserves: bool, recognized: bool, errs: &mut Errors) {
    const PATH: &str = "spec.conversion";
    if conversion.is_null() {
        return;
    }
    let strategy = text(conversion, "strategy");
    if preserves && strategy != "None" {
        let detail = "must be None if spec.preserveUnknownFields is true";
        errs.push(FieldError::invalid(format!("{PATH}.strategy"), strategy, detail));
    }
    super::one_of(errs, &format!("{PATH}.strategy"), strategy, &["None", "Webhook"]);
    let webhook = at(conversion, "webhook");
    let client = at(webhook, "clientConfig");
    let path = format!("{PATH}.webhookClientConfig");
    let reviews_path = format!("{PATH}.conversionReviewVersions");
    if strategy != "Webhook" {
        const DETAIL: &str = "should not be set when strategy is not set to Webhook";
        if !client.is_null() {
            errs.push(FieldError::forbidden(path, DETAIL));
        }
        if !list(webhook, "conversionReviewVersions").is_empty() {
            errs.push(FieldError::forbidden(reviews_path, DETAIL));
        }
        return;
    }
    if client.is_null() {
        errs.push(FieldError::required(path, "required when strategy is set to Webhook"));
    } else {
        webhook::client(client, &path, errs);
    }
    if list(webhook, "conversionReviewVersions").is_empty() {
        errs.push(FieldError::required(reviews_path, ""));
    } else {
        webhook::review_versions(webhook, "conversionReviewVersions", recognized, &reviews_path, errs);
    }
}

/// The schema of a version (or of all), and the defaults in it.
fn schema(holder: &Value, status: bool, path: &str, errs: &mut Errors) {
    let schema = at(holder, "openAPIV3Schema");
    if schema.is_null() {
        return;
    }
    let path = format!("{path}.openAPIV3Schema");
    let mut found = Errors::new();
    if status {
        shown::root_with_status(schema, &path, &mut found);
    }
    if flag(schema, "nullable") {
        found.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    // Parts that no structural schema has are told of by the other rules; only where those have none are they told here.
    let unsupported = structural::unsupported(schema);
    if unsupported.is_none() {
        let mut faults = Errors::new();
        structural::check(schema, &path, &mut faults);
        if faults.is_empty() {
            defaults::check(schema, &path, true, &mut faults);
        }
        found.extend(faults);
    }
    openapi::check(schema, &path, &mut found);
    if let Some(why) = unsupported.filter(|_| found.is_empty()) {
        found.push(FieldError::invalid(path, "", why));
    }
    errs.extend(found);
}

/// What a definition says without effect.
pub(crate) fn warnings(object: &Value) -> Vec<String> {
    let versions = list(at(object, "spec"), "versions");
    let (mut formats, mut sets) = (Vec::new(), BTreeSet::new());
    for version in versions {
        let schema = at(at(version, "schema"), "openAPIV3Schema");
        openapi::visit(schema, &mut |s| {
            let format = text(s, "format");
            let known = openapi::FORMATS.contains(&format.replace('-', "").as_str())
                || openapi::FORMATS.contains(&format);
            if !format.is_empty() && text(s, "type") == "string" && !known {
                formats.push(format!("unrecognized format {}", crate::error::quote(format)));
            }
            let items = text(at(s, "items"), "type");
            if text(s, "x-kubernetes-list-type") == "set" && matches!(items, "object" | "array") {
                let items = crate::error::quote(items);
                sets.insert(format!("x-kubernetes-list-type: set for items of type {items} is not supported by server-side apply or CEL validation rules"));
            }
        });
    }
    // What all versions say alike is said once.
    formats.dedup();
    formats.into_iter().chain(sets).collect()
}

#[cfg(test)]
mod tests;
