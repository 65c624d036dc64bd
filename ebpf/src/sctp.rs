//! The checksum of SCTP (RFC 9260, 6.8: CRC32c over the whole packet) after a change of the ports.
//!
//! A CRC is linear: the new checksum is the old one, exclusive-or the CRC of the changed bits with as many zeros behind
//! them as the packet has bytes. Zeros multiply the remainder by a power of x modulo the polynomial. Nothing depends on
//! the packet's content, so nothing but the head has to be read.

/// The polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// One, and x to the power 8: what one zero byte does.
const ONE: u32 = 1 << 31;
const BYTE: u32 = 1 << (31 - 8);

/// What `n` zero bytes do, for n = 0..256.
static LOW: [u32; 256] = powers(BYTE);
/// What `256·n` zero bytes do.
static HIGH: [u32; 256] = powers(multiply(LOW[255], BYTE));

/// The powers 0..256 of a polynomial.
const fn powers(base: u32) -> [u32; 256] {
    let mut table = [ONE; 256];
    let mut index = 1;
    while index < 256 {
        table[index] = multiply(table[index - 1], base);
        index += 1;
    }
    table
}

/// The product of two polynomials. Without branches, so that the verifier follows one path.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let mut product = 0;
    let mut b = b;
    let mut bit = 32;
    while bit > 0 {
        bit -= 1;
        product ^= b & 0_u32.wrapping_sub((a >> bit) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(b & 1));
    }
    product
}

/// What a change of the first four bytes of a packet (`difference`, as in memory) of `length` bytes does to its checksum.
#[inline(never)]
pub fn change(difference: u32, length: u32) -> u32 {
    // The remainder of four bytes is their product with x³²: four bytes of zeros.
    let zeros = length & 0xffff;
    let low = multiply(LOW[(zeros & 0xff) as usize], difference);
    multiply(HIGH[(zeros >> 8 & 0xff) as usize], low)
}
