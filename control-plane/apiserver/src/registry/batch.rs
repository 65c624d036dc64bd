//! Rows of the group `batch`.

use super::core::{BASE, carry};
use super::fields::JOB_FIELDS;
use super::*;
use crate::object::{bool_at, map_mut, meta, meta_mut};
use crate::table;
use serde_json::{Map, json};

const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

/// Label with the job's UID, and its form without a prefix that old controllers read.
pub(crate) const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
/// Label with the job's name, and its form without a prefix.
pub(crate) const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

static JOB: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| {
        if !bool_at(object, &["spec", "manualSelector"]) {
            generate_selector(object);
        }
        object["status"] = json!({});
        label_as_template(object);
    },
    prepare_update: |new, old| carry(new, old, &["status"]),
    generation_warnings: super::warnings::of_job,
    orphan_dependents: true,
    orphan_warning: Some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to \
         remove them or set propagationPolicy=Orphan to suppress this warning",
    ),
    ..Strategy::PLAIN
};

static CRON_JOB: Strategy = Strategy {
    generation: Generation::Spec,
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old| carry(new, old, &["status"]),
    generation_warnings: super::warnings::of_cron_job,
    warnings: super::warnings::of_schedule,
    ..Strategy::PLAIN
};

static JOB_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("batch", "v1", "Job")),
    verbs: STATUS_VERBS,
}];
static CRON_JOB_SUB: &[Subresource] = &[Subresource {
    name: "status",
    does: SubresourceKind::Status,
    kind: Some(("batch", "v1", "CronJob")),
    verbs: STATUS_VERBS,
}];

/// The labels of a template, made when there are none.
fn template_labels(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let template = map_mut(object, "spec").entry("template").or_insert_with(|| json!({}));
    let labels = map_mut(template, "metadata").entry("labels").or_insert_with(|| json!({}));
    if !labels.is_object() {
        *labels = json!({});
    }
    labels.as_object_mut()
}

/// Selects the job's pods by its UID. Labels that the template has already are left for validation to judge.
fn generate_selector(object: &mut Value) {
    let (uid, name) = (meta(object, "uid").to_owned(), meta(object, "name").to_owned());
    if let Some(labels) = template_labels(object) {
        for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
            let [_, legacy] = keys;
            if !labels.contains_key(legacy) {
                for key in keys {
                    labels.insert(key.to_owned(), value.as_str().into());
                }
            }
        }
    }
    let selector = map_mut(object, "spec").entry("selector").or_insert_with(|| json!({}));
    let [key, _] = UID_LABELS;
    map_mut(selector, "matchLabels").entry(key).or_insert_with(|| uid.into());
}

/// A job without labels has those of its template.
fn label_as_template(object: &mut Value) {
    let own = object.pointer("/metadata/labels").and_then(Value::as_object);
    if own.is_some_and(|labels| !labels.is_empty()) {
        return;
    }
    let labels = object.pointer("/spec/template/metadata/labels").and_then(Value::as_object);
    if let Some(labels) = labels.filter(|l| !l.is_empty()).cloned() {
        meta_mut(object).insert("labels".into(), labels.into());
    }
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            group: "batch",
            plural: "cronjobs",
            singular: "cronjob",
            kind: "CronJob",
            short_names: &["cj"],
            categories: &["all"],
            subresources: CRON_JOB_SUB,
            storage_prefix: "/registry/cronjobs/",
            table: &table::CRON_JOB_TABLE,
            strategy: &CRON_JOB,
            ..BASE
        },
        Row {
            group: "batch",
            plural: "jobs",
            singular: "job",
            kind: "Job",
            categories: &["all"],
            subresources: JOB_SUB,
            storage_prefix: "/registry/jobs/",
            fields: JOB_FIELDS,
            field_label_error: Some(("field label \"", "\" not supported for batchv1.Job")),
            table: &table::JOB_TABLE,
            strategy: &JOB,
            ..BASE
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_is_the_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {}}}});
        (JOB.prepare_create)(&mut job);
        let labels = json!({"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "j",
            "controller-uid": "u", "job-name": "j"});
        assert_eq!(job["spec"]["template"]["metadata"]["labels"], labels);
        assert_eq!(job["metadata"]["labels"], labels);
        let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}});
        assert_eq!(job["spec"]["selector"], selector);
    }

    #[test]
    fn manual_selectors_and_own_labels_stay() {
        let body = json!({"metadata": {"name": "j", "uid": "u", "labels": {"a": "b"}},
            "spec": {"manualSelector": true, "selector": {"matchLabels": {"x": "y"}},
                     "template": {"metadata": {"labels": {"x": "y"}}}}, "status": {}});
        let mut job = body.clone();
        (JOB.prepare_create)(&mut job);
        assert_eq!(job, body);
        let mut own = json!({"metadata": {"name": "j", "uid": "u"},
            "spec": {"template": {"metadata": {"labels": {"controller-uid": "mine"}}}}});
        generate_selector(&mut own);
        let labels = &own["spec"]["template"]["metadata"]["labels"];
        assert_eq!((&labels["controller-uid"], labels.get(UID_LABELS[0])), (&json!("mine"), None));
        assert_eq!(labels["job-name"], "j");
    }
}
