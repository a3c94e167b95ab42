//! How many streams of a link carry pages, and why, in words.
//!
//! Part of [`Core`], on the control thread. The shard that owns a lane decides
//! ([`dwcp_proto::tuner`]); here streams are dialled to what it wants, and people are told.

use super::core::{Core, unix_ms};
use super::links::LinkEntry;
use crate::peer::LinkInput;
use dwcp_proto::ids::{LaneId, LinkId};
use dwcp_proto::tuner::{Decision, Why};
use serde_json::{Value, json};

/// What a lane has decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuned {
    decision: Decision,
    /// So many streams of it shall be open, spare ones included.
    pub(super) open: u16,
    /// Since when so many carry.
    since_unix_ms: u64,
}

impl Tuned {
    /// So many streams carry pages.
    pub(super) const fn carrying(&self) -> u16 {
        self.decision.streams
    }
}

impl Core {
    pub(super) fn on_streams_decided(
        &mut self,
        link: LinkId,
        lane: LaneId,
        decision: Decision,
        open: u16,
    ) {
        let Some(entry) = self.links.get_mut(&link) else { return };
        let before = entry.tuned.get(&lane).filter(|it| it.decision.streams == decision.streams);
        let since_unix_ms = before.map_or_else(unix_ms, |it| it.since_unix_ms);
        entry.tuned.insert(lane, Tuned { decision, open, since_unix_ms });
        let (streams, why) = (decision.streams, code(decision.why));
        tracing::debug!(%link, %lane, streams, why, "tuned");
        self.link_step(link, LinkInput::Want(lane, open));
    }
}

/// What `net.show` says of a link's number of streams: one object for each lane; none where the
/// number was set by hand, or is the peer's.
pub(super) fn tuned_view(entry: &LinkEntry) -> Value {
    let lanes = entry.tuned.iter().map(|(lane, tuned)| {
        let Tuned { decision: Decision { streams, why }, open, since_unix_ms } = *tuned;
        let places = entry.link.streams_of(*lane);
        let first = entry.streams.iter().find(|(id, _)| entry.link.lane_of(**id) == *lane);
        let congestion = first.and_then(|(_, readers)| readers.congestion.as_deref());
        json!({
            "lane": lane,
            "carrying": streams,
            "open": open,
            "places": places,
            "congestion": congestion,
            "why": code(why),
            "reason": words(why),
            "since_unix_ms": since_unix_ms,
        })
    });
    Value::Array(lanes.collect())
}

/// The stable code of a reason.
const fn code(why: Why) -> &'static str {
    match why {
        Why::Begun => "begun",
        Why::Trying { .. } => "trying",
        Why::Gained { .. } => "gained",
        Why::NoGain { .. } => "no_gain",
        Why::PathFull => "path_full",
        Why::AllThereAre => "all_there_are",
        Why::SourceSlow => "source_slow",
        Why::FillsAlone => "fills_alone",
        Why::BuffersSmall => "buffers_small",
    }
}

fn words(why: Why) -> String {
    match why {
        Why::Begun => "the number to begin with; what it brings is measured".to_owned(),
        Why::Trying { from } => format!("tried instead of {from}; what it brings is measured"),
        Why::Gained { from, percent } => {
            format!("goodput changed by {percent:+} % against {from}, which pays")
        }
        Why::NoGain { tried, percent } => {
            format!("with {tried} goodput changed by {percent:+} %, which does not pay")
        }
        Why::PathFull => "the path is full".to_owned(),
        Why::AllThereAre => "there is room for no more".to_owned(),
        Why::SourceSlow => "the source sends less than they take".to_owned(),
        Why::FillsAlone => "one fills the path alone, whatever is lost".to_owned(),
        Why::BuffersSmall => "the buffers of fewer hold less than the path".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_its_numbers() {
        let gained = words(Why::Gained { from: 4, percent: 88 });
        assert_eq!(gained, "goodput changed by +88 % against 4, which pays");
        let in_vain = words(Why::NoGain { tried: 8, percent: -3 });
        assert_eq!(in_vain, "with 8 goodput changed by -3 %, which does not pay");
        assert_eq!((code(Why::PathFull), code(Why::Trying { from: 4 })), ("path_full", "trying"));
    }
}
