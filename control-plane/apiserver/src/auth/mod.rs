//! Who asks, and whether they may.

mod attributes;
mod authenticate;
mod bootstrap_token;
pub(crate) mod escalation;
mod follow;
mod impersonate;
mod jwt;
mod node;
mod policy;
pub(crate) mod rbac;
pub(crate) mod references;
pub(crate) mod rule;
mod token;
mod user;
mod x509;

pub use attributes::*;
pub(crate) use authenticate::{Credentials, authenticate, by_token};
pub(crate) use impersonate::impersonated;
pub(crate) use jwt::SigningKey;
pub(crate) use policy::Policy;
pub(crate) use token::{Grant, Tokens};
pub use user::*;
pub use x509::from_certificate;
