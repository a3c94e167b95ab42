//! What a bench has measured, beside what there was to reach: for people, and as JSON lines for the
//! table and the drawings.

use super::error::{BenchError, io};
use super::median;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// What there is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// So much or more.
    AtLeast(f64),
    /// So much or less.
    AtMost(f64),
    /// Nothing: it is shown beside others.
    None,
}

impl Target {
    fn is_reached(self, figure: f64) -> Option<bool> {
        match self {
            Self::AtLeast(bound) => Some(figure >= bound),
            Self::AtMost(bound) => Some(figure <= bound),
            Self::None => None,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}"),
            Self::AtMost(bound) => format!("<= {bound}"),
            Self::None => String::new(),
        }
    }
}

/// A curve for a drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Whose it is.
    pub name: String,
    /// The time between two values.
    pub step_s: f64,
    /// The values.
    pub values: Vec<f64>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// On what path, or under what.
    pub case: String,
    /// What is measured.
    pub what: &'static str,
    /// Each repeat.
    pub figures: Vec<f64>,
    /// The figures' unit.
    pub unit: &'static str,
    /// What the median is to reach.
    pub target: Target,
    /// What else is worth knowing.
    pub detail: Value,
    /// The unit of the curves.
    pub series_unit: &'static str,
    /// Curves of the last repeat.
    pub series: Vec<Series>,
}

impl Row {
    /// A figure without curves and details.
    #[must_use]
    pub fn new(
        case: impl Into<String>,
        what: &'static str,
        figures: Vec<f64>,
        unit: &'static str,
        target: Target,
    ) -> Self {
        let (case, detail, series_unit) = (case.into(), Value::Null, "");
        Self { case, what, figures, unit, target, detail, series_unit, series: Vec::new() }
    }

    /// Adds what else is worth knowing.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }

    /// Adds curves.
    #[must_use]
    pub fn with_series(mut self, unit: &'static str, series: Vec<Series>) -> Self {
        (self.series_unit, self.series) = (unit, series);
        self
    }

    fn line(&self) -> String {
        let figure = median(&self.figures);
        let spread = match &self.figures[..] {
            [_] => String::new(),
            figures => {
                let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
                let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                format!(" ({least:.3} to {most:.3})")
            }
        };
        let judgement = match self.target.is_reached(figure) {
            Some(true) => format!(", {}: reached", self.target.text()),
            Some(false) => format!(", {}: MISSED", self.target.text()),
            None => String::new(),
        };
        let detail =
            if self.detail.is_null() { String::new() } else { format!("  {}", self.detail) };
        let (case, what, unit) = (&self.case, self.what, self.unit);
        format!("{case}: {what} {figure:.3} {unit}{spread}{judgement}{detail}")
    }

    fn json(&self, bench: &str) -> Value {
        let figure = median(&self.figures);
        let rounded = |value: &f64| (value * 1000.0).round() / 1000.0;
        let series = self.series.iter().map(|series| {
            let values: Vec<f64> = series.values.iter().map(rounded).collect();
            json!({"name": series.name, "step_s": series.step_s, "values": values})
        });
        json!({
            "bench": bench, "case": self.case, "what": self.what, "figure": figure,
            "figures": self.figures, "unit": self.unit, "target": self.target.text(),
            "reached": self.target.is_reached(figure), "detail": self.detail,
            "series_unit": self.series_unit, "series": series.collect::<Vec<_>>(),
        })
    }
}

/// Where rows go: to the standard output, and to a file if there is one.
#[derive(Debug)]
pub struct Rows {
    bench: String,
    file: Option<File>,
}

impl Rows {
    /// Opens the file to add to it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn open(bench: &str, path: Option<&Path>) -> Result<Self, BenchError> {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let file = path.map(open).transpose().map_err(io("the file for rows"))?;
        Ok(Self { bench: bench.to_owned(), file })
    }

    /// Tells a row.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn add(&mut self, row: &Row) -> Result<(), BenchError> {
        println!("{}", row.line());
        let Some(file) = &mut self.file else { return Ok(()) };
        writeln!(file, "{}", row.json(&self.bench)).map_err(io("the file for rows"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_median_reaches_the_target() {
        let row = |figures: &[f64], target| Row::new("x", "goodput", figures.to_vec(), "", target);
        let reached = |row: &Row| row.json("b")["reached"].clone();
        let good = row(&[0.9, 0.98, 0.99], Target::AtLeast(0.97));
        assert_eq!(reached(&good), json!(true));
        assert!(good.line().contains("0.980") && good.line().contains("(0.900 to 0.990)"));
        let missed = row(&[1.6], Target::AtMost(1.5));
        assert_eq!((reached(&missed), missed.line().contains("MISSED")), (json!(false), true));
        assert!(reached(&row(&[1.0], Target::None)).is_null());
    }

    #[test]
    fn rows_are_lines_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        let row = Row::new("x", "rate", vec![1.0], "Mbit/s", Target::None);
        for _ in 0..2 {
            Rows::open("b", Some(&path)).unwrap().add(&row).unwrap();
        }
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[1]["unit"]), (2, &json!("Mbit/s")));
    }
}
