//! Pure logic of Kelp: no IO, no async.
#![forbid(unsafe_code)]

pub mod controllers;
pub mod cpus;
pub mod devices;
pub mod dns;
pub mod duration;
pub mod eviction;
pub mod hash;
pub mod json;
pub mod maglev;
pub mod names;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod quantity;
pub mod quota;
pub mod scheduling;
pub mod selector;
pub mod service;
pub mod shutdown;
pub mod volume;
