//! Pages, and stores to put them into.

use dwcp_codec::{HashKey, PAGE_BYTES, Page, PageHash, PageHasher};
use dwcp_store::{
    DomainId, Kind, OpenReport, SegmentId, SegmentInfo, SegmentWriter, Store, StoreKey, StoreLimits,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
pub(crate) const WIDE: StoreLimits =
    StoreLimits { bytes_max: 1 << 30, pages_max: 1 << 20, ttl: Duration::from_secs(7 * 24 * 3600) };
pub(crate) const DOMAIN: DomainId = DomainId([1; 16]);

/// A moment, in days of the tests' calendar.
pub(crate) fn day(number: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * (20_000 + number)
}

pub(crate) fn hash_key() -> HashKey {
    HashKey([2; 32])
}

pub(crate) fn hash(page: &Page) -> PageHash {
    PageHasher::new(&hash_key()).hash(page)
}

/// A page that compresses well and that no other number gives.
pub(crate) fn text(number: u32) -> Page {
    let mut page = [b'.'; PAGE_BYTES];
    page[..4].copy_from_slice(&number.to_le_bytes());
    page
}

/// A page that does not compress and that no other number gives.
pub(crate) fn noise(number: u32) -> Page {
    let mut state = u64::from(number) + 1;
    std::array::from_fn(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// A directory that others may not enter.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir().unwrap()
}

pub(crate) fn open_at(path: &Path, limits: StoreLimits, now: SystemTime) -> (Store, OpenReport) {
    Store::open(path, StoreKey::new([7; 32]), limits, now).unwrap()
}

pub(crate) fn open(path: &Path) -> (Store, OpenReport) {
    open_at(path, WIDE, day(0))
}

pub(crate) fn info(name: &str) -> SegmentInfo {
    let name = name.to_owned();
    SegmentInfo { domain: DOMAIN, hash_key: hash_key(), name, kind: Kind::Guest, note: Vec::new() }
}

/// A writer that took these pages.
pub(crate) fn write(store: &Store, name: &str, pages: &[Page]) -> SegmentWriter {
    let mut writer = store.begin(info(name)).unwrap();
    for page in pages {
        writer.push(hash(page), page).unwrap();
    }
    writer
}

pub(crate) fn land(store: &mut Store, name: &str, pages: &[Page], now: SystemTime) -> SegmentId {
    let writer = write(store, name, pages);
    store.land(writer, now).unwrap()
}

/// True if the page is read; what is read must be the page.
pub(crate) fn reads(store: &mut Store, page: &Page) -> bool {
    let mut out = [0xee; PAGE_BYTES];
    let found = store.read(DOMAIN, &hash(page), &mut out);
    assert_eq!(out, if found { *page } else { [0xee; PAGE_BYTES] }, "a page or nothing");
    found
}

/// The file of a segment.
pub(crate) fn file(path: &Path, id: SegmentId) -> PathBuf {
    path.join(format!("{id}.seg"))
}

/// The names of all files but the lock, sorted.
pub(crate) fn files(path: &Path) -> Vec<String> {
    let names = path.read_dir().unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}

pub(crate) fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = store.list().map(|view| view.name).collect();
    names.sort();
    names
}
