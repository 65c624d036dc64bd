//! A definition in the form that its objects are served by.

use super::creations::Creations;
use super::rules::Rules;
use super::{Printer, naming, validate};
use crate::object::{bool_at, get, list_at, str_at};
use crate::registry::scale::ScalePaths;
use crate::registry::{
    FieldValue, Generation, Naming, Resource, SelectableField, Strategy, Subresource, SubresourceKind,
};
use crate::schema::TypeSchema;
use crate::structural::{self, Structural};
use crate::table::Table;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

/// How objects become those of another version.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Conversion {
    /// Only their `apiVersion` changes.
    None,
    /// A webhook converts them.
    Webhook,
}

/// What one version says.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) name: Box<str>,
    /// The schema; one without restrictions when the version has none.
    pub(crate) schema: Structural,
    /// The schema as server-side apply sees it.
    pub(crate) types: TypeSchema,
    /// What must hold besides, if anything.
    pub(super) rules: Option<Rules>,
    pub(crate) has_status: bool,
    pub(crate) scale: Option<ScalePaths>,
}

/// A definition that is served.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) group: Box<str>,
    pub(crate) kind: Box<str>,
    pub(crate) namespaced: bool,
    pub(crate) versions: Vec<Facts>,
    /// Index of the version that objects are stored in.
    storage: usize,
    pub(crate) conversion: Conversion,
    pub(crate) creations: Arc<Creations>,
    /// As the definition says it.
    pub(crate) spec: Value,
    /// Fingerprint of what is served, in hexadecimal.
    pub(crate) digest: String,
    /// Nothing is pruned (definitions of the first version of the API alone could say so).
    pub(crate) preserve_all: bool,
}

/// One version of a definition.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    definition: Arc<Definition>,
    at: usize,
}

static OBJECTS: Strategy = Strategy {
    generation: Generation::AllButMetadata,
    unconditional_update: false,
    warnings: validate::finalizer_warnings,
    warn_at_creation_only: true,
    ..Strategy::PLAIN
};

/// Objects with a status of its own, which only its subresource writes.
static OBJECTS_WITH_STATUS: Strategy = Strategy {
    prepare_create: |object| {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    },
    prepare_update: |new, old| {
        if let Some(map) = new.as_object_mut() {
            crate::object::set_or_remove(map, "status", old.get("status").cloned());
        }
    },
    prepare_status: |new, old| {
        // Nothing of the metadata but who wrote the status.
        let managed = get(new, &["metadata", "managedFields"]).cloned();
        let version = get(new, &["metadata", "resourceVersion"]).cloned();
        if let Some(metadata) = old.get("metadata") {
            new["metadata"] = metadata.clone();
        }
        crate::object::set_or_remove(crate::object::meta_mut(new), "managedFields", managed);
        crate::object::set_or_remove(crate::object::meta_mut(new), "resourceVersion", version);
    },
    generation: Generation::AllButMetadata,
    unconditional_update: false,
    warnings: validate::finalizer_warnings,
    warn_at_creation_only: true,
    ..Strategy::PLAIN
};

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// Verbs in discovery, in upstream's order for custom resources.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// Verbs while the definition is going.
pub(crate) const LAST_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];

fn path(text: &str) -> Vec<String> {
    text.trim_start_matches('.').split('.').map(str::to_owned).collect()
}

impl Definition {
    /// Reads a definition whose names were accepted.
    ///
    /// # Errors
    /// Why it cannot be served.
    pub(crate) fn parse(object: &Value) -> Result<Self, String> {
        let spec = get(object, &["spec"]).ok_or("it has no spec")?;
        let preserve_all = bool_at(spec, &["preserveUnknownFields"]);
        let versions = list_at(spec, &["versions"]);
        let storage = versions.iter().position(|v| bool_at(v, &["storage"])).ok_or("no version is stored")?;
        let kind = str_at(object, &["status", "acceptedNames", "kind"]);
        let conversion = match str_at(spec, &["conversion", "strategy"]) {
            "Webhook" => Conversion::Webhook,
            _ => Conversion::None,
        };
        let names = get(object, &["status", "acceptedNames"]).cloned().unwrap_or_default();
        let digest = Sha256::digest(format!("{spec}{names}").as_bytes());
        Ok(Definition {
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            spec: spec.clone(),
            group: str_at(spec, &["group"]).into(),
            kind: kind.into(),
            namespaced: str_at(spec, &["scope"]) == "Namespaced",
            versions: versions.iter().map(|version| Facts::parse(version, kind, preserve_all)).collect(),
            storage,
            conversion,
            creations: Creations::new(naming::is_terminating(object)),
            preserve_all,
        })
    }

    /// The definition is going: no new objects are made.
    pub(crate) fn is_terminating(&self) -> bool {
        self.creations.is_closed()
    }

    /// `group/version` of the version that objects are stored in.
    pub(crate) fn stored_api_version(&self) -> String {
        format!("{}/{}", self.group, self.stored().name)
    }

    fn stored(&self) -> &Facts {
        // Found among the versions when the definition was read.
        &self.versions[self.storage]
    }

    /// The version of an `apiVersion`, if it is one of this definition.
    pub(crate) fn version_of(&self, api_version: &str) -> Option<&Facts> {
        let (group, version) = api_version.split_once('/')?;
        (group == &*self.group).then(|| self.versions.iter().find(|facts| &*facts.name == version)).flatten()
    }
}

