//! Jobs and cron jobs.

mod cron;
mod indexes;
mod status;

pub(super) use status::update as status;

use kelp_model::names;
use kelp_model::selector::Selector;
use serde_json::Value;

use super::selector::label_selector;
use super::{
    Errors, at, flag, immutable, int, internal, invalid_each, list, nonnegative, podspec, set, text,
};
use crate::error::{BadValue, FieldError};

const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;
const MAX_INDEXES_TEXT: usize = 64 << 10;
const MAX_MANAGER: usize = 63;
const MANY: i64 = 100_000;
const MANY_PARALLEL: i64 = 10_000;

/// A new job, or one that changes.
pub(super) fn job(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    if old.is_none() {
        generated_selector(object, errs);
    }
    job_spec(spec, "spec", errs);
    let selector = at(spec, "selector");
    if selector.is_null() {
        errs.push(FieldError::required("spec.selector", ""));
    } else {
        label_selector(selector, "spec.selector", errs);
    }
    let labels = at(at(at(spec, "template"), "metadata"), "labels");
    if let Ok(selector) = Selector::from_label_selector_value(Some(selector).filter(|s| !s.is_null()))
        && !selector.matches(labels)
    {
        errs.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ));
    }
    match old {
        None => indexed_names(object, errs),
        Some(old) => changes(object, old, errs),
    }
}

/// The pods of an indexed job are named after it and their index.
fn indexed_names(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let Some(completions) = int(spec, "completions").filter(|n| *n > 0) else { return };
    if text(spec, "completionMode") != "Indexed" {
        return;
    }
    let name = text(at(object, "metadata"), "name");
    let longest = format!("{name}-{}", completions - 1);
    if !names::dns1123_label(&longest).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        errs.push(FieldError::invalid("metadata.name", name, detail));
    }
}

fn generated_selector(object: &Value, errs: &mut Errors) {
    let spec = at(object, "spec");
    let selector = at(spec, "selector");
    if flag(spec, "manualSelector") || selector.is_null() {
        return;
    }
    let metadata = at(object, "metadata");
    let (uid, name) = (text(metadata, "uid"), text(metadata, "name"));
    if uid.is_empty() {
        errs.push(FieldError::required("metadata.uid", ""));
    }
    let wanted = [
        ("controller-uid", uid),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
    ];
    let labels = at(at(at(spec, "template"), "metadata"), "labels");
    for (key, value) in wanted {
        let path = format!("spec.template.metadata.labels[{key}]");
        let detail = format!("must be '{value}'");
        match labels.get(key).and_then(Value::as_str) {
            None => errs.push(FieldError::required(path, detail)),
            Some(present) if present != value => errs.push(FieldError::invalid(path, labels, detail)),
            Some(_) => {}
        }
    }
    let generated: Value = wanted.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    if let Ok(parsed) = Selector::from_label_selector_value(Some(selector))
        && !parsed.matches(&generated)
    {
        let shown = internal::bad("LabelSelector", selector);
        errs.push(FieldError::invalid("spec.selector", shown, "`selector` not auto-generated"));
    }
}

