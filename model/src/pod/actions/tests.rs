use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
        .unwrap()
}

fn record(name: &str, attempt: u32, state: State) -> Record {
    Record {
        name: name.into(),
        attempt,
        container_id: format!("kelp://u_{name}.{attempt}"),
        image: "i".into(),
        image_id: "sha256:0".into(),
        state,
    }
}

fn exited(code: i32, ended: i64) -> State {
    State::Exited(Exit {
        exit_code: code,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        started_at: at(ended - 1),
        finished_at: at(ended),
    })
}

fn ready(containers: Vec<Record>) -> Observed {
    Observed { sandbox: Sandbox::Ready, containers }
}

fn start(name: &str, attempt: u32, after: Option<i64>) -> Action {
    Action::StartContainer { name: name.into(), attempt, after: after.map(at) }
}

fn started() -> Memory {
    Memory { started: true, ready: true, ..Memory::default() }
}

fn plan(pod: &Pod, observed: &Observed, memories: &Memories) -> Plan {
    pod_actions(pod, None, observed, memories, at(100))
}

/// A pod whose container `watch` has all of it start anew with exit code 88.
fn anew() -> Pod {
    pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "main"},
        {"name": "watch", "restartPolicy": "Never", "restartPolicyRules":
            [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]}]}))
}

#[test]
fn one_end_has_all_containers_start_anew() {
    let p = anew();
    let reset = |name: &str| Action::ResetContainer { name: name.into(), attempt: 0 };
    let observed = ready(vec![
        record("i", 0, exited(0, 1)),
        record("watch", 0, exited(88, 50)),
        record("main", 0, State::Running(at(2))),
    ]);
    let first = plan(&p, &observed, &Memories::new());
    assert_eq!(first.actions, [reset("i"), reset("main"), reset("watch")], "what asked for it goes last");
    assert!(!first.finished);
    // Another end does not.
    let ends = vec![
        record("i", 0, exited(0, 1)),
        record("watch", 0, exited(1, 50)),
        record("main", 0, exited(0, 50)),
    ];
    assert!(plan(&p, &ready(ends), &Memories::new()).finished);
    // Cut off after the trigger is gone too: what was told goes on.
    let told: PodStatus = serde_json::from_value(json!({
        "conditions": [{"type": "AllContainersRestarting", "status": "True"}],
        "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": "kelp://u_i.0"}]}))
    .unwrap();
    let left = ready(vec![record("main", 0, State::Running(at(2)))]);
    let resumed = pod_actions(&p, Some(&told), &left, &Memories::new(), at(100));
    assert_eq!(resumed.actions, [reset("main")]);
    let clean = pod_actions(&p, Some(&told), &ready(vec![]), &Memories::new(), at(100));
    assert_eq!(clean.actions, [start("i", 1, None)], "from the first init container, counted as a restart");
}

#[test]
fn a_new_pod_gets_a_sandbox_first() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    assert_eq!(plan(&p, &Observed::default(), &Memories::new()).actions, [Action::CreateSandbox]);
    let created = Observed { sandbox: Sandbox::Created, ..Observed::default() };
    assert_eq!(plan(&p, &created, &Memories::new()).actions, [Action::CreateSandbox]);
}

#[test]
fn main_containers_start_together_and_stay() {
    let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(
        plan(&p, &ready(vec![]), &Memories::new()).actions,
        [start("a", 0, None), start("b", 0, None)]
    );
    let running = ready(vec![record("a", 0, State::Running(at(1))), record("b", 0, State::Running(at(1)))]);
    let memories = BTreeMap::from([("a".into(), started()), ("b".into(), started())]);
    assert_eq!(plan(&p, &running, &memories), Plan::default());
}

#[test]
fn init_containers_run_in_order() {
    let p = pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "m"}]}));
    let none = Memories::new();
    assert_eq!(plan(&p, &ready(vec![]), &none).actions, [start("i1", 0, None)]);
    assert_eq!(plan(&p, &ready(vec![record("i1", 0, State::Running(at(1)))]), &none).actions, []);
    let first = record("i1", 0, exited(0, 5));
    assert_eq!(plan(&p, &ready(vec![first.clone()]), &none).actions, [start("i2", 0, None)]);
    let both = vec![first, record("i2", 0, exited(0, 6))];
    assert_eq!(plan(&p, &ready(both), &none).actions, [start("m", 0, None)]);
}

#[test]
fn a_failed_init_container_restarts_or_ends_the_pod() {
    for (policy, restarts) in [("Always", true), ("OnFailure", true), ("Never", false)] {
        let p = pod(
            json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "m"}]}),
        );
        let plan = plan(&p, &ready(vec![record("i", 0, exited(5, 50))]), &Memories::new());
        assert_eq!(plan.finished, !restarts, "{policy}");
        assert_eq!(plan.actions == [start("i", 1, Some(50))], restarts, "{policy}");
    }
}

