//! Lists of completion indexes such as `0,2-4`.

use crate::error::quote;

type Interval = (i64, i64);

fn interval(text: &str, completions: i64) -> Result<Interval, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let index = |text: &str| {
        let number: i64 = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {}", quote(text)))?;
        if number >= completions {
            return Err(format!("too large index: {}", quote(text)));
        }
        Ok(number)
    };
    match parts.as_slice() {
        [one] => index(one).map(|x| (x, x)),
        [first, last] => {
            let (x, y) = (index(first)?, index(last)?);
            if x >= y {
                return Err(format!("non-increasing order, previous: {x}, current: {y}"));
            }
            Ok((x, y))
        }
        _ => Err(format!(
            "the fragment {} violates the requirement that an index interval can have at most two parts separated by '-'",
            quote(text)
        )),
    }
}

/// The number of indexes of a list, or why it is none.
pub(super) fn count(text: &str, completions: i64) -> Result<i64, String> {
    let mut total = 0;
    let mut last = None;
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (x, y) = interval(part, completions)?;
        if let Some(last) = last.filter(|last| *last >= x) {
            return Err(format!("non-increasing order, previous: {last}, current: {x}"));
        }
        total += y - x + 1;
        last = Some(y);
    }
    Ok(total)
}

/// An index that is in both lists; parts that are no intervals are passed over.
pub(super) fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    let all = |text: &str| -> Vec<Interval> {
        text.split(',').filter(|_| !text.is_empty()).filter_map(|p| interval(p, completions).ok()).collect()
    };
    let (a, b) = (all(a), all(b));
    let (mut i, mut j) = (0, 0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        if x.0 <= y.1 && y.0 <= x.1 {
            return Some(x.0.max(y.0));
        }
        if x.0 <= y.0 { i += 1 } else { j += 1 }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists() {
        assert_eq!(count("", 3), Ok(0));
        assert_eq!(count("0,2-4", 5), Ok(4));
        for (bad, why) in [
            ("5", "too large index: \"5\""),
            ("a", "cannot convert string to integer for index: \"a\""),
            ("2-1", "non-increasing order, previous: 2, current: 1"),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
        ] {
            assert_eq!(count(bad, 5), Err(why.to_owned()), "{bad}");
        }
        assert!(count("1-2-3", 5).is_err_and(|why| why.starts_with("the fragment \"1-2-3\" violates")));
        assert_eq!(overlap("0,2-4", "1,4", 5), Some(4));
        assert_eq!(overlap("0,2", "1,3", 5), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[-0-9,a]{0,30}", completions in 0..1000i64) {
            let _ = (count(&text, completions), overlap(&text, &text, completions));
        }
    }
}
