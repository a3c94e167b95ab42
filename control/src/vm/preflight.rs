//! Compares the facts of both ends before a guest moves: what doesn't fit, and what to do about it.
//!
//! Pure; the core runs it where both facts are known, before byte one. The peer's facts are words
//! of another host: they are compared and shown, never trusted with more.
//!
//! Two conditions need no finding, since dwcp sets them itself: the return path at the source, and
//! that the sink's QEMU does not run the guest when it has loaded it (`stop` while it waits has
//! the effect of `-S`; no command of QMP tells whether `-S` was given).

use super::facts::{BlockFact, DeviceFact, Storage, VmFacts};
use dwcp_proto::wire::peer::{Code, Message};
use dwcp_proto::wire::vm::PeerFinding;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The oldest QEMU that dwcp drives.
const VERSION_MIN: (u16, u16) = (7, 2);

/// The most migration connections of one session: QEMU's first and 16 of multifd.
const CHANNELS_MAX: u16 = 17;

/// Capabilities that the commit rules or the carried stream don't allow, and why.
const FORBIDDEN: [(&str, &str); 6] = [
    ("postcopy-ram", "the guest would run at the sink before it has all its memory"),
    ("x-colo", "both guests would run"),
    ("background-snapshot", "it writes a snapshot instead of moving the guest"),
    ("mapped-ram", "it needs a file that can be positioned"),
    ("x-ignore-shared", "shared memory would stay behind at the source"),
    ("zero-copy-send", "QEMU refuses it on a local socket"),
];

/// Capabilities that both ends must have alike, or the sink misreads the stream.
const ALIKE: [&str; 2] = ["multifd", "dirty-bitmaps"];

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// The guest can't move like this.
    Error,
    /// The guest can move; the user should know.
    Warning,
}

/// One thing that doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// Its stable name.
    pub(crate) code: String,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// What was found, with both values.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) cure: String,
}

impl Finding {
    /// As it is told to the source.
    pub(crate) fn for_peer(&self) -> PeerFinding {
        PeerFinding {
            code: Code::cut(&self.code),
            message: Message::cut(&self.message),
            cure: Message::cut(&self.cure),
        }
    }

    /// A sink's warning, as it came.
    pub(crate) fn warning(told: &PeerFinding) -> Self {
        Self {
            code: told.code.as_str().to_owned(),
            severity: Severity::Warning,
            message: told.message.as_str().to_owned(),
            cure: told.cure.as_str().to_owned(),
        }
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, code: &str, message: String, cure: &str) {
        let (code, cure) = (code.to_owned(), cure.to_owned());
        self.0.push(Finding { code, severity, message, cure });
    }

    fn error(&mut self, code: &str, message: String, cure: &str) {
        self.add(Severity::Error, code, message, cure);
    }

    fn warn(&mut self, code: &str, message: String, cure: &str) {
        self.add(Severity::Warning, code, message, cure);
    }
}

/// Compares both ends. Errors come first.
pub(crate) fn preflight(source: &VmFacts, sink: &VmFacts) -> Vec<Finding> {
    let mut found = Findings::default();
    states(&mut found, source, sink);
    versions(&mut found, source, sink);
    machines(&mut found, source, sink);
    memory(&mut found, source, sink);
    if source.truncated || sink.truncated {
        found.warn(
            "too_many_devices",
            "the guest has too many devices to compare them all".to_owned(),
            "compare both command lines yourself",
        );
    } else {
        devices(&mut found, &source.devices, &sink.devices);
        blocks(&mut found, &source.blocks, &sink.blocks);
    }
    capabilities(&mut found, source, sink);
    found.0.sort_by_key(|finding| finding.severity);
    found.0
}

fn states(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    if !source.may_move() {
        found.error(
            "guest_not_running",
            format!("the guest is {} at the source, neither running nor paused", source.run_state),
            "mend what stopped it, then start it (cont) and migrate again",
        );
    }
    if source.migration.as_deref().is_some_and(in_flight) {
        found.error(
            "already_migrating",
            format!("this guest is migrating already ({})", shown(source.migration.as_deref())),
            "wait for that migration, or cancel it",
        );
    }
    if sink.run_state != "inmigrate" || sink.migration.is_some() {
        let migration = shown(sink.migration.as_deref());
        found.error(
            "not_incoming",
            format!("the sink's QEMU is {} (migration: {migration})", sink.run_state),
            "start it anew with -incoming defer -S, or attach with --spawn",
        );
    }
}

/// True for states of a migration that has begun and not ended.
pub(super) fn in_flight(status: &str) -> bool {
    !matches!(status, "none" | "completed" | "failed" | "cancelled")
}

