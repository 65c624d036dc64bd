//! What a request asks for: verb, resource, options, representation.

mod info;
mod negotiate;
mod options;

pub use info::*;
pub use negotiate::*;
pub use options::*;
