//! Every error that the control socket answers with: a stable number, a stable name, a cure.
//!
//! Pure values, made by `request` and by the core, put on the wire by `response`. A number once
//! given is never given to something else.

use serde_json::{Value, json};

/// Declares the codes and their one table.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $cure:literal;)+) => {
        /// The stable codes of the control socket.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ApiCode {
            $($(#[$doc])* $variant,)+
        }

        /// Every code, in the order of declaration.
        pub const API_CODES: &[ApiCode] = &[$(ApiCode::$variant),+];

        impl ApiCode {
            /// The number in the `code` member of a JSON-RPC error.
            #[must_use]
            pub const fn number(self) -> i32 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The name in `error.data.code`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What the caller can do about it.
            #[must_use]
            pub const fn cure(self) -> &'static str {
                match self { $(Self::$variant => $cure,)+ }
            }
        }
    };
}

codes! {
    /// The line is not JSON.
    ParseError = -32700, "parse_error", "send one JSON document per line, in UTF-8";
    /// The document is not a request.
    InvalidRequest = -32600, "invalid_request",
        "send one object with jsonrpc \"2.0\", a method and an id (text or number), no batch";
    /// No such method.
    MethodUnknown = -32601, "method_unknown", "rpc.discover lists every method";
    /// The parameters are wrong.
    ParamsInvalid = -32602, "params_invalid", "rpc.discover describes every parameter";
    /// The request is too long.
    RequestTooLong = 1001, "request_too_long", "send a shorter request";
    /// Too many clients.
    ClientsTooMany = 1002, "clients_too_many", "close another client of the control socket first";
    /// The client may not use the socket.
    NotAllowed = 1003, "not_allowed",
        "run as root, as the daemon's user, or as a member of the socket's group";
    /// The daemon ends.
    Stopping = 1004, "stopping", "start the daemon again";
    /// Too much is going on.
    Busy = 1005, "busy", "wait for a session to end, then try again";
    /// All clients together send more than the daemon holds.
    RequestMemory = 1006, "request_memory", "send shorter requests, or fewer long ones at a time";
    /// No such region.
    RegionUnknown = 1010, "region_unknown",
        "region.list shows the regions; region.register adds one";
    /// The name is taken.
    RegionExists = 1011, "region_exists", "give another name, or release the region first";
    /// A session uses the region.
    RegionBusy = 1012, "region_busy", "wait for its session to end, or abort it";
    /// The region has the other role.
    RegionRole = 1013, "region_role", "register the memory again with the other role";
    /// A descriptor is missing or there are too many.
    DescriptorCount = 1014, "descriptor_count",
        "pass the memory's descriptor first, then the bitmap's if dirty is \"bitmap\"";
    /// The descriptor can't be used.
    DescriptorUnusable = 1015, "descriptor_unusable",
        "pass a writable memfd of whole 4 KiB pages that is, or may be, sealed against shrinking";
    /// A session committed with the region: its memory belongs to the sink now.
    RegionSpent = 1016, "region_spent",
        "release the region; register it anew if its memory is free to be used again";
    /// No such session.
    SessionUnknown = 1020, "session_unknown", "session.list shows the sessions";
    /// Not legal now.
    SessionState = 1021, "session_state", "session.show tells the session's state";
    /// The session failed; the source keeps what it had.
    SessionFailed = 1022, "session_failed",
        "the source has lost nothing: mend what the reason names, then try again";
    /// Nobody knows yet which end holds the region.
    SessionInDoubt = 1023, "session_in_doubt",
        "change neither copy: the daemons settle it as soon as they can talk; session.show tells";
    /// The session was aborted.
    SessionAborted = 1024, "session_aborted", "begin anew when wanted";
    /// The peer can't be reached.
    PeerUnreachable = 1030, "peer_unreachable",
        "check the address, the peer's daemon and the firewall between them";
    /// The peer is not who it should be, or does not accept us.
    PeerIdentity = 1031, "peer_identity",
        "check both hosts' certificates with dwcp doctor; both must come from the same cluster CA";
    /// The peer speaks no version that we speak.
    PeerVersion = 1032, "peer_version", "update the older of both daemons";
    /// The peer said no.
    PeerRefused = 1033, "peer_refused", "do at the peer what its reason names";
    /// The link was lost.
    LinkLost = 1034, "link_lost", "check the network, then try again";
    /// Not enough memory set aside.
    MemoryBudget = 1040, "memory_budget",
        "raise the daemon's memory budget, lower its bases per session, or end another session";
    /// No such setting.
    SettingUnknown = 1050, "setting_unknown", "config.get lists the settings";
    /// The setting is fixed at start.
    SettingFixed = 1051, "setting_fixed", "restart the daemon with the new value";
    /// The value is not allowed.
    SettingInvalid = 1052, "setting_invalid", "give a value of the stated type and range";
    /// The journal could not be written.
    JournalFailed = 1060, "journal_failed",
        "check the disk under --state; the session was not committed";
    /// No such virtual machine.
    VmUnknown = 1070, "vm_unknown", "vm.list shows the virtual machines; vm.attach adds one";
    /// The name is taken.
    VmExists = 1071, "vm_exists", "give another name, or detach that virtual machine first";
    /// A session uses the virtual machine.
    VmBusy = 1072, "vm_busy",
        "wait for its session to end, or end it with session.abort or session.resolve";
    /// The virtual machine is attached for the other end.
    VmRole = 1073, "vm_role",
        "attach it with incoming on the host where the guest arrives, without on the other";
    /// The QEMU can't be used.
    VmUnusable = 1074, "vm_unusable", "do what its reason names, then try again";
    /// The virtual machine does not fit at the peer.
    VmUnfit = 1075, "vm_unfit", "mend each of the findings, then migrate again";
    /// The peer can't carry virtual machines.
    VmUnsupported = 1076, "vm_unsupported", "update the peer's daemon";
    /// The store of what guests leave can't do it.
    StoreFailed = 1080, "store_failed", "do what its reason names, then try again";
}

