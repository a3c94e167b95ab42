//! `proto` and `codec` are pure: no network, file, thread, process, environment or clock.
//!
//! Pure itself. Their tests may do what they like.

use super::source::Source;
use super::violation::Violation;

const PURE: [&str; 2] = ["dataplane/proto/src/", "dataplane/codec/src/"];
const FORBIDDEN_MODULES: [&str; 5] = ["net", "fs", "thread", "process", "env"];
const FORBIDDEN_NAMES: [&str; 2] = ["Instant", "SystemTime"];

/// Checks one file; files of other crates pass.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    if !PURE.iter().any(|folder| source.path.starts_with(folder)) {
        return Vec::new();
    }
    let modules = source
        .children_of("std")
        .into_iter()
        .filter(|(_, name)| FORBIDDEN_MODULES.contains(&name.as_str()))
        .map(|(at, name)| (at, format!("std::{name}")));
    let names = FORBIDDEN_NAMES
        .iter()
        .flat_map(|name| source.words(name).into_iter().map(|at| (at, (*name).to_owned())));
    modules
        .chain(names)
        .filter(|(at, _)| !source.is_test(*at))
        .map(|(at, name)| {
            let message = format!("{name} in a pure crate: take it as an argument");
            Violation::new(&source.path, source.line_of(at), message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(&Source::new(path, text)).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn clocks_and_files_are_found_however_they_are_imported() {
        let text =
            "use std::{fmt, fs::File};\nfn a() { std::thread::yield_now() }\nInstant::now();";
        assert_eq!(lines("dataplane/proto/src/a.rs", text), [1, 2, 3]);
    }

    #[test]
    fn tests_and_other_crates_may_read_clocks() {
        let text = "#[cfg(test)]\nmod tests { use std::fs; }";
        assert!(lines("dataplane/codec/src/a.rs", text).is_empty());
        assert!(lines("src/a.rs", "use std::fs;").is_empty());
    }
}
