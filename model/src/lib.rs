//! Pure logic of Kelp: no IO, no async.
#![forbid(unsafe_code)]
