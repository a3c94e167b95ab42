//! The validated configuration: flags, file and defaults brought together, all errors at once.
//!
//! Runs on the main thread before anything is opened or started. A [`DaemonConfig`] that exists is
//! right as a whole, as far as that can be told without looking at the machine (the budget does
//! that). It never opens sockets and never changes anything.

mod daemon_config;
mod file;
mod problem;

pub(crate) use daemon_config::{DaemonConfig, LockMemory, Poll, Trust, keepalive_is_quick};
pub(crate) use problem::{ConfigErrors, Place, Problem, ProblemKind};

use crate::settings::table::{SETTINGS, Setting};
use crate::settings::value::{Share, Value};
use crate::settings::{self, Origin};
use clap::ArgMatches;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A setting with its value and where that came from.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The setting.
    pub(crate) setting: &'static Setting,
    /// Its value.
    pub(crate) value: Value,
    /// Where the value came from.
    pub(crate) origin: Origin,
}

/// A value of every setting.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    entries: Vec<Entry>,
    file_path: Option<PathBuf>,
}

impl Values {
    /// Brings flags, file and defaults together; what is wrong is added to `problems` and replaced
    /// by the default, so that one run finds every error.
    fn gather(
        flag: impl Fn(&Setting) -> Option<String>,
        file: Option<&file::ConfigFile>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let entries = SETTINGS.iter().map(|setting| {
            let from_file = file.and_then(|file| file.entry(setting.name));
            // The file's value is checked even where a flag wins.
            let from_file = from_file.and_then(|(text, place, line)| {
                let value = read(setting, text, place, problems)?;
                Some(Entry { setting, value, origin: Origin::File { line } })
            });
            let from_flag = flag(setting).and_then(|text| {
                let value = read(setting, &text, Place::Flag, problems)?;
                Some(Entry { setting, value, origin: Origin::Flag })
            });
            from_flag.or(from_file).unwrap_or_else(|| default_entry(setting))
        });
        Self { entries: entries.collect(), file_path: file.map(|file| file.path().to_owned()) }
    }

    /// All of them, in the order of the table.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn file_path(&self) -> Option<&Path> {
        self.file_path.as_deref()
    }

    /// The same values with one of them changed.
    pub(crate) fn with(&self, entry: Entry) -> Self {
        let mut changed = self.clone();
        for old in &mut changed.entries {
            if old.setting.name == entry.setting.name {
                *old = entry.clone();
            }
        }
        changed
    }

    pub(crate) fn entry(&self, name: &str) -> &Entry {
        let found = self.entries.iter().find(|entry| entry.setting.name == name);
        found.unwrap_or_else(|| panic!("the table has no setting '{name}'"))
    }

    /// Whether somebody set it.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.origin(name) != Origin::Default
    }

    fn origin(&self, name: &str) -> Origin {
        self.entry(name).origin
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        match &self.entry(name).value {
            Value::Path(path) => Some(path.clone()),
            Value::Unset => None,
            other => wrong_kind(name, other),
        }
    }

    fn address(&self, name: &str) -> Option<SocketAddr> {
        match &self.entry(name).value {
            Value::Address(address) => Some(*address),
            Value::Unset => None,
            other => wrong_kind(name, other),
        }
    }

    fn switch(&self, name: &str) -> bool {
        match &self.entry(name).value {
            Value::Switch(on) => *on,
            other => wrong_kind(name, other),
        }
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        match &self.entry(name).value {
            Value::Count(count) => *count,
            other => wrong_kind(name, other),
        }
    }

    /// The number, or nothing for "auto".
    pub(crate) fn count_or_auto(&self, name: &str) -> Option<u64> {
        match &self.entry(name).value {
            Value::Count(count) => Some(*count),
            Value::Auto => None,
            other => wrong_kind(name, other),
        }
    }

    /// The bytes, or nothing for "auto".
    fn bytes(&self, name: &str) -> Option<u64> {
        match &self.entry(name).value {
            Value::Bytes(bytes) => Some(*bytes),
            Value::Auto => None,
            other => wrong_kind(name, other),
        }
    }

    pub(crate) fn share(&self, name: &str) -> Share {
        match &self.entry(name).value {
            Value::Share(share) => *share,
            other => wrong_kind(name, other),
        }
    }

    pub(crate) fn time(&self, name: &str) -> Duration {
        match &self.entry(name).value {
            Value::Time(time) => *time,
            other => wrong_kind(name, other),
        }
    }

    pub(crate) fn word(&self, name: &str) -> &'static str {
        match &self.entry(name).value {
            Value::Choice(word) => word,
            other => wrong_kind(name, other),
        }
    }

    fn cores(&self, name: &str) -> Vec<usize> {
        match &self.entry(name).value {
            Value::Cores(cores) => cores.clone(),
            Value::Unset => Vec::new(),
            other => wrong_kind(name, other),
        }
    }
}

/// The code asked for a setting as a type that the table doesn't give it: our bug.
fn wrong_kind(name: &str, value: &Value) -> ! {
    panic!("the table gives '{name}' another kind than the code expects: {value:?}")
}

fn default_entry(setting: &'static Setting) -> Entry {
    Entry { setting, value: setting.default_value(), origin: Origin::Default }
}

