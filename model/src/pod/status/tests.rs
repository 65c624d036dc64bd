use super::*;
use serde_json::json;
use std::collections::BTreeMap;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec}),
    )
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

fn exited(code: i32) -> State {
    State::Exited(Exit {
        exit_code: code,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        started_at: at(1),
        finished_at: at(2),
    })
}

fn context() -> Context {
    Context {
        host_ips: vec!["192.0.2.1".parse().unwrap()],
        pod_ips: vec!["10.244.0.2".parse().unwrap()],
        ..Context::default()
    }
}

fn healthy(names: &[&str]) -> Memories {
    names
        .iter()
        .map(|n| ((*n).to_owned(), Memory { started: true, ready: true, ..Memory::default() }))
        .collect()
}

fn summary(status: &PodStatus) -> String {
    let conditions: Vec<String> = status
        .conditions
        .iter()
        .flatten()
        .map(|c| {
            format!(
                "{}={}/{}/{}",
                c.type_,
                c.status,
                c.reason.as_deref().unwrap_or(""),
                c.message.as_deref().unwrap_or("")
            )
        })
        .collect();
    format!("{} {}", status.phase.as_deref().unwrap_or(""), conditions.join(" "))
}

fn of(pod: &Pod, old: &PodStatus, records: Vec<Record>, memories: &Memories, context: &Context) -> PodStatus {
    let observed = Observed { sandbox: Sandbox::Ready, containers: records };
    pod_status(pod, old, &observed, memories, context, at(10))
}

#[test]
fn conditions_from_creation_to_completion_as_recorded() {
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}));
    let old = PodStatus::default();
    let none = Memories::new();
    let first =
        pod_status(&p, &old, &Observed::default(), &none, &Context { pod_ips: vec![], ..context() }, at(0));
    let unready = "Ready=False/ContainersNotReady/containers with unready status: [c] ContainersReady=False/ContainersNotReady/containers with unready status: [c] PodScheduled=True//";
    assert_eq!(
        summary(&first),
        format!("Pending PodReadyToStartContainers=False// Initialized=True// {unready}")
    );
    let waiting =
        first.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    let running = of(&p, &first, vec![record("c", 0, State::Running(at(1)))], &healthy(&["c"]), &context());
    assert_eq!(
        summary(&running),
        "Running PodReadyToStartContainers=True// Initialized=True// Ready=True// ContainersReady=True// PodScheduled=True//"
    );
    assert_eq!(running.start_time, first.start_time);
    let done = of(&p, &running, vec![record("c", 0, exited(0))], &none, &context());
    assert_eq!(
        summary(&done),
        "Running PodReadyToStartContainers=True// Initialized=True/PodCompleted/ Ready=False/PodCompleted/ ContainersReady=False/PodCompleted/ PodScheduled=True//"
    );
    let gone = Context { stopped: true, ending: true, ..context() };
    let last = pod_status(&p, &done, &Observed::default(), &none, &gone, at(11));
    assert_eq!(
        summary(&last),
        "Succeeded PodReadyToStartContainers=False// Initialized=True/PodCompleted/ Ready=False/PodCompleted/ ContainersReady=False/PodCompleted/ PodScheduled=True//"
    );
    assert_eq!(last.container_statuses, done.container_statuses);
    assert_eq!(last.pod_ip.as_deref(), Some("10.244.0.2"));
}

#[test]
fn init_containers_as_recorded() {
    let p =
        pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "main"}]}));
    let status =
        of(&p, &PodStatus::default(), vec![record("i1", 0, exited(0))], &Memories::new(), &context());
    assert!(summary(&status).starts_with(
        "Pending PodReadyToStartContainers=True// Initialized=False/ContainersNotInitialized/containers with incomplete status: [i2] Ready=False/ContainersNotReady/containers with unready status: [main]"
    ), "{}", summary(&status));
    let init = status.init_container_statuses.unwrap();
    assert!(init[0].ready && !init[1].ready);
    assert_eq!(
        init[1].state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("PodInitializing")
    );
}

#[test]
fn a_crash_loop_shows_the_last_end_and_the_reason() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let waiting =
        Memory { waiting: Some(("CrashLoopBackOff".into(), "back-off 10s".into())), ..Memory::default() };
    let memories = BTreeMap::from([("c".to_owned(), waiting)]);
    let status = of(
        &p,
        &PodStatus::default(),
        vec![record("c", 0, exited(2)), record("c", 1, exited(1))],
        &memories,
        &context(),
    );
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 1);
    assert_eq!(
        c.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
        Some("CrashLoopBackOff")
    );
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    // The next attempt runs: its predecessor is the last state.
    let status = of(
        &p,
        &status,
        vec![record("c", 1, exited(1)), record("c", 2, State::Running(at(9)))],
        &healthy(&["c"]),
        &context(),
    );
    let c = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert!(c.ready);
}