fn versions(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    for (end, version) in [("source", source.version), ("sink", sink.version)] {
        if (version.major, version.minor) < VERSION_MIN {
            let message = format!("QEMU at the {end} is {version}, older than 7.2");
            found.error("qemu_too_old", message, "use QEMU 7.2 or newer");
        }
    }
    let newer = |facts: &VmFacts| (facts.version.major, facts.version.minor);
    if newer(sink) < newer(source) {
        found.warn(
            "qemu_downgrade",
            format!("QEMU is {} at the source, {} at the sink", source.version, sink.version),
            "QEMU promises only the way to newer versions; a load that fails leaves the guest here",
        );
    }
}

fn machines(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    if source.machine != sink.machine {
        let (here, there) = (shown(source.machine.as_deref()), shown(sink.machine.as_deref()));
        found.error(
            "machine_differs",
            format!("the machine type is {here} at the source, {there} at the sink"),
            "give the sink's QEMU the source's machine type with its version: -machine TYPE",
        );
    }
    if source.cpu_count != sink.cpu_count {
        found.error(
            "cpus_differ",
            format!(
                "{} virtual CPUs at the source, {} at the sink",
                source.cpu_count, sink.cpu_count
            ),
            "give both the same -smp",
        );
    }
    if source.cpu_kind != sink.cpu_kind {
        let (here, there) = (shown(source.cpu_kind.as_deref()), shown(sink.cpu_kind.as_deref()));
        found.error(
            "cpu_differs",
            format!("the CPU is {here} at the source, {there} at the sink"),
            "give both the same -cpu",
        );
    }
    if source.cpu_kind.as_deref().is_some_and(|kind| kind.starts_with("host-")) {
        found.warn(
            "cpu_is_the_hosts",
            "the guest sees the source host's own CPU (-cpu host)".to_owned(),
            "move it only between equal processors, or use a named CPU model",
        );
    }
}

fn memory(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    if source.ram_bytes != sink.ram_bytes {
        found.error(
            "ram_differs",
            format!("the guest has {} bytes, the sink's QEMU {}", source.ram_bytes, sink.ram_bytes),
            "give both the same -m, and plug in at the sink what was plugged in here",
        );
    }
    // What QEMU holds already, such as huge pages, needs not be found a second time.
    let missing = source.ram_bytes.saturating_sub(sink.resident_bytes.unwrap_or(0));
    if sink.host_free_bytes > 0 && missing > sink.host_free_bytes {
        found.error(
            "sink_memory",
            format!(
                "the guest needs {missing} bytes more at the sink, whose host has {} free",
                sink.host_free_bytes
            ),
            "free memory at the sink, or take another host",
        );
    }
}

fn devices(found: &mut Findings, source: &[DeviceFact], sink: &[DeviceFact]) {
    let by_place = |list: &[DeviceFact]| -> BTreeMap<String, String> {
        list.iter().map(|device| (device.place.clone(), device.kind.clone())).collect()
    };
    let (here, there) = (by_place(source), by_place(sink));
    let places: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    for place in places {
        let message = match (here.get(place), there.get(place)) {
            (Some(kind), None) => format!("{place} ({kind}) is missing at the sink"),
            (None, Some(kind)) => format!("{place} ({kind}) is at the sink only"),
            (Some(here), Some(there)) if here != there => {
                format!("{place} is {here} at the source, {there} at the sink")
            }
            _ => continue,
        };
        let cure = "give both QEMUs the same devices, ids and addresses, plugged ones included";
        found.error("device_differs", message, cure);
    }
}

fn blocks(found: &mut Findings, source: &[BlockFact], sink: &[BlockFact]) {
    for here in source {
        let Some(there) = sink.iter().find(|block| block.name == here.name) else {
            found.error(
                "disk_missing",
                format!("the disk {} ({}) is missing at the sink", here.name, here.file),
                "give the sink's QEMU the same disks under the same device ids",
            );
            continue;
        };
        if here.size_bytes != there.size_bytes {
            found.error(
                "disk_size_differs",
                format!(
                    "the disk {} has {} bytes at the source, {} at the sink",
                    here.name, here.size_bytes, there.size_bytes
                ),
                "give both QEMUs the same image",
            );
        }
        if !(here.read_only && there.read_only) {
            shared_disk(found, here, there);
        }
    }
}

