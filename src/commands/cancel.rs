//! `dwcp cancel ID`: gives a session up; the source keeps its region and its writer.
//!
//! Main thread. The id may be shortened as long as one session alone begins with it.

use super::{CANCEL_WITHIN, connect, sessions, show, show_answer};
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use serde_json::{Value, json};

/// A session's full id has so many digits.
const ID_DIGITS: usize = 32;

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let given = matches.get_one::<String>("id").map_or("", String::as_str);
    let mut client = connect(matches)?;
    let id = full_id(&mut client, given)?;
    client.set_timeout(CANCEL_WITHIN);
    let answer = client.call("session.abort", &json!({"session": id}))?;
    show_answer(matches, &answer, |answer| {
        format!("session {} is {}\n", show::text(answer, "session"), show::text(answer, "state"))
    })?;
    Ok(match answer["state"].as_str() {
        Some("in_doubt") => Exit::InDoubt,
        _ => Exit::Done,
    })
}

/// The one session whose id begins as given; what matches none or several goes to the daemon as it
/// is, which then says that it knows no such session.
pub(super) fn full_id(client: &mut Client, given: &str) -> Result<String, ClientError> {
    if given.len() == ID_DIGITS {
        return Ok(given.to_owned());
    }
    let answer = client.call("session.list", &json!({}))?;
    Ok(only_match(sessions::rows_of(&answer), given).unwrap_or(given).to_owned())
}

fn only_match<'a>(sessions: &'a Value, beginning: &str) -> Option<&'a str> {
    let ids = sessions.as_array().into_iter().flatten().filter_map(|s| s["session"].as_str());
    let mut matching = ids.filter(|id| !beginning.is_empty() && id.starts_with(beginning));
    let first = matching.next();
    if matching.next().is_some() { None } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_id_must_be_unique() {
        let list = json!([{"session": "abc1"}, {"session": "abd2"}]);
        assert_eq!(only_match(&list, "abc"), Some("abc1"));
        assert_eq!(only_match(&list, "ab"), None);
        assert_eq!(only_match(&list, ""), None);
        assert_eq!(only_match(&list, "f"), None);
    }
}
