//! Writing protobuf: varints, tags and length-prefixed parts.

/// Appends a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a varint takes.
pub(super) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends bytes or text.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an integer or boolean.
pub(super) fn put_number(out: &mut Vec<u8>, number: u32, value: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value as u64);
}

/// Appends a floating point number.
pub(super) fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a message that `write` makes in place.
pub(super) fn put_message<T>(out: &mut Vec<u8>, number: u32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    put_varint(out, u64::from(number) << 3 | 2);
    // Most messages are shorter than 128 bytes: one byte is kept for the length, a longer one moves what follows.
    let start = out.len();
    out.push(0);
    let result = write(out);
    let length = (out.len() - start - 1) as u64;
    let extra = varint_len(length) - 1;
    if extra > 0 {
        let end = out.len();
        out.resize(end + extra, 0);
        out.copy_within(start + 1..end, start + 1 + extra);
    }
    let mut value = length;
    for slot in out.iter_mut().skip(start).take(extra + 1) {
        *slot = (value as u8 & 0x7f) | if value >= 0x80 { 0x80 } else { 0 };
        value >>= 7;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_in_place_is_one_made_apart(length in 0usize..40_000, before in 0usize..3) {
            let content = vec![7u8; length];
            let mut want = vec![1; before];
            put_bytes(&mut want, 5, &content);
            let mut got = vec![1; before];
            put_message(&mut got, 5, |out| out.extend_from_slice(&content));
            prop_assert_eq!(got, want);
        }

        #[test]
        fn lengths_of_varints(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
        }
    }
}
