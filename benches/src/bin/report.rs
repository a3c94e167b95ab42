//! The table and the drawings of what the benches of the transport have measured.
//!
//! Reads rows as `--json` writes them; of a figure that is there more than once the last one
//! counts. Draws by itself, since lines over an axis are all that is needed.
#![forbid(unsafe_code)]

use dwcp_benches::chart::{Chart, Line};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin report -- table FILE..
       cargo run --release -p dwcp-benches --bin report -- plot FOLDER WORD FILE..

table prints what was measured beside what there was to reach; plot draws the curves of all rows
whose case begins with WORD, one file each, into FOLDER.";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: {source}")]
    Row { path: PathBuf, line: usize, source: serde_json::Error },
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["table", ref files @ ..] if !files.is_empty() => {
            read(files).map(|rows| print!("{}", table(&rows)))
        }
        ["plot", folder, word, ref files @ ..] if !files.is_empty() => {
            read(files).and_then(|rows| plot(&rows, Path::new(folder), word))
        }
        _ => {
            println!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All rows, each figure once, in the order in which they first came.
fn read(files: &[&str]) -> Result<Vec<Value>, ReportError> {
    let mut rows: Vec<Value> = Vec::new();
    for file in files {
        let path = PathBuf::from(file);
        let failed = |source| ReportError::File { path: path.clone(), source };
        for (number, line) in std::fs::read_to_string(&path).map_err(failed)?.lines().enumerate() {
            let failed = |source| ReportError::Row { path: path.clone(), line: number + 1, source };
            let row: Value = serde_json::from_str(line).map_err(failed)?;
            let key = |row: &Value| ["bench", "case", "what"].map(|name| row[name].to_string());
            match rows.iter_mut().find(|other| key(other) == key(&row)) {
                Some(other) => *other = row,
                None => rows.push(row),
            }
        }
    }
    Ok(rows)
}

fn table(rows: &[Value]) -> String {
    let mut text = "| path | measured | to reach | figure | |\n|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let word = |name: &str| row[name].as_str().unwrap_or_default();
        let reached = match row["reached"].as_bool() {
            Some(true) => "reached",
            Some(false) => "**missed**",
            None => "",
        };
        let figures: Vec<f64> =
            row["figures"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let figure = row["figure"].as_f64().map_or("none".to_owned(), |it| format!("{it:.3}"));
        let spread = match (figures.iter().copied().reduce(f64::min), figures.len()) {
            (Some(least), 2..) => {
                let most = figures.iter().copied().fold(least, f64::max);
                format!(" ({least:.3} to {most:.3})")
            }
            _ => String::new(),
        };
        text.push_str(&format!(
            "| {} | {} | {} | {figure}{spread} {} | {reached} |\n",
            word("case"),
            word("what"),
            word("target"),
            word("unit"),
        ));
    }
    text
}

fn plot(rows: &[Value], folder: &Path, word: &str) -> Result<(), ReportError> {
    std::fs::create_dir_all(folder)
        .map_err(|source| ReportError::File { path: folder.to_owned(), source })?;
    for row in rows {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let lines = lines(row);
        if lines.is_empty() || !text("case").starts_with(word) {
            continue;
        }
        let title = format!("{}: {}", text("bench"), text("case"));
        let chart = Chart { title, unit: text("series_unit").to_owned(), lines };
        let path = folder.join(format!("{}.svg", file_name(&text_of(row))));
        println!("{}", path.display());
        std::fs::write(&path, chart.svg()).map_err(|source| ReportError::File { path, source })?;
    }
    Ok(())
}

/// What tells a row from others.
fn text_of(row: &Value) -> String {
    let words = ["bench", "case", "what"].map(|name| row[name].as_str().unwrap_or_default());
    words.join(" ")
}

fn lines(row: &Value) -> Vec<Line> {
    let series = row["series"].as_array().into_iter().flatten();
    let line = |series: &Value| {
        let values = series["values"].as_array()?.iter().filter_map(Value::as_f64).collect();
        let name = series["name"].as_str()?.to_owned();
        Some(Line { name, step_s: series["step_s"].as_f64()?, values })
    };
    series.filter_map(line).filter(|line| !line.values.is_empty()).collect()
}

/// Small letters, digits and dashes.
fn file_name(text: &str) -> String {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<String> =
        words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect();
    words.join("-")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(figure: f64) -> Value {
        json!({
            "bench": "paths", "case": "1 Gbit/s, 0.1 % loss", "what": "goodput", "unit": "",
            "figure": figure, "figures": [figure, 0.5], "target": ">= 0.97",
            "reached": figure >= 0.97, "series_unit": "Mbit/s",
            "series": [{"name": "dwcp", "step_s": 0.5, "values": [1.0, 2.0]}],
        })
    }

    #[test]
    fn the_last_of_a_figure_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, format!("{}\n{}\n", row(0.9), row(0.98))).unwrap();
        let rows = read(&[path.to_str().unwrap()]).unwrap();
        let text = table(&rows);
        assert_eq!((rows.len(), text.lines().count()), (1, 3));
        assert!(text.contains("0.980 (0.500 to 0.980)") && text.contains("| reached |"), "{text}");
        std::fs::write(&path, "{\n").unwrap();
        assert!(read(&[path.to_str().unwrap()]).is_err());
    }

    #[test]
    fn only_rows_with_curves_are_drawn_under_a_plain_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = row(0.9);
        other["series"] = json!([]);
        other["case"] = json!("1 Gbit/s");
        plot(&[row(0.9), other], folder.path(), "1 Gbit/s").unwrap();
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].file_name(), "paths-1-gbit-s-0-1-loss-goodput.svg");
    }
}
