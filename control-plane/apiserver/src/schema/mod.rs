//! What the API server knows about types: one compact table for every built-in kind, in the same shape that custom
//! resources use. Decoding, patching, defaulting and server-side apply are all driven by it.
//!
//! The table (`types.tbl`) holds facts only: JSON name, type, protobuf field number, how Go writes the field, list and
//! map semantics, patch directives, defaults. It is parsed once, at first use.

mod table;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use crate::gvk::GroupVersionKind;

/// A reference to an object type.
#[derive(Debug, Clone)]
pub enum TypeRef {
    /// A type of the built-in table.
    Builtin(u16),
    /// A type of a custom resource.
    Owned(Arc<TypeSchema>),
}

impl TypeRef {
    /// The type.
    #[must_use]
    pub fn get(&self) -> &TypeSchema {
        match self {
            Self::Builtin(index) => &registry().types[usize::from(*index)],
            Self::Owned(schema) => schema,
        }
    }
}

/// The type of a value.
#[derive(Debug, Clone)]
pub enum Type {
    /// A string; the Go name of a named string type, as error messages show it (`v1.Protocol`).
    String(Option<&'static str>),
    /// `true` or `false`.
    Bool,
    /// A 32-bit integer.
    Int32,
    /// A 64-bit integer.
    Int64,
    /// A floating point number.
    Float64,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A resource quantity.
    Quantity,
    /// An integer or a string.
    IntOrString,
    /// A time in whole seconds.
    Time,
    /// A time in microseconds.
    MicroTime,
    /// An object of any shape (RawExtension).
    Raw,
    /// A set of fields in managedFields.
    FieldsV1,
    /// Any JSON value.
    Json,
    /// Any JSON value, of which objects merge by their members (custom resources).
    Deduced,
    /// A schema or a list of schemas (in a CustomResourceDefinition).
    SchemaOrArray(TypeRef),
    /// A schema or a boolean.
    SchemaOrBool(TypeRef),
    /// A schema or a list of strings.
    SchemaOrStrings(TypeRef),
    /// A list.
    List(Box<Type>),
    /// A list that is a message of its own in protobuf (`items`, field 1).
    Wrapped(Box<Type>),
    /// A map with string keys.
    Map(Box<Type>),
    /// An object with known fields.
    Object(TypeRef),
}

impl Type {
    /// The object type, if the value is one.
    #[must_use]
    pub fn object(&self) -> Option<&TypeSchema> {
        match self {
            Self::Object(r) => Some(r.get()),
            _ => None,
        }
    }

    /// The type of the items, if the value is a list.
    #[must_use]
    pub fn items(&self) -> Option<&Type> {
        match self {
            Self::List(t) | Self::Wrapped(t) => Some(t),
            _ => None,
        }
    }

    /// The name that Go's JSON errors give the type.
    #[must_use]
    pub fn go_name(&self) -> Cow<'static, str> {
        match self {
            Self::String(name) => Cow::Borrowed(name.unwrap_or("string")),
            Self::Bool => "bool".into(),
            Self::Int32 => "int32".into(),
            Self::Int64 => "int64".into(),
            Self::Float64 => "float64".into(),
            Self::Bytes => "[]uint8".into(),
            Self::Quantity => "resource.Quantity".into(),
            Self::IntOrString => "intstr.IntOrString".into(),
            Self::Time => "v1.Time".into(),
            Self::MicroTime => "v1.MicroTime".into(),
            Self::Raw => "runtime.RawExtension".into(),
            Self::FieldsV1 => "v1.FieldsV1".into(),
            Self::Json | Self::Deduced => "interface {}".into(),
            Self::SchemaOrArray(_) => "v1.JSONSchemaPropsOrArray".into(),
            Self::SchemaOrBool(_) => "v1.JSONSchemaPropsOrBool".into(),
            Self::SchemaOrStrings(_) => "v1.JSONSchemaPropsOrStringArray".into(),
            Self::List(t) | Self::Wrapped(t) => format!("[]{}", t.go_name()).into(),
            Self::Map(t) => format!("map[string]{}", t.go_name()).into(),
            Self::Object(r) => r.get().go_name().into(),
        }
    }
}

