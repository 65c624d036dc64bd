//! Where the running kernel keeps a bit of a structure, from the description of its types (BTF): fields have no fixed
//! place in the kernel.
//!
//! Format: <https://docs.kernel.org/bpf/btf.html>.

use std::path::Path;

/// The types of the running kernel.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// How far the kernel is locked down, if it can be.
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
/// The longest description that is read; those of today's kernels have 5–10 MiB.
const MOST: u64 = 64 << 20;

/// A bit in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bit {
    /// Offset of its byte in the structure.
    pub byte: u32,
    /// The bit in that byte.
    pub mask: u8,
}

/// The one-bit field of this name; `None` when the kernel does not describe its types, has no such field, or would not let
/// a program read it.
pub(super) fn bit_of_kernel(structure: &str, field: &str) -> Option<Bit> {
    // Locked down for confidentiality the kernel lets no program look, and would refuse one that does.
    let lockdown = std::fs::read_to_string(LOCKDOWN).unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return None;
    }
    let path = Path::new(VMLINUX);
    // The size of a file in sysfs is true for this one.
    let length = std::fs::metadata(path).ok()?.len();
    if length > MOST {
        return None;
    }
    find_bit(&std::fs::read(path).ok()?, structure, field)
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn name(strings: &[u8], at: u32) -> Option<&[u8]> {
    strings.get(usize::try_from(at).ok()?..)?.split(|byte| *byte == 0).next()
}

/// Length of what follows the three words of a type.
fn further(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integers, variables, tags of declarations.
        1 | 14 | 17 => 4,
        // Pointers, forward declarations, other names, qualifiers, functions, floats, tags of types.
        2 | 7..=12 | 16 | 18 => 0,
        // Arrays.
        3 => 12,
        // Structures, unions, sections, enumerations of 64 bits.
        4 | 5 | 15 | 19 => members * 12,
        // Enumerations, parameters.
        6 | 13 => members * 8,
        _ => return None,
    })
}

fn find_bit(data: &[u8], structure: &str, field: &str) -> Option<Bit> {
    if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let at = |index: usize| usize::try_from(word(data, 4 + index * 4)?).ok();
    let (header, types, types_length, names, names_length) = (at(0)?, at(1)?, at(2)?, at(3)?, at(4)?);
    let part = |start: usize, length: usize| data.get(header.checked_add(start)?..)?.get(..length);
    let (types, strings) = (part(types, types_length)?, part(names, names_length)?);
    let mut at = 0;
    while at < types.len() {
        let (own_name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
        let start = at + 12;
        if kind == STRUCT && name(strings, own_name) == Some(structure.as_bytes()) {
            // With this flag a member has the length of its bit field, too.
            let has_bits = info >> 31 == 1;
            for member in 0..members {
                let at = start + member * 12;
                if name(strings, word(types, at)?) != Some(field.as_bytes()) {
                    continue;
                }
                let place = word(types, at + 8)?;
                let (bits, place) = (place >> 24, place & 0x00ff_ffff);
                return (has_bits && bits == 1 && cfg!(target_endian = "little"))
                    .then_some(Bit { byte: place / 8, mask: 1 << (place % 8) });
            }
        }
        at = start.checked_add(further(kind, members)?)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, then `struct a { int x; unsigned y : 1; }` with `y` at bit 43.
    fn description() -> Vec<u8> {
        let strings = b"\0int\0a\0x\0y\0";
        let types: Vec<u32> =
            vec![1, 1 << 24, 4, 32, 5, 1 << 31 | 4 << 24 | 2, 8, 7, 1, 0, 9, 1, 1 << 24 | 43];
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        let length = u32::try_from(types.len() * 4).unwrap();
        for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()].into_iter().chain(types) {
            data.extend(word.to_ne_bytes());
        }
        data.extend(strings);
        data
    }

    #[test]
    fn a_bit_is_found_by_its_name() {
        let data = description();
        assert_eq!(find_bit(&data, "a", "y"), Some(Bit { byte: 5, mask: 8 }));
        for (structure, field) in [("a", "x"), ("a", "z"), ("int", "y"), ("", "")] {
            assert_eq!(find_bit(&data, structure, field), None, "{structure}.{field}");
        }
        for length in 0..data.len() {
            // Cut off anywhere: nothing is found, or what is there.
            let _ = find_bit(&data[..length], "a", "y");
        }
    }
}
