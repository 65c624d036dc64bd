//! The Kubernetes controllers of Kelp.
