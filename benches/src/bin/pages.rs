//! Filling memory page by page for the first time: private pages, as page versions are kept in,
//! beside a shared region of small pages.
//!
//! `cargo run --release -p dwcp-benches --bin pages -- [MIB] [REPEATS]`. Runs the two in turn and
//! prints the time of each and the ratio of the medians, giving the memory back included. On a
//! virtual machine that returns free memory to its host the first touch of each page costs far more
//! than anything else: then both are slow, and the ratio says little.
#![forbid(unsafe_code)]

use dwcp_ffi::memory::PrivatePages;
use dwcp_ffi::region::{HugePages, Region, RegionError};
use std::process::ExitCode;
use std::time::Instant;

const PAGE_BYTES: u64 = 4096;
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES;

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

fn run(pages: u64, repeats: u64) -> Result<(), RegionError> {
    let (mut private, mut shared) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        private.push(seconds(|| fill_private(pages))?);
        shared.push(seconds(|| fill_shared(pages))?);
        if let (Some(private), Some(shared)) = (private.last(), shared.last()) {
            println!("private {private:.3} s   shared {shared:.3} s");
        }
    }
    let (private, shared) = (median(&mut private), median(&mut shared));
    println!("median of {repeats}: ratio {:.3}", private / shared);
    Ok(())
}

fn seconds(work: impl FnOnce() -> Result<(), RegionError>) -> Result<f64, RegionError> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn fill_private(pages: u64) -> Result<(), RegionError> {
    let mut memory = PrivatePages::create(pages * PAGE_BYTES)?;
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