fn shared_disk(found: &mut Findings, here: &BlockFact, there: &BlockFact) {
    let images = format!("{} at the source, {} at the sink", here.file, there.file);
    match (&here.storage, &there.storage) {
        (Storage::Network, Storage::Network) if here.file == there.file => {}
        (Storage::SharedFile { .. }, Storage::SharedFile { .. })
        | (Storage::LocalFile { .. }, Storage::LocalFile { .. })
            if here.storage == there.storage => {}
        (Storage::SharedFile { .. } | Storage::LocalFile { .. }, Storage::LocalFile { .. })
        | (Storage::LocalFile { .. }, Storage::SharedFile { .. })
        | (Storage::SharedFile { .. }, Storage::SharedFile { .. }) => found.error(
            "disk_not_shared",
            format!("the disk {} is two different files: {images}", here.name),
            "put the image where both hosts reach it (NFS, Ceph, NBD): dwcp does not copy disks",
        ),
        _ => found.warn(
            "disk_unproven",
            format!("nothing shows that the disk {} is the same at both ends: {images}", here.name),
            "make sure that both hosts reach the same storage: dwcp does not copy disks",
        ),
    }
}

fn capabilities(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    let has = |facts: &VmFacts, name: &str| facts.capabilities.iter().any(|on| on == name);
    for (name, why) in FORBIDDEN {
        if has(source, name) || has(sink, name) {
            let message = format!("QEMU's migration capability {name} is on: {why}");
            found.error("capability_refused", message, "switch it off at both ends");
        }
    }
    for name in ALIKE {
        if has(source, name) != has(sink, name) {
            let message = format!("QEMU's migration capability {name} is on at one end only");
            found.error("capability_differs", message, "switch it on at both ends or at none");
        }
    }
    if source.migration_tls != sink.migration_tls {
        let message = "QEMU's own TLS (tls-creds) is set at one end only".to_owned();
        found.error("tls_differs", message, "set tls-creds at both ends or at none");
    }
    if has(source, "multifd") && has(sink, "multifd") {
        multifd(found, source, sink);
    }
    // QEMU's xbzrle begins in its second pass over the memory, and only with pages that it has
    // kept: what comes before, in a short migration everything, is coded like any other stream.
    let own = [
        (has(source, "multifd"), "multifd", "all of its stream"),
        (has(source, "xbzrle"), "xbzrle", "its stream from the first page that it compresses on"),
        (source.migration_tls, "TLS", "all of its stream"),
    ];
    for (_, name, what) in own.iter().filter(|(on, ..)| *on) {
        found.warn(
            "carried_opaque",
            format!("QEMU's own {name} is on: {what} is carried as it is, without coding"),
            "switch it off in QEMU; dwcp compresses, encrypts and uses several streams by itself",
        );
    }
}

fn multifd(found: &mut Findings, source: &VmFacts, sink: &VmFacts) {
    let same = source.multifd_channels == sink.multifd_channels
        && source.multifd_compression == sink.multifd_compression;
    if !same {
        found.error(
            "multifd_differs",
            "QEMU's multifd has other channels or another compression at the sink".to_owned(),
            "set multifd-channels and multifd-compression alike",
        );
    }
    if source.multifd_channels.is_some_and(|channels| channels >= CHANNELS_MAX) {
        found.error(
            "too_many_channels",
            format!("QEMU's multifd has more than {} channels", CHANNELS_MAX - 1),
            "lower multifd-channels to 16 or less",
        );
    }
}

