//! `dwcp store`: what is kept of guests that came or went, and of images.
//!
//! Main thread; one question to the daemon each.

use super::{ask, client_command, connect, show, show_answer, text_table::TextTable};
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{IsTerminal as _, Seek as _, stderr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The store's disk may have much to do first.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

/// An image may be long: 16 TiB at 200 MiB/s.
const ADDED_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// How often the bar moves meanwhile.
const BAR_EVERY: Duration = Duration::from_millis(200);
const BAR: &str = "reading {bytes} of {total_bytes} [{bar:30}] {bytes_per_sec}";

const ADD_EXAMPLES: &str = "The file counts as its bytes lie in it, in pages of 4096 bytes: a raw \
disk image, or guest memory as it was. Of a compressed format (qcow2) nothing would ever match; \
qemu-img convert -O raw makes a raw one. Zero pages and pages that come twice take no room.\n\n\
Examples:\n  \
dwcp store add /srv/images/debian13.raw --trust-domain blue\n  \
dwcp store add snapshot.mem --name web-ready --trust-domain blue";

/// The subcommand's part of the command line.
pub(super) fn command() -> Command {
    let add = client_command("add", "Keep a raw disk image or a memory snapshot of any size")
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The file; this command reads it, so the daemon needs no right to"),
        )
        .arg(
            Arg::new("trust-domain")
                .long("trust-domain")
                .value_name("LABEL")
                .required(true)
                .help("Let guests of this label, and no others, be sent by what it holds"),
        )
        .arg(Arg::new("name").long("name").value_name("NAME").help(
            "What it is called; an image of this name and label makes way [default: the \
                     file's name]",
        ))
        .after_help(ADD_EXAMPLES);
    let remove =
        client_command("rm", "Remove what is kept of a guest or of an image, or everything")
            .arg(Arg::new("name").value_name("NAME").help("The guest's or the image's name"))
            .arg(
                Arg::new("all")
                    .long("all")
                    .action(ArgAction::SetTrue)
                    .conflicts_with("name")
                    .required_unless_present("name")
                    .help("Remove everything"),
            );
    Command::new("store")
        .about("List, add and remove what is kept: of guests that came or went, and of images")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(add)
        .subcommand(client_command("ls", "List what is kept"))
        .subcommand(client_command("stats", "Show what the store holds and what became of it"))
        .subcommand(remove)
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    match matches.subcommand() {
        Some(("ls", matches)) => ask(matches, "store.list", render_list),
        Some(("stats", matches)) => ask(matches, "store.stats", render_stats),
        Some(("add", matches)) => add(matches),
        Some(("rm", matches)) => remove(matches),
        _ => unreachable!("clap requires a subcommand"),
    }
}

fn add(matches: &ArgMatches) -> Result<Exit, Failure> {
    let Some(path) = matches.get_one::<PathBuf>("file") else {
        unreachable!("clap requires the file");
    };
    let image = |source| Failure::Image { path: path.clone(), source };
    let file = File::open(path).map_err(image)?;
    let file_bytes = file.metadata().map_err(image)?.len();
    let name = matches.get_one::<String>("name").cloned().unwrap_or_else(|| default_name(path));
    let label = matches.get_one::<String>("trust-domain");
    let params = json!({ "name": name, "trust_domain": label });
    let mut client = connect(matches)?;
    let call = client.start("store.add", &params, &[file.as_fd()])?;
    let answer = wait_added(&mut client, call, (&file, file_bytes))?;
    show_answer(matches, &answer, render_added)?;
    Ok(Exit::Done)
}

/// The file's name, with dashes for what a name may not have.
fn default_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.unwrap_or_default().chars().map(plain).collect()
}

