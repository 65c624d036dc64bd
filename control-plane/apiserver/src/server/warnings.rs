//! The headers warnings are sent in.

use std::collections::HashSet;

/// Characters of all warnings of an answer; when there are more, each is cut short.
const ALL: usize = 4 * 1024;
/// Characters of a warning that is cut short.
const EACH: usize = 256;

/// The values of `Warning` headers: each text once, and no more of them than a client's buffer holds (upstream's
/// `filters/warning.go`).
pub(super) fn headers(texts: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let texts: Vec<&str> = texts
        .iter()
        .map(String::as_str)
        .filter(|text| !text.is_empty() && !text.chars().any(char::is_control) && seen.insert(*text))
        .collect();
    let cut = texts.iter().map(|text| text.chars().count()).sum::<usize>() > ALL;
    let mut room = ALL;
    let mut out = Vec::new();
    for text in texts {
        let shown: String = if cut { text.chars().take(EACH).collect() } else { text.to_owned() };
        if room == 0 {
            break;
        }
        room = room.saturating_sub(shown.chars().count());
        out.push(format!("299 - \"{}\"", shown.replace('\\', "\\\\").replace('"', "\\\"")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_once_and_quoted() {
        let texts =
            ["a \"b\" \\".to_owned(), "c".to_owned(), "c".to_owned(), "bad\n".to_owned(), String::new()];
        assert_eq!(headers(&texts), ["299 - \"a \\\"b\\\" \\\\\"", "299 - \"c\""]);
    }

    #[test]
    fn many_are_cut() {
        let long: Vec<String> = (0..30).map(|i| format!("{i:02}{}", "é".repeat(300))).collect();
        let sent = headers(&long);
        assert_eq!(sent.len(), 16);
        assert!(sent.iter().all(|text| text.chars().count() == 256 + 8));
        assert_eq!(headers(&long[..2]).first().map(|text| text.chars().count()), Some(302 + 8));
    }
}
