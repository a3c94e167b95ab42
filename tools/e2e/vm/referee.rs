//! The referee: from the events of QEMUs, when the guest ran where.
//!
//! Both QEMUs are on one machine, so their events have one clock. Asking for the state as well
//! keeps events from being all that is believed.

use dwcp_tools::lab::Vm;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What one QEMU did, as times since the epoch.
#[derive(Debug)]
struct Track {
    host: &'static str,
    /// Times in which the guest ran; the last one may be open.
    runs: Vec<(Duration, Option<Duration>)>,
    /// Events that were taken in already.
    seen: usize,
}

/// Watches the QEMUs that have held one guest.
#[derive(Debug, Default)]
pub(super) struct Referee {
    tracks: Vec<Track>,
}

/// A QEMU that is watched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watched(usize);

impl Referee {
    /// Watches a QEMU from now on.
    pub(super) fn watch(&mut self, host: &'static str, vm: &mut Vm) -> Watched {
        let seen = vm.qmp().events().unwrap().len();
        let runs = match vm.qmp().status().unwrap().as_str() {
            "running" => vec![(now(), None)],
            _ => Vec::new(),
        };
        self.tracks.push(Track { host, runs, seen });
        Watched(self.tracks.len() - 1)
    }

    /// Takes in what a QEMU has told; one that is dead tells nothing.
    pub(super) fn look(&mut self, at: Watched, vm: &mut Vm) {
        let Track { runs, seen, .. } = &mut self.tracks[at.0];
        let Ok(events) = vm.qmp().events() else { return };
        for event in &events[*seen..] {
            let open = runs.last_mut().filter(|run| run.1.is_none());
            match (event.name.as_str(), open) {
                ("RESUME", None) => runs.push((event.at, None)),
                ("STOP", Some(run)) => run.1 = Some(event.at),
                _ => {}
            }
        }
        *seen = events.len();
    }

    /// A QEMU is gone.
    pub(super) fn gone(&mut self, at: Watched) {
        if let Some((_, end @ None)) = self.tracks[at.0].runs.last_mut() {
            *end = Some(now());
        }
    }

    /// No two ran the guest at one time.
    pub(super) fn check(&self) {
        let end = |run: &(Duration, Option<Duration>)| run.1.unwrap_or(Duration::MAX);
        for (index, one) in self.tracks.iter().enumerate() {
            for other in &self.tracks[index + 1..] {
                for (mine, theirs) in
                    one.runs.iter().flat_map(|mine| other.runs.iter().map(move |it| (mine, it)))
                {
                    let apart = end(mine) <= theirs.0 || end(theirs) <= mine.0;
                    let (a, b) = (one.host, other.host);
                    assert!(apart, "the guest ran twice: {a} {mine:?}, {b} {theirs:?}");
                }
            }
        }
    }

    /// How many run the guest now.
    pub(super) fn running(&self) -> usize {
        self.tracks.iter().filter(|it| it.runs.last().is_some_and(|run| run.1.is_none())).count()
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}
