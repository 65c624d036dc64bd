//! Unified differences of texts: the algorithm of Ratcliff and Obershelp as `difflib` has it, its rule for frequent
//! lines included, so that hunks are those of upstream's messages.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Lines around a change.
const CONTEXT: usize = 3;
/// Longer texts are not compared: the work grows with the square of the length.
const MAX_LINES: usize = 10_000;
/// From this length on, lines that make up more than one in a hundred are no anchors.
const POPULAR_FROM: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    a: usize,
    b: usize,
    size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Equal,
    Change,
}

/// A run of lines of both texts.
#[derive(Debug, Clone, Copy)]
struct Run {
    tag: Tag,
    a: (usize, usize),
    b: (usize, usize),
}

struct Matcher<'a> {
    a: Vec<&'a str>,
    b: Vec<&'a str>,
    places: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Matcher<'a> {
    fn new(a: &'a str, b: &'a str) -> Self {
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split('\n').collect(), b.split('\n').collect());
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, line) in b.iter().enumerate() {
            places.entry(line).or_default().push(i);
        }
        if b.len() >= POPULAR_FROM {
            let most = b.len() / 100 + 1;
            places.retain(|_, at| at.len() <= most);
        }
        Matcher { a, b, places }
    }

    fn same(&self, i: usize, j: usize) -> bool {
        matches!((self.a.get(i), self.b.get(j)), (Some(x), Some(y)) if x == y)
    }

    /// The longest common run within the bounds, the first of several.
    fn longest(&self, a: (usize, usize), b: (usize, usize)) -> Block {
        let mut best = Block { a: a.0, b: b.0, size: 0 };
        let mut lengths: HashMap<usize, usize> = HashMap::new();
        for i in a.0..a.1 {
            let mut next = HashMap::new();
            let at = self.a.get(i).and_then(|line| self.places.get(line));
            for &j in at.into_iter().flatten().filter(|j| (b.0..b.1).contains(j)) {
                let before = j.checked_sub(1).and_then(|j| lengths.get(&j)).copied().unwrap_or(0);
                let size = before + 1;
                next.insert(j, size);
                if size > best.size {
                    best = Block { a: i + 1 - size, b: j + 1 - size, size };
                }
            }
            lengths = next;
        }
        while best.a > a.0 && best.b > b.0 && self.same(best.a - 1, best.b - 1) {
            best = Block { a: best.a - 1, b: best.b - 1, size: best.size + 1 };
        }
        while best.a + best.size < a.1
            && best.b + best.size < b.1
            && self.same(best.a + best.size, best.b + best.size)
        {
            best.size += 1;
        }
        best
    }

    fn blocks(&self) -> Vec<Block> {
        let (n, m) = (self.a.len(), self.b.len());
        let mut found = Vec::new();
        let mut open = vec![((0, n), (0, m))];
        while let Some((a, b)) = open.pop() {
            let block = self.longest(a, b);
            if block.size == 0 {
                continue;
            }
            found.push(block);
            if a.0 < block.a && b.0 < block.b {
                open.push(((a.0, block.a), (b.0, block.b)));
            }
            let end = (block.a + block.size, block.b + block.size);
            if end.0 < a.1 && end.1 < b.1 {
                open.push(((end.0, a.1), (end.1, b.1)));
            }
        }
        found.sort_by_key(|block| (block.a, block.b));
        let mut merged: Vec<Block> = Vec::new();
        for block in found {
            match merged.last_mut() {
                Some(last) if last.a + last.size == block.a && last.b + last.size == block.b => {
                    last.size += block.size;
                }
                _ => merged.push(block),
            }
        }
        merged.push(Block { a: n, b: m, size: 0 });
        merged
    }

    fn runs(&self) -> Vec<Run> {
        let (mut i, mut j) = (0, 0);
        let mut runs = Vec::new();
        for block in self.blocks() {
            if i < block.a || j < block.b {
                runs.push(Run { tag: Tag::Change, a: (i, block.a), b: (j, block.b) });
            }
            (i, j) = (block.a + block.size, block.b + block.size);
            if block.size > 0 {
                runs.push(Run { tag: Tag::Equal, a: (block.a, i), b: (block.b, j) });
            }
        }
        runs
    }
}

