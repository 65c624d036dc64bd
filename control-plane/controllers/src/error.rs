//! Why a controller's step failed.

use kube::core::Status;

/// A step that did not work and will be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused, or could not be reached.
    #[error("{}", message(.0))]
    Api(#[from] kube::Error),
    /// Anything else, said in words.
    #[error("{0}")]
    Failed(String),
    /// Nothing went wrong: something has to happen first that no event tells of.
    #[error("waiting for {0}")]
    Waiting(&'static str),
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The Status object of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Api(error) => status(error),
            Self::Failed(_) | Self::Waiting(_) => None,
        }
    }

    /// Whether the object did not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }

    /// Whether the object had changed since it was read, or could not be created because it exists.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409)
    }

    /// Whether an object of the name exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "AlreadyExists")
    }

    /// Whether nothing can be created because the namespace is being deleted.
    #[must_use]
    pub fn is_namespace_terminating(&self) -> bool {
        self.status().is_some_and(|s| {
            s.code == 403
                && (s
                    .details
                    .as_ref()
                    .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
                    || s.message.contains("because it is being terminated"))
        })
    }
}

fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

fn message(error: &kube::Error) -> String {
    match status(error) {
        Some(status) if !status.message.is_empty() => status.message.clone(),
        _ => error.to_string(),
    }
}

/// `Ok` also when the object is gone already.
///
/// # Errors
/// Every other error of `result`.
pub fn ignore_not_found<T>(result: std::result::Result<T, kube::Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if status(&error).is_some_and(|s| s.code == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
