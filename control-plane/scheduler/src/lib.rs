//! The Kubernetes scheduler of Kelp.
