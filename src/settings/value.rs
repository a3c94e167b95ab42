//! The types of settings: how a text becomes a value, which range holds, how it is shown.
//!
//! Pure; called by the configuration on the main thread at start and by the manual's table.
//! A [`Value`] that exists has been parsed and lies in its kind's range.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
/// One gibibyte.
pub(crate) const GIB: u64 = 1 << 30;

/// What values a setting takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A size with a unit, such as `512MiB`. With `auto` the word "auto" is allowed too.
    Bytes { min: u64, max: u64, auto: bool },
    /// A size with a unit, or a share of something such as `25%`.
    Share { max: u64 },
    /// A plain number. With `auto` the word "auto" is allowed too.
    Count { min: u64, max: u64, auto: bool },
    /// A time with a unit, such as `500ms`.
    Time { min: Duration, max: Duration },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Processor cores, such as `2,3` or `2-5`.
    Cores { max: usize },
    /// A file or folder.
    Path,
    /// An IP address and port, such as `0.0.0.0:7411`.
    Address,
    /// On or off; as a flag it takes no value.
    Switch,
}

/// A size, or a share of something that is known only later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// So many hundredths.
    Percent(u8),
    /// So many bytes.
    Bytes(u64),
}

/// A setting's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Not given, and without a default.
    Unset,
    /// Worked out at start from what the machine allows.
    Auto,
    /// A size.
    Bytes(u64),
    /// A size or a share.
    Share(Share),
    /// A number.
    Count(u64),
    /// A time.
    Time(Duration),
    /// One of the allowed words.
    Choice(&'static str),
    /// Distinct core numbers, in the order given.
    Cores(Vec<usize>),
    /// A file or folder.
    Path(PathBuf),
    /// An address to listen on.
    Address(SocketAddr),
    /// On or off.
    Switch(bool),
}

/// Why a text is no value of its kind, with the cure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// The number can't be read.
    #[error("'{text}' is no {what}: give {example}")]
    Malformed { text: String, what: &'static str, example: &'static str },
    /// The value lies outside the range.
    #[error("{text} is out of range: give {range}")]
    OutOfRange { text: String, range: String },
    /// The word is none of the choices.
    #[error("'{text}' is not one of {choices}{hint}")]
    NotAChoice { text: String, choices: String, hint: String },
    /// A core is named more than once.
    #[error("core {core} is named twice: each shard needs a core of its own")]
    CoreTwice { core: usize },
    /// Nothing was given.
    #[error("the value is empty: give {example}")]
    Empty { example: &'static str },
    /// The file's value has the wrong type.
    #[error("{found} is no value for this setting: give {example}")]
    WrongType { found: &'static str, example: &'static str },
}

