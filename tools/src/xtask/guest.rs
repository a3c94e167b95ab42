//! `cargo xtask guest`: boots one guest and shows its console.
//!
//! Runs on the main thread until the guest ends or Ctrl-C; QEMU ends with it.

use crate::error::TaskError;
use dwcp_tools::lab::{Guest, Lab, LabError, Vm, VmConfig, end_waits_on_signals, wait_for};
use std::time::Duration;

const HELP: &str = "\
Usage: cargo xtask guest GUEST [--ram MIB]

Boots a guest under emulation and shows its console until Ctrl-C; its monitor is left to you.
Guests:";

/// The longest that a person watches a guest.
const SHOWN_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Boots the guest that the words name.
pub(crate) fn run(words: &[String]) -> Result<(), TaskError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [guest] if !guest.starts_with('-') => Ok(show(guest, None)?),
        [guest, "--ram", mib] => {
            let bad = |_| LabError::Word { word: mib.to_owned(), why: "is no number of MiB" };
            Ok(show(guest, Some(mib.parse().map_err(bad)?))?)
        }
        _ => {
            println!("{HELP}\n{}", Guest::HELP);
            Ok(())
        }
    }
}

fn show(words: &str, ram_mib: Option<u32>) -> Result<(), LabError> {
    end_waits_on_signals();
    let mut guest = Guest::new(&Lab::find()?, words)?;
    if let Some(ram_mib) = ram_mib {
        guest = guest.with_ram_mib(ram_mib);
    }
    let mut vm = Vm::start(&guest, VmConfig::default())?;
    println!("monitor: {}", vm.qmp_path().display());
    let mut shown = 0;
    let outcome = wait_for("end", SHOWN_MAX, || {
        let text = vm.serial();
        print!("{}", text.get(shown..).unwrap_or_default());
        shown = text.len();
        Ok((!vm.is_alive()).then_some(()))
    });
    match outcome {
        // To be stopped is how a guest usually ends.
        Err(LabError::Interrupted) => Ok(()),
        outcome => outcome,
    }
}
