//! What goes into the source's machine and what comes out of it.
//!
//! Plain values between the machine and its driver, on the control thread.

use crate::ids::{LaneId, Round, SessionId, SessionNumber};
use crate::session::reason::EndReason;
use crate::session::record::SourceRecord;
use crate::session::resolve::{Conflict, RunAt};
use crate::wire::peer::{Message, PeerCoding, PeerMessage, RegionName};
use crate::wire::vm::VmOffer;

/// What a new session is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// The session.
    pub session: SessionId,
    /// Its name in frames.
    pub number: SessionNumber,
    /// What moves.
    pub what: SourceWhat,
    /// How many lanes serve it.
    pub lanes: u16,
}

/// What a session moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceWhat {
    /// A region, in rounds that clients ask for.
    Region {
        /// The sink's region.
        region: RegionName,
        /// Its pages.
        pages: u64,
        /// How they will be coded.
        coding: PeerCoding,
    },
    /// A virtual machine, which sets its own pace.
    Vm(Box<VmOffer>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceInput {
    /// A client wants a round.
    Round,
    /// A client has paused its writer and wants the end.
    Finish,
    /// A client gives the session up.
    Abort,
    /// An operator ends the doubt.
    Resolve(RunAt),
    /// The sink sent a message about this session.
    Peer(PeerMessage),
    /// A lane reserved its memory.
    LaneOpened(LaneId),
    /// On this lane every page of the round is acknowledged.
    LaneRoundDone {
        /// The lane.
        lane: LaneId,
        /// The round.
        round: Round,
    },
    /// The sink's memory matches on this lane.
    LaneVerified(LaneId),
    /// The session can't go on on this lane.
    LaneFailed {
        /// The lane.
        lane: LaneId,
        /// The data plane's code.
        code: &'static str,
    },
    /// The virtual machine here can't go on.
    VmFailed {
        /// Its stable code.
        code: &'static str,
        /// What happened.
        message: Message,
    },
    /// The record is durable.
    JournalWritten(SourceRecord),
    /// The record may or may not be durable.
    JournalFailed(SourceRecord),
    /// The connection to the sink is gone.
    LinkLost,
    /// There is a new connection to the sink.
    LinkUp,
    /// Time passed.
    Tick,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Send this to the sink, if there is a connection.
    Send(PeerMessage),
    /// Open the session on every lane; each answers `LaneOpened` or `LaneFailed`.
    OpenLanes,
    /// Start a round on every lane; each answers `LaneRoundDone` or `LaneFailed`.
    StartRound {
        /// The round.
        round: Round,
        /// The one in the pause.
        last: bool,
    },
    /// Verify on every lane; each answers `LaneVerified` or `LaneFailed`.
    Verify,
    /// Close the session on every lane and give its memory back.
    CloseLanes,
    /// Write and fsync; answered by `JournalWritten` or `JournalFailed`.
    Journal(SourceRecord),
    /// Connect to the sink again, as often as it takes; answered by `LinkUp`.
    Reconnect,
    /// Tell the clients.
    Report(SourceReport),
    /// A message of the peer came too late to matter: count it under this name.
    Ignored {
        /// The message.
        message: &'static str,
    },
}

/// News for the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceReport {
    /// Rounds can start.
    Opened,
    /// A round asked for is done.
    RoundDone {
        /// The round.
        round: Round,
    },
    /// The sink owns the region.
    Committed,
    /// Neither end surely owns the region; the daemon asks until it knows.
    InDoubt(EndReason),
    /// The session ended and the source owns the region.
    Ended(EndReason),
    /// The sink's record contradicts the operator's decision.
    Conflict(Conflict),
}