/// What jobs and templates of jobs have in common.
fn job_spec(spec: &Value, path: &str, errs: &mut Errors) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        if let Some(value) = int(spec, field) {
            nonnegative(errs, &format!("{path}.{field}"), value);
        }
    }
    if set(spec, "maxFailedIndexes") && !set(spec, "backoffLimitPerIndex") {
        let detail = "when maxFailedIndexes is specified";
        errs.push(FieldError::required(format!("{path}.backoffLimitPerIndex"), detail));
    }
    if set(spec, "managedBy") {
        managed_by(text(spec, "managedBy"), &format!("{path}.managedBy"), errs);
    }
    let mode = text(spec, "completionMode");
    if set(spec, "completionMode") && !matches!(mode, "NonIndexed" | "Indexed") {
        let supported = ["NonIndexed", "Indexed"];
        errs.push(FieldError::not_supported(format!("{path}.completionMode"), mode, &supported));
    }
    match mode {
        "Indexed" => indexed(spec, path, errs),
        "" | "NonIndexed" => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(value) = int(spec, field) {
                    let detail = "requires indexed completion mode";
                    errs.push(FieldError::invalid(format!("{path}.{field}"), value, detail));
                }
            }
        }
        _ => {}
    }
    if set(spec, "podFailurePolicy") {
        failure_policy(spec, &format!("{path}.podFailurePolicy.rules"), errs);
    }
    if set(spec, "successPolicy") {
        let path = format!("{path}.successPolicy");
        if mode == "Indexed" {
            success_policy(spec, &format!("{path}.rules"), errs);
        } else {
            let shown = internal::bad("SuccessPolicy", at(spec, "successPolicy"));
            errs.push(FieldError::invalid(path, shown, "requires indexed completion mode"));
        }
    }
    replacement_policy(spec, &format!("{path}.podReplacementPolicy"), errs);
    let template = at(spec, "template");
    podspec::template(template, &format!("{path}.template"), errs);
    let restart = text(at(template, "spec"), "restartPolicy");
    let path = format!("{path}.template.spec.restartPolicy");
    match restart {
        "Always" | "" => {
            errs.push(FieldError::required(path, "valid values: \"OnFailure\", \"Never\""));
        }
        "Never" => {}
        "OnFailure" => {
            if set(spec, "podFailurePolicy") {
                let detail = "only \"Never\" is supported when podFailurePolicy is specified";
                errs.push(FieldError::invalid(path, restart, detail));
            }
        }
        other => errs.push(FieldError::not_supported(path, other, &["OnFailure", "Never"])),
    }
}

fn managed_by(value: &str, path: &str, errs: &mut Errors) {
    super::networking::domain_prefixed_path(path, value, errs);
    if value.len() > MAX_MANAGER {
        errs.push(FieldError::too_long(path, MAX_MANAGER));
    }
}

fn indexed(spec: &Value, path: &str, errs: &mut Errors) {
    let number = |field: &str| int(spec, field);
    let (completions, parallelism, failed) =
        (number("completions"), number("parallelism"), number("maxFailedIndexes"));
    let above = |errs: &mut Errors, field: &str, value: Option<i64>, limit: i64, detail: &str| {
        if let Some(value) = value.filter(|v| *v > limit) {
            errs.push(FieldError::invalid(format!("{path}.{field}"), value, detail));
        }
    };
    if completions.is_none() {
        let detail = "when completion mode is Indexed";
        errs.push(FieldError::required(format!("{path}.completions"), detail));
    }
    let detail = format!("must be less than or equal to {MANY} when completion mode is Indexed");
    above(errs, "parallelism", parallelism, MANY, &detail);
    let limit = completions.unwrap_or(i64::MAX);
    above(errs, "maxFailedIndexes", failed, limit, "must be less than or equal to completions");
    above(errs, "maxFailedIndexes", failed, MANY, &format!("must be less than or equal to {MANY}"));
    if completions.is_some_and(|c| c > MANY) && set(spec, "backoffLimitPerIndex") {
        if failed.is_none() {
            let detail = format!("must be specified when completions is above {MANY}");
            errs.push(FieldError::required(format!("{path}.maxFailedIndexes"), detail));
        }
        let detail = format!(
            "must be less than or equal to {MANY_PARALLEL} when completions are above {MANY} and used with backoff limit per index"
        );
        above(errs, "parallelism", parallelism, MANY_PARALLEL, &detail);
        above(errs, "maxFailedIndexes", failed, MANY_PARALLEL, &detail);
    }
}

/// A value out of a fixed set, with the set in the words for a missing one.
fn choice(value: &str, path: &str, supported: &[&str], errs: &mut Errors) {
    if value.is_empty() {
        let quoted: Vec<String> = supported.iter().map(|s| crate::error::quote(s)).collect();
        errs.push(FieldError::required(path, format!("valid values: [{}]", quoted.join(" "))));
    } else if !supported.contains(&value) {
        errs.push(FieldError::not_supported(path, value, supported));
    }
}

