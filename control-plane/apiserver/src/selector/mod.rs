//! Label and field selectors in their string form.

mod field;
mod label;

pub use field::*;
pub use label::*;
