//! The Kubernetes scheduler of Kelp.
//!
//! One owner, no locks: [`core::Core`] holds the cluster's state and the queue, takes what happened as
//! [`core::Event`]s and gives back what is to be done as [`core::Outcome`]s; it does no IO and knows no clock.
//! [`app::run`] feeds it from watches and carries the outcomes out. The plugins' arithmetic is
//! `kelp_model::scheduling`; the extension points of the scheduling framework are the traits of [`framework`].
//!
//! Nodes are updated in place as pods come and go, also by decisions that are not written yet (assumed pods), so that
//! scheduling a pod copies nothing.
#![forbid(unsafe_code)]

pub mod app;
pub mod cluster;
pub mod core;
mod executor;
pub mod framework;
mod informers;
pub mod plugins;
pub mod queue;
mod recorder;
