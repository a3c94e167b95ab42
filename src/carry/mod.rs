//! `dwcp carry`: carries migration streams for a manager that drives both VMMs itself.
//!
//! A process of its own, without a daemon: the main thread checks everything, starts the shards,
//! and becomes the control thread, as in [`crate::daemon`]. It has no control socket and no
//! journal; whose guest runs is decided by whoever drives the VMMs.

mod progress;

use crate::budget::{Budget, Machine};
use crate::commands::json_flag;
use crate::config::{self, DaemonConfig};
use crate::daemon::{self, DaemonError, LiveTable};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings;
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use dwcp_control::api::PeerAddress;
use dwcp_control::{CarryConfig, CarrySide};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::poll::waker;
use dwcp_ffi::uring::Probe;
use progress::Progress;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  dwcp carry --listen 0.0.0.0:7411 --connect-unix /run/vm1-in.sock --pki pki/b    sink host
  dwcp carry --listen-unix /run/vm1-out.sock --to hostb:7411 --pki pki/a          source host
Then start the destination VMM on /run/vm1-in.sock (QEMU: -incoming unix:/run/vm1-in.sock), and
have the source VMM migrate to /run/vm1-out.sock (QMP: migrate, uri unix:/run/vm1-out.sock).
One migration after the other; Ctrl-C closes both VMMs' connections and ends with code 130.";

/// The settings of the daemon that a carrier takes too.
const SETTINGS_TAKEN: &[&str] = &[
    "listen",
    "pki",
    "insecure-plaintext",
    "metrics",
    "cores",
    "poll",
    "spin",
    "memory",
    "arena",
    "lock-memory",
    "base-budget",
    "streams",
    "congestion",
    "window",
    "zero-copy",
    "keepalive",
    "dead-after",
    "resume-window",
    "accept-timeout",
    "zstd-level",
    "log",
];

/// The subcommand's part of the command line.
pub(crate) fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("SOCK");
        arg.value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("carry")
        .about("Carry migrations between VMMs that a manager drives; needs no daemon")
        .after_help(EXAMPLES)
        .arg(
            path(
                "listen-unix",
                "Source: Unix socket that the source VMM migrates to. Made with mode 0600; a live \
                 process's socket is never taken over.",
            )
            .requires("to")
            .conflicts_with_all(["connect-unix", "listen"]),
        )
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("HOST:PORT")
                .requires("listen-unix")
                .conflicts_with("connect-unix")
                .value_parser(peer)
                .help(
                    "Source: the carrier at the sink. NAME@HOST:PORT also demands that its \
                     certificate names NAME.",
                ),
        )
        .arg(
            path("connect-unix", "Sink: Unix socket on which the destination VMM listens.")
                .requires("listen"),
        )
        .arg(
            Arg::new("accept-from")
                .long("accept-from")
                .value_name("HOST,..")
                .value_delimiter(',')
                .requires("connect-unix")
                .help(
                    "Sink: hosts that may send, by the names in their certificates. [default: \
                     every host that the cluster's CA certified]",
                ),
        )
        .arg(
            Arg::new("mode")
                .long("mode")
                .value_name("MODE")
                .value_parser(["full", "passthrough"])
                .default_value("full")
                .requires("listen-unix")
                .help(
                    "Source: full codes guest pages where the stream can be read, passthrough \
                     carries every byte as it is.",
                ),
        )
        .arg(json_flag().help("Also print each event as one JSON object per line on stdout"))
        .args(settings::flags_of(SETTINGS_TAKEN))
        .mut_arg("listen", own_listen)
        .mut_arg("resume-window", own_resume_window)
        .group(ArgGroup::new("side").args(["listen-unix", "connect-unix"]).required(true))
}

fn own_listen(arg: Arg) -> Arg {
    arg.value_name("HOST:PORT").requires("connect-unix").help(
        "Sink: address on which carriers at the source reach this one; port 0 takes a free one.",
    )
}

/// Shorter than a daemon's, since a carrier does not know whether its guest stands still.
fn own_resume_window(arg: Arg) -> Arg {
    arg.default_value("30s").help(
        "How long a migration waits for a lost link to come back, from when the peer was heard \
         last; the guest may stand still meanwhile. Then both VMMs' connections are closed. 0s: \
         not at all. [0us to 1440min]",
    )
}

fn peer(text: &str) -> Result<PeerAddress, &'static str> {
    PeerAddress::try_from(text.to_owned())
}

/// Carries until a signal or a fault ends it.
pub(crate) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let (mut config, values) = config::load_of(matches, SETTINGS_TAKEN)?;
    if !values.is_given("log") {
        // The events say what people want to know.
        config.log = "warn";
    }
    let carry = carry_config(matches);
    let budget = Budget::compute(&config, &Machine::look())?;
    let (probe, log) = daemon::prepare(&config, &budget)?;
    let (wake_control, woken) = waker().map_err(DaemonError::Waker)?;
    let pages = daemon::page_pool(&budget)?;
    let (ports, threads) = daemon::start_shards(&config, &budget, &pages, &wake_control)?;
    let control = control_config(&config, &budget, &pages, &probe, &carry);
    let report = Progress::new(matches.get_flag("json"), &carry);
    let settings = LiveTable::new(values, &config, budget, log);
    let (report, settings) = (Box::new(report), Box::new(settings));
    dwcp_control::carry(control, carry, report, settings, ports, woken)
        .map_err(|source| DaemonError::Control { source })?;
    daemon::join(threads);
    eprintln!("dwcp: interrupted: every connection to a VMM is closed, no guest was committed");
    Ok(Exit::Interrupted)
}

fn carry_config(matches: &ArgMatches) -> CarryConfig {
    let path = |name| matches.get_one::<PathBuf>(name).cloned();
    let to = matches.get_one::<PeerAddress>("to").cloned();
    let side = match (path("listen-unix"), to, path("connect-unix")) {
        (Some(listen_unix), Some(to), _) => CarrySide::Source { listen_unix, to },
        (_, _, Some(connect_unix)) => {
            let names = matches.get_many::<String>("accept-from");
            let accept_from = names.map(|names| names.cloned().collect()).unwrap_or_default();
            CarrySide::Sink { connect_unix, accept_from }
        }
        _ => unreachable!("clap demands one of the two sides, complete"),
    };
    let mode = matches.get_one::<String>("mode").map(String::as_str);
    CarryConfig { side, passthrough: mode == Some("passthrough") }
}

fn control_config(
    config: &DaemonConfig,
    budget: &Budget,
    pages: &PagePool,
    probe: &Probe,
    carry: &CarryConfig,
) -> dwcp_control::ControlConfig {
    let mut control = daemon::control_config(config, budget, pages, probe);
    control.socket = None;
    control.state_dir = None;
    if matches!(carry.side, CarrySide::Source { .. }) {
        control.listen = None;
    }
    control
}
