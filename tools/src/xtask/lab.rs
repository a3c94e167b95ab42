//! `cargo xtask lab`: makes the machine ready, or brings up hosts and links for a person to use.
//!
//! Runs on the main thread; a second one reads what is typed. A network lives as long as the
//! program, which takes changes of its links line by line.

use crate::error::TaskError;
use dwcp_tools::lab::{
    LabError, LinkSpec, Net, NetSpec, Schedule, SetupOptions, end_waits_on_signals, setup, wait_for,
};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

const HELP: &str = "\
Usage: cargo xtask lab COMMAND

  setup [--real]     install and build what guests and networks need; --real: real workloads too
  up LINK WORD.. [LINK WORD..] [congestion=NAME] [--schedule FILE]
                     hosts joined by links, until the end of the input or Ctrl-C; a link's name is
                     the letters of its two hosts: `up ab rate=100m delay=50ms`; FILE has changes
                     of links and their times (below)
While it is up it reads lines:
  set ab WORD..      changes both ways of a link     way ba WORD..   changes one way
  stats              what the links have done        quit
Words of a link:";

/// The longest that a person keeps a network up.
const UP_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Runs the command that the words name.
pub(crate) fn run(words: &[String]) -> Result<(), TaskError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["setup"] => setup(SetupOptions { real: false }).map(drop)?,
        ["setup", "--real"] => setup(SetupOptions { real: true }).map(drop)?,
        ["up", ref rest @ .., "--schedule", file] if !rest.is_empty() => {
            up(&parse(rest)?, Some(&read_schedule(file)?))?;
        }
        ["up", ref rest @ ..] if !rest.is_empty() => up(&parse(rest)?, None)?,
        _ => {
            println!("{HELP}\n{}\nA line of a schedule:\n{}", LinkSpec::HELP, Schedule::HELP);
        }
    }
    Ok(())
}

/// Reads names of links, each followed by its words.
pub(crate) fn parse(words: &[&str]) -> Result<NetSpec, LabError> {
    let mut spec = NetSpec::default();
    let mut link: Option<(&str, String)> = None;
    for word in words {
        if let Some(name) = word.strip_prefix("congestion=") {
            spec = spec.with_congestion(name);
        } else if word.contains('=') {
            let Some((_, words)) = &mut link else {
                let why = "stands before the name of a link";
                return Err(LabError::Word { word: (*word).to_owned(), why });
            };
            words.extend([" ", word]);
        } else if let Some((name, words)) = link.replace((word, String::new())) {
            spec = spec.with_link(name, LinkSpec::parse(&words)?)?;
        }
    }
    match link {
        Some((name, words)) => spec.with_link(name, LinkSpec::parse(&words)?),
        None => Ok(spec),
    }
}

fn read_schedule(file: &str) -> Result<Schedule, LabError> {
    let failed = |source| LabError::File { path: file.into(), source };
    Schedule::parse(&std::fs::read_to_string(file).map_err(failed)?)
}

fn up(spec: &NetSpec, schedule: Option<&Schedule>) -> Result<(), LabError> {
    end_waits_on_signals();
    let net = Net::up(spec)?;
    for node in net.nodes() {
        println!("{}  ip netns exec {} COMMAND", node.address(), node.namespace());
    }
    let follow = |schedule: &Schedule| schedule.follow(&net, |step| println!("{step}"));
    let _following = schedule.map(follow).transpose()?;
    let lines = typed();
    let follow = || loop {
        match lines.try_recv() {
            Ok(line) if line.trim() == "quit" => return Ok(Some(())),
            Ok(line) => match obey(&net, &line) {
                Ok(answer) => println!("{answer}"),
                Err(error) => println!("{error}"),
            },
            Err(TryRecvError::Empty) => return Ok(None),
            Err(TryRecvError::Disconnected) => return Ok(Some(())),
        }
    };
    match wait_for("end", UP_MAX, follow) {
        // To be stopped is how a network usually ends.
        Err(LabError::Interrupted) => Ok(()),
        outcome => outcome,
    }
}

/// The lines of the standard input; disconnected at its end.
fn typed() -> Receiver<String> {
    let (lines, received) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    received
}

/// Does what one line says.
fn obey(net: &Net, line: &str) -> Result<String, LabError> {
    let bad = |why| LabError::Word { word: line.to_owned(), why };
    let mut words = line.split_whitespace();
    let (command, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let rest = words.collect::<Vec<_>>().join(" ");
    match command {
        "set" => {
            let link = net.links().find(|(known, _)| *known == name);
            let (_, link) = link.ok_or_else(|| bad("no such link"))?;
            link.set(&rest).map(|()| "done".to_owned())
        }
        "way" => {
            let way = net.try_way(name).ok_or_else(|| bad("no such way"))?;
            way.set(&rest).map(|()| "done".to_owned())
        }
        "stats" => {
            let both = net.links().map(|(name, link)| {
                format!(
                    "{name} there {}\n{name} back {}",
                    link.there().stats(),
                    link.back().stats()
                )
            });
            Ok(both.collect::<Vec<_>>().join("\n"))
        }
        _ => Err(bad("set, way, stats or quit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_take_the_words_behind_them() {
        assert!(parse(&["ab", "rate=1g", "delay=1ms", "ac", "rate=1m", "congestion=bbr"]).is_ok());
        for words in [["rate=1g", "ab"], ["ab", "rate=x"], ["ab", "abc"]] {
            assert!(parse(&words).is_err(), "{words:?}");
        }
    }
}
