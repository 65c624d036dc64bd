//! Pods: one worker each, fed by the API server, the runtime and probes.
//!
//! [`manager::Manager`] follows the API server and keeps a [`worker::Worker`] a pod UID; a worker observes, asks
//! `kelp_model::pod` what to do, does it, and hands the status to the [`status_manager::StatusManager`].

pub mod classes;
pub mod container;
pub mod context;
pub mod environment;
pub mod events;
pub mod hooks;
pub mod manager;
pub mod mirror;
pub mod objects;
pub mod pulls;
pub mod reference;
pub mod services;
pub mod static_pods;
pub mod status_manager;
pub mod termination;
pub mod tokens;
pub mod users;
pub mod volumes;
pub mod worker;
