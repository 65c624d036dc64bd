//! One step of a rollout.

use super::{Bounds, Replicas};

/// New sizes to write: of the new set, or of old sets by their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The new ReplicaSet gets this size.
    ResizeNew(i32),
    /// These old ReplicaSets (index in the slice given) get these sizes, in this order.
    ShrinkOld(Vec<(usize, i32)>),
    /// Nothing to do until availability changes.
    Wait,
}

/// The size a new ReplicaSet gets: as large as the surge lets it be.
#[must_use]
pub fn new_set_size(bounds: Bounds, new: i32, total: i32) -> i32 {
    if !bounds.rolling {
        return bounds.replicas;
    }
    let room = bounds.max_total() - total;
    if room <= 0 { new } else { new + room.min(bounds.replicas - new) }
}

/// The next step of a rolling update. `old` is in order of creation.
///
/// Growing the new set comes first and never takes the total beyond [`Bounds::max_total`]. Then old sets shrink: first
/// replicas that are not available anyway, then as many available ones as [`Bounds::min_available`] allows. A status
/// that lags behind can only make a step smaller, because new replicas not yet seen available are counted as missing.
#[must_use]
pub fn next_rolling_step(bounds: Bounds, new: &Replicas, old: &[Replicas]) -> Step {
    let old_total: i32 = old.iter().map(|r| r.size).sum();
    let total = old_total + new.size;
    if new.size > bounds.replicas {
        return Step::ResizeNew(bounds.replicas);
    }
    let size = new_set_size(bounds, new.size, total);
    if size != new.size {
        return Step::ResizeNew(size);
    }
    if old_total == 0 {
        return Step::Wait;
    }
    let new_unavailable = new.size - new.available;
    let allowed = total - bounds.min_available() - new_unavailable;
    if allowed <= 0 {
        return Step::Wait;
    }
    let mut sizes: Vec<i32> = old.iter().map(|r| r.size).collect();
    let mut touched = vec![false; old.len()];

    let mut left = allowed;
    for (i, set) in old.iter().enumerate() {
        let drop = left.min(sizes[i] - set.available).max(0);
        if drop > 0 {
            sizes[i] -= drop;
            touched[i] = true;
            left -= drop;
        }
    }

    // A status may lag behind and still count pods of an earlier, larger size: those are as good as gone.
    let available: i32 = std::iter::once(new).chain(old).map(|r| r.available.min(r.size)).sum();
    let mut left = available - bounds.min_available();
    for i in 0..sizes.len() {
        let drop = left.min(sizes[i]).max(0);
        if drop > 0 {
            sizes[i] -= drop;
            touched[i] = true;
            left -= drop;
        }
    }

    let changes: Vec<(usize, i32)> =
        touched.iter().enumerate().filter(|(_, t)| **t).map(|(i, _)| (i, sizes[i])).collect();
    if changes.is_empty() { Step::Wait } else { Step::ShrinkOld(changes) }
}

/// The next step of a Recreate rollout: all old sets to 0, and the new one to its size only when no old pod runs.
#[must_use]
pub fn recreate_step(bounds: Bounds, new: Option<i32>, old: &[Replicas], old_pods_running: bool) -> Step {
    let shrink: Vec<(usize, i32)> =
        old.iter().enumerate().filter(|(_, r)| r.size > 0).map(|(i, _)| (i, 0)).collect();
    if !shrink.is_empty() {
        return Step::ShrinkOld(shrink);
    }
    if old_pods_running || new == Some(bounds.replicas) {
        return Step::Wait;
    }
    Step::ResizeNew(bounds.replicas)
}
