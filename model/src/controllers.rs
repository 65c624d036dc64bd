//! The decisions of the control loops: what to create, delete, resize or write, given what is there.

pub mod cidr;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod merge;
pub mod owner;
pub mod pods;
pub mod taints;
pub mod template_hash;
