use super::*;
use crate::auth::UserInfo;
use crate::request::{Query, RequestInfo};
use serde_json::{Value, json};

fn schema(name: &str, level: &str, precedence: i64, rules: Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")},
        "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
            "distinguisherMethod": {"type": "ByUser"}, "rules": rules}})
}

fn rules(subject: Value, resources: Value) -> Value {
    json!([{"subjects": [subject], "resourceRules": resources}])
}

fn everything() -> Value {
    json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}])
}

fn level(name: &str, shares: i64, limit: Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "limitResponse": limit}}})
}

fn queue(queues: i64, length: i64) -> Value {
    json!({"type": "Queue", "queuing": {"queues": queues, "handSize": 1, "queueLengthLimit": length}})
}

fn control(seats: usize, schemas: &[Value], levels: &[Value]) -> FlowControl {
    let config = Config::digest(seats, schemas, levels, None);
    FlowControl {
        config: RwLock::new(Arc::new(config)),
        seats,
        start: Instant::now(),
        due: AtomicI64::new(i64::MAX),
        following: AtomicBool::new(true),
    }
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    let mut user = UserInfo::anonymous();
    user.name = name.to_owned();
    user.groups = groups.iter().map(|g| (*g).to_owned()).collect();
    user
}

fn sorted(control: &FlowControl, user: &UserInfo, method: &str, path: &str) -> String {
    let method = http::Method::from_bytes(method.as_bytes()).expect("method");
    let info = RequestInfo::parse(&method, path, &Query::default());
    control.sort(&Asked { user, info: &info }).schema.name.clone()
}

#[test]
fn requests_are_sorted_by_precedence() {
    let pods = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"],
        "namespaces": ["a"]}]);
    let account = json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "a", "name": "*"}});
    let paths = json!([{"subjects": [{"kind": "Group", "group": {"name": "*"}}],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]}]}]);
    let schemas = [
        schema("late", "catch-all", 900, rules(json!({"kind": "User", "user": {"name": "*"}}), everything())),
        schema("pods", "catch-all", 100, rules(json!({"kind": "User", "user": {"name": "bob"}}), pods)),
        schema("accounts", "catch-all", 100, rules(account, everything())),
        schema("paths", "catch-all", 50, paths),
        schema("dangling", "missing", 1, rules(json!({"kind": "User", "user": {"name": "*"}}), everything())),
    ];
    let control = control(600, &schemas, &[]);
    let bob = user("bob", &["system:authenticated"]);
    let of = |who: &UserInfo, method: &str, path: &str| sorted(&control, who, method, path);
    assert_eq!(of(&bob, "GET", "/api/v1/namespaces/a/pods"), "pods");
    assert_eq!(of(&bob, "GET", "/api/v1/namespaces/a/pods/x/log"), "pods");
    assert_eq!(of(&bob, "GET", "/api/v1/namespaces/a/pods/x/exec"), "late");
    assert_eq!(of(&bob, "GET", "/api/v1/namespaces/b/pods"), "late");
    assert_eq!(of(&bob, "GET", "/api/v1/pods"), "late");
    assert_eq!(of(&bob, "DELETE", "/api/v1/namespaces/a/pods/x"), "late");
    let account = user("system:serviceaccount:a:x", &["system:authenticated"]);
    assert_eq!(of(&account, "GET", "/api/v1/namespaces/a/pods"), "accounts");
    let other = user("system:serviceaccount:ab:x", &["system:authenticated"]);
    assert_eq!(of(&other, "GET", "/api/v1/namespaces/a/pods"), "late");
    assert_eq!(of(&bob, "GET", "/healthz"), "paths");
    assert_eq!(of(&bob, "GET", "/apis/apps"), "paths");
    assert_eq!(of(&bob, "GET", "/apisx"), "catch-all");
    assert_eq!(of(&user("root", &["system:masters"]), "GET", "/api/v1/pods"), "exempt");
}

#[test]
fn limits_follow_shares_and_bounds() {
    let mut lending = level("lender", 40, queue(64, 50));
    lending["spec"]["limited"]["lendablePercent"] = 50.into();
    lending["spec"]["limited"]["borrowingLimitPercent"] = 25.into();
    let control = control(600, &[], &[lending, level("other", 15, queue(4, 1))]);
    let config = control.config.read().clone();
    let of = |name: &str| {
        let level = config.levels.iter().find(|level| level.name == name).expect("level");
        (level.nominal, level.min, level.max, level.max_seats)
    };
    assert_eq!(of("lender"), (400, 200, 500, 60));
    assert_eq!(of("other"), (150, 150, 750, 23));
    assert_eq!(of("catch-all"), (50, 50, 650, 0));
    assert_eq!(of("exempt"), (0, 0, 600, 0));
}

