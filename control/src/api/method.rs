//! The one table of methods, and the reading of a request's line with it.
//!
//! Pure. The dispatcher (`parse_line`) and the OpenRPC document both come from this table, so that
//! neither can know a method that the other does not.

use super::errors::{ApiCode, ApiError};
use super::request::{
    Request, nothing, parse_open, parse_register, parse_release, parse_set, parse_store_add,
    parse_store_remove, parse_subscribe, session,
};
use super::schema::{self, Param};
use super::vm::{parse_attach, parse_detach, parse_migrate, parse_resolve};
use crate::limits::NAME_BYTES_MAX;
use serde_json::{Map, Value, json};

/// A row of the table of methods.
pub struct Method {
    /// The method's name.
    pub name: &'static str,
    /// One sentence for people.
    pub summary: &'static str,
    pub(crate) params: &'static [Param],
    pub(crate) result: fn() -> Value,
    pub(crate) errors: &'static [ApiCode],
    pub(crate) example: fn() -> Value,
    pub(crate) parse: fn(Value) -> Result<Request, ApiError>,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Method").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A request and the id that its answer must carry; no id means that no answer is wanted.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) id: Option<Value>,
    pub(crate) request: Result<Request, ApiError>,
}

/// Reads one line. An error here has the id `null`, since none could be read.
pub(crate) fn parse_line(line: &[u8]) -> Result<Envelope, ApiError> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|e| ApiError::new(ApiCode::ParseError, format!("this is not JSON: {e}")))?;
    let Value::Object(mut object) = value else {
        return Err(invalid("a request is an object; batches are not supported"));
    };
    let id = match object.remove("id") {
        None => None,
        Some(Value::String(id)) if id.len() > NAME_BYTES_MAX => {
            return Err(invalid("an id is too long"));
        }
        Some(id @ (Value::String(_) | Value::Number(_) | Value::Null)) => Some(id),
        Some(_) => return Err(invalid("an id is text, a number or null")),
    };
    let request = parse_call(object);
    Ok(Envelope { id, request })
}

fn parse_call(mut object: Map<String, Value>) -> Result<Request, ApiError> {
    if object.remove("jsonrpc") != Some(json!("2.0")) {
        return Err(invalid("the member jsonrpc must be \"2.0\""));
    }
    let Some(Value::String(name)) = object.remove("method") else {
        return Err(invalid("the member method must be text"));
    };
    let params = object.remove("params").unwrap_or(Value::Object(Map::new()));
    if let Some(other) = object.keys().next() {
        return Err(invalid(&format!("a request has no member {}", clip(other))));
    }
    let method = methods().iter().find(|m| m.name == name).ok_or_else(|| {
        ApiError::new(ApiCode::MethodUnknown, format!("there is no method {}", clip(&name)))
    })?;
    (method.parse)(params)
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(ApiCode::InvalidRequest, message)
}

/// A client's text, cut to a length fit for an error message.
fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

const SESSION: Param =
    Param { name: "session", required: true, schema: schema::session, summary: "The session." };
const EXAMPLE_SESSION: &str = "00112233445566778899aabbccddeeff";

const fn param(
    name: &'static str,
    required: bool,
    schema: fn() -> Value,
    summary: &'static str,
) -> Param {
    Param { name, required, schema, summary }
}

/// The table of methods.
#[must_use]
pub fn methods() -> &'static [Method] {
    METHODS
}