impl Kind {
    /// An example of a good value, for messages.
    pub(crate) const fn example(&self) -> &'static str {
        match self {
            Self::Bytes { auto: true, .. } => "a size such as 64MiB, or auto",
            Self::Bytes { .. } => "a size such as 512MiB or 2GiB",
            Self::Share { .. } => "a share such as 25% or a size such as 256MiB",
            Self::Count { auto: true, .. } => "a whole number, or auto",
            Self::Count { .. } => "a whole number",
            Self::Time { .. } => "a time such as 500ms or 10s",
            Self::Choice(_) => "one of the words in --help",
            Self::Cores { .. } => "core numbers such as 2,3 or 2-5",
            Self::Path => "a path",
            Self::Address => "an IP address and port such as 0.0.0.0:7411",
            Self::Switch => "true or false",
        }
    }

    /// What stands for the value in `--help`.
    pub(crate) const fn placeholder(&self) -> &'static str {
        match self {
            Self::Bytes { .. } => "SIZE",
            Self::Share { .. } => "SHARE",
            Self::Count { .. } => "N",
            Self::Time { .. } => "TIME",
            Self::Choice(_) => "WORD",
            Self::Cores { .. } => "CORES",
            Self::Path => "PATH",
            Self::Address => "ADDR:PORT",
            Self::Switch => "",
        }
    }

    /// The unit of the bare number, for tables; empty where there is none.
    pub(crate) const fn unit(&self) -> &'static str {
        match self {
            Self::Bytes { .. } => "bytes",
            Self::Share { .. } => "percent or bytes",
            Self::Count { .. } => "count",
            Self::Time { .. } => "time",
            Self::Cores { .. } => "core numbers",
            Self::Choice(_) | Self::Path | Self::Address | Self::Switch => "",
        }
    }

    /// The allowed values, for people.
    pub(crate) fn range(&self) -> String {
        match self {
            Self::Bytes { min, max, auto } => {
                format!("{} to {}{}", show_bytes(*min), show_bytes(*max), or_auto(*auto))
            }
            Self::Share { max } => format!("1% to 100%, or up to {}", show_bytes(*max)),
            Self::Count { min, max, auto } => format!("{min} to {max}{}", or_auto(*auto)),
            Self::Time { min, max } => format!("{} to {}", show_time(*min), show_time(*max)),
            Self::Choice(words) => words.join(", "),
            Self::Cores { max } => format!("1 to {max} cores, each once"),
            Self::Path => "a path".to_owned(),
            Self::Address => "an IP address and port".to_owned(),
            Self::Switch => "on or off".to_owned(),
        }
    }

    /// Reads a value.
    pub(crate) fn parse(&self, text: &str) -> Result<Value, ValueError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ValueError::Empty { example: self.example() });
        }
        match self {
            Self::Bytes { auto: true, .. } | Self::Count { auto: true, .. } if text == "auto" => {
                Ok(Value::Auto)
            }
            Self::Bytes { min, max, .. } => {
                let bytes = parse_bytes(text).ok_or_else(|| self.malformed(text, "size"))?;
                self.check(text, (*min..=*max).contains(&bytes))?;
                Ok(Value::Bytes(bytes))
            }
            Self::Share { max } => self.parse_share(text, *max),
            Self::Count { min, max, .. } => {
                let count = text.parse().map_err(|_| self.malformed(text, "whole number"))?;
                self.check(text, (*min..=*max).contains(&count))?;
                Ok(Value::Count(count))
            }
            Self::Time { min, max } => {
                let time = parse_time(text).ok_or_else(|| self.malformed(text, "time"))?;
                self.check(text, (*min..=*max).contains(&time))?;
                Ok(Value::Time(time))
            }
            Self::Choice(words) => words
                .iter()
                .find(|word| **word == text)
                .map(|word| Value::Choice(word))
                .ok_or_else(|| not_a_choice(text, words)),
            Self::Cores { max } => self.parse_cores(text, *max),
            Self::Path => Ok(Value::Path(PathBuf::from(text))),
            Self::Address => text
                .parse()
                .map(Value::Address)
                .map_err(|_| self.malformed(text, "IP address with a port")),
            Self::Switch => match text {
                "true" | "on" | "yes" => Ok(Value::Switch(true)),
                "false" | "off" | "no" => Ok(Value::Switch(false)),
                _ => Err(self.malformed(text, "switch")),
            },
        }
    }

    fn parse_share(&self, text: &str, max: u64) -> Result<Value, ValueError> {
        let share = match text.strip_suffix('%') {
            Some(number) => {
                let percent = number.trim().parse().map_err(|_| self.malformed(text, "share"))?;
                self.check(text, (1..=100).contains(&percent))?;
                Share::Percent(percent)
            }
            None => {
                let bytes = parse_bytes(text).ok_or_else(|| self.malformed(text, "share"))?;
                self.check(text, bytes <= max)?;
                Share::Bytes(bytes)
            }
        };
        Ok(Value::Share(share))
    }

    fn parse_cores(&self, text: &str, max: usize) -> Result<Value, ValueError> {
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let parse = |number: &str| {
                let core = number.trim().parse::<u16>();
                core.map(usize::from).map_err(|_| self.malformed(text, "list of cores"))
            };
            let (first, last) = (parse(first)?, parse(last)?);
            self.check(text, first <= last)?;
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(ValueError::CoreTwice { core });
                }
                self.check(text, cores.len() < max)?;
                cores.push(core);
            }
        }
        Ok(Value::Cores(cores))
    }

    fn malformed(&self, text: &str, what: &'static str) -> ValueError {
        ValueError::Malformed { text: text.to_owned(), what, example: self.example() }
    }

    fn check(&self, text: &str, in_range: bool) -> Result<(), ValueError> {
        if in_range {
            return Ok(());
        }
        Err(ValueError::OutOfRange { text: text.to_owned(), range: self.range() })
    }
}

const fn or_auto(auto: bool) -> &'static str {
    if auto { ", or auto" } else { "" }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => f.write_str(&show_bytes(*bytes)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => f.write_str(&show_bytes(*bytes)),
            Self::Share(share) => share.fmt(f),
            Self::Count(count) => count.fmt(f),
            Self::Time(time) => f.write_str(&show_time(*time)),
            Self::Choice(word) => f.write_str(word),
            Self::Cores(cores) => {
                let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
                f.write_str(&cores.join(","))
            }
            Self::Path(path) => path.display().fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Switch(on) => f.write_str(if *on { "on" } else { "off" }),
        }
    }
}

