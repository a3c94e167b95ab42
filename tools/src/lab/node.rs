//! A host of the lab's network: a namespace with one address.
//!
//! Made and removed by [`super::Net`]. Programs run in it by `ip netns exec`, which becomes the
//! program, so that the child's id is the program's own.

use super::command::find;
use super::error::LabError;
use super::netns;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One host.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) letter: char,
    pub(super) namespace: String,
    pub(super) address: Ipv4Addr,
}

impl Node {
    /// The namespace's name, as `ip netns` knows it.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The address, reachable from all nodes that a link or two lead to.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs a program on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program.as_ref());
        command
    }

    /// Runs a closure on a thread of this host. Sockets that it makes stay on this host, whatever
    /// thread uses them.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        netns::enter(&self.namespace, inside)
    }

    /// Bytes of IP that left over links, counted by the kernel: what was sent again is in it, the
    /// headers that cutting large packets adds are not.
    ///
    /// # Errors
    /// The namespace can't be entered.
    pub fn sent_bytes(&self) -> Result<u64, LabError> {
        // `/proc/net` would show the namespace of the process, not of the thread.
        let path = PathBuf::from("/proc/thread-self/net/dev");
        let text = self.enter(|| std::fs::read_to_string(&path))?;
        Ok(links_sent_bytes(&text.map_err(LabError::file(&path))?))
    }

    /// The words before a program that make it run on this host.
    pub(crate) fn words(&self) -> [String; 4] {
        let ip = find("ip").unwrap_or_else(|| PathBuf::from("ip"));
        let ip = ip.to_string_lossy().into_owned();
        [ip, "netns".to_owned(), "exec".to_owned(), self.namespace.clone()]
    }

    /// The device that leads to another node.
    pub(super) fn device_to(letter: char) -> String {
        format!("to-{letter}")
    }
}

/// The sum of the bytes sent over devices that lead to other nodes.
fn links_sent_bytes(text: &str) -> u64 {
    /// Its place among the numbers of a line: eight about receiving stand before it.
    const SENT: usize = 8;
    let sent = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let number = numbers.split_whitespace().nth(SENT)?;
        number.parse::<u64>().ok().filter(|_| name.trim().starts_with("to-"))
    };
    text.lines().filter_map(sent).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_sent_over_links_are_counted() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets|bytes packets\n\
                    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n\
                    to-b: 1 2 3 4 5 6 7 8 40 1 0 0 0 0 0 0\n  to-c: 1 2 3 4 5 6 7 8 2 \
                    1 0 0 0 0 0 0\n";
        assert_eq!(links_sent_bytes(text), 42);
    }
}
