//! The scale subresource: a view of the replica count of any kind that has one.

use serde_json::Value;

use super::managed::Write;
use super::modify::{Change, bump_generation, check_version, modify};
use super::subresource::stored;
use super::update::{patch_kind, patched};
use super::{Context, Reply, get, lifecycle};
use crate::error::ApiError;
use crate::gvk::GroupVersionKind;
use crate::machinery::{self, Model, PatchKind};
use crate::object::{int_at, meta, meta_mut, set_or_remove};
use crate::patch::apply;
use crate::registry::scale::ScalePaths;
use crate::request::WriteOptions;
use crate::storage::Stored;
use crate::validation;

fn scale_kind() -> GroupVersionKind {
    GroupVersionKind::new("autoscaling", "v1", "Scale")
}

/// The count of an object that says none while a patch is applied, so that leaving it out is noticed.
const NO_COUNT: i64 = i32::MIN as i64;

pub(super) async fn get(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    get::version(context.query.text("resourceVersion"))?;
    let paths = ScalePaths::of(&context.resource);
    let object = stored(context).await?;
    if context.resource.custom.is_some() && !paths.has_count(&object) {
        let field = crate::error::quote(&paths.wanted_text());
        return Err(ApiError::internal(format!("the spec replicas field {field} does not exist")));
    }
    Ok(Reply::value(200, &paths.scale(&object), accepted))
}

/// A change of the scale as a change of the object behind it.
struct Scaling<'a> {
    context: &'a Context,
    write: Write<'a>,
    paths: ScalePaths,
}

impl<'a> Scaling<'a> {
    fn new(context: &'a Context, options: &'a WriteOptions) -> Self {
        let write = Write::of_view(options, "scale", scale_kind());
        Scaling { context, write, paths: ScalePaths::of(&context.resource) }
    }

    fn wanted(&self) -> Vec<&str> {
        self.paths.wanted.iter().map(String::as_str).collect()
    }

    /// The scale of a stored object, with the managed fields of its count.
    fn before(&self, stored: &Stored) -> Value {
        let mut scale = self.paths.scale(&stored.object);
        if self.context.resource.custom.is_some() && !self.paths.has_count(&stored.object) {
            scale["spec"]["replicas"] = NO_COUNT.into();
        }
        let version = self.context.resource.api_version();
        let entries = apply::to_scale(&stored.object, &[&version], &self.wanted());
        if !entries.is_empty() {
            meta_mut(&mut scale).insert("managedFields".into(), entries.into());
        }
        scale
    }

    /// The change that a new scale asks for; `track`: its managed fields are to be noted first.
    fn change(&self, mut scale: Value, stored: &Stored, track: bool) -> Result<Change, ApiError> {
        let context = self.context;
        let resource = &context.resource;
        lifecycle::place(context, &mut scale)?;
        if track {
            self.write.track(context, Some(&self.before(stored)), &mut scale)?;
        }
        let custom = resource.custom.is_some();
        if custom && int_at(&scale, &["spec", "replicas"]) == Some(NO_COUNT) {
            let field = crate::error::quote(&self.paths.wanted_text());
            return Err(ApiError::bad_request(format!("the spec replicas field {field} cannot be empty")));
        }
        // The count of a custom resource is checked with its object.
        let errors = if custom { Vec::new() } else { validation::scale(&scale) };
        if !errors.is_empty() {
            return Err(ApiError::invalid("autoscaling", "Scale", &context.info.name, &errors));
        }
        check_version(context, &scale, stored)?;
        let old = &stored.object;
        let mut new = old.clone();
        self.paths.set(&mut new, int_at(&scale, &["spec", "replicas"]).unwrap_or_default());
        let version = resource.api_version();
        let entries = apply::from_scale(old, &scale, &version, &[&version], &self.wanted());
        let entries = (!entries.is_empty()).then(|| entries.into());
        set_or_remove(meta_mut(&mut new), "managedFields", entries);
        bump_generation(context, &mut new, old);
        let errors = Model::of(resource).validate_update(&new, old);
        if !errors.is_empty() {
            return Err(ApiError::invalid(resource.group(), resource.kind(), meta(old, "name"), &errors));
        }
        apply::keep_times(&mut new, old);
        Ok(Change::Put(new))
    }
}

pub(super) async fn update(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let options = WriteOptions::parse(&context.query, "UpdateOptions")?;
    let content_type = context.content_type.as_deref();
    let decoded = Model::BuiltIn(scale_kind()).decode(content_type, &context.body, options.validation)?;
    let scaling = Scaling::new(context, &options);
    // Names are checked before the object is looked for.
    lifecycle::place(context, &mut decoded.object.clone())?;
    let outcome =
        modify(context, options.dry_run, |stored| scaling.change(decoded.object.clone(), stored, true))
            .await?;
    Ok(Reply::value(200, &scaling.paths.scale(&outcome.object), accepted).warn(decoded.warnings))
}

pub(super) async fn patch(context: &Context) -> Result<Reply, ApiError> {
    let accepted = context.accepted()?;
    let kind = patch_kind(context)?;
    let options = WriteOptions::of_patch(&context.query, kind)?;
    let scaling = Scaling::new(context, &options);
    let mut warnings = Vec::new();
    let configuration = match kind {
        PatchKind::Apply => {
            let decoded = machinery::decode_configuration(&context.body, options.validation)?;
            warnings = decoded.warnings;
            Some(decoded.object)
        }
        _ => None,
    };
    let outcome = modify(context, options.dry_run, |stored| {
        let before = scaling.before(stored);
        let model = Model::BuiltIn(scale_kind());
        if let Some(configuration) = &configuration {
            let scale = scaling.write.apply(context, Some(&before), configuration)?;
            return scaling.change(scale, stored, false);
        }
        let scale = patched(context, kind, &before, &model, options.validation, &mut warnings)?;
        scaling.change(scale, stored, true)
    })
    .await?;
    Ok(Reply::value(200, &scaling.paths.scale(&outcome.object), accepted).warn(warnings))
}
