//! The command line of the simulator.

/// What may be asked for.
pub(crate) const HELP: &str = "\
sim [--from S] [--seeds N] [--threads N]   runs the worlds of N seeds from S on
sim --seed S [--trace]                     runs one world, twice, and compares; prints all facts
sim --kept                                 runs the seeds of found bugs";

/// Which worlds to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) from: u64,
    pub(crate) seeds: u64,
    pub(crate) threads: u64,
    pub(crate) trace: bool,
    pub(crate) kept: bool,
}

/// Reads the words of the command line.
pub(crate) fn parse(words: &[String]) -> Result<Options, String> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let mut options = Options { from: 0, seeds: 100, threads, trace: false, kept: false };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().and_then(|value| value.parse().ok());
            value.ok_or_else(|| format!("{word} takes a number"))
        };
        match word.as_str() {
            "--from" => options.from = number()?,
            "--seeds" => options.seeds = number()?,
            "--threads" => options.threads = number()?.max(1),
            "--seed" => (options.from, options.seeds) = (number()?, 1),
            "--trace" => options.trace = true,
            "--kept" => options.kept = true,
            other => return Err(format!("{other} is no option")),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_seed_is_a_range_of_one_and_nonsense_is_refused() {
        let options = parsed("--seed 7 --trace").unwrap();
        assert_eq!((options.from, options.seeds, options.trace), (7, 1, true));
        let options = parsed("--from 5 --seeds 10 --threads 0").unwrap();
        assert_eq!((options.from, options.seeds, options.threads), (5, 10, 1));
        assert!(parsed("--seeds").is_err() && parsed("--seeds many").is_err());
        assert!(parsed("--fast").is_err());
    }
}
