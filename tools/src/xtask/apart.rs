//! Settings by which crates of a copy of the workspace are told from the workspace's own in one
//! target folder, where what comes from registries is compiled once for all of them.
//!
//! Cargo tells two copies of a workspace apart by their settings alone. Used by the steps that
//! build another tree. Invariant: each such tree is compiled in a number of parts of its own.

/// Settings for these crates that nobody else has.
pub(crate) fn settings(
    crates: &[&'static str],
    codegen_units: u32,
) -> impl Iterator<Item = String> {
    let units = format!("codegen-units={codegen_units}");
    crates.iter().map(move |name| setting(name, &units))
}

/// A setting for one crate.
pub(crate) fn setting(name: &str, setting: &str) -> String {
    format!("profile.dev.package.{name}.{setting}")
}
