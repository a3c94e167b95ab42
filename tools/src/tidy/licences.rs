//! Every package that a build uses must have a licence from the allow-list.
//!
//! Pure. The product's own licence is `Apache-2.0 OR MIT`, so only permissive licences are in.

use super::metadata::Metadata;
use super::spdx::is_met;
use super::violation::Violation;

/// Licences of what the binary links.
pub(super) const PRODUCT: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The fuzzers add libFuzzer, which is under NCSA and never linked into the product.
pub(super) const FUZZERS: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

const OURS: &str = "Apache-2.0 OR MIT";

/// Checks all packages of one workspace.
pub(super) fn check(metadata: &Metadata, allowed: &[&str]) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in metadata.packages() {
        let what = format!("{} {}", package.name(), package.version());
        let mut report = |path: &str, message: String| {
            found.push(Violation::new(path, 0, format!("{what}: {message}")));
        };
        match (package.source(), package.licence()) {
            (None, Some(OURS)) => {}
            (None, _) => {
                let path = package.manifest().unwrap_or_else(|| "Cargo.toml".to_owned());
                report(&path, format!("our crates are licensed `{OURS}`"));
            }
            (Some(_), None) => report("Cargo.lock", "names no licence".to_owned()),
            (Some(_), Some(expression)) => match is_met(expression, allowed) {
                Ok(true) => {}
                Ok(false) => report("Cargo.lock", format!("`{expression}` is not allowed")),
                Err(error) => report("Cargo.lock", error.to_string()),
            },
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_bad_licence_is_found_with_its_package() {
        let metadata = Metadata::from_json(
            "/r",
            json!({"packages": [
                {"name": "good", "version": "1.0.0", "source": "registry", "license": "MIT"},
                {"name": "none", "version": "1.0.0", "source": "registry", "license": null},
                {"name": "copyleft", "version": "2.0.0", "source": "registry", "license": "GPL"},
                {"name": "odd", "version": "2.0.0", "source": "registry", "license": "MIT OR"},
                {"name": "ours", "manifest_path": "/r/a/Cargo.toml", "license": "MIT"},
            ]}),
        );
        let found = check(&metadata, PRODUCT);
        let names: Vec<&str> =
            found.iter().filter_map(|violation| violation.message.split(' ').next()).collect();
        assert_eq!(names, ["none", "copyleft", "odd", "ours"]);
    }

    #[test]
    fn only_the_fuzzers_may_use_ncsa() {
        assert!(!PRODUCT.contains(&"NCSA"));
        assert!(PRODUCT.iter().all(|name| FUZZERS.contains(name)));
    }
}
