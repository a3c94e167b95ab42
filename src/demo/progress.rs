//! The progress bar: shown on a terminal only, so that logs and pipes stay clean.
//!
//! The bar is drawn from the pre-copy loop; a thread of its own asks the source daemon where the
//! round stands, over a second connection, and ends when the value is dropped or the daemon does.

use super::generator::PAGE_BYTES;
use crate::client::{Client, ClientError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How often the daemon is asked.
const STEP: Duration = Duration::from_millis(150);
/// How long one answer may take; a late one costs a picture, no more.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const TEMPLATE: &str = "{msg:<26} [{bar:32}] {bytes}/{total_bytes} {prefix}";

/// The bar.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    watch: Option<JoinHandle<()>>,
}

impl Progress {
    /// A bar on standard error if that is a terminal.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template(TEMPLATE);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        let shown = io::stderr().is_terminal();
        let hidden = ProgressDrawTarget::hidden();
        bar.set_draw_target(if shown { ProgressDrawTarget::stderr() } else { hidden });
        Self { bar, stop: Arc::new(AtomicBool::new(false)), watch: None }
    }

    /// Begins a new step over so many bytes.
    pub(crate) fn step(&self, name: impl Into<String>, bytes: u64) {
        self.bar.set_message(name.into());
        self.bar.set_length(bytes);
        self.bar.set_position(0);
    }

    /// The step has come this far.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// A line for people, above the bar, on standard error also without a terminal.
    pub(crate) fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("dwcp demo: {line}"));
    }

    /// Follows the rounds of a session from now on. Without a terminal this does nothing.
    ///
    /// # Errors
    /// The kernel gave no thread.
    pub(crate) fn follow(&mut self, socket: &Path, session: &str) -> io::Result<()> {
        if self.bar.is_hidden() {
            return Ok(());
        }
        let (socket, session) = (socket.to_owned(), session.to_owned());
        let (bar, stop) = (self.bar.clone(), Arc::clone(&self.stop));
        let watch = thread::Builder::new().name("demo-progress".to_owned()).spawn(move || {
            // The loop that drives the session meets the same fault and reports it.
            let _ended: Result<(), ClientError> = watch_session(&socket, &session, &bar, &stop);
        })?;
        self.watch = Some(watch);
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            watch.thread().unpark();
            // A picture that failed must not fail the demo.
            drop(watch.join());
        }
        self.bar.finish_and_clear();
    }
}

fn watch_session(
    socket: &Path,
    session: &str,
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> Result<(), ClientError> {
    let mut client = Client::connect(socket, ANSWER_WITHIN)?;
    while !stop.load(Ordering::Relaxed) {
        let record = client.call("session.show", &json!({"session": session}))?;
        let counter = |name: &str| {
            record.pointer(&format!("/counters/{name}")).and_then(Value::as_u64).unwrap_or(0)
        };
        let length = bar.length().unwrap_or(0);
        let pending = counter("pending_pages") * PAGE_BYTES as u64;
        bar.set_position(length.saturating_sub(pending));
        bar.set_prefix(format!("{:.1} MiB on the wire", counter("wire_bytes") as f64 / 1048576.0));
        thread::park_timeout(STEP);
    }
    Ok(())
}
