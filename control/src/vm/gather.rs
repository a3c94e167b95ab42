//! Fills [`VmFacts`] from QEMU's monitor and from the host.
//!
//! Runs on the control thread in a VM task. It only asks: nothing in QEMU changes. What an older
//! or smaller QEMU doesn't know stays empty; what every QEMU since 7.2 must tell is an error.

use super::error::{QmpError, VmError};
use super::facts::{BlockFact, DeviceFact, QemuVersion, VmFacts};
use super::host;
use super::qmp::{Qmp, field};
use serde_json::{Value, json};
use std::path::Path;

/// The most bytes that facts may have as JSON: they travel in one message of the peers, which has
/// room for 64 KiB.
const FACTS_BYTES_MAX: usize = 24 << 10;

/// The longest text kept of one name.
const NAME_CHARS_MAX: usize = 256;

/// Connects, asks and leaves.
pub(super) async fn facts(qmp: &Path) -> Result<VmFacts, VmError> {
    Ok(gather(&mut Qmp::connect(qmp).await?).await?)
}

/// Asks a connected QEMU.
pub(super) async fn gather(qmp: &mut Qmp) -> Result<VmFacts, QmpError> {
    let cpus = qmp.execute("query-cpus-fast", Value::Null).await?;
    let cpus = cpus.as_array().map(Vec::as_slice).unwrap_or_default();
    let cpu_path = cpus.first().and_then(|cpu| cpu.get("qom-path")).and_then(Value::as_str);
    let cpu_kind = match cpu_path {
        Some(path) => kind_of(qmp, path).await?,
        None => None,
    };
    let machine = kind_of(qmp, "/machine").await?;
    let machine = machine.map(|kind| kind.trim_end_matches("-machine").to_owned());
    let memory = qmp.execute("query-memory-size-summary", Value::Null).await?;
    let base = field("query-memory-size-summary", &memory, "base-memory", Value::as_u64)?;
    let plugged = memory.get("plugged-memory").and_then(Value::as_u64).unwrap_or(0);
    let mut facts = VmFacts {
        version: version(qmp).await?,
        run_state: run_state(qmp).await?,
        migration: migration_status(&qmp.execute("query-migrate", Value::Null).await?),
        machine,
        ram_bytes: base.saturating_add(plugged),
        cpu_count: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        cpu_kind,
        devices: devices(qmp).await?,
        blocks: blocks(&qmp.execute("query-block", Value::Null).await?),
        host_free_bytes: host::free_bytes(),
        resident_bytes: qmp.owner()?.0.and_then(host::resident_bytes),
        ..VmFacts::default()
    };
    migration_settings(qmp, &mut facts).await?;
    bound(&mut facts);
    Ok(facts)
}

/// The run state by QEMU's name.
pub(super) async fn run_state(qmp: &mut Qmp) -> Result<String, QmpError> {
    let status = qmp.execute("query-status", Value::Null).await?;
    field("query-status", &status, "status", Value::as_str).map(short)
}

/// The state of a migration in an answer to `query-migrate`.
pub(super) fn migration_status(answer: &Value) -> Option<String> {
    answer.get("status").and_then(Value::as_str).map(short)
}

/// Whether QEMU still clears up after a migration. It says that one has failed before it has let
/// go of it, and a `migrate` in between is refused and leaves it "in progress" for ever.
pub(super) async fn is_clearing_up(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let held = known(qmp.execute("query-yank", Value::Null).await)?;
    let mut held = held.as_array().into_iter().flatten();
    Ok(held.any(|instance| instance.get("type").and_then(Value::as_str) == Some("migration")))
}

async fn version(qmp: &mut Qmp) -> Result<QemuVersion, QmpError> {
    const COMMAND: &str = "query-version";
    let version = qmp.execute(COMMAND, Value::Null).await?;
    let numbers = field(COMMAND, &version, "qemu", Some)?;
    let number = |name| {
        let take = |value: &Value| u16::try_from(value.as_u64()?).ok();
        field(COMMAND, numbers, name, take)
    };
    Ok(QemuVersion { major: number("major")?, minor: number("minor")?, micro: number("micro")? })
}

/// An object's type; none if this QEMU does not tell.
async fn kind_of(qmp: &mut Qmp, path: &str) -> Result<Option<String>, QmpError> {
    let asked = json!({ "path": path, "property": "type" });
    let kind = known(qmp.execute("qom-get", asked).await)?;
    Ok(kind.as_str().map(short))
}

/// Makes nothing of what this QEMU refuses to tell: a build may lack a command.
fn known(answer: Result<Value, QmpError>) -> Result<Value, QmpError> {
    match answer {
        Err(QmpError::Refused { command, desc, .. }) => {
            tracing::debug!(command, desc, "QEMU doesn't tell");
            Ok(Value::Null)
        }
        other => other,
    }
}

