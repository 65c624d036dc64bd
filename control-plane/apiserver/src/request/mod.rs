//! What a request asks for: verb, resource, options, representation.

mod duration;
mod info;
mod negotiate;
mod options;

pub use duration::*;
pub use info::*;
pub use negotiate::*;
pub use options::*;