#[test]
fn a_start_error_ends_a_never_pod_and_waits_otherwise() {
    let start_error = || {
        record(
            "c",
            0,
            State::Exited(Exit {
                exit_code: 128,
                reason: "StartError".into(),
                message: "no such file".into(),
                started_at: at(1),
                finished_at: at(1),
            }),
        )
    };
    let memory =
        Memory { waiting: Some(("RunContainerError".into(), "no such file".into())), ..Memory::default() };
    let memories = BTreeMap::from([("c".to_owned(), memory)]);
    let p = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    let status = of(&p, &PodStatus::default(), vec![start_error()], &memories, &context());
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert!(summary(&status).contains("Ready=False/PodFailed/"));
    assert_eq!(
        status.container_statuses.as_ref().unwrap()[0]
            .state
            .as_ref()
            .unwrap()
            .terminated
            .as_ref()
            .unwrap()
            .exit_code,
        128
    );
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let status = of(&p, &PodStatus::default(), vec![start_error()], &memories, &context());
    let state = status.container_statuses.as_ref().unwrap()[0].state.clone().unwrap();
    assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("RunContainerError"));
}

#[test]
fn a_deleted_pod_that_was_still_initializing_fails() {
    let p = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "main"}]}));
    let gone = Context { stopped: true, ending: true, ..context() };
    let status = of(&p, &PodStatus::default(), vec![record("i", 0, exited(0))], &Memories::new(), &gone);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert!(
        summary(&status).contains("Ready=False/ContainersNotReady/containers with unready status: [main]")
    );
    assert!(status.container_statuses.unwrap()[0].state.as_ref().unwrap().waiting.is_some());
}

#[test]
fn a_failed_pod_says_why_and_accounts_for_every_container() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let failure = Some(("DeadlineExceeded".to_owned(), "too long".to_owned()));
    let failing = Context { failure: failure.clone(), ending: true, ..context() };
    let status = of(
        &p,
        &PodStatus::default(),
        vec![record("c", 0, State::Running(at(1)))],
        &healthy(&["c"]),
        &failing,
    );
    assert!(summary(&status).contains("Ready=False/PodFailed/") && status.reason.is_none());
    let stopped = Context { failure, ending: true, stopped: true, ..context() };
    let status = of(&p, &PodStatus::default(), vec![], &Memories::new(), &stopped);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    let t = status.container_statuses.unwrap()[0].state.clone().unwrap().terminated.unwrap();
    assert_eq!((t.exit_code, t.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

#[test]
fn a_terminal_phase_is_final() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let old = PodStatus { phase: Some("Failed".into()), ..PodStatus::default() };
    let status = of(&p, &old, vec![record("c", 0, State::Running(at(1)))], &healthy(&["c"]), &context());
    assert_eq!(status.phase.as_deref(), Some("Failed"));
}

#[test]
fn unchanged_observation_gives_an_unchanged_status() {
    let p = pod(
        json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}),
    );
    let records = vec![record("s", 0, State::Running(at(1))), record("c", 1, State::Running(at(2)))];
    let memories = healthy(&["s", "c"]);
    let first = of(&p, &PodStatus::default(), records.clone(), &memories, &context());
    let observed = Observed { sandbox: Sandbox::Ready, containers: records };
    let second = pod_status(&p, &first, &observed, &memories, &context(), at(99));
    assert_eq!(first, second);
}

#[test]
fn readiness_gates_and_foreign_conditions() {
    let mut p =
        pod(json!({"readinessGates": [{"conditionType": "x.test/g"}], "containers": [{"name": "c"}]}));
    let records = vec![record("c", 0, State::Running(at(1)))];
    let status = of(&p, &PodStatus::default(), records.clone(), &healthy(&["c"]), &context());
    assert!(summary(&status).contains("Ready=False/ReadinessGatesNotReady/corresponding condition of pod readiness gate \"x.test/g\" does not exist."));
    p.status = Some(
        serde_json::from_value(json!({"conditions": [{"type": "x.test/g", "status": "True"}]})).unwrap(),
    );
    let status = of(&p, &status, records, &healthy(&["c"]), &context());
    assert!(
        summary(&status).contains(" Ready=True// ")
            && summary(&status).starts_with("Running x.test/g=True// ")
    );
}

