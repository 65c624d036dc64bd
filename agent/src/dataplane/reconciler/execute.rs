//! Executes a plan as far as the maps have room: what does not fit is left out together with what would lead to it, so
//! that a full map costs the services that came too late and no other.

use std::collections::BTreeSet;

use kelp_model::plan::{Actual, MapOp};

use crate::dataplane::DatapathError;
use crate::dataplane::maps::{Datapath, Stickiness};

/// What became of a plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Operations that were executed.
    pub operations: usize,
    /// Maps that were full.
    pub full: BTreeSet<&'static str>,
    /// Operations that were left out.
    pub skipped: usize,
}

/// What was left out, and what must stay therefore.
#[derive(Default)]
struct Missing {
    backends: BTreeSet<u32>,
    tables: BTreeSet<u32>,
    /// Backends that slots of incomplete tables lead to; made when it is needed.
    in_use: Option<BTreeSet<u32>>,
}

impl Missing {
    /// Whether everything found room.
    fn is_empty(&self) -> bool {
        self.backends.is_empty() && self.tables.is_empty()
    }

    /// Whether an operation has to be left out because of others that were.
    fn forbids(&mut self, op: &MapOp, actual: &Actual) -> bool {
        match op {
            MapOp::PutSlot(_, backend) => self.backends.contains(backend),
            MapOp::PutLookup(_, lookup) => {
                lookup.members().iter().any(|member| self.backends.contains(&member.id))
            }
            MapOp::PutFrontend(_, value) => self.tables.contains(&value.table),
            // An old frontend may still lead there.
            MapOp::DeleteSlot(key) => self.tables.contains(&key.table),
            MapOp::DeleteRange(key) => self.tables.contains(&key.range.table),
            MapOp::DeleteBackend(id) if !self.tables.is_empty() => {
                let tables = &self.tables;
                let in_use = self.in_use.get_or_insert_with(|| {
                    let slots = actual.slots.iter().filter(|(key, _)| tables.contains(&key.table));
                    slots.map(|(_, backend)| *backend).collect()
                });
                in_use.contains(id)
            }
            _ => false,
        }
    }

    fn note(&mut self, op: &MapOp) {
        match op {
            MapOp::PutBackend(id, _) => {
                self.backends.insert(*id);
            }
            MapOp::PutSlot(key, _) => {
                self.tables.insert(key.table);
            }
            MapOp::PutRange(key) => {
                self.tables.insert(key.range.table);
            }
            // Without its table of consistent hashing a frontend still leads to all of its backends.
            _ => {}
        }
    }
}

/// Executes operations in order; `actual` follows.
///
/// # Errors
/// When the kernel refuses for another reason than a full map. `actual` is what was written until then.
pub fn execute<D: Datapath>(
    ops: &[MapOp],
    actual: &mut Actual,
    datapath: &mut D,
) -> Result<Outcome, DatapathError> {
    let mut outcome = Outcome::default();
    let mut missing = Missing::default();
    // Operations of one kind do not depend on each other, so that they go to the kernel together.
    for run in ops.chunk_by(MapOp::is_like) {
        if missing.is_empty() {
            execute_run(run, actual, datapath, &mut missing, &mut outcome)?;
            continue;
        }
        let mut allowed = Vec::new();
        for op in run {
            if missing.forbids(op, actual) {
                missing.note(op);
                outcome.skipped += 1;
            } else {
                allowed.push(op.clone());
            }
        }
        execute_run(&allowed, actual, datapath, &mut missing, &mut outcome)?;
    }
    Ok(outcome)
}

/// Executes operations of one kind; one for which there is no room does not keep the others from it.
fn execute_run<D: Datapath>(
    ops: &[MapOp],
    actual: &mut Actual,
    datapath: &mut D,
    missing: &mut Missing,
    outcome: &mut Outcome,
) -> Result<(), DatapathError> {
    let mut rest = ops;
    while !rest.is_empty() {
        let (done, error) = match datapath.apply(rest) {
            Ok(()) => (rest.len(), None),
            Err(refused) => (refused.done.min(rest.len() - 1), Some(refused.error)),
        };
        actual.apply_all(&rest[..done]);
        outcome.operations += done;
        rest = match error {
            None => return Ok(()),
            Some(DatapathError::Full { map }) => {
                missing.note(&rest[done]);
                outcome.full.insert(map);
                outcome.skipped += 1;
                &rest[done + 1..]
            }
            Some(error) => return Err(error),
        };
    }
    Ok(())
}

/// The clients that may stay with their backends.
#[must_use]
pub fn stickiness(actual: &Actual) -> Stickiness {
    let sticky = actual.frontends.values().filter(|value| value.affinity_seconds != 0);
    let mut tables: Stickiness = sticky.map(|value| (value.table, BTreeSet::new())).collect();
    if !tables.is_empty() {
        for (key, backend) in &actual.slots {
            if let Some(backends) = tables.get_mut(&key.table) {
                backends.insert(*backend);
            }
        }
    }
    tables
}

/// Whether these operations end the stay of a client.
#[must_use]
pub fn ends_a_stay(ops: &[MapOp], before: &Actual) -> bool {
    let sticky: BTreeSet<u32> = before
        .frontends
        .values()
        .filter(|value| value.affinity_seconds != 0)
        .map(|value| value.table)
        .collect();
    let was_sticky = |key| before.frontends.get(key).is_some_and(|value| value.affinity_seconds != 0);
    !sticky.is_empty()
        && ops.iter().any(|op| match op {
            MapOp::PutSlot(key, _) | MapOp::DeleteSlot(key) => sticky.contains(&key.table),
            MapOp::PutFrontend(key, _) | MapOp::DeleteFrontend(key) => was_sticky(key),
            _ => false,
        })
}
