use serde_json::json;

use super::*;

fn template(policy: &str) -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": policy, "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 30, "containers": [{"name": "c", "image": "i",
            "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}]}})
}

fn job_of(spec: Value) -> Value {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"a": "b"}});
    spec["manualSelector"] = json!(true);
    if spec.get("template").is_none() {
        spec["template"] = template("Never");
    }
    json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec})
}

fn errors(check: impl FnOnce(&mut Errors)) -> Vec<String> {
    let mut errs = Errors::new();
    check(&mut errs);
    errs.iter().map(ToString::to_string).collect()
}

fn created(spec: Value) -> Vec<String> {
    errors(|errs| job(&job_of(spec), None, errs))
}

#[test]
fn jobs() {
    assert!(created(json!({"completions": 1, "parallelism": 1})).is_empty());
    assert_eq!(
        created(json!({"completionMode": "Indexed", "maxFailedIndexes": 2, "managedBy": "me"})),
        [
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            "spec.completions: Required value: when completion mode is Indexed",
        ]
    );
    assert_eq!(
        created(json!({"backoffLimitPerIndex": 1, "completionMode": "X", "podReplacementPolicy": "Never"})),
        [
            "spec.completionMode: Unsupported value: \"X\": supported values: \"NonIndexed\", \"Indexed\"",
            "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"",
        ]
    );
    assert_eq!(
        created(json!({"backoffLimitPerIndex": 1, "successPolicy": {"rules": []}})),
        [
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            "spec.successPolicy: Invalid value: {\"Rules\":[]}: requires indexed completion mode",
        ]
    );
    assert_eq!(
        created(json!({"template": template("Always")})),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    assert_eq!(
        created(json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [
            {}, {"succeededIndexes": "0-9"}, {"succeededIndexes": "0,1", "succeededCount": 3}]}})),
        [
            "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            "spec.successPolicy.rules[1].succeededIndexes: Invalid value: \"0-9\": error parsing succeededIndexes: too large index: \"9\"",
            "spec.successPolicy.rules[2].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
        ]
    );
    let mut generated = job_of(json!({}));
    generated["spec"]["manualSelector"] = json!(false);
    let found = errors(|errs| job(&generated, None, errs));
    assert_eq!(found[0], "spec.template.metadata.labels[controller-uid]: Required value: must be 'u'");
    assert_eq!(
        found[4],
        "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` not auto-generated"
    );
}

#[test]
fn failure_policies() {
    assert_eq!(
        created(json!({"podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
            {"action": "", "onExitCodes": {"operator": "In", "containerName": "x", "values": [3, 0, 3]}},
            {"action": "FailIndex", "onPodConditions": [{"type": "A", "status": ""}]},
            {"action": "Count"}]}})),
        [
            "spec.podFailurePolicy.rules[0].action: Required value: valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template",
            "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
            "spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Duplicate value: 3",
            "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered",
            "spec.podFailurePolicy.rules[1].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
            "spec.podFailurePolicy.rules[1].onPodConditions[0].status: Required value: valid values: [\"False\" \"True\" \"Unknown\"]",
            "spec.podFailurePolicy.rules[2]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ]
    );
}

#[test]
fn what_may_change_of_a_job() {
    let old = job_of(json!({"completions": 2, "parallelism": 2, "suspend": true}));
    let changed = |old: &Value, change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        errors(|errs| job(&new, Some(old), errs))
    };
    assert_eq!(
        changed(&old, &|j| j["spec"]["completions"] = json!(3)),
        ["spec.completions: Invalid value: 3: field is immutable"]
    );
    assert!(changed(&old, &|j| j["spec"]["parallelism"] = json!(3)).is_empty());
    assert!(changed(&old, &|j| j["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"})).is_empty());
    assert!(
        changed(&old, &|j| {
            j["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {}});
        })
        .is_empty()
    );
    let mut running = old.clone();
    running["spec"]["suspend"] = json!(false);
    for old in [&running, &old] {
        let found = changed(old, &|j| j["spec"]["template"]["spec"]["hostname"] = json!("h"));
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with(
                "spec.template: Invalid value: {\"labels\":{\"a\":\"b\"},\"Spec\":{\"Volumes\":"
            )
        );
        assert!(found[0].ends_with(": field is immutable"));
    }
    let moved = changed(&running, &|j| j["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"}));
    assert_eq!(moved.len(), 1);
    let indexed = job_of(json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2}));
    let grown = changed(&indexed, &|j| {
        j["spec"]["completions"] = json!(3);
        j["spec"]["parallelism"] = json!(3);
    });
    assert!(grown.is_empty(), "{grown:?}");
    assert_eq!(
        changed(&indexed, &|j| j["spec"]["completions"] = json!(3)),
        ["spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"]
    );
}

