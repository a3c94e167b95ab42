//! The command line that the benches of the transport share.

use super::error::BenchError;
use std::path::PathBuf;

/// What a person asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only tell how it is used.
    pub help: bool,
    /// Fewer repeats and shorter spans.
    pub quick: bool,
    /// Where rows are added to, one JSON object per line.
    pub json: Option<PathBuf>,
    /// How often everything is measured; the bench's own number without it.
    pub repeats: Option<usize>,
    /// Only cases whose name contains this.
    pub only: Option<String>,
    /// Further flags of the daemons or carriers that are measured.
    pub flags: Vec<String>,
}

impl Options {
    /// The words, for the help of the benches.
    pub const HELP: &'static str = "
  --quick          fewer repeats and shorter spans
  --json FILE      add the rows to FILE, one JSON object per line
  --repeats N      measure everything N times, in turn
  --only WORD      only the cases whose name contains WORD
  -- FLAG..        further flags of the dwcp processes that are measured
Needs root, iperf3 and ping, and dwcp built for release (cargo build --release --bin dwcp).";

    /// Reads the words behind the program's name.
    ///
    /// # Errors
    /// A word is not understood.
    pub fn from_arguments(words: impl Iterator<Item = String>) -> Result<Self, BenchError> {
        let mut options = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || {
                let why = "needs a value";
                words.next().ok_or_else(|| BenchError::Argument { word: word.clone(), why })
            };
            match word.as_str() {
                "--help" | "-h" => options.help = true,
                "--quick" => options.quick = true,
                "--json" => options.json = Some(value()?.into()),
                "--only" => options.only = Some(value()?),
                "--repeats" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|number| (1..=100).contains(number));
                    let why = "is not a number from 1 to 100";
                    let bad = BenchError::Argument { word: text, why };
                    options.repeats = Some(number.ok_or(bad)?);
                }
                "--" => options.flags.extend(words.by_ref()),
                _ => {
                    let why = "is no option; --help lists them";
                    return Err(BenchError::Argument { word, why });
                }
            }
        }
        Ok(options)
    }

    /// How often to measure: as asked for, else by whether it is to be quick.
    #[must_use]
    pub fn repeats_or(&self, full: usize) -> usize {
        self.repeats.unwrap_or(if self.quick { 1 } else { full })
    }

    /// Whether a case is asked for.
    #[must_use]
    pub fn takes(&self, case: &str) -> bool {
        self.only.as_ref().is_none_or(|only| case.contains(only.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Options, BenchError> {
        Options::from_arguments(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn words_are_read_and_flags_passed_on() {
        let options = parse("--quick --json f --only loss -- --streams 8 --quick").unwrap();
        assert!(options.quick && options.takes("with loss") && !options.takes("without"));
        assert_eq!(options.flags, ["--streams", "8", "--quick"]);
        assert_eq!((options.repeats_or(3), parse("--repeats 5").unwrap().repeats_or(3)), (1, 5));
        assert_eq!(parse("").unwrap().repeats_or(3), 3);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for words in ["--json", "--repeats 0", "--repeats x", "fast"] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
