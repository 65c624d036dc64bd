//! Scenarios across crates: network-namespace hosts, real clients, restarts.
