//! The demo's view of a daemon: the few calls it makes, with typed answers.
//!
//! Blocking, on the thread of the pre-copy loop. The shapes are those of the manual's control-api.

use super::daemons::{Endpoint, Role};
use super::error::DemoError;
use super::options::Options;
use crate::client::Client;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_ffi::region::Region;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// A round over a very slow machine may take long; a dead daemon is noticed by the main thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// The name of the region at both daemons.
const REGION: &str = "demo";

/// The state of a session whose memory the sink may run.
const COMMITTED: &str = "committed";

/// What a round did.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct RoundReply {
    /// Its number, from 1.
    pub(crate) round: u32,
    /// Pages named by the source of dirty pages.
    pub(crate) pages: u64,
    /// Pages of them that had to be sent.
    pub(crate) pages_sent: u64,
    /// Sealed bytes.
    pub(crate) wire_bytes: u64,
    /// Until the last acknowledgement.
    pub(crate) seconds: f64,
}

/// What the end of the session says.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
pub(crate) struct FinishReply {
    /// `committed`, when all is well.
    pub(crate) state: String,
    /// The round in the pause.
    pub(crate) last_round_ms: f64,
    /// Until the sink had proved that it holds every page.
    pub(crate) verify_ms: f64,
    /// Both journals and the messages between.
    pub(crate) commit_ms: f64,
    /// The session's counters.
    pub(crate) counters: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct OpenReply {
    session: String,
}

/// A daemon.
#[derive(Debug)]
pub(crate) struct Remote {
    endpoint: Endpoint,
    client: RefCell<Client>,
}

impl Remote {
    /// Connects to it.
    ///
    /// # Errors
    /// It takes no connection.
    pub(crate) fn connect(endpoint: Endpoint) -> Result<Self, DemoError> {
        match Client::connect(&endpoint.socket, ANSWER_WITHIN) {
            Ok(client) => Ok(Self { endpoint, client: RefCell::new(client) }),
            Err(source) => {
                let (role, log) = (endpoint.role, endpoint.log_tail());
                Err(DemoError::Call { role, method: "connect", source, log })
            }
        }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Gives it the memory to move, with the bitmap of changes if there is one.
    pub(crate) fn register_source(
        &self,
        region: &Region,
        bitmap: Option<&DirtyBitmap>,
    ) -> Result<(), DemoError> {
        let dirty = if bitmap.is_some() { "bitmap" } else { "compare" };
        let params = json!({"name": REGION, "role": Role::Source.name(), "dirty": dirty});
        let mut files = vec![region.fd()];
        files.extend(bitmap.map(DirtyBitmap::fd));
        self.call::<Value>("region.register", params, &files).map(drop)
    }

    /// Gives it the memory to fill, by the host `from` alone.
    pub(crate) fn register_sink(&self, region: &Region, from: &str) -> Result<(), DemoError> {
        let params = json!({"name": REGION, "role": Role::Sink.name(), "accept_from": [from]});
        self.call::<Value>("region.register", params, &[region.fd()]).map(drop)
    }

    /// Opens the session; returns its name.
    pub(crate) fn open(&self, options: &Options, peer: SocketAddr) -> Result<String, DemoError> {
        let mut params = json!({
            "region": REGION,
            "peer": peer.to_string(),
            "coding": options.coding,
            "measure_baseline": options.baseline,
        });
        // Passthrough compresses nothing, so a level with it is refused.
        if options.coding == "full" {
            params["zstd_level"] = options.zstd_level.into();
        }
        self.call::<OpenReply>("session.open", params, &[]).map(|reply| reply.session)
    }

    /// Runs one round.
    pub(crate) fn round(&self, session: &str) -> Result<RoundReply, DemoError> {
        self.call("session.round", json!({"session": session}), &[])
    }

    /// Runs the last round, has the sink verify, and commits.
    pub(crate) fn finish(&self, session: &str) -> Result<FinishReply, DemoError> {
        let reply: FinishReply = self.call("session.finish", json!({"session": session}), &[])?;
        if reply.state != COMMITTED {
            return Err(DemoError::NotCommitted { state: reply.state });
        }
        Ok(reply)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
        files: &[BorrowedFd<'_>],
    ) -> Result<T, DemoError> {
        let role = self.endpoint.role;
        let result = self.client.borrow_mut().call_with_fds(method, &params, files);
        let value = result.map_err(|source| {
            let log = self.endpoint.log_tail();
            DemoError::Call { role, method, source, log }
        })?;
        serde_json::from_value(value).map_err(|source| DemoError::Answer { role, method, source })
    }
}
