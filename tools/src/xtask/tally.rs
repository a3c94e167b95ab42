//! Counts tests by the lines with which test binaries end.
//!
//! Pure; fed by the step that runs `cargo test`.

/// How many tests ran.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    /// Takes one line of output; lines that are no test result change nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let number = |word: &str| count.strip_suffix(word)?.trim().parse::<u64>().ok();
            self.passed += number("passed").unwrap_or(0);
            self.failed += number("failed").unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_and_other_lines_do_not_count() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 35 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; fin",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; fin",
            "my test result: ok. 7 passed; 0 failed",
            "test a::passed ... ok",
        ] {
            tally.add_line(line);
        }
        assert_eq!(tally, Tally { passed: 36, failed: 2 });
    }
}