fn not_a_choice(text: &str, words: &[&'static str]) -> ValueError {
    let hint = nearest(text, words.iter().copied())
        .map_or_else(String::new, |word| format!(": did you mean '{word}'?"));
    ValueError::NotAChoice { text: text.to_owned(), choices: words.join(", "), hint }
}

/// A size as people write it: the largest binary unit that divides it.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")];
    for (size, unit) in units {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

/// A time as people write it: the largest unit that divides it.
pub(crate) fn show_time(time: Duration) -> String {
    let micros = time.as_micros();
    let units = [(60_000_000, "min"), (1_000_000, "s"), (1_000, "ms"), (1, "us")];
    for (size, unit) in units {
        if micros >= size && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    format!("{micros}us")
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let size = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => MIB,
        "gib" | "g" => GIB,
        "tib" | "t" => 1 << 40,
        "" if number == 0 => 1,
        _ => return None,
    };
    number.checked_mul(size)
}

/// Reads a time such as `500ms`.
pub(crate) fn parse_time(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let micros = match unit.to_ascii_lowercase().as_str() {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "min" | "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

/// Reads a rate such as `900mbit` (per second) as bytes per second.
pub(crate) fn parse_rate(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text.trim())?;
    let bits = match unit.to_ascii_lowercase().trim_end_matches("/s") {
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bits).map(|bits| bits / 8)
}

/// Splits `512MiB` into its number and its unit.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// The known word that differs least from what was written, if it is near enough to be a slip.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let slips_max = (word.len() / 3).max(1);
    known
        .map(|candidate| (slips(word, candidate), candidate))
        .filter(|(slips, _)| *slips <= slips_max)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour
/// to make one word of the other.
fn slips(left: &str, right: &str) -> usize {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Kind = Kind::Bytes { min: MIB, max: GIB, auto: false };
    const CORES: Kind = Kind::Cores { max: 4 };

    #[test]
    fn sizes_take_binary_units_and_keep_their_range() {
        assert_eq!(SIZE.parse("512MiB"), Ok(Value::Bytes(512 * MIB)));
        assert_eq!(SIZE.parse("1g"), Ok(Value::Bytes(GIB)));
        for bad in ["", "MiB", "12", "-1MiB", "1.5GiB", "9999999999999999999TiB", "2XB"] {
            assert!(SIZE.parse(bad).is_err(), "{bad}");
        }
        let error = SIZE.parse("2GiB").unwrap_err();
        assert_eq!(error.to_string(), "2GiB is out of range: give 1MiB to 1GiB");
        assert!(SIZE.parse("auto").is_err());
    }

    #[test]
    fn times_need_a_unit() {
        let kind = Kind::Time { min: Duration::ZERO, max: Duration::from_secs(60) };
        assert_eq!(kind.parse("500ms"), Ok(Value::Time(Duration::from_millis(500))));
        assert_eq!(kind.parse("1min"), Ok(Value::Time(Duration::from_secs(60))));
        assert!(kind.parse("5").is_err());
        assert!(kind.parse("61s").is_err());
    }

    #[test]
    fn shares_are_percent_or_bytes() {
        let kind = Kind::Share { max: GIB };
        assert_eq!(kind.parse("25%"), Ok(Value::Share(Share::Percent(25))));
        assert_eq!(kind.parse("256MiB"), Ok(Value::Share(Share::Bytes(256 * MIB))));
        for bad in ["0%", "101%", "%", "2GiB", "x"] {
            assert!(kind.parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn core_lists_are_distinct_and_bounded() {
        assert_eq!(CORES.parse("2,3"), Ok(Value::Cores(vec![2, 3])));
        assert_eq!(CORES.parse("0-2, 7"), Ok(Value::Cores(vec![0, 1, 2, 7])));
        assert_eq!(CORES.parse("1,1"), Err(ValueError::CoreTwice { core: 1 }));
        for bad in ["3-1", "a", "1,,2", "0-4", "0-65535", "70000"] {
            assert!(CORES.parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_word_names_the_choices_and_the_nearest() {
        let error = Kind::Choice(&["busy", "adaptive", "park"]).parse("adaptiv").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("busy, adaptive, park") && text.ends_with("'adaptive'?"), "{text}");
    }

    #[test]
    fn values_print_as_they_are_read() {
        for (kind, text) in [
            (SIZE, "512MiB"),
            (CORES, "0,1,7"),
            (Kind::Share { max: GIB }, "25%"),
            (Kind::Address, "[::1]:7411"),
            (Kind::Time { min: Duration::ZERO, max: Duration::from_secs(99) }, "1500ms"),
        ] {
            assert_eq!(kind.parse(text).map(|value| value.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_slip_finds_its_word_and_noise_does_not() {
        let known = ["streams", "state", "socket"];
        assert_eq!(nearest("steams", known.into_iter()), Some("streams"));
        assert_eq!(nearest("sokcet", known.into_iter()), Some("socket"));
        assert_eq!(nearest("banana", known.into_iter()), None);
    }
}
