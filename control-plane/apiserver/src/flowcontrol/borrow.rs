//! Seats move between levels by demand, within their bounds.

use super::config::LevelConfig;
use std::sync::Arc;
use std::time::Instant;

/// How much of the old demand stays when it falls.
const SMOOTHING: f64 = 0.977;
/// A target below this counts as this.
const MIN_TARGET: f64 = 0.001;

/// Seats wanted over a period.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    since: Instant,
    at: Instant,
    now: f64,
    sum: f64,
    squares: f64,
    high: f64,
    /// Smoothed over periods.
    pub(super) smoothed: f64,
    /// Average and highest of the last period.
    pub(super) average: f64,
    pub(super) watermark: usize,
}

impl Demand {
    pub(super) fn new(now: Instant) -> Self {
        Demand {
            since: now,
            at: now,
            now: 0.0,
            sum: 0.0,
            squares: 0.0,
            high: 0.0,
            smoothed: 0.0,
            average: 0.0,
            watermark: 0,
        }
    }

    fn advance(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.sum += self.now * seconds;
        self.squares += self.now * self.now * seconds;
        self.at = now;
    }

    /// From now on so many seats are wanted.
    pub(super) fn set(&mut self, seats: usize, now: Instant) {
        self.advance(now);
        self.now = seats as f64;
        self.high = self.high.max(self.now);
    }

    /// Ends a period.
    pub(super) fn settle(&mut self, now: Instant) {
        self.advance(now);
        let seconds = now.saturating_duration_since(self.since).as_secs_f64();
        let (average, square) = if seconds > 0.0 {
            (self.sum / seconds, self.squares / seconds)
        } else {
            (self.now, self.now * self.now)
        };
        let deviation = (square - average * average).max(0.0).sqrt();
        let envelope = average + deviation;
        self.smoothed = envelope.max(SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope);
        self.average = average;
        self.watermark = self.high.round() as usize;
        (self.since, self.sum, self.squares, self.high) = (now, 0.0, 0.0, self.now);
    }
}

/// What a level may get and would like.
#[derive(Debug, Clone, Copy)]
struct Claim {
    target: f64,
    lower: f64,
    upper: f64,
}

impl Claim {
    fn at(&self, proportion: f64) -> f64 {
        (proportion * self.target.max(MIN_TARGET)).clamp(self.lower, self.upper)
    }
}

/// Divides a sum: every claim gets the same proportion of its target, or the bound that is in the way. The sum must lie
/// between those of the bounds.
fn divide(sum: f64, claims: &[Claim]) -> Vec<f64> {
    let total = |proportion: f64| claims.iter().map(|claim| claim.at(proportion)).sum::<f64>();
    // The total grows with the proportion, piece by piece linearly between the claims' bounds.
    let mut knots: Vec<f64> = claims
        .iter()
        .flat_map(|claim| [claim.lower, claim.upper].map(|bound| bound / claim.target.max(MIN_TARGET)))
        .collect();
    knots.sort_by(f64::total_cmp);
    let (mut low, mut low_total) = (0.0, total(0.0));
    let mut proportion = knots.last().copied().unwrap_or_default();
    for knot in knots {
        let knot_total = total(knot);
        if knot_total >= sum {
            let part =
                if knot_total > low_total { (sum - low_total) / (knot_total - low_total) } else { 1.0 };
            proportion = low + part.clamp(0.0, 1.0) * (knot - low);
            break;
        }
        (low, low_total) = (knot, knot_total);
    }
    claims.iter().map(|claim| claim.at(proportion)).collect()
}

/// Sets the limits of all levels by the demand of the last period.
pub(super) fn adjust(levels: &[Arc<LevelConfig>]) {
    let now = Instant::now();
    let nominal: usize = levels.iter().map(|level| level.nominal).sum();
    let mut remaining = nominal as f64;
    let (mut claims, mut limited) = (Vec::new(), Vec::new());
    let (mut min_sum, mut floor_sum) = (0usize, 0usize);
    for level in levels {
        let demand = level.level.settle(now);
        if level.exempt {
            let seats = level.min.max(demand.watermark);
            remaining -= seats as f64;
            level.level.set_limit(seats);
            continue;
        }
        // What was wanted is kept, up to the nominal limit; what may be lent is not.
        let floor = level.min.max(level.nominal.min(demand.watermark));
        min_sum += level.min;
        floor_sum += floor;
        claims.push(Claim {
            lower: floor as f64,
            upper: level.max.max(floor) as f64,
            target: demand.smoothed.max(floor as f64),
        });
        limited.push((level, floor));
    }
    let shares: Vec<f64> = if remaining <= min_sum as f64 {
        limited.iter().map(|(level, _)| level.min as f64).collect()
    } else if remaining <= floor_sum as f64 {
        let part = (remaining - min_sum as f64) / (floor_sum - min_sum) as f64;
        limited
            .iter()
            .map(|(level, floor)| level.min as f64 + ((floor - level.min) as f64 * part).round())
            .collect()
    } else {
        divide(nominal as f64, &claims)
    };
    for ((level, _), seats) in limited.iter().zip(shares) {
        level.level.set_limit(seats.round() as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        /// The sum is divided, the bounds hold, and who is not at a bound gets the common proportion.
        #[test]
        fn division_is_fair(
            parts in proptest::collection::vec((0.0f64..50.0, 0.0f64..50.0, 0.0f64..50.0), 1..8),
            place in 0.0f64..1.0,
        ) {
            let claims: Vec<Claim> = parts
                .iter()
                .map(|(lower, more, room)| Claim { lower: *lower, target: lower + more, upper: lower + room })
                .collect();
            let lowest: f64 = claims.iter().map(|c| c.lower).sum();
            let highest: f64 = claims.iter().map(|c| c.upper).sum();
            let sum = lowest + place * (highest - lowest);
            let got = divide(sum, &claims);
            prop_assert!((got.iter().sum::<f64>() - sum).abs() < 1e-6);
            let mut proportion: Option<f64> = None;
            for (claim, seats) in claims.iter().zip(&got) {
                prop_assert!(*seats >= claim.lower - 1e-9 && *seats <= claim.upper + 1e-9);
                if *seats > claim.lower + 1e-6 && *seats < claim.upper - 1e-6 {
                    let own = seats / claim.target.max(MIN_TARGET);
                    prop_assert!(proportion.is_none_or(|p| (p - own).abs() < 1e-6 * p.max(1.0)));
                    proportion = Some(own);
                }
            }
        }
    }

    #[test]
    fn demand_is_averaged_over_time() {
        let start = Instant::now();
        let mut demand = Demand::new(start);
        demand.set(10, start);
        demand.set(0, start + Duration::from_secs(5));
        demand.settle(start + Duration::from_secs(10));
        assert!((demand.average - 5.0).abs() < 1e-9);
        assert_eq!(demand.watermark, 10);
        assert!((demand.smoothed - 10.0).abs() < 1e-9);
        demand.settle(start + Duration::from_secs(20));
        assert_eq!(demand.watermark, 0);
        assert!((demand.smoothed - 9.77).abs() < 1e-9);
    }
}
