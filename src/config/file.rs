//! The configuration file: TOML with one `name = value` per setting, each with its line.
//!
//! Runs on the main thread at start. It reports everything that it can't read and every name
//! that it doesn't know, and goes on; whether a value is right is decided by its caller.

use super::problem::{Place, Problem, ProblemKind};
use crate::settings;
use crate::settings::table::SETTINGS;
use crate::settings::value::{ValueError, nearest};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// No configuration comes near this; it keeps a wrong path from filling the memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the file says.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    entries: Vec<FileEntry>,
}

#[derive(Debug)]
struct FileEntry {
    name: String,
    /// The value as a flag would be written, or nothing when it was reported as wrong.
    text: Option<String>,
    line: usize,
}

impl ConfigFile {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text of a setting, where it stands, and its line.
    pub(super) fn entry(&self, name: &str) -> Option<(&str, Place, usize)> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        Some((entry.text.as_deref()?, self.place(entry.line), entry.line))
    }

    fn place(&self, line: usize) -> Place {
        Place::File { path: self.path.clone(), line }
    }
}

/// Reads the file; what is wrong with it is added to `problems`.
pub(super) fn read(path: &Path, problems: &mut Vec<Problem>) -> Option<ConfigFile> {
    let mut report = |line, setting: &str, kind| {
        let place = Place::File { path: path.to_owned(), line };
        problems.push(Problem { place, setting: setting.to_owned(), kind });
    };
    let text = match read_text(path) {
        Ok(text) => text,
        Err(kind) => {
            report(0, "", kind);
            return None;
        }
    };
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in &errors {
        let line = error.span().map_or(1, |span| line_of(&text, span.start));
        report(line, "", ProblemKind::Syntax { message: error.message().to_owned() });
    }
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line_of(&text, key.span().start);
        let name = key.get_ref().to_string();
        if settings::find(&name).is_none() {
            let near = nearest(&name, SETTINGS.iter().map(|setting| setting.name));
            report(line, &name, ProblemKind::Unknown { near });
            continue;
        }
        let value_text = match text_of(value.get_ref()) {
            Ok(text) => Some(text),
            // After a syntax error a half-read value says nothing new.
            Err(_) if !errors.is_empty() => None,
            Err(kind) => {
                report(line, &name, kind);
                None
            }
        };
        entries.push(FileEntry { name, text: value_text, line });
    }
    Some(ConfigFile { path: path.to_owned(), entries })
}

fn read_text(path: &Path) -> Result<String, ProblemKind> {
    let file = std::fs::File::open(path).map_err(ProblemKind::Unreadable)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(ProblemKind::Unreadable)?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(ProblemKind::TooLong { bytes_max: FILE_BYTES_MAX });
    }
    Ok(text)
}

/// The value as it would be written on the command line.
fn text_of(value: &DeValue<'_>) -> Result<String, ProblemKind> {
    let wrong = |found| {
        let example = "text in quotes, a whole number, true or false";
        Err(ProblemKind::Value(ValueError::WrongType { found, example }))
    };
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.as_str().replace('_', "")),
        DeValue::Boolean(on) => Ok(on.to_string()),
        DeValue::Array(values) => {
            let texts: Result<Vec<_>, _> = values.iter().map(|v| text_of(v.get_ref())).collect();
            Ok(texts?.join(","))
        }
        DeValue::Float(_) => wrong("a number with a point"),
        DeValue::Datetime(_) => wrong("a date"),
        DeValue::Table(_) => Err(ProblemKind::Table),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
