//! Hosts joined by emulated links, on one machine.
//!
//! Owns the namespaces and the links of one network; all of it goes when it is dropped. The names
//! carry the process's id, so that tests run beside each other, and whatever a killed process left
//! behind is removed by the next that makes a network. A link's name is the letters of its two
//! nodes: `ab` joins `a` and `b`. Two nodes without a link of their own reach each other over a
//! third that has one to both; where they have one, that way is the fallback.

use super::abandoned::{self, PREFIX};
use super::command::{find, run};
use super::error::LabError;
use super::link_spec::LinkSpec;
use super::node::Node;
use super::relay::{End, Link, Way};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the networks of this process.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A direct way is preferred to one over a third node.
const METRIC_DIRECT: u32 = 10;
const METRIC_DETOUR: u32 = 20;

/// What a network is made of.
#[derive(Clone, Debug, Default)]
pub struct NetSpec {
    links: BTreeMap<String, LinkSpec>,
    congestion: Option<String>,
}

impl NetSpec {
    /// Two nodes, `a` and `b`, and a link between them; see [`LinkSpec::HELP`] for the words.
    ///
    /// # Errors
    /// A word is not understood.
    pub fn pair(words: &str) -> Result<Self, LabError> {
        Self::default().with_link("ab", LinkSpec::parse(words)?)
    }

    /// Adds a link, and the nodes at its ends if they are new.
    ///
    /// # Errors
    /// The name is not two different small letters.
    pub fn with_link(mut self, name: &str, spec: LinkSpec) -> Result<Self, LabError> {
        letters(name)?;
        self.links.insert(name.to_owned(), spec);
        Ok(self)
    }

    /// Sets TCP's congestion control for all nodes; without it they have the machine's.
    #[must_use]
    pub fn with_congestion(mut self, name: &str) -> Self {
        self.congestion = Some(name.to_owned());
        self
    }
}

/// A network that is up.
#[derive(Debug)]
pub struct Net {
    // Before the nodes: the devices go before their namespaces.
    links: BTreeMap<String, Link>,
    nodes: BTreeMap<char, Node>,
}

impl Net {
    /// Makes the namespaces and links.
    ///
    /// # Errors
    /// No right to, no TUN devices in this kernel, or a congestion control that it does not have.
    pub fn up(spec: &NetSpec) -> Result<Self, LabError> {
        abandoned::remove();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut net = Self { links: BTreeMap::new(), nodes: BTreeMap::new() };
        for name in spec.links.keys() {
            for letter in letters(name)? {
                if let Entry::Vacant(place) = net.nodes.entry(letter) {
                    place.insert(node(letter, number, spec.congestion.as_deref())?);
                }
            }
        }
        for (name, link) in &spec.links {
            let ends = letters(name)?;
            let end = |at: usize| End {
                namespace: net.nodes[&ends[at]].namespace.clone(),
                device: Node::device_to(ends[1 - at]),
            };
            let made = Link::start([end(0), end(1)], link)?;
            net.links.insert(name.clone(), made);
            for at in [0, 1] {
                // The emulator's queue is the one that drops, so the device's must not.
                let device = Node::device_to(ends[1 - at]);
                let line = format!("link set {device} mtu 1500 txqueuelen 10000 up\n");
                ip_batch(&net.nodes[&ends[at]], &line)?;
            }
        }
        net.add_routes()?;
        Ok(net)
    }