fn failure_policy(spec: &Value, path: &str, errs: &mut Errors) {
    let rules = list(at(spec, "podFailurePolicy"), "rules");
    if rules.len() > MAX_RULES {
        errs.push(FieldError::too_many(path, rules.len(), MAX_RULES));
    }
    let pod = at(at(spec, "template"), "spec");
    let known = |name: &str| {
        list(pod, "containers").iter().chain(list(pod, "initContainers")).any(|c| text(c, "name") == name)
    };
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let action = text(rule, "action");
        let at_action = format!("{path}.action");
        if action == "FailIndex" {
            if !set(spec, "backoffLimitPerIndex") {
                let detail = "requires the backoffLimitPerIndex to be set";
                errs.push(FieldError::invalid(at_action, action, detail));
            }
        } else {
            choice(action, &at_action, &["Count", "FailIndex", "FailJob", "Ignore"], errs);
        }
        let (codes, conditions) = (at(rule, "onExitCodes"), list(rule, "onPodConditions"));
        if !codes.is_null() {
            exit_codes(codes, known, &format!("{path}.onExitCodes"), errs);
        }
        if conditions.len() > MAX_RULES {
            errs.push(FieldError::too_many(format!("{path}.onPodConditions"), conditions.len(), MAX_RULES));
        }
        for (j, pattern) in conditions.iter().enumerate() {
            let path = format!("{path}.onPodConditions[{j}]");
            let kind = text(pattern, "type");
            invalid_each(errs, &format!("{path}.type"), kind, names::qualified_name(kind));
            choice(text(pattern, "status"), &format!("{path}.status"), &["False", "True", "Unknown"], errs);
        }
        let detail = match (codes.is_null(), conditions.is_empty()) {
            (false, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (true, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errs.push(FieldError::invalid(path, BadValue::Omitted, detail));
    }
}

fn exit_codes(codes: &Value, known: impl Fn(&str) -> bool, path: &str, errs: &mut Errors) {
    let operator = text(codes, "operator");
    choice(operator, &format!("{path}.operator"), &["In", "NotIn"], errs);
    let name = text(codes, "containerName");
    if set(codes, "containerName") && !known(name) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errs.push(FieldError::invalid(format!("{path}.containerName"), name, detail));
    }
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    let path = format!("{path}.values");
    if values.is_empty() {
        errs.push(FieldError::invalid(path.as_str(), at(codes, "values"), "at least one value is required"));
    } else if values.len() > MAX_EXIT_CODES {
        errs.push(FieldError::too_many(path.as_str(), values.len(), MAX_EXIT_CODES));
    }
    let mut seen = std::collections::HashSet::new();
    for (j, code) in values.iter().enumerate() {
        if operator == "In" && *code == 0 {
            let detail = "must not be 0 for the In operator";
            errs.push(FieldError::invalid(format!("{path}[{j}]"), *code, detail));
        }
        if !seen.insert(*code) {
            errs.push(FieldError::duplicate(format!("{path}[{j}]"), *code));
        }
    }
    if values.windows(2).any(|pair| pair.first() > pair.last()) {
        errs.push(FieldError::invalid(path, at(codes, "values"), "must be ordered"));
    }
}

fn success_policy(spec: &Value, path: &str, errs: &mut Errors) {
    let rules = list(at(spec, "successPolicy"), "rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errs.push(FieldError::required(path, detail));
    }
    if rules.len() > MAX_RULES {
        errs.push(FieldError::too_many(path, rules.len(), MAX_RULES));
    }
    let completions = int(spec, "completions").unwrap_or_default();
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let indexes = set(rule, "succeededIndexes").then(|| text(rule, "succeededIndexes"));
        if indexes.is_none() && !set(rule, "succeededCount") {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errs.push(FieldError::required(path.as_str(), detail));
        }
        let mut total = 0;
        if let Some(indexes) = indexes {
            let path = format!("{path}.succeededIndexes");
            if indexes.len() > MAX_INDEXES_TEXT {
                errs.push(FieldError::too_long(path.as_str(), MAX_INDEXES_TEXT));
            }
            match indexes::count(indexes, completions) {
                Ok(count) => total = count,
                Err(why) => {
                    let detail = format!("error parsing succeededIndexes: {why}");
                    errs.push(FieldError::invalid(path, indexes, detail));
                }
            }
        }
        if let Some(count) = int(rule, "succeededCount") {
            let path = format!("{path}.succeededCount");
            nonnegative(errs, &path, count);
            if count > completions {
                let detail = format!(
                    "must be less than or equal to {completions} (the number of specified completions)"
                );
                errs.push(FieldError::invalid(path.as_str(), count, detail));
            }
            if indexes.is_some() && count > total {
                let detail = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                errs.push(FieldError::invalid(path, count, detail));
            }
        }
    }
}

