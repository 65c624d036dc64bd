use super::*;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn parsed(
    hard: &[(&str, &str)],
    soft: &[(&str, &str)],
    grace: &[(&str, &str)],
    reclaim: &[(&str, &str)],
) -> Result<Vec<Threshold>, String> {
    let (hard, soft, grace, reclaim) = (map(hard), map(soft), map(grace), map(reclaim));
    parse(&Config { hard: &hard, soft: &soft, soft_grace_period: &grace, minimum_reclaim: &reclaim })
}

fn quantity(text: &str) -> Quantity {
    Quantity::parse(text).unwrap()
}

fn observed(signal: Signal, available: &str, capacity: &str) -> Observations {
    [(signal, Observation { available: quantity(available), capacity: quantity(capacity) })].into()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

#[test]
fn configurations_and_what_is_wrong_with_them() {
    let found = parsed(
        &[("memory.available", "100Mi"), ("nodefs.available", "10%"), ("nodefs.inodesFree", "0%")],
        &[("memory.available", "300Mi")],
        &[("memory.available", "1m30s")],
        &[("memory.available", "50Mi")],
    )
    .unwrap();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].value, Amount::Quantity(quantity("100Mi")));
    assert_eq!(found[1].value.of(&quantity("1000")), quantity("100"));
    assert_eq!(found[2].grace_period, GoDuration::from_secs(90));
    assert!(found.iter().filter(|t| t.signal == Signal::MemoryAvailable).all(|t| t.min_reclaim.is_some()));
    for (hard, soft, grace, reclaim, error) in [
        (("cpu", "1"), None, None, None, "unsupported eviction signal cpu"),
        (
            ("memory.available", "0"),
            None,
            None,
            None,
            "eviction threshold memory.available must be positive: 0",
        ),
        (
            ("pid.available", "-1%"),
            None,
            None,
            None,
            "eviction percentage threshold pid.available must be >= 0%: -1%",
        ),
        (
            ("pid.available", "101%"),
            None,
            None,
            None,
            "eviction percentage threshold pid.available must be <= 100%: 101%",
        ),
        (
            ("pid.available", "1"),
            Some(("memory.available", "1")),
            None,
            None,
            "grace period must be specified for the soft eviction threshold memory.available",
        ),
        (
            ("pid.available", "1"),
            None,
            Some(("pid.available", "5")),
            None,
            "time: missing unit in duration \"5\"",
        ),
        (
            ("pid.available", "1"),
            None,
            None,
            Some(("pid.available", "-1")),
            "negative eviction minimum reclaim specified for pid.available",
        ),
    ] {
        let list = |o: Option<(&'static str, &'static str)>| o.into_iter().collect::<Vec<_>>();
        let result = parsed(&[hard], &list(soft), &list(grace), &list(reclaim));
        assert_eq!(result.unwrap_err(), error);
    }
}

#[test]
fn containers_file_system_follows_that_which_holds_it() {
    let base = parsed(
        &[("nodefs.available", "10%"), ("imagefs.available", "15%"), ("memory.available", "1Mi")],
        &[],
        &[],
        &[],
    )
    .unwrap();
    let part = |layout, enforces| {
        let all = complete(&base, layout, enforces);
        let container = all.iter().find(|t| t.signal == Signal::ContainerFsAvailable).map(|t| t.value);
        (container, all.iter().any(|t| t.signal == Signal::AllocatableMemoryAvailable))
    };
    assert_eq!(part(Layout::Single, true), (Some(Amount::Part(0.1)), true));
    assert_eq!(part(Layout::SplitImageFs, false), (Some(Amount::Part(0.1)), false));
    assert_eq!(part(Layout::ImageFs, false), (Some(Amount::Part(0.15)), false));
}

