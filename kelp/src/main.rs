//! One binary: node agent, dataplane and control plane.

fn main() {}
