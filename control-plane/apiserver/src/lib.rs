//! The Kubernetes API server of Kelp.
#![forbid(unsafe_code)]

pub mod codec;
pub mod defaults;
pub mod error;
pub mod gvk;
pub mod patch;
pub mod schema;

pub use error::{ApiError, FieldError};
pub use gvk::GroupVersionKind;
