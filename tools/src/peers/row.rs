//! What one migration gave, and the table of many.
//!
//! Pure. The names of the figures are those of the JSON lines.

use serde_json::{Map, Value, json};

/// The columns of the table: the figure's name, and its title.
const COLUMNS: [(&str, &str); 12] = [
    ("mode", "mode"),
    ("status", "result"),
    ("total_s", "total s"),
    ("downtime_ms", "downtime ms"),
    ("blackout_ms", "blackout ms"),
    ("wire_mb", "wire MB"),
    ("rounds", "rounds"),
    ("source_cpu_s", "source CPU s"),
    ("sink_cpu_s", "sink CPU s"),
    ("helper_cpu_s", "helper CPU s"),
    ("guest_ok", "guest"),
    ("load", "load"),
];

/// One migration: named figures.
#[derive(Clone, Debug, Default)]
pub struct Row(Map<String, Value>);

impl Row {
    /// A figure by its name; null if it was not measured.
    #[must_use]
    pub fn figure(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Null)
    }

    /// True if the guest arrived.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.figure("status") == "ok"
    }

    /// True if the migration went wrong or the guest was hurt. Not to converge is a result.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        let status = self.figure("status").as_str().unwrap_or_default();
        let guest = self.figure("guest_ok").as_str().unwrap_or_default();
        status.starts_with("FAILED") || !["ok", "stayed"].contains(&guest)
    }

    /// As one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Sets a figure rounded to so many decimals; null if there is none.
    pub(super) fn set_rounded(&mut self, name: &str, value: Option<f64>, decimals: i32) {
        let scale = 10_f64.powi(decimals);
        let rounded = value.map(|value| (value * scale).round() / scale);
        self.set(name, rounded.map_or(Value::Null, number));
    }
}

impl From<Map<String, Value>> for Row {
    /// One that was written as a line of JSON.
    fn from(figures: Map<String, Value>) -> Self {
        Self(figures)
    }
}

/// A number without decimals that say nothing.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

/// The table in Markdown: every migration, then the medians of each mode with more than one.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|(_, title)| *title).collect();
    let mut text = format!("| {} |\n|{}\n", titles.join(" | "), "---|".repeat(COLUMNS.len()));
    for row in rows.iter().chain(&medians(rows)) {
        let cells = COLUMNS.iter().map(|(name, _)| match row.figure(name) {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            number => number.to_string(),
        });
        text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
    }
    text
}

/// A row for each mode of which more than one guest arrived: the median of every figure.
fn medians(rows: &[Row]) -> Vec<Row> {
    let mut modes: Vec<&str> = Vec::new();
    for mode in rows.iter().filter_map(|row| row.figure("mode").as_str()) {
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    let arrived = |mode: &str| -> Vec<&Row> {
        rows.iter().filter(|row| row.figure("mode") == mode && row.is_ok()).collect()
    };
    let many =
        modes.into_iter().map(|mode| (mode, arrived(mode))).filter(|(_, rows)| rows.len() > 1);
    many.map(|(mode, rows)| {
        let mut median = Row::default();
        for (name, _) in COLUMNS {
            let values: Vec<f64> =
                rows.iter().filter_map(|row| row.figure(name).as_f64()).collect();
            median.set_rounded(name, middle(values), 2);
        }
        median.set("mode", format!("{mode} median"));
        median.set("status", format!("{} ok", rows.len()));
        let is_whole = rows.iter().all(|row| row.figure("guest_ok") == "ok");
        median.set("guest_ok", if is_whole { "ok" } else { "BAD" });
        median
    })
    .collect()
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 {
        return values.get(half).copied();
    }
    Some((values.get(half.checked_sub(1)?)? + values.get(half)?) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mode: &str, status: &str, total_s: f64, guest: &str) -> Row {
        let mut row = Row::default();
        row.set("mode", mode);
        row.set("status", status);
        row.set("guest_ok", guest);
        row.set_rounded("total_s", Some(total_s), 2);
        row
    }

    #[test]
    fn medians_are_of_those_that_arrived() {
        let rows = [
            row("tcp", "ok", 1.0, "ok"),
            row("tcp", "ok", 9.0, "ok"),
            row("tcp", "ok", 2.5, "ok"),
            row("tcp", "NOT CONVERGED", 100.0, "stayed"),
            row("xbzrle", "ok", 1.0, "ok"),
        ];
        let medians = medians(&rows);
        assert_eq!(medians.len(), 1);
        assert_eq!(medians[0].figure("total_s"), 2.5);
        assert_eq!(medians[0].figure("status"), "3 ok");
        assert_eq!(table(&rows).lines().count(), 2 + 5 + 1);
        assert_eq!(middle(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(middle(vec![]), None);
    }

    #[test]
    fn only_failures_and_hurt_guests_fail() {
        assert!(!row("tcp", "ok", 1.0, "ok").is_failure());
        assert!(!row("tcp", "NOT CONVERGED", 1.0, "stayed").is_failure());
        assert!(row("tcp", "FAILED: x", 1.0, "stayed").is_failure());
        assert!(row("tcp", "ok", 1.0, "BAD page 3").is_failure());
    }
}
