//! Limits that keep a file and a function readable in one sitting.
//!
//! Pure. A file is counted without its items under `#[cfg(test)]`; a function from its `fn` to its
//! closing brace, tests included.

use super::source::{Source, item_end};
use super::violation::Violation;
use std::collections::BTreeSet;

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;

/// Checks one file.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    let mut found = wide_lines(source);
    found.extend(long_functions(source));
    found.extend(long_file(source));
    found
}

fn wide_lines(source: &Source) -> Vec<Violation> {
    let widths = source.text.lines().map(|line| line.chars().count());
    (1..)
        .zip(widths)
        .filter(|(_, width)| *width > LINE_COLUMNS_MAX)
        .map(|(line, width)| {
            let message = format!("{width} columns, at most {LINE_COLUMNS_MAX}");
            Violation::new(&source.path, line, message)
        })
        .collect()
}

fn long_file(source: &Source) -> Option<Violation> {
    let mut test_lines = BTreeSet::new();
    for range in &source.tests {
        test_lines.extend(source.line_of(range.start)..=source.line_of(range.end - 1));
    }
    let lines = source.text.lines().count() - test_lines.len();
    let message = format!("{lines} lines without tests, at most {FILE_LINES_MAX}");
    (lines > FILE_LINES_MAX).then(|| Violation::new(&source.path, 0, message))
}

fn long_functions(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for start in source.words("fn") {
        let Some(name) = function_name(source, start) else { continue };
        let (end, Some(_)) = item_end(&source.code, start) else { continue };
        let lines = source.line_of(end - 1) - source.line_of(start) + 1;
        if lines > FUNCTION_LINES_MAX {
            let message = format!("fn {name} has {lines} lines, at most {FUNCTION_LINES_MAX}");
            found.push(Violation::new(&source.path, source.line_of(start), message));
        }
    }
    found
}

/// The name after the `fn` at `start`; none for a function pointer type.
fn function_name(source: &Source, start: usize) -> Option<String> {
    let rest = source.code.get(start + 2..)?;
    let rest = rest.trim_ascii_start();
    let length = rest.iter().take_while(|byte| super::scan::is_word(**byte)).count();
    (length > 0).then(|| String::from_utf8_lossy(&rest[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!("fn a(b: [u8; 2], c: fn(u8)) -> [u8; 4] {{\n{}}}\n", "'{';\n".repeat(lines - 2))
    }

    #[test]
    fn functions_are_counted_from_signature_to_brace() {
        assert!(check(&Source::new("a.rs", &function(70))).is_empty());
        let found = check(&Source::new("a.rs", &format!("\n{}", function(71))));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line, 2);
        assert!(found[0].message.contains("fn a has 71 lines"));
    }

    #[test]
    fn a_declaration_without_body_is_not_a_function() {
        let text = format!("trait A {{ fn a();\n{}\n}}", "const B: u8 = { 1 };\n".repeat(100));
        assert!(check(&Source::new("a.rs", &text)).is_empty());
    }

    #[test]
    fn files_are_counted_without_their_tests() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "// a\n".repeat(600));
        let text = format!("{}{tests}", "// a\n".repeat(500));
        assert!(check(&Source::new("a.rs", &text)).is_empty());
        let found = check(&Source::new("a.rs", &format!("// a\n{text}")));
        assert!(found[0].message.contains("501 lines"));
    }

    #[test]
    fn columns_are_characters() {
        let wide = "\u{e9}".repeat(100);
        assert!(check(&Source::new("a.rs", &format!("//{}", &wide[..196]))).is_empty());
        assert_eq!(check(&Source::new("a.rs", &format!("//{wide}")))[0].line, 1);
    }
}
