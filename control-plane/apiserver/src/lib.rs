//! The Kubernetes API server of Kelp.
#![forbid(unsafe_code)]

pub mod error;
pub mod gvk;

pub use error::{ApiError, FieldError};
pub use gvk::GroupVersionKind;
