//! How far a migration has come, and migrations that are brought there.

use super::harness::{Hosts, MOVE_MAX, Migrate, told};
use super::pair::Pair;
use crate::harness::client::Client;
use crate::harness::wait_until;
use serde_json::{Value, json};

/// How far the migration has come when the fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Asked for; no byte of the guest has left.
    Opening,
    /// A part of the first round is under way.
    RoundOne,
    /// The first round is through.
    LaterRound,
    /// The guest stands still, device state is under way.
    Stopped,
    /// The source's QEMU has completed.
    Completed,
    /// The source has given the guest up; the sink may not know.
    Yielded,
    /// The sink has taken the guest; the source may not know.
    Committed,
    /// Both know.
    Settled,
}

/// All of them, in order.
pub(super) const PHASES: [Phase; 8] = [
    Phase::Opening,
    Phase::RoundOne,
    Phase::LaterRound,
    Phase::Stopped,
    Phase::Completed,
    Phase::Yielded,
    Phase::Committed,
    Phase::Settled,
];

/// Starts a migration and waits until it has come to a phase.
pub(super) fn go_to(hosts: &Hosts, pair: &mut Pair<'_>, phase: Phase) -> Migrate {
    let mut source = hosts.listen(pair.from);
    let mut sink = hosts.listen(pair.to());
    // The end of a migration is short: a longer way gives each of its steps time to be met. So are
    // its later rounds, unless the first one is slow.
    let (link, limit) = match phase {
        Phase::Opening | Phase::RoundOne => ("rate=60m delay=5ms", "300ms"),
        Phase::LaterRound => ("rate=10m delay=5ms", "1ms"),
        _ => ("rate=1g delay=100ms", "2s"),
    };
    hosts.link(link);
    let migrate = hosts.start_migrate(pair.from, &["--downtime-limit", limit]);
    let wait_state = |client: &mut Client, state: &str| {
        told(client, state, |method, params| method == "session.state" && params["state"] == state);
    };
    let wait_progress = |client: &mut Client, holds: &dyn Fn(&Value) -> bool| {
        told(client, "progress", |method, params| method == "session.progress" && holds(params));
    };
    match phase {
        Phase::Opening => wait_state(&mut source, "opening"),
        Phase::RoundOne => wait_progress(&mut source, &|params| {
            params["counters"]["vmm_in_bytes"].as_u64() > Some(4 << 20)
        }),
        Phase::LaterRound => {
            wait_progress(&mut source, &|params| params["vm"]["rounds"].as_u64() >= Some(2));
            hosts.link("rate=60m");
        }
        Phase::Stopped => pair.wait_stopped(),
        Phase::Completed => wait_until("the source's QEMU to complete", MOVE_MAX, || {
            let answer = pair.source.qmp().execute("query-migrate", json!({})).unwrap();
            answer["status"] == "completed"
        }),
        Phase::Yielded => wait_state(&mut source, "yielded"),
        Phase::Committed => wait_state(&mut sink, "committed"),
        Phase::Settled => wait_state(&mut source, "committed"),
    }
    migrate
}