#[test]
fn a_sidecar_gates_the_next_container_until_it_started_and_restarts_always() {
    let p = pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "m"}]}));
    let none = Memories::new();
    let running = ready(vec![record("s", 0, State::Running(at(1)))]);
    assert_eq!(plan(&p, &running, &none).actions, []);
    let memories = BTreeMap::from([("s".into(), started())]);
    assert_eq!(plan(&p, &running, &memories).actions, [start("i", 0, None)]);
    // A sidecar that dies while the main container runs is started again, and the main one is left alone.
    let died = ready(vec![
        record("s", 0, exited(0, 90)),
        record("i", 0, exited(0, 5)),
        record("m", 0, State::Running(at(6))),
    ]);
    assert_eq!(plan(&p, &died, &none).actions, [start("s", 1, Some(90))]);
    let over = ready(vec![
        record("s", 0, State::Running(at(1))),
        record("i", 0, exited(0, 5)),
        record("m", 0, exited(0, 9)),
    ]);
    assert!(plan(&p, &over, &memories).finished);
}

#[test]
fn crash_loop() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let first = ready(vec![record("c", 0, exited(1, 100))]);
    assert_eq!(plan(&p, &first, &Memories::new()).actions, [start("c", 1, Some(100))]);
    let b = Backoff(10, 98);
    let memories =
        BTreeMap::from([("c".to_owned(), Memory { backoff: Some(b.into()), ..Memory::default() })]);
    let second = ready(vec![record("c", 0, exited(1, 97)), record("c", 1, exited(1, 99))]);
    let plan = pod_actions(&p, None, &second, &memories, at(100));
    assert_eq!(plan.actions, []);
    assert_eq!(plan.backoffs, [super::BackOff { name: "c".into(), seconds: 10, until: at(109) }]);
    assert_eq!(plan.wake_at, Some(at(109)));
    let plan = pod_actions(&p, None, &second, &memories, at(109));
    assert_eq!(plan.actions, [start("c", 2, Some(99))]);
}

struct Backoff(i64, i64);
impl From<Backoff> for crate::pod::backoff::Backoff {
    fn from(b: Backoff) -> Self {
        Self { delay: jiff::SignedDuration::from_secs(b.0), raised_at: at(b.1) }
    }
}

#[test]
fn finished_pods_by_policy() {
    for (policy, codes, finished) in [
        ("Never", [0, 1], true),
        ("OnFailure", [0, 0], true),
        ("OnFailure", [0, 1], false),
        ("Always", [0, 0], false),
    ] {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
        let observed = ready(vec![record("a", 0, exited(codes[0], 9)), record("b", 0, exited(codes[1], 9))]);
        assert_eq!(plan(&p, &observed, &Memories::new()).finished, finished, "{policy} {codes:?}");
    }
}

#[test]
fn a_lost_sandbox_is_replaced_unless_nothing_would_run() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let lost = Observed { sandbox: Sandbox::Lost, containers: vec![record("c", 0, State::Running(at(1)))] };
    assert_eq!(plan(&p, &lost, &Memories::new()).actions, [Action::RemoveSandbox, Action::CreateSandbox]);
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    assert!(plan(&p, &lost, &Memories::new()).finished);
}

#[test]
fn the_restart_count_survives_the_sandbox() {
    let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [
        {"name": "c", "restartCount": 3, "containerID": "kelp://x", "image": "", "imageID": "", "ready": true}]}))
    .unwrap();
    assert_eq!(next_attempt(Some(&status), &ready(vec![]), "c"), 4);
    assert_eq!(next_attempt(None, &ready(vec![]), "c"), 0);
    assert_eq!(next_attempt(Some(&status), &ready(vec![record("c", 6, exited(0, 1))]), "c"), 7);
}

#[test]
fn an_unhealthy_container_is_killed_once() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let observed = ready(vec![record("c", 2, State::Running(at(1)))]);
    let sick = Memory { unhealthy: Some("why".into()), ..started() };
    let kill = Action::KillContainer { name: "c".into(), attempt: 2, message: "why".into() };
    assert_eq!(plan(&p, &observed, &BTreeMap::from([("c".into(), sick.clone())])).actions, [kill]);
    let dying = Memory { killing: true, ..sick };
    assert_eq!(plan(&p, &observed, &BTreeMap::from([("c".into(), dying)])).actions, []);
}

#[test]
fn a_new_image_restarts_the_container() {
    let observed = ready(vec![record("c", 0, State::Running(at(1)))]);
    let memories = BTreeMap::from([("c".to_owned(), started())]);
    let same = pod(json!({"containers": [{"name": "c", "image": "i"}]}));
    assert_eq!(plan(&same, &observed, &memories).actions, []);
    let other = pod(json!({"containers": [{"name": "c", "image": "j"}]}));
    let message = "Container c definition changed, will be restarted".to_owned();
    let kill = Action::KillContainer { name: "c".into(), attempt: 0, message };
    assert_eq!(plan(&other, &observed, &memories).actions, [kill]);
    let never = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "j"}]}));
    assert_eq!(plan(&never, &observed, &memories).actions, []);
}

