//! What a carrier says: lines for people on standard error, JSON lines on standard output.
//!
//! Control thread. A reader that left is no reason to stop carrying, so that errors of writing are
//! dropped.

use dwcp_control::{CarryConfig, CarryCounts, CarryEvent, CarryReport, CarrySide};
use std::io::Write as _;

/// Prints events.
#[derive(Debug)]
pub(super) struct Progress {
    json: bool,
    /// Where migrations go.
    target: String,
    is_source: bool,
}

impl Progress {
    /// A printer for one carrier.
    pub(super) fn new(json: bool, config: &CarryConfig) -> Self {
        let (target, is_source) = match &config.side {
            CarrySide::Source { to, .. } => (to.to_string(), true),
            CarrySide::Sink { connect_unix, .. } => (connect_unix.display().to_string(), false),
        };
        Self { json, target, is_source }
    }

    fn line(&self, event: &CarryEvent) -> String {
        match event {
            CarryEvent::Ready { listen_unix: Some(path), .. } => {
                format!("ready: migrations to unix:{} go to {}", path.display(), self.target)
            }
            CarryEvent::Ready { listen, .. } => {
                let listen = listen.map(|address| address.to_string()).unwrap_or_default();
                format!("ready: migrations that come to {listen} go to unix:{}", self.target)
            }
            CarryEvent::Linked { peer } => format!("linked with {peer}"),
            CarryEvent::Opened { session, peer } if self.is_source => {
                format!("{}: opened, to {peer}", short(session))
            }
            CarryEvent::Opened { session, peer } => {
                format!("{}: opened, from {peer}", short(session))
            }
            CarryEvent::Channel { session, channel } => {
                format!("{}: the VMM opened connection {}", short(session), channel + 1)
            }
            CarryEvent::Ram { session, ram_bytes, table_bytes } => {
                let beyond = match ram_bytes.checked_sub(*table_bytes) {
                    Some(1..) => format!(
                        "; the tables have room for {}, the rest is coded without bases (raise \
                         --memory)",
                        mebibytes(*table_bytes)
                    ),
                    _ => String::new(),
                };
                format!("{}: guest memory {}{beyond}", short(session), mebibytes(*ram_bytes))
            }
            CarryEvent::Opaque { session, reason } => {
                format!("{}: carried as it is from here on ({reason})", short(session))
            }
            CarryEvent::Parked { session, peer, reason, window_s } => format!(
                "{}: parked: the link with {peer} is lost ({reason}); the VMM's connections stay \
                 open and the peer is waited for, up to {window_s} s",
                short(session)
            ),
            CarryEvent::Resumed { session, peer, seconds } => {
                format!("{}: resumed, with {peer}, after {seconds:.1} s", short(session))
            }
            CarryEvent::Progress { session, counts } => {
                format!("{}: {}", short(session), self.counts(counts))
            }
            CarryEvent::Ended { session, counts, failure: None } => format!(
                "{}: ended: every byte arrived and both VMMs closed; if the source's migration \
                 completed, run the guest at the sink, else it runs on at the source; {}",
                short(session),
                self.counts(counts)
            ),
            CarryEvent::Ended { session, counts, failure: Some(why) } => format!(
                "{}: FAILED ({}): {}: {}; {}",
                short(session),
                why.code,
                why.message,
                why.cure,
                self.counts(counts)
            ),
        }
    }

    fn counts(&self, counts: &CarryCounts) -> String {
        let verb = if self.is_source { "in" } else { "out" };
        let ratio = float(counts.vmm_bytes) / float(counts.coded_bytes.max(1));
        let ratio = if counts.vmm_bytes == 0 { 1.0 } else { ratio };
        let level = match counts.zstd_level {
            0 => String::new(),
            level => format!(" at zstd-{level}"),
        };
        format!(
            "{} {verb}, {} coded (ratio {ratio:.2}{level}), {} replies, {} connections, {:.1} s",
            mebibytes(counts.vmm_bytes),
            mebibytes(counts.coded_bytes),
            kibibytes(counts.reply_bytes),
            counts.channels,
            counts.seconds
        )
    }
}

impl CarryReport for Progress {
    fn report(&mut self, event: &CarryEvent) {
        let _ = writeln!(std::io::stderr(), "dwcp: {}", self.line(event));
        if self.json
            && let Ok(mut text) = serde_json::to_string(event)
        {
            text.push('\n');
            let mut out = std::io::stdout();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}

/// As much of a session's name as people need.
fn short(session: &str) -> &str {
    session.get(..8).unwrap_or(session)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", float(bytes) / f64::from(1 << 20))
}

fn kibibytes(bytes: u64) -> String {
    format!("{:.1} KiB", float(bytes) / 1024.0)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_control::CarryFailure;

    #[test]
    fn a_failure_is_one_line_with_its_cure() {
        let side = CarrySide::Sink { connect_unix: "/run/in".into(), accept_from: Vec::new() };
        let printer = Progress::new(false, &CarryConfig { side, passthrough: false });
        let failure = CarryFailure {
            code: "vmm_unreachable".to_owned(),
            message: "no VMM takes the migration on /run/in".to_owned(),
            cure: "start it".to_owned(),
        };
        let counts = CarryCounts { vmm_bytes: 3 << 20, coded_bytes: 1 << 20, ..Default::default() };
        let session = "0123456789abcdef".to_owned();
        let line = printer.line(&CarryEvent::Ended { session, counts, failure: Some(failure) });
        let expected = "01234567: FAILED (vmm_unreachable): no VMM takes the migration on /run/in: \
                        start it; 3.0 MiB out, 1.0 MiB coded (ratio 3.00)";
        assert!(line.starts_with(expected), "{line}");
    }

    #[test]
    fn memory_beyond_the_tables_is_said() {
        let side = CarrySide::Sink { connect_unix: "/run/in".into(), accept_from: Vec::new() };
        let printer = Progress::new(false, &CarryConfig { side, passthrough: false });
        let ram = |table_bytes| {
            let session = "0123456789abcdef".to_owned();
            printer.line(&CarryEvent::Ram { session, ram_bytes: 2 << 20, table_bytes })
        };
        assert_eq!(ram(2 << 20), "01234567: guest memory 2.0 MiB");
        assert!(ram(1 << 20).contains("room for 1.0 MiB"), "{}", ram(1 << 20));
    }
}
