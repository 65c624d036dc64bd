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

/// Hash maps and longest-prefix maps, whose batches are as old as the kernel's hash maps are, or younger.
#[test]
fn many_entries_are_written_at_once_and_a_full_map_tells_which_was_one_too_many() {
    use kelp_common::{Address, Backend, SourceRangeKey};

    use crate::dataplane::maps::Table;

    const ROOM: u32 = 5_000;
    let directory = PathBuf::from(format!("/sys/fs/bpf/dataplane-batches-{}", std::process::id()));
    ensure_bpffs(&directory).unwrap();
    let sizes = [(maps::BACKENDS, ROOM), (maps::SOURCE_RANGES, 100)].into();
    let kernel = Kernel::load_with(&directory, &sizes, false);
    cleanup(&directory).unwrap();
    let kernel = kernel.unwrap();
    let backends: Table<u32, Backend> = Table::open(&kernel, maps::BACKENDS).unwrap();
    let value = |id: u32| Backend { address: Address::v4(id), port: id as u16, protocol: 6, flags: 0 };
    let keys: Vec<u32> = (1..=ROOM + 10).collect();
    let values: Vec<Backend> = keys.iter().map(|id| value(*id)).collect();
    let refused = backends.put_all(&keys, &values).unwrap_err();
    assert!(matches!(refused.error, DatapathError::Full { map: maps::BACKENDS }));
    assert_eq!(refused.done, ROOM as usize);
    let mut found = 0;
    backends
        .scan(|id, backend| {
            assert_eq!(*backend, value(*id));
            found += 1;
        })
        .unwrap();
    assert_eq!(found, refused.done);
    // Those that are there are written again, also in a full map.
    backends.put_all(&keys[..found], &values[..found]).unwrap();
    // Every other one goes; those that are gone already are no error, wherever they are.
    let odd: Vec<u32> = keys.iter().copied().filter(|id| id % 2 == 1).collect();
    backends.delete_all(&odd).unwrap();
    backends.delete_all(&keys[..found / 2]).unwrap();
    let mut left = Vec::new();
    backends.scan(|id, _| left.push(*id)).unwrap();
    left.sort_unstable();
    let expected: Vec<u32> = keys[found / 2..found].iter().copied().filter(|id| id % 2 == 0).collect();
    assert_eq!(left, expected);

    let ranges: Table<SourceRangeKey, u32> = Table::open(&kernel, maps::SOURCE_RANGES).unwrap();
    let mut keys: Vec<SourceRangeKey> =
        (0..90_u32).map(|n| SourceRangeKey::new(1, Address::v4(n.to_be()), 128)).collect();
    keys[40].prefix_length = 1_000;
    let refused = ranges.put_all(&keys, &[1; 90]).unwrap_err();
    assert_eq!(refused.done, 40, "a prefix that is longer than an address");
    assert!(matches!(refused.error, DatapathError::Kernel { .. }));
    keys.remove(40);
    ranges.put_all(&keys, &[1; 89]).unwrap();
    ranges.delete_all(&keys[..80]).unwrap();
    let mut left = 0;
    ranges.scan(|_, _| left += 1).unwrap();
    assert_eq!(left, 9);
}

/// What the verifier looks at decides how long an agent needs to start: the kernel's own bound is a million.
#[test]
fn the_programs_are_quick_to_verify() {
    const MOST: u32 = 150_000;
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
    let told = if kernel_is_at_least(5, 16) { SOCKET_HOOKS.len() + CLASSIFIERS.len() + 1 } else { 0 };
    assert_eq!(counts.len(), told);
    println!("{counts:?}");
    for (name, count) in counts {
        assert!(count <= MOST, "{name}: {count} instructions");
    }
}
