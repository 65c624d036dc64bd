//! Kernel programs of the Kelp dataplane; built by `cargo xtask build-ebpf`.
#![no_std]
#![no_main]

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
