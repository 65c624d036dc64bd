//! Rows of jobs and cron jobs.

use super::*;
use crate::object::{int_at, list_at, str_at};

const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");
const SELECTOR: Column = wide(
    "Selector",
    "A label query over pods that should match the pod count. Normally, the system sets this field for you. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
);

/// Jobs.
pub static JOB_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Status", "string", "Status of the job."),
        shown(
            "Completions",
            "string",
            "The number of pods which reached phase Succeeded. The value increases monotonically for a given spec. However, it may decrease in reaction to scale down of elastic indexed jobs.",
        ),
        shown("Duration", "string", "Time required to complete the job."),
        age_column(),
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: job,
    conditions: no_conditions,
};

/// CronJobs.
pub static CRON_JOB_TABLE: TableSpec = TableSpec {
    columns: &[
        name_column(),
        shown("Schedule", "string", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
        shown(
            "Timezone",
            "string",
            "The time zone name for the given schedule, see https://en.wikipedia.org/wiki/List_of_tz_database_time_zones. If not specified, this will default to the time zone of the kube-controller-manager process. The set of valid time zone names and the time zone offset is loaded from the system-wide time zone database by the API server during CronJob validation and the controller manager during execution. If no system-wide time zone database can be found a bundled version of the database is used instead. If the time zone name becomes invalid during the lifetime of a CronJob or due to a change in host configuration, the controller will stop creating new new Jobs and will create a system event with the reason UnknownTimeZone. More information can be found in https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#time-zones",
        ),
        shown(
            "Suspend",
            "boolean",
            "This flag tells the controller to suspend subsequent executions, it does not apply to already started executions.  Defaults to false.",
        ),
        shown("Active", "integer", "A list of pointers to currently running jobs."),
        shown(
            "Last Schedule",
            "string",
            "Information when was the last time the job was successfully scheduled.",
        ),
        age_column(),
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: cron_job,
    conditions: no_conditions,
};

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &[&str]| int_at(object, path);
    let succeeded = count(&["status", "succeeded"]).unwrap_or_default();
    let completions = match (count(&["spec", "completions"]), count(&["spec", "parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |field: &str| str_at(object, &["status", field]).parse::<Timestamp>().ok();
    let duration = match (time("startTime"), time("completionTime")) {
        (Some(start), end) => human(end.unwrap_or(now).as_second() - start.as_second()),
        (None, _) => String::new(),
    };
    let holds = |kind: &str| {
        list_at(object, &["status", "conditions"])
            .iter()
            .find(|c| str_at(c, &["type"]) == kind)
            .is_some_and(|c| str_at(c, &["status"]) == "True")
    };
    let status = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if crate::object::is_deleting(object) {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    };
    let (names, images) = containers(object, &["spec", "template", "spec", "containers"]);
    vec![
        meta(object, "name").into(),
        status.into(),
        completions.into(),
        duration.into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "selector"])).into(),
    ]
}

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let path = ["spec", "jobTemplate", "spec", "template", "spec", "containers"];
    let (names, images) = containers(object, &path);
    let last = match str_at(object, &["status", "lastScheduleTime"]) {
        "" => "<none>".to_owned(),
        time => since(time, now),
    };
    let zone = get(object, &["spec", "timeZone"]).and_then(Value::as_str).unwrap_or("<none>");
    let suspend = match get(object, &["spec", "suspend"]).and_then(Value::as_bool) {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    vec![
        meta(object, "name").into(),
        str_at(object, &["spec", "schedule"]).into(),
        zone.into(),
        suspend.into(),
        list_at(object, &["status", "active"]).len().into(),
        last.into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(get(object, &["spec", "jobTemplate", "spec", "selector"])).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("time");
        let cells = |spec: Value, status: Value| {
            job(&json!({"metadata": {"name": "j"}, "spec": spec, "status": status}), now)
        };
        let running = cells(json!({"completions": 3}), json!({"startTime": "2026-01-01T00:00:00Z"}));
        assert_eq!(running[1..4], [json!("Running"), json!("0/3"), json!("60m")]);
        let done = cells(
            json!({"parallelism": 2}),
            json!({"succeeded": 1, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:09Z",
                "conditions": [{"type": "Complete", "status": "True"}]}),
        );
        assert_eq!(done[1..4], [json!("Complete"), json!("1/1 of 2"), json!("9s")]);
        let waiting = cells(json!({}), json!({"conditions": [{"type": "Suspended", "status": "True"}]}));
        assert_eq!(waiting[1..4], [json!("Suspended"), json!("0/1"), json!("")]);
        assert_eq!(waiting[7], "<none>");
    }

    #[test]
    fn cron_jobs() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().expect("time");
        let object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "@daily", "suspend": false},
            "status": {"active": [{}], "lastScheduleTime": "2026-01-01T00:59:00Z"}});
        let cells = cron_job(&object, now);
        assert_eq!(cells[1..6], [json!("@daily"), json!("<none>"), json!("False"), json!(1), json!("60s")]);
    }
}