/// Waits for the answer. The daemon reads through our descriptor, whose place in the file tells
/// how far it is.
fn wait_added(
    client: &mut Client,
    call: u64,
    (mut file, file_bytes): (&File, u64),
) -> Result<Value, ClientError> {
    let target = match stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(Some(file_bytes), target).with_style(style);
    let begun = Instant::now();
    while begun.elapsed() < ADDED_WITHIN {
        if let Some(answer) = client.answer(call, BAR_EVERY)? {
            bar.finish_and_clear();
            return Ok(answer);
        }
        bar.set_position(file.stream_position().unwrap_or(0));
    }
    Err(ClientError::Timeout { method: "store.add".to_owned(), within: ADDED_WITHIN })
}

fn render_added(answer: &Value) -> String {
    let (read, kept) = (show::bytes(answer, "read_bytes"), show::bytes(answer, "bytes"));
    let text = |name| show::text(answer, name);
    format!(
        "image {}: of {read} {} different pages are kept in {kept}, for guests of {}\n",
        text("name"),
        text("pages"),
        text("trust_domain")
    )
}

fn remove(matches: &ArgMatches) -> Result<Exit, Failure> {
    let params = match matches.get_one::<String>("name") {
        Some(name) => json!({ "name": name }),
        None => json!({}),
    };
    let mut client = connect(matches)?;
    client.set_timeout(REMOVED_WITHIN);
    let answer = client.call("store.remove", &params)?;
    show_answer(matches, &answer, |answer| {
        format!("{} segments are removed\n", show::text(answer, "removed"))
    })?;
    Ok(Exit::Done)
}

fn render_list(segments: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut table = TextTable::new(&["name", "kind", "label", "pages", "on disk", "last used"]);
    for segment in segments.as_array().into_iter().flatten() {
        let ago = segment["last_used_unix_s"].as_u64().map(|at| now.saturating_sub(at));
        let used = format!("{} ago", show::seconds(&json!({ "ago": ago }), "ago"));
        let text = |name| show::text(segment, name);
        let bytes = show::bytes(segment, "bytes");
        table.push(
            [text("name"), text("kind"), text("trust_domain"), text("pages"), bytes, used].into(),
        );
    }
    if table.is_empty() { "nothing is kept\n".to_owned() } else { table.render() }
}

fn render_stats(stats: &Value) -> String {
    let mut table = TextTable::new(&["what", "so much"]);
    for (name, value) in stats.as_object().into_iter().flatten() {
        let shown = match name.ends_with("bytes") {
            true => show::bytes(stats, name),
            false => show::plain(value),
        };
        table.push([name.replace('_', " "), shown].into());
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_a_line_and_no_segment_is_said() {
        assert_eq!(render_list(&json!([])), "nothing is kept\n");
        let segment = json!({
            "segment": "00", "name": "web1", "kind": "guest", "pages": 12, "bytes": 4096,
            "trust_domain": "blue", "last_used_unix_s": 0,
        });
        let text = render_list(&json!([segment]));
        assert!(
            text.contains("web1")
                && text.contains("blue")
                && text.contains("4.0 KiB")
                && text.contains("ago"),
            "{text}"
        );
    }

    #[test]
    fn an_image_needs_a_label_and_is_called_as_its_file() {
        let parse = |args: &[&str]| command().try_get_matches_from(args).is_ok();
        assert!(parse(&["store", "add", "a.raw", "--trust-domain", "blue"]));
        assert!(!parse(&["store", "add", "a.raw"]) && !parse(&["store", "add"]));
        assert_eq!(default_name(Path::new("/srv/debian 13.raw")), "debian-13.raw");
        let text = render_added(&json!({
            "name": "debian", "pages": 3, "bytes": 2048, "read_bytes": 1 << 20,
            "trust_domain": "blue",
        }));
        assert!(["debian", "3", "2.0 KiB", "1.0 MiB", "blue"].iter().all(|it| text.contains(it)));
    }

    #[test]
    fn counters_are_shown_by_their_names() {
        let text = render_stats(&json!({ "left_alone_bytes": 2048, "pages": 7 }));
        assert!(text.contains("left alone bytes") && text.contains("2.0 KiB"), "{text}");
    }
}
