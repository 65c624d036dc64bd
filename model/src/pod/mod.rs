//! What the node agent decides about a pod, as pure functions over plain data.
//!
//! [`actions::pod_actions`] says what to do next, [`status::pod_status`] what to report; both see the Pod as the API
//! server has it, a [`view::Observed`] of the runtime and a [`view::Memory`] a container of what only the agent knows
//! (probe results, back-off, the reason a start failed).

pub mod actions;
pub mod admission;
pub mod backoff;
pub mod conditions;
pub mod env;
pub mod hosts;
pub mod probe;
pub mod qos;
pub mod quantity;
pub mod resources;
pub mod restart;
pub mod spec;
pub mod status;
pub mod view;
