//! A daemon's or carrier's own counters, from its Prometheus page.

use super::carriers::Place;
use super::error::{BenchError, io};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(20);

/// One look at the page.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Asks for the page, from where the process runs.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn scrape(place: Place<'_>, address: SocketAddr) -> Result<Self, BenchError> {
        let ask = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(BOUND))?;
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page).map(|_| page)
        };
        Ok(Self(place.enter(ask)?.map_err(io("the metrics"))?))
    }

    /// The samples of a family: labels and value.
    pub fn samples(&self, family: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(family)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_whole = labels.is_empty() || labels.starts_with('{');
            value.parse().ok().filter(|_| is_whole).map(|value| (labels, value))
        })
    }

    /// The sum of all samples of a family.
    #[must_use]
    pub fn sum(&self, family: &str) -> f64 {
        self.samples(family).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_belong_to_their_family_alone() {
        let page = "# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\na_b 9\nc 1\n";
        let metrics = Metrics(page.to_owned());
        assert_eq!((metrics.sum("a"), metrics.sum("c"), metrics.sum("d")), (5.0, 1.0, 0.0));
        assert_eq!(metrics.samples("a").next(), Some(("{x=\"1\"}", 2.0)));
    }
}
