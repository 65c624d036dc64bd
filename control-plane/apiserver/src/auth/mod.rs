//! Who asks, and whether they may.

mod authn;
mod authz;

pub use authn::*;
pub use authz::*;
