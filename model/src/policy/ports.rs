//! Sets of ports.

use std::collections::BTreeSet;

/// Ports of a protocol, host byte order, both ends included.
pub type PortRange = (u8, u16, u16);

/// What may be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSet {
    /// Every port of every protocol, also of protocols without ports.
    All,
    /// These; ranges neither overlap nor touch.
    Some(Vec<PortRange>),
}

impl PortSet {
    /// The union of ranges.
    #[must_use]
    pub fn of(ranges: impl IntoIterator<Item = PortRange>) -> Self {
        let sorted: BTreeSet<PortRange> = ranges.into_iter().filter(|(_, a, b)| a <= b).collect();
        let mut merged: Vec<PortRange> = Vec::new();
        for (protocol, first, last) in sorted {
            match merged.last_mut() {
                Some(open) if open.0 == protocol && u32::from(first) <= u32::from(open.2) + 1 => {
                    open.2 = open.2.max(last);
                }
                _ => merged.push((protocol, first, last)),
            }
        }
        Self::Some(merged)
    }

    /// Whether nothing may be reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(ranges) if ranges.is_empty())
    }
}

/// The fewest prefixes that make up a range: a port and how many of its first bits count.
#[must_use]
pub fn prefixes(first: u16, last: u16) -> Vec<(u16, u32)> {
    let (mut next, end) = (u32::from(first), u32::from(last) + 1);
    let mut found = Vec::new();
    while next < end {
        // The largest block that begins here and does not reach beyond the end.
        let mut bits = next.trailing_zeros().min(16);
        while next + (1 << bits) > end {
            bits -= 1;
        }
        found.push((u16::try_from(next).unwrap_or(u16::MAX), 16 - bits));
        next += 1 << bits;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_merged() {
        let set = PortSet::of([(6, 80, 80), (6, 81, 90), (17, 53, 53), (6, 85, 100), (6, 102, 101)]);
        assert_eq!(set, PortSet::Some(vec![(6, 80, 100), (17, 53, 53)]));
        assert!(PortSet::of([]).is_empty() && !PortSet::All.is_empty());
        assert_eq!(prefixes(0, u16::MAX), [(0, 0)]);
        assert_eq!(prefixes(80, 80), [(80, 16)]);
        assert_eq!(prefixes(1, 4), [(1, 16), (2, 15), (4, 16)]);
    }

    proptest! {
        #[test]
        fn prefixes_are_the_range(a in any::<u16>(), b in any::<u16>()) {
            let (first, last) = (a.min(b), a.max(b));
            let found = prefixes(first, last);
            prop_assert!(found.len() <= 30);
            let mut next = u32::from(first);
            for (port, bits) in found {
                prop_assert_eq!(u32::from(port), next);
                prop_assert_eq!(next % (1 << (16 - bits)), 0);
                next += 1 << (16 - bits);
            }
            prop_assert_eq!(next, u32::from(last) + 1);
        }
    }
}