#[test]
fn a_soft_threshold_needs_its_time_and_a_condition_outlives_its_cause() {
    let thresholds =
        parsed(&[], &[("memory.available", "300Mi")], &[("memory.available", "30s")], &[]).unwrap();
    let transition = GoDuration::from_secs(300);
    let mut state = State::default();
    let mut look = |seconds, available| {
        let driving = state.observe(
            &thresholds,
            &observed(Signal::MemoryAvailable, available, "1Gi"),
            transition,
            at(seconds),
        );
        (driving.len(), !state.conditions().is_empty())
    };
    assert_eq!(look(0, "400Mi"), (0, false));
    assert_eq!(look(10, "200Mi"), (0, true));
    assert_eq!(look(30, "200Mi"), (0, true));
    assert_eq!(look(35, "400Mi"), (0, true));
    assert_eq!(look(36, "200Mi"), (0, true), "the time begins anew");
    assert_eq!(look(66, "200Mi"), (1, true));
    assert_eq!(look(67, "400Mi"), (0, true));
    assert_eq!(look(365, "400Mi"), (0, true));
    assert_eq!(look(366, "400Mi"), (0, false));
}

#[test]
fn a_shortage_is_over_when_enough_was_given_back() {
    let thresholds =
        parsed(&[("nodefs.available", "1Gi")], &[], &[], &[("nodefs.available", "500Mi")]).unwrap();
    let mut state = State::default();
    let mut look = |seconds, available: &str| {
        let now = observed(Signal::NodeFsAvailable, available, "10Gi");
        state.observe(&thresholds, &now, GoDuration::from_secs(1), at(seconds)).len()
    };
    assert_eq!(look(0, "1200Mi"), 0, "not met yet: the reclaim does not count");
    assert_eq!(look(1, "1000Mi"), 1);
    assert_eq!(look(2, "1200Mi"), 1, "above the threshold, but not by 500Mi");
    assert_eq!(look(3, "1524Mi"), 0);
    assert_eq!(look(4, "1200Mi"), 0);
}

