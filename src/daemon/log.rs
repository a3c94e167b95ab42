//! The daemon's log: lines on standard error, where systemd and people look for them.
//!
//! Set up once on the main thread; the level may change while the daemon runs.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

/// Changes the level of a running log.
pub(crate) struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Takes one of the words of the setting `log`.
    pub(crate) fn set(&self, word: &str) {
        // The log lives as long as the process; without one there is nothing to change.
        let _ = self.0.reload(filter(word));
    }
}

/// Starts the log.
pub(crate) fn start(word: &str) -> LogLevel {
    let (level, handle) = reload::Layer::new(filter(word));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    // A log that somebody else has started stays.
    let _ = tracing_subscriber::registry().with(level).with(lines).try_init();
    LogLevel(handle)
}

fn filter(word: &str) -> LevelFilter {
    match word {
        "error" => LevelFilter::ERROR,
        "warn" => LevelFilter::WARN,
        "debug" => LevelFilter::DEBUG,
        "trace" => LevelFilter::TRACE,
        _ => LevelFilter::INFO,
    }
}
