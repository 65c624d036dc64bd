//! Pulling images from registries (OCI distribution spec 1.1, docker registry API v2).

mod challenge;
mod client;
mod config;
mod credentials;
mod download;
mod manifest;
mod plugin;
mod progress;
mod pull;
#[cfg(test)]
mod tests;

pub use config::{Host, RegistryConfig};
pub use credentials::{Credential, Keyring};
pub use plugin::CredentialProviders;
pub use progress::{Progress, Tell};
pub use pull::{PullError, Puller};
