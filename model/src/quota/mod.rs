//! Resource quotas: what objects use, and what a quota's status says about it.
//!
//! The API server counts what a write adds before it happens; the controller counts everything again when objects go or
//! come to use less. Both do it by these rules.

pub mod amounts;
mod evaluator;
mod scope;
mod total;

pub use evaluator::Evaluator;
pub use scope::Scope;
pub use total::{Objects, Status, recount};

#[cfg(test)]
mod tests;
