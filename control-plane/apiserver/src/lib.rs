//! The Kubernetes API server of Kelp.
