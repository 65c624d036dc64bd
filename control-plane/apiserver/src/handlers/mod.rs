//! What the server does for each verb.

mod binding;
mod connect;
mod create;
mod delete;
mod eviction;
mod get;
mod internal;
mod kubelet;
mod lifecycle;
mod list;
mod managed;
mod metrics;
mod modify;
mod reply;
mod review;
mod scale;
mod subresource;
mod token;
mod update;
mod view;
mod watch;

pub(crate) use connect::{Raw, RawBody, connect};
pub use reply::*;

pub(crate) use internal::{delete_all, internal, internal_part, written};
pub(crate) use lifecycle::generated;
pub(crate) use managed::track_own;

use crate::auth::UserInfo;
use crate::cache::{Cache, Filter};
use crate::error::ApiError;
use crate::registry::{Resource, SubresourceKind};
use crate::request::{Accepted, Endpoint, ListOptions, Query, RequestInfo, negotiate};
use crate::server::{Core, Entered};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// A request for a resource after authentication and authorization.
pub(crate) struct Context {
    pub(crate) core: Arc<Core>,
    pub(crate) info: RequestInfo,
    pub(crate) query: Query,
    pub(crate) accept: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) pretty: bool,
    pub(crate) body: Bytes,
    /// Who asks; audit and field managers read it.
    pub(crate) user: UserInfo,
    /// What the client calls itself; its first part is the default field manager.
    pub(crate) user_agent: String,
    pub(crate) resource: Arc<Resource>,
    /// The seat of a watch, which keeps it until it has begun.
    pub(crate) seat: Mutex<Option<Entered>>,
    /// The cache of the resource.
    pub(crate) cache: Arc<Cache>,
}

impl Context {
    /// A request of the server itself for a built-in resource; which object and how is to be filled in.
    pub(crate) fn as_server(core: &Arc<Core>, resource: Arc<Resource>) -> Self {
        Context {
            core: core.clone(),
            info: RequestInfo::default(),
            query: Query::default(),
            accept: None,
            content_type: None,
            pretty: false,
            body: Bytes::new(),
            user: UserInfo::admin("system:apiserver"),
            user_agent: managed::SERVER.to_owned(),
            cache: core.cache(&resource).clone(),
            resource,
            seat: Mutex::new(None),
        }
    }

    /// The cache of the request's resource.
    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Key of the named object.
    pub(crate) fn key(&self) -> String {
        self.resource.key(self.namespace(), &self.info.name)
    }

    /// Namespace of the object; empty for resources without namespaces.
    pub(crate) fn namespace(&self) -> &str {
        if self.resource.namespaced { &self.info.namespace } else { "" }
    }

    /// What the client accepts for a single object.
    pub(crate) fn accepted(&self) -> Result<Accepted, ApiError> {
        self.negotiate(false, false, &self.go_type(""))
    }

    /// What the client accepts for a collection.
    pub(crate) fn accepted_list(&self, watch: bool) -> Result<Accepted, ApiError> {
        self.negotiate(true, watch, &self.go_type("List"))
    }

    fn negotiate(&self, list: bool, watch: bool, object: &str) -> Result<Accepted, ApiError> {
        let protobuf =
            self.resource.custom.is_none() && crate::schema::by_gvk(&self.resource.gvk()).is_some();
        let tables = !review::is_review(&self.resource);
        let endpoint = Endpoint { protobuf, transforms: true, tables, list, watch, object };
        negotiate(self.accept.as_deref(), self.pretty, &endpoint)
    }

    /// The type as error messages name it, e.g. `*core.PodList`.
    fn go_type(&self, suffix: &str) -> String {
        if self.resource.custom.is_some() {
            return format!("*unstructured.Unstructured{suffix}");
        }
        let package = match self.resource.group().split('.').next().unwrap_or_default() {
            "" => "core",
            first => first,
        };
        format!("*{package}.{}{suffix}", self.resource.kind())
    }

