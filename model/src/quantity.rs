//! Resource quantities (`100m`, `1.5Gi`, `1e3`): exact arithmetic and upstream's canonical text.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `n u m "" k M G T P E`.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`, `E-3`.
    DecimalExponent,
}

/// Why a text is not a quantity. The messages are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not have the shape number + suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number cannot be represented.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Smallest exponent kept: one nano unit; smaller fractions are rounded away from zero.
const NANO: i32 = -9;

/// A number `mantissa × 10^exponent` with the format it was written in. Precise to one billionth; equality and order
/// compare the amount, not the format.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
}

impl Quantity {
    /// Zero, in decimal format.
    pub const ZERO: Self = Self { mantissa: 0, exponent: 0, format: Format::DecimalSi };

    /// `value` whole units.
    #[must_use]
    pub const fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value as i128, exponent: 0, format }
    }

    /// `value` thousandths (milli-CPU), in decimal format.
    #[must_use]
    pub const fn from_milli(value: i64) -> Self {
        Self { mantissa: value as i128, exponent: -3, format: Format::DecimalSi }
    }

    /// Reads a quantity.
    ///
    /// # Errors
    /// When the text is not a quantity; the error's text is upstream's.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text)
    }

    /// How the quantity is written.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// True for zero.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// −1, 0 or 1.
    #[must_use]
    pub const fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// Whole units, rounded up (away from zero), saturating.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// Thousandths, rounded up (away from zero), saturating.
    #[must_use]
    pub fn milli_value(&self) -> i64 {
        self.scaled(-3)
    }

    /// The amount in units of `10^scale`, rounded up (away from zero), saturating.
    #[must_use]
    pub fn scaled(&self, scale: i32) -> i64 {
        let m = if self.exponent >= scale {
            match shift_up(self.mantissa, self.exponent - scale) {
                Some(m) => m,
                None => return if self.mantissa < 0 { i64::MIN } else { i64::MAX },
            }
        } else {
            shift_down_away(self.mantissa, scale - self.exponent).0
        };
        i64::try_from(m).unwrap_or(if m < 0 { i64::MIN } else { i64::MAX })
    }

    /// True when the amount is a multiple of `10^scale` units.
    #[must_use]
    pub fn is_multiple_of_scale(&self, scale: i32) -> bool {
        self.exponent >= scale || shift_down_away(self.mantissa, scale - self.exponent).1
    }

    /// The amount rounded up (away from zero) to a multiple of `10^scale` units.
    #[must_use]
    pub fn round_up(self, scale: i32) -> Self {
        if self.exponent >= scale {
            return self;
        }
        let (mantissa, _) = shift_down_away(self.mantissa, scale - self.exponent);
        Self { mantissa, exponent: scale, ..self }
    }

    /// The amount as a floating point number.
    #[must_use]
    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.exponent)
    }
}

/// The sum; in the format of `self` unless that is zero. Saturates far beyond any real amount.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        if other.is_zero() {
            return self;
        }
        if self.is_zero() {
            return other;
        }
        let (low, high) = if self.exponent <= other.exponent { (self, other) } else { (other, self) };
        let sum =
            shift_up(high.mantissa, high.exponent - low.exponent).and_then(|h| h.checked_add(low.mantissa));
        match sum {
            Some(mantissa) => Self { mantissa, exponent: low.exponent, format: self.format },
            // The larger exponent is so far away that the other amount is below its last digit.
            None => Self { format: self.format, ..high },
        }
    }
}

/// The difference, as a sum.
impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        if self.is_zero() { -other } else { self + -other }
    }
}

/// The amount with the opposite sign.
impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { mantissa: self.mantissa.saturating_neg(), ..self }
    }
}

/// `m × 10^by`, none on overflow.
fn shift_up(m: i128, by: i32) -> Option<i128> {
    if m == 0 {
        return Some(0);
    }
    let by = u32::try_from(by).ok()?;
    10i128.checked_pow(by).and_then(|p| m.checked_mul(p))
}