#[test]
fn a_replaced_sandbox_keeps_counts_and_last_state() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let first = of(
        &p,
        &PodStatus::default(),
        vec![record("c", 0, State::Running(at(1)))],
        &healthy(&["c"]),
        &context(),
    );
    let between = pod_status(&p, &first, &Observed::default(), &Memories::new(), &context(), at(20));
    let c = &between.container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().reason.as_deref(),
        Some("ContainerStatusUnknown")
    );
    let after = of(&p, &between, vec![record("c", 1, State::Running(at(30)))], &healthy(&["c"]), &context());
    let c = &after.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 1);
    assert!(c.last_state.as_ref().unwrap().terminated.is_some());
}

#[test]
fn a_pod_that_starts_anew_says_so() {
    let p = pod(
        json!({"restartPolicy": "Never", "containers": [{"name": "main"}, {"name": "watch", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]}]}),
    );
    let memories = healthy(&["main", "watch"]);
    let condition = |s: &PodStatus| {
        let all = s.conditions.as_ref().unwrap();
        let last = all.last().unwrap().clone();
        assert_eq!(last.type_, "AllContainersRestarting");
        (last.status, last.reason)
    };
    let runs = || vec![record("main", 0, State::Running(at(1))), record("watch", 0, State::Running(at(1)))];
    let first = of(&p, &PodStatus::default(), runs(), &memories, &context());
    assert_eq!(condition(&first), ("False".into(), None));
    let ended = vec![record("main", 0, exited(0)), record("watch", 0, exited(88))];
    let second = of(&p, &first, ended, &memories, &context());
    assert_eq!(condition(&second), ("True".into(), Some("RestartAllContainersStarted".into())));
    assert_eq!(
        second.phase.as_deref(),
        Some("Running"),
        "though all have ended and none is restarted by itself"
    );
    let third = of(&p, &second, vec![], &memories, &context());
    assert_eq!(condition(&third), ("False".into(), None));
    for container in third.container_statuses.as_ref().unwrap() {
        assert_eq!(container.restart_count, 1);
        let reason = |s: &Option<ContainerState>| {
            let s = s.clone().unwrap();
            s.waiting.and_then(|w| w.reason).or(s.terminated.and_then(|t| t.reason)).unwrap()
        };
        assert_eq!(reason(&container.state), "RestartingAllContainers");
        assert_eq!(reason(&container.last_state), "RestartingAllContainers");
    }
    assert_eq!(third.phase.as_deref(), Some("Running"));
    let again = vec![record("main", 1, State::Running(at(5))), record("watch", 1, State::Running(at(5)))];
    let fourth = of(&p, &third, again, &memories, &context());
    let main = &fourth.container_statuses.as_ref().unwrap()[0];
    assert_eq!((main.restart_count, main.ready), (1, true));
    let last = main.last_state.as_ref().and_then(|s| s.terminated.as_ref()).unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("RestartingAllContainers")));
}

#[test]
fn addresses_are_told_with_the_first_container() {
    let p = pod(json!({"containers": [{"name": "c"}]}));
    let nothing = of(&p, &PodStatus::default(), vec![], &Memories::new(), &context());
    assert_eq!(nothing.pod_ip, None);
    let waits = BTreeMap::from([(
        "c".to_owned(),
        Memory { waiting: Some(("ErrImagePull".into(), "m".into())), ..Memory::default() },
    )]);
    assert!(of(&p, &nothing, vec![], &waits, &context()).pod_ip.is_some());
    let runs = of(&p, &nothing, vec![record("c", 0, State::Running(at(1)))], &Memories::new(), &context());
    assert!(runs.pod_ip.is_some());
    let shared = pod(json!({"hostNetwork": true, "containers": [{"name": "c"}]}));
    assert!(of(&shared, &PodStatus::default(), vec![], &Memories::new(), &context()).pod_ip.is_some());
}

#[test]
fn what_becomes_of_a_pod_that_its_node_ends_is_told_by_its_containers() {
    let p = pod(json!({"restartPolicy": "Always", "containers": [{"name": "a"}]}));
    let why =
        ("Terminated".to_owned(), "Pod was terminated in response to imminent node shutdown.".to_owned());
    let context = Context { evicted: Some(why.clone()), ending: true, stopped: true, ..context() };
    let before = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
    let ended = |code: i32| {
        let seen = Observed { sandbox: Sandbox::Lost, containers: vec![record("a", 0, exited(code))] };
        let status = pod_status(&p, &before, &seen, &healthy(&["a"]), &context, at(3));
        (status.phase.unwrap_or_default(), status.reason, status.message)
    };
    assert_eq!(ended(137), ("Failed".to_owned(), Some(why.0.clone()), Some(why.1.clone())));
    assert_eq!(ended(0), ("Succeeded".to_owned(), None, None));
}
