//! Changes of links at set times: a link that flaps, slows down or loses more for a while.
//!
//! The text is pure; [`Following`] is a thread of its own that makes the changes and ends when it
//! is dropped. It holds the ways and not the network, so that a network may go first.

use super::error::LabError;
use super::link_spec::{LinkSpec, time_ns};
use super::net::Net;
use super::relay::WayControl;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A change and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the beginning.
    pub at: Duration,
    /// The link, or one way of it.
    pub name: String,
    /// Only this way, and not the one back.
    pub is_one_way: bool,
    /// What changes, see [`LinkSpec::HELP`].
    pub words: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = if self.is_one_way { "way" } else { "set" };
        write!(f, "{}s {command} {} {}", self.at.as_secs_f64(), self.name, self.words)
    }
}

/// Changes in the order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    steps: Vec<Step>,
}

impl Schedule {
    /// The lines, for the help of programs that take them.
    pub const HELP: &str = "\
  2.5s set ab rate=100m     changes both ways of a link so long after the beginning
  10s way ba up=0           changes one way; `#` begins a comment";

    /// Reads a text of such lines.
    ///
    /// # Errors
    /// A line is not understood, or its time is before that of the line above.
    pub fn parse(text: &str) -> Result<Self, LabError> {
        let mut steps: Vec<Step> = Vec::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let step = step(line)?;
            if steps.last().is_some_and(|last| last.at > step.at) {
                let why = "is earlier than the line above";
                return Err(LabError::Word { word: line.to_owned(), why });
            }
            steps.push(step);
        }
        Ok(Self { steps })
    }

    /// Begins to change the links of a network; `each` hears of every change once it is made.
    ///
    /// # Errors
    /// A line names no link or way of this network.
    pub fn follow(
        &self,
        net: &Net,
        each: impl Fn(&Step) + Send + 'static,
    ) -> Result<Following, LabError> {
        let changes = self.steps.iter().cloned().map(|step| {
            let ways = ways(net, &step).ok_or_else(|| LabError::Word {
                word: step.to_string(),
                why: "names nothing of this network",
            })?;
            Ok((step, ways))
        });
        let changes = changes.collect::<Result<Vec<_>, LabError>>()?;
        let (stop, stopped) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let started = Instant::now();
        let thread = std::thread::spawn(move || {
            make(&changes, started, &stopped, each);
            over.store(true, Ordering::Release);
        });
        Ok(Following { stop: Some(stop), is_over, started, thread: Some(thread) })
    }
}

/// A schedule that is being followed, until its end or until this is dropped.
#[derive(Debug)]
pub struct Following {
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    is_over: Arc<AtomicBool>,
    started: Instant,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    /// What the times count from.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether every change was made.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stop.take());
        let outcome = self.thread.take().map(JoinHandle::join);
        assert!(
            !matches!(outcome, Some(Err(_))) || std::thread::panicking(),
            "the thread of a schedule panicked"
        );
    }
}

/// Makes the changes in their time, until told to stop.
fn make(
    changes: &[(Step, Vec<WayControl>)],
    started: Instant,
    stopped: &mpsc::Receiver<()>,
    each: impl Fn(&Step),
) {
    // It only makes it more punctual.
    let _ = dwcp_ffi::lab::run_before_others();
    for (step, ways) in changes {
        let left = (started + step.at).saturating_duration_since(Instant::now());
        if stopped.recv_timeout(left) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        for way in ways {
            let done = way.set(&step.words);
            assert!(done.is_ok(), "the words were checked when they were read");
        }
        each(step);
    }
}

fn ways(net: &Net, step: &Step) -> Option<Vec<WayControl>> {
    if step.is_one_way {
        return net.try_way(&step.name).map(|way| vec![way.control()]);
    }
    let (_, link) = net.links().find(|(name, _)| *name == step.name)?;
    Some(vec![link.there().control(), link.back().control()])
}

fn step(line: &str) -> Result<Step, LabError> {
    let bad = |why| LabError::Word { word: line.to_owned(), why };
    let mut words = line.split_whitespace();
    let at = words.next().and_then(time_ns).map(Duration::from_nanos);
    let at = at.ok_or_else(|| bad("does not begin with a time such as 2.5s"))?;
    let is_one_way = match words.next() {
        Some("set") => false,
        Some("way") => true,
        _ => return Err(bad("has neither set nor way behind its time")),
    };
    let name = words.next().ok_or_else(|| bad("names no link"))?.to_owned();
    let words = words.collect::<Vec<_>>().join(" ");
    if words.is_empty() {
        return Err(bad("changes nothing"));
    }
    // Whether words are understood does not depend on what was before.
    LinkSpec::default().apply(&words)?;
    Ok(Step { at, name, is_one_way, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_their_order() {
        let text = "# a flap\n\n1.5s set ab up=0 flush=1   # down\n2s way ba delay=5ms rate=1m\n";
        let schedule = Schedule::parse(text).unwrap();
        let [down, slow] = &schedule.steps[..] else { panic!("{schedule:?}") };
        assert_eq!((down.at, down.is_one_way), (Duration::from_millis(1500), false));
        assert_eq!((slow.name.as_str(), slow.is_one_way), ("ba", true));
        assert_eq!(down.to_string(), "1.5s set ab up=0 flush=1");
        let lines: Vec<String> = schedule.steps.iter().map(Step::to_string).collect();
        assert_eq!(Schedule::parse(&lines.join("\n")).unwrap(), schedule);
    }

    #[test]
    fn what_is_no_line_is_refused_with_the_line() {
        for line in [
            "set ab up=0",
            "1 set ab up=0",
            "1s cut ab up=0",
            "1s set",
            "1s set ab",
            "1s set ab up=2",
            "2s set ab up=0\n1s set ab up=1",
        ] {
            assert!(Schedule::parse(line).is_err(), "{line}");
        }
    }
}
