//! `unsafe` lives in `ffi/` alone, and every other crate says so to the compiler.
//!
//! Pure.

use super::source::Source;
use super::violation::Violation;

const UNSAFE_FOLDER: &str = "ffi/";
const FORBID: &str = "#![forbid(unsafe_code)]";

/// Finds the keyword outside `ffi`.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    if source.path.starts_with(UNSAFE_FOLDER) {
        return Vec::new();
    }
    let places = source.words("unsafe");
    places
        .into_iter()
        .map(|at| Violation::new(&source.path, source.line_of(at), "unsafe outside of ffi"))
        .collect()
}

/// Finds crate roots that do not forbid it.
pub(super) fn check_roots(sources: &[Source], roots: &[String]) -> Vec<Violation> {
    let named = |source: &&Source| roots.contains(&source.path);
    sources
        .iter()
        .filter(named)
        .filter(|source| !source.path.starts_with(UNSAFE_FOLDER))
        .filter(|source| !String::from_utf8_lossy(&source.code).contains(FORBID))
        .map(|source| Violation::new(&source.path, 1, format!("a crate root must say {FORBID}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyword_is_found_outside_ffi_but_not_in_prose() {
        let text = "// unsafe\nlet x = unsafe { y() };";
        assert_eq!(check(&Source::new("control/src/a.rs", text))[0].line, 2);
        assert!(check(&Source::new("ffi/src/a.rs", text)).is_empty());
    }

    #[test]
    fn a_root_without_forbid_is_found_even_if_a_comment_has_it() {
        let sources = [
            Source::new("src/main.rs", "// #![forbid(unsafe_code)]\nfn main() {}"),
            Source::new("control/src/lib.rs", "//! A.\n#![forbid(unsafe_code)]"),
            Source::new("control/src/other.rs", "fn a() {}"),
        ];
        let roots = ["src/main.rs".to_owned(), "control/src/lib.rs".to_owned()];
        let found = check_roots(&sources, &roots);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "src/main.rs");
    }
}