/// `m ÷ 10^by` rounded away from zero, and whether the division was exact.
fn shift_down_away(m: i128, by: i32) -> (i128, bool) {
    let power = u32::try_from(by).ok().and_then(|by| 10i128.checked_pow(by));
    match power {
        Some(p) => {
            let (q, r) = (m / p, m % p);
            (if r == 0 { q } else { q + r.signum() }, r == 0)
        }
        None => (m.signum(), m == 0),
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self, other);
        if a.mantissa.signum() != b.mantissa.signum() {
            return a.mantissa.signum().cmp(&b.mantissa.signum());
        }
        let positive = a.mantissa >= 0;
        if a.exponent >= b.exponent {
            match shift_up(a.mantissa, a.exponent - b.exponent) {
                Some(m) => m.cmp(&b.mantissa),
                None if positive => Ordering::Greater,
                None => Ordering::Less,
            }
        } else {
            b.cmp(a).reverse()
        }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        parse(s)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    type Error = QuantityError;
    fn try_from(q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<Self, QuantityError> {
        parse(&q.0)
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(q: Quantity) -> Self {
        Self(q.to_string())
    }
}

impl fmt::Display for Quantity {
    /// Upstream's canonical form: no fraction, the largest suffix that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi {
            let whole = if self.exponent >= 0 {
                shift_up(self.mantissa, self.exponent)
            } else {
                Some(shift_down_away(self.mantissa, -self.exponent))
                    .filter(|(_, exact)| *exact)
                    .map(|(m, _)| m)
            };
            // Small or fractional amounts are written in decimal, so that nothing is lost.
            if let Some(mut n) = whole.filter(|n| n.unsigned_abs() >= 1024) {
                let mut step = 0;
                while n % 1024 == 0 && step < 6 {
                    n /= 1024;
                    step += 1;
                }
                return write!(f, "{n}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
            }
        }
        let (mut m, mut e) = (self.mantissa, i64::from(self.exponent));
        while m % 10 == 0 {
            m /= 10;
            e += 1;
        }
        let mut pad = e.rem_euclid(3);
        e -= pad;
        if self.format != Format::DecimalExponent && e > 18 {
            pad += e - 18;
            e = 18;
        }
        write!(f, "{m}")?;
        // Quantities beyond exa come from sums only; their length is bounded by the mantissa's range.
        for _ in 0..pad.min(64) {
            f.write_str("0")?;
        }
        if self.format == Format::DecimalExponent {
            return if e == 0 { Ok(()) } else { write!(f, "e{e}") };
        }
        f.write_str(match e {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        })
    }
}

fn take_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn parse(text: &str) -> Result<Quantity, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    let (negative, rest) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (whole, rest) = take_digits(rest);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(r) => take_digits(r),
        None => ("", rest),
    };
    let letters = rest.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let tail = rest[letters..].strip_prefix(['-', '+']).unwrap_or(&rest[letters..]);
    if !tail.bytes().all(|b| b.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    let (format, decimal, binary) = suffix(rest)?;

    let mut mantissa: i128 = 0;
    let mut exponent = i64::from(decimal);
    let mut lost = false;
    let digits = whole.bytes().map(|b| (b, false)).chain(fraction.bytes().map(|b| (b, true)));
    for (digit, after_point) in digits {
        let next = mantissa.checked_mul(10).and_then(|m| m.checked_add(i128::from(digit - b'0')));
        // A binary suffix multiplies by up to 2^60 below; leave room for it.
        match next.filter(|m| !lost && (binary == 0 || *m < 1 << 66)) {
            Some(m) => {
                mantissa = m;
                exponent -= i64::from(after_point);
            }
            None => {
                lost = true;
                if digit != b'0' && after_point && binary == 0 && exponent <= i64::from(NANO) {
                    mantissa |= 1;
                }
                exponent += i64::from(!after_point);
            }
        }
    }
    mantissa = mantissa.checked_mul(1i128 << binary).ok_or(QuantityError::Numeric)?;
    let exponent = i32::try_from(exponent).map_err(|_| QuantityError::Numeric)?;
    let mut q = Quantity { mantissa, exponent, format }.round_up(NANO);
    let max = Quantity::new(i64::MAX, format);
    if format == Format::BinarySi && q > max {
        q = max;
    }
    if format == Format::BinarySi && !q.is_zero() && q < Quantity::new(1, format) {
        q.format = Format::DecimalSi;
    }
    if q.is_zero() {
        q.exponent = 0;
    }
    Ok(if negative { -q } else { q })
}