fn replacement_policy(spec: &Value, path: &str, errs: &mut Errors) {
    if !set(spec, "podReplacementPolicy") {
        return;
    }
    let policy = text(spec, "podReplacementPolicy");
    let supported: &[&str] =
        if set(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if !supported.contains(&policy) {
        errs.push(FieldError::not_supported(path, policy, supported));
    }
}

/// What may not change of a job.
fn changes(object: &Value, old: &Value, errs: &mut Errors) {
    let (new_spec, old_spec) = (at(object, "spec"), at(old, "spec"));
    completions(new_spec, old_spec, errs);
    let typed = |errs: &mut Errors, field: &str, name: &str| {
        let (new, old) = (at(new_spec, field), at(old_spec, field));
        if !super::same(new, old) {
            let shown = internal::bad(name, new);
            errs.push(FieldError::invalid(format!("spec.{field}"), shown, "field is immutable"));
        }
    };
    typed(errs, "selector", "LabelSelector");
    template(object, old, errs);
    immutable(errs, "spec.completionMode", at(new_spec, "completionMode"), at(old_spec, "completionMode"));
    typed(errs, "podFailurePolicy", "PodFailurePolicy");
    for field in ["backoffLimitPerIndex", "managedBy"] {
        immutable(errs, &format!("spec.{field}"), at(new_spec, field), at(old_spec, field));
    }
    typed(errs, "successPolicy", "SuccessPolicy");
}

/// An indexed job grows and shrinks by both of its numbers at once; other jobs keep theirs.
fn completions(new: &Value, old: &Value, errs: &mut Errors) {
    let (after, before) = (at(new, "completions"), at(old, "completions"));
    if text(new, "completionMode") != "Indexed" {
        immutable(errs, "spec.completions", after, before);
    } else if after != before && !after.is_null() && after != at(new, "parallelism") {
        let detail = "can only be modified in tandem with spec.parallelism";
        errs.push(FieldError::invalid("spec.completions", after, detail));
    }
}

/// The template changes only in what decides where pods run and what they ask for, and only while the job is suspended.
fn template(object: &Value, old: &Value, errs: &mut Errors) {
    let new_template = at(at(object, "spec"), "template");
    let mut old_template = at(at(old, "spec"), "template").clone();
    let status = at(old, "status");
    let suspended = flag(at(old, "spec"), "suspend");
    let waits = list(status, "conditions")
        .iter()
        .any(|c| text(c, "type") == "Suspended" && text(c, "status") == "True");
    let idle = int(status, "active").unwrap_or_default() == 0;
    if suspended && (!set(status, "startTime") || (waits && idle)) {
        movable(&mut old_template, new_template);
    }
    if !super::same(new_template, &old_template) {
        let shown = internal::bad("PodTemplateSpec", new_template);
        errs.push(FieldError::invalid("spec.template", shown, "field is immutable"));
    }
}

/// Takes over from `new` what a suspended job may change.
fn movable(old: &mut Value, new: &Value) {
    let mut take = |path: [&str; 2]| {
        let [part, field] = path;
        let value = at(at(new, part), field).clone();
        let member = crate::object::map_mut(old, part);
        crate::object::set_or_remove(member, field, Some(value).filter(|v| !v.is_null()));
    };
    for field in ["labels", "annotations"] {
        take(["metadata", field]);
    }
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        take(["spec", field]);
    }
    let affinity = at(at(new, "spec"), "affinity");
    let spec = crate::object::map_mut(old, "spec");
    let mut kept = spec.get("affinity").cloned().unwrap_or_default();
    match (affinity.is_null(), kept.as_object_mut()) {
        (_, Some(map)) => {
            let node = Some(at(affinity, "nodeAffinity").clone()).filter(|v| !v.is_null());
            crate::object::set_or_remove(map, "nodeAffinity", node);
        }
        (false, None) => kept = serde_json::json!({"nodeAffinity": at(affinity, "nodeAffinity")}),
        (true, None) => {}
    }
    let gone = affinity.is_null() && super::same(&kept, &Value::Null);
    crate::object::set_or_remove(spec, "affinity", Some(kept).filter(|k| !gone && !k.is_null()));
    for field in ["containers", "initContainers"] {
        let new_list = list(at(new, "spec"), field);
        let old_list = spec.get_mut(field).and_then(Value::as_array_mut);
        for (old, new) in old_list.into_iter().flatten().zip(new_list) {
            old["resources"] = at(new, "resources").clone();
        }
    }
}