fn pod(value: Value) -> Arc<Pod> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn candidate(name: &str, priority: i32, request: &str, memory: Option<u64>) -> Candidate {
    let requests = if request.is_empty() { json!({}) } else { json!({"memory": request}) };
    let spec =
        json!({"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]});
    Candidate {
        pod: pod(json!({"metadata": {"name": name, "uid": name}, "spec": spec})),
        usage: memory.map(|memory| PodUse {
            memory,
            processes: memory,
            containers: vec![ContainerUse { name: "c".into(), memory, rootfs: (memory, 3), logs: (1024, 1) }],
            volumes: (0, 0),
        }),
    }
}

fn order(mut list: Vec<Candidate>, signal: Signal) -> Vec<String> {
    rank(&mut list, signal, Layout::Single);
    list.iter().map(|c| c.pod.metadata.name.clone().unwrap_or_default()).collect()
}

#[test]
fn pods_are_ranked_by_use_over_request_then_priority_then_use() {
    let mib = 1 << 20;
    let list = vec![
        candidate("within-low", -5, "100Mi", Some(90 * mib)),
        candidate("over-high", 100, "10Mi", Some(50 * mib)),
        candidate("over-low-little", 0, "10Mi", Some(20 * mib)),
        candidate("over-low-much", 0, "", Some(30 * mib)),
        candidate("unknown", 1000, "10Mi", None),
    ];
    assert_eq!(
        order(list.clone(), Signal::MemoryAvailable),
        ["unknown", "over-low-much", "over-low-little", "over-high", "within-low"]
    );
    assert_eq!(
        order(list, Signal::PidAvailable),
        ["within-low", "over-low-much", "over-low-little", "over-high", "unknown"]
    );
}

#[test]
fn texts_of_upstream() {
    let thresholds = parsed(&[("memory.available", "100Mi")], &[], &[], &[]).unwrap();
    let now = observed(Signal::MemoryAvailable, "91184Ki", "1Gi");
    let victim = candidate("p", 0, "10Mi", Some(20 << 20));
    let details = message(&victim, &thresholds[0], &thresholds, &now);
    assert_eq!(
        details.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 91184Ki. \
         Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "
    );
    assert_eq!(
        details.annotations,
        [
            ("offending_containers", "c".to_owned()),
            ("offending_containers_usage", "20Mi".to_owned()),
            ("starved_resource", "memory".to_owned())
        ]
    );
    let disk = parsed(&[("nodefs.available", "10%")], &[], &[], &[]).unwrap();
    let now = observed(Signal::NodeFsAvailable, "1Mi", "100Mi");
    assert_eq!(
        message(&victim, &disk[0], &disk, &now).message,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 10Mi, available: 1Mi. \
         Container c was using 20481Ki, request is 0, has larger consumption of ephemeral-storage. "
    );
}

#[test]
fn who_is_taken_under_pressure() {
    let memory = BTreeSet::from([Condition::Memory]);
    let both = BTreeSet::from([Condition::Memory, Condition::Disk]);
    let plain = |extra: Value| {
        let mut spec = json!({"containers": [{"name": "c"}]});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        pod(json!({"metadata": {"name": "p"}, "spec": spec}))
    };
    let best_effort = plain(json!({}));
    assert_eq!(admit(&best_effort, &BTreeSet::new()), Ok(()));
    let refused = admit(&best_effort, &memory).unwrap_err();
    assert_eq!(
        (refused.reason.as_str(), refused.message.as_str()),
        ("Evicted", "The node had condition: [MemoryPressure]. ")
    );
    let tolerant =
        plain(json!({"tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
    assert_eq!(admit(&tolerant, &memory), Ok(()));
    assert!(admit(&tolerant, &both).is_err());
    let critical = plain(json!({"priority": 2_000_000_000}));
    assert_eq!(admit(&critical, &both), Ok(()));
    let burstable = plain(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m"}}}]}));
    assert_eq!(admit(&burstable, &memory), Ok(()));
}

proptest! {
    /// The order does not depend on the one the pods came in.
    #[test]
    fn ranking_is_an_order(
        pods in proptest::collection::vec((-3i32..3, 0u64..4, proptest::option::of(0u64..6)), 1..12),
        seed in any::<u64>(),
    ) {
        let list: Vec<Candidate> = pods
            .iter()
            .enumerate()
            .map(|(i, (priority, request, memory))| candidate(&i.to_string(), *priority, &request.to_string(), *memory))
            .collect();
        let mut shuffled = list.clone();
        let shift = usize::try_from(seed % list.len() as u64).unwrap();
        shuffled.rotate_left(shift);
        let key = |names: Vec<String>| -> Vec<(i32, u64, Option<u64>)> {
            names.iter().map(|n| pods[n.parse::<usize>().unwrap()]).collect()
        };
        let comparable = |list: Vec<(i32, u64, Option<u64>)>| -> Vec<(bool, bool, i32)> {
            list.into_iter().map(|(p, r, m)| (m.is_none(), m.is_some_and(|m| m > r), p)).collect()
        };
        let (a, b) = (key(order(list, Signal::MemoryAvailable)), key(order(shuffled, Signal::MemoryAvailable)));
        prop_assert_eq!(comparable(a.clone()), comparable(b));
        for pair in a.windows(2) {
            let rank = |(priority, request, memory): (i32, u64, Option<u64>)| match memory {
                None => (0, 0, priority, 0),
                Some(m) => (1, i32::from(m <= request), priority, i128::from(request) - i128::from(m)),
            };
            prop_assert!(rank(pair[0]) <= rank(pair[1]), "{pair:?}");
        }
    }

    /// A hard threshold drives evictions exactly while it is met or its reclaim is owed; a condition holds for as long as
    /// the transition says.
    #[test]
    fn states_follow_what_is_seen(seen in proptest::collection::vec((1i64..40, 0i64..200), 1..30)) {
        let thresholds = parsed(&[("memory.available", "100")], &[], &[], &[("memory.available", "20")]).unwrap();
        let transition = 60;
        let (mut state, mut now, mut last, mut owed) = (State::default(), 0, None::<i64>, false);
        for (step, available) in seen {
            now += step;
            let look = observed(Signal::MemoryAvailable, &available.to_string(), "1000");
            let driving = state.observe(&thresholds, &look, GoDuration::from_secs(transition), at(now));
            owed = available < 100 || (owed && available < 120);
            prop_assert_eq!(!driving.is_empty(), owed);
            if owed {
                last = Some(now);
            }
            let pressure = last.is_some_and(|l| now - l < transition);
            prop_assert_eq!(!state.conditions().is_empty(), pressure);
        }
        prop_assert!(at(now).duration_since(at(0)) >= SignedDuration::ZERO);
    }
}
