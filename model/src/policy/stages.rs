//! The order in which the policies of pods change.
//!
//! A flow is admitted by both of its ends. When a change takes a denial from one end to the other (a policy that isolated the
//! receiver isolates the sender now), and the first end is written first, a packet passes in between that neither the old
//! policies nor the new ones admit. So all pods become isolated where they were not, then change what they admit, and only
//! then cease to be isolated. A flow that is admitted before and after is admitted by either state of either end, so that
//! any order is right for it.

use super::{EndpointPolicy, Op};

/// What a pod had for each direction (ingress, egress), if it was there, and what it is to have.
pub(super) struct Change {
    /// Tables; 0 is none.
    pub old: Option<[u32; 2]>,
    /// With the tables.
    pub new: EndpointPolicy,
}

/// When one direction of a pod changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It becomes isolated.
    Isolate,
    /// It sends to others than before.
    Send,
    /// It receives from others than before.
    Receive,
    /// It is isolated no longer.
    Open,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Isolate, Self::Send, Self::Receive, Self::Open];

    fn of(old: u32, new: u32, is_ingress: bool) -> Self {
        match (old, new) {
            (0, _) => Self::Isolate,
            (_, 0) => Self::Open,
            _ if is_ingress => Self::Receive,
            _ => Self::Send,
        }
    }
}

/// The writes that lead from the old policies to the new ones.
pub(super) fn in_stages(changes: Vec<Change>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut changes: Vec<_> = changes
        .into_iter()
        .filter_map(|change| match change.old {
            Some(old) => Some((old, old, change.new)),
            // A pod that is new is isolated until it has its policies.
            None => {
                ops.push(Op::SetEndpoint(change.new));
                None
            }
        })
        .collect();
    for stage in Stage::ALL {
        for (old, current, new) in &mut changes {
            let before = *current;
            for (direction, table) in [new.ingress, new.egress].into_iter().enumerate() {
                if Stage::of(old[direction], table, direction == 0) == stage {
                    current[direction] = table;
                }
            }
            if *current != before {
                let [ingress, egress] = *current;
                ops.push(Op::SetEndpoint(EndpointPolicy { ingress, egress, ..new.clone() }));
            }
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use kelp_common::Address;

    fn change(pod: u32, old: Option<[u32; 2]>, [ingress, egress]: [u32; 2]) -> Change {
        Change { old, new: EndpointPolicy { addresses: vec![Address::v4(pod)], space: 1, ingress, egress } }
    }

    fn states(changes: Vec<Change>) -> Vec<(u32, [u32; 2])> {
        let ops = in_stages(changes);
        ops.into_iter()
            .map(|op| match op {
                Op::SetEndpoint(policy) => (policy.addresses[0].0[3], [policy.ingress, policy.egress]),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn all_are_isolated_before_any_is_open() {
        // Each was isolated one way, and is now the other way.
        let swapped = vec![change(1, Some([5, 0]), [0, 7]), change(2, Some([5, 0]), [0, 7])];
        assert_eq!(states(swapped), [(1, [5, 7]), (2, [5, 7]), (1, [0, 7]), (2, [0, 7])]);
    }

    #[test]
    fn one_write_is_enough_for_one_stage() {
        assert_eq!(states(vec![change(1, Some([0, 0]), [3, 4])]), [(1, [3, 4])]);
        assert_eq!(states(vec![change(1, Some([3, 4]), [0, 0])]), [(1, [0, 0])]);
        assert_eq!(
            states(vec![change(1, None, [3, 0]), change(2, None, [0, 0])]),
            [(1, [3, 0]), (2, [0, 0])]
        );
        assert_eq!(states(vec![change(1, Some([3, 4]), [3, 4])]), []);
    }

    #[test]
    fn what_is_sent_changes_before_what_is_received() {
        let both = vec![change(1, Some([3, 4]), [5, 6])];
        assert_eq!(states(both), [(1, [3, 6]), (1, [5, 6])]);
    }
}
