//! What runs in a guest: the same words start the QEMU that it leaves and the one that it goes to.
//!
//! Owns the disk of a guest that has one, which both QEMUs open; it goes when the guest is dropped.

use super::command::run;
use super::error::LabError;
use super::place::Lab;
use std::time::Duration;
use tempfile::TempDir;

/// What `dirty` does when it is told nothing: 400 MiB, 2000 updates a second, mixed.
const DIRTY_DEFAULT: &str = "400,2000,3";
const DIRTY_RAM_MIB: u32 = 1024;
const REAL_RAM_MIB: u32 = 512;
const IDLE_RAM_MIB: u32 = 128;

/// The real workloads of the root image.
const REAL: [&str; 3] = ["redis", "web", "build"];

/// Time for a guest to boot and to fill its memory, under emulation on a busy machine.
const READY_MAX: Duration = Duration::from_secs(600);

/// A guest, not yet running.
#[derive(Debug)]
pub struct Guest {
    name: String,
    ram_mib: u32,
    /// Words of the kernel's command line.
    kernel_words: String,
    disk: Option<TempDir>,
    pub(super) lab: Lab,
}

impl Guest {
    /// The words, for the help of programs that take them.
    pub const HELP: &str = "\
  idle                    nothing but a kernel and a clock (128 MiB)
  dirty:MIB,RATE,MODE     changes RATE pages a second of MIB and checks all of them for ever;
                          MODE 1 records, 2 text, 3 mixed, 4 pages that shrink well until a line
                          on the second serial line; default dirty:400,2000,3 (1024 MiB)
  redis, web, build       real workloads, with an optional :SEED (512 MiB; needs setup --real)";

    /// A guest by its words, with the memory that its workload needs.
    ///
    /// # Errors
    /// The words are not understood, or the workload's root image is not there.
    pub fn new(lab: &Lab, words: &str) -> Result<Self, LabError> {
        let (name, rest) = words.split_once(':').unwrap_or((words, ""));
        let bad = |why| LabError::Word { word: words.to_owned(), why };
        let (ram_mib, kernel_words) = match name {
            "idle" if rest.is_empty() => (IDLE_RAM_MIB, String::new()),
            "dirty" => {
                let work = if rest.is_empty() { DIRTY_DEFAULT } else { rest };
                let parts: Vec<&str> = work.split(',').collect();
                if parts.len() != 3 || parts.iter().any(|part| part.parse::<i64>().is_err()) {
                    return Err(bad("dirty takes MIB,RATE,MODE"));
                }
                (DIRTY_RAM_MIB, format!("dirty={work}"))
            }
            name if REAL.contains(&name) => {
                let seed = if rest.is_empty() { "1" } else { rest };
                seed.parse::<u32>().map_err(|_| bad("the seed is no number"))?;
                (REAL_RAM_MIB, format!("workload={name},{seed}"))
            }
            _ => return Err(bad("is no guest: idle, dirty, redis, web or build")),
        };
        let disk = if REAL.contains(&name) { Some(disk(lab)?) } else { None };
        let (name, lab) = (name.to_owned(), lab.clone());
        Ok(Self { name, ram_mib, kernel_words, disk, lab })
    }

    /// Gives it another size of memory.
    #[must_use]
    pub fn with_ram_mib(self, ram_mib: u32) -> Self {
        Self { ram_mib, ..self }
    }

    /// Its memory.
    #[must_use]
    pub fn ram_mib(&self) -> u32 {
        self.ram_mib
    }

    /// What to wait for on its console until its working set is there, and how long.
    pub(super) fn ready(&self) -> (&'static str, Duration) {
        (if REAL.contains(&self.name.as_str()) { "TICK 3" } else { "TICK 2" }, READY_MAX)
    }

    /// QEMU's options that make it.
    pub(super) fn options(&self) -> Vec<String> {
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let append = format!("console=ttyS0 quiet {}", self.kernel_words);
        let mut words: Vec<String> = vec![
            "-m".to_owned(),
            self.ram_mib.to_string(),
            "-kernel".to_owned(),
            text(self.lab.kernel()),
            "-initrd".to_owned(),
            text(self.lab.initramfs()),
            "-append".to_owned(),
            append,
        ];
        if let Some(disk) = &self.disk {
            let file = text(disk.path().join("disk.qcow2"));
            words.extend(["-drive".to_owned(), format!("file={file},if=virtio,format=qcow2")]);
        }
        words
    }
}

/// A disk over the root image, which itself stays as it is.
fn disk(lab: &Lab) -> Result<TempDir, LabError> {
    let image = lab.root_image();
    if !image.is_file() {
        let cure = "Run `cargo xtask lab setup --real` as root";
        return Err(LabError::Missing { what: image.display().to_string(), cure });
    }
    let folder = super::scratch("disk")?;
    let overlay = folder.path().join("disk.qcow2");
    let (overlay, image) = (overlay.to_string_lossy(), image.to_string_lossy());
    run(&["qemu-img", "create", "-q", "-f", "qcow2", "-b", &image, "-F", "raw", &overlay])?;
    Ok(folder)
}
