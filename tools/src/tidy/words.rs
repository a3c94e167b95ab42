//! Words that must not stay in the tree, and the header that every module must have.
//!
//! Pure. The needles are put together from halves, so that this file passes its own rule.

use super::scan::is_word;
use super::source::{Source, find_words};
use super::tree::TreeFile;
use super::violation::Violation;

/// Marks of unfinished work, wherever they stand.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Macros of unfinished work.
const MACROS: [&str; 3] = [concat!("d", "bg"), concat!("unimple", "mented"), concat!("to", "do")];

/// Folders of one machine; nothing in the tree may need or name them.
const MACHINE_FOLDERS: [&str; 5] = [
    concat!("/ho", "me"),
    concat!("/ro", "ot"),
    concat!("/wo", "rk"),
    concat!("/tm", "p"),
    concat!("../sha", "red"),
];

/// Text files that are not Rust but are read by people or tools.
const TEXT_ENDINGS: [&str; 7] = [".rs", ".toml", ".md", ".sh", ".yml", ".ci/run", ".json"];

/// Checks the code of one file.
pub(super) fn check(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |at: usize, message: String| {
        found.push(Violation::new(&source.path, source.line_of(at), message));
    };
    for name in MACROS {
        let called = |at: &usize| source.code.get(at + name.len()) == Some(&b'!');
        for at in source.words(name).into_iter().filter(called) {
            report(at, format!("{name}! is not for the tree"));
        }
    }
    for at in source.words("dead_code") {
        report(at, "code that nothing uses is deleted, not excused".to_owned());
    }
    for at in source.words("sleep") {
        if source.is_test(at) && source.code[..at].ends_with(b"thread::") {
            report(at, "a test waits for an event with a bound; it never sleeps".to_owned());
        }
    }
    if !source.text.starts_with("//!") {
        report(0, "a module starts with `//!`: what it owns, where it runs, who calls it".into());
    }
    if source.text.starts_with(concat!("//! Out", "line.")) {
        report(0, "the module's header is a place holder".to_owned());
    }
    found
}

/// Checks any text file for marks of unfinished work and for machine paths.
pub(super) fn check_text(file: &TreeFile) -> Vec<Violation> {
    let seeds = file.path.starts_with("tools/fuzz/seeds/");
    if seeds || !TEXT_ENDINGS.iter().any(|ending| file.path.ends_with(ending)) {
        return Vec::new();
    }
    let Some(text) = &file.text else {
        return vec![Violation::new(&file.path, 0, "is not UTF-8 text")];
    };
    let mut found = Vec::new();
    for (line, words) in (1..).zip(text.lines()) {
        for mark in
            MARKS.iter().filter(|mark| !find_words(words.as_bytes(), mark.as_bytes()).is_empty())
        {
            found.push(Violation::new(&file.path, line, format!("{mark}: do it or file it")));
        }
        for folder in MACHINE_FOLDERS.iter().filter(|folder| names_folder(words, folder)) {
            let message = format!("names {folder}: nothing may depend on one machine's folders");
            found.push(Violation::new(&file.path, line, message));
        }
    }
    found
}

/// True if `line` names the folder as an absolute path and not as a part of a longer one.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].bytes().next_back();
        let after = line[at + folder.len()..].bytes().next();
        let starts = !before.is_some_and(|byte| is_word(byte) || b"./-~}$>".contains(&byte));
        let ends = after.is_none_or(|byte| b"/\"'`) ,;:".contains(&byte));
        starts && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, text: String) -> Vec<usize> {
        let file = TreeFile { path: path.to_owned(), text: Some(text) };
        check_text(&file).iter().map(|violation| violation.line).collect()
    }

    fn code(path: &str, text: &str) -> Vec<usize> {
        check(&Source::new(path, text)).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn marks_are_found_as_whole_words_in_any_text_file() {
        let marked = format!("a\n// {} later\n{}X.tmp\n", MARKS[0], MARKS[2]);
        assert_eq!(text("src/a.rs", marked.clone()), [2]);
        assert_eq!(text("README.md", marked.clone()), [2]);
        assert!(text("tools/fuzz/seeds/a/b.json", marked).is_empty());
    }

    #[test]
    fn machine_folders_are_found_as_absolute_paths_only() {
        for folder in &MACHINE_FOLDERS {
            assert_eq!(text("a.rs", format!("\"{folder}/x\"")), [1], "{folder}/x");
            assert_eq!(text("a.md", format!("see `{folder}`")), [1], "{folder}");
            assert!(text("a.rs", format!("\"target{folder}/x\"")).is_empty(), "target{folder}");
            assert!(text("a.rs", format!("\"{folder}sical\"")).is_empty(), "{folder}sical");
        }
    }

    #[test]
    fn macros_of_unfinished_work_are_found_in_code_only() {
        let call = format!("//! A.\n// {}!()\nfn a() {{ {}!(1) }}", MACROS[0], MACROS[0]);
        assert_eq!(code("a.rs", &call), [3]);
    }

    #[test]
    fn excuses_for_dead_code_are_found() {
        assert_eq!(code("a.rs", "//! A.\n#[allow(dead_code)]\nfn a() {}"), [2]);
    }

    #[test]
    fn tests_that_sleep_are_found_and_other_code_may() {
        let body = "//! A.\nfn a() { thread::sleep(b) }\n";
        assert!(code("src/a.rs", body).is_empty());
        assert_eq!(code("tools/e2e/a.rs", body), [2]);
        let module = "//! A.\n#[cfg(test)]\nmod tests {\n fn a() { std::thread::sleep(b) }\n}";
        assert_eq!(code("src/a.rs", module), [4]);
    }

    #[test]
    fn modules_without_a_header_are_found() {
        assert_eq!(code("src/a.rs", "fn a() {}"), [1]);
        assert_eq!(code("src/a.rs", concat!("//! Out", "line.\n")), [1]);
    }
}
