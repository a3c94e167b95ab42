//! The table of settings as the running daemon shows and changes it.
//!
//! Lives on the control thread, which calls it for `config.get` and `config.set`. Only settings
//! marked live change, only to values that the table allows, and never half.

use super::log::LogLevel;
use crate::budget::Budget;
use crate::config::{DaemonConfig, Entry, Values, keepalive_is_quick};
use crate::settings::table::Setting;
use crate::settings::value::{Kind, Share, Value as Typed};
use crate::settings::{self, Origin};
use dwcp_control::{Congestion, LiveSettings, SettingRefused, SettingView, SettingsPort};
use dwcp_dataplane::port::{Level, Spread};
use serde_json::{Value, json};

/// The settings of a running daemon.
pub(crate) struct LiveTable {
    values: Values,
    budget: Budget,
    log: LogLevel,
    streams: u16,
    window_bytes: u64,
}

impl LiveTable {
    /// The table as the daemon started with it.
    pub(crate) const fn new(
        values: Values,
        config: &DaemonConfig,
        budget: Budget,
        log: LogLevel,
    ) -> Self {
        let (streams, window_bytes) = (config.streams, config.window_bytes);
        Self { values, budget, log, streams, window_bytes }
    }
}

impl SettingsPort for LiveTable {
    fn list(&self) -> Vec<SettingView> {
        let shown = self.values.entries().iter().filter(|entry| !entry.setting.hidden);
        shown.map(view).collect()
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<SettingView, SettingRefused> {
        let found = settings::find(name).filter(|setting| !setting.hidden);
        let setting = found.ok_or_else(|| SettingRefused::Unknown { name: name.to_owned() })?;
        if !setting.live {
            return Err(SettingRefused::Fixed { name: name.to_owned() });
        }
        let invalid = |expected| SettingRefused::Invalid { name: name.to_owned(), expected };
        let text = text_of(setting, value).ok_or_else(|| invalid(expected(setting)))?;
        let typed = setting.kind.parse(&text).map_err(|_| invalid(expected(setting)))?;
        let changed = self.values.with(Entry { setting, value: typed, origin: Origin::ConfigSet });
        if !keepalive_is_quick(&changed) {
            return Err(invalid("a value that keeps keepalive below a third of dead-after".into()));
        }
        self.values = changed;
        if name == "log" {
            self.log.set(self.values.word("log"));
        }
        Ok(view(self.values.entry(name)))
    }

    fn live(&self) -> LiveSettings {
        LiveSettings {
            streams: self.streams,
            spread: match self.values.count_or_auto("streams") {
                Some(_) => Spread::All,
                None => Spread::AsNeeded,
            },
            congestion: match self.values.word("congestion") {
                "bbr" => Congestion::Bbr,
                "cubic" => Congestion::Cubic,
                _ => Congestion::Auto,
            },
            window_bytes_max: self.window_bytes,
            base_pages_max: self.budget.base_pages_max(self.values.share("base-budget")),
            zstd_level: match self.values.count_or_auto("zstd-level").map(i32::try_from) {
                Some(Ok(level)) => Level::Fixed(level),
                _ => Level::Auto,
            },
            peer_ping_every: self.values.time("keepalive"),
            peer_dead_after: self.values.time("dead-after"),
            resume_window: self.values.time("resume-window"),
            blackout_max: self.values.time("blackout-max"),
            drain_timeout: self.values.time("drain-timeout"),
        }
    }
}

fn view(entry: &Entry) -> SettingView {
    let setting = entry.setting;
    SettingView {
        name: setting.name.to_owned(),
        value: json_of(&entry.value),
        unit: unit(setting).to_owned(),
        default: json_of(&setting.default_value()),
        live: setting.live,
        from: match entry.origin {
            Origin::Default => "default",
            Origin::File { .. } => "file",
            Origin::Flag => "flag",
            Origin::ConfigSet => "config.set",
        }
        .to_owned(),
    }
}

/// The unit of a number in JSON.
const fn unit(setting: &Setting) -> &'static str {
    match setting.kind {
        Kind::Bytes { .. } | Kind::Share { .. } => "bytes",
        Kind::Time { .. } => "us",
        _ => "",
    }
}

