//! Reading a daemon's Prometheus page.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    page: String,
}

impl Metrics {
    /// Asks a daemon.
    pub(crate) fn scrape(address: SocketAddr) -> Self {
        let bound = Duration::from_secs(20);
        let mut stream = TcpStream::connect_timeout(&address, bound).expect("metrics are served");
        stream.set_read_timeout(Some(bound)).expect("a bound");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the request leaves");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a page");
        let (head, page) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Self { page: page.to_owned() }
    }

    /// The sum of all samples of a family whose labels contain each of the given texts.
    pub(crate) fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let samples = self.samples().filter(|(name, of, _)| {
            *name == family && labels.iter().all(|label| of.contains(label))
        });
        samples.map(|(_, _, value)| value).sum()
    }

    /// Every sample: name, labels, value.
    pub(crate) fn samples(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            let (head, value) = line.rsplit_once(' ').expect("a sample has a value");
            let (name, labels) = head.split_once('{').unwrap_or((head, ""));
            (name, labels, value.parse().expect("a number"))
        })
    }

    /// The page's lines.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.page.lines()
    }
}