fn read(
    setting: &'static Setting,
    text: &str,
    place: Place,
    problems: &mut Vec<Problem>,
) -> Option<Value> {
    match setting.kind.parse(text) {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(Problem {
                place,
                setting: setting.name.to_owned(),
                kind: ProblemKind::Value(error),
            });
            None
        }
    }
}

/// The daemon's configuration from its flags and the file that they name.
///
/// # Errors
/// Everything that is wrong, at once.
pub(crate) fn load(
    matches: &ArgMatches,
    path: Option<&Path>,
) -> Result<(DaemonConfig, Values), ConfigErrors> {
    load_with(|setting| settings::flag_text(matches, setting), path)
}

/// The configuration of a command that takes only some of the settings, all of them as flags; the
/// others have their defaults.
///
/// # Errors
/// Everything that is wrong, at once.
pub(crate) fn load_of(
    matches: &ArgMatches,
    names: &[&str],
) -> Result<(DaemonConfig, Values), ConfigErrors> {
    let taken = |setting: &Setting| names.contains(&setting.name);
    load_with(|s| taken(s).then(|| settings::flag_text(matches, s)).flatten(), None)
}

fn load_with(
    flag: impl Fn(&Setting) -> Option<String>,
    path: Option<&Path>,
) -> Result<(DaemonConfig, Values), ConfigErrors> {
    let mut problems = Vec::new();
    let file = path.and_then(|path| file::read(path, &mut problems));
    let values = Values::gather(flag, file.as_ref(), &mut problems);
    let config = DaemonConfig::from_values(&values, &mut problems);
    problems.sort_by_key(Problem::line);
    match config {
        Some(config) if problems.is_empty() => Ok((config, values)),
        _ => Err(ConfigErrors(problems)),
    }
}

/// The defaults, for tests of other modules.
#[cfg(test)]
pub(crate) fn test_values() -> (DaemonConfig, Values) {
    let plaintext =
        |setting: &Setting| (setting.name == "insecure-plaintext").then(|| "on".to_owned());
    load_with(plaintext, None).expect("the defaults are right")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("the file is written");
        file
    }

    fn load_flags(
        flags: &[(&str, &str)],
        path: Option<&Path>,
    ) -> Result<(DaemonConfig, Values), ConfigErrors> {
        let given = |setting: &Setting| {
            let found = flags.iter().find(|(name, _)| *name == setting.name);
            found.map(|(_, text)| (*text).to_owned())
        };
        load_with(given, path)
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("streams = 8\npoll = \"park\"\npki = \"/etc/dwcp\"\ncores = [1, 2]\n");
        let (config, values) =
            load_flags(&[("streams", "2")], Some(file.path())).expect("the settings are right");
        assert_eq!(config.streams, 2);
        assert_eq!(config.poll, Poll::Park);
        assert_eq!(config.cores, [1, 2]);
        assert_eq!(values.origin("streams"), Origin::Flag);
        assert_eq!(values.origin("poll"), Origin::File { line: 2 });
        assert_eq!(values.origin("window"), Origin::Default);
    }

    #[test]
    fn all_errors_come_at_once_with_line_and_cure() {
        let text = "steams = 4\nstreams = 99\nmemory = 12\n\nzstd-level = true\nwindow = [1]\n\
                    keepalive = \"20s\"\nx = 1.5\nlisten = { a = 1 }\n";
        let file = file(text);
        let errors = load_flags(&[("poll", "lazy")], Some(file.path())).unwrap_err();
        let text = errors.to_string();
        for (line, part) in [
            (1, "did you mean 'streams'?"),
            (2, "give 1 to 64"),
            (3, "512MiB"),
            (5, "zstd-level"),
            (6, "window"),
            (7, "--dead-after"),
            (8, "'x'"),
            (9, "listen"),
        ] {
            let place = format!("{}:{line}: ", file.path().display());
            let found = text.lines().any(|l| l.contains(&place) && l.contains(part));
            assert!(found, "line {line} with '{part}' is missing in:\n{text}");
        }
        assert!(text.contains("--poll: 'lazy'") && text.contains("--pki"), "{text}");
        assert_eq!(text.lines().count(), 10, "{text}");
    }

    #[test]
    fn broken_syntax_names_its_line() {
        let file = file("streams = 4\nmemory = \"1GiB\nlisten == 3\n");
        let text = load_flags(&[], Some(file.path())).unwrap_err().to_string();
        assert!(text.contains(":2: "), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let text = load_flags(&[], Some(Path::new("/nowhere/dwcp.toml"))).unwrap_err().to_string();
        assert!(text.contains("/nowhere/dwcp.toml"), "{text}");
    }

    #[test]
    fn trust_is_named_exactly_once() {
        let error = load_flags(&[], None).unwrap_err().to_string();
        assert!(error.contains("--pki"), "{error}");
        let both = [("pki", "/etc/dwcp"), ("insecure-plaintext", "on")];
        assert!(load_flags(&both, None).is_err());
        let (config, _) = load_flags(&both[..1], None).expect("the settings are right");
        assert_eq!(config.trust, Trust::Pki(PathBuf::from("/etc/dwcp")));
    }

    #[test]
    fn a_socket_path_fits_into_a_unix_address() {
        let long = format!("/run/{}", "x".repeat(120));
        let flags = [("insecure-plaintext", "on"), ("socket", long.as_str())];
        let error = load_flags(&flags, None).unwrap_err().to_string();
        assert!(error.contains("107"), "{error}");
    }
}
