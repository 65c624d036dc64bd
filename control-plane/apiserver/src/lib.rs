//! The Kubernetes API server of Kelp.
//!
//! One generic path serves every resource: `registry` has a row for each, `handlers` implement the verbs over rows, `cache`
//! keeps every object and the recent events in memory as the bytes that are served, and `storage` is the only writer of the
//! store. A request goes through `server` (TLS, limits, identity, authorization) into `handlers`.
#![forbid(unsafe_code)]

mod admission;
mod allocation;
pub mod allocator;
pub mod auth;
mod bootstrap;
mod cache;
pub mod cel;
pub mod codec;
mod config;
mod custom;
pub mod defaults;
mod discovery;
pub mod error;
mod flowcontrol;
#[cfg(test)]
mod fuzz;
pub mod gvk;
mod handlers;
mod machinery;
mod object;
pub mod patch;
mod registry;
mod request;
pub mod schema;
mod selector;
mod server;
mod storage;
mod structural;
mod table;
pub mod validation;

pub use auth::UserInfo;
pub use config::{Config, KubeletClient, ServiceAccountKey, TlsFiles};
pub use error::{ApiError, FieldError};
pub use gvk::GroupVersionKind;
pub use server::{AnswerBody, ApiServer, ClientService, ServerError};
