//! Prometheus text: families with help and type, samples with escaped labels.
//!
//! Pure. Names are checked against the rules that `promtool check metrics` applies, as assertions:
//! a bad name is our bug.

use std::fmt::Write as _;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Quantiles, sum and count.
    Summary,
}

/// A text in the making. Families must be added one after the other, each whole.
#[derive(Debug, Default)]
pub(crate) struct TextBuilder {
    text: String,
}

impl TextBuilder {
    /// Begins a family; returns nothing, so that samples follow by [`Self::sample`].
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        assert!(name.starts_with("dwcp_"), "metric {name} lacks the prefix");
        assert_eq!(name.ends_with("_total"), kind == Kind::Counter, "metric {name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a String can't fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the family begun last.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// The whole text.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_families_carry_help_and_type() {
        let mut text = TextBuilder::default();
        text.family("dwcp_x_total", Kind::Counter, "X.");
        text.sample("dwcp_x_total", &[("a", "q\"b\\c\nd"), ("b", "1")], 2.0);
        assert_eq!(
            text.finish(),
            "# HELP dwcp_x_total X.\n# TYPE dwcp_x_total counter\n\
             dwcp_x_total{a=\"q\\\"b\\\\c\\nd\",b=\"1\"} 2\n"
        );
    }

    #[test]
    #[should_panic(expected = "metric dwcp_x")]
    fn a_counter_without_its_ending_is_our_bug() {
        TextBuilder::default().family("dwcp_x", Kind::Counter, "X.");
    }
}
