//! Why there is no figure.

use dwcp_tools::lab::LabError;
use std::path::PathBuf;

/// A bench that could not measure; a figure that was missed is not an error.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab, or a program in it.
    #[error("{0}")]
    Lab(#[from] LabError),
    /// A file, socket or program.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program is not there.
    #[error("{path} is not there: {cure}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// How to get it.
        cure: &'static str,
    },
    /// A program ended or failed.
    #[error("{program} ended ({status}); it said last:\n{said}")]
    Ended {
        /// Which one.
        program: &'static str,
        /// How.
        status: String,
        /// The end of its output.
        said: String,
    },
    /// A program's answer lacks what is looked for.
    #[error("{program} did not say {what}: {answer}")]
    Answer {
        /// Which one.
        program: &'static str,
        /// What is missing.
        what: &'static str,
        /// What it said.
        answer: String,
    },
    /// The bytes that arrived are not those that were sent.
    #[error("byte {at} and what follows are not what was sent")]
    Differs {
        /// The first piece that differs begins here.
        at: u64,
    },
    /// A word of the command line.
    #[error("`{word}`: {why}")]
    Argument {
        /// The word.
        word: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// For `map_err`: names what was done.
pub fn io(what: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}
