//! dwcp-store: the pages that a host keeps on its disk, so that a later migration need not send
//! them.
//!
//! A page is named by its keyed hash within a trust domain ([`DomainId`]), and nothing matches
//! across domains. Pages come in segments: all pages of one guest at one time, or of one image
//! ([`ImageReader`]). A segment is one file, written once ([`SegmentWriter`]), durable or not there
//! at all ([`Store::land`]), and never changed. Everything in it is encrypted and authenticated
//! under a key that comes from the caller's [`StoreKey`]; the format is documented in `layout.rs`.
//!
//! Has one owner, which may wait for the disk: never a shard or the control thread. No threads, no
//! global state; clocks are passed in. A lock keeps a second owner out of the directory.
//!
//! What a file holds is never trusted. A page that is read has the hash that was asked for, or the
//! answer is that it is not here, the segment leaves the store, and a counter says why. Damage
//! costs what was kept, never a migration.
//!
//! Memory: the index takes [`limits::INDEX_BYTES_PER_PAGE`] for each page, so at most that times
//! [`StoreLimits::pages_max`]; a writer up to [`limits::WRITER_BYTES_PER_PAGE`] for each of its
//! pages until it lands, and half a MiB; the store itself less than 2 MiB, most of it the last
//! [`limits::BLOCKS_KEPT`] decoded blocks.
//!
//! # Examples
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use dwcp_codec::{HashKey, PageHasher};
//! use dwcp_store::{DomainId, Kind, SegmentInfo, Store, StoreKey, StoreLimits};
//! use std::time::{Duration, SystemTime};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("store");
//! let ttl = Duration::from_secs(7 * 24 * 3600);
//! let limits = StoreLimits { bytes_max: 1 << 30, pages_max: 1 << 20, ttl };
//! let now = SystemTime::now();
//! let (mut store, report) = Store::open(&path, StoreKey::new([7; 32]), limits, now)?;
//! assert!(report.unusable.is_empty());
//!
//! let domain = DomainId([1; 16]);
//! let hash_key = HashKey([2; 32]);
//! let hasher = PageHasher::new(&hash_key);
//! let (name, kind, note) = ("guest".to_owned(), Kind::Guest, Vec::new());
//! let info = SegmentInfo { domain, hash_key, name, kind, note };
//! let page = [3; 4096];
//! let mut writer = store.begin(info)?;
//! writer.push(hasher.hash(&page), &page)?;
//! store.land(writer, now)?;
//!
//! let mut out = [0; 4096];
//! assert!(store.read(domain, &hasher.hash(&page), &mut out));
//! assert_eq!(out, page);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod blocks;
mod error;
mod folder;
mod image;
mod index;
mod key;
mod layout;
mod load;
mod seen;
mod segment;
mod stats;
mod store;
mod unusable;
mod wiped;
mod writer;

pub mod limits;

pub use error::StoreError;
pub use image::{Image, ImageProgress, ImageReader};
pub use key::{STORE_KEY_BYTES, StoreKey};
pub use limits::StoreLimits;
pub use segment::{DomainId, ID_BYTES, Kind, SegmentId, SegmentInfo, SegmentView};
pub use stats::StoreStats;
pub use store::{OpenReport, Store};
pub use unusable::{Unusable, UnusableFile};
pub use writer::{Pushed, SegmentWriter};
