//! What tests that compare with recordings have in common.

use std::collections::BTreeMap;

/// The cases that are expected to differ, with the reason of each, out of a list with `name<space>reason` a line and
/// remarks behind `#`.
///
/// # Panics
/// When a case stands there without a reason: nobody could tell whether it still has to differ.
pub fn expected(list: &'static str) -> BTreeMap<&'static str, &'static str> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cases = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
    cases.inspect(|(name, reason)| assert!(!reason.trim().is_empty(), "{name} has no reason")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_names_and_reasons() {
        assert_eq!(
            expected("# remark\n\none because of this\n"),
            BTreeMap::from([("one", "because of this")])
        );
    }

    #[test]
    #[should_panic(expected = "one has no reason")]
    fn a_case_without_a_reason_is_refused() {
        expected("one\n");
    }
}