#[test]
fn cron_jobs() {
    let object = |spec: Value| {
        let mut spec = spec;
        spec["jobTemplate"] = json!({"spec": {"template": template("Never")}});
        json!({"metadata": {"name": "c"}, "spec": spec})
    };
    let check = |spec: Value, old: Option<Value>| {
        let old = old.map(object);
        errors(|errs| cron_job(&object(spec), old.as_ref(), errs))
    };
    let good = |schedule: &str| json!({"schedule": schedule, "concurrencyPolicy": "Allow"});
    assert!(check(good("*/5 * * * *"), None).is_empty());
    assert_eq!(
        check(good("TZ=UTC 0 0 * * *"), None),
        [
            "spec.schedule: Invalid value: \"TZ=UTC 0 0 * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        ]
    );
    assert!(check(good("TZ=UTC 0 0 * * *"), Some(good("TZ=UTC 1 0 * * *"))).is_empty());
    let zone = |zone: &str| {
        let mut spec = good("@daily");
        spec["timeZone"] = json!(zone);
        check(spec, None)
    };
    assert!(zone("Europe/Berlin").is_empty());
    assert_eq!(zone(""), ["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"]);
    assert_eq!(zone("a b"), ["spec.timeZone: Invalid value: \"a b\": unknown time zone a b"]);
    assert_eq!(
        zone("Local"),
        [
            "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
        ]
    );
    assert_eq!(
        check(json!({"schedule": "", "concurrencyPolicy": "Never", "failedJobsHistoryLimit": -1}), None),
        [
            "spec.schedule: Required value",
            "spec.concurrencyPolicy: Unsupported value: \"Never\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
        ]
    );
}

#[test]
fn statuses() {
    let check = |old: Value, new: Value| {
        let with = |status: Value| {
            let mut job = job_of(json!({"completions": 2, "parallelism": 1}));
            job["status"] = status;
            job
        };
        errors(|errs| status::update(&with(new), &with(old), errs))
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True"});
    assert!(check(json!({}), json!({"active": 1, "startTime": "2026-01-01T00:00:00Z"})).is_empty());
    assert_eq!(
        check(json!({}), json!({"conditions": [condition("Complete")], "active": 1, "ready": 2})),
        [
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            "status.completionTime: Required value: completionTime is required for Complete jobs",
            "status.active: Invalid value: 1: active>0 is invalid for finished job",
            "status.startTime: Required value: startTime is required for finished job",
            "status.ready: Invalid value: 2: cannot set more ready pods than active",
        ]
    );
    let failed = json!({"conditions": [condition("Failed"), condition("FailureTarget")], "failed": 2,
        "startTime": "2026-01-01T00:00:00Z"});
    assert!(check(json!({"startTime": "2026-01-01T00:00:00Z"}), failed.clone()).is_empty());
    assert_eq!(
        check(failed, json!({"startTime": "2026-01-01T00:00:00Z"})),
        [
            "status.conditions: Invalid value: cannot disable the terminal Failed=True condition",
            "status.conditions: Invalid value: cannot disable the terminal FailureTarget=True condition",
            "status.failed: Invalid value: 0: cannot decrease the failed counter",
        ]
    );
}
