//! `cargo xtask peers`: the bench of peers for a person, with JSON lines and a table.
//!
//! Runs on the main thread. Fails when a migration failed or a guest was hurt; a migration that did
//! not converge is a result.

use crate::error::TaskError;
use dwcp_tools::lab::{Guest, LabError, LinkSpec, end_waits_on_signals};
use dwcp_tools::peers::{Bench, Carrier, Mode, Mover, Row, table};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HELP: &str = "\
Usage: cargo xtask peers [OPTION]..

Moves one guest to and fro over one emulated link, once per mode and round, all in one run.
  --guest GUEST      default dirty:400,2000,3        --ram MIB    its memory
  --modes MODE,..    default tcp,multifd4,multifd4-zstd1,multifd4-zstd3,xbzrle
  --link WORD,..     default rate=1g,delay=20ms      --congestion NAME
  --repeat N         rounds, default 1               --limit S    seconds, default 150
  --settle S         seconds of rest before each migration, default 3
  --json FILE        appends a JSON line per migration
  --relay NAME SOURCE_COMMAND SINK_COMMAND
                     a pair of commands in the place of QEMU's network path: the source QEMU
                     connects to the Unix socket {sock} that SOURCE_COMMAND listens on,
                     SINK_COMMAND to the {sock} that the sink QEMU listens on; {peer} is the other
                     node's address, {port} a fresh TCP port, {dir} a folder. The sink starts with
                     -S, return-path is on, and `cont` comes once the source has completed
  --mover NAME PREPARE_COMMAND COMMAND
                     a command that does a whole migration by itself, told by the variables
                     DWCP_LAB_{SOURCE,SINK}_{QMP,NETNS,ADDRESS}, DWCP_LAB_PORT and DWCP_LAB_FOLDER;
                     exit code 0: the guest runs at the sink, which was started with -S. Before the
                     clock starts, PREPARE_COMMAND (may be empty) runs to its end; what it leaves
                     in the background ends with the migration

Columns: total s until the source is done and the guest runs at the sink; downtime is QEMU's word;
blackout is STOP at the source to RESUME at the sink by QEMU's stamps, on one clock; wire MB are the
IP bytes that left the source's node, sent again ones included; helper CPU is that of relays and
movers at both ends; guest: two checks of all memory after arrival. Compare within one run only.
Modes, words joined by `+`:";

/// Words of the command line, not yet checked against each other.
struct Options {
    guest: String,
    ram_mib: Option<u32>,
    modes: String,
    link: String,
    congestion: Option<String>,
    repeat: u32,
    limit_s: u32,
    settle_s: u32,
    json: Option<PathBuf>,
    relays: Vec<Carrier>,
    movers: Vec<Mover>,
}

/// Runs the bench.
pub(crate) fn run(words: &[String]) -> Result<(), TaskError> {
    if words.iter().any(|word| word == "--help") {
        println!("{HELP}\n{}\nGuests:\n{}\nLinks:\n{}", Mode::HELP, Guest::HELP, LinkSpec::HELP);
        return Ok(());
    }
    let options = parse(words)?;
    end_waits_on_signals();
    let bench = bench(&options)?;
    let mut file = options.json.as_deref().map(open).transpose()?;
    let mut failed = None;
    let rows = bench.run(|row| {
        println!("{}", row.json());
        let written = file.as_mut().map_or(Ok(()), |file| writeln!(file, "{}", row.json()));
        failed = failed.take().or(written.err());
    })?;
    if let (Some(source), Some(path)) = (failed, options.json) {
        return Err(TaskError::File { path, source });
    }
    println!("\n{} over {}\n\n{}", bench.guest, bench.link, table(&rows));
    match rows.iter().filter(|row| Row::is_failure(row)).count() {
        0 => Ok(()),
        failed => Err(TaskError::Migrations { failed, run: rows.len() }),
    }
}

fn open(path: &Path) -> Result<File, TaskError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|source| TaskError::File { path: path.to_owned(), source })
}

fn bench(options: &Options) -> Result<Bench, LabError> {
    let lab = dwcp_tools::lab::Lab::find()?;
    let guest = Guest::new(&lab, &options.guest)?;
    let ram_mib = options.ram_mib.unwrap_or(guest.ram_mib());
    let mode = |text| Mode::parse(text, &options.relays, &options.movers, ram_mib);
    Ok(Bench {
        guest: options.guest.clone(),
        ram_mib: Some(ram_mib),
        modes: options.modes.split(',').map(mode).collect::<Result<_, _>>()?,
        link: options.link.clone(),
        congestion: options.congestion.clone(),
        repeat: options.repeat,
        limit: Duration::from_secs(options.limit_s.into()),
        settle: Duration::from_secs(options.settle_s.into()),
    })
}

fn parse(words: &[String]) -> Result<Options, LabError> {
    let mut options = Options {
        guest: "dirty:400,2000,3".to_owned(),
        ram_mib: None,
        modes: "tcp,multifd4,multifd4-zstd1,multifd4-zstd3,xbzrle".to_owned(),
        link: "rate=1g,delay=20ms".to_owned(),
        congestion: None,
        repeat: 1,
        limit_s: 150,
        settle_s: 3,
        json: None,
        relays: Vec::new(),
        movers: Vec::new(),
    };
    let mut words = words.iter();
    while let Some(flag) = words.next() {
        let mut value = || words.next().cloned().ok_or_else(|| bad(flag, "needs a value"));
        match flag.as_str() {
            "--guest" => options.guest = value()?,
            "--ram" => options.ram_mib = Some(number(&value()?)?),
            "--modes" => options.modes = value()?,
            "--link" => options.link = value()?,
            "--congestion" => options.congestion = Some(value()?),
            "--repeat" => options.repeat = number(&value()?)?,
            "--limit" => options.limit_s = number(&value()?)?,
            "--settle" => options.settle_s = number(&value()?)?,
            "--json" => options.json = Some(value()?.into()),
            "--relay" => {
                let (name, source, sink) = (value()?, value()?, value()?);
                options.relays.push(Carrier { name, source, sink });
            }
            "--mover" => {
                let (name, prepare, command) = (value()?, value()?, value()?);
                options.movers.push(Mover { name, prepare, command });
            }
            _ => return Err(bad(flag, "is not an option; see `cargo xtask peers --help`")),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u32, LabError> {
    text.parse().map_err(|_| bad(text, "is no whole number"))
}

fn bad(word: &str, why: &'static str) -> LabError {
    LabError::Word { word: word.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, LabError> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_option_is_understood() {
        let options = parsed(
            "--guest idle --ram 128 --modes tcp,r --link rate=1m --congestion bbr --repeat 3 \
             --limit 9 --settle 1 --json x --relay r a b --mover m p c",
        )
        .unwrap();
        assert_eq!((options.repeat, options.limit_s, options.settle_s), (3, 9, 1));
        assert_eq!(options.relays[0].sink, "b");
        assert_eq!(options.movers[0].command, "c");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in ["x", "--repeat", "--repeat x", "--relay a b", "--mover a b"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
