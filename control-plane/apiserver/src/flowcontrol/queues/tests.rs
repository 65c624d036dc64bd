use super::*;
use proptest::prelude::*;

const SMALL: Work = Work { initial: 1, last: 0, after: Duration::ZERO };

fn queued(limit: usize, queues: usize, hand: usize, length: usize) -> Queues<u32> {
    let mut out = Queues::new(limit, Instant::now());
    out.configure(Response::Queue { queues, hand, length });
    out
}

proptest! {
    #[test]
    fn hands_have_different_cards(hash in any::<u64>(), deck in 1usize..200, hand in 1usize..16) {
        let dealt = deal(hash, deck, hand);
        let mut cards: Vec<usize> = dealt.cards.iter().take(dealt.count).copied().collect();
        prop_assert_eq!(cards.len(), hand.min(deck));
        prop_assert!(cards.iter().all(|card| *card < deck));
        cards.sort_unstable();
        cards.dedup();
        prop_assert_eq!(cards.len(), hand.min(deck));
    }

    /// Whatever comes and goes, the limit holds, nobody is lost, and who waits runs once there is room.
    #[test]
    fn seats_are_never_too_many_and_all_come_back(
        limit in 1usize..5,
        steps in proptest::collection::vec((0u8..4, any::<u64>(), 1usize..4), 0..80),
    ) {
        let mut queues = queued(limit, 8, 3, 4);
        let mut now = Instant::now();
        let mut running: Vec<(Option<usize>, Work)> = Vec::new();
        let mut waiting: Vec<(usize, u64)> = Vec::new();
        let mut next = 0u32;
        for (step, flow, seats) in steps {
            now += Duration::from_millis(1);
            let work = Work { initial: seats, ..SMALL };
            match step {
                0 | 1 => {
                    next += 1;
                    match queues.start(&work, flow, now, || next) {
                        Start::Now(queue) => running.push((queue, work)),
                        Start::Later(queue, id) => waiting.push((queue, id)),
                        Start::No(reason) => prop_assert_eq!(reason, Reason::QueueFull),
                    }
                }
                2 => {
                    if let Some((queue, work)) = running.pop() {
                        queues.finish(queue, &work, Duration::from_millis(2), now);
                        queues.release(queue, work.seats(), now);
                    }
                }
                _ => {
                    if let Some((queue, id)) = waiting.pop() {
                        // It may run already.
                        queues.forget(queue, id, now);
                    }
                }
            }
            while let Some((work, queue, _)) = queues.dispatch(now) {
                running.push((Some(queue), work));
            }
            let used: usize = running.iter().map(|(_, work)| work.seats()).sum();
            prop_assert_eq!(queues.in_use, used);
            prop_assert_eq!(queues.executing, running.len());
            prop_assert!(used <= limit || running.len() == 1);
        }
        while let Some((queue, work)) = running.pop() {
            now += Duration::from_millis(1);
            queues.finish(queue, &work, Duration::from_millis(2), now);
            queues.release(queue, work.seats(), now);
            while let Some((work, queue, _)) = queues.dispatch(now) {
                running.push((Some(queue), work));
            }
        }
        prop_assert_eq!((queues.in_use, queues.executing, queues.waiting, queues.waiting_seats), (0, 0, 0, 0));
    }
}

#[test]
fn a_flow_that_floods_does_not_starve_another() {
    let mut queues = queued(1, 2, 1, 1000);
    let mut now = Instant::now();
    // With a hand of one and two queues, even and odd hashes are in different queues.
    assert_eq!(queues.start(&SMALL, 0, now, || 0), Start::Now(Some(0)));
    for _ in 0..100 {
        assert!(matches!(queues.start(&SMALL, 0, now, || 0), Start::Later(0, _)));
    }
    for _ in 0..10 {
        assert!(matches!(queues.start(&SMALL, 1, now, || 1), Start::Later(1, _)));
    }
    let mut order = Vec::new();
    let mut queue = 0;
    for _ in 0..20 {
        now += Duration::from_millis(3);
        queues.finish(Some(queue), &SMALL, Duration::from_millis(3), now);
        queues.release(Some(queue), 1, now);
        let (_, index, flow) = queues.dispatch(now).expect("somebody waits");
        queue = index;
        order.push(flow);
    }
    // The small flow is served in turn with the large one.
    let small = order.iter().filter(|flow| **flow == 1).count();
    assert_eq!(small, 10, "{order:?}");
}

#[test]
fn full_levels_say_why() {
    let now = Instant::now();
    let mut reject: Queues<u32> = Queues::new(1, now);
    assert_eq!(reject.start(&SMALL, 0, now, || 0), Start::Now(None));
    assert_eq!(reject.start(&SMALL, 0, now, || 0), Start::No(Reason::ConcurrencyLimit));
    let mut queues = queued(1, 1, 1, 1);
    assert_eq!(queues.start(&SMALL, 0, now, || 0), Start::Now(Some(0)));
    assert!(matches!(queues.start(&SMALL, 0, now, || 0), Start::Later(0, _)));
    assert_eq!(queues.start(&SMALL, 0, now, || 0), Start::No(Reason::QueueFull));
    let mut exempt: Queues<u32> = Queues::new(0, now);
    exempt.configure(Response::Exempt);
    for _ in 0..10 {
        assert_eq!(exempt.start(&SMALL, 0, now, || 0), Start::Now(None));
    }
}
