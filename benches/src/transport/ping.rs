//! Round trips as an unconcerned program sees them: `ping` beside whatever fills the link.

use super::error::{BenchError, io};
use super::process::Running;
use dwcp_tools::lab::Node;
use std::time::Duration;
use tempfile::TempDir;

const INTERVAL_S: &str = "0.05";

/// A `ping` that runs.
#[derive(Debug)]
pub struct Ping {
    running: Running,
    seconds: u32,
    _folder: TempDir,
}

/// What it saw.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trips {
    /// Each round trip that came back, in order.
    pub times_ms: Vec<f64>,
}

impl Ping {
    /// Starts it on one host, to another, for so many seconds.
    ///
    /// # Errors
    /// ping is not there.
    pub fn start(from: &Node, to: &Node, seconds: u32) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(io("a folder"))?;
        let mut command = from.command("ping");
        command.args(["-n", "-i", INTERVAL_S, "-w", &seconds.to_string()]);
        command.arg(to.address().to_string());
        let running = Running::start(&command, "ping", folder.path().join("log"))?;
        Ok(Self { running, seconds, _folder: folder })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It failed.
    pub fn finish(self) -> Result<Trips, BenchError> {
        let bound = Duration::from_secs(u64::from(self.seconds) + 30);
        let said = self.running.finish(bound)?;
        let trips = Trips::read(&said);
        let (program, what) = ("ping", "any round trip");
        if trips.times_ms.is_empty() {
            return Err(BenchError::Answer { program, what, answer: said });
        }
        Ok(trips)
    }
}

impl Trips {
    /// Reads what `ping` prints.
    fn read(said: &str) -> Self {
        let time = |line: &str| line.split_once("time=")?.1.split(' ').next()?.parse().ok();
        Self { times_ms: said.lines().filter_map(time).collect() }
    }

    /// The mean, which is what `ping` says last.
    #[must_use]
    pub fn mean_ms(&self) -> f64 {
        self.times_ms.iter().sum::<f64>() / self.times_ms.len() as f64
    }

    /// What so great a share of the round trips stays below.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.times_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * share) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_words_are_read() {
        let said = "PING 10.70.0.2 (10.70.0.2) 56(84) bytes of data.\n\
            64 bytes from 10.70.0.2: icmp_seq=1 ttl=64 time=40.3 ms\n\
            64 bytes from 10.70.0.2: icmp_seq=3 ttl=64 time=60.3 ms\n\n\
            --- 10.70.0.2 ping statistics ---\n\
            3 packets transmitted, 2 received, 33.3333% packet loss, time 100ms\n";
        let trips = Trips::read(said);
        assert_eq!(trips.times_ms, [40.3, 60.3]);
        assert!((trips.mean_ms() - 50.3).abs() < 1e-9);
        assert_eq!(trips.quantile_ms(0.5), 40.3);
        assert_eq!(Trips::read("ping: unknown host"), Trips::default());
    }
}
