//! The status of a job: what may not be said together, and what may not be taken back.

use serde_json::Value;

use super::super::{Errors, at, flag, int, internal, list, nonnegative, same, set, text};
use super::indexes;
use crate::error::{BadValue, FieldError};

/// A job's status before or after a change.
struct View<'a> {
    spec: &'a Value,
    status: &'a Value,
}

impl<'a> View<'a> {
    fn of(job: &'a Value) -> Self {
        View { spec: at(job, "spec"), status: at(job, "status") }
    }

    fn holds(&self, kind: &str) -> bool {
        list(self.status, "conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    }

    fn complete(&self) -> bool {
        self.holds("Complete")
    }

    fn failed(&self) -> bool {
        self.holds("Failed")
    }

    fn finished(&self) -> bool {
        self.complete() || self.failed()
    }

    fn count(&self, field: &str) -> i64 {
        int(self.status, field).unwrap_or_default()
    }

    fn time(&self, field: &str) -> Option<jiff::Timestamp> {
        text(self.status, field).parse().ok()
    }
}

/// Validates a status that replaces another. Rules about what did not change are not applied, so that a status that
/// was once accepted can be left behind.
pub(in super::super) fn update(new: &Value, old: &Value, errs: &mut Errors) {
    let (new, old) = (View::of(new), View::of(old));
    counts(&new, errs);
    conditions(&new, &old, errs);
    times(&new, &old, errs);
    finished(&new, &old, errs);
    index_lists(&new, &old, errs);
    kept(&new, &old, errs);
}

fn conditions_error(errs: &mut Errors, detail: impl Into<String>) {
    errs.push(FieldError::invalid("status.conditions", BadValue::Omitted, detail));
}

fn counts(new: &View<'_>, errs: &mut Errors) {
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        nonnegative(errs, &format!("status.{field}"), new.count(field));
    }
    let uncounted = at(new.status, "uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for field in ["succeeded", "failed"] {
        for (i, uid) in super::super::texts(uncounted, field).enumerate() {
            let path = format!("status.uncountedTerminatedPods.{field}[{i}]");
            if uid.is_empty() {
                errs.push(FieldError::invalid(path, uid, "must not be empty"));
            } else if seen.contains(&uid) {
                errs.push(FieldError::duplicate(path, uid));
            } else {
                seen.push(uid);
            }
        }
    }
}

fn changed<T: PartialEq>(new: T, old: T) -> bool {
    new != old
}

fn conditions(new: &View<'_>, old: &View<'_>, errs: &mut Errors) {
    let completed = changed(new.complete(), old.complete());
    if (completed || changed(new.failed(), old.failed())) && new.complete() && new.failed() {
        conditions_error(errs, "cannot set Complete=True and Failed=true conditions");
    }
    let target = |view: &View<'_>| view.holds("FailureTarget");
    if (completed || changed(target(new), target(old))) && new.complete() && target(new) {
        conditions_error(errs, "cannot set Complete=True and FailureTarget=true conditions");
    }
    let succeeds = |view: &View<'_>| view.holds("SuccessCriteriaMet");
    let failed_indexes = !same(at(new.status, "failedIndexes"), at(old.status, "failedIndexes"));
    if (changed(new.failed(), old.failed()) || failed_indexes) && new.failed() && !target(new) {
        conditions_error(errs, "cannot set Failed=True condition without the FailureTarget=true condition");
    }
    if (completed || changed(succeeds(new), succeeds(old))) && new.complete() && !succeeds(new) {
        conditions_error(
            errs,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        );
    }
    if succeeds(new) && new.failed() {
        conditions_error(errs, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    }
    if succeeds(new) && target(new) {
        conditions_error(errs, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    }
    if set(new.spec, "successPolicy") && !succeeds(new) && new.complete() {
        conditions_error(
            errs,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        );
    }
}

fn times(new: &View<'_>, old: &View<'_>, errs: &mut Errors) {
    const DONE: &str = "status.completionTime";
    let differs = |field: &str| at(new.status, field) != at(old.status, field);
    let (start, end) = (new.time("startTime"), new.time("completionTime"));
    let shown = at(new.status, "completionTime");
    if changed(new.complete(), old.complete()) || differs("completionTime") {
        if end.is_some() && !new.complete() {
            let detail = "cannot set completionTime when there is no Complete=True condition";
            errs.push(FieldError::invalid(DONE, shown, detail));
        }
        if end.is_none() && new.complete() {
            errs.push(FieldError::required(DONE, "completionTime is required for Complete jobs"));
        }
    }
    if (differs("startTime") || differs("completionTime")) && start.zip(end).is_some_and(|(s, e)| e < s) {
        errs.push(FieldError::invalid(DONE, shown, "completionTime cannot be set before startTime"));
    }
}

fn finished(new: &View<'_>, old: &View<'_>, errs: &mut Errors) {
    let finishes = changed(new.finished(), old.finished());
    let differs = |field: &str| at(new.status, field) != at(old.status, field);
    if (finishes || differs("active")) && new.finished() && new.count("active") > 0 {
        let detail = "active>0 is invalid for finished job";
        errs.push(FieldError::invalid("status.active", new.count("active"), detail));
    }
    if (finishes || differs("startTime")) && new.finished() && !set(new.status, "startTime") {
        errs.push(FieldError::required("status.startTime", "startTime is required for finished job"));
    }
    let uncounted = at(new.status, "uncountedTerminatedPods");
    let some = !list(uncounted, "failed").is_empty() || !list(uncounted, "succeeded").is_empty();
    let moved = !same(uncounted, at(old.status, "uncountedTerminatedPods"));
    if (finishes || moved) && new.finished() && some {
        let shown = internal::bad("UncountedTerminatedPods", uncounted);
        let detail = "uncountedTerminatedPods needs to be empty for finished job";
        errs.push(FieldError::invalid("status.uncountedTerminatedPods", shown, detail));
    }
    if (finishes || differs("terminating")) && new.finished() && new.count("terminating") > 0 {
        let detail = "terminating>0 is invalid for finished job";
        errs.push(FieldError::invalid("status.terminating", new.count("terminating"), detail));
    }
    let ready = new.count("ready");
    if (differs("ready") || differs("active")) && ready > new.count("active") {
        errs.push(FieldError::invalid("status.ready", ready, "cannot set more ready pods than active"));
    }
}

fn index_lists(new: &View<'_>, old: &View<'_>, errs: &mut Errors) {
    let completed = text(new.status, "completedIndexes");
    let failed = set(new.status, "failedIndexes").then(|| text(new.status, "failedIndexes"));
    let completed_changed = completed != text(old.status, "completedIndexes");
    let failed_changed = at(new.status, "failedIndexes") != at(old.status, "failedIndexes");
    let completions = int(new.spec, "completions");
    let per_index = set(new.spec, "backoffLimitPerIndex");
    let mut check = |field: &str, list: &str| {
        if let Some(Err(why)) = completions.map(|c| indexes::count(list, c)) {
            let detail = format!("error parsing {field}: {why}");
            errs.push(FieldError::invalid(format!("status.{field}"), list, detail));
        }
    };
    if completed_changed {
        check("completedIndexes", completed);
    }
    if let Some(failed) = failed.filter(|_| failed_changed && per_index) {
        check("failedIndexes", failed);
    }
    if completed_changed && !completed.is_empty() && text(new.spec, "completionMode") != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errs.push(FieldError::invalid("status.completedIndexes", completed, detail));
    }
    let Some(failed) = failed else { return };
    if failed_changed && !per_index {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errs.push(FieldError::invalid("status.failedIndexes", failed, detail));
    }
    if (failed_changed || completed_changed)
        && let Some(index) = completions.and_then(|c| indexes::overlap(completed, failed, c))
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        errs.push(FieldError::invalid("status.failedIndexes", failed, detail));
    }
}

/// What may not be taken back.
fn kept(new: &View<'_>, old: &View<'_>, errs: &mut Errors) {
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if old.holds(kind) && !new.holds(kind) {
            conditions_error(errs, format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    let scalable = int(new.spec, "completions") == int(new.spec, "parallelism");
    for (field, fixed) in [("failed", true), ("succeeded", !scalable)] {
        if fixed && new.count(field) < old.count(field) {
            let detail = format!("cannot decrease the {field} counter");
            errs.push(FieldError::invalid(format!("status.{field}"), new.count(field), detail));
        }
    }
    let (done, before) = (at(new.status, "completionTime"), at(old.status, "completionTime"));
    if !done.is_null() && !before.is_null() && done != before {
        let detail = "completionTime cannot be mutated";
        errs.push(FieldError::invalid("status.completionTime", done, detail));
    }
    let started = at(old.status, "startTime");
    if !started.is_null() && at(new.status, "startTime") != started && !flag(new.spec, "suspend") {
        let detail = "startTime cannot be removed for unsuspended job";
        errs.push(FieldError::required("status.startTime", detail));
    }
    if old.holds("SuccessCriteriaMet") && !new.holds("SuccessCriteriaMet") {
        conditions_error(errs, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if old.complete() && !old.holds("SuccessCriteriaMet") && new.holds("SuccessCriteriaMet") {
        conditions_error(
            errs,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}
