//! Who asks, and whether they may.

mod authn;
mod authz;
mod impersonate;

pub use authn::*;
pub use authz::*;
pub use impersonate::*;
