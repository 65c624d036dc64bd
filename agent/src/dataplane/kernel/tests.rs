//! The programs pass the verifier.

use super::*;

#[test]
fn the_programs_load() {
    let directory = PathBuf::from(format!("/sys/fs/bpf/dataplane-load-{}", std::process::id()));
    ensure_bpffs(&directory).unwrap();
    let kernel = Kernel::load(&directory);
    cleanup(&directory).unwrap();
    if let Err(error) = kernel {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            eprintln!("{error}");
            source = error.source();
        }
        panic!("not loaded");
    }
}