/// Runs in groups that are shown together, with a few equal lines around each.
fn groups(mut runs: Vec<Run>) -> Vec<Vec<Run>> {
    if let Some(first) = runs.first_mut().filter(|r| r.tag == Tag::Equal) {
        first.a.0 = first.a.0.max(first.a.1.saturating_sub(CONTEXT));
        first.b.0 = first.b.0.max(first.b.1.saturating_sub(CONTEXT));
    }
    if let Some(last) = runs.last_mut().filter(|r| r.tag == Tag::Equal) {
        last.a.1 = last.a.1.min(last.a.0 + CONTEXT);
        last.b.1 = last.b.1.min(last.b.0 + CONTEXT);
    }
    let mut groups = Vec::new();
    let mut group: Vec<Run> = Vec::new();
    for run in runs {
        if run.tag == Tag::Equal && run.a.1 - run.a.0 > 2 * CONTEXT {
            group.push(Run {
                tag: Tag::Equal,
                a: (run.a.0, run.a.0 + CONTEXT),
                b: (run.b.0, run.b.0 + CONTEXT),
            });
            groups.push(std::mem::take(&mut group));
            group.push(Run {
                tag: Tag::Equal,
                a: (run.a.1 - CONTEXT, run.a.1),
                b: (run.b.1 - CONTEXT, run.b.1),
            });
        } else {
            group.push(run);
        }
    }
    if group.iter().any(|r| r.tag == Tag::Change) {
        groups.push(group);
    }
    groups
}

fn range(start: usize, stop: usize) -> String {
    match stop.saturating_sub(start) {
        1 => (start + 1).to_string(),
        0 => format!("{start},0"),
        length => format!("{},{length}", start + 1),
    }
}

/// The unified difference, empty when nothing differs.
pub(super) fn unified(old: &str, new: &str) -> String {
    let matcher = Matcher::new(old, new);
    if matcher.a.len().max(matcher.b.len()) > MAX_LINES {
        return String::new();
    }
    let runs = matcher.runs();
    if runs.iter().all(|r| r.tag == Tag::Equal) {
        return String::new();
    }
    let mut out = String::new();
    let lines = |prefix: char, of: &[&str], (from, to): (usize, usize), out: &mut String| {
        for line in of.get(from..to).unwrap_or_default() {
            out.push(prefix);
            out.push_str(line);
            out.push('\n');
        }
    };
    for group in groups(runs) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let _ = writeln!(out, "@@ -{} +{} @@", range(first.a.0, last.a.1), range(first.b.0, last.b.1));
        for run in &group {
            match run.tag {
                Tag::Equal => lines(' ', &matcher.a, run.a, &mut out),
                Tag::Change => {
                    lines('-', &matcher.a, run.a, &mut out);
                    lines('+', &matcher.b, run.b, &mut out);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hunks() {
        assert_eq!(unified("a\nb", "a\nb"), "");
        assert_eq!(unified("a\nb\nc", "a\nx\nc"), "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        let old: Vec<String> = (0..20).map(|i| i.to_string()).collect();
        let mut new = old.clone();
        new[2] = "two".into();
        new.insert(15, "more".into());
        assert_eq!(
            unified(&old.join("\n"), &new.join("\n")),
            "@@ -1,6 +1,6 @@\n 0\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -13,6 +13,7 @@\n 12\n 13\n 14\n+more\n 15\n 16\n 17\n"
        );
    }

    /// Applies a difference to the text it was made from.
    fn applied(old: &str, diff: &str) -> String {
        let lines: Vec<&str> = old.split('\n').collect();
        let (mut out, mut at) = (Vec::new(), 0);
        for line in diff.lines() {
            if let Some(head) = line.strip_prefix("@@ -") {
                let range = head.split(' ').next().unwrap();
                let (start, length) = range.split_once(',').unwrap_or((range, "1"));
                let start: usize = start.parse().unwrap();
                let start = if length == "0" { start } else { start - 1 };
                out.extend_from_slice(&lines[at..start]);
                at = start;
            } else if let Some(added) = line.strip_prefix('+') {
                out.push(added);
            } else {
                if !line.starts_with('-') {
                    out.push(lines[at]);
                }
                at += 1;
            }
        }
        out.extend_from_slice(&lines[at..]);
        out.join("\n")
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_the_old_to_the_new(
            old in proptest::collection::vec("[a-d]{1,2}", 1..300),
            new in proptest::collection::vec("[a-d]{1,2}", 1..300),
        ) {
            let (old, new) = (old.join("\n"), new.join("\n"));
            prop_assert_eq!(applied(&old, &unified(&old, &new)), new);
        }
    }
}
