//! The OpenRPC document, made from the one table of methods.
//!
//! Pure; built anew on each request, which nobody asks often.

use super::errors::{API_CODES, ApiCode};
use super::method::{Method, methods};
use super::schema::Param;
use serde_json::{Value, json};

/// The OpenRPC 1.3 document of the control socket.
#[must_use]
pub fn document(version: &str) -> Value {
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "dwcp control socket",
            "version": version,
            "description": "JSON-RPC 2.0, one document per line, on the daemon's Unix socket. \
                            Notifications session.progress and session.state go to subscribers.",
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "methods": methods().iter().map(method_object).collect::<Vec<_>>(),
        "components": { "errors": errors_object() },
    })
}

fn method_object(method: &Method) -> Value {
    let example = (method.example)();
    let example_params: Vec<Value> = method
        .params
        .iter()
        .filter_map(|p| example.get(p.name).map(|v| json!({ "name": p.name, "value": v })))
        .collect();
    json!({
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "by-name",
        "params": method.params.iter().map(param_object).collect::<Vec<_>>(),
        "result": { "name": "result", "schema": (method.result)() },
        "errors": method.errors.iter().map(|c| reference(*c)).collect::<Vec<_>>(),
        "examples": [{ "name": "example", "params": example_params,
                       "result": { "name": "result", "value": {} } }],
    })
}

fn param_object(param: &Param) -> Value {
    json!({
        "name": param.name,
        "summary": param.summary,
        "required": param.required,
        "schema": (param.schema)(),
    })
}

fn reference(code: ApiCode) -> Value {
    json!({ "$ref": format!("#/components/errors/{}", code.name()) })
}

fn errors_object() -> Value {
    let entry = |code: &ApiCode| {
        let data = json!({ "code": code.name(), "cure": code.cure() });
        (
            code.name().to_owned(),
            json!({ "code": code.number(), "message": code.name(), "data": data }),
        )
    };
    Value::Object(API_CODES.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::{PeerAddress, RegionRegister, Request, Role, SessionOpen};
    use crate::api::vm::{VmAttach, VmMigrate};
    use dwcp_proto::ids::SessionId;
    use dwcp_proto::session::resolve::RunAt;
    use std::collections::BTreeSet;

    fn vm_attach() -> Request {
        Request::VmAttach(Box::new(VmAttach {
            name: String::new(),
            qmp: None,
            incoming: false,
            spawn: None,
            accept_from: Vec::new(),
            trust_domain: None,
        }))
    }

    fn vm_migrate(peer: PeerAddress) -> Request {
        Request::VmMigrate(Box::new(VmMigrate {
            name: String::new(),
            peer,
            downtime_limit_ms: None,
            bandwidth_bytes_per_second: None,
            timeout_ms: None,
            on_timeout: None,
            mode: Default::default(),
            paused: false,
        }))
    }

    /// One value of each variant. The match makes a new variant a compile error here.
    fn every_request() -> Vec<Request> {
        let session = SessionId([0; 16]);
        let peer = PeerAddress { expected_name: None, address: "h:1".to_owned() };
        let (role, dirty, accept_from) = (Role::Source, None, Vec::new());
        let register = RegionRegister { name: String::new(), role, dirty, accept_from };
        let mut all = vec![Request::StoreList, Request::StoreStats, Request::NetShow];
        all.extend([
            Request::RegionRegister(register),
            Request::RegionRelease { name: String::new() },
            Request::RegionList,
            vm_attach(),
            Request::VmDetach { name: String::new() },
            Request::VmList,
            vm_migrate(peer.clone()),
            Request::SessionResolve { session, run: RunAt::Source },
            Request::SessionOpen(SessionOpen {
                region: String::new(),
                peer,
                sink_region: None,
                coding: Default::default(),
                zstd_level: None,
                measure_baseline: false,
            }),
            Request::SessionRound { session },
            Request::SessionFinish { session },
            Request::SessionAbort { session },
            Request::SessionShow { session },
            Request::SessionList,
            Request::Status,
            Request::DaemonInfo,
            Request::StoreAdd { name: String::new(), trust_domain: String::new() },
            Request::StoreRemove(crate::api::KeptName::All),
            Request::ConfigGet,
            Request::ConfigSet { name: String::new(), value: Value::Null },
            Request::Subscribe { topics: Vec::new(), session: None },
            Request::Unsubscribe,
            Request::Discover,
        ]);
        for request in &all {
            match request {
                Request::RegionRegister(_)
                | Request::RegionRelease { .. }
                | Request::RegionList
                | Request::SessionOpen(_)
                | Request::SessionRound { .. }
                | Request::SessionFinish { .. }
                | Request::SessionAbort { .. }
                | Request::SessionResolve { .. }
                | Request::VmAttach(_)
                | Request::VmDetach { .. }
                | Request::VmList
                | Request::VmMigrate(_)
                | Request::StoreAdd { .. }
                | Request::StoreList
                | Request::StoreStats
                | Request::StoreRemove(_)
                | Request::SessionShow { .. }
                | Request::SessionList
                | Request::Status
                | Request::DaemonInfo
                | Request::NetShow
                | Request::ConfigGet
                | Request::ConfigSet { .. }
                | Request::Subscribe { .. }
                | Request::Unsubscribe
                | Request::Discover => {}
            }
        }
        all
    }

    #[test]
    fn document_and_dispatcher_know_the_same_methods() {
        let document = document("0");
        let listed: BTreeSet<String> = document["methods"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["name"].as_str().unwrap().to_owned())
            .collect();
        let asked: BTreeSet<String> =
            every_request().iter().map(|r| r.method().to_owned()).collect();
        assert_eq!(listed, asked);
        assert_eq!(listed.len(), methods().len());
    }

    #[test]
    fn examples_hold_every_required_parameter_and_no_unknown_one() {
        for method in methods() {
            let example = (method.example)();
            let known: BTreeSet<&str> = method.params.iter().map(|p| p.name).collect();
            for name in example.as_object().unwrap().keys() {
                assert!(known.contains(name.as_str()), "{} {name}", method.name);
            }
            for param in method.params.iter().filter(|p| p.required) {
                assert!(example.get(param.name).is_some(), "{} {}", method.name, param.name);
            }
        }
    }

    #[test]
    fn every_documented_parameter_is_one_that_the_parser_takes() {
        for method in methods() {
            for param in method.params {
                let mut params = (method.example)();
                params[param.name] = json!({ "wrong": "type" });
                let parsed = (method.parse)(params);
                match parsed {
                    // `config.set` takes any value; its port checks it.
                    Ok(_) => assert_eq!((method.name, param.name), ("config.set", "value")),
                    Err(error) => assert!(
                        !error.message.contains("unknown field"),
                        "{} {}: {error}",
                        method.name,
                        param.name
                    ),
                }
            }
        }
    }
}
