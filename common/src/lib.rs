//! Layout of every eBPF map key and value.
#![no_std]
#![forbid(unsafe_code)]