    /// A node by its letter.
    ///
    /// # Panics
    /// There is none of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        let node = name.chars().next().and_then(|letter| self.nodes.get(&letter));
        node.unwrap_or_else(|| panic!("this network has no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A link by its name.
    ///
    /// # Panics
    /// There is none of that name.
    #[must_use]
    pub fn link(&self, name: &str) -> &Link {
        self.links.get(name).unwrap_or_else(|| panic!("this network has no link {name}"))
    }

    /// All links with their names.
    pub fn links(&self) -> impl Iterator<Item = (&str, &Link)> {
        self.links.iter().map(|(name, link)| (name.as_str(), link))
    }

    /// One way between two neighbours: of link `ab`, `ab` is the way there and `ba` the way back.
    ///
    /// # Panics
    /// There is no link between them.
    #[must_use]
    pub fn way(&self, name: &str) -> &Way {
        self.try_way(name).unwrap_or_else(|| panic!("this network has no way {name}"))
    }

    /// Like [`Net::way`], for names that a person typed.
    #[must_use]
    pub fn try_way(&self, name: &str) -> Option<&Way> {
        let reversed: String = name.chars().rev().collect();
        let there = self.links.get(name).map(Link::there);
        there.or_else(|| self.links.get(&reversed).map(Link::back))
    }

    /// Takes the carrier from both ends of a link, or gives it back. Unlike `up=0` this is noticed:
    /// local errors come at once, and the fallback over a third node is used if there is one.
    ///
    /// # Errors
    /// The kernel refused.
    ///
    /// # Panics
    /// There is no link of that name.
    pub fn set_carrier(&self, name: &str, is_there: bool) -> Result<(), LabError> {
        assert!(self.links.contains_key(name), "this network has no link {name}");
        let [a, b] = letters(name)?;
        let state = if is_there { "up" } else { "down" };
        for (near, far) in [(a, b), (b, a)] {
            let line = format!("link set {} {state}\n", Node::device_to(far));
            ip_batch(&self.nodes[&near], &line)?;
        }
        // The kernel has dropped the routes of a device without carrier.
        if is_there { self.add_routes() } else { Ok(()) }
    }

    fn add_routes(&self) -> Result<(), LabError> {
        for from in self.nodes.values() {
            let mut lines = String::new();
            for hop in self.neighbours(from.letter) {
                lines.push_str(&route(from, &self.nodes[&hop], hop, METRIC_DIRECT));
                for to in self.neighbours(hop).into_iter().filter(|to| *to != from.letter) {
                    lines.push_str(&route(from, &self.nodes[&to], hop, METRIC_DETOUR));
                }
            }
            ip_batch(from, &lines)?;
        }
        Ok(())
    }

    fn neighbours(&self, letter: char) -> Vec<char> {
        let names = self.links.keys().filter(|name| name.contains(letter));
        names.flat_map(|name| name.chars().filter(|other| *other != letter)).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.links.clear();
        for node in self.nodes.values() {
            if let Err(error) = delete_namespace(&node.namespace) {
                eprintln!("lab: {error}");
            }
        }
    }
}

/// The letters of a link's two nodes.
fn letters(name: &str) -> Result<[char; 2], LabError> {
    let all: Vec<char> = name.chars().filter(char::is_ascii_lowercase).collect();
    match all[..] {
        [a, b] if a != b && name.len() == 2 => Ok([a, b]),
        _ => {
            let why = "a link's name is the letters of its two nodes, such as ab";
            Err(LabError::Word { word: name.to_owned(), why })
        }
    }
}

/// Makes a node's namespace, with its address on the loopback device.
fn node(letter: char, number: u64, congestion: Option<&str>) -> Result<Node, LabError> {
    let namespace = format!("{PREFIX}{}-{number}-{letter}", std::process::id());
    let address = Ipv4Addr::new(10, 70, 0, (letter as u8) - b'a' + 1);
    let node = Node { letter, namespace, address };
    ip(&["netns", "add", &node.namespace])?;
    let made = prepare(&node, congestion);
    if made.is_err() {
        drop(delete_namespace(&node.namespace));
    }
    made.map(|()| node)
}

fn prepare(node: &Node, congestion: Option<&str>) -> Result<(), LabError> {
    let mut settings = vec![
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        // What one connection learned must not shape the next.
        ("ipv4/tcp_no_metrics_save", "1"),
        // Announcements of IPv6 would be packets that no test has sent.
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ];
    if let Some(name) = congestion {
        allow_congestion(name)?;
        settings.push(("ipv4/tcp_congestion_control", name));
    }
    node.enter(|| {
        for (name, value) in settings {
            let path = sysctl(name);
            // A kernel without IPv6 has no such setting and needs none.
            if path.exists() {
                std::fs::write(&path, value).map_err(LabError::file(&path))?;
            }
        }
        Ok(())
    })??;
    ip_batch(node, &format!("link set lo up\naddr add {}/32 dev lo\n", node.address))
}

/// A namespace may only take what the machine allows to everybody.
fn allow_congestion(name: &str) -> Result<(), LabError> {
    let path = sysctl("ipv4/tcp_allowed_congestion_control");
    let allowed = std::fs::read_to_string(&path).map_err(LabError::file(&path))?;
    if allowed.split_whitespace().any(|it| it == name) {
        return Ok(());
    }
    eprintln!("lab: adding {name} to the congestion controls that this machine allows");
    std::fs::write(&path, format!("{} {name}", allowed.trim())).map_err(LabError::file(&path))
}

fn sysctl(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn route(from: &Node, to: &Node, hop: char, metric: u32) -> String {
    let device = Node::device_to(hop);
    format!("route replace {} dev {device} src {} metric {metric}\n", to.address, from.address)
}

pub(super) fn delete_namespace(namespace: &str) -> Result<(), LabError> {
    ip(&["netns", "del", namespace])
}

fn ip(words: &[&str]) -> Result<(), LabError> {
    let program = program();
    let all: Vec<&str> = std::iter::once(program.as_str()).chain(words.iter().copied()).collect();
    run(&all).map(drop)
}

/// Runs several commands of `ip` in a node at once: each process costs milliseconds.
fn ip_batch(node: &Node, lines: &str) -> Result<(), LabError> {
    let mut command = Command::new(program());
    command.args(["-n", &node.namespace, "-batch", "-"]).stdin(Stdio::piped());
    let line = format!("ip -n {} -batch", node.namespace);
    let failed = |source| LabError::Start { command: line.clone(), source };
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LabError::Failed { command: line, status: output.status, output: text })
}

fn program() -> String {
    find("ip").unwrap_or_else(|| PathBuf::from("ip")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_joins_two_nodes() {
        assert_eq!(letters("ab").unwrap(), ['a', 'b']);
        for name in ["", "a", "aa", "abc", "aB", "a1"] {
            assert!(letters(name).is_err(), "{name}");
        }
    }
}