static METHODS: &[Method] = &[
    Method {
        name: "region.register",
        summary: "Makes memory known under a name. The memory's descriptor comes with the bytes of \
                  the request (SCM_RIGHTS), the bitmap's after it.",
        params: &[
            param("name", true, schema::name, "The region's name on this host."),
            param("role", true, schema::role, "Which end of a session it serves."),
            param("dirty", false, schema::dirty, "Source: how changed pages are found."),
            param("accept_from", false, schema::names, "Sink: host names that may send."),
        ],
        result: schema::object,
        errors: &[
            ApiCode::RegionExists,
            ApiCode::DescriptorCount,
            ApiCode::DescriptorUnusable,
            ApiCode::Busy,
        ],
        example: || json!({ "name": "vm1", "role": "sink", "accept_from": ["host-a"] }),
        parse: parse_register,
    },
    Method {
        name: "region.release",
        summary: "Forgets a region that no session uses.",
        params: &[param("name", true, schema::name, "The region.")],
        result: schema::object,
        errors: &[ApiCode::RegionUnknown, ApiCode::RegionBusy],
        example: || json!({ "name": "vm1" }),
        parse: parse_release,
    },
    Method {
        name: "region.list",
        summary: "Lists the regions.",
        params: &[],
        result: schema::array,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::RegionList),
    },
    Method {
        name: "session.open",
        summary: "Opens a session to a peer. Answered when the sink accepted it and all lanes are \
                  open.",
        params: &[
            param("region", true, schema::name, "The source region."),
            param("peer", true, schema::peer, "Where the sink's daemon listens."),
            param("sink_region", false, schema::name, "The region there; default the same name."),
            param("coding", false, schema::coding, "How pages are coded."),
            param("zstd_level", false, schema::zstd_level, "The zstd level of coding full."),
            param("measure_baseline", false, schema::boolean, "Also measure zstd-1 per page."),
        ],
        result: schema::object,
        errors: &[
            ApiCode::RegionUnknown,
            ApiCode::RegionRole,
            ApiCode::RegionBusy,
            ApiCode::PeerUnreachable,
            ApiCode::PeerIdentity,
            ApiCode::PeerVersion,
            ApiCode::PeerRefused,
            ApiCode::LinkLost,
            ApiCode::MemoryBudget,
            ApiCode::JournalFailed,
            ApiCode::Busy,
        ],
        example: || json!({ "region": "vm1", "peer": "host-b@192.0.2.7:7411", "zstd_level": 3 }),
        parse: parse_open,
    },
    Method {
        name: "session.round",
        summary: "Sends what changed (everything in round one). Answered when every page is \
                  acknowledged.",
        params: &[SESSION],
        result: schema::object,
        errors: &[ApiCode::SessionUnknown, ApiCode::SessionState, ApiCode::SessionFailed],
        example: || json!({ "session": EXAMPLE_SESSION }),
        parse: |params| session(params, |session| Request::SessionRound { session }),
    },
    Method {
        name: "session.finish",
        summary: "Last round, verification and commit. The caller has stopped its writer before.",
        params: &[SESSION],
        result: schema::object,
        errors: &[
            ApiCode::SessionUnknown,
            ApiCode::SessionState,
            ApiCode::SessionFailed,
            ApiCode::SessionInDoubt,
            ApiCode::JournalFailed,
        ],
        example: || json!({ "session": EXAMPLE_SESSION }),
        parse: |params| session(params, |session| Request::SessionFinish { session }),
    },
    Method {
        name: "session.abort",
        summary: "Gives a session up; the source keeps its region.",
        params: &[SESSION],
        result: schema::object,
        errors: &[ApiCode::SessionUnknown, ApiCode::SessionState],
        example: || json!({ "session": EXAMPLE_SESSION }),
        parse: |params| session(params, |session| Request::SessionAbort { session }),
    },
    Method {
        name: "session.resolve",
        summary: "Ends the doubt of a session by an operator's word, durably: the named end runs, \
                  the other one never will. The session says so from then on. At a sink that \
                  committed and whose guest did not start, run \"sink\" starts it again.",
        params: &[SESSION, param("run", true, schema::run_at, "Which end runs.")],
        result: schema::object,
        errors: &[ApiCode::SessionUnknown, ApiCode::SessionState, ApiCode::JournalFailed],
        example: || json!({ "session": EXAMPLE_SESSION, "run": "source" }),
        parse: parse_resolve,
    },
    Method {
        name: "vm.attach",
        summary: "Makes a virtual machine known: a running one, or one that waits for a guest. \
                  Kept over restarts. Attaching again replaces one whose guest has left.",
        params: &[
            param("name", true, schema::name, "Its name, the same on all hosts."),
            param("qmp", false, schema::socket_path, "The QMP socket of its QEMU."),
            param("incoming", false, schema::boolean, "It waits for a guest (-incoming defer -S)."),
            param("spawn", false, schema::command, "Incoming: the QEMU to start, without -qmp."),
            param("accept_from", false, schema::names, "Incoming: host names that may send."),
            param(
                "trust_domain",
                false,
                schema::name,
                "Guests of this label, at both hosts, may share pages that are kept of them.",
            ),
        ],
        result: schema::object,
        errors: &[ApiCode::VmExists, ApiCode::VmBusy, ApiCode::VmUnusable, ApiCode::Busy],
        example: || {
            json!({ "name": "web1", "qmp": "/run/web1.qmp", "incoming": true,
                    "accept_from": ["host-a"] })
        },
        parse: parse_attach,
    },
    Method {
        name: "vm.detach",
        summary: "Forgets a virtual machine that no session uses. Its QEMU is left as it is.",
        params: &[param("name", true, schema::name, "The virtual machine.")],
        result: schema::object,
        errors: &[ApiCode::VmUnknown, ApiCode::VmBusy],
        example: || json!({ "name": "web1" }),
        parse: parse_detach,
    },
    Method {
        name: "vm.list",
        summary: "Lists the virtual machines.",
        params: &[],
        result: schema::array,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::VmList),
    },
    Method {
        name: "vm.migrate",
        summary: "Moves a running guest to a peer. Answered when it runs there, or when it surely \
                  runs here again. Its session is in the first session.state notification.",
        params: &[
            param("name", true, schema::name, "The virtual machine."),
            param("peer", true, schema::peer, "Where the sink's daemon listens."),
            param("downtime_limit_ms", false, schema::downtime_limit, "The longest pause."),
            param("bandwidth_bytes_per_second", false, schema::bandwidth, "QEMU's own limit."),
            param("timeout_ms", false, schema::migrate_timeout, "When on_timeout applies."),
            param("on_timeout", false, schema::on_timeout, "What to do then."),
            param("mode", false, schema::coding, "How memory is coded."),
            param("paused", false, schema::boolean, "Left paused at the sink, for its owner."),
        ],
        result: schema::object,
        errors: &[
            ApiCode::VmUnknown,
            ApiCode::VmBusy,
            ApiCode::VmRole,
            ApiCode::VmUnusable,
            ApiCode::VmUnfit,
            ApiCode::VmUnsupported,
            ApiCode::PeerUnreachable,
            ApiCode::PeerIdentity,
            ApiCode::PeerVersion,
            ApiCode::PeerRefused,
            ApiCode::LinkLost,
            ApiCode::MemoryBudget,
            ApiCode::SessionAborted,
            ApiCode::SessionFailed,
            ApiCode::SessionInDoubt,
            ApiCode::JournalFailed,
            ApiCode::Busy,
        ],
        example: || {
            json!({ "name": "web1", "peer": "host-b@192.0.2.7:7411", "downtime_limit_ms": 300,
                    "timeout_ms": 1_200_000, "on_timeout": "throttle" })
        },
        parse: parse_migrate,
    },
    Method {
        name: "session.show",
        summary: "Shows one session, running or ended.",
        params: &[SESSION],
        result: schema::object,
        errors: &[ApiCode::SessionUnknown],
        example: || json!({ "session": EXAMPLE_SESSION }),
        parse: |params| session(params, |session| Request::SessionShow { session }),
    },
    Method {
        name: "session.list",
        summary: "Shows running and ended sessions, the newest first.",
        params: &[],
        result: schema::array,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::SessionList),
    },
    Method {
        name: "status",
        summary: "The daemon at a glance.",
        params: &[],
        result: schema::object,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::Status),
    },
    Method {
        name: "daemon.info",
        summary: "Version, protocol, kernel features and budget.",
        params: &[],
        result: schema::object,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::DaemonInfo),
    },
    Method {
        name: "store.add",
        summary: "Keeps the pages of a raw disk image or memory snapshot, whose file comes as the \
                  one descriptor. Answered when they are on disk, in place of the image that had \
                  this name and label.",
        params: &[
            param("name", true, schema::name, "What it is called."),
            param(
                "trust_domain",
                true,
                schema::name,
                "Guests of this label may be sent by what the image holds, and no others.",
            ),
        ],
        result: schema::object,
        errors: &[ApiCode::StoreFailed, ApiCode::Busy, ApiCode::DescriptorCount],
        example: || json!({ "name": "debian13", "trust_domain": "blue" }),
        parse: parse_store_add,
    },
    Method {
        name: "store.list",
        summary: "What is kept of guests that came or went and of images, a segment each.",
        params: &[],
        result: schema::array,
        errors: &[ApiCode::StoreFailed, ApiCode::Busy],
        example: || json!({}),
        parse: |params| nothing(params, Request::StoreList),
    },
    Method {
        name: "store.stats",
        summary: "What the store holds and what became of it since the daemon began.",
        params: &[],
        result: schema::object,
        errors: &[ApiCode::StoreFailed, ApiCode::Busy],
        example: || json!({}),
        parse: |params| nothing(params, Request::StoreStats),
    },
    Method {
        name: "store.remove",
        summary: "Removes what is kept of a guest and of images of this name; without a name all \
                  that is kept.",
        params: &[param("name", false, schema::name, "The guest, or the image.")],
        result: schema::object,
        errors: &[ApiCode::StoreFailed, ApiCode::Busy],
        example: || json!({ "name": "web1" }),
        parse: parse_store_remove,
    },
    Method {
        name: "net.show",
        summary: "Links and their streams.",
        params: &[],
        result: schema::array,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::NetShow),
    },
    Method {
        name: "config.get",
        summary: "Every setting with its value, default and origin.",
        params: &[],
        result: schema::array,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::ConfigGet),
    },
    Method {
        name: "config.set",
        summary: "Changes a live setting.",
        params: &[
            param("name", true, schema::name, "The setting."),
            param("value", true, schema::any, "Its new value."),
        ],
        result: schema::object,
        errors: &[ApiCode::SettingUnknown, ApiCode::SettingFixed, ApiCode::SettingInvalid],
        example: || json!({ "name": "zstd-level", "value": 3 }),
        parse: parse_set,
    },
    Method {
        name: "subscribe",
        summary: "Asks for notifications, in place of what was asked before.",
        params: &[
            param("topics", true, schema::topics, "Which notifications."),
            param("session", false, schema::session, "Of one session only."),
        ],
        result: schema::object,
        errors: &[],
        example: || json!({ "topics": ["session.progress", "session.state"] }),
        parse: parse_subscribe,
    },
    Method {
        name: "unsubscribe",
        summary: "Ends all notifications.",
        params: &[],
        result: schema::object,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::Unsubscribe),
    },
    Method {
        name: "rpc.discover",
        summary: "This document.",
        params: &[],
        result: schema::object,
        errors: &[],
        example: || json!({}),
        parse: |params| nothing(params, Request::Discover),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_example_parses_to_its_own_method() {
        for method in methods() {
            let request = (method.parse)((method.example)()).unwrap();
            assert_eq!(request.method(), method.name);
        }
    }

    #[test]
    fn unknown_members_are_refused_everywhere() {
        for method in methods() {
            let mut params = (method.example)();
            params["no_such_member"] = json!(1);
            let error = (method.parse)(params).unwrap_err();
            assert_eq!(error.code, ApiCode::ParamsInvalid, "{}", method.name);
        }
        let line = br#"{"jsonrpc":"2.0","id":1,"method":"status","extra":1}"#;
        let envelope = parse_line(line).unwrap();
        assert_eq!(envelope.request.unwrap_err().code, ApiCode::InvalidRequest);
    }

    #[test]
    fn wrong_types_are_refused_with_the_right_code() {
        let cases: [(&[u8], ApiCode); 5] = [
            (b"", ApiCode::ParseError),
            (b"\xff\xfe", ApiCode::ParseError),
            (b"[]", ApiCode::InvalidRequest),
            (b"7", ApiCode::InvalidRequest),
            (br#"{"id":{}}"#, ApiCode::InvalidRequest),
        ];
        for (line, code) in cases {
            assert_eq!(parse_line(line).unwrap_err().code, code);
        }
        let calls: [(&str, ApiCode); 6] = [
            (r#"{"jsonrpc":"1.0","id":1,"method":"status"}"#, ApiCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, ApiCode::InvalidRequest),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#, ApiCode::MethodUnknown),
            (r#"{"jsonrpc":"2.0","id":1,"method":"status","params":[]}"#, ApiCode::ParamsInvalid),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"session.show","params":{"session":"zz"}}"#,
                ApiCode::ParamsInvalid,
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"topics":[]}}"#,
                ApiCode::ParamsInvalid,
            ),
        ];
        for (line, code) in calls {
            let envelope = parse_line(line.as_bytes()).unwrap();
            assert_eq!(envelope.request.unwrap_err().code, code, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_never_panic(
            line in prop::collection::vec(any::<u8>(), 0..512),
        ) {
            let _ = parse_line(&line);
        }

        #[test]
        fn a_peer_address_survives_its_text_form(
            text in "([a-z-]{1,8}@)?[a-z0-9.]{1,12}:[1-9][0-9]{0,3}",
        ) {
            use super::super::request::PeerAddress;
            let peer = PeerAddress::try_from(text.clone()).unwrap();
            prop_assert_eq!(peer.to_string(), text);
        }
    }
}
