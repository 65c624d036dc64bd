//! A cluster on one machine: each host is a network namespace, all joined by veth pairs to a bridge in a LAN
//! namespace that has no uplink.
//!
//! The machine's own network is never touched. kubectl reaches the API server through a listening socket on the
//! machine's loopback that the supervisor opens and hands to `kelp` (`LISTEN_FDS`).

mod down;
mod exec;
mod hosts;
mod join;
mod kept;
mod layout;
mod supervisor;
mod up;

pub use down::down;
pub use exec::{enter, exec};
pub use join::{make_hosts, start_agent};
pub use layout::{Layout, NodeLayout, cgroup_mounts};
pub use supervisor::supervise;
pub use up::{UpOptions, start_host, stop_host, up};
