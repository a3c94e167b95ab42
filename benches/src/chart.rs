//! Curves over time as SVG.
//!
//! Pure. A drawing has one axis of seconds and one of values from zero on; colours are told apart
//! by people who see few of them, and both on light and on dark paper.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 40.0;

const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const GREY: &str = "#808080";

/// About so many marks on an axis.
const MARKS: f64 = 6.0;

/// A curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Whose it is.
    pub name: String,
    /// The time between two values.
    pub step_s: f64,
    /// The values.
    pub values: Vec<f64>,
}

/// Curves over one another.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The unit of the values.
    pub unit: String,
    /// The curves.
    pub lines: Vec<Line>,
}

impl Chart {
    /// The drawing, without an empty line, so that it may stand in a text.
    #[must_use]
    pub fn svg(&self) -> String {
        let seconds = |line: &Line| line.step_s * line.values.len() as f64;
        let most_s = self.lines.iter().map(seconds).fold(0.0, f64::max);
        let values = self.lines.iter().flat_map(|line| line.values.iter().copied());
        let (x, y) = (Axis::to(most_s), Axis::to(values.fold(0.0, f64::max)));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             width=\"{WIDTH}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{GREY}\">\n"
        );
        text(&mut svg, (LEFT, 18.0), "start", &self.title);
        text(&mut svg, (LEFT - 8.0, TOP - 12.0), "end", &self.unit);
        text(&mut svg, (WIDTH - RIGHT, HEIGHT - 6.0), "end", "seconds");
        for mark in x.marks() {
            let at = across(&x, mark);
            stroke(&mut svg, (at, HEIGHT - BOTTOM), (at, HEIGHT - BOTTOM + 4.0), "1");
            text(&mut svg, (at, HEIGHT - BOTTOM + 18.0), "middle", &x.label(mark));
        }
        for mark in y.marks() {
            let at = up(&y, mark);
            let opacity = if mark == 0.0 { "1" } else { "0.25" };
            stroke(&mut svg, (LEFT, at), (WIDTH - RIGHT, at), opacity);
            text(&mut svg, (LEFT - 8.0, at + 4.0), "end", &y.label(mark));
        }
        for (number, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points: Vec<String> = line
                .values
                .iter()
                .enumerate()
                .map(|(at, value)| {
                    let middle_s = (at as f64 + 0.5) * line.step_s;
                    format!("{:.1},{:.1}", across(&x, middle_s), up(&y, *value))
                })
                .collect();
            // Writing to a String can't fail.
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            );
            let at = LEFT + 150.0 * number as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{at}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"
            );
            text(&mut svg, (at + 15.0, 35.0), "start", &line.name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// From zero to somewhat more than the greatest value, in round steps.
struct Axis {
    step: f64,
    end: f64,
}

impl Axis {
    fn to(most: f64) -> Self {
        let raw = if most > 0.0 { most / MARKS } else { 1.0 };
        let power = 10_f64.powf(raw.log10().floor());
        let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= raw);
        let step = round.unwrap_or(10.0) * power;
        Self { step, end: (most / step).ceil().max(1.0) * step }
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        let count = (self.end / self.step).round() as u32;
        let step = self.step;
        (0..=count).map(move |number| f64::from(number) * step)
    }

    fn label(&self, mark: f64) -> String {
        let digits = if self.step < 1.0 { (-self.step.log10()).ceil() as usize } else { 0 };
        format!("{mark:.digits$}")
    }
}

fn across(axis: &Axis, value: f64) -> f64 {
    LEFT + value / axis.end * (WIDTH - LEFT - RIGHT)
}

fn up(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - value / axis.end * (HEIGHT - TOP - BOTTOM)
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

fn stroke(svg: &mut String, from: (f64, f64), to: (f64, f64), opacity: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{GREY}\" \
         stroke-opacity=\"{opacity}\"/>",
        from.0, from.1, to.0, to.1
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_in_a_round_step_beyond_the_greatest_value() {
        for (most, step, end) in [(948.0, 200.0, 1000.0), (0.7, 0.2, 0.8), (20.0, 5.0, 20.0)] {
            let axis = Axis::to(most);
            assert!((axis.step - step).abs() < 1e-9 && (axis.end - end).abs() < 1e-9, "{most}");
        }
        assert_eq!(Axis::to(0.0).end, 1.0, "nothing has a frame too");
        assert_eq!(Axis::to(0.7).label(0.4), "0.4");
    }

    #[test]
    fn every_value_is_a_point_within_the_frame_and_words_are_escaped() {
        let line = Line { name: "a<b".to_owned(), step_s: 0.5, values: vec![0.0, 3.0, 1.5] };
        let chart = Chart { title: "t".to_owned(), unit: "ms".to_owned(), lines: vec![line] };
        let svg = chart.svg();
        let (_, rest) = svg.split_once("points=\"").unwrap();
        let points = rest.split_once('"').unwrap().0;
        assert_eq!(points.split(' ').count(), 3);
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y));
        }
        assert!(svg.contains("a&lt;b") && !svg.contains("\n\n"));
    }
}
