//! Dependencies go one way: `ffi, proto, codec <- dataplane, store <- control <- dwcp`.
//!
//! Pure. Manifests are checked by cargo's own reading of them; `control` may name only the modules
//! `port` and `stats` of the data plane, which is checked in its text.

use super::metadata::Metadata;
use super::source::Source;
use super::violation::Violation;

/// Who may depend on whom; a crate of ours that is not listed may depend on everything.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("dwcp-ffi", &[]),
    ("dwcp-proto", &[]),
    ("dwcp-codec", &[]),
    ("dwcp-dataplane", &["dwcp-ffi", "dwcp-proto", "dwcp-codec"]),
    ("dwcp-store", &["dwcp-codec"]),
    ("dwcp-control", &["dwcp-ffi", "dwcp-proto", "dwcp-codec", "dwcp-dataplane", "dwcp-store"]),
    ("dwcp-tools", &["dwcp-ffi"]),
    (
        "dwcp",
        &[
            "dwcp-ffi",
            "dwcp-proto",
            "dwcp-codec",
            "dwcp-dataplane",
            "dwcp-store",
            "dwcp-control",
            "dwcp-tools",
        ],
    ),
];

/// What `control` may see of the data plane.
const DATAPLANE_FOR_CONTROL: [&str; 2] = ["port", "stats"];

/// Checks the manifests of the workspace.
pub(super) fn check_manifests(metadata: &Metadata) -> Vec<Violation> {
    let mut found = Vec::new();
    for package in metadata.packages() {
        let Some((name, allowed)) = MAY_USE.iter().find(|(name, _)| *name == package.name()) else {
            continue;
        };
        for dependency in package.dependencies().filter(|name| name.starts_with("dwcp")) {
            if !allowed.contains(&dependency) {
                let path = package.manifest().unwrap_or_default();
                let message = format!("{name} must not depend on {dependency}");
                found.push(Violation::new(&path, 0, message));
            }
        }
    }
    found
}

/// Checks what a file of `control` names of the data plane.
pub(super) fn check_uses(source: &Source) -> Vec<Violation> {
    if !source.path.starts_with("control/") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, name) in source.children_of("dwcp_dataplane") {
        if !DATAPLANE_FOR_CONTROL.contains(&name.as_str()) {
            let message = format!("control uses only `port` and `stats` of the data plane: {name}");
            found.push(Violation::new(&source.path, source.line_of(at), message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pure_crate_that_asks_for_the_data_plane_is_found() {
        let metadata = Metadata::from_json(
            "/r",
            json!({"packages": [{
                "name": "dwcp-proto",
                "manifest_path": "/r/dataplane/proto/Cargo.toml",
                "dependencies": [{"name": "serde"}, {"name": "dwcp-dataplane"}],
            }]}),
        );
        let found = check_manifests(&metadata);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "dataplane/proto/Cargo.toml");
    }

    #[test]
    fn control_may_use_port_and_stats_only() {
        let text = "use dwcp_dataplane::{port::Command, stats};\nuse dwcp_dataplane::shard::Shard;";
        let found = check_uses(&Source::new("control/src/a.rs", text));
        assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [2]);
        assert!(check_uses(&Source::new("src/a.rs", text)).is_empty());
    }
}