/// What `config.set` takes.
fn expected(setting: &Setting) -> String {
    format!("{} ({})", setting.kind.example(), setting.kind.range())
}

/// Sizes in bytes and times in microseconds are numbers; a share in percent is text.
fn json_of(value: &Typed) -> Value {
    match value {
        Typed::Unset => Value::Null,
        Typed::Bytes(bytes) | Typed::Share(Share::Bytes(bytes)) => json!(bytes),
        Typed::Count(count) => json!(count),
        Typed::Time(time) => json!(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        Typed::Cores(cores) => json!(cores),
        Typed::Switch(on) => json!(on),
        Typed::Auto | Typed::Share(_) | Typed::Choice(_) | Typed::Path(_) | Typed::Address(_) => {
            json!(value.to_string())
        }
    }
}

/// What a client gave, as the flag would be written: text as it is, numbers in the setting's unit.
fn text_of(setting: &Setting, value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => {
            let number = number.as_u64()?;
            Some(match setting.kind {
                Kind::Bytes { .. } | Kind::Share { .. } => format!("{number}B"),
                Kind::Time { .. } => format!("{number}us"),
                _ => number.to_string(),
            })
        }
        Value::Bool(on) => Some(on.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Machine;
    use crate::settings::value::{GIB, MIB};
    use std::time::Duration;

    fn table() -> LiveTable {
        let (config, values) = crate::config::test_values();
        let machine = Machine {
            memory_bytes: 64 * GIB,
            lockable_bytes: u64::MAX,
            descriptors_max: 65_536,
            cores: vec![0],
        };
        let budget = Budget::compute(&config, &machine).expect("the defaults fit");
        LiveTable::new(values, &config, budget, super::super::log::start("info"))
    }

    #[test]
    fn live_settings_change_and_say_who_changed_them() {
        let mut table = table();
        let view = table.set("zstd-level", &json!(7)).expect("zstd-level is live");
        assert_eq!((view.value, view.from.as_str()), (json!(7), "config.set"));
        table.set("base-budget", &json!("4MiB")).expect("base-budget is live");
        table.set("keepalive", &json!(2_000_000)).expect("a number counts microseconds");
        let live = table.live();
        assert_eq!(live.zstd_level, Level::Fixed(7));
        assert_eq!(live.base_pages_max, 4 * MIB / 4096);
        assert_eq!(live.peer_ping_every, Duration::from_secs(2));
    }

    #[test]
    fn a_refused_change_changes_nothing() {
        let mut table = table();
        let before = table.live();
        let refusals = [
            ("zstd-level", json!(20), "zstd-level takes"),
            ("zstd-level", json!(null), "zstd-level takes"),
            ("keepalive", json!("20s"), "third of dead-after"),
            ("streams", json!(8), "at start only"),
            ("nonsense", json!(1), "no setting"),
            ("test-break-invariant", json!(true), "no setting"),
        ];
        for (name, value, part) in refusals {
            let refused = table.set(name, &value).unwrap_err().to_string();
            assert!(refused.contains(part), "{name}: {refused}");
        }
        assert_eq!(table.live(), before);
    }

    #[test]
    fn every_value_that_is_listed_can_be_given_back() {
        let table = table();
        let list = table.list();
        assert!(list.iter().all(|view| view.name != "test-break-invariant"));
        for view in list.iter().filter(|view| view.live) {
            let setting = settings::find(&view.name).expect("a listed setting is in the table");
            let text = text_of(setting, &view.value).expect("live settings have plain values");
            let typed = setting.kind.parse(&text).expect("the value is in range");
            assert_eq!(json_of(&typed), view.value, "{}", view.name);
        }
    }
}
