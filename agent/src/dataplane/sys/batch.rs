//! Many entries of a map in one system call. What a kernel cannot do for a type of map (batches came to hash maps with 5.6,
//! to longest-prefix maps with 5.14) is done entry by entry.

use std::io;
use std::os::fd::BorrowedFd;

use super::{ElementAttr, MAP_GET_NEXT_KEY, Plain, address, bpf, map_delete, map_lookup, map_update, raw};

const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;
const MAP_DELETE_BATCH: i32 = 27;

/// Entries that are handed over at once: what one system call costs is no longer seen, and little is done again one by
/// one when the kernel refuses.
const BATCH: usize = 4_096;

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Writes many entries in their order. Where the kernel refuses an entry, those before it are written and those behind it
/// are not.
///
/// # Errors
/// The place of the entry that was refused, and why.
pub fn map_update_batch<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    in_batches(
        keys.len().min(values.len()),
        |start, count| {
            let mut attr = BatchAttr {
                keys: (&raw const keys[start]) as u64,
                values: (&raw const values[start]) as u64,
                count: count as u32,
                map_fd: raw(map),
                ..BatchAttr::default()
            };
            bpf(MAP_UPDATE_BATCH, &mut attr).map_or_else(|_| Err(attr.count as usize), |_| Ok(()))
        },
        |at| map_update(map, &keys[at], &values[at]),
    )
}

/// Removes many entries in their order; those that are not there are no error.
///
/// # Errors
/// The place of the entry that was refused, and why.
pub fn map_delete_batch<K: Plain>(map: BorrowedFd<'_>, keys: &[K]) -> Result<(), (usize, io::Error)> {
    in_batches(
        keys.len(),
        |start, count| {
            let mut attr = BatchAttr {
                keys: (&raw const keys[start]) as u64,
                count: count as u32,
                map_fd: raw(map),
                ..BatchAttr::default()
            };
            bpf(MAP_DELETE_BATCH, &mut attr).map_or_else(|_| Err(attr.count as usize), |_| Ok(()))
        },
        |at| map_delete(map, &keys[at]),
    )
}

/// Does something again for which the kernel has no memory at this moment: entries are allocated without waiting, which
/// fails where memory must be reclaimed first.
fn patiently(mut one: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    const ATTEMPTS: usize = 64;
    for _ in 1..ATTEMPTS {
        match one() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => std::thread::yield_now(),
            result => return result,
        }
    }
    one()
}

/// Does `total` things in order: `many` from a place on, or `one`. `many` fails with how many the kernel says it did; then
/// the next is done alone, which tells why. A kernel that refuses a whole batch (it has none for this type of map, or no
/// memory for it) does not change that number: the batch is done one by one.
fn in_batches(
    total: usize,
    mut many: impl FnMut(usize, usize) -> Result<(), usize>,
    mut one: impl FnMut(usize) -> io::Result<()>,
) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while done < total {
        let count = (total - done).min(BATCH);
        let alone = match many(done, count) {
            Ok(()) => {
                done += count;
                continue;
            }
            Err(before) if before < count => {
                done += before;
                1
            }
            Err(_) => count,
        };
        for _ in 0..alone {
            patiently(|| one(done)).map_err(|error| (done, error))?;
            done += 1;
        }
    }
    Ok(())
}

/// Visits all entries of a hash map in batches. An entry that is added or removed meanwhile may or may not be seen.
pub fn map_scan<K: Plain, V: Plain>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut capacity = 1024_usize;
    // Opaque to us: for hash maps the kernel keeps a bucket number there.
    let mut position = [0_u64; 8];
    let mut started = false;
    loop {
        let mut keys = Vec::<K>::with_capacity(capacity);
        let mut values = Vec::<V>::with_capacity(capacity);
        let mut next = [0_u64; 8];
        let mut attr = BatchAttr {
            in_batch: if started { address(&position) } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: capacity as u32,
            map_fd: raw(map),
            ..BatchAttr::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut attr);
        let last = match result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // A bucket has more entries than the buffers.
                Some(libc::ENOSPC) if capacity < 1 << 20 => {
                    capacity *= 4;
                    continue;
                }
                Some(libc::EINTR) => continue,
                // The map has no batches on this kernel.
                Some(ENOTSUPP | libc::EINVAL) if !started => return map_walk(map, visit),
                _ => return Err(error),
            },
        };
        let count = (attr.count as usize).min(capacity);
        // SAFETY: the kernel wrote this many keys and values; any bytes are a value of a plain type.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        for (key, value) in keys.iter().zip(&values) {
            visit(key, value);
        }
        if last {
            return Ok(());
        }
        position = next;
        started = true;
    }
}

