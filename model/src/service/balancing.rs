//! How clients outside the cluster are led to endpoints.

/// How clients outside the cluster are led to endpoints where a Service does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balancing {
    /// By consistent hashing ([`crate::maglev`]), and not by chance.
    pub consistent: bool,
    /// Places of a table of consistent hashing; see [`crate::maglev::is_size`].
    pub table_size: u32,
}

impl Default for Balancing {
    fn default() -> Self {
        Self { consistent: false, table_size: kelp_common::maglev::DEFAULT_SIZE }
    }
}

/// A table of consistent hashing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Number of places.
    pub size: u32,
    /// Weights of the backends of the table, in the order of their slots.
    pub weights: Vec<u16>,
}
