//! What a client may be told without asking each time, and which of it one client asked for.
//!
//! Pure values, held per client by the core.

use dwcp_proto::ids::SessionId;
use serde::{Deserialize, Serialize};

/// A kind of notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Topic {
    /// How far a session is, at most ten times a second each.
    #[serde(rename = "session.progress")]
    SessionProgress,
    /// Every change of a session's state.
    #[serde(rename = "session.state")]
    SessionState,
}

impl Topic {
    /// The method name of its notifications.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SessionProgress => "session.progress",
            Self::SessionState => "session.state",
        }
    }
}

/// What one client asked to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) topics: Vec<Topic>,
    pub(crate) session: Option<SessionId>,
}

impl Subscription {
    /// Whether a notification of `topic` about `session` goes to this client.
    pub(crate) fn wants(&self, topic: Topic, session: SessionId) -> bool {
        self.topics.contains(&topic) && self.session.is_none_or(|only| only == session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_holds_for_its_topics_and_its_session_only() {
        let (one, two) = (SessionId([1; 16]), SessionId([2; 16]));
        let all = Subscription { topics: vec![Topic::SessionState], session: None };
        assert!(all.wants(Topic::SessionState, one) && all.wants(Topic::SessionState, two));
        assert!(!all.wants(Topic::SessionProgress, one));
        let some = Subscription { session: Some(one), ..all };
        assert!(some.wants(Topic::SessionState, one) && !some.wants(Topic::SessionState, two));
    }
}
