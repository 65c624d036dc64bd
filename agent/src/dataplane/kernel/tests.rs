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

/// What the verifier looks at decides how long an agent needs to start.
#[test]
fn the_programs_are_quick_to_verify() {
    const MOST: u32 = 100_000;
    let directory = PathBuf::from(format!("/sys/fs/bpf/dataplane-verify-{}", std::process::id()));
    ensure_bpffs(&directory).unwrap();
    let kernel = Kernel::load(&directory);
    cleanup(&directory).unwrap();
    let kernel = kernel.unwrap();
    let counts: Vec<(String, u32)> = kernel
        .programs
        .programs()
        .filter_map(|(name, program)| {
            Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?))
        })
        .collect();
    // Before, the kernel does not tell; that they load means fewer than a million.
    let told = if kernel_is_at_least(5, 16) { SOCKET_HOOKS.len() + CLASSIFIERS.len() } else { 0 };
    assert_eq!(counts.len(), told);
    println!("{counts:?}");
    for (name, count) in counts {
        assert!(count <= MOST, "{name}: {count} instructions");
    }
}
