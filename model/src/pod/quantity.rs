//! Resource quantities of a Pod as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The quantity × 1000, rounded up. `None` for text that is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    crate::quantity::Quantity::parse(&quantity.0).ok().map(|q| i128::from(q.milli_value()))
}

/// The quantity as a whole number, rounded up. `None` for text that is no quantity.
pub fn value(quantity: &Quantity) -> Option<i128> {
    crate::quantity::Quantity::parse(&quantity.0).ok().map(|q| i128::from(q.value()))
}
