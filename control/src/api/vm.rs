//! What a client may ask about virtual machines, and all validation of it.
//!
//! Pure, like `request`, whose rules hold here as well.

use super::errors::ApiError;
use super::request::{CodingName, PeerAddress, Request, check_name, read, read_name, wrong_params};
use crate::limits::{
    ACCEPT_FROM_MAX, DOWNTIME_LIMIT_MS_MAX, MIGRATE_TIMEOUT_MS, SOCKET_PATH_BYTES_MAX,
    SPAWN_BYTES_MAX,
};
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::resolve::RunAt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The parameters of `vm.attach`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmAttach {
    /// The virtual machine's name, the same on all hosts.
    pub name: String,
    /// The QMP socket of its QEMU.
    pub qmp: Option<String>,
    /// It waits for a guest to come.
    #[serde(default)]
    pub incoming: bool,
    /// The command line of a QEMU that the daemon starts when a guest comes, quoted as in a shell.
    pub spawn: Option<String>,
    /// Host names that may send a guest.
    #[serde(default)]
    pub accept_from: Vec<String>,
    /// Other virtual machines of this label may share pages with it.
    pub trust_domain: Option<String>,
}

/// What to do with a migration that takes longer than its timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeoutName {
    /// Give it up.
    #[default]
    Abort,
    /// Slow the guest down.
    Throttle,
    /// Raise the downtime limit step by step.
    Ramp,
}

/// The parameters of `vm.migrate`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmMigrate {
    /// The virtual machine.
    pub name: String,
    /// The peer.
    pub peer: PeerAddress,
    /// The longest pause that is accepted.
    pub downtime_limit_ms: Option<u64>,
    /// QEMU's own bandwidth limit.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// When `on_timeout` applies.
    pub timeout_ms: Option<u64>,
    /// What then.
    pub on_timeout: Option<OnTimeoutName>,
    /// How its memory is coded.
    #[serde(default)]
    pub mode: CodingName,
    /// Whether it is left paused at the sink.
    #[serde(default)]
    pub paused: bool,
}

fn check_path(path: &str) -> Result<(), ApiError> {
    let plain = path.starts_with('/') && !path.bytes().any(|b| b == 0 || b.is_ascii_control());
    if plain && path.len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(wrong_params(format!(
        "qmp is the absolute path of a socket, at most {SOCKET_PATH_BYTES_MAX} bytes long"
    )))
}

/// Its words are looked at by who knows QEMU.
fn check_spawn(command: &str) -> Result<(), ApiError> {
    if !command.is_empty() && !command.contains('\0') && command.len() <= SPAWN_BYTES_MAX {
        return Ok(());
    }
    Err(wrong_params(format!("spawn is a command line of at most {SPAWN_BYTES_MAX} bytes")))
}

pub(super) fn parse_attach(params: Value) -> Result<Request, ApiError> {
    let attach: VmAttach = read(params)?;
    check_name(&attach.name)?;
    attach.accept_from.iter().try_for_each(|name| check_name(name))?;
    attach.trust_domain.as_deref().map_or(Ok(()), check_name)?;
    attach.qmp.as_deref().map_or(Ok(()), check_path)?;
    attach.spawn.as_deref().map_or(Ok(()), check_spawn)?;
    match (&attach.qmp, &attach.spawn) {
        (None, None) => Err(wrong_params("qmp or spawn says which QEMU it is")),
        (Some(_), Some(_)) => Err(wrong_params("with spawn the daemon makes the QMP socket")),
        (_, Some(_)) if !attach.incoming => Err(wrong_params("spawn is for incoming machines")),
        _ if !attach.accept_from.is_empty() && !attach.incoming => {
            Err(wrong_params("accept_from is for incoming machines"))
        }
        _ if attach.accept_from.len() > ACCEPT_FROM_MAX => {
            Err(wrong_params(format!("accept_from names at most {ACCEPT_FROM_MAX} hosts")))
        }
        _ => Ok(Request::VmAttach(Box::new(attach))),
    }
}

