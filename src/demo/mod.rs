//! `dwcp demo`: two daemons on loopback, a region of live memory with a running writer, moved from
//! one to the other and compared page by page.
//!
//! The demo acts as a VMM would. The main thread makes the keys, starts the daemons as child
//! processes and then watches them and the signals, in a small runtime; a second thread is the
//! guest's owner: it fills the memory, runs the writer, drives the rounds and compares. Whatever
//! ends the run, the daemons are killed and reaped and the folder of the run is removed.
//!
//! | file | what it owns |
//! |---|---|
//! | [`options`] | the flags |
//! | [`generator`], [`rng`] | what the memory holds, and its measured entropy |
//! | [`writer`] | how the memory changes |
//! | [`scratch`], [`credentials`], [`daemons`] | folder, keys, processes |
//! | [`remote`], [`drive`], [`forecast`] | the calls, the rounds, when to stop the writer |
//! | [`progress`], [`report`], [`error`] | what people and scripts see |

mod credentials;
mod daemons;
mod drive;
mod error;
mod forecast;
mod generator;
mod options;
mod progress;
mod remote;
mod report;
mod rng;
mod scratch;
mod writer;

use credentials::Credentials;
use daemons::{Daemon, Endpoint, Role};
use drive::Drive;
use error::DemoError;
use options::Options;
use report::Report;
use scratch::Scratch;
use std::error::Error as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// What the two daemons take beside the regions, as measured at the defaults and rounded up.
const DAEMONS_BYTES: u64 = 1 << 30;
/// A daemon that fails a call may be about to end: its end is looked for so long, as it says more.
const END_WITHIN: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  dwcp demo                                  1 GiB with a writer of 20000 pages/s
  dwcp demo --size 256MiB --dirty-rate 0     an idle guest
  dwcp demo --json --seed 7                  one JSON object for a script
  dwcp demo --coding passthrough --no-baseline   the link alone

Exit code 0 says that every page was compared at the sink, byte for byte, after the writer's
last write. 1: it failed. 2: a wrong flag. 3: this machine lacks something. 130: interrupted.";

/// The subcommand's flags.
pub(crate) fn command() -> clap::Command {
    clap::Command::new("demo")
        .about("See it work: two daemons on this machine move live memory and prove it")
        .args(Options::flags())
        .after_help(EXAMPLES)
}

/// Runs the demo and prints what came of it.
pub(crate) fn run(matches: &clap::ArgMatches) -> ExitCode {
    let options = Options::read(matches);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(demo(&options)),
        Err(source) => Err(DemoError::Machine { what: "event loop", source }),
    };
    match result {
        Ok(report) => {
            let verified = report.verified;
            let shown = if options.json { print_json(&report) } else { print(&report.table()) };
            ExitCode::from(u8::from(!(verified && shown)))
        }
        Err(error) => {
            eprintln!("dwcp demo: {}", chain(&error));
            if options.json {
                print_json(&serde_json::json!({"verified": false, "error": chain(&error)}));
            }
            ExitCode::from(error.code())
        }
    }
}

/// The whole run, on the main thread.
async fn demo(options: &Options) -> Result<Report, DemoError> {
    check_memory(options)?;
    let mut signals = Signals::new()?;
    if let Some(folder) = &options.keep_logs {
        let made = std::fs::create_dir_all(folder);
        made.map_err(|source| DemoError::File { path: folder.clone(), source })?;
    }
    // Dropped in reverse: first the daemons end, then their folder goes.
    let scratch = Scratch::create().map_err(DemoError::Scratch)?;
    let credentials = Credentials::create(scratch.path().join("pki")).map_err(DemoError::Pki)?;
    let (mut source, mut sink) = tokio::select! {
        started = start_both(scratch.path(), &credentials, options) => started?,
        () = signals.next() => return Err(DemoError::Interrupted),
    };

    let cancel = Arc::new(AtomicBool::new(false));
    let endpoints = (source.endpoint().clone(), sink.endpoint().clone());
    let (thread, result) = start_drive(options.clone(), Arc::clone(&cancel), endpoints)?;
    let outcome = tokio::select! {
        result = result => Some(result),
        error = source.ended() => Some(Ok(Err(error))),
        error = sink.ended() => Some(Ok(Err(error))),
        () = signals.next() => None,
    };
    let outcome = match outcome {
        Some(Ok(Err(error @ DemoError::Call { .. }))) => {
            Err(explained(error, &mut source, &mut sink).await)
        }
        Some(Ok(outcome)) => outcome,
        // The thread ended without a word: it panicked, and joining it below says so.
        Some(Err(_)) | None => Err(DemoError::Interrupted),
    };
    // The thread may wait for an answer of a daemon; their end ends that wait.
    cancel.store(true, Ordering::Relaxed);
    drop((source, sink));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    outcome
}

