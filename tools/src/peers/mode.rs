//! A way to move a guest: what is switched on in QEMU, and by which path the bytes go.
//!
//! Pure but for [`Mode::prepare`], which tells both QEMUs.

use crate::lab::{LabError, Qmp};
use serde_json::{Map, Value, json};

/// As good as no limit, in bytes per second; QEMU has none for "unlimited".
const BANDWIDTH_MAX: u64 = 0x7f_ffff_ffff;

/// What QEMU aims for itself.
const DOWNTIME_LIMIT_MS: u32 = 300;

/// How many connections multifd has when it is off: QEMU's default.
const CHANNELS_DEFAULT: u32 = 2;

const MIB: u64 = 1 << 20;

/// A pair of commands in the place of QEMU's network path.
///
/// The source QEMU connects to a Unix socket that the source command listens on; the sink command
/// connects to the one that the sink QEMU listens on. In both, `{sock}` is that socket, `{peer}`
/// the other node's address, `{port}` a fresh TCP port and `{dir}` a folder for files. An empty
/// command runs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The word that stands for it in a mode.
    pub name: String,
    /// What runs on the source's node.
    pub source: String,
    /// What runs on the sink's node.
    pub sink: String,
}

/// A command that does a whole migration by itself, through both QEMUs' monitors, and one that
/// prepares it before the clock starts: it runs to its end, may leave processes behind that end
/// with the migration, and does nothing if it is empty.
///
/// Both get `DWCP_LAB_SOURCE_QMP`, `DWCP_LAB_SINK_QMP`, `DWCP_LAB_SOURCE_NETNS`,
/// `DWCP_LAB_SINK_NETNS`, `DWCP_LAB_SOURCE_ADDRESS`, `DWCP_LAB_SINK_ADDRESS`, `DWCP_LAB_PORT` and
/// `DWCP_LAB_FOLDER`, and run outside of both namespaces. The command ends with 0 once the guest
/// runs at the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mover {
    /// The word that stands for it in a mode.
    pub name: String,
    /// What is run before the clock starts.
    pub prepare: String,
    /// What is run.
    pub command: String,
}

/// Which way the bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// QEMU to QEMU.
    Direct,
    Carrier(Carrier),
    Mover(Mover),
}

/// What the words of a mode mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    text: String,
    pub(super) path: Path,
    capabilities: Vec<&'static str>,
    parameters: Map<String, Value>,
}

impl Mode {
    /// The words, for the help of programs that take them.
    pub const HELP: &str = "\
  tcp               QEMU's plain way
  multifdN          N more connections; multifdN-zstdL: compressed with zstd at level L
  xbzrle            changed pages as differences, with a cache as large as memory
  autoconverge, postcopy, returnpath
  NAME              of a relay or a mover; a relay goes together with QEMU's own words";

    /// Reads words joined by `+`.
    ///
    /// # Errors
    /// A word is not understood.
    pub fn parse(
        text: &str,
        carriers: &[Carrier],
        movers: &[Mover],
        ram_mib: u32,
    ) -> Result<Self, LabError> {
        let mut mode = Self {
            text: text.to_owned(),
            path: Path::Direct,
            capabilities: Vec::new(),
            parameters: Map::new(),
        };
        for word in text.split('+') {
            if let Some(carrier) = carriers.iter().find(|carrier| carrier.name == word) {
                mode.path = Path::Carrier(carrier.clone());
                mode.capabilities.push("return-path");
            } else if let Some(mover) = movers.iter().find(|mover| mover.name == word) {
                mode.path = Path::Mover(mover.clone());
            } else {
                mode.qemu_word(word, ram_mib)?;
            }
        }
        let sets_qemu = !mode.capabilities.is_empty();
        if matches!(mode.path, Path::Mover(_)) && sets_qemu {
            let why = "a mover sets QEMU up by itself";
            return Err(LabError::Word { word: text.to_owned(), why });
        }
        Ok(mode)
    }

