//! QEMU's migration settings: the user's are saved, ours are set, the user's come back.
//!
//! Runs on the control thread in a VM task. QEMU refuses to change a capability while a migration
//! is under way, so [`restore`] belongs after its end; parameters may change at any time.

use super::error::QmpError;
use super::qmp::Qmp;
use super::saved::SavedSettings;
use super::task::{MigrateOptions, OnTimeout};
use serde_json::{Map, Value, json};

/// What the user has when QEMU does not tell: QEMU's own default.
const DOWNTIME_LIMIT_MS: u64 = 300;

/// Throttling that hardly slows a guest: QEMU can't be told to begin with it later, only to begin
/// with little.
const THROTTLE_LOW_PERCENT: u64 = 1;

/// Parameters that dwcp changes at a source.
const PARAMETERS: [&str; 6] =
    [DOWNTIME, SWITCHOVER, "max-bandwidth", THROTTLE_FIRST, THROTTLE_STEP, THROTTLE_MAX];

pub(super) const DOWNTIME: &str = "downtime-limit";
pub(super) const SWITCHOVER: &str = "avail-switchover-bandwidth";
const THROTTLE_FIRST: &str = "cpu-throttle-initial";
const THROTTLE_STEP: &str = "cpu-throttle-increment";
const THROTTLE_MAX: &str = "max-cpu-throttle";

/// Capabilities that dwcp changes at a source, and to what. Without the return path QEMU calls a
/// migration complete that never arrived. `pause-before-switchover` would wait for a command that
/// nobody gives.
const SOURCE: [(&str, bool); 3] =
    [("events", true), ("return-path", true), ("pause-before-switchover", false)];

/// Capabilities that dwcp changes at a sink. Images are taken over at `cont`, not at the load, so
/// that the source can have them back while nobody has committed.
const SINK: [(&str, bool); 2] = [("events", true), ("late-block-activate", true)];

/// Saves what dwcp changes at a source.
pub(super) async fn save_source(
    qmp: &mut Qmp,
    options: &MigrateOptions,
) -> Result<SavedSettings, QmpError> {
    let mut names: Vec<&str> = SOURCE.iter().map(|(name, _)| *name).collect();
    if options.on_timeout == OnTimeout::Throttle {
        names.push("auto-converge");
    }
    let capabilities = qmp.execute("query-migrate-capabilities", Value::Null).await?;
    let parameters = qmp.execute("query-migrate-parameters", Value::Null).await?;
    let mut saved = capabilities_of(&capabilities, &names);
    for name in PARAMETERS {
        if let Some(value) = parameters.get(name).and_then(Value::as_u64) {
            saved.parameters.insert(name.to_owned(), value);
        }
    }
    Ok(saved)
}

/// Saves what dwcp changes at a sink.
pub(super) async fn save_sink(qmp: &mut Qmp) -> Result<SavedSettings, QmpError> {
    let names: Vec<&str> = SINK.iter().map(|(name, _)| *name).collect();
    let capabilities = qmp.execute("query-migrate-capabilities", Value::Null).await?;
    Ok(capabilities_of(&capabilities, &names))
}

/// Sets ours at a source. The downtime limit is held at its lowest until the forecast speaks.
pub(super) async fn set_source(
    qmp: &mut Qmp,
    saved: &SavedSettings,
    options: &MigrateOptions,
) -> Result<(), QmpError> {
    let mut ours: Vec<(&str, bool)> = SOURCE.to_vec();
    let mut parameters = Map::new();
    if options.on_timeout == OnTimeout::Throttle {
        ours.push(("auto-converge", true));
        for name in [THROTTLE_FIRST, THROTTLE_STEP, THROTTLE_MAX] {
            parameters.insert(name.to_owned(), json!(THROTTLE_LOW_PERCENT));
        }
    }
    set_capabilities(qmp, saved, &ours).await?;
    // 0 means no limit: the link sets the pace by what it takes.
    parameters
        .insert("max-bandwidth".to_owned(), json!(options.bandwidth_bytes_per_second.unwrap_or(0)));
    qmp.execute("migrate-set-parameters", Value::Object(parameters)).await?;
    Ok(())
}

/// Sets ours at a sink.
pub(super) async fn set_sink(qmp: &mut Qmp, saved: &SavedSettings) -> Result<(), QmpError> {
    set_capabilities(qmp, saved, &SINK).await
}

/// Gives the user's settings back.
pub(super) async fn restore(qmp: &mut Qmp, saved: &SavedSettings) -> Result<(), QmpError> {
    if !saved.capabilities.is_empty() {
        let list: Vec<Value> =
            saved.capabilities.iter().map(|(name, state)| capability(name, *state)).collect();
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": list })).await?;
    }
    if !saved.parameters.is_empty() {
        qmp.execute("migrate-set-parameters", json!(saved.parameters)).await?;
    }
    Ok(())
}

/// The downtime limit to aim at: the order's, else the user's.
pub(super) fn downtime_limit_ms(saved: &SavedSettings, options: &MigrateOptions) -> u64 {
    let users = || saved.parameters.get(DOWNTIME).copied().unwrap_or(DOWNTIME_LIMIT_MS);
    options.downtime_limit_ms.unwrap_or_else(users).max(1)
}

/// This QEMU can be told the bandwidth of the switchover (8.2 and newer).
pub(super) fn knows_switchover(saved: &SavedSettings) -> bool {
    saved.parameters.contains_key(SWITCHOVER)
}

/// The user's throttling, for when the time has come.
pub(super) fn throttling(saved: &SavedSettings) -> Value {
    let names = [THROTTLE_FIRST, THROTTLE_STEP, THROTTLE_MAX];
    let users = |name: &str| saved.parameters.get_key_value(name);
    json!(names.into_iter().filter_map(users).collect::<std::collections::BTreeMap<_, _>>())
}

fn capabilities_of(answer: &Value, names: &[&str]) -> SavedSettings {
    let mut saved = SavedSettings::default();
    for entry in answer.as_array().into_iter().flatten() {
        let name = entry.get("capability").and_then(Value::as_str);
        let state = entry.get("state").and_then(Value::as_bool);
        if let Some((name, state)) = name.filter(|name| names.contains(name)).zip(state) {
            saved.capabilities.insert(name.to_owned(), state);
        }
    }
    saved
}

async fn set_capabilities(
    qmp: &mut Qmp,
    saved: &SavedSettings,
    ours: &[(&str, bool)],
) -> Result<(), QmpError> {
    let known = ours.iter().filter(|(name, _)| saved.capabilities.contains_key(*name));
    let list: Vec<Value> = known.map(|(name, state)| capability(name, *state)).collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": list })).await?;
    Ok(())
}

fn capability(name: &str, state: bool) -> Value {
    json!({ "capability": name, "state": state })
}
