//! Per-pod shim: owns namespaces and log pipes, reaps containers.

fn main() {}
