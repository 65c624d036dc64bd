//! Probes: startup, liveness and readiness.
