//! Moves one guest to and fro, once per mode and round, and collects the rows.
//!
//! Runs on the caller's thread. Modes take turns, so that what changes on the machine in the
//! meantime hits all of them.

use super::course::Course;
use super::mode::Mode;
use super::row::Row;
use crate::lab::LabError;
use std::time::Duration;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The guest's words, see [`crate::lab::Guest::HELP`].
    pub guest: String,
    /// Its memory, if not the workload's own choice.
    pub ram_mib: Option<u32>,
    /// The ways to move it.
    pub modes: Vec<Mode>,
    /// The link's words, see [`crate::lab::LinkSpec::HELP`].
    pub link: String,
    /// TCP's congestion control, if not the machine's.
    pub congestion: Option<String>,
    /// How often each mode is measured.
    pub repeat: u32,
    /// After so long a migration counts as not converged.
    pub limit: Duration,
    /// Rest before each migration, in which the guest changes its memory.
    pub settle: Duration,
}

impl Bench {
    /// Runs everything and hands over each row as it is there.
    ///
    /// # Errors
    /// The guest, the network or the lab failed; migrations that fail are rows.
    pub fn run(&self, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, LabError> {
        let mut course = self.start()?;
        let mut rows = Vec::new();
        for round in 1..=self.repeat {
            for mode in &self.modes {
                let mut row = course.measure(mode, self.settle)?;
                row.set("run", round);
                each(&row);
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Brings up the link and describes the guest, for a program that decides by itself what comes
    /// next; of the modes, the repeats and the rest nothing is used.
    ///
    /// # Errors
    /// The lab is not there, or words are not understood.
    pub fn start(&self) -> Result<Course, LabError> {
        Course::start(self)
    }
}
