//! Node registration, Lease heartbeat and conditions.
