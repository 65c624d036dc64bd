//! Who asks, and whether they may.

mod attributes;
pub(crate) mod escalation;
mod follow;
mod impersonate;
mod node;
mod policy;
pub(crate) mod rbac;
pub(crate) mod references;
pub(crate) mod rule;
mod user;
mod x509;

pub use attributes::*;
pub(crate) use impersonate::impersonated;
pub(crate) use policy::Policy;
pub use user::*;
pub use x509::from_certificate;
