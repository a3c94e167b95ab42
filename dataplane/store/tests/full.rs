//! A disk that takes no more: the kernel refuses writes beyond this process's limit of a file's
//! size. In a test program of its own, since the limit is the process's.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_codec::{HashKey, PAGE_BYTES, Page, PageHasher};
use dwcp_store::{DomainId, Kind, SegmentInfo, Store, StoreError, StoreKey, StoreLimits};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use std::time::{Duration, SystemTime};

const KEY: HashKey = HashKey([2; 32]);

fn info(name: &str) -> SegmentInfo {
    let (domain, name) = (DomainId([1; 16]), name.to_owned());
    SegmentInfo { domain, hash_key: KEY, name, kind: Kind::Guest, note: Vec::new() }
}

/// A page that does not compress.
fn noise(number: u64) -> Page {
    let mut state = number + 1;
    std::array::from_fn(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// Writes and lands as many pages; true if an error came before landing.
fn fill(store: &mut Store, name: &str, pages: u64) -> Result<(), (StoreError, bool)> {
    let hasher = PageHasher::new(&KEY);
    let mut writer = store.begin(info(name)).map_err(|error| (error, true))?;
    for page in (0..pages).map(noise) {
        writer.push(hasher.hash(&page), &page).map_err(|error| (error, true))?;
    }
    store.land(writer, SystemTime::UNIX_EPOCH).map(|_| ()).map_err(|error| (error, false))
}

#[test]
fn a_disk_that_is_full_at_any_time_leaves_the_store_as_it_was() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("store");
    let ttl = Duration::from_secs(u64::MAX >> 1);
    let limits = StoreLimits { bytes_max: 1 << 30, pages_max: 1 << 20, ttl };
    let key = StoreKey::new([7; 32]);
    let (mut store, _) = Store::open(&folder, key, limits, SystemTime::UNIX_EPOCH).unwrap();
    fill(&mut store, "old", 20).unwrap();
    let count = || folder.read_dir().unwrap().count();
    let before = (count(), store.stats());

    // Without this the kernel ends the process instead of refusing the write.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    // In the header, in the first and the last block, in the table and in the trailer.
    let whole = 48 + 20 * PAGE_BYTES as u64 + 2 * 16 + 313 + 2 * 4 + 20 * 16 + 16 + 24;
    let cases = [(0, true), (47, true), (60_000, true), (75_000, false), (whole - 100, false)];
    let outcomes: Vec<_> = cases
        .into_iter()
        .chain([(whole - 1, false)])
        .map(|(bytes, early)| {
            setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();
            let outcome = fill(&mut store, "new", 20);
            setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
            (bytes, early, outcome, (count(), store.stats()))
        })
        .collect();
    for (bytes, early, outcome, after) in outcomes {
        let (error, was_early) = outcome.expect_err("the disk is full");
        assert_eq!(was_early, early, "at {bytes}: {error}");
        assert_eq!(error.code(), "store_io", "at {bytes}");
        assert!(error.to_string().contains(".tmp"), "{error}");
        assert!(error.cure().unwrap().contains("free space"), "{error}");
        assert_eq!(after, before, "at {bytes}");
    }
    let hasher = PageHasher::new(&KEY);
    let mut out = [0; PAGE_BYTES];
    assert!(store.read(DomainId([1; 16]), &hasher.hash(&noise(7)), &mut out));
    fill(&mut store, "new", 20).unwrap();
    assert_eq!(store.stats().segments, 2);
}