pub(super) fn parse_detach(params: Value) -> Result<Request, ApiError> {
    Ok(Request::VmDetach { name: read_name(params)? })
}

pub(super) fn parse_migrate(params: Value) -> Result<Request, ApiError> {
    let migrate: VmMigrate = read(params)?;
    check_name(&migrate.name)?;
    let (least, most) = MIGRATE_TIMEOUT_MS;
    if migrate.downtime_limit_ms.is_some_and(|ms| !(1..=DOWNTIME_LIMIT_MS_MAX).contains(&ms)) {
        return Err(wrong_params(format!("downtime_limit_ms is 1 to {DOWNTIME_LIMIT_MS_MAX}")));
    }
    if migrate.bandwidth_bytes_per_second.is_some_and(|rate| !(1 << 10..=1 << 40).contains(&rate)) {
        return Err(wrong_params("bandwidth_bytes_per_second is 1024 to 2^40"));
    }
    if migrate.timeout_ms.is_some_and(|ms| !(least..=most).contains(&ms)) {
        return Err(wrong_params(format!("timeout_ms is {least} to {most}")));
    }
    if migrate.on_timeout.is_some() && migrate.timeout_ms.is_none() {
        return Err(wrong_params("on_timeout has no meaning without timeout_ms"));
    }
    Ok(Request::VmMigrate(Box::new(migrate)))
}

pub(super) fn parse_resolve(params: Value) -> Result<Request, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        session: SessionId,
        run: RunAt,
    }
    let Params { session, run } = read(params)?;
    Ok(Request::SessionResolve { session, run })
}

#[cfg(test)]
mod tests {
    use super::super::errors::ApiCode;
    use super::*;
    use serde_json::json;

    #[test]
    fn what_can_not_be_meant_is_refused() {
        let qmp = "/run/vm.qmp";
        let wrong_attach = [
            json!({ "name": "vm" }),
            json!({ "name": "v m", "qmp": qmp }),
            json!({ "name": "vm", "qmp": "run/vm.qmp" }),
            json!({ "name": "vm", "qmp": format!("/{}", "x".repeat(107)) }),
            json!({ "name": "vm", "qmp": "/run/a\u{0}b" }),
            json!({ "name": "vm", "qmp": qmp, "accept_from": ["a"] }),
            json!({ "name": "vm", "qmp": qmp, "incoming": true, "spawn": "qemu" }),
            json!({ "name": "vm", "spawn": "qemu" }),
            json!({ "name": "vm", "incoming": true, "spawn": "" }),
            json!({ "name": "vm", "incoming": true, "spawn": "a\u{0}b" }),
            json!({ "name": "vm", "incoming": true, "spawn": ["qemu"] }),
            json!({ "name": "vm", "incoming": true, "spawn": "x".repeat(70_000) }),
        ];
        for params in wrong_attach {
            let refused = parse_attach(params.clone()).unwrap_err();
            assert_eq!(refused.code, ApiCode::ParamsInvalid, "{params}");
        }
        let peer = "h:1";
        let wrong_migrate = [
            json!({ "name": "vm" }),
            json!({ "name": "vm", "peer": peer, "downtime_limit_ms": 0 }),
            json!({ "name": "vm", "peer": peer, "bandwidth_bytes_per_second": 1 }),
            json!({ "name": "vm", "peer": peer, "timeout_ms": 1 }),
            json!({ "name": "vm", "peer": peer, "on_timeout": "abort" }),
            json!({ "name": "vm", "peer": peer, "mode": "fast" }),
        ];
        for params in wrong_migrate {
            let refused = parse_migrate(params.clone()).unwrap_err();
            assert_eq!(refused.code, ApiCode::ParamsInvalid, "{params}");
        }
        assert!(parse_resolve(json!({ "session": "00".repeat(16), "run": "both" })).is_err());
    }
}