/// A new cron job, or one that changes.
pub(super) fn cron_job(object: &Value, old: Option<&Value>, errs: &mut Errors) {
    let spec = at(object, "spec");
    let schedule = text(spec, "schedule");
    if schedule.is_empty() {
        errs.push(FieldError::required("spec.schedule", ""));
    } else {
        let zoned_before = old.is_some_and(|old| text(at(old, "spec"), "schedule").contains("TZ"));
        check_schedule(schedule, zoned_before, set(spec, "timeZone"), errs);
    }
    if let Some(seconds) = int(spec, "startingDeadlineSeconds") {
        nonnegative(errs, "spec.startingDeadlineSeconds", seconds);
    }
    if old.is_none_or(|old| at(at(old, "spec"), "timeZone") != at(spec, "timeZone")) {
        time_zone(spec, errs);
    }
    super::one_of(
        errs,
        "spec.concurrencyPolicy",
        text(spec, "concurrencyPolicy"),
        &["Allow", "Forbid", "Replace"],
    );
    let job = at(at(spec, "jobTemplate"), "spec");
    job_spec(job, "spec.jobTemplate.spec", errs);
    if set(job, "selector") {
        let shown = internal::bad("LabelSelector", at(job, "selector"));
        let detail = "`selector` will be auto-generated";
        errs.push(FieldError::invalid("spec.jobTemplate.spec.selector", shown, detail));
    }
    if flag(job, "manualSelector") {
        let path = "spec.jobTemplate.spec.manualSelector";
        errs.push(FieldError::not_supported(path, Value::Bool(true), &["nil", "false"]));
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        if let Some(limit) = int(spec, field) {
            nonnegative(errs, &format!("spec.{field}"), limit);
        }
    }
    let name = text(at(object, "metadata"), "name");
    // The controller appends eleven letters to the names of jobs.
    if old.is_none() && name.len() > 63 - 11 {
        errs.push(FieldError::invalid("metadata.name", name, "must be no more than 52 characters"));
    }
}

fn check_schedule(schedule: &str, zoned_before: bool, has_zone: bool, errs: &mut Errors) {
    const PATH: &str = "spec.schedule";
    if let Err(why) = cron::check(schedule) {
        errs.push(FieldError::invalid(PATH, schedule, why));
    }
    let zoned = schedule.contains("TZ");
    let detail = match (zoned_before, zoned, has_zone) {
        (true, true, true) => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
        (false, true, _) => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        _ => return,
    };
    errs.push(FieldError::invalid(PATH, schedule, detail));
}

fn time_zone(spec: &Value, errs: &mut Errors) {
    const PATH: &str = "spec.timeZone";
    if !set(spec, "timeZone") {
        return;
    }
    let zone = text(spec, "timeZone");
    let mut bad = |detail: String| errs.push(FieldError::invalid(PATH, zone, detail));
    if zone.is_empty() {
        bad("timeZone must be nil or non-empty string".to_owned());
        return;
    }
    let part = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(allowed)
    };
    if !zone.split('/').all(part) {
        bad(format!("unknown time zone {zone}"));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        bad(detail.to_owned());
    }
    if !cron::known_zone(zone) {
        bad(format!("unknown time zone {zone}"));
    }
}

#[cfg(test)]
mod tests;
