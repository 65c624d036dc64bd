//! CPUs that containers have to themselves: upstream's CPU manager with the policy `static`.
//!
//! A container of a guaranteed pod that asks for whole CPUs gets some of its own; all others share the rest.

mod state;
mod take;

pub use state::{CheckpointError, State, whole_cpus};
pub use take::{NotEnough, Place, Topology};

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A set of CPUs, by their numbers. Its text is the kernel's list format, such as `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(pub BTreeSet<u32>);

impl CpuSet {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(&self.0 | &other.0)
    }

    /// Those that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(&self.0 - &other.0)
    }

    /// Those that both have.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self(&self.0 & &other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        Self(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
                _ => ranges.push((*cpu, *cpu)),
            }
        }
        for (index, (first, last)) in ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A text that is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of CPUs; it is such as 0-3,8")]
pub struct NoCpuSet(String);

/// Largest number of a CPU: more than any kernel is built for.
const MAX_CPU: u32 = 1 << 16;

impl FromStr for CpuSet {
    type Err = NoCpuSet;

    fn from_str(text: &str) -> Result<Self, NoCpuSet> {
        let wrong = || NoCpuSet(text.to_owned());
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) =
                (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
            if first > last || last > MAX_CPU {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        for (text, cpus) in [("", vec![]), ("3", vec![3]), ("0-2,5,7-8", vec![0, 1, 2, 5, 7, 8])] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(set, cpus.into_iter().collect());
            assert_eq!(set.to_string(), text);
        }
        assert_eq!("1,0\n".parse::<CpuSet>().unwrap().to_string(), "0-1");
        for wrong in ["a", "3-1", "1-", "0-4294967295", "-1"] {
            assert!(wrong.parse::<CpuSet>().is_err(), "{wrong}");
        }
    }
}
