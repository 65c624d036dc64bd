//! What `exec`, `attach` and `port-forward` speak, on both sides: SPDY/3.1, channels in a WebSocket, and the upgrade of an
//! HTTP connection to one of them. The node's API serves them; the API server passes them on, and translates where a node
//! speaks SPDY only.
#![forbid(unsafe_code)]

pub mod channels;
pub mod spdy;
pub mod upgrade;
