//! Names by which people know what the other maps hold. No program reads them: they lie beside the tables so that tools
//! can tell what a table is of while no agent runs.

/// The parts of a name (namespace, name, …), each ended by a zero byte; what does not fit is cut off.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<const N: usize>(pub [u8; N]);

/// Namespace, name and port of a Service; of a Pod and its `hostPort`. Names of Services and of ports have at most 63
/// bytes, so only those of Pods are ever cut.
pub type ServiceName = Name<208>;

/// Namespace and name of a Pod.
pub type PodName = Name<320>;

/// Namespace and names of the NetworkPolicies that add up to a table of rules.
pub type PolicyNames = Name<1024>;

/// The key of a table's [`PolicyNames`].
#[must_use]
pub const fn policy_key(space: u32, table: u32) -> u64 {
    ((space as u64) << 32) | table as u64
}

impl<const N: usize> Name<N> {
    /// A name of these parts.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut bytes = [0; N];
        let mut next = 0;
        for part in parts {
            // The last byte is the end of the last part.
            let room = N.saturating_sub(next + 1);
            let length =
                (0..=part.len().min(room)).rev().find(|end| part.is_char_boundary(*end)).unwrap_or(0);
            if let Some(place) = bytes.get_mut(next..next + length) {
                place.copy_from_slice(part.as_bytes().get(..length).unwrap_or_default());
            }
            next += length + 1;
        }
        Self(bytes)
    }

    /// The parts; behind the last one all are empty. One that is no text, as no agent writes it, is empty too.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split(|byte| *byte == 0).map(|part| core::str::from_utf8(part).unwrap_or_default())
    }
}

const _: () = assert!(size_of::<ServiceName>() == 208 && size_of::<PodName>() == 320);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_and_long_ones_are_cut() {
        let name = ServiceName::of(&["kube-system", "kube-dns", "dns"]);
        assert!(name.parts().take(3).eq(["kube-system", "kube-dns", "dns"]));
        assert!(ServiceName::of(&["a", "", "b"]).parts().take(4).eq(["a", "", "b", ""]));
        let name = Name::<8>::of(&["abc", "defgh", "i"]);
        assert!(name.parts().take(3).eq(["abc", "def", ""]), "{name:?}");
        assert!(Name::<4>::of(&["aéé"]).parts().take(1).eq(["aé"]), "never in the middle of a character");
        assert!(Name::<4>([b'a', b'b', b'c', b'd']).parts().eq(["abcd"]));
        assert!(Name::<4>([0xff, 0, b'c', 0]).parts().take(2).eq(["", "c"]));
    }
}
