//! The top level is fixed, so that a newcomer sees the product and not its plumbing.
//!
//! Pure.

use super::tree::Tree;
use super::violation::Violation;

/// What must be there.
const REQUIRED: [&str; 15] = [
    ".cargo",
    ".ci",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "control",
    "dataplane",
    "ffi",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "tools",
];

/// Tool settings that may be there.
const OPTIONAL: [&str; 4] = [".editorconfig", ".gitattributes", ".gitignore", "clippy.toml"];

/// The two commands that a newcomer needs, which CI runs as they stand in the README.
const README_COMMANDS: [&str; 2] = ["cargo run --release -- demo", "cargo xtask ci"];

/// Checks the top level and that the README tells its two commands.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    for name in &tree.top {
        if !REQUIRED.contains(&name.as_str()) && !OPTIONAL.contains(&name.as_str()) {
            found.push(Violation::new(name, 0, "not a part of the fixed top level"));
        }
    }
    for name in REQUIRED.iter().filter(|name| !tree.top.iter().any(|there| there == *name)) {
        found.push(Violation::new(name, 0, "missing at the top level"));
    }
    let readme = tree.files.iter().find(|file| file.path == "README.md");
    let readme = readme.and_then(|file| file.text.as_deref()).unwrap_or_default();
    for command in README_COMMANDS.iter().filter(|command| !readme.contains(*command)) {
        found.push(Violation::new("README.md", 0, format!("does not tell `{command}`")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tree::TreeFile;
    use super::*;

    fn tree(top: &[&str], readme: &str) -> Tree {
        let readme = TreeFile { path: "README.md".to_owned(), text: Some(readme.to_owned()) };
        Tree { top: top.iter().map(|name| (*name).to_owned()).collect(), files: vec![readme] }
    }

    #[test]
    fn the_fixed_level_passes() {
        assert!(check(&tree(&REQUIRED, &README_COMMANDS.join("\n"))).is_empty());
    }

    #[test]
    fn strangers_and_gaps_are_found() {
        let mut top = REQUIRED.to_vec();
        top[0] = "scripts";
        let found = check(&tree(&top, "cargo xtask ci"));
        let paths: Vec<&str> = found.iter().map(|violation| violation.path.as_str()).collect();
        assert_eq!(paths, ["scripts", ".cargo", "README.md"]);
    }
}
