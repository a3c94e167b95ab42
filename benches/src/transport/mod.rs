//! What the benches of the transport share: dwcp and its peers as processes on the lab's emulated
//! links, and what is measured of them.
//!
//! Used by the programs of the table in `benches/README.md`, on their main thread: children are
//! started there, since the kernel ends them with the thread that did. Nothing here judges; a
//! [`Row`] says what was measured and what there was to reach.

mod carriers;
mod curve;
mod error;
mod iperf;
mod load;
mod metrics;
mod options;
mod ping;
mod process;
mod row;

pub use carriers::{Carriers, Place, dwcp};
pub use curve::Curve;
pub use error::{BenchError, io};
pub use iperf::{Iperf, IperfRun};
pub use load::{Load, random_bytes};
pub use metrics::Metrics;
pub use options::Options;
pub use ping::{Ping, Trips};
pub use process::{Running, children_cpu_seconds, mortal, run};
pub use row::{Row, Rows, Series, Target};

use std::process::ExitCode;

/// The program's whole `main`: runs it and says what failed.
pub fn main(
    name: &str,
    help: &str,
    bench: impl FnOnce(&Options, &mut Rows) -> Result<(), BenchError>,
) -> ExitCode {
    dwcp_tools::lab::end_waits_on_signals();
    let outcome = Options::from_arguments(std::env::args().skip(1)).and_then(|options| {
        if options.help {
            println!("{help}\n{}", Options::HELP);
            return Ok(());
        }
        let mut rows = Rows::open(name, options.json.as_deref())?;
        bench(&options, &mut rows)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The middle of some figures.
///
/// # Panics
/// There are none.
#[must_use]
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// How evenly shares are spread: 1 when all are equal, 1/n when one has everything (Jain).
#[must_use]
pub fn evenness(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    sum * sum / (shares.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_are_equal_are_even() {
        assert!((evenness(&[3.0, 3.0]) - 1.0).abs() < 1e-9);
        assert!((evenness(&[1.0, 0.0]) - 0.5).abs() < 1e-9);
        assert!((evenness(&[0.35, 0.65]) - 0.917).abs() < 1e-3);
    }

    #[test]
    fn the_median_needs_no_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
