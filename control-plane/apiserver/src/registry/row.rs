//! How a built-in resource is written down: a row of texts and hooks, of which the served resource is made.

use super::{Resource, SelectableField, StoredAs, Strategy, Subresource};
use crate::table::TableSpec;

/// Verbs of an ordinary resource.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One row of the registry. The fields are those of a [`Resource`].
pub struct Row {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    pub storage_prefix: &'static str,
    pub stored_as: Option<StoredAs>,
    pub fields: &'static [SelectableField],
    pub own_field_labels: bool,
    pub field_label_error: Option<(&'static str, &'static str)>,
    pub table: &'static TableSpec,
    pub strategy: &'static Strategy,
    pub deprecated: Option<&'static str>,
}

impl From<Row> for Resource {
    fn from(row: Row) -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        Resource {
            names: super::Naming {
                group: row.group.into(),
                version: row.version.into(),
                plural: row.plural.into(),
                singular: row.singular.into(),
                kind: row.kind.into(),
                list_kind: format!("{}List", row.kind).into(),
            },
            namespaced: row.namespaced,
            short_names: names(row.short_names),
            categories: names(row.categories),
            verbs: row.verbs,
            subresources: row.subresources.into(),
            storage_prefix: row.storage_prefix.into(),
            stored_as: row.stored_as,
            fields: row.fields.into(),
            own_field_labels: row.own_field_labels,
            field_label_error: row.field_label_error,
            table: crate::table::Table::Spec(row.table),
            strategy: row.strategy,
            deprecated: row.deprecated.map(Into::into),
            custom: None,
        }
    }
}
