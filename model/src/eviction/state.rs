//! What a node remembers from one look to the next.

use super::{Condition, Observations, Threshold};
use crate::duration::GoDuration;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Shortages and since when they are there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// When each threshold that is met was met first.
    first_met: Vec<(Threshold, Timestamp)>,
    /// When each condition was last caused.
    last_caused: BTreeMap<Condition, Timestamp>,
    /// Thresholds that drive evictions and whose shortage is not over.
    driving: Vec<Threshold>,
    conditions: BTreeSet<Condition>,
}

/// Thresholds that are met; with `reclaim`, those that are not left behind by as much as they ask for.
pub(super) fn met(thresholds: &[Threshold], observed: &Observations, reclaim: bool) -> Vec<Threshold> {
    let is_met = |threshold: &&Threshold| {
        let Some(now) = observed.get(&threshold.signal) else { return false };
        let mut least = threshold.value.of(&now.capacity);
        if let Some(more) = threshold.min_reclaim.filter(|_| reclaim) {
            least = least + more.of(&now.capacity);
        }
        least > now.available
    };
    thresholds.iter().filter(is_met).copied().collect()
}

fn elapsed(since: Timestamp, now: Timestamp) -> i128 {
    now.duration_since(since).as_nanos()
}

impl State {
    /// Conditions of the node.
    pub const fn conditions(&self) -> &BTreeSet<Condition> {
        &self.conditions
    }

    /// Takes a look. Returns the thresholds that something has to be done about, the first one first.
    pub fn observe(
        &mut self,
        thresholds: &[Threshold],
        observed: &Observations,
        transition: GoDuration,
        now: Timestamp,
    ) -> Vec<Threshold> {
        let mut all = met(thresholds, observed, false);
        for threshold in met(&self.driving, observed, true) {
            if !all.contains(&threshold) {
                all.push(threshold);
            }
        }
        let since = |threshold: &Threshold| {
            let known = self.first_met.iter().find(|(t, _)| t == threshold);
            known.map_or(now, |(_, at)| *at)
        };
        self.first_met = all.iter().map(|t| (*t, since(t))).collect();
        for threshold in &all {
            self.last_caused.insert(threshold.signal.condition(), now);
        }
        self.last_caused.retain(|_, at| elapsed(*at, now) < i128::from(transition.0.max(1)));
        self.conditions = self.last_caused.keys().copied().collect();
        let lasting = |(t, at): &(Threshold, Timestamp)| {
            (elapsed(*at, now) >= i128::from(t.grace_period.0)).then_some(*t)
        };
        self.driving = self.first_met.iter().filter_map(lasting).collect();
        let mut driving = self.driving.clone();
        driving.sort_by_key(|t| t.signal);
        driving
    }

    /// Whether nothing is short any more, after something was given back.
    pub fn is_over(thresholds: &[Threshold], observed: &Observations) -> bool {
        met(thresholds, observed, true).is_empty()
    }
}
