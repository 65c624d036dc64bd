//! Build-time checks, and the programs that the agent carries.

#[path = "build/programs.rs"]
mod programs;

use std::path::Path;

fn main() {
    kernel_programs();
    programs::build();
}

/// `dataplane` embeds the kernel programs. They need a compiler of their own, so they are not built from here.
fn kernel_programs() {
    let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/kelp-ebpf");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=KELP_EBPF_OBJECT={}", object.display());
    if !object.exists() {
        println!("cargo::error=the kernel programs are not built yet: run `cargo xtask build-ebpf`");
    }
}
