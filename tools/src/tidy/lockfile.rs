//! Every locked package comes from the public registry or from this tree.
//!
//! Pure; reads the lock file's text line by line, since its form is fixed and simple.

use super::metadata::Metadata;
use super::tree::TreeFile;
use super::violation::Violation;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks one lock file; packages without a source must be crates of the tree.
pub(super) fn check(file: &TreeFile, product: &Metadata, fuzzers: &Metadata) -> Vec<Violation> {
    let ours: Vec<&str> = product
        .packages()
        .chain(fuzzers.packages())
        .filter(|package| package.source().is_none() && package.manifest().is_some())
        .map(|package| package.name())
        .collect();
    check_text(&file.path, file.text.as_deref().unwrap_or_default(), &ours)
}

fn check_text(path: &str, text: &str, ours: &[&str]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut line = 1;
    for block in text.split("\n\n") {
        let field = |name: &str| {
            let prefix = format!("{name} = \"");
            block.lines().find_map(|line| line.strip_prefix(&prefix)?.strip_suffix('"'))
        };
        if let Some(name) = field("name") {
            match field("source") {
                Some(REGISTRY) => {}
                Some(source) => {
                    found.push(Violation::new(path, line, format!("{name} comes from {source}")));
                }
                None if ours.contains(&name) => {}
                None => {
                    let message = format!("{name} comes from a folder outside of the tree");
                    found.push(Violation::new(path, line, message));
                }
            }
        }
        line += block.lines().count() + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_from_elsewhere_are_found() {
        let text = format!(
            "version = 4\n\n[[package]]\nname = \"a\"\nsource = \"{REGISTRY}\"\n\n\
             [[package]]\nname = \"b\"\nsource = \"git+https://example.org/b\"\n\n\
             [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n\n[[package]]\nname = \"c\"\n"
        );
        let found = check_text("Cargo.lock", &text, &["ours"]);
        let lines: Vec<usize> = found.iter().map(|violation| violation.line).collect();
        assert_eq!(lines, [7, 15]);
    }
}
