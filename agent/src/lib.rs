//! The Kelp node agent: kubelet and kube-proxy in one daemon.
//!
//! FETCH → COMPUTE → EXECUTE: watches feed [`pod`] and [`dataplane`], the decisions are pure functions in
//! `kelp-model`, and only [`runtime`], [`network`] and [`dataplane`] touch the kernel.

pub mod app;
pub mod certificates;
pub mod config;
pub mod cpus;
pub mod csi;
pub mod dataplane;
pub mod device;
mod dirwatch;
pub mod disk;
pub mod dns;
pub mod eviction;
pub mod grpc;
pub mod image;
pub mod kubelet_config;
pub mod metrics;
pub mod network;
pub mod node;
pub mod pod;
pub mod probe;
pub mod runtime;
pub mod server;
pub mod shutdown;
pub mod tls;
