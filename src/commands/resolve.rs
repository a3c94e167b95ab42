//! `dwcp resolve ID --run source|sink`: the operator says who runs a guest that is in doubt.
//!
//! Main thread. The daemons end a doubt by themselves as soon as they can talk again; this is for
//! when they won't. The decision is taken at both ends by two calls, one on each host.

use super::cancel::full_id;
use super::{CANCEL_WITHIN, client_command, connect, show, show_answer};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::{Arg, ArgMatches, Command};
use serde_json::json;

const WARNING: &str = "\
Run it on both hosts with the same word, and only when the link will not heal soon: the daemons
end a doubt by themselves once they can talk. Before '--run source' make sure that the guest does
not run at the sink, and before '--run sink' that it does not run at the source: two running copies
of one guest destroy its disks. A host takes it once it has given its peer up, a sink after
--dead-after of silence; before that it says how long to wait. A guest that is to stay paused is put
there and not started.";

/// The subcommand's part of the command line.
pub(super) fn command() -> Command {
    client_command("resolve", "Decide who runs a guest that is in doubt")
        .arg(Arg::new("id").value_name("ID").required(true).help("The session, or its beginning"))
        .arg(
            Arg::new("run")
                .long("run")
                .value_name("END")
                .required(true)
                .value_parser(["source", "sink"])
                .help("Which end runs the guest"),
        )
        .after_help(WARNING)
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let given = matches.get_one::<String>("id").map_or("", String::as_str);
    let mut client = connect(matches)?;
    let id = full_id(&mut client, given)?;
    client.set_timeout(CANCEL_WITHIN);
    let run = matches.get_one::<String>("run");
    let answer = client.call("session.resolve", &json!({ "session": id, "run": run }))?;
    show_answer(matches, &answer, |answer| {
        format!("session {} is {}\n", show::text(answer, "session"), show::text(answer, "state"))
    })?;
    Ok(Exit::Done)
}
