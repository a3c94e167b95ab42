//! The rules that no compiler checks: layout, dependency direction, sizes, words, licences.
//!
//! [`run`] is called by `cargo xtask tidy` on its main thread. Every rule is a module with a pure
//! function from text to [`Violation`]s, tested on bad examples; only `tree` reads files and only
//! `metadata` starts a process. All violations are reported at once, sorted by place.

use std::path::Path;

mod direction;
mod error;
mod layout;
mod licences;
mod lockfile;
mod metadata;
mod purity;
mod scan;
mod size;
mod source;
mod spdx;
mod tree;
mod unsafety;
mod violation;
mod words;

pub use error::TidyError;
pub use violation::Violation;

/// What one run of the rules found.
#[derive(Debug)]
pub struct Report {
    /// How many files were read.
    pub files: usize,
    /// Everything that breaks a rule, sorted by path and line.
    pub violations: Vec<Violation>,
}

/// Checks the whole tree below `root` against every rule.
pub fn run(root: &Path) -> Result<Report, TidyError> {
    let tree = tree::read(root)?;
    let sources = tree.sources();
    let product = metadata::of(root, "Cargo.toml")?;
    let fuzzers = metadata::of(root, "tools/fuzz/Cargo.toml")?;

    let mut violations = Vec::new();
    violations.extend(layout::check(&tree));
    for source in &sources {
        violations.extend(size::check(source));
        violations.extend(unsafety::check(source));
        violations.extend(words::check(source));
        violations.extend(purity::check(source));
        violations.extend(direction::check_uses(source));
    }
    for file in &tree.files {
        violations.extend(words::check_text(file));
    }
    violations.extend(unsafety::check_roots(&sources, &product.crate_roots()));
    violations.extend(direction::check_manifests(&product));
    violations.extend(licences::check(&product, licences::PRODUCT));
    violations.extend(licences::check(&fuzzers, licences::FUZZERS));
    for file in tree.files.iter().filter(|file| file.path.ends_with("Cargo.lock")) {
        violations.extend(lockfile::check(file, &product, &fuzzers));
    }
    violations.sort();
    violations.dedup();
    Ok(Report { files: tree.files.len(), violations })
}