#[test]
fn a_running_hook_blocks_the_next_start() {
    let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let observed = ready(vec![record("a", 0, State::Running(at(1)))]);
    let hooked = Memory { in_post_start: true, ..started() };
    assert_eq!(plan(&p, &observed, &BTreeMap::from([("a".into(), hooked)])).actions, []);
    assert_eq!(
        plan(&p, &observed, &BTreeMap::from([("a".into(), started())])).actions,
        [start("b", 0, None)]
    );
}

#[test]
fn retry_time_is_kept() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let waiting = Memory { retry_at: Some(at(110)), ..Memory::default() };
    let memories = BTreeMap::from([("c".to_owned(), waiting)]);
    let plan = pod_actions(&p, None, &ready(vec![]), &memories, at(100));
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(110))));
    assert_eq!(pod_actions(&p, None, &ready(vec![]), &memories, at(110)).actions, [start("c", 0, None)]);
}

#[test]
fn old_attempts_are_forgotten() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let observed = ready(vec![
        record("c", 0, exited(1, 1)),
        record("c", 1, exited(1, 2)),
        record("c", 2, State::Running(at(3))),
    ]);
    let remove = Action::RemoveContainer { name: "c".into(), attempt: 0 };
    assert_eq!(plan(&p, &observed, &Memories::new()).actions, [remove]);
}

fn any_state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Created),
        Just(State::Running(at(10))),
        (0i32..3, 11i64..200).prop_map(|(code, end)| exited(code, end)),
    ]
}

prop_compose! {
    fn any_case()(policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
                  sidecar in any::<bool>(),
                  sandbox in prop_oneof![Just(Sandbox::Absent), Just(Sandbox::Lost), Just(Sandbox::Created), Just(Sandbox::Ready)],
                  records in proptest::collection::vec((0usize..4, 0u32..3, any_state()), 0..8),
                  memory in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 4))
                 -> (Pod, Observed, Memories) {
        let names = ["i1", "i2", "m1", "m2"];
        let mut i1 = json!({"name": "i1"});
        if sidecar { i1["restartPolicy"] = json!("Always"); }
        let p = pod(json!({"restartPolicy": policy, "initContainers": [i1, {"name": "i2"}],
                           "containers": [{"name": "m1"}, {"name": "m2"}]}));
        let mut containers: Vec<Record> = Vec::new();
        for (name, attempt, state) in records {
            if !containers.iter().any(|c| c.name == names[name] && c.attempt == attempt) {
                containers.push(record(names[name], attempt, state));
            }
        }
        let memories = names.iter().zip(memory).map(|(name, (started, hook, killing, sick))| ((*name).to_owned(), Memory {
            started, in_post_start: hook, killing, unhealthy: sick.then(|| "sick".into()), ..Memory::default()
        })).collect();
        (p, Observed { sandbox, containers }, memories)
    }
}

proptest! {
    /// No container is started twice at a time, killed when it does not run, or started in a finished pod; and the
    /// order in which the runtime lists containers does not matter.
    #[test]
    fn plans_are_sound((p, observed, memories) in any_case(), seconds in 0i64..1000) {
        let plan = pod_actions(&p, None, &observed, &memories, at(seconds));
        if plan.finished {
            prop_assert!(plan.actions.is_empty());
        }
        for action in &plan.actions {
            match action {
                Action::StartContainer { name, attempt, .. } => {
                    let same = |a: &&Action| matches!(a, Action::StartContainer { name: n, .. } if n == name);
                    prop_assert_eq!(plan.actions.iter().filter(same).count(), 1);
                    if let Some(latest) = observed.latest(name) {
                        let cut_off = latest.state == State::Created && latest.attempt == *attempt;
                        prop_assert!(cut_off || matches!(latest.state, State::Exited(_)) && *attempt == latest.attempt + 1);
                    }
                    prop_assert_eq!(observed.sandbox, Sandbox::Ready);
                }
                Action::KillContainer { name, attempt, .. } => {
                    let running = observed.latest(name).is_some_and(|r| r.attempt == *attempt && matches!(r.state, State::Running(_)));
                    prop_assert!(running);
                }
                Action::RemoveContainer { name, attempt } => {
                    let record = observed.containers.iter().find(|r| r.name == *name && r.attempt == *attempt);
                    prop_assert!(record.is_some_and(|r| matches!(r.state, State::Exited(_))));
                    prop_assert!(observed.latest(name).is_some_and(|l| l.attempt > *attempt));
                }
                Action::ResetContainer { name, attempt } => {
                    prop_assert!(observed.containers.iter().any(|r| r.name == *name && r.attempt == *attempt));
                    let only = plan.actions.iter().all(|a| matches!(a, Action::ResetContainer { .. }));
                    prop_assert!(only);
                }
                Action::RemoveSandbox => prop_assert_eq!(observed.sandbox, Sandbox::Lost),
                Action::CreateSandbox => prop_assert_ne!(observed.sandbox, Sandbox::Ready),
            }
        }
        let mut reversed = observed.clone();
        reversed.containers.reverse();
        let again = pod_actions(&p, None, &reversed, &memories, at(seconds));
        prop_assert_eq!(plan.finished, again.finished);
        prop_assert_eq!(plan.actions.len(), again.actions.len());
        prop_assert!(plan.actions.iter().all(|a| again.actions.contains(a)));
    }
}