/// The kernel's own "not supported", which has no name for users.
const ENOTSUPP: i32 = 524;

/// Visits all entries one by one. One that is removed meanwhile may make the walk begin again: entries may be seen twice.
fn map_walk<K: Plain, V: Plain>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut last: Option<K> = None;
    loop {
        let mut next = std::mem::MaybeUninit::<K>::uninit();
        let mut attr = ElementAttr {
            map_fd: raw(map),
            key: last.as_ref().map_or(0, address),
            value: next.as_mut_ptr() as u64,
            ..ElementAttr::default()
        };
        match bpf(MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        // SAFETY: the kernel wrote a key; any bytes are a value of a plain type.
        let key = unsafe { next.assume_init() };
        if let Some(value) = map_lookup(map, &key)? {
            visit(&key, &value);
        }
        last = Some(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map in memory that has room for `room` keys below 1 000 and takes no others.
    struct Model {
        room: usize,
        batches: bool,
        content: Vec<usize>,
        calls: usize,
    }

    impl Model {
        fn put(&mut self, key: usize) -> io::Result<()> {
            if key >= 1_000 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            if !self.content.contains(&key) {
                if self.content.len() == self.room {
                    return Err(io::Error::from_raw_os_error(libc::E2BIG));
                }
                self.content.push(key);
            }
            Ok(())
        }
    }

    /// Writes keys; returns the place and the reason of a refusal.
    fn write(model: &mut Model, keys: &[usize]) -> Option<(usize, i32)> {
        let model = std::cell::RefCell::new(model);
        let result = in_batches(
            keys.len(),
            |start, count| {
                let mut model = model.borrow_mut();
                model.calls += 1;
                if !model.batches {
                    return Err(count);
                }
                let keys = &keys[start..start + count];
                keys.iter().position(|key| model.put(*key).is_err()).map_or(Ok(()), Err)
            },
            |at| {
                let mut model = model.borrow_mut();
                model.calls += 1;
                model.put(keys[at])
            },
        );
        result.err().map(|(at, error)| (at, error.raw_os_error().unwrap_or(0)))
    }

    #[test]
    fn a_refused_entry_is_told_with_its_place_and_reason() {
        for batches in [true, false] {
            let new = |room| Model { room, batches, content: Vec::new(), calls: 0 };
            let mut model = new(9);
            assert_eq!(write(&mut model, &[1, 2, 3, 1]), None);
            assert_eq!(model.content, [1, 2, 3]);
            assert_eq!(write(&mut model, &[4, 5_000, 6]), Some((1, libc::EINVAL)));
            assert_eq!(model.content, [1, 2, 3, 4], "what is before it is written, what is behind it is not");
            assert_eq!(write(&mut new(2), &[1, 2, 3]), Some((2, libc::E2BIG)));
            assert_eq!(write(&mut new(0), &[7]), Some((0, libc::E2BIG)));
            assert_eq!(write(&mut new(0), &[]), None);
        }
    }

    #[test]
    fn an_entry_that_there_is_no_memory_for_is_tried_again_but_not_for_ever() {
        for (failures, expected) in [(3, Ok(())), (1_000, Err(Some(libc::ENOMEM)))] {
            let mut left = failures;
            let result = patiently(|| {
                if left == 0 {
                    return Ok(());
                }
                left -= 1;
                Err(io::Error::from_raw_os_error(libc::ENOMEM))
            });
            assert_eq!(result.map_err(|error| error.raw_os_error()), expected);
        }
    }

    #[test]
    fn whole_batches_are_one_call_each() {
        let keys: Vec<usize> = (0..2 * BATCH + 7).map(|number| number % 1_000).collect();
        let mut model = Model { room: 1_000, batches: true, content: Vec::new(), calls: 0 };
        assert_eq!(write(&mut model, &keys), None);
        assert_eq!((model.calls, model.content.len()), (3, 1_000));
    }

    #[test]
    fn a_refusal_that_has_passed_costs_one_entry_alone() {
        // As a kernel that had no memory for one entry in the middle of a batch.
        let mut calls = Vec::new();
        let alone = std::cell::RefCell::new(Vec::new());
        let result = in_batches(
            100,
            |start, count| {
                calls.push((start, count));
                if start == 0 { Err(40) } else { Ok(()) }
            },
            |at| {
                alone.borrow_mut().push(at);
                Ok(())
            },
        );
        assert!(result.is_ok());
        assert_eq!((calls, alone.into_inner()), (vec![(0, 100), (41, 59)], vec![40]));
    }
}
