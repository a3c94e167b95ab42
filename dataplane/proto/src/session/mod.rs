//! A session's life at the source and at the sink, and the commit between them.
//!
//! Two pure machines, [`source::SourceSession`] and [`sink::SinkSession`], run on the control
//! thread. A driver feeds them inputs (what clients, lanes, journal, peer and time say) and carries
//! out the actions that come back, in order. The machines never do I/O. Each input gives at most
//! [`ACTIONS_MAX`] actions.
//!
//! # A good run
//! ```text
//! source driver          source machine            peer messages      sink machine
//! session.open        -> open()
//!                        Send(SessionOpen)         ---------------->  open(): OpenLanes
//!                                                                     <- LaneOpened, each lane
//!                        <- Peer(SessionAccept)    <----------------  Send(SessionAccept)
//!                        OpenLanes                                    [receiving]
//! each lane           -> LaneOpened
//!                        Report(Opened)            [precopy]
//! session.round       -> Round: StartRound{n}
//! each lane           -> LaneRoundDone{n}: Report(RoundDone{n})
//! session.finish      -> Finish: StartRound{last}  [last_round]
//! each lane           -> LaneRoundDone: Verify     [verifying]
//! each lane           -> LaneVerified:                                <- LaneVerified, each lane
//!                        Journal(Yielded)                             [verified]
//! fsync done          -> JournalWritten(Yielded):  [yielded]
//!                        Send(Yield)               ---------------->  Journal(Committed)
//!                                                                     <- JournalWritten(Committed)
//!                        <- Peer(Committed)        <----------------  Send(Committed), CloseLanes,
//!                        Journal(Done), CloseLanes                    Report(Committed)
//!                        [committed]                                  [committed]
//! fsync done          -> JournalWritten(Done):
//!                        Report(Committed),
//!                        Send(Settled)             ---------------->  Forget
//! ```
//!
//! # The rules of the driver
//! - `Send` goes out on the present connection to the session's peer, or nowhere when there is
//!   none; the machines repeat what matters. Messages of one connection keep their order.
//! - `Journal` is answered by `JournalWritten` after the fsync, or by `JournalFailed`. Of two
//!   records of one session the later one counts.
//! - `LinkLost` is fed when the connection is gone, before the next one's messages; `LinkUp` when a
//!   new one is agreed. Later messages of a lost connection are dropped, but would do no harm.
//! - `Reconnect` asks for a new connection; the driver keeps trying until `LinkUp`.
//! - `Tick` is fed when `deadline()` has passed.
//! - A message about a session is fed to the machine only if it comes from that session's peer, as
//!   its certificate names it.
//! - After a restart every session with a journal record is made again by `restore`. A sink makes a
//!   machine by `restore(.., None, ..)` for a `Query` about a session that it does not know, and
//!   bounds how many of these a peer may cause.
//!
//! # A virtual machine's session
//! The same machines run it, over one lane; what a region's lanes report is then the VMM's doing.
//! ```text
//! the VMM at the sink listens    -> LaneOpened at the sink      the lane is open -> at the source
//! the guest was stopped          -> Finish (no client may ask for it, nor for rounds)
//! the VMM at the source is done  -> LaneRoundDone{last}
//! the VMM at the sink has loaded -> LaneVerified at the sink    and the digests are equal: source
//! ```
//! A sink that has verified such a session and loses its link *parks*: it is in doubt, keeps the
//! paused guest, and never commits by itself. `Query` or `Abort` of the source ends that, and so
//! does an operator.
//!
//! # When an operator decides
//! `Resolve` ends a doubt at either end by a record that says so (`Resolved`). The source tells the
//! sink with `Resolved` as soon as there is a link and is over when the sink has answered. An end
//! whose own record says otherwise keeps to its record: nothing here makes a second one run. It
//! reports `Conflict`, and both ends keep that as evidence.
//!
//! # Who owns the region
//! The source does until `Yielded` is written to its journal: any failure before that leaves the
//! region with it. From then until it hears `Committed` or an outcome it is in doubt and claims
//! nothing. The sink does once `Committed` is written to its journal, which it starts only when all
//! lanes are verified and `Yield` has arrived. Asked about a session that it has not committed, it
//! first makes sure that it never will (`Aborted` in the journal), then says so. It says so only if
//! its journal is the one that it had when it accepted the session: a journal that was lost may
//! have held the commit, and then the answer is that it does not know. An operator's record counts
//! like a record of the machine's own; only an operator can make two owners.

pub mod phase;
pub mod reason;
pub mod record;
pub mod resolve;
pub mod sink;
pub mod source;
pub mod timing;

mod lanes;

/// The most actions that one input gives.
pub const ACTIONS_MAX: usize = 5;
