//! Build, run, test and measure Kelp.
//!
//! The sandbox ([`sandbox`]) is a cluster whose hosts are network namespaces on one LAN without an uplink; the
//! end-to-end tests use it as a library.

pub mod apiserver;
pub mod bench;
pub mod build;
pub mod build_ebpf;
pub mod ci;
pub mod cli;
pub mod command;
pub mod guest;
pub mod image;
pub mod kelp_image;
pub mod sandbox;
pub mod setup;
