//! Which devices of a plugin a container gets.

use std::collections::BTreeSet;

/// Ids of devices.
pub type Ids = BTreeSet<String>;

/// What there is to choose from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Healthy devices.
    pub healthy: Ids,
    /// Devices that containers have.
    pub in_use: Ids,
    /// Devices that init containers of the pod had: they come first.
    pub reusable: Ids,
}

/// What a container gets without a question, and what it may be asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Devices that it gets in any case.
    pub given: Ids,
    /// Devices that the rest is chosen of, but for those given.
    pub available: Ids,
    /// How many it gets in all.
    pub wanted: usize,
}

/// Prepares the choice of `wanted` devices of `resource`; `has` are those that the container has already.
///
/// # Errors
/// There are too few, with upstream's text.
pub fn prepare(resource: &str, wanted: usize, has: &Ids, offer: &Offer) -> Result<Choice, String> {
    let mut given = has.clone();
    for id in &offer.reusable {
        if given.len() < wanted && offer.healthy.contains(id) {
            given.insert(id.clone());
        }
    }
    let available: Ids = offer
        .healthy
        .iter()
        .filter(|id| !offer.in_use.contains(*id) && !given.contains(*id))
        .cloned()
        .collect();
    let needed = wanted.saturating_sub(given.len());
    if available.len() < needed {
        return Err(format!(
            "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
            available.len()
        ));
    }
    Ok(Choice { given, available, wanted })
}

impl Choice {
    /// The devices: those given, those that the plugin prefers as far as they can be had, then the first ones.
    pub fn with(self, preferred: &[String]) -> Ids {
        let Self { given: mut chosen, available, wanted } = self;
        let first = preferred.iter().filter(|id| available.contains(*id));
        for id in first.chain(&available) {
            if chosen.len() >= wanted {
                break;
            }
            chosen.insert(id.clone());
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn reused_ones_come_first_then_those_preferred() {
        let offer =
            Offer { healthy: ids(&["a", "b", "c", "d"]), in_use: ids(&["a", "d"]), reusable: ids(&["d"]) };
        let choice = prepare("r", 2, &Ids::new(), &offer).unwrap();
        assert_eq!(choice.given, ids(&["d"]));
        assert_eq!(choice.available, ids(&["b", "c"]));
        assert_eq!(choice.clone().with(&["c".into()]), ids(&["c", "d"]));
        assert_eq!(choice.with(&["a".into(), "x".into()]), ids(&["b", "d"]), "what is in use is not given");
        assert_eq!(
            prepare("v/r", 4, &Ids::new(), &offer).unwrap_err(),
            "requested number of devices unavailable for v/r. Requested: 3, Available: 2"
        );
        let has = ids(&["a"]);
        assert_eq!(prepare("r", 1, &has, &offer).unwrap().with(&[]), has, "a container keeps what it has");
    }

    proptest! {
        #[test]
        fn nothing_is_given_twice(
            healthy in proptest::collection::btree_set(0u8..12, 0..10),
            used in proptest::collection::btree_set(0u8..12, 0..10),
            reusable in proptest::collection::btree_set(0u8..12, 0..4),
            wanted in 0usize..6,
            preferred in proptest::collection::vec(0u8..12, 0..6),
        ) {
            let text = |set: &std::collections::BTreeSet<u8>| -> Ids { set.iter().map(u8::to_string).collect() };
            let used: std::collections::BTreeSet<u8> = used.union(&reusable).copied().collect();
            let offer = Offer { healthy: text(&healthy), in_use: text(&used), reusable: text(&reusable) };
            if let Ok(choice) = prepare("r", wanted, &Ids::new(), &offer) {
                let preferred: Vec<String> = preferred.iter().map(u8::to_string).collect();
                let chosen = choice.with(&preferred);
                prop_assert_eq!(chosen.len(), wanted);
                prop_assert!(chosen.is_subset(&offer.healthy));
                prop_assert!(chosen.iter().all(|id| !offer.in_use.contains(id) || offer.reusable.contains(id)));
            }
        }
    }
}