/// How a list merges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ListKind {
    /// Not said, which means atomic.
    #[default]
    Unset,
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Items are identified by these fields.
    Map(Vec<Cow<'static, str>>),
}

/// A field of an object type.
#[derive(Debug, Clone)]
pub struct Field {
    /// JSON name.
    pub name: Cow<'static, str>,
    /// Type.
    pub ty: Type,
    /// Protobuf field number, 0 when it has none.
    pub number: u32,
    /// A pointer in Go: unset and zero differ.
    pub pointer: bool,
    /// Left out of JSON when it is zero (objects are never left out by this alone).
    pub omit_empty: bool,
    /// Left out of JSON when it is zero, objects and times too.
    pub omit_zero: bool,
    /// Required by the OpenAPI document.
    pub required: bool,
    /// How a list merges.
    pub list: ListKind,
    /// A map or object that merges as a whole.
    pub atomic: bool,
    /// Strategic merge patch merges the list (or map).
    pub patch_merge: bool,
    /// Strategic merge patch drops keys that `$retainKeys` does not list.
    pub patch_retain_keys: bool,
    /// Strategic merge patch identifies items by this field.
    pub merge_key: Option<Cow<'static, str>>,
    /// The OpenAPI document's default, as JSON text.
    pub default: Option<Cow<'static, str>>,
}

/// An object type.
#[derive(Debug, Clone, Default)]
pub struct TypeSchema {
    /// `group.version.Name`, such as `core.v1.Pod`.
    pub name: Cow<'static, str>,
    /// Kinds this type is served as.
    pub gvks: Vec<GroupVersionKind>,
    /// Fields sorted by name, those of inlined types included.
    pub fields: Vec<Field>,
    /// Types that JSON inlines, with the protobuf field that holds them (0: none).
    pub inlined: Vec<(u32, TypeRef)>,
    /// Merges as a whole.
    pub atomic: bool,
    /// Fields that are not known are kept (custom resources).
    pub preserve_unknown: bool,
}

impl TypeSchema {
    /// The field with this JSON name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        let index = self.fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        self.fields.get(index)
    }

    /// The Go name without its package: `PodSpec`.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// The Go name with its package: `v1.PodSpec`.
    #[must_use]
    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (name, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or("v1"));
        format!("{package}.{name}")
    }
}

/// Every built-in type.
#[derive(Debug)]
struct Registry {
    /// Sorted by name.
    types: Vec<TypeSchema>,
    /// Sorted kinds with the index of their type.
    kinds: Vec<(GroupVersionKind, u16)>,
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| table::parse(include_str!("types.tbl")))
}

/// The type of a kind. Kinds that exist in every group (`DeleteOptions` and the other options) are found in any.
#[must_use]
pub fn by_gvk(gvk: &GroupVersionKind) -> Option<&'static TypeSchema> {
    let r = registry();
    if let Ok(i) = r.kinds.binary_search_by(|(k, _)| k.cmp(gvk)) {
        return r.types.get(usize::from(r.kinds[i].1));
    }
    let everywhere = matches!(
        gvk.kind.as_str(),
        "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "GetOptions" | "ListOptions"
    );
    if everywhere { by_name(&format!("meta.v1.{}", gvk.kind)) } else { None }
}

/// The type with this name, such as `core.v1.PodSpec`.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static TypeSchema> {
    let r = registry();
    let i = r.types.binary_search_by(|t| t.name.as_ref().cmp(name)).ok()?;
    r.types.get(i)
}

/// A reference to the type with this name.
pub(crate) fn reference(name: &str) -> Option<TypeRef> {
    let index = registry().types.binary_search_by(|t| t.name.as_ref().cmp(name)).ok()?;
    u16::try_from(index).ok().map(TypeRef::Builtin)
}

/// Every kind of the table.
pub fn kinds() -> impl Iterator<Item = &'static GroupVersionKind> {
    registry().kinds.iter().map(|(k, _)| k)
}

/// Every type of the table.
pub fn types() -> impl Iterator<Item = &'static TypeSchema> {
    registry().types.iter()
}

#[cfg(test)]
mod tests;