fn shown(value: Option<&str>) -> &str {
    value.unwrap_or("none")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::QemuVersion;

    fn version(major: u16, minor: u16) -> QemuVersion {
        QemuVersion { major, minor, micro: 0 }
    }

    fn pair() -> (VmFacts, VmFacts) {
        let source = VmFacts {
            version: version(10, 0),
            run_state: "running".to_owned(),
            machine: Some("pc-i440fx-10.0".to_owned()),
            ram_bytes: 64 << 20,
            cpu_count: 1,
            cpu_kind: Some("qemu64-x86_64-cpu".to_owned()),
            host_free_bytes: 1 << 30,
            ..VmFacts::default()
        };
        let sink = VmFacts { run_state: "inmigrate".to_owned(), ..source.clone() };
        (source, sink)
    }

    fn codes(source: &VmFacts, sink: &VmFacts) -> Vec<(Severity, String)> {
        preflight(source, sink).into_iter().map(|found| (found.severity, found.code)).collect()
    }

    #[test]
    fn equal_ends_fit() {
        let (mut source, sink) = pair();
        assert_eq!(preflight(&source, &sink), []);
        source.run_state = "paused".to_owned();
        assert_eq!(preflight(&source, &sink), [], "it moves and stays paused");
    }

    /// Breaks one fact of an end.
    type Break = fn(&mut VmFacts, &mut VmFacts);

    #[test]
    fn every_fact_that_differs_is_named() {
        use Severity::{Error, Warning};
        let disk = |storage| BlockFact {
            name: "disk0".to_owned(),
            driver: "raw".to_owned(),
            file: "/images/x".to_owned(),
            read_only: false,
            size_bytes: 1,
            storage,
        };
        let cases: [(Severity, &str, Break); 20] = [
            (Error, "guest_not_running", |a, _| a.run_state = "io-error".to_owned()),
            (Error, "already_migrating", |a, _| a.migration = Some("active".to_owned())),
            (Error, "not_incoming", |_, b| b.run_state = "running".to_owned()),
            (Error, "not_incoming", |_, b| b.migration = Some("setup".to_owned())),
            (Error, "qemu_too_old", |a, _| a.version = version(7, 1)),
            (Warning, "qemu_downgrade", |_, b| b.version = version(9, 2)),
            (Error, "machine_differs", |_, b| b.machine = Some("pc-q35-10.0".to_owned())),
            (Error, "cpus_differ", |a, _| a.cpu_count = 2),
            (Error, "cpu_differs", |_, b| b.cpu_kind = Some("max-x86_64-cpu".to_owned())),
            (Error, "ram_differs", |_, b| b.ram_bytes = 1),
            (Error, "sink_memory", |_, b| b.host_free_bytes = 1),
            (Error, "device_differs", |a, _| {
                let (place, kind) = ("rng0".to_owned(), "virtio-rng-pci".to_owned());
                a.devices.push(DeviceFact { place, kind });
            }),
            (Error, "capability_refused", |a, _| a.capabilities.push("postcopy-ram".to_owned())),
            (Error, "capability_differs", |a, _| a.capabilities.push("dirty-bitmaps".to_owned())),
            (Error, "tls_differs", |_, b| b.migration_tls = true),
            (Error, "multifd_differs", |a, b| {
                a.capabilities.push("multifd".to_owned());
                b.capabilities.push("multifd".to_owned());
                a.multifd_channels = Some(4);
            }),
            (Error, "too_many_channels", |a, b| {
                for facts in [a, b] {
                    facts.capabilities.push("multifd".to_owned());
                    facts.multifd_channels = Some(17);
                }
            }),
            (Warning, "carried_opaque", |a, _| a.capabilities.push("xbzrle".to_owned())),
            (Warning, "too_many_devices", |_, b| b.truncated = true),
            (Warning, "cpu_is_the_hosts", |a, b| {
                a.cpu_kind = Some("host-x86_64-cpu".to_owned());
                b.cpu_kind.clone_from(&a.cpu_kind);
            }),
        ];
        for (severity, code, change) in cases {
            let (mut source, mut sink) = pair();
            change(&mut source, &mut sink);
            let found = codes(&source, &sink);
            assert!(found.contains(&(severity, code.to_owned())), "{code}: {found:?}");
        }
        let (mut source, sink) = pair();
        source.blocks.push(disk(Storage::Network));
        assert_eq!(codes(&source, &sink), [(Error, "disk_missing".to_owned())]);
    }

    #[test]
    fn a_disk_is_shared_only_when_that_is_shown() {
        let local =
            |boot: &str, inode| Storage::LocalFile { boot: boot.to_owned(), device: 1, inode };
        let nfs = |inode| Storage::SharedFile { inode };
        let cases = [
            (Storage::Network, Storage::Network, None),
            (nfs(7), nfs(7), None),
            (local("a", 7), local("a", 7), None),
            (local("a", 7), local("b", 7), Some("disk_not_shared")),
            (local("a", 7), local("a", 8), Some("disk_not_shared")),
            (nfs(7), nfs(8), Some("disk_not_shared")),
            (nfs(7), local("b", 7), Some("disk_not_shared")),
            (Storage::Unknown, Storage::Unknown, Some("disk_unproven")),
            (Storage::Network, Storage::Unknown, Some("disk_unproven")),
        ];
        for (here, there, expected) in cases {
            let disk = |storage: &Storage, read_only| BlockFact {
                name: "disk0".to_owned(),
                driver: "raw".to_owned(),
                file: "x".to_owned(),
                read_only,
                size_bytes: 1,
                storage: storage.clone(),
            };
            let (mut source, mut sink) = pair();
            source.blocks = vec![disk(&here, false)];
            sink.blocks = vec![disk(&there, false)];
            let found = preflight(&source, &sink);
            let code = found.first().map(|finding| finding.code.as_str());
            assert_eq!(code, expected, "{here:?} {there:?}");
            source.blocks = vec![disk(&here, true)];
            sink.blocks = vec![disk(&there, true)];
            assert_eq!(preflight(&source, &sink), [], "read-only images need not be shared");
        }
    }
}