#[tokio::test]
async fn full_levels_queue_then_reject_and_others_go_on() {
    let small = rules(json!({"kind": "User", "user": {"name": "bob"}}), everything());
    let control =
        Arc::new(control(11, &[schema("small", "small", 10, small)], &[level("small", 1, queue(1, 1))]));
    let info = RequestInfo::parse(&http::Method::GET, "/api/v1/namespaces/a/pods/x", &Query::default());
    let bob = user("bob", &["system:authenticated"]);
    let sorted = control.sort(&Asked { user: &bob, info: &info });
    assert_eq!(sorted.classified.level, "uid-of-small");
    let limit = control.config.read().levels.iter().find(|l| l.name == "small").map(|l| l.nominal);
    assert_eq!(limit, Some(2));
    let soon = Duration::from_millis(30);
    let long = Duration::from_secs(20);
    let first = control.seat(&sorted, &Estimate::Small, soon).await.expect("a seat");
    let _second = control.seat(&sorted, &Estimate::Small, soon).await.expect("a seat");
    // One waits in vain; while it waits, the next finds the queue full.
    let (waits, refused) = tokio::join!(
        control.seat(&sorted, &Estimate::Small, soon),
        control.seat(&sorted, &Estimate::Small, long)
    );
    assert!(waits.is_err());
    assert_eq!(refused.err().map(|r| r.retry_after), Some(1));
    // One that waits gets the seat of one that ends; one that gives up leaves no trace.
    let gone = control.seat(&sorted, &Estimate::Small, long);
    assert!(tokio::time::timeout(soon, gone).await.is_err());
    let waiting = tokio::spawn({
        let control = control.clone();
        let info = info.clone();
        async move {
            let bob = user("bob", &["system:authenticated"]);
            let sorted = control.sort(&Asked { user: &bob, info: &info });
            control.seat(&sorted, &Estimate::Small, Duration::from_secs(20)).await.map(drop).is_ok()
        }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(first);
    assert!(waiting.await.expect("task"));
    // Others have their own seats; masters always have one.
    let eve = user("eve", &["system:authenticated"]);
    let sorted = control.sort(&Asked { user: &eve, info: &info });
    assert!(control.seat(&sorted, &Estimate::Small, soon).await.is_ok());
    let root = user("root", &["system:masters"]);
    let sorted = control.sort(&Asked { user: &root, info: &info });
    let mut seats = Vec::new();
    for _ in 0..50 {
        seats.push(control.seat(&sorted, &Estimate::Small, soon).await.expect("exempt"));
    }
    let mut text = String::new();
    control.render(&mut text);
    for line in [
        "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"exempt\",priority_level=\"exempt\"} 50",
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"small\",priority_level=\"small\",reason=\"queue-full\"} 1",
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"small\",priority_level=\"small\",reason=\"time-out\"} 1",
        "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"small\",priority_level=\"small\",reason=\"cancelled\"} 1",
        "apiserver_flowcontrol_current_executing_seats{priority_level=\"exempt\"} 50",
        "apiserver_flowcontrol_current_executing_seats{priority_level=\"small\"} 1",
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"small\"} 2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn seats_are_borrowed_where_they_are_wanted() {
    let small = rules(json!({"kind": "User", "user": {"name": "bob"}}), everything());
    let mut lender = level("lender", 9, queue(1, 1));
    lender["spec"]["limited"]["lendablePercent"] = 100.into();
    let control = control(
        20,
        &[schema("small", "small", 10, small)],
        &[level("small", 1, queue(1, 100)), lender, level("catch-all", 0, json!({"type": "Reject"}))],
    );
    let info = RequestInfo::parse(&http::Method::GET, "/api/v1/namespaces/a/pods/x", &Query::default());
    let bob = user("bob", &["system:authenticated"]);
    let sorted = control.sort(&Asked { user: &bob, info: &info });
    let long = Duration::from_secs(20);
    let mut seats = Vec::new();
    for _ in 0..2 {
        seats.push(control.seat(&sorted, &Estimate::Small, long).await.expect("a seat"));
    }
    let mut waiting: Vec<_> =
        (0..10).map(|_| Box::pin(control.seat(&sorted, &Estimate::Small, long))).collect();
    for one in &mut waiting {
        assert!(futures::poll!(one.as_mut()).is_pending());
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    borrow::adjust(&control.config.read().clone().levels);
    for one in &mut waiting {
        assert!(matches!(futures::poll!(one.as_mut()), std::task::Poll::Ready(Ok(_))));
    }
}
