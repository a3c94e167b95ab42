//! JSON Schema fragments of the control socket's parameters and results, for the OpenRPC document.
//!
//! Pure values, built on demand by `request`'s table.

use serde_json::{Value, json};

/// One parameter: its name, whether it must be given, its schema.
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) required: bool,
    pub(crate) schema: fn() -> Value,
    pub(crate) summary: &'static str,
}

pub(crate) fn name() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": crate::limits::NAME_BYTES_MAX,
            "pattern": "^[A-Za-z0-9._-]+$" })
}

pub(crate) fn names() -> Value {
    json!({ "type": "array", "items": name(), "maxItems": crate::limits::ACCEPT_FROM_MAX })
}

pub(crate) fn role() -> Value {
    json!({ "enum": ["source", "sink"] })
}

pub(crate) fn dirty() -> Value {
    json!({ "enum": ["bitmap", "compare"], "default": "compare" })
}

pub(crate) fn coding() -> Value {
    json!({ "enum": ["full", "passthrough"], "default": "full" })
}

pub(crate) fn zstd_level() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": 19 })
}

pub(crate) fn boolean() -> Value {
    json!({ "type": "boolean" })
}

pub(crate) fn peer() -> Value {
    json!({ "type": "string", "maxLength": 300,
            "description": "HOST:PORT, or NAME@HOST:PORT to accept no other host name" })
}

pub(crate) fn session() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-fA-F]{32}$" })
}

pub(crate) fn socket_path() -> Value {
    json!({ "type": "string", "pattern": "^/", "maxLength": crate::limits::SOCKET_PATH_BYTES_MAX })
}

pub(crate) fn command() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": crate::limits::SPAWN_BYTES_MAX,
            "description": "A command line, quoted as in a shell" })
}

pub(crate) fn downtime_limit() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": crate::limits::DOWNTIME_LIMIT_MS_MAX })
}

pub(crate) fn bandwidth() -> Value {
    json!({ "type": "integer", "minimum": 1_u64 << 10, "maximum": 1_u64 << 40 })
}

pub(crate) fn migrate_timeout() -> Value {
    let (least, most) = crate::limits::MIGRATE_TIMEOUT_MS;
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

pub(crate) fn on_timeout() -> Value {
    json!({ "enum": ["abort", "throttle", "ramp"], "default": "abort" })
}

pub(crate) fn run_at() -> Value {
    json!({ "enum": ["source", "sink"] })
}

pub(crate) fn topics() -> Value {
    json!({ "type": "array", "items": { "enum": ["session.progress", "session.state"] },
            "minItems": 1, "maxItems": 2 })
}

pub(crate) fn any() -> Value {
    json!({})
}

pub(crate) fn object() -> Value {
    json!({ "type": "object" })
}

pub(crate) fn array() -> Value {
    json!({ "type": "array", "items": { "type": "object" } })
}