    /// Its words.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn is_postcopy(&self) -> bool {
        self.capabilities.contains(&"postcopy-ram")
    }

    fn qemu_word(&mut self, word: &str, ram_mib: u32) -> Result<(), LabError> {
        match word {
            "tcp" => {}
            "xbzrle" => {
                let bytes = (u64::from(ram_mib) * MIB).next_power_of_two();
                self.capabilities.push("xbzrle");
                self.parameters.insert("xbzrle-cache-size".to_owned(), json!(bytes));
            }
            "autoconverge" => self.capabilities.push("auto-converge"),
            "postcopy" => self.capabilities.push("postcopy-ram"),
            "returnpath" => self.capabilities.push("return-path"),
            _ => {
                let Some((channels, level)) = multifd(word) else {
                    let why = "is no mode, relay or mover";
                    return Err(LabError::Word { word: word.to_owned(), why });
                };
                self.capabilities.push("multifd");
                self.parameters.insert("multifd-channels".to_owned(), json!(channels));
                if let Some(level) = level {
                    self.parameters.insert("multifd-compression".to_owned(), json!("zstd"));
                    self.parameters.insert("multifd-zstd-level".to_owned(), json!(level));
                }
            }
        }
        Ok(())
    }

    /// Brings a QEMU to what this mode needs, whatever it was told before.
    pub(super) fn prepare(&self, qmp: &mut Qmp) -> Result<(), LabError> {
        let known = qmp.execute("query-migrate-capabilities", json!({}))?;
        let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
        let on = known.iter().filter(|it| it["state"] == true).map(|it| &it["capability"]);
        let off: Vec<Value> = on.map(|name| json!({"capability": name, "state": false})).collect();
        if !off.is_empty() {
            qmp.execute("migrate-set-capabilities", json!({"capabilities": off}))?;
        }
        let defaults = json!({
            "max-bandwidth": BANDWIDTH_MAX,
            "downtime-limit": DOWNTIME_LIMIT_MS,
            "multifd-channels": CHANNELS_DEFAULT,
            "multifd-compression": "none",
        });
        qmp.execute("migrate-set-parameters", defaults)?;
        let on = |name| json!({"capability": name, "state": true});
        let on: Vec<Value> = self.capabilities.iter().map(on).collect();
        if !on.is_empty() {
            qmp.execute("migrate-set-capabilities", json!({"capabilities": on}))?;
        }
        if !self.parameters.is_empty() {
            qmp.execute("migrate-set-parameters", Value::Object(self.parameters.clone()))?;
        }
        Ok(())
    }
}

/// The numbers in `multifd4` and `multifd4-zstd1`.
fn multifd(word: &str) -> Option<(u32, Option<u32>)> {
    let rest = word.strip_prefix("multifd")?;
    match rest.split_once("-zstd") {
        Some((channels, level)) => Some((channels.parse().ok()?, Some(level.parse().ok()?))),
        None => Some((rest.parse().ok()?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Mode, LabError> {
        let [name, source, sink] = ["socat", "a", "b"].map(str::to_owned);
        let carriers = [Carrier { name, source, sink }];
        let movers =
            [Mover { name: "dwcp".to_owned(), prepare: String::new(), command: "c".to_owned() }];
        Mode::parse(text, &carriers, &movers, 1000)
    }

    #[test]
    fn words_become_capabilities_and_parameters() {
        let mode = parse("multifd4-zstd3+autoconverge").unwrap();
        assert_eq!(mode.capabilities, ["multifd", "auto-converge"]);
        assert_eq!(mode.parameters["multifd-channels"], 4);
        assert_eq!(mode.parameters["multifd-zstd-level"], 3);
        assert_eq!(parse("xbzrle").unwrap().parameters["xbzrle-cache-size"], 1 << 30);
        assert_eq!(parse("tcp").unwrap().path, Path::Direct);
    }

    #[test]
    fn relays_go_with_qemus_words_and_movers_do_not() {
        let mode = parse("socat+multifd2").unwrap();
        assert_eq!(mode.capabilities, ["return-path", "multifd"]);
        assert!(matches!(mode.path, Path::Carrier(_)));
        assert!(matches!(parse("dwcp").unwrap().path, Path::Mover(_)));
        for text in ["dwcp+multifd2", "x", "multifd", "multifd2-zstd", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
