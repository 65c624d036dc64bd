//! The Kubernetes controllers of Kelp.
//!
//! One watch a kind feeds one shared cache ([`informer`]); handlers turn its changes into keys on work queues ([`queue`]);
//! each controller's workers take a key, look at the cache, let `kelp_model::controllers` decide and write the outcome
//! through the API. Nothing polls: time enters only where the API asks for it (grace periods, deadlines, back-off).
//!
//! [`wiring`] lists the controllers; a new one is a module and a row there. [`app::run`] runs them.
#![forbid(unsafe_code)]

pub mod app;
pub mod certificates;
mod claim;
mod clusterrole_aggregation;
pub mod config;
pub mod context;
pub mod error;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod kinds;
pub mod queue;
pub mod tracker;
pub mod wiring;
pub mod write;

mod deployment;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod garbage;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod pod_gc;
mod replicaset;
mod resource_quota;
mod root_ca;
mod service_index;
mod serviceaccount;
mod slices;
mod taint_eviction;
mod volume_attach;
mod volume_binder;
mod volume_protection;

pub use app::run;
pub use config::Config;
