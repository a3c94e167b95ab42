//! Two carriers and a link between them, as an operator has it: with certificates, sealed.

use super::error::{BenchError, io};
use super::process::{Running, run};
use dwcp_tools::lab::Node;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Where a program runs: on a host of the lab, or on this machine itself.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A host.
    Node(&'a Node),
    /// This machine; peers meet on loopback.
    Here,
}

impl Place<'_> {
    /// A command that runs a program there.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Node(node) => node.command(program),
            Self::Here => Command::new(program),
        }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        match self {
            Self::Node(node) => node.address(),
            Self::Here => Ipv4Addr::LOCALHOST,
        }
    }

    /// Runs a closure there; sockets that it makes stay there.
    ///
    /// # Errors
    /// The host can't be entered.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, BenchError> {
        match self {
            Self::Node(node) => Ok(node.enter(inside)?),
            Self::Here => Ok(inside()),
        }
    }
}

/// The build of dwcp that is beside this program.
///
/// # Errors
/// It was not built.
pub fn dwcp() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(io("this program's path"))?;
    let path = own.with_file_name("dwcp");
    let cure = "cargo build --release --bin dwcp";
    if path.is_file() { Ok(path) } else { Err(BenchError::Missing { path, cure }) }
}

/// A carrier at each end, linked.
#[derive(Debug)]
pub struct Carriers {
    /// The one that a VMM would migrate to.
    pub source: Running,
    /// The one that connects to the VMM at the other end.
    pub sink: Running,
    /// Where a VMM at the sink would listen.
    pub exit: UnixListener,
    entry: PathBuf,
    // Last, so that both have ended when it goes.
    _folder: TempDir,
}

impl Carriers {
    /// Starts both and waits for the link; `flags` are for both, the bytes go through as they are.
    ///
    /// # Errors
    /// One of them does not work.
    pub fn start(
        source: Place<'_>,
        sink: Place<'_>,
        port: u16,
        flags: &[String],
    ) -> Result<Self, BenchError> {
        let dwcp = dwcp()?;
        let folder = tempfile::tempdir().map_err(io("a folder"))?;
        let at = |name: &str| folder.path().join(name);
        let pki = at("pki");
        for words in [&["init"][..], &["host", "a"], &["host", "b"]] {
            let mut command = Command::new(&dwcp);
            command.arg("pki").args(words).arg(&pki);
            run("dwcp pki", &command)?;
        }
        let exit = UnixListener::bind(at("exit")).map_err(io("the sink's socket"))?;
        let mut command = sink.command(&dwcp);
        command.args(["carry", "--listen", &format!("0.0.0.0:{port}"), "--connect-unix"]);
        command.arg(at("exit")).arg("--pki").arg(pki.join("b")).arg("--json").args(flags);
        let mut sink_process = Running::start(&command, "dwcp carry (sink)", at("sink.log"))?;
        sink_process.wait_for_word("ready")?;
        let mut command = source.command(&dwcp);
        command.args(["carry", "--to", &format!("{}:{port}", sink.address()), "--listen-unix"]);
        command.arg(at("entry")).arg("--pki").arg(pki.join("a")).arg("--json");
        command.args(["--mode", "passthrough"]).args(flags);
        let mut source = Running::start(&command, "dwcp carry (source)", at("source.log"))?;
        source.wait_for_word("linked")?;
        Ok(Self { source, sink: sink_process, exit, entry: at("entry"), _folder: folder })
    }

    /// Where a VMM migrates to.
    #[must_use]
    pub fn entry(&self) -> &Path {
        &self.entry
    }
}
