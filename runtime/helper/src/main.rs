//! Short-lived helper that calls libcontainer.

fn main() {}
