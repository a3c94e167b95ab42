//! One QEMU process with one guest, under emulation.
//!
//! Owns the process, its folder and its monitor; all of it goes when it is dropped, and the process
//! goes too when ours is killed. The lab keeps one monitor for itself; [`Vm::qmp_path`] is another,
//! for whatever is tested.

use super::command::{last_of, mortal, spawn};
use super::error::LabError;
use super::guest::Guest;
use super::node::Node;
use super::qmp::Qmp;
use super::wait::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, read_to_string};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long QEMU may take to open its monitor.
const START_MAX: Duration = Duration::from_secs(60);

/// How long QEMU may take to end when told to.
const END_MAX: Duration = Duration::from_secs(10);

/// Two checks of all memory, under emulation on a busy machine.
const CHECK_MAX: Duration = Duration::from_secs(240);

/// How much of a log an error shows.
const SHOWN_BYTES: usize = 400;

/// The file that is a guest's memory.
const RAM: &str = "ram";

/// What a console says when a guest was hurt; `bad=0` is the good news among them.
const TROUBLE: [&str; 11] = [
    "BUG:",
    "Oops",
    "Kernel panic",
    "Call Trace",
    "general protection",
    "segfault",
    "I/O error",
    "EXT4-fs error",
    "BAD ",
    "bad=",
    "Bad page",
];

/// How a QEMU is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct VmConfig<'a> {
    /// The host that it runs on; without one, the machine itself.
    pub node: Option<&'a Node>,
    /// It waits for a guest that migrates here (`-incoming defer`).
    pub incoming: bool,
    /// The guest does not run before it is told to (`-S`).
    pub paused: bool,
    /// The guest's memory is a file, see [`Vm::ram_file`].
    pub ram_file: bool,
    /// Further words for QEMU.
    pub options: &'a [&'a str],
}

/// A running QEMU.
#[derive(Debug)]
pub struct Vm {
    // First, so that QEMU has ended when its files go.
    process: Process,
    qmp: Qmp,
    folder: TempDir,
    ram: Option<TempDir>,
}

impl Vm {
    /// Starts QEMU and connects to its monitor.
    ///
    /// # Errors
    /// QEMU did not start.
    pub fn start(guest: &Guest, config: VmConfig<'_>) -> Result<Self, LabError> {
        let folder = super::scratch("vm")?;
        let ram = if config.ram_file { Some(super::scratch_in_memory("ram")?) } else { None };
        let file = ram.as_ref().map(|folder| folder.path().join(RAM));
        let words = Self::words(guest, config, folder.path(), file.as_deref());

        let path = folder.path().join("errors");
        let errors = File::create(&path).map_err(LabError::file(&path))?;
        let mut command = mortal(&words);
        command.stdout(Stdio::null()).stderr(errors);
        let mut process = Process(spawn(command)?);
        let socket = folder.path().join("lab.qmp");
        let errors = || tail(&folder.path().join("errors"));
        let qmp = wait_for("monitor of QEMU", START_MAX, || match Qmp::connect(&socket) {
            Ok(qmp) => Ok(Some(qmp)),
            Err(_) => process.still_runs("QEMU", errors).map(|()| None),
        })?;
        Ok(Self { process, qmp, folder, ram })
    }

    /// The words that start QEMU, its node's first, for whatever starts it by itself. Two monitors
    /// `qmp` and `lab.qmp` and the console `serial` are in the folder; `ram` is the file for the
    /// guest's memory.
    #[must_use]
    pub fn words(
        guest: &Guest,
        config: VmConfig<'_>,
        folder: &Path,
        ram: Option<&Path>,
    ) -> Vec<String> {
        let mut words: Vec<String> = config.node.map(|it| it.words().into()).unwrap_or_default();
        words.push(guest.lab.qemu().to_string_lossy().into_owned());
        words.extend(options(guest, config, folder, ram));
        words
    }

