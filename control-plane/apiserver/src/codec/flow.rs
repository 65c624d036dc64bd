//! How deep brackets nest in YAML, found out before it is parsed: the parser's time grows with the square of that, so that
//! a small document could keep it busy for minutes.

/// Where the scanner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    /// A node may begin here.
    Start,
    /// A plain scalar.
    Plain,
    /// Quotes of this kind.
    Quotes(u8),
    /// A comment, until the end of the line.
    Comment,
    /// A literal or folded scalar of a node in this column: what is indented more.
    Block(usize),
}

/// Whether brackets nest deeper than `limit`. Brackets in quotes, comments and scalars are text.
pub(super) fn is_deeper(text: &[u8], limit: usize) -> bool {
    let (mut state, mut depth) = (In::Start, 0usize);
    // Column of the node that a value or item belongs to.
    let mut owner = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let indent = line.iter().take_while(|byte| **byte == b' ').count();
        match state {
            In::Block(of) => {
                let blank = line.iter().all(u8::is_ascii_whitespace);
                if blank || indent > of {
                    continue;
                }
                state = In::Start;
            }
            In::Quotes(_) => {}
            _ => state = In::Start,
        }
        if depth == 0 && state == In::Start {
            owner = indent;
        }
        let mut previous = b' ';
        let mut bytes = line.iter().copied().enumerate().peekable();
        while let Some((column, byte)) = bytes.next() {
            let next = bytes.peek().map_or(b'\n', |(_, next)| *next);
            let space_next = next.is_ascii_whitespace();
            match (state, byte) {
                (In::Comment | In::Block(_), _) => {}
                (In::Quotes(b'"'), b'\\') => {
                    bytes.next();
                }
                (In::Quotes(b'\''), b'\'') if next == b'\'' => {
                    bytes.next();
                }
                (In::Quotes(quote), _) if byte == quote => state = In::Plain,
                (In::Quotes(_), _) => {}
                (_, b'#') if previous.is_ascii_whitespace() => state = In::Comment,
                (In::Start, b'\'' | b'"') => state = In::Quotes(byte),
                (_, b'[' | b'{') if depth > 0 || state == In::Start => {
                    depth += 1;
                    if depth > limit {
                        return true;
                    }
                    state = In::Start;
                }
                (_, b']' | b'}') if depth > 0 => {
                    depth -= 1;
                    state = In::Plain;
                }
                (_, b',') if depth > 0 => state = In::Start,
                // In brackets a quoted key may be followed by its value at once.
                (_, b':') if space_next || depth > 0 => state = In::Start,
                (In::Start, b'-' | b'?') if space_next && depth == 0 => owner = column,
                (In::Start, b'|' | b'>') if depth == 0 => state = In::Block(owner),
                // A tag or anchor stands before its node.
                (In::Start, b'!' | b'&') => {
                    while bytes.peek().is_some_and(|(_, next)| !next.is_ascii_whitespace()) {
                        bytes.next();
                    }
                }
                (In::Start, b' ' | b'\t' | b'\r' | b'\n') => {}
                (In::Start, _) => {
                    if depth == 0 && previous.is_ascii_whitespace() {
                        // A key of a mapping, perhaps, that begins behind a dash.
                        owner = if line.get(..column).is_some_and(is_before_a_key) { column } else { owner };
                    }
                    state = In::Plain;
                }
                (In::Plain, _) => {}
            }
            previous = byte;
        }
    }
    false
}

/// Whether nothing but indentation and dashes stands before a place in a line.
fn is_before_a_key(before: &[u8]) -> bool {
    before.iter().all(|byte| matches!(byte, b' ' | b'-' | b'?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_that_nest() {
        for (text, depth) in [
            ("a: [[1], {b: [2]}]", 3),
            ("{\"a\":{\"b\":[]}}", 3),
            ("- - [[\n  [x]]]", 3),
            ("a: !tag &anchor [[]]", 2),
            ("a: {b: 'it''s [', c: \"\\\"[\"}", 1),
            ("- a: |\n    [[[[\n  b: [[1]]", 2),
            ("? [[a]]\n: 1", 2),
        ] {
            assert!(is_deeper(text.as_bytes(), depth - 1), "{text}");
            assert!(!is_deeper(text.as_bytes(), depth), "{text}");
        }
    }

    #[test]
    fn brackets_that_are_text() {
        for text in [
            "a: x[[[[",
            "a: \"[[[[\"",
            "a: '[[[['",
            "a: 1 # [[[[",
            "# [[[[",
            "a: |\n  [[[[\n  [[[[\nb: 1",
            "- >-\n  [[[[\n\n  [[[[",
            "a:\n  b: |2\n      [[[[\n  c: 1",
            "a: \"one\n  [[[[\n  two\"",
            "run: if [ -f x ]; then [ y ]; fi",
        ] {
            assert!(!is_deeper(text.as_bytes(), 1), "{text}");
        }
    }

    #[test]
    fn deep_documents_are_found_whatever_stands_between() {
        for open in ["[", "{a: ", "[ ", "{\"a\":", "- [", "[\n", "['x', "] {
            assert!(is_deeper(open.repeat(300).as_bytes(), 256), "{open:?}");
        }
    }
}