/// Starts the sink first, so that the source never finds nobody.
async fn start_both(
    folder: &Path,
    credentials: &Credentials,
    options: &Options,
) -> Result<(Daemon, Daemon), DemoError> {
    let start = async |role: Role| {
        Daemon::start(role, &folder.join(role.name()), &credentials.of(role), options).await
    };
    let sink = start(Role::Sink).await?;
    Ok((start(Role::Source).await?, sink))
}

type Driven = (JoinHandle<()>, oneshot::Receiver<Result<Report, DemoError>>);

/// Runs the pre-copy loop on its own thread.
fn start_drive(
    options: Options,
    cancel: Arc<AtomicBool>,
    (source, sink): (Endpoint, Endpoint),
) -> Result<Driven, DemoError> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("demo-drive".to_owned())
        .spawn(move || {
            let report = Drive::new(&options, &cancel, source, sink).and_then(Drive::run);
            // Nobody listens any more after a signal: then the result is of no use.
            drop(done.send(report));
        })
        .map_err(|source| DemoError::Machine { what: "thread", source })?;
    Ok((thread, result))
}

/// The end of a daemon, if that is what lies behind a failed call.
async fn explained(error: DemoError, source: &mut Daemon, sink: &mut Daemon) -> DemoError {
    tokio::select! {
        ended = source.ended() => ended,
        ended = sink.ended() => ended,
        () = tokio::time::sleep(END_WITHIN) => error,
    }
}

/// Both regions and both daemons must fit in what is available now.
fn check_memory(options: &Options) -> Result<(), DemoError> {
    let needed_bytes = 2 * options.size_bytes + DAEMONS_BYTES;
    match dwcp_ffi::sys::available_memory_bytes() {
        Some(available_bytes) if available_bytes < needed_bytes => {
            Err(DemoError::Memory { needed_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// What asks the demo to end.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, DemoError> {
        let catch = |kind| {
            signal(kind).map_err(|source| DemoError::Machine { what: "signal handler", source })
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// Returns at the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Prints one object; false when nobody takes it.
fn print_json(value: &impl serde::Serialize) -> bool {
    match serde_json::to_string(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => {
            eprintln!("dwcp demo: the report can't be written as JSON: {error}");
            false
        }
    }
}

fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("dwcp demo: standard output can't be written: {error}");
            false
        }
    }
}

/// The error with those behind it that its text doesn't have already.
fn chain(error: &DemoError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn an_error_s_causes_are_told_once() {
        let source = std::io::Error::other("no room");
        let error = DemoError::Machine { what: "thread", source };
        assert_eq!(chain(&error), "this machine gives no thread: no room");
    }

    #[test]
    fn memory_that_is_not_there_is_refused_before_anything_starts() {
        let matches = command().try_get_matches_from(["demo", "--size", "256GiB"]).unwrap();
        let options = Options { size_bytes: 1 << 60, ..Options::read(&matches) };
        let refused = check_memory(&options);
        assert!(matches!(refused, Err(DemoError::Memory { .. })), "{refused:?}");
    }
}
