//! What a carrier reports, for people and for machines.
//!
//! Plain values; as JSON each event is one object whose `event` names it.

use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What was carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CarryCounts {
    /// Connections of the VMM.
    pub channels: u16,
    /// Bytes that the VMM wrote (source) or took (sink).
    pub vmm_bytes: u64,
    /// What the link carried for them, before encryption.
    pub coded_bytes: u64,
    /// The level of zstd at which it is coded now (source; 0 while nothing was).
    pub zstd_level: u64,
    /// Bytes that the VMM at the sink answered.
    pub reply_bytes: u64,
    /// Since the session began.
    pub seconds: f64,
}

/// Why a session failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CarryFailure {
    /// A stable name.
    pub code: String,
    /// What happened, in one line.
    pub message: String,
    /// What to do about it.
    pub cure: String,
}

/// What a carrier reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CarryEvent {
    /// It works: the VMM, or peers, may connect.
    Ready {
        /// Source: the Unix socket.
        #[serde(skip_serializing_if = "Option::is_none")]
        listen_unix: Option<PathBuf>,
        /// Sink: the address, with the port that the kernel chose for port 0.
        #[serde(skip_serializing_if = "Option::is_none")]
        listen: Option<SocketAddr>,
    },
    /// The link to the other carrier works; the source opens it before a VMM comes.
    Linked {
        /// The other end's name.
        peer: String,
    },
    /// A session began: both VMMs are connected.
    Opened {
        /// The session.
        session: String,
        /// The other end's name.
        peer: String,
    },
    /// The VMM opened one more connection.
    Channel {
        /// The session.
        session: String,
        /// Its number, from 1 on.
        channel: u16,
    },
    /// Source: how large the guest is.
    Ram {
        /// The session.
        session: String,
        /// Bytes of the guest's memory.
        ram_bytes: u64,
        /// Of these, what the session's tables have room for; the rest is coded without bases.
        table_bytes: u64,
    },
    /// Source: from here on every byte is carried as it is.
    Opaque {
        /// The session.
        session: String,
        /// Why, as a stable code.
        reason: &'static str,
    },
    /// The link is lost: both VMMs stay connected and stand still.
    Parked {
        /// The session.
        session: String,
        /// The other end's name.
        peer: String,
        /// How the link was lost.
        reason: String,
        /// So many seconds after the peer was heard last it is given up.
        window_s: u64,
    },
    /// The session goes on over another connection.
    Resumed {
        /// The session.
        session: String,
        /// The other end's name.
        peer: String,
        /// How long it was parked.
        seconds: f64,
    },
    /// How far it is.
    Progress {
        /// The session.
        session: String,
        /// The counts.
        #[serde(flatten)]
        counts: CarryCounts,
    },
    /// A session is over.
    Ended {
        /// The session.
        session: String,
        /// The counts.
        #[serde(flatten)]
        counts: CarryCounts,
        /// Without one every byte arrived and both VMMs closed.
        #[serde(skip_serializing_if = "Option::is_none")]
        failure: Option<CarryFailure>,
    },
}