    /// The lab's own connection to the monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The socket of a second monitor, for whatever is tested.
    #[must_use]
    pub fn qmp_path(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// The file that is the guest's memory, if it was started so.
    #[must_use]
    pub fn ram_file(&self) -> Option<PathBuf> {
        self.ram.as_ref().map(|folder| folder.path().join(RAM))
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// All that the guest has said on its console since it runs here.
    #[must_use]
    pub fn serial(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the console has shown a text.
    ///
    /// # Errors
    /// It was not shown in time, or QEMU ended.
    pub fn wait_for(&mut self, text: &str, bound: Duration) -> Result<(), LabError> {
        self.wait_for_times(text, 1, bound)
    }

    /// Waits until the console has shown a text so many times.
    ///
    /// # Errors
    /// It was not shown in time, or QEMU ended.
    pub fn wait_for_times(
        &mut self,
        text: &str,
        times: usize,
        bound: Duration,
    ) -> Result<(), LabError> {
        let what = format!("{times} times `{text}` on the console");
        let folder = self.folder.path().to_owned();
        let said = || format!("{} {}", tail(&folder.join("errors")), tail(&folder.join("serial")));
        let waited = wait_for(&what, bound, || {
            if self.serial().matches(text).count() >= times {
                return Ok(Some(()));
            }
            self.process.still_runs("QEMU", said).map(|()| None)
        });
        waited.map_err(|error| match error {
            LabError::TooSlow { what, seconds, .. } => {
                LabError::TooSlow { what, seconds, detail: said() }
            }
            other => other,
        })
    }

    /// Waits until the guest has booted and its working set is in memory.
    ///
    /// # Errors
    /// It did not get there in time, or QEMU ended.
    pub fn wait_ready(&mut self, guest: &Guest) -> Result<(), LabError> {
        let (text, bound) = guest.ready();
        self.wait_for(text, bound)
    }

    /// Lets the guest check all of its memory twice from now on, the first of these may have begun
    /// before; returns the first line of the console that says that it was hurt.
    ///
    /// # Errors
    /// It made no check in time, or QEMU ended.
    pub fn checked(&mut self) -> Result<Option<String>, LabError> {
        let before = self.serial().matches("VERIFY").count();
        self.wait_for_times("VERIFY", before + 2, CHECK_MAX)?;
        Ok(self.trouble())
    }

    /// The first line of the console that says that the guest was hurt.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.serial().lines().find(|line| tells_trouble(line)).map(str::to_owned)
    }

    /// What QEMU itself complained of.
    #[must_use]
    pub fn errors(&self) -> String {
        tail(&self.folder.path().join("errors"))
    }

    /// True while the process is there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.0.try_wait(), Ok(None))
    }

    /// Ends QEMU at once, as a crash of it would.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// QEMU's words for a guest.
fn options(guest: &Guest, config: VmConfig<'_>, folder: &Path, ram: Option<&Path>) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let fixed = "-machine pc -accel tcg,thread=multi -smp 1 -nodefaults -no-user-config \
                 -display none";
    let mut words: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    words.extend(["-serial".to_owned(), format!("file:{}", path("serial"))]);
    for name in ["lab.qmp", "qmp"] {
        words.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", path(name))]);
    }
    words.extend(guest.options());
    if let Some(ram) = ram {
        let file = ram.display();
        let size = guest.ram_mib();
        let object = format!("memory-backend-file,id=ram0,size={size}M,share=on,mem-path={file}");
        words.extend(["-object".to_owned(), object]);
        words.extend(["-machine".to_owned(), "memory-backend=ram0".to_owned()]);
    }
    if config.incoming {
        words.extend(["-incoming", "defer"].map(str::to_owned));
    }
    if config.paused {
        words.push("-S".to_owned());
    }
    words.extend(config.options.iter().map(|word| (*word).to_owned()));
    words
}

fn tells_trouble(line: &str) -> bool {
    let tells = |text: &&str| {
        line.match_indices(*text)
            .any(|(at, _)| *text != "bad=" || !line[at..].trim_end().ends_with("bad=0"))
    };
    TROUBLE.iter().any(tells)
}

fn tail(path: &Path) -> String {
    let text = read_to_string(path).unwrap_or_default();
    last_of(text.trim(), SHOWN_BYTES).to_owned()
}

/// A child that is ended when it is dropped.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn still_runs(&mut self, what: &str, detail: impl Fn() -> String) -> Result<(), LabError> {
        match self.0.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let (what, status) = (what.to_owned(), status.to_string());
                Err(LabError::Ended { what, status, detail: detail() })
            }
            Err(source) => Err(LabError::Start { command: what.to_owned(), source }),
        }
    }

    fn kill(&mut self) {
        // Both fail only when the process has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Politely first, so that the disk's file is left in order.
            if let Ok(id) = i32::try_from(self.0.id()) {
                let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            }
            let ended = || Ok(matches!(self.0.try_wait(), Ok(Some(_))).then_some(()));
            drop(wait_for("end of QEMU", END_MAX, ended));
        }
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_tells_trouble_from_good_news() {
        assert!(!tells_trouble("VERIFY all 512 pages bad=0"));
        assert!(!tells_trouble("TICK 3 12"));
        for line in
            ["VERIFY redis bad=1", "BAD page 3", "BAD still: 9 bytes", "x segfault at 0", "bad=10"]
        {
            assert!(tells_trouble(line), "{line}");
        }
    }
}
