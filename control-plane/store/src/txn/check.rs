//! What is refused in a transaction before it runs.

use crate::index::contains;
use crate::view::check_range;
use crate::{Op, RangeEnd, StoreError, TxnRequest};
use std::collections::HashSet;

/// Nesting beyond this is refused; etcd's own clients use 1.
const MAX_DEPTH: usize = 16;

/// The transaction could write.
pub(crate) fn writes(req: &TxnRequest) -> bool {
    req.then.iter().chain(&req.or_else).any(|op| match op {
        Op::Put { .. } | Op::Delete { .. } => true,
        Op::Range(_) => false,
        Op::Txn(inner) => writes(inner),
    })
}

/// Refuses what etcd refuses: empty keys, and a key that one branch puts twice or puts and deletes.
pub(crate) fn check_txn(req: &TxnRequest) -> Result<(), StoreError> {
    check_requests(req, 0)?;
    Changes::of(&req.then)?;
    Changes::of(&req.or_else)?;
    Ok(())
}

fn check_requests(req: &TxnRequest, depth: usize) -> Result<(), StoreError> {
    if depth > MAX_DEPTH {
        return Err(StoreError::Invalid("transactions are nested too deeply"));
    }
    if req.compares.iter().any(|compare| compare.key.is_empty() && compare.end == RangeEnd::Single) {
        return Err(StoreError::Invalid("key is not provided"));
    }
    for op in req.then.iter().chain(&req.or_else) {
        match op {
            Op::Put { key, .. } if key.is_empty() => return Err(StoreError::Invalid("key is not provided")),
            Op::Delete { key, end: RangeEnd::Single } if key.is_empty() => {
                return Err(StoreError::Invalid("key is not provided"));
            }
            Op::Range(range) => check_range(range)?,
            Op::Txn(inner) => check_requests(inner, depth + 1)?,
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }
    Ok(())
}

/// What the operations of a branch, with all branches nested in it, may change.
#[derive(Default)]
struct Changes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Vec<(&'a [u8], &'a RangeEnd)>,
}

impl<'a> Changes<'a> {
    fn of(ops: &'a [Op]) -> Result<Self, StoreError> {
        let mut all = Changes::default();
        for op in ops {
            if let Op::Delete { key, end } = op {
                all.deletes.push((key, end));
            }
        }
        let mut nested = Vec::new();
        for op in ops {
            let Op::Txn(inner) = op else { continue };
            let (then, or_else) = (Changes::of(&inner.then)?, Changes::of(&inner.or_else)?);
            all.deletes.extend(then.deletes.iter().chain(&or_else.deletes).copied());
            nested.push((then, or_else));
        }
        // Unlike etcd, which lets a later nested transaction delete what an earlier one put.
        for (then, or_else) in nested {
            // Only one of the two branches runs, so both may put the same key.
            for key in then.puts.union(&or_else.puts) {
                all.put(key)?;
            }
        }
        for op in ops {
            if let Op::Put { key, .. } = op {
                all.put(key)?;
            }
        }
        Ok(all)
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), StoreError> {
        let deleted = self.deletes.iter().any(|(first, end)| contains(first, end, key));
        if deleted || !self.puts.insert(key) {
            return Err(StoreError::DuplicateKey);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(then: Vec<Op>, or_else: Vec<Op>) -> TxnRequest {
        TxnRequest { compares: Vec::new(), then, or_else }
    }

    fn refused(then: Vec<Op>) -> bool {
        matches!(check_txn(&txn(then, Vec::new())), Err(StoreError::DuplicateKey))
    }

    fn nested(then: Vec<Op>, or_else: Vec<Op>) -> Op {
        Op::Txn(Box::new(txn(then, or_else)))
    }

    #[test]
    fn a_key_is_changed_once_in_a_branch() {
        assert!(refused(vec![Op::put("a", "1"), Op::put("a", "2")]));
        assert!(refused(vec![Op::put("a", "1"), Op::delete("a")]));
        assert!(refused(vec![
            Op::Delete { key: "a".into(), end: RangeEnd::prefix(b"a") },
            Op::put("ab", "1")
        ]));
        assert!(!refused(vec![Op::put("a", "1"), Op::put("b", "2"), Op::delete("c"), Op::delete("c")]));
        assert!(check_txn(&txn(vec![Op::put("a", "1")], vec![Op::put("a", "2")])).is_ok());
    }

    #[test]
    fn nested_branches_count_but_not_against_each_other() {
        assert!(refused(vec![Op::put("a", "1"), nested(vec![Op::put("a", "2")], vec![])]));
        assert!(refused(vec![nested(vec![Op::delete("a")], vec![]), Op::put("a", "1")]));
        assert!(refused(vec![
            nested(vec![Op::put("a", "1")], vec![]),
            nested(vec![], vec![Op::put("a", "1")])
        ]));
        assert!(refused(vec![
            nested(vec![Op::put("a", "1")], vec![]),
            nested(vec![Op::delete("a")], vec![])
        ]));
        assert!(!refused(vec![nested(vec![Op::put("a", "1")], vec![Op::put("a", "2")])]));
    }

    #[test]
    fn empty_keys_and_deep_nesting_are_refused() {
        assert!(matches!(check_txn(&txn(vec![Op::put("", "1")], vec![])), Err(StoreError::Invalid(_))));
        let mut op = Op::put("a", "1");
        for _ in 0..40 {
            op = nested(vec![op], vec![]);
        }
        assert!(matches!(check_txn(&txn(vec![op], vec![])), Err(StoreError::Invalid(_))));
    }
}
