//! Reads the tree: every file that is not ignored, text kept where a rule wants it.
//!
//! The only part of `tidy` that touches files. What `.gitignore` names by a plain path is left out,
//! and so is `.git`; patterns are not understood and therefore not used in this repository.

use super::error::TidyError;
use super::source::Source;
use std::fs;
use std::path::Path;

/// A file of the tree.
#[derive(Debug)]
pub(super) struct TreeFile {
    /// Path below the root, with `/` between the parts.
    pub(super) path: String,
    /// The content, if it is text.
    pub(super) text: Option<String>,
}

/// All files of the tree and the entries of its top level.
#[derive(Debug)]
pub(super) struct Tree {
    /// Names of files and folders at the top.
    pub(super) top: Vec<String>,
    /// All files, sorted by path.
    pub(super) files: Vec<TreeFile>,
}

impl Tree {
    /// The Rust files, split into code and the rest.
    pub(super) fn sources(&self) -> Vec<Source> {
        let rust = self.files.iter().filter(|file| file.path.ends_with(".rs"));
        rust.filter_map(|file| Some(Source::new(&file.path, file.text.as_deref()?))).collect()
    }
}

/// Reads everything below `root`.
pub(super) fn read(root: &Path) -> Result<Tree, TidyError> {
    let ignored = ignored_paths(root)?;
    let mut tree = Tree { top: Vec::new(), files: Vec::new() };
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let place = root.join(&folder);
        let failed = |source| TidyError::Read { path: place.clone(), source };
        for entry in fs::read_dir(&place).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if path == ".git" || ignored.contains(&path) {
                continue;
            }
            if folder.is_empty() {
                tree.top.push(name);
            }
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(entry.path())
                    .map_err(|source| TidyError::Read { path: entry.path(), source })?;
                tree.files.push(TreeFile { path, text: String::from_utf8(bytes).ok() });
            }
        }
    }
    tree.top.sort();
    tree.files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(tree)
}

/// The plain paths that `.gitignore` names.
fn ignored_paths(root: &Path) -> Result<Vec<String>, TidyError> {
    let path = root.join(".gitignore");
    let text = fs::read_to_string(&path).map_err(|source| TidyError::Read { path, source })?;
    Ok(text.lines().filter_map(|line| line.strip_prefix('/')).map(str::to_owned).collect())
}