/// The PCI functions of the root buses, and what the user plugged with `-device`. Devices behind a
/// bridge show in `query-pci` only once the guest's firmware has numbered its buses, which at the
/// sink it has not; those with an id show as peripherals.
async fn devices(qmp: &mut Qmp) -> Result<Vec<DeviceFact>, QmpError> {
    let mut found = Vec::new();
    let buses = known(qmp.execute("query-pci", Value::Null).await)?;
    for bus in buses.as_array().into_iter().flatten() {
        for device in bus.get("devices").and_then(Value::as_array).into_iter().flatten() {
            found.extend(pci_device(device));
        }
    }
    for (folder, named) in [("/machine/peripheral", true), ("/machine/peripheral-anon", false)] {
        let listed = known(qmp.execute("qom-list", json!({ "path": folder })).await)?;
        for entry in listed.as_array().into_iter().flatten() {
            found.extend(plugged_device(entry, named));
        }
    }
    found.sort();
    Ok(found)
}

fn pci_device(device: &Value) -> Option<DeviceFact> {
    let slot = device.get("slot")?.as_u64()?;
    let function = device.get("function")?.as_u64()?;
    let id = device.get("id")?;
    let (vendor, number) = (id.get("vendor")?.as_u64()?, id.get("device")?.as_u64()?);
    let place = format!("pci/{slot:02x}.{function:x}");
    Some(DeviceFact { place, kind: format!("{vendor:04x}:{number:04x}") })
}

fn plugged_device(entry: &Value, named: bool) -> Option<DeviceFact> {
    let kind = entry.get("type")?.as_str()?.strip_prefix("child<")?.strip_suffix('>')?;
    let name = entry.get("name")?.as_str()?;
    let place = if named { short(name) } else { format!("anonymous/{}", short(name)) };
    Some(DeviceFact { place, kind: short(kind) })
}

fn blocks(answer: &Value) -> Vec<BlockFact> {
    let drives = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut found: Vec<BlockFact> = drives.iter().filter_map(block).collect();
    found.sort();
    found
}

fn block(drive: &Value) -> Option<BlockFact> {
    // A drive without a medium has nothing that two hosts could fail to share.
    let inserted = drive.get("inserted")?;
    let text = |value: &Value, name| value.get(name).and_then(Value::as_str).map(short);
    // The device's id or path is the same at both ends; a back end's generated name is not.
    let name = text(drive, "qdev").filter(|name| !name.is_empty());
    let name = name.or_else(|| text(drive, "device")).unwrap_or_default();
    let file = text(inserted, "file").unwrap_or_default();
    let image = inserted.get("image");
    Some(BlockFact {
        name,
        driver: text(inserted, "drv").unwrap_or_default(),
        storage: host::storage_of(&file),
        file,
        read_only: inserted.get("ro").and_then(Value::as_bool).unwrap_or(false),
        size_bytes: image
            .and_then(|image| image.get("virtual-size"))
            .and_then(Value::as_u64)
            .unwrap_or(0),
    })
}

async fn migration_settings(qmp: &mut Qmp, facts: &mut VmFacts) -> Result<(), QmpError> {
    let capabilities = qmp.execute("query-migrate-capabilities", Value::Null).await?;
    for capability in capabilities.as_array().into_iter().flatten() {
        let on = capability.get("state").and_then(Value::as_bool).unwrap_or(false);
        let name = capability.get("capability").and_then(Value::as_str);
        facts.capabilities.extend(name.filter(|_| on).map(short));
    }
    facts.capabilities.sort();
    let parameters = qmp.execute("query-migrate-parameters", Value::Null).await?;
    let text = |name| parameters.get(name).and_then(Value::as_str);
    facts.migration_tls = text("tls-creds").is_some_and(|creds| !creds.is_empty());
    if facts.capabilities.iter().any(|name| name == "multifd") {
        let channels = parameters.get("multifd-channels").and_then(Value::as_u64);
        facts.multifd_channels = channels.and_then(|channels| u16::try_from(channels).ok());
        facts.multifd_compression = text("multifd-compression").map(short);
    }
    Ok(())
}

/// Cuts the lists until the facts fit into a message.
fn bound(facts: &mut VmFacts) {
    let bytes = |facts: &VmFacts| serde_json::to_string(facts).map_or(0, |text| text.len());
    while bytes(facts) > FACTS_BYTES_MAX && facts.devices.len() + facts.blocks.len() > 0 {
        facts.truncated = true;
        facts.devices.truncate(facts.devices.len() / 2);
        facts.blocks.truncate(facts.blocks.len() / 2);
    }
}

pub(super) fn short(text: &str) -> String {
    text.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_huge_machine_still_fit_into_a_message() {
        let device = |n| DeviceFact { place: format!("pci/{n}"), kind: "\"\\".repeat(40) };
        let mut facts = VmFacts { devices: (0..1000).map(device).collect(), ..VmFacts::default() };
        bound(&mut facts);
        assert!(facts.truncated && !facts.devices.is_empty());
        assert!(serde_json::to_string(&facts).unwrap().len() <= FACTS_BYTES_MAX);
    }

    #[test]
    fn a_drive_is_named_by_its_device() {
        let drives = json!([
            { "device": "", "qdev": "/machine/peripheral/disk0/virtio-backend", "inserted": {
                "file": "rbd:pool/x", "drv": "raw", "ro": false,
                "image": { "virtual-size": 1024 } } },
            { "device": "ide1-cd0", "locked": false }
        ]);
        let found = blocks(&drives);
        assert_eq!(found.len(), 1, "an empty drive has no image");
        assert_eq!(found[0].name, "/machine/peripheral/disk0/virtio-backend");
        assert_eq!(found[0].size_bytes, 1024);
    }
}