    /// 404 about the named object.
    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(self.resource.group(), self.resource.plural(), &self.info.name)
    }

    /// The filter of a list or watch; checks that the resource knows the fields.
    pub(crate) fn filter(&self, options: &ListOptions) -> Result<Filter, ApiError> {
        for term in &options.fields.terms {
            let placed = self.resource.custom.is_none() || self.resource.namespaced;
            let known = term.field == "metadata.name"
                || (term.field == "metadata.namespace" && placed)
                || self.resource.fields.iter().any(|f| f.label == term.field);
            if known {
                continue;
            }
            return Err(ApiError::bad_request(match self.resource.field_label_error {
                Some((before, after)) => format!("{before}{}{after}", term.field),
                None if self.resource.own_field_labels => {
                    format!("field label not supported: {}", term.field)
                }
                None => format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    crate::error::quote(&term.field)
                ),
            }));
        }
        let mut fields = options.fields.clone();
        if !self.info.name.is_empty() {
            if !fields.is_empty() && fields.exact("metadata.name") != Some(self.info.name.as_str()) {
                let why = "fieldSelector metadata.name doesn't match requested name";
                return Err(ApiError::bad_request(why));
            }
            // The watch of one object is a watch of all with its name.
            fields.terms.push(crate::selector::FieldTerm {
                field: "metadata.name".to_owned(),
                value: self.info.name.clone(),
                equal: true,
            });
        }
        Ok(Filter { namespace: self.namespace().to_owned(), labels: options.labels.clone(), fields })
    }
}

/// Serves a request for a resource.
pub(crate) async fn serve(context: Context) -> Result<Reply, ApiError> {
    let deprecated = context.resource.deprecated.clone();
    let mut reply = route(context).await?;
    if let Some(text) = deprecated {
        reply.warnings.push(text.into());
    }
    Ok(reply)
}

async fn route(context: Context) -> Result<Reply, ApiError> {
    let info = &context.info;
    if info.surplus {
        return Err(ApiError::unknown_resource());
    }
    if !info.subresource.is_empty() {
        let Some(sub) = context.resource.subresource(&info.subresource) else {
            return Err(ApiError::unknown_resource());
        };
        if !sub.verbs.contains(&info.verb) {
            return Err(ApiError::method_not_allowed());
        }
        return match (sub.does, info.verb) {
            (SubresourceKind::Status, "get") => get::get(&context).await,
            (SubresourceKind::Status, "update") => update::update(&context, update::Part::Status).await,
            (SubresourceKind::Status, _) => update::patch(&context, update::Part::Status).await,
            (SubresourceKind::Finalize, _) => update::update(&context, update::Part::Finalize).await,
            (SubresourceKind::Scale, "get") => scale::get(&context).await,
            (SubresourceKind::Scale, "update") => scale::update(&context).await,
            (SubresourceKind::Scale, _) => scale::patch(&context).await,
            (SubresourceKind::Binding, _) => binding::bind(&context).await,
            (SubresourceKind::Eviction, _) => eviction::evict(&context).await,
            (SubresourceKind::Part, "get") => get::get(&context).await,
            (SubresourceKind::Part, "update") => {
                update::update(&context, update::Part::Named(sub.name)).await
            }
            (SubresourceKind::Part, _) => update::patch(&context, update::Part::Named(sub.name)).await,
            // Other connections are made before their bodies are read, see `connect`.
            (SubresourceKind::Connect, _) => subresource::log(&context).await,
            (SubresourceKind::Token, _) => token::request(&context).await,
        };
    }
    // What a definition that is going does not offer any more is refused in other words where it is done.
    if !context.resource.verbs.contains(&info.verb) && context.resource.custom.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    if info.name.is_empty() && matches!(info.verb, "update" | "patch") {
        return Err(ApiError::method_not_allowed());
    }
    if !info.name.is_empty() && info.verb == "create" {
        return Err(ApiError::method_not_allowed());
    }
    match info.verb {
        "get" if metrics::is_metrics(&context.resource) => metrics::get(&context).await,
        "list" if metrics::is_metrics(&context.resource) => metrics::list(&context).await,
        "get" => get::get(&context).await,
        "list" => list::list(&context).await,
        "watch" => watch::watch(&context).await,
        "create" if review::is_review(&context.resource) => review::create(&context).await,
        "create" if context.resource.kind() == "Binding" => binding::bind_named(context).await,
        "create" => create::create(&context).await,
        "update" => update::update(&context, update::Part::Main).await,
        "patch" => update::patch(&context, update::Part::Main).await,
        "delete" => delete::delete(&context).await,
        "deletecollection" => delete::delete_collection(&context).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}
