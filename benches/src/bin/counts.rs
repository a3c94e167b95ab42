//! `counts`: instructions per page of each kernel of the codec, compared with the recorded ones.
//!
//! One thread. `check` and `record` run this same program under valgrind's callgrind, twice per
//! kernel with different numbers of runs; the difference is free of start-up and preparation.
//! Never judges by time: `time` prints rough figures for people.
#![forbid(unsafe_code)]

use dwcp_benches::kernel::{KERNELS, Kernel, PAGES_PER_RUN};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

const USAGE: &str = "usage: counts check|record|time|list|run KERNEL RUNS";

/// How far a count may be off the recorded one. The same build gives the same count to a few
/// instructions; another compiler or libc moves it by one or two per cent.
const TOLERANCE_PERCENT: u64 = 5;

/// The two numbers of runs whose difference is counted.
const RUNS_FEW: u64 = 2;
const RUNS_MANY: u64 = 10;

/// The library's copy loops by vector instructions on every processor: the string instructions
/// that some prefer count as one, whatever they copy.
const TUNABLES: (&str, &str) = ("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS,-FSRM");

/// Why no count could be made or compared.
#[derive(Debug, thiserror::Error)]
enum CountError {
    #[error("{USAGE}")]
    Usage,
    #[error("there is no kernel of this name; `counts list` names them")]
    NoKernel,
    #[error("valgrind is not installed: install it (apt-get install valgrind) to count")]
    NoValgrind,
    #[error("the recorded counts are for processors with AVX2 and BMI2; this one lacks them")]
    OtherProcessor,
    #[error("valgrind failed with {0}")]
    Valgrind(std::process::ExitStatus),
    #[error("valgrind printed no count")]
    NoCount,
    #[error("the file of recorded counts is damaged in line {0}")]
    Baseline(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl CountError {
    /// 2: wrong use. 3: this machine can't count. 4: anything else.
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage | Self::NoKernel => 2,
            Self::NoValgrind | Self::OtherProcessor => 3,
            _ => 4,
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["check"] => check(),
        ["record"] => record().map(|()| true),
        ["time"] => {
            time();
            Ok(true)
        }
        ["list"] => {
            KERNELS.iter().for_each(|(name, _)| println!("{name}"));
            Ok(true)
        }
        ["run", kernel, runs] => run(kernel, runs).map(|()| true),
        _ => Err(CountError::Usage),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(kernel: &str, runs: &str) -> Result<(), CountError> {
    let runs: u64 = runs.parse().map_err(|_| CountError::Usage)?;
    let mut work = Kernel::from_name(kernel).ok_or(CountError::NoKernel)?.prepare();
    let total = (0..runs).fold(0, |total: u64, _| total.wrapping_add(work.run()));
    println!("{total}");
    Ok(())
}

fn time() {
    println!("{:<14} {:>9} {:>9} {:>11}", "kernel", "ns/page", "GB/s", "bytes/page");
    for (name, kernel) in KERNELS {
        let mut work = kernel.prepare();
        // The best of many short passes is the one that nothing else disturbed.
        let best = (0..50).map(|_| {
            let start = Instant::now();
            std::hint::black_box(work.run());
            start.elapsed()
        });
        let ns = best.min().unwrap_or_default().as_nanos() as f64 / PAGES_PER_RUN as f64;
        let bytes = work.payload_bytes() as u64 / PAGES_PER_RUN;
        println!("{name:<14} {ns:>9.0} {:>9.2} {bytes:>11}", 4096.0 / ns);
    }
}

fn record() -> Result<(), CountError> {
    let mut text =
        String::from("# Instructions per page; see ../README.md for how they are recorded.\n");
    for (name, count) in count_all()? {
        println!("{name:<14} {count:>8}");
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name} {count}");
    }
    Ok(std::fs::write(baseline_path(), text)?)
}

/// Counts all kernels; false if one takes more instructions than recorded, or isn't recorded.
fn check() -> Result<bool, CountError> {
    let recorded = read_baseline()?;
    let mut good = true;
    for (name, count) in count_all()? {
        let Some(&before) = recorded.get(name) else {
            println!("{name:<14} {count:>8}  NOT RECORDED");
            good = false;
            continue;
        };
        let verdict = if count * 100 > before * (100 + TOLERANCE_PERCENT) {
            good = false;
            "WORSE"
        } else if count * 100 < before * (100 - TOLERANCE_PERCENT) {
            "better: record it"
        } else {
            "as recorded"
        };
        println!("{name:<14} {count:>8}  recorded {before:>8}  {verdict}");
    }
    Ok(good)
}

fn count_all() -> Result<Vec<(&'static str, u64)>, CountError> {
    if !has_usual_vectors() {
        return Err(CountError::OtherProcessor);
    }
    let count = |(name, _)| {
        let instructions = count_runs(name, RUNS_MANY)?.saturating_sub(count_runs(name, RUNS_FEW)?);
        Ok((name, instructions / ((RUNS_MANY - RUNS_FEW) * PAGES_PER_RUN)))
    };
    KERNELS.into_iter().map(count).collect()
}

/// The instructions of a whole run of this program.
fn count_runs(kernel: &str, runs: u64) -> Result<u64, CountError> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["run", kernel, &runs.to_string()])
        .env(TUNABLES.0, TUNABLES.1)
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CountError::NoValgrind,
            _ => CountError::Io(error),
        })?;
    if !output.status.success() {
        return Err(CountError::Valgrind(output.status));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok()).ok_or(CountError::NoCount)
}

fn read_baseline() -> Result<BTreeMap<String, u64>, CountError> {
    let text = std::fs::read_to_string(baseline_path())?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines
        .map(|(index, line)| {
            let pair = line.split_once(' ');
            let pair = pair.and_then(|(name, count)| Some((name.into(), count.parse().ok()?)));
            pair.ok_or(CountError::Baseline(index + 1))
        })
        .collect()
}

fn baseline_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("baselines").join("codec.txt")
}

/// BLAKE3, zstd and libc choose their loops by processor. Valgrind hides AVX-512 from them, so
/// that all processors with AVX2 and BMI2 take the same.
#[cfg(target_arch = "x86_64")]
fn has_usual_vectors() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_usual_vectors() -> bool {
    false
}
