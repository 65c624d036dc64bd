use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn set(size: i32, available: i32) -> Replicas {
    Replicas { size, available, max_replicas: None }
}

fn bounds(replicas: i32, surge: i32, unavailable: i32) -> Bounds {
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Bounds { replicas, surge, unavailable: unavailable.min(replicas), rolling: true }
}

#[test]
fn percentages_round_surge_up_and_unavailability_down() {
    let deployment = |replicas: i32,
                      surge: serde_json::Value,
                      unavailable: serde_json::Value|
     -> Deployment {
        serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    };
    let of = |replicas, surge: &str, unavailable: &str| {
        let b = Bounds::of(&deployment(replicas, surge.into(), unavailable.into()));
        (b.surge, b.unavailable)
    };
    assert_eq!(of(3, "25%", "25%"), (1, 0));
    assert_eq!(of(8, "25%", "25%"), (2, 2));
    assert_eq!(of(10, "0%", "0%"), (0, 1));
    assert_eq!(of(0, "25%", "25%"), (0, 0));
    let counts = Bounds::of(&deployment(2, 0.into(), 5.into()));
    assert_eq!((counts.surge, counts.unavailable), (0, 2));
}

/// The sequence recorded for eight replicas at 25 % each: one new pod becomes ready at a time.
#[test]
fn eight_replicas_at_a_quarter() {
    let b = bounds(8, 2, 2);
    assert_eq!(next_rolling_step(b, &set(0, 0), &[set(8, 8)]), Step::ResizeNew(2));
    assert_eq!(next_rolling_step(b, &set(2, 0), &[set(8, 8)]), Step::ShrinkOld(vec![(0, 6)]));
    assert_eq!(next_rolling_step(b, &set(2, 0), &[set(6, 8)]), Step::ResizeNew(4));
    assert_eq!(next_rolling_step(b, &set(4, 0), &[set(6, 6)]), Step::Wait);
    assert_eq!(next_rolling_step(b, &set(4, 1), &[set(6, 6)]), Step::ShrinkOld(vec![(0, 5)]));
}

#[test]
fn replicas_that_are_unavailable_anyway_go_first() {
    let step = next_rolling_step(bounds(10, 0, 2), &set(0, 0), &[set(5, 3), set(5, 5)]);
    assert_eq!(step, Step::ShrinkOld(vec![(0, 3)]));
}

#[test]
fn recreate_waits_for_old_pods() {
    let b = Bounds { replicas: 3, surge: 0, unavailable: 0, rolling: false };
    assert_eq!(recreate_step(b, None, &[set(3, 3)], true), Step::ShrinkOld(vec![(0, 0)]));
    assert_eq!(recreate_step(b, None, &[set(0, 1)], true), Step::Wait);
    assert_eq!(recreate_step(b, None, &[set(0, 0)], false), Step::ResizeNew(3));
    assert_eq!(recreate_step(b, Some(3), &[set(0, 0)], false), Step::Wait);
}

#[test]
fn resizing_shares_in_proportion() {
    let with_max = |size| Replicas { size, available: size, max_replicas: Some(13) };
    let b = bounds(15, 3, 2);
    assert_eq!(proportional_sizes(b, &[with_max(8), with_max(5)], 13), [11, 7]);
    assert_eq!(proportional_sizes(bounds(0, 3, 2), &[with_max(8), with_max(5)], 13), [0, 0]);
    assert_eq!(active_or_latest(&[set(0, 0), set(0, 0)], Some(0)), Some(0));
    assert_eq!(active_or_latest(&[set(0, 0), set(2, 0)], Some(0)), Some(1));
    assert_eq!(active_or_latest(&[set(1, 0), set(2, 0)], Some(0)), None);
}

#[test]
fn a_template_used_again_keeps_its_history() {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    };
    let deployment = map(&[(REVISION, "2"), (CHANGE_CAUSE, "back to one")]);
    let first = next_annotations(&deployment, &BTreeMap::new(), 1);
    assert_eq!(first, map(&[(REVISION, "1"), (CHANGE_CAUSE, "back to one")]));
    let again = next_annotations(&deployment, &first, 3);
    assert_eq!(again, map(&[(REVISION, "3"), (REVISION_HISTORY, "1"), (CHANGE_CAUSE, "back to one")]));
    assert_eq!(next_annotations(&deployment, &again, 3), again);
    let later = next_annotations(&deployment, &again, 5);
    assert_eq!(later[REVISION_HISTORY], "1,3");
}

