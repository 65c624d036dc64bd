//! Growing delays between restarts of a container and between attempts to get an image.

use jiff::{SignedDuration, Timestamp};

/// First delay.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);
/// Time after the last restart at which the delay starts anew: twice the longest delay.
pub const RESET: SignedDuration = SignedDuration::from_secs(600);

/// Back-off of one container. The first restart is immediate; each one after it waits [`INITIAL`], doubled up to
/// [`MAX`]; a container that ran longer than [`RESET`] since its last start begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Present delay.
    pub delay: SignedDuration,
    /// When the delay was last raised, which is when the container was last started.
    pub raised_at: Timestamp,
}

/// Until when a container that ended at `ended_at` must wait; `None` when it may start now.
pub fn blocked_until(backoff: Option<&Backoff>, ended_at: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let backoff = backoff?;
    if ended_at.duration_since(backoff.raised_at) > RESET {
        return None;
    }
    let until = ended_at.checked_add(backoff.delay).ok()?;
    (now < until).then_some(until)
}

/// The back-off after a restart at `now` of a container that ended at `ended_at`.
pub fn raise(backoff: Option<&Backoff>, ended_at: Timestamp, now: Timestamp) -> Backoff {
    let delay = match backoff {
        Some(b) if ended_at.duration_since(b.raised_at) <= RESET => (b.delay * 2).min(MAX),
        _ => INITIAL,
    };
    Backoff { delay, raised_at: now }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn delays_of_a_container_that_crashes_at_once() {
        let mut backoff = None;
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let ended = at(now);
            let until = blocked_until(backoff.as_ref(), ended, ended).unwrap_or(ended);
            let wait = until.duration_since(ended).as_secs();
            waits.push(wait);
            now += wait;
            backoff = Some(raise(backoff.as_ref(), ended, at(now)));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_resets() {
        let b = Backoff { delay: MAX, raised_at: at(0) };
        assert!(blocked_until(Some(&b), at(600), at(600)).is_some());
        assert!(blocked_until(Some(&b), at(601), at(601)).is_none());
        assert_eq!(raise(Some(&b), at(601), at(601)).delay, INITIAL);
    }

    proptest! {
        #[test]
        fn the_wait_is_bounded_and_ends(delay in 10i64..=300, raised in 0i64..10_000, ran in 0i64..10_000) {
            let b = Backoff { delay: SignedDuration::from_secs(delay), raised_at: at(raised) };
            let ended = at(raised + ran);
            if let Some(until) = blocked_until(Some(&b), ended, ended) {
                prop_assert!(until.duration_since(ended) <= MAX);
                prop_assert_eq!(blocked_until(Some(&b), ended, until), None);
            }
            let next = raise(Some(&b), ended, ended);
            prop_assert!(next.delay >= INITIAL && next.delay <= MAX);
        }
    }
}
