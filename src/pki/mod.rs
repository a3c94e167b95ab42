//! `dwcp pki`: a cluster's certificate authority, its host certificates, and their revocation.
//!
//! Stand-alone: runs on the main thread, needs no daemon, touches only the folder that it is given.
//! The authority's key never leaves that folder; what a host needs is in the folder of that host.

pub(crate) mod authority;
mod error;
mod files;
pub(crate) mod inspect;
mod record;

pub(crate) use error::PkiError;

use crate::commands::text_table::TextTable;
use crate::commands::{json_flag, print};
use crate::exit::Exit;
use crate::failure::Failure;
use authority::{Authority, Validity};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;
use std::path::{Path, PathBuf};

/// How long a host's certificate holds unless `--days` says otherwise.
const HOST_DAYS: &str = "365";
/// The longest that may be asked for; the authority's own end comes first in any case.
const HOST_DAYS_MAX: i64 = 3650;

/// The command's part of the command line.
pub(crate) fn command() -> Command {
    let folder = || {
        let arg = Arg::new("dir").value_name("DIR").required(true);
        arg.value_parser(value_parser!(PathBuf)).help("The authority's folder")
    };
    let name = || Arg::new("name").value_name("NAME").required(true).help("The host's name");
    let host = Command::new("host")
        .about("Make a host's certificate: DIR/NAME is the folder for that host's --pki")
        .args([name(), folder()])
        .arg(
            Arg::new("days")
                .long("days")
                .value_name("N")
                .default_value(HOST_DAYS)
                .value_parser(value_parser!(i64).range(1..=HOST_DAYS_MAX))
                .help("How long the certificate holds [1 to 3650]"),
        )
        .arg(
            Arg::new("not-after")
                .long("not-after")
                .value_name("UNIX-SECONDS")
                .hide(true)
                .value_parser(value_parser!(i64).range(0..=32_503_680_000))
                .help("For tests: the end itself, in the past too"),
        );
    Command::new("pki")
        .about("Make, revoke and show a cluster's certificates")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(Command::new("init").about("Make a certificate authority").arg(folder()))
        .subcommand(host)
        .subcommand(
            Command::new("revoke")
                .about("Revoke all certificates of a host")
                .args([name(), folder()]),
        )
        .subcommand(
            Command::new("show")
                .about("List the certificates that an authority made")
                .args([folder(), json_flag()]),
        )
}

/// Runs the subcommand.
pub(crate) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let Some((action, matches)) = matches.subcommand() else {
        unreachable!("clap requires a subcommand");
    };
    let folder = matches.get_one::<PathBuf>("dir").map_or(Path::new(""), PathBuf::as_path);
    match action {
        "init" => init(folder),
        "host" => host(folder, matches),
        "revoke" => revoke(folder, matches),
        "show" => show(folder, matches.get_flag("json")),
        other => unreachable!("the command line has a command '{other}' that nobody runs"),
    }?;
    Ok(Exit::Done)
}

fn init(folder: &Path) -> Result<(), Failure> {
    Authority::init(folder)?;
    let folder = folder.display();
    print(&format!(
        "made the authority in {folder}; keep {folder}/ca.key to yourself\n\
         next: dwcp pki host NAME {folder}\n"
    ))
}

fn host(folder: &Path, matches: &ArgMatches) -> Result<(), Failure> {
    let name = host_name(matches);
    let validity = match (matches.get_one::<i64>("not-after"), matches.get_one::<i64>("days")) {
        (Some(end), _) => Validity::Until { unix_s: *end },
        (None, days) => Validity::Days(days.copied().unwrap_or(HOST_DAYS_MAX)),
    };
    let issued = Authority::open(folder)?.issue(name, validity)?;
    let host_folder = folder.join(name);
    print(&format!(
        "made {0}, which holds until {1}\n\
         next: copy {0} to {name} and start there: dwcp daemon --pki {0}\n",
        host_folder.display(),
        authority::date(issued.not_after_unix_s),
    ))
}

fn revoke(folder: &Path, matches: &ArgMatches) -> Result<(), Failure> {
    let name = host_name(matches);
    let count = Authority::open(folder)?.revoke(name)?;
    print(&format!(
        "revoked {count} certificate(s) of {name}\n\
         next: copy {}/revoked.pem into the --pki folder of every host; it holds from the next \
         connection on\n",
        folder.display()
    ))
}

fn show(folder: &Path, as_json: bool) -> Result<(), Failure> {
    let records = Authority::open(folder)?.records().to_vec();
    if as_json {
        return print(&format!("{:#}\n", json!(records)));
    }
    let now = authority::unix_now_s();
    let mut table = TextTable::new(&["name", "state", "from", "until", "serial"]);
    for record in records {
        table.push(vec![
            record.name.clone(),
            record.state(now).to_owned(),
            authority::date(record.not_before_unix_s),
            authority::date(record.not_after_unix_s),
            record.serial,
        ]);
    }
    print(&if table.is_empty() {
        "no certificate was made yet\n".to_owned()
    } else {
        table.render()
    })
}

fn host_name(matches: &ArgMatches) -> &str {
    matches.get_one::<String>("name").map_or("", String::as_str)
}
