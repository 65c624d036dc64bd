//! The status of a quota, counted anew.

use super::Evaluator;
use super::amounts::{Amounts, add, amounts};
use crate::json::get;
use crate::quantity::Quantity;
use serde_json::Value;

/// The objects of a kind in the quota's namespace.
pub enum Objects {
    /// All of them.
    All(Vec<Value>),
    /// Their number, for kinds of which no more is counted.
    Number(usize),
}

/// What a quota's status should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The limits, which are those of the spec.
    pub hard: Amounts,
    /// What is used of them.
    pub used: Amounts,
}

impl Status {
    /// The status without amounts that are less than the quota says now; `None` when nothing is more.
    #[must_use]
    pub fn raised(mut self, quota: &Value) -> Option<Self> {
        let before = amounts(get(quota, &["status", "used"]));
        let mut any = false;
        for (name, used) in &mut self.used {
            match before.get(name) {
                Some(told) if *told >= *used => *used = *told,
                _ => any = true,
            }
        }
        any.then_some(self)
    }
}

/// Counts what is used of a quota at a time, in seconds since 1970; `None` when its status says so already.
///
/// `kinds` are all kinds that can be counted, each with what `objects` finds its objects by; it is asked for those that the
/// quota is about. What no kind counts for keeps the amount that the status has.
pub fn recount<'a, T>(
    quota: &Value,
    now: i64,
    kinds: impl IntoIterator<Item = (&'a Evaluator, T)>,
    mut objects: impl FnMut(T) -> Objects,
) -> Option<Status> {
    let hard = amounts(get(quota, &["spec", "hard"]));
    let told = |field| get(quota, &["status", field]);
    let before = amounts(told("used"));
    let mut counted = Amounts::new();
    for (kind, source) in kinds {
        let names: Vec<&String> = hard.keys().filter(|name| kind.counts(name)).collect();
        if names.is_empty() {
            continue;
        }
        let mut usage = match objects(source) {
            // Scopes choose objects by what they are; those of other kinds are in none.
            Objects::Number(number) => {
                kind.usage_of(if kind.in_scopes(quota, &Value::Null) { number } else { 0 })
            }
            Objects::All(all) => {
                let mut sum = Amounts::new();
                for object in all.iter().filter(|object| kind.in_scopes(quota, object)) {
                    add(&mut sum, &kind.usage(object, now));
                }
                sum
            }
        };
        usage.retain(|name, _| names.contains(&name));
        for name in names {
            usage.entry(name.clone()).or_insert(Quantity::ZERO);
        }
        add(&mut counted, &usage);
    }
    let kept = before.iter().filter(|(name, _)| hard.contains_key(*name) && !counted.contains_key(*name));
    let kept: Amounts = kept.map(|(name, q)| (name.clone(), *q)).collect();
    let mut used = kept;
    used.extend(counted);
    let is_new = told("hard").is_none() || told("used").is_none();
    let changed = is_new || amounts(told("hard")) != hard || before != used;
    changed.then_some(Status { hard, used })
}
