//! Keeps `metadata.managedFields`: who writes, and what the endpoint owns.

use serde_json::Value;
use std::sync::Arc;

use super::Context;
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::machinery::Model;
use crate::patch::apply::{self, Configuration, Owns, Writer};
use crate::registry::owned::owned;
use crate::registry::{Registry, Resource};
use crate::request::{MAX_FIELD_MANAGER, WriteOptions, is_printable};
use crate::schema::{self, TypeSchema};

/// A write as `managedFields` sees it.
pub(super) struct Write<'a> {
    pub(super) options: &'a WriteOptions,
    /// The subresource written through, empty for the object itself.
    pub(super) subresource: &'a str,
    /// The model of the bodies.
    model: Model<'a>,
    owns: Owns,
}

impl<'a> Write<'a> {
    /// A write of the request's resource.
    pub(super) fn of(context: &'a Context, options: &'a WriteOptions, subresource: &'a str) -> Self {
        let owns = owned(&context.resource, subresource);
        Write { options, subresource, model: Model::of(&context.resource), owns }
    }

    /// A write of a view of the object, which is another kind.
    pub(super) fn of_view(options: &'a WriteOptions, subresource: &'a str, gvk: GroupVersionKind) -> Self {
        Write { options, subresource, model: Model::BuiltIn(gvk), owns: Owns::ALL }
    }

    fn with<T>(&self, context: &Context, run: impl FnOnce(&Writer<'_, '_>) -> T) -> Result<T, ApiError> {
        let manager = match self.options.manager.as_str() {
            "" => manager_of(&context.user_agent),
            given => given.to_owned(),
        };
        self.as_manager(&manager, &context.core.builtin, &context.resource, run)
    }

    fn as_manager<T>(
        &self,
        manager: &str,
        registry: &Registry,
        resource: &Resource,
        run: impl FnOnce(&Writer<'_, '_>) -> T,
    ) -> Result<T, ApiError> {
        let schema = self.model.schema()?;
        let api_version = self.model.gvk().api_version();
        let time = crate::object::now();
        Ok(run(&Writer {
            manager,
            subresource: self.subresource,
            api_version: &api_version,
            time: &time,
            owns: self.owns,
            schema,
            decode: &|value, _| self.model.decode_value(value),
            convert: &|object, version| converted(registry, resource, object, version),
        }))
    }

    /// Notes what a create (without a live object), an update or a patch changes.
    pub(super) fn track(
        &self,
        context: &Context,
        live: Option<&Value>,
        new: &mut Value,
    ) -> Result<(), ApiError> {
        self.with(context, |writer| apply::track(live, new, writer))
    }

    /// Applies a configuration.
    pub(super) fn apply(
        &self,
        context: &Context,
        live: Option<&Value>,
        configuration: &Value,
    ) -> Result<Value, ApiError> {
        let kind = self.model.gvk().kind;
        let configuration = Configuration { object: configuration, force: self.options.force, kind: &kind };
        self.with(context, |writer| apply::apply(live, &configuration, writer))?
    }
}

/// Notes what the server itself changes of a stored object.
pub(crate) fn track_own(
    registry: &Registry,
    resource: &Resource,
    subresource: &str,
    live: &Value,
    new: &mut Value,
) -> Result<(), ApiError> {
    let options = WriteOptions::default();
    let owns = owned(resource, subresource);
    let write = Write { options: &options, subresource, model: Model::of(resource), owns };
    write.as_manager(SERVER, registry, resource, |writer| apply::track(Some(live), new, writer))
}

/// The manager of what the server does by itself.
pub(crate) const SERVER: &str = "kube-apiserver";

/// The first part of a user agent, without what a manager's name must not have.
fn manager_of(agent: &str) -> String {
    let mut out = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| is_printable(*c)) {
        if out.len() + c.len_utf8() > MAX_FIELD_MANAGER {
            break;
        }
        out.push(c);
    }
    out
}

/// The object as another version of the request's resource, or of another resource that is the same in the store.
fn converted<'s>(
    registry: &Registry,
    own: &'s Resource,
    object: &Value,
    version: &str,
) -> Option<(Value, &'s TypeSchema)> {
    if let Some(custom) = own.custom.as_deref() {
        return custom.converted(object, version);
    }
    let row = |version: &str| {
        let rows = registry.rows().iter().map(Arc::as_ref);
        rows.filter(|r| r.storage_prefix == own.storage_prefix).find(|r| r.api_version() == version)
    };
    let to = row(version)?;
    let from = object.get("apiVersion").and_then(Value::as_str).and_then(row).unwrap_or(own);
    let schema = schema::by_gvk(&to.gvk())?;
    let mut out = object.clone();
    if let Some(form) = &from.stored_as {
        (form.encode)(&mut out);
    }
    if let Some(form) = &to.stored_as {
        (form.decode)(&mut out);
    }
    crate::codec::set_kind(&mut out, &to.gvk());
    crate::codec::decode_value(out, schema).ok().map(|(value, _)| (value, schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_of_user_agents() {
        assert_eq!(manager_of("kubectl/v1.36.2 (linux/amd64) kubernetes/98b3519"), "kubectl");
        assert_eq!(manager_of("a\u{1}b c"), "ab c");
        assert_eq!(manager_of(""), "");
        assert_eq!(manager_of(&"é".repeat(100)).len(), 128);
    }
}
