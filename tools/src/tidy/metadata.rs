//! What cargo knows about the workspaces: packages, their targets, dependencies and licences.
//!
//! The only part of `tidy` that starts a process. The answer is kept as JSON, since few of its
//! fields are read; a missing one reads as empty, and the rules then complain about the emptiness.

use super::error::TidyError;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The answer of `cargo metadata` for one workspace.
#[derive(Debug)]
pub(super) struct Metadata {
    root: PathBuf,
    json: Value,
}

impl Metadata {
    #[cfg(test)]
    pub(super) fn from_json(root: &str, json: Value) -> Self {
        Self { root: PathBuf::from(root), json }
    }

    /// All packages that a Linux build uses.
    pub(super) fn packages(&self) -> impl Iterator<Item = Package<'_>> {
        let packages = self.json["packages"].as_array().map_or(&[][..], Vec::as_slice);
        packages.iter().map(|json| Package { json, root: &self.root })
    }

    /// Source files below the root that are the root of a crate of this workspace.
    pub(super) fn crate_roots(&self) -> Vec<String> {
        self.packages()
            .filter(|package| package.source().is_none())
            .flat_map(|package| package.target_paths())
            .collect()
    }
}

/// One package of the answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package<'a> {
    json: &'a Value,
    root: &'a Path,
}

impl<'a> Package<'a> {
    pub(super) fn name(&self) -> &'a str {
        self.json["name"].as_str().unwrap_or_default()
    }

    pub(super) fn version(&self) -> &'a str {
        self.json["version"].as_str().unwrap_or_default()
    }

    pub(super) fn licence(&self) -> Option<&'a str> {
        self.json["license"].as_str()
    }

    /// The registry it comes from; none for a package by path.
    pub(super) fn source(&self) -> Option<&'a str> {
        self.json["source"].as_str()
    }

    /// Its manifest below the root of the repository; none if it lies elsewhere.
    pub(super) fn manifest(&self) -> Option<String> {
        self.below_root(&self.json["manifest_path"])
    }

    /// Names of the packages it asks for, of every kind (normal, build, dev).
    pub(super) fn dependencies(&self) -> impl Iterator<Item = &'a str> {
        let list = self.json["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|dependency| dependency["name"].as_str())
    }

    fn target_paths(&self) -> Vec<String> {
        let list = self.json["targets"].as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|target| self.below_root(&target["src_path"])).collect()
    }

    fn below_root(&self, path: &Value) -> Option<String> {
        let path = Path::new(path.as_str()?).strip_prefix(self.root).ok()?;
        Some(path.to_string_lossy().into_owned())
    }
}

/// Asks cargo about the workspace of a manifest below `root`.
pub(super) fn of(root: &Path, manifest: &str) -> Result<Metadata, TidyError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path", manifest])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| TidyError::Cargo { source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(TidyError::Metadata { manifest: manifest.to_owned(), stderr });
    }
    let json = serde_json::from_slice(&output.stdout)
        .map_err(|source| TidyError::MetadataForm { manifest: manifest.to_owned(), source })?;
    let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    Ok(Metadata { root, json })
}
