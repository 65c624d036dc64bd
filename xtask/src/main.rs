//! Build, run, test and measure Kelp.

use std::path::Path;

mod build_ebpf;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("build-ebpf") => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            println!("{}", build_ebpf::run(&root)?.display());
            Ok(())
        }
        _ => anyhow::bail!("usage: cargo xtask build-ebpf"),
    }
}
