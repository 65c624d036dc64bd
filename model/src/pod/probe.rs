//! The arithmetic of probes: results in, verdict out.

use k8s_openapi::api::core::v1::Probe;
use std::time::Duration;

/// What a probe watches over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Gates the other probes; failing it restarts the container.
    Startup,
    /// Failing it restarts the container.
    Liveness,
    /// Failing it takes the pod out of its services.
    Readiness,
}

impl Purpose {
    /// As events spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// Numbers of a probe with the API's defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Wait after the container's start.
    pub initial_delay: Duration,
    /// Between two probes, at least 1 s.
    pub period: Duration,
    /// For one probe, at least 1 s.
    pub timeout: Duration,
    /// Successes in a row that make a success.
    pub success_threshold: u32,
    /// Failures in a row that make a failure.
    pub failure_threshold: u32,
}

impl Timing {
    /// Of a probe.
    pub fn of(probe: &Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default);
            Duration::from_secs(value.max(least))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        }
    }
}

/// Results in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streak {
    success: bool,
    length: u32,
}

impl Streak {
    /// Counts a result; `Some(verdict)` once the threshold of that result is reached.
    pub fn add(&mut self, success: bool, timing: &Timing) -> Option<bool> {
        if self.success == success {
            self.length = self.length.saturating_add(1);
        } else {
            *self = Self { success, length: 1 };
        }
        let threshold = if success { timing.success_threshold } else { timing.failure_threshold };
        (self.length >= threshold).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn defaults_of_the_api() {
        let t = Timing::of(&Probe::default());
        assert_eq!(t.period, Duration::from_secs(10));
        assert_eq!(t.timeout, Duration::from_secs(1));
        assert_eq!((t.success_threshold, t.failure_threshold), (1, 3));
        assert_eq!(t.initial_delay, Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_verdict_needs_its_threshold_in_a_row(results in proptest::collection::vec(any::<bool>(), 0..60),
                                                  success in 1u32..5, failure in 1u32..5) {
            let timing = Timing { success_threshold: success, failure_threshold: failure,
                ..Timing::of(&Probe::default()) };
            let mut streak = Streak::default();
            for (i, result) in results.iter().enumerate() {
                let verdict = streak.add(*result, &timing);
                let row = results[..=i].iter().rev().take_while(|r| *r == result).count();
                let needed = if *result { success } else { failure } as usize;
                prop_assert_eq!(verdict, (row >= needed).then_some(*result));
            }
        }
    }
}
