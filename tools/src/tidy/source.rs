//! One Rust file, split so that rules can ask about its code, its comments and its tests.
//!
//! Pure; made by `tree` once per file and read by every rule.

use super::scan::{Class, classify, is_word};
use std::ops::Range;

/// A Rust file and what its bytes are.
#[derive(Debug)]
pub(super) struct Source {
    /// Path below the root.
    pub(super) path: String,
    /// The file as it is.
    pub(super) text: String,
    /// The file with comments and literals blanked; as long as `text`, same lines.
    pub(super) code: Vec<u8>,
    /// Byte ranges of the items under `#[cfg(test)]`, in order.
    pub(super) tests: Vec<Range<usize>>,
    line_starts: Vec<usize>,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let classes = classify(text.as_bytes());
        let blank = |(byte, class): (u8, &Class)| {
            if *class == Class::Code || byte == b'\n' { byte } else { b' ' }
        };
        let code: Vec<u8> = text.bytes().zip(&classes).map(blank).collect();
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        let tests = test_items(&code);
        Self { path: path.to_owned(), text: text.to_owned(), code, tests, line_starts }
    }

    /// The line, from 1, of a byte.
    pub(super) fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// True if the whole file, or this byte of it, is only compiled for tests.
    pub(super) fn is_test(&self, at: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|range| range.contains(&at))
    }

    /// True if the file holds nothing but tests, judged by its place.
    pub(super) fn is_test_file(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
            || self.path.contains("/e2e/")
    }

    /// Where `word` stands in the code on its own, not as a part of a longer name.
    pub(super) fn words(&self, word: &str) -> Vec<usize> {
        find_words(&self.code, word.as_bytes())
    }

    /// The paths one step below every mention of `name::` in code, with their places:
    /// `name::{a, b::c}` gives `a` and `b`.
    pub(super) fn children_of(&self, name: &str) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for start in self.words(name) {
            let after = skip_space(&self.code, start + name.len());
            if !self.code[after..].starts_with(b"::") {
                continue;
            }
            branches(&self.code, after + 2, &mut found);
        }
        found
    }
}

/// Where `word` stands in `text` with no word byte beside it.
pub(super) fn find_words(text: &[u8], word: &[u8]) -> Vec<usize> {
    let alone = |at: usize| {
        let before = at.checked_sub(1).and_then(|at| text.get(at));
        let after = text.get(at + word.len());
        !before.is_some_and(|byte| is_word(*byte)) && !after.is_some_and(|byte| is_word(*byte))
    };
    let last = (text.len() + 1).saturating_sub(word.len());
    (0..last).filter(|at| text[*at..].starts_with(word) && alone(*at)).collect()
}

/// The end, exclusive, of the braces that open at `open`; the end of the text if they never close.
pub(super) fn closing_brace(code: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Where the item that goes on at `at` ends, and where its body opens if it has one.
pub(super) fn item_end(code: &[u8], at: usize) -> (usize, Option<usize>) {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return (at + 1, None),
            b'{' if depth == 0 => return (closing_brace(code, at), Some(at)),
            _ => {}
        }
    }
    (code.len(), None)
}

fn skip_space(code: &[u8], at: usize) -> usize {
    at + code[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The first names of a use tree or path that starts at `at`.
fn branches(code: &[u8], at: usize, found: &mut Vec<(usize, String)>) {
    let at = skip_space(code, at);
    if code.get(at) != Some(&b'{') {
        let length = code[at..].iter().take_while(|byte| is_word(**byte)).count();
        let name =
            if length == 0 { &code[at..code.len().min(at + 1)] } else { &code[at..at + length] };
        found.push((at, String::from_utf8_lossy(name).into_owned()));
        return;
    }
    let end = closing_brace(code, at);
    let mut depth = 0_usize;
    let mut expected = true;
    for here in at..end {
        match code[here] {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 1 => expected = true,
            byte if depth == 1 && expected && !byte.is_ascii_whitespace() => {
                branches(code, here, found);
                expected = false;
            }
            _ => {}
        }
    }
}

/// The items under an attribute `#[cfg(test)]` or `#[cfg(all(test, ..))]`.
fn test_items(code: &[u8]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for name in find_words(code, b"cfg") {
        let Some(open) = name.checked_sub(2).filter(|open| &code[*open..name] == b"#[") else {
            continue;
        };
        if found.last().is_some_and(|last| last.contains(&open)) {
            continue;
        }
        let end = attribute_end(code, open);
        let attribute = &code[open..end];
        if find_words(attribute, b"test").is_empty() || !find_words(attribute, b"not").is_empty() {
            continue;
        }
        let mut item = skip_space(code, end);
        while code[item..].starts_with(b"#[") {
            item = skip_space(code, attribute_end(code, item));
        }
        found.push(open..item_end(code, item).0);
    }
    found
}

/// The end, exclusive, of the attribute whose `#` is at `open`.
fn attribute_end(code: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'[' => depth += 1,
            b']' if depth <= 1 => return at + 1,
            b']' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one() {
        let source = Source::new("a.rs", "a\nb\nc");
        assert_eq!((source.line_of(0), source.line_of(2), source.line_of(4)), (1, 2, 3));
    }

    #[test]
    fn words_are_whole_and_in_code() {
        let source = Source::new("a.rs", "unsafe_code unsafe // unsafe\n\"unsafe\"");
        assert_eq!(source.words("unsafe"), [12]);
    }

    #[test]
    fn test_modules_are_found_with_their_attributes_and_braces() {
        let text =
            "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests { fn b() { \"}\"; } }\nfn c() {}";
        let source = Source::new("a.rs", text);
        assert!(source.is_test(text.find("fn b").unwrap()));
        assert!(!source.is_test(text.find("fn a").unwrap()));
        assert!(!source.is_test(text.find("fn c").unwrap()));
    }

    #[test]
    fn code_for_all_but_tests_is_not_a_test() {
        let source = Source::new("a.rs", "#[cfg(not(test))]\nmod a { }");
        assert!(source.tests.is_empty());
        let source = Source::new("a.rs", "#[cfg(all(test, unix))]\nmod a;");
        assert_eq!(source.tests.len(), 1);
    }

    #[test]
    fn use_trees_give_their_first_names() {
        let source =
            Source::new("a.rs", "use x::{port::{A, B}, stats, shard::C};\nx::table::D; x::*");
        let names: Vec<String> = source.children_of("x").into_iter().map(|child| child.1).collect();
        assert_eq!(names, ["port", "stats", "shard", "table", "*"]);
    }
}
