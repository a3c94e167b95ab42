//! The manual's table of settings, printed from the table so that it can't drift from the code.
//!
//! `dwcp config --manual` prints it; a test compares it with what stands in the manual between
//! the two markers.

use super::table::{SETTINGS, Setting};
use super::value::Kind;
use std::fmt::Write as _;

/// The line above the table in the manual.
pub(crate) const BEGIN: &str = "<!-- settings:begin -->";
/// The line below the table in the manual.
pub(crate) const END: &str = "<!-- settings:end -->";

/// The table in Markdown, markers included.
pub(crate) fn markdown() -> String {
    let mut text = format!("{BEGIN}\n");
    text.push_str("| setting | unit | range | default | live | what it does |\n");
    text.push_str("|---|---|---|---|---|---|\n");
    for setting in SETTINGS.iter().filter(|setting| !setting.hidden) {
        push_row(&mut text, setting);
    }
    text.push_str(END);
    text.push('\n');
    text
}

fn push_row(text: &mut String, setting: &Setting) {
    let default = match (setting.default, setting.kind) {
        ("", Kind::Switch) => "off",
        ("", _) => "none",
        (default, _) => default,
    };
    let live = if setting.live { "yes" } else { "no" };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "| `{}` | {} | {} | {default} | {live} | {} |",
        setting.name,
        setting.kind.unit(),
        setting.kind.range(),
        setting.help,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_holds_the_table_as_the_code_prints_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/tuning.md");
        let manual = std::fs::read_to_string(path).expect("src/manual/tuning.md can be read");
        let begin = manual.find(BEGIN).expect("the manual has the begin marker");
        let end = manual.find(END).expect("the manual has the end marker") + END.len();
        assert_eq!(
            manual[begin..end],
            *markdown().trim_end(),
            "put the output of 'dwcp config --manual' into src/manual/tuning.md"
        );
    }

    #[test]
    fn every_row_of_the_table_has_six_columns() {
        for row in markdown().lines().filter(|line| line.starts_with('|')) {
            assert_eq!(row.matches('|').count(), 7, "{row}");
        }
    }
}
