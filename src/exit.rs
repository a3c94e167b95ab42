//! The exit codes of the binary: stable, documented in the manual, one meaning each.
//!
//! Used by `main` and every subcommand, on the main thread. Nothing here does I/O.

use std::process::ExitCode;

/// How a command ended, as its caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything that was asked for was done.
    Done,
    /// The operation was started and failed.
    Failed,
    /// The command line or the configuration is wrong; nothing was started.
    Usage,
    /// This machine lacks something: a kernel feature, a limit, a file, a free port.
    Machine,
    /// The daemon or the peer could not be reached, or refused.
    Unreachable,
    /// A session is in doubt: neither host may run it until both have talked.
    InDoubt,
    /// The user interrupted it; what was begun is given up.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Machine => 3,
            Self::Unreachable => 4,
            Self::InDoubt => 5,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_stable() {
        let codes = [
            Exit::Done,
            Exit::Failed,
            Exit::Usage,
            Exit::Machine,
            Exit::Unreachable,
            Exit::InDoubt,
            Exit::Interrupted,
        ];
        assert_eq!(codes.map(Exit::number), [0, 1, 2, 3, 4, 5, 130]);
    }
}
