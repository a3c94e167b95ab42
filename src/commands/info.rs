//! `dwcp daemon info`: what the running daemon is and what it uses of this machine.
//!
//! Main thread; asks `daemon.info` once. Fields are shown by the daemon's own names, so that a
//! newer daemon's facts show too.

use super::{ask, show};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use serde_json::Value;

/// Runs the command.
pub(crate) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    ask(matches, "daemon.info", render)
}

fn render(info: &Value) -> String {
    let mut text = String::new();
    push_fields(&mut text, info, 0);
    text
}

fn push_fields(text: &mut String, object: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for (name, value) in object.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => {
                text.push_str(&format!("{indent}{name}\n"));
                push_fields(text, value, depth + 1);
            }
            Value::Array(rows) if rows.iter().any(Value::is_object) => {
                text.push_str(&format!("{indent}{name}\n"));
                rows.iter().for_each(|row| push_row(text, row, &indent));
            }
            plain => text.push_str(&format!("{indent}{name:14} {}\n", show::plain(plain))),
        }
    }
}

/// A fact in a list: its name, then the rest of it.
fn push_row(text: &mut String, row: &Value, indent: &str) {
    let name = show::text(row, "name");
    let rest = row.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
    let rest: Vec<String> = rest
        .map(|(field, value)| match (field.as_str(), value) {
            ("used", Value::Bool(true)) => "used".to_owned(),
            ("used", Value::Bool(false)) => "not used".to_owned(),
            ("amount", Value::Number(amount)) if name.ends_with("bytes") => {
                amount.as_u64().map_or_else(|| amount.to_string(), show::human_bytes)
            }
            (_, value) => show::plain(value),
        })
        .collect();
    text.push_str(&format!("{indent}  {name:32} {}\n", rest.join(", ")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_render_by_name_at_any_depth() {
        let info = json!({"version": "0.1.0", "wire": {"lowest": 1}, "budget":
            [{"name": "arena_bytes", "amount": 67108864}], "kernel":
            [{"name": "send_zc", "used": false, "detail": "the kernel copies"}]});
        let text = render(&info);
        assert!(text.contains("64.0 MiB"), "{text}");
        assert!(text.contains("the kernel copies, not used"), "{text}");
        assert!(text.contains("  lowest"), "{text}");
    }
}
