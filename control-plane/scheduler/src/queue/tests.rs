use super::*;
use proptest::prelude::*;

fn pod(uid: &str) -> Arc<PodInfo> {
    Arc::new(PodInfo { uid: uid.into(), name: uid.into(), ..PodInfo::default() })
}

fn popped(q: &mut Queue, now: Instant) -> Option<String> {
    q.pop(now).map(|queued| queued.pod.uid.to_string())
}

#[test]
fn by_rank_then_age() {
    let now = Instant::now();
    let mut q = Queue::default();
    for (uid, rank) in [("low1", 0), ("high1", -10), ("low2", 0), ("high2", -10)] {
        q.add(pod(uid), rank, false, now);
    }
    for want in ["high1", "high2", "low1", "low2"] {
        assert_eq!(popped(&mut q, now).as_deref(), Some(want));
    }
    assert_eq!(popped(&mut q, now), None);
}

#[test]
fn backoff_doubles_to_its_limit() {
    let seconds = (1..8).map(|attempts| backoff(attempts).as_secs()).collect::<Vec<_>>();
    assert_eq!(seconds, [1, 2, 4, 8, 10, 10, 10]);
    assert_eq!(backoff(u32::MAX), MAX_BACKOFF);
}

#[test]
fn an_unschedulable_pod_waits_for_help_and_then_for_its_time() {
    let t0 = Instant::now();
    let mut q = Queue::default();
    q.add(pod("p"), 0, false, t0);
    let tried = q.pop(t0).expect("pod");
    q.failed(tried, t0);
    assert_eq!(popped(&mut q, t0 + Duration::from_secs(60)), None);
    q.move_if(|_| false, t0);
    assert_eq!(q.depth(), Depth { unschedulable: 1, ..Depth::default() });
    q.move_if(|_| true, t0);
    assert_eq!(q.next_wake(), Some(t0 + INITIAL_BACKOFF));
    assert_eq!(popped(&mut q, t0 + Duration::from_millis(999)), None);
    let tried = q.pop(t0 + INITIAL_BACKOFF).expect("its time has come");
    assert_eq!(tried.attempts, 2);
    q.failed(tried, t0 + INITIAL_BACKOFF);
    // Help that comes after the wait is over takes effect at once.
    q.move_if(|_| true, t0 + Duration::from_secs(30));
    assert!(q.pop(t0 + Duration::from_secs(30)).is_some());
}

#[test]
fn missed_help_is_made_up_for() {
    let t0 = Instant::now();
    let mut q = Queue::default();
    q.add(pod("p"), 0, false, t0);
    let tried = q.pop(t0).expect("pod");
    q.failed(tried, t0);
    assert_eq!(q.next_wake(), Some(t0 + MAX_UNSCHEDULABLE));
    assert!(q.pop(t0 + MAX_UNSCHEDULABLE).is_some());
}

#[test]
fn gates_open_by_an_update() {
    let now = Instant::now();
    let mut q = Queue::default();
    q.add(pod("p"), 0, true, now);
    assert_eq!((popped(&mut q, now), q.depth().gated), (None, 1));
    assert!(q.update(pod("p"), 0, false, false, now));
    assert_eq!(popped(&mut q, now).as_deref(), Some("p"));
    assert!(!q.update(pod("p"), 0, false, true, now), "a pod that is being tried is not in the queue");
}

proptest! {
    /// A pod is never lost and never in two places, whatever happens.
    #[test]
    fn every_pod_is_in_one_place(steps in proptest::collection::vec((0u8..7, 0usize..4, 0u64..20), 0..80)) {
        let names = ["a", "b", "c", "d"];
        let mut now = Instant::now();
        let mut q = Queue::default();
        let mut outside: Vec<Queued> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for (what, p, wait) in steps {
            now += Duration::from_secs(wait);
            match what {
                0 if !known.contains(names[p]) => {
                    q.add(pod(names[p]), p as i64, wait % 3 == 0, now);
                    known.insert(names[p]);
                }
                1 => outside.extend(q.pop(now)),
                2 => if let Some(queued) = outside.pop() { q.failed(queued, now); },
                3 => if let Some(queued) = outside.pop() { q.errored(queued, now); },
                4 => q.move_if(|queued| *queued.pod.uid == *names[p], now),
                5 => { q.update(pod(names[p]), -(p as i64), wait % 2 == 0, true, now); }
                6 if q.remove(names[p]) => { known.remove(names[p]); }
                _ => {}
            }
            let d = q.depth();
            prop_assert_eq!(d.active + d.backoff + d.unschedulable + d.gated, q.pods.len());
            prop_assert_eq!(q.pods.len() + outside.len(), known.len());
            prop_assert!(d.gated <= q.pods.values().filter(|(_, place)| *place == Place::Gated).count());
        }
    }
}