/// Format, decimal exponent and binary exponent of a suffix.
fn suffix(s: &str) -> Result<(Format, i32, u32), QuantityError> {
    use Format::{BinarySi, DecimalExponent, DecimalSi};
    Ok(match s {
        "n" => (DecimalSi, -9, 0),
        "u" => (DecimalSi, -6, 0),
        "m" => (DecimalSi, -3, 0),
        "" => (DecimalSi, 0, 0),
        "k" => (DecimalSi, 3, 0),
        "M" => (DecimalSi, 6, 0),
        "G" => (DecimalSi, 9, 0),
        "T" => (DecimalSi, 12, 0),
        "P" => (DecimalSi, 15, 0),
        "E" => (DecimalSi, 18, 0),
        "Ki" => (BinarySi, 0, 10),
        "Mi" => (BinarySi, 0, 20),
        "Gi" => (BinarySi, 0, 30),
        "Ti" => (BinarySi, 0, 40),
        "Pi" => (BinarySi, 0, 50),
        "Ei" => (BinarySi, 0, 60),
        _ => {
            let digits = s.strip_prefix(['e', 'E']).filter(|d| !d.is_empty()).ok_or(QuantityError::Suffix)?;
            (DecimalExponent, digits.parse().map_err(|_| QuantityError::Suffix)?, 0)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(s: &str) -> String {
        parse(s).map_or_else(|e| format!("error: {e}"), |q| q.to_string())
    }

    #[test]
    fn canonical_text() {
        for (given, want) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1000k", "1M"),
            ("64Mi", "64Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1500e0", "1500"),
            ("1E6", "1e6"),
            ("1E", "1E"),
            ("12e-3", "12e-3"),
            ("0.0000000001", "1n"),
            ("-0.0000000001", "-1n"),
            (".5", "500m"),
            ("-1.5k", "-1500"),
            ("+5", "5"),
            ("9999999Ei", "9223372036854775807"),
            ("00012", "12"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
        ] {
            assert_eq!(canonical(given), want, "{given}");
        }
    }

    #[test]
    fn malformed() {
        for bad in ["", "aoeu", "1.1.M", "1+1.0M", "0.1am", " 1", "1 ", "ten", "1Gi!"] {
            assert_eq!(parse(bad), Err(QuantityError::Format), "{bad:?}");
        }
        for bad in ["1i", ".5i", "0.1mi", "-3.01i", "-3.01e-", "1KiKi", "1ee3"] {
            assert_eq!(parse(bad), Err(QuantityError::Suffix), "{bad:?}");
        }
    }

    #[test]
    fn values_round_up() {
        assert_eq!(parse("1m").unwrap().value(), 1);
        assert_eq!(parse("1500u").unwrap().milli_value(), 2);
        assert_eq!(parse("2").unwrap().milli_value(), 2000);
        assert_eq!(parse("1e100").unwrap().value(), i64::MAX);
        assert_eq!(parse("1500u").unwrap().round_up(-3).to_string(), "2m");
        assert_eq!((parse("1Gi").unwrap() + parse("512Mi").unwrap()).to_string(), "1536Mi");
        assert_eq!((parse("1").unwrap() - parse("100m").unwrap()).to_string(), "900m");
    }

    proptest! {
        #[test]
        fn never_panics(s in "\\PC{0,24}") { let _ = canonical(&s); }

        #[test]
        fn numbers_never_panic(s in "[+-]?[0-9]{0,45}(\\.[0-9]{0,45})?(m|Ki|Ei|E|e-?[0-9]{1,11}|n)?") {
            if let Ok(q) = parse(&s) { let _ = (q.to_string().len(), q.value(), q + q - q); }
        }

        #[test]
        fn canonical_text_is_stable(m in -1_000_000_000_000i64..1_000_000_000_000, s in "n|u|m||k|M|G|Ki|Mi|Gi|e3|e-6") {
            let q = parse(&format!("{m}{s}")).unwrap();
            let again = parse(&q.to_string()).unwrap();
            prop_assert_eq!(again, q);
            prop_assert_eq!(again.to_string(), q.to_string());
        }

        #[test]
        fn sums(a in -1i64<<40..1i64<<40, b in -1i64<<40..1i64<<40) {
            let (x, y) = (Quantity::from_milli(a), Quantity::new(b, Format::BinarySi));
            prop_assert_eq!(x + y, y + x);
            prop_assert_eq!(x + y - y, x);
            prop_assert_eq!(x.cmp(&y), i128::from(a).cmp(&(i128::from(b) * 1000)));
        }
    }
}
