//! A resource that the server knows, built in or defined by a custom resource definition.

use super::Strategy;
use crate::custom;
use crate::gvk::GroupVersionKind;
use crate::table::Table;
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;

/// What a subresource does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubresourceKind {
    /// The object with only its status changeable.
    Status,
    /// `autoscaling/v1` Scale view of the replica count.
    Scale,
    /// Binds a pod to a node.
    Binding,
    /// Deletes a pod if its disruption budgets allow it.
    Eviction,
    /// Changes a namespace's finalizers.
    Finalize,
    /// The object with only a part of it changeable, as the strategy's `prepare_part` says.
    Part,
    /// A stream or report of the node that runs the pod.
    Connect,
    /// A token of a service account.
    Token,
}

/// A subresource of a resource.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// Path element.
    pub name: &'static str,
    /// What it does.
    pub does: SubresourceKind,
    /// Group, version and kind of its bodies; none for the resource's own.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

impl Subresource {
    /// Group, version and kind of its bodies.
    pub fn kind_of<'a>(&'a self, resource: &'a Resource) -> (&'a str, &'a str, &'a str) {
        self.kind.unwrap_or((resource.group(), resource.version(), resource.kind()))
    }
}

/// Where a selectable field's value is.
#[derive(Debug, Clone)]
pub enum FieldValue {
    /// A function gives it.
    Hook(fn(&Value) -> String),
    /// At a path of field names: a text, or a number or boolean as text.
    Path(Box<[String]>),
}

/// A field that field selectors may name beside `metadata.name` and `metadata.namespace`.
#[derive(Debug, Clone)]
pub struct SelectableField {
    /// Label as in the selector.
    pub label: Cow<'static, str>,
    /// Its value in an object.
    pub value: FieldValue,
}

impl SelectableField {
    /// The value in an object, empty when it has none.
    pub fn of(&self, object: &Value) -> String {
        match &self.value {
            FieldValue::Hook(hook) => hook(object),
            FieldValue::Path(path) => match path.iter().try_fold(object, |value, name| value.get(name)) {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            },
        }
    }
}

/// Stored form of a resource that is served in more than one group.
pub struct StoredAs {
    /// Kind stored.
    pub kind: &'static str,
    /// Its apiVersion.
    pub api_version: &'static str,
    /// From the served to the stored form.
    pub encode: fn(&mut Value),
    /// From the stored to the served form.
    pub decode: fn(&mut Value),
}

/// Names of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// API group, empty for the core group.
    pub group: Box<str>,
    /// Version.
    pub version: Box<str>,
    /// Plural name, as in paths.
    pub plural: Box<str>,
    /// Singular name.
    pub singular: Box<str>,
    /// Kind.
    pub kind: Box<str>,
    /// Kind of its lists.
    pub list_kind: Box<str>,
}

/// A resource in one version.
pub struct Resource {
    /// Names; see the functions.
    pub names: Naming,
    /// Objects are in namespaces.
    pub namespaced: bool,
    /// Short names.
    pub short_names: Vec<Box<str>>,
    /// Categories, e.g. `all`.
    pub categories: Vec<Box<str>>,
    /// Verbs served.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// First part of its keys in the store, with the ending slash.
    pub storage_prefix: Box<str>,
    /// Kind and version that are stored, when they differ from the row's own.
    pub stored_as: Option<StoredAs>,
    /// Fields for selectors.
    pub fields: Vec<SelectableField>,
    /// The kind has a conversion of its own for field labels, with another error message.
    pub own_field_labels: bool,
    /// That message where it is not the usual one, before and after the label.
    pub field_label_error: Option<(&'static str, &'static str)>,
    /// Columns.
    pub table: Table,
    /// What is special about the kind.
    pub strategy: &'static Strategy,
    /// A warning every request for the resource gets.
    pub deprecated: Option<Box<str>>,
    /// What its definition says, for custom resources.
    pub custom: Option<Arc<custom::Version>>,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.group(), self.version(), self.plural())
    }
}

impl Resource {
    /// Verbs as discovery shows them: while a definition is going, nothing new is offered.
    pub(crate) fn verbs(&self) -> &'static [&'static str] {
        match &self.custom {
            Some(custom) if custom.definition().is_terminating() => crate::custom::LAST_VERBS,
            _ => self.verbs,
        }
    }

    /// API group, empty for the core group.
    pub fn group(&self) -> &str {
        &self.names.group
    }

    /// Version.
    pub fn version(&self) -> &str {
        &self.names.version
    }

    /// Plural name, as in paths.
    pub fn plural(&self) -> &str {
        &self.names.plural
    }

    /// Singular name.
    pub fn singular(&self) -> &str {
        &self.names.singular
    }

    /// Kind.
    pub fn kind(&self) -> &str {
        &self.names.kind
    }

    /// Kind of its lists.
    pub fn list_kind(&self) -> &str {
        &self.names.list_kind
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group().is_empty() {
            self.version().to_owned()
        } else {
            format!("{}/{}", self.group(), self.version())
        }
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(self.group(), self.version(), self.kind())
    }

    /// Group that validation names: that of the stored form, if it is another.
    pub fn error_group(&self) -> &str {
        match &self.stored_as {
            Some(form) => form.api_version.split_once('/').map_or("", |(group, _)| group),
            None => self.group(),
        }
    }

    /// First bytes of its serialized objects as served.
    pub fn head(&self) -> String {
        crate::object::head(self.kind(), &self.api_version())
    }

    /// Key of an object in the store.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.storage_prefix)
        } else {
            format!("{}{name}", self.storage_prefix)
        }
    }

    /// Prefix of the keys of a namespace, or of all with an empty one.
    pub fn prefix(&self, namespace: &str) -> String {
        if self.namespaced && !namespace.is_empty() {
            format!("{}{namespace}/", self.storage_prefix)
        } else {
            self.storage_prefix.to_string()
        }
    }

    /// A subresource by name.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().find(|s| s.name == name).copied()
    }

    /// Version and kind that objects are stored as: group, version, kind.
    pub fn stored_kind(&self) -> (&str, &str, &str) {
        if let Some(form) = &self.stored_as {
            let (group, version) = form.api_version.split_once('/').unwrap_or(("", form.api_version));
            return (group, version, form.kind);
        }
        let version = self.custom.as_ref().map_or(self.version(), |custom| custom.storage_version());
        (self.group(), version, self.kind())
    }
}
