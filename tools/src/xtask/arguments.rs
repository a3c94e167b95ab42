//! The command line of xtask, parsed into a task that can't be wrong.
//!
//! Pure; called once by `main`.

/// What `cargo xtask help` prints.
pub(crate) const HELP: &str = "\
Usage: cargo xtask COMMAND

  ci [--full] [--only STEP,..] [--fuzz-seconds N]
                     set up what the tests need (with apt when root) and run all of them;
                     --full runs every fault, the full demo and long fuzzing: up to 90 minutes
  tidy               check the rules that no compiler checks
  fuzz [TARGET] [--seconds N]
                     build the fuzzers and run one or all of them, 60 seconds each by default
  previous           build the binary of the wire version before, which the tests of versions run
  lab setup [--real] make this machine ready to run real guests in emulated networks (root);
                     --real adds redis, nginx, gcc and sqlite for them
  lab up LINK WORD.. hosts joined by emulated links, until the end of the input; `lab` for more
  guest GUEST        boot a guest and show its console; `guest` for more
  sim                run simulated worlds: --seeds N, --from S, --seed S --trace, --kept,
                     --mutant NAME|all
  peers              migrate a guest to and fro by QEMU's own means and by others, and compare;
                     `peers --help` for more
  help               this text";

const FUZZ_SECONDS: u32 = 60;
const FUZZ_SECONDS_MAX: u32 = 86_400;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Help,
    Ci(CiOptions),
    Tidy,
    Previous,
    Fuzz { target: Option<String>, seconds: u32 },
    Lab(Vec<String>),
    Guest(Vec<String>),
    Peers(Vec<String>),
    Sim(Vec<String>),
}

/// How to run the steps of CI.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CiOptions {
    /// Run everything, not only what fits CI's time.
    pub(crate) full: bool,
    /// Names of the steps to run; all if empty.
    pub(crate) only: Vec<String>,
    /// How long each fuzzer runs; the default depends on `full`.
    pub(crate) fuzz_seconds: Option<u32>,
}

/// Why a command line was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("there is no command `{word}`")]
    Command { word: String },
    #[error("`{word}` is not expected here")]
    Word { word: String },
    #[error("{flag} needs a value")]
    Value { flag: String },
    #[error("{flag} takes 1 to {FUZZ_SECONDS_MAX} seconds, not `{value}`")]
    Seconds { flag: String, value: String },
}

/// Parses the words after the program's name.
pub(crate) fn parse(words: &[String]) -> Result<Task, ArgumentError> {
    let mut words = words.iter().map(String::as_str);
    match words.next() {
        None | Some("help" | "--help" | "-h") => Ok(Task::Help),
        Some("ci") => ci(words),
        Some("tidy") => alone(Task::Tidy, words.next()),
        Some("previous") => alone(Task::Previous, words.next()),
        Some("fuzz") => fuzz(words),
        // What follows is a language of its own, parsed by the module that speaks it.
        Some("lab") => Ok(Task::Lab(words.map(str::to_owned).collect())),
        Some("guest") => Ok(Task::Guest(words.map(str::to_owned).collect())),
        Some("sim") => Ok(Task::Sim(words.map(str::to_owned).collect())),
        Some("peers") => Ok(Task::Peers(words.map(str::to_owned).collect())),
        Some(word) => Err(ArgumentError::Command { word: word.to_owned() }),
    }
}

/// A task without words of its own.
fn alone(task: Task, next: Option<&str>) -> Result<Task, ArgumentError> {
    next.map_or(Ok(task), |word| Err(ArgumentError::Word { word: word.to_owned() }))
}

fn ci<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Task, ArgumentError> {
    let mut options = CiOptions::default();
    while let Some(word) = words.next() {
        match word {
            "--full" => options.full = true,
            "--only" => {
                let names = value(word, words.next())?;
                options.only.extend(names.split(',').map(str::to_owned));
            }
            "--fuzz-seconds" => options.fuzz_seconds = Some(seconds(word, words.next())?),
            _ => return Err(ArgumentError::Word { word: word.to_owned() }),
        }
    }
    Ok(Task::Ci(options))
}

fn fuzz<'a>(mut words: impl Iterator<Item = &'a str>) -> Result<Task, ArgumentError> {
    let mut target = None;
    let mut duration = FUZZ_SECONDS;
    while let Some(word) = words.next() {
        match word {
            "--seconds" => duration = seconds(word, words.next())?,
            _ if word.starts_with('-') || target.is_some() => {
                return Err(ArgumentError::Word { word: word.to_owned() });
            }
            _ => target = Some(word.to_owned()),
        }
    }
    Ok(Task::Fuzz { target, seconds: duration })
}

fn value<'a>(flag: &str, value: Option<&'a str>) -> Result<&'a str, ArgumentError> {
    value.ok_or_else(|| ArgumentError::Value { flag: flag.to_owned() })
}

fn seconds(flag: &str, text: Option<&str>) -> Result<u32, ArgumentError> {
    let text = value(flag, text)?;
    let number = text.parse().ok().filter(|seconds| (1..=FUZZ_SECONDS_MAX).contains(seconds));
    number.ok_or_else(|| ArgumentError::Seconds { flag: flag.to_owned(), value: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Task, ArgumentError> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_command_is_understood() {
        assert_eq!(parsed(""), Ok(Task::Help));
        assert_eq!(parsed("tidy"), Ok(Task::Tidy));
        assert_eq!(parsed("previous"), Ok(Task::Previous));
        assert_eq!(parsed("fuzz"), Ok(Task::Fuzz { target: None, seconds: FUZZ_SECONDS }));
        let target = Some("frames".to_owned());
        assert_eq!(parsed("fuzz frames --seconds 5"), Ok(Task::Fuzz { target, seconds: 5 }));
        let only = vec!["fmt".to_owned(), "doc".to_owned()];
        let options = CiOptions { full: true, only, fuzz_seconds: Some(9) };
        assert_eq!(parsed("ci --only fmt,doc --full --fuzz-seconds 9"), Ok(Task::Ci(options)));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "x",
            "tidy x",
            "previous x",
            "ci x",
            "ci --only",
            "fuzz a b",
            "fuzz --seconds 0",
            "fuzz --seconds x",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