impl Facts {
    fn parse(version: &Value, kind: &str, preserve_all: bool) -> Self {
        let schema = match get(version, &["schema", "openAPIV3Schema"]) {
            Some(schema) => Structural::parse(schema),
            None => Structural { preserve_unknown: true, ..Structural::default() },
        };
        let scale = get(version, &["subresources", "scale"]).map(|scale| {
            let selector = str_at(scale, &["labelSelectorPath"]);
            ScalePaths {
                wanted: path(str_at(scale, &["specReplicasPath"])),
                present: path(str_at(scale, &["statusReplicasPath"])),
                selector: (!selector.is_empty()).then(|| path(selector)),
            }
        });
        Facts {
            name: str_at(version, &["name"]).into(),
            types: structural::types(&schema, kind, preserve_all),
            rules: Rules::compile(&schema),
            schema,
            has_status: version.pointer("/subresources/status").is_some_and(|status| !status.is_null()),
            scale,
        }
    }
}

impl std::ops::Deref for Version {
    type Target = Facts;

    fn deref(&self) -> &Facts {
        // Made with an index of the definition's versions.
        &self.definition.versions[self.at]
    }
}

impl Version {
    /// The definition.
    pub(crate) fn definition(&self) -> &Definition {
        &self.definition
    }

    /// `group/version`.
    pub(crate) fn api_version(&self) -> String {
        format!("{}/{}", self.definition.group, self.name)
    }

    /// Name of the version that objects are stored in.
    pub(crate) fn storage_version(&self) -> &str {
        &self.definition.stored().name
    }

    /// Objects are stored in this version.
    pub(crate) fn is_stored(&self) -> bool {
        self.at == self.definition.storage
    }
}

/// The resources of a definition: its versions, and whether they are served.
pub(crate) fn resources(object: &Value, definition: &Arc<Definition>) -> Vec<(Resource, bool)> {
    let versions = list_at(object, &["spec", "versions"]).iter().enumerate();
    versions
        .map(|(at, version)| {
            let custom = Version { definition: definition.clone(), at };
            (resource(object, version, custom), bool_at(version, &["served"]))
        })
        .collect()
}

fn resource(object: &Value, version: &Value, custom: Version) -> Resource {
    let names = get(object, &["status", "acceptedNames"]).cloned().unwrap_or_default();
    let text = |name: &str| -> Box<str> { str_at(&names, &[name]).into() };
    let texts =
        |name: &str| list_at(&names, &[name]).iter().filter_map(Value::as_str).map(Into::into).collect();
    let definition = custom.definition();
    let mut subresources = Vec::new();
    if custom.has_status {
        subresources.push(Subresource {
            name: "status",
            does: SubresourceKind::Status,
            kind: None,
            verbs: STATUS_VERBS,
        });
    }
    if custom.scale.is_some() {
        subresources.push(Subresource {
            name: "scale",
            does: SubresourceKind::Scale,
            kind: Some(("autoscaling", "v1", "Scale")),
            verbs: STATUS_VERBS,
        });
    }
    let fields = list_at(version, &["selectableFields"]).iter().map(|field| {
        let json_path = str_at(field, &["jsonPath"]);
        SelectableField {
            label: Cow::Owned(json_path.trim_start_matches('.').to_owned()),
            value: FieldValue::Path(path(json_path).into()),
        }
    });
    let deprecated = bool_at(version, &["deprecated"]).then(|| deprecation(object, version).into());
    Resource {
        names: Naming {
            group: definition.group.clone(),
            version: custom.name.clone(),
            plural: text("plural"),
            singular: text("singular"),
            kind: text("kind"),
            list_kind: text("listKind"),
        },
        namespaced: definition.namespaced,
        short_names: texts("shortNames"),
        categories: texts("categories"),
        verbs: VERBS,
        subresources,
        storage_prefix: format!("/registry/{}/{}/", definition.group, text("plural")).into(),
        stored_as: None,
        fields: fields.collect(),
        own_field_labels: true,
        field_label_error: None,
        table: Table::Printer(Printer::new(list_at(version, &["additionalPrinterColumns"]))),
        strategy: if custom.has_status { &OBJECTS_WITH_STATUS } else { &OBJECTS },
        deprecated,
        custom: Some(Arc::new(custom)),
    }
}

/// The warning about a version that should not be used any more.
fn deprecation(object: &Value, version: &Value) -> String {
    if let Some(text) = get(version, &["deprecationWarning"]).and_then(Value::as_str) {
        return text.to_owned();
    }
    let (group, kind) = (str_at(object, &["spec", "group"]), str_at(object, &["spec", "names", "kind"]));
    let own = str_at(version, &["name"]);
    let mut out = format!("{group}/{own} {kind} is deprecated");
    let better = list_at(object, &["spec", "versions"])
        .iter()
        .filter(|v| bool_at(v, &["served"]) && !bool_at(v, &["deprecated"]))
        .map(|v| str_at(v, &["name"]))
        .filter(|name| compare_versions(name, own) == Ordering::Greater)
        .max_by(|a, b| compare_versions(a, b));
    if let Some(better) = better {
        out.push_str(&format!("; use {group}/{better} {kind}"));
    }
    out
}

/// Kubernetes' order of versions: newer and more stable ones are greater; others come below them, by name.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (x, y) = (crate::discovery::version_key(a), crate::discovery::version_key(b));
    // Names that are no versions are ordered backwards, so that the first in the alphabet is the greatest.
    x.cmp(&y).then_with(|| if x.0 == 0 { b.cmp(a) } else { Ordering::Equal })
}
