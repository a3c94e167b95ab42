//! Settings: one table from which flags, the file, `--help`, `dwcp config` and the manual are made.
//!
//! Runs on the main thread at start. [`table`] holds the data, [`value`] the types, [`manual`] the
//! printed table. Nothing here reads a file or decides what a setting means.

pub(crate) mod manual;
pub(crate) mod table;
pub(crate) mod value;

use clap::{Arg, ArgAction, ArgMatches};
use table::{SETTINGS, Scope, Setting};
use value::Kind;

/// Where a value came from; a flag wins over the file, the file over the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The table.
    Default,
    /// The configuration file.
    File {
        /// The line, from 1.
        line: usize,
    },
    /// The command line.
    Flag,
    /// `dwcp config set`, while the daemon runs.
    ConfigSet,
}

/// The setting with this name.
pub(crate) fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The flags of the settings that this scope takes.
pub(crate) fn flags(scope: Scope) -> Vec<Arg> {
    let ours = SETTINGS.iter().filter(|s| scope == Scope::Daemon || s.scope == scope);
    ours.map(flag).collect()
}

/// The flags of the named settings.
pub(crate) fn flags_of(names: &[&str]) -> Vec<Arg> {
    SETTINGS.iter().filter(|setting| names.contains(&setting.name)).map(flag).collect()
}

/// The text that was given for a setting on the command line, if any.
pub(crate) fn flag_text(matches: &ArgMatches, setting: &Setting) -> Option<String> {
    if setting.kind == Kind::Switch {
        return matches.get_flag(setting.name).then(|| "on".to_owned());
    }
    matches.get_one::<String>(setting.name).cloned()
}

fn flag(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.name)
        .long(setting.name)
        .hide(setting.hidden)
        .help_heading(setting.group.title())
        .help(help(setting));
    if setting.kind == Kind::Switch {
        return arg.action(ArgAction::SetTrue);
    }
    // Values are read by the configuration, not by clap, so that all errors come out at once.
    arg.value_name(setting.kind.placeholder()).action(ArgAction::Set).allow_hyphen_values(true)
}

fn help(setting: &Setting) -> String {
    let mut text = setting.help.to_owned();
    if !matches!(setting.kind, Kind::Switch | Kind::Path | Kind::Address) {
        text.push_str(&format!(" [{}]", setting.kind.range()));
    }
    if !setting.default.is_empty() && setting.kind != Kind::Switch {
        text.push_str(&format!(" [default: {}]", setting.default));
    }
    if setting.live {
        text.push_str(" [live]");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_setting_has_a_name_a_help_text_and_a_default_in_range() {
        let mut names = BTreeSet::new();
        for setting in SETTINGS {
            assert!(names.insert(setting.name), "{} appears twice", setting.name);
            let plain = |c: char| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit();
            assert!(setting.name.chars().all(plain), "{}", setting.name);
            assert!(setting.help.ends_with('.'), "{}: {}", setting.name, setting.help);
            assert!(!setting.kind.range().is_empty(), "{}", setting.name);
            if !setting.default.is_empty() {
                let value = setting.kind.parse(setting.default);
                assert!(value.is_ok(), "{}: {value:?}", setting.name);
            }
        }
    }

    #[test]
    fn every_setting_has_a_flag_that_shows_range_and_default() {
        let mut command = clap::Command::new("daemon").args(flags(Scope::Daemon));
        let help = command.render_long_help().to_string();
        for setting in SETTINGS.iter().filter(|setting| !setting.hidden) {
            assert!(help.contains(&format!("--{}", setting.name)), "{}", setting.name);
        }
        assert!(help.contains("[1 to 64] [default: 4]"), "{help}");
    }
}