/// An error answer: its code, what happened in this case, and figures for machines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The stable code.
    pub code: ApiCode,
    /// What happened, for people.
    pub message: String,
    /// Members added to `error.data`.
    pub details: serde_json::Map<String, Value>,
}

impl ApiError {
    /// An error with nothing but a message.
    pub(crate) fn new(code: ApiCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: serde_json::Map::new() }
    }

    /// Adds a member to `error.data`.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// What to do: a cure among the details knows the case better than the code does.
    pub(crate) fn cure(&self) -> &str {
        let own = self.details.get("cure").and_then(Value::as_str);
        own.unwrap_or_else(|| self.code.cure())
    }

    /// The `error` member of a JSON-RPC response.
    pub(crate) fn to_value(&self) -> Value {
        let mut data = self.details.clone();
        data.insert("code".to_owned(), json!(self.code.name()));
        data.insert("cure".to_owned(), json!(self.cure()));
        json!({ "code": self.code.number(), "message": self.message, "data": data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_and_names_are_given_once_and_stay_in_the_allowed_ranges() {
        let numbers: BTreeSet<i32> = API_CODES.iter().map(|c| c.number()).collect();
        let names: BTreeSet<&str> = API_CODES.iter().map(|c| c.name()).collect();
        assert_eq!(numbers.len(), API_CODES.len());
        assert_eq!(names.len(), API_CODES.len());
        for code in API_CODES {
            let number = code.number();
            assert!(number >= 1000 || (-32700..=-32600).contains(&number), "{number}");
            assert!(!code.cure().is_empty());
        }
    }

    #[test]
    fn an_error_carries_its_name_its_cure_and_its_details() {
        let value = ApiError::new(ApiCode::SessionUnknown, "no session x").with("x", 1).to_value();
        assert_eq!(value["code"], 1020);
        assert_eq!(value["data"]["code"], "session_unknown");
        assert_eq!(value["data"]["x"], 1);
        assert_eq!(value["data"]["cure"], ApiCode::SessionUnknown.cure());
        let value = ApiError::new(ApiCode::NotAllowed, "no").with("cure", "ask").to_value();
        assert_eq!(value["data"]["cure"], "ask", "the case knows better than the code");
    }
}