/// What happens in the world between two steps.
#[derive(Debug, Clone)]
enum Happening {
    /// A pod of set `n` becomes available / stops being so.
    Ready(usize),
    Unready(usize),
    /// The controller takes a step.
    Step,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        3 => (0usize..4).prop_map(Happening::Ready),
        1 => (0usize..4).prop_map(Happening::Unready),
        4 => Just(Happening::Step),
    ];
    prop::collection::vec(one, 1..60)
}

/// Writes the sizes of a step; a set that shrinks loses unavailable pods first, as the replicaset controller does.
fn apply(step: &Step, sets: &mut [Replicas]) {
    let mut resize = |i: usize, size: i32| {
        sets[i].size = size;
        sets[i].available = sets[i].available.min(size);
    };
    match step {
        Step::ResizeNew(size) => resize(0, *size),
        Step::ShrinkOld(changes) => changes.iter().for_each(|(i, size)| resize(i + 1, *size)),
        Step::Wait => {}
    }
}

proptest! {
    /// From any state within the bounds no step makes the total larger than allowed nor, by its own doing, leaves
    /// fewer available than allowed, whatever becomes ready or fails in between.
    #[test]
    fn no_step_leaves_the_bounds(
        replicas in 0i32..12, surge in 0i32..5, unavailable in 0i32..5,
        start in prop::collection::vec((0i32..6, 0i32..6), 4), events in happenings(),
    ) {
        let b = bounds(replicas, surge, unavailable);
        let mut sets: Vec<Replicas> = start.iter().map(|(s, a)| set(*s, (*a).min(*s))).collect();
        for event in events {
            match event {
                Happening::Ready(i) if sets[i].available < sets[i].size => sets[i].available += 1,
                Happening::Unready(i) if sets[i].available > 0 => sets[i].available -= 1,
                Happening::Step => {
                    let total = |s: &[Replicas]| s.iter().map(|r| r.size).sum::<i32>();
                    let available = |s: &[Replicas]| s.iter().map(|r| r.available).sum::<i32>();
                    let (total_before, available_before) = (total(&sets), available(&sets));
                    let step = next_rolling_step(b, &sets[0], &sets[1..]);
                    // Shrinking a set that exceeds the deployment's size is the user's wish, not the rollout's.
                    let user_shrink = sets[0].size > b.replicas;
                    apply(&step, &mut sets);
                    prop_assert!(sets.iter().all(|r| r.size >= 0));
                    prop_assert!(total(&sets) <= total_before.max(b.max_total()), "{step:?}");
                    if !user_shrink {
                        prop_assert!(available(&sets) >= available_before.min(b.min_available()), "{step:?}");
                    }
                }
                _ => {}
            }
        }
    }

    /// When every new pod becomes available, the rollout ends with the new set alone at full size.
    #[test]
    fn a_rollout_ends(
        replicas in 0i32..12, surge in 0i32..5, unavailable in 0i32..5,
        old in prop::collection::vec((0i32..6, 0i32..6), 0..4), late in any::<bool>(),
    ) {
        let b = bounds(replicas, surge, unavailable);
        let mut sets = vec![set(0, 0)];
        sets.extend(old.iter().map(|(s, a)| set(*s, (*a).min(*s))));
        for _ in 0..200 {
            let step = next_rolling_step(b, &sets[0], &sets[1..]);
            // Either order: pods ready before or after the controller's next step.
            if !late { sets[0].available = sets[0].size; }
            apply(&step, &mut sets);
            if late || step == Step::Wait { sets[0].available = sets[0].size; }
        }
        prop_assert_eq!(&sets[0], &set(replicas, replicas));
        prop_assert!(sets[1..].iter().all(|r| r.size == 0));
    }

    /// Sharing a change of size gives out exactly the change, as far as sets can shrink.
    #[test]
    fn shares_add_up(
        replicas in 0i32..40, surge in 0i32..6,
        sizes in prop::collection::vec((1i32..20, prop::option::of(1i32..40)), 1..5),
    ) {
        let b = bounds(replicas, surge, 1);
        let sets: Vec<Replicas> =
            sizes.iter().map(|(size, max)| Replicas { size: *size, available: 0, max_replicas: *max }).collect();
        let out = proportional_sizes(b, &sets, replicas);
        let wanted = if replicas == 0 { 0 } else { b.max_total() };
        prop_assert!(out.iter().all(|s| *s >= 0));
        prop_assert!(out.iter().sum::<i32>() >= wanted);
        if wanted >= sets.iter().map(|s| s.size).sum() {
            prop_assert_eq!(out.iter().sum::<i32>(), wanted);
        }
    }
}
