//! A panic in the daemon is a broken invariant: it is diagnosed and ends the process at once.
//!
//! Going on would risk a page that is wrong or a guest that runs twice. The kernel closes all
//! sockets, so peers and VMMs see a clean cut, and the journal tells after the restart what was
//! under way. Installed once on the main thread; runs on the thread that panics.

use std::io::Write as _;
use std::panic::PanicHookInfo;

/// Makes every later panic end the process.
pub(super) fn install() {
    std::panic::set_hook(Box::new(|info| {
        // Standard error may be gone; the end comes in any case.
        let _ = std::io::stderr().write_all(diagnosis(info).as_bytes());
        std::process::abort();
    }));
}

fn diagnosis(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let location = info.location().map_or("an unknown place".to_owned(), ToString::to_string);
    let message = info.payload_as_str().unwrap_or("no message");
    compose(name, &location, message)
}

fn compose(thread: &str, location: &str, message: &str) -> String {
    format!(
        "dwcp: an invariant is broken in thread '{thread}' at {location}: {message}\n\
         dwcp: dwcp {} ends now; sources keep their regions, 'dwcp sessions' tells the rest after \
         the restart\n\
         dwcp: this is a bug: report these lines\n",
        env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_diagnosis_names_thread_place_message_and_version() {
        let text = compose("dwcp-shard-1", "lane.rs:7:9", "a lease came back twice");
        for part in ["dwcp-shard-1", "lane.rs:7:9", "came back twice", env!("CARGO_PKG_VERSION")] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(text.lines().all(|line| line.starts_with("dwcp: ")));
    }
}
