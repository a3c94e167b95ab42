//! Filling memory page by page for the first time: private pages, as page versions are kept in,
//! that a caretaker has ready or that nobody has touched, beside a shared region of small pages.
//!
//! `cargo run --release -p dwcp-benches --bin pages -- [MIB] [REPEATS]`. Runs the three in turn and
//! prints the time of each, giving the memory back included, and the medians' ratios to that of the
//! untouched pages. What the caretaker does before and afterwards is not in it. On a virtual
//! machine that returns free memory to its host the first touch of each page costs far more than
//! anything else.
#![forbid(unsafe_code)]

use dwcp_ffi::memory::{Caretaker, PagePool};
use dwcp_ffi::region::{HugePages, Region, RegionError};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PAGE_BYTES: u64 = 4096;
/// How long the caretaker may take.
const READY_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES;

/// Why it did not run.
#[derive(Debug, thiserror::Error)]
enum PagesError {
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error("the caretaker can't start: {0}")]
    Caretaker(#[from] std::io::Error),
    #[error("the caretaker has only {0} bytes ready")]
    Late(u64),
}

fn main() -> ExitCode {
    match (argument(1, 512), argument(2, 5)) {
        (Some(mib), Some(repeats)) => match run(mib * PAGES_PER_MIB, repeats) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("pages: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: pages [MIB] [REPEATS], both from 1 to 65536");
            ExitCode::from(2)
        }
    }
}

fn argument(index: usize, default: u64) -> Option<u64> {
    let Some(text) = std::env::args().nth(index) else { return Some(default) };
    text.parse().ok().filter(|number| (1..=65536).contains(number))
}

fn run(pages: u64, repeats: u64) -> Result<(), PagesError> {
    let bytes = pages * PAGE_BYTES;
    let (untouched, ready) = (PagePool::new(bytes)?, PagePool::new(bytes)?);
    let _caretaker = Caretaker::start(&ready, &[])?;
    ready.want_ready(bytes);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..repeats {
        wait_ready(&ready)?;
        let now = [
            seconds(|| fill_private(&ready, pages))?,
            seconds(|| fill_private(&untouched, pages))?,
            seconds(|| fill_shared(pages))?,
        ];
        println!("ready {:.3} s   untouched {:.3} s   shared {:.3} s", now[0], now[1], now[2]);
        times.iter_mut().zip(now).for_each(|(times, now)| times.push(now));
    }
    let [ready, untouched, shared] = times.map(|mut times| median(&mut times));
    println!(
        "median of {repeats}, untouched 1: ready {:.3}, shared {:.3}",
        ready / untouched,
        shared / untouched
    );
    Ok(())
}

fn wait_ready(pool: &PagePool) -> Result<(), PagesError> {
    let until = Instant::now() + READY_WITHIN;
    while pool.ready_bytes() < pool.wanted_bytes() {
        if Instant::now() > until {
            return Err(PagesError::Late(pool.ready_bytes()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn seconds(work: impl FnOnce() -> Result<(), RegionError>) -> Result<f64, RegionError> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn fill_private(pool: &PagePool, pages: u64) -> Result<(), RegionError> {
    let mut memory = pool.take(pages * PAGE_BYTES)?;
    (0..pages).for_each(|page| memory.page_mut(page).fill(7));
    Ok(())
}

fn fill_shared(pages: u64) -> Result<(), RegionError> {
    let region = Region::create("pages", pages * PAGE_BYTES, HugePages::Never)?;
    let page = [7; PAGE_BYTES as usize];
    (0..pages).for_each(|at| region.write_pages(at, &page));
    Ok(())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
