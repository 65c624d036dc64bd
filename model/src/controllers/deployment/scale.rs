//! Changing a deployment's size, also in the middle of a rollout.

use super::{Bounds, Replicas};

/// The one set to resize when at most one is in use: index of the only set with replicas, or the newest (`newest`)
/// when none has any. `None` when several are in use.
#[must_use]
pub fn active_or_latest(sets: &[Replicas], newest: Option<usize>) -> Option<usize> {
    let mut active = sets.iter().enumerate().filter(|(_, r)| r.size > 0).map(|(i, _)| i);
    match (active.next(), active.next()) {
        (None, _) => newest.or_else(|| sets.len().checked_sub(1)),
        (only, None) => only,
        _ => None,
    }
}

/// Whether the new set has reached the deployment's size (`desired` = its annotation) with all replicas available.
#[must_use]
pub fn is_saturated(bounds: Bounds, new: &Replicas, desired: Option<i32>) -> bool {
    new.size == bounds.replicas && desired == Some(bounds.replicas) && new.available == bounds.replicas
}

/// Sizes for all sets in use after the deployment was resized during a rollout: each set gets its share of the change
/// in proportion to its size, the first one (`sets` is in order of who gets the remainder) what is left over.
///
/// `current` is the deployment's own count of replicas, for sets without the annotation.
#[must_use]
pub fn proportional_sizes(bounds: Bounds, sets: &[Replicas], current: i32) -> Vec<i32> {
    let total: i32 = sets.iter().map(|r| r.size).sum();
    let allowed = if bounds.replicas > 0 { bounds.max_total() } else { 0 };
    let change = allowed - total;
    let mut given = 0;
    let mut sizes: Vec<i32> = sets
        .iter()
        .map(|set| {
            let share = share(bounds, set, current, change - given);
            given += share;
            (set.size + share).max(0)
        })
        .collect();
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    sizes
}

fn share(bounds: Bounds, set: &Replicas, current: i32, left: i32) -> i32 {
    if set.size == 0 || left == 0 {
        return 0;
    }
    let fraction = if bounds.replicas == 0 {
        -set.size
    } else {
        let before = set.max_replicas.unwrap_or(current);
        if before <= 0 {
            return 0;
        }
        let product = i64::from(set.size) * i64::from(bounds.max_total());
        let before = i64::from(before);
        // Rounded half away from zero; all operands are positive.
        let rounded = (2 * product + before) / (2 * before);
        i32::try_from(rounded).unwrap_or(i32::MAX).saturating_sub(set.size)
    };
    if left > 0 { fraction.min(left) } else { fraction.max(left) }
}
