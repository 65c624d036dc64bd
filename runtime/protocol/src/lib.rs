//! Messages between the agent, the shim and the runtime helper.
