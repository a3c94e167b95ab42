//! The kernels: each one piece of the codec over one extent of fixed data.
//!
//! [`Kernel::prepare`] makes the data, [`Work::run`] does the work once. A count of two different
//! numbers of runs gives the instructions of one run without the preparation.

use crate::data::Pages;
use dwcp_codec::page::is_zero;
use dwcp_codec::policy::RUNS_PAGE_BYTES_MAX;
use dwcp_codec::runs::encode_runs;
use dwcp_codec::sample::looks_random;
use dwcp_codec::{
    BaseIn, Baseline, Bases, BatchInput, Coding, Decoder, ENCODED_BYTES_MAX, EXTENT_PAGES, Encoder,
    EncoderConfig, ExtentInput, HashKey, LongWindowDecoder, LongWindowEncoder, PAGE_BYTES, Page,
    PageHash, PageHasher,
};
use std::hint::black_box;

/// Pages that one run of any kernel works on.
pub const PAGES_PER_RUN: u64 = EXTENT_PAGES as u64;

const SEED: u64 = 7;
const VERSION: u64 = 1000;
/// Holds the one batch of a run; larger ones would count the clearing of zstd's tables.
const WINDOW_LOG: u32 = 18;

/// A piece of the codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The zero check on zero pages.
    Zero,
    /// The page hash, page by page.
    Hash,
    /// The page hash of all pages at once, as shards hash what they read.
    HashAll,
    /// The guess whether a page is random, on text.
    Sample,
    /// Runs of changed bytes, on touched pages.
    Runs,
    /// An extent of touched pages.
    EncodeRuns,
    /// An extent of moved pages: the prefix code.
    EncodePrefix,
    /// An extent of text: zstd-1.
    EncodeZstd,
    /// An extent of random pages.
    EncodeRaw,
    /// A quarter each of zero, touched, text and random pages.
    EncodeMix,
    /// Decoding of touched pages, hashes included.
    DecodeRuns,
    /// Decoding of moved pages.
    DecodePrefix,
    /// Decoding of text.
    DecodeZstd,
    /// Decoding of random pages.
    DecodeRaw,
    /// Decoding of the mix.
    DecodeMix,
    /// The mix as a batch of pages out of order.
    EncodeBatch,
    /// Decoding of that batch.
    DecodeBatch,
    /// A batch of text, the first of a long window. Making the window is part of it.
    EncodeWindow,
    /// Decoding of that batch, with the making of the window.
    DecodeWindow,
    /// The yardstick: plain zstd-1 on each page of text.
    Baseline,
}

/// All kernels with their names.
pub const KERNELS: [(&str, Kernel); 20] = [
    ("zero", Kernel::Zero),
    ("hash", Kernel::Hash),
    ("hash-all", Kernel::HashAll),
    ("sample", Kernel::Sample),
    ("runs", Kernel::Runs),
    ("encode-runs", Kernel::EncodeRuns),
    ("encode-prefix", Kernel::EncodePrefix),
    ("encode-zstd", Kernel::EncodeZstd),
    ("encode-raw", Kernel::EncodeRaw),
    ("encode-mix", Kernel::EncodeMix),
    ("decode-runs", Kernel::DecodeRuns),
    ("decode-prefix", Kernel::DecodePrefix),
    ("decode-zstd", Kernel::DecodeZstd),
    ("decode-raw", Kernel::DecodeRaw),
    ("decode-mix", Kernel::DecodeMix),
    ("encode-batch", Kernel::EncodeBatch),
    ("decode-batch", Kernel::DecodeBatch),
    ("encode-window", Kernel::EncodeWindow),
    ("decode-window", Kernel::DecodeWindow),
    ("baseline", Kernel::Baseline),
];

impl Kernel {
    /// The kernel of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        KERNELS.iter().find(|(known, _)| *known == name).map(|(_, kernel)| *kernel)
    }

    /// Makes the kernel's data and its first run, which codes what is to be decoded.
    #[must_use]
    pub fn prepare(self) -> Work {
        let mut pages = Pages::new(SEED);
        let hasher = PageHasher::new(&HashKey([42; 32]));
        let mut work = Work {
            kernel: self,
            news: Vec::new(),
            bases: Vec::new(),
            hashes: Vec::new(),
            encoder: Encoder::new(EncoderConfig { zstd_level_max: 1 }),
            decoder: Decoder::new(),
            baseline: Baseline::new(),
            payload: vec![0; ENCODED_BYTES_MAX],
            payload_bytes: 0,
            hasher,
        };
        for index in 0..EXTENT_PAGES {
            let base = pages.text();
            let (new, with_base) = match (self.pages_like(), index % 4) {
                (Self::Zero, _) | (Self::EncodeMix | Self::DecodeMix, 0) => {
                    ([0; PAGE_BYTES], false)
                }
                (Self::Runs | Self::EncodeRuns | Self::DecodeRuns, _)
                | (Self::EncodeMix | Self::DecodeMix, 1) => (pages.touched(&base), true),
                (Self::EncodePrefix | Self::DecodePrefix, _) => (pages.moved(&base), true),
                (Self::EncodeRaw | Self::DecodeRaw, _) | (Self::EncodeMix | Self::DecodeMix, 3) => {
                    (pages.random(), false)
                }
                _ => (base, false),
            };
            work.hashes.push(work.hasher.hash(&new));
            work.news.extend_from_slice(&new);
            work.bases.push(with_base.then(|| (work.hasher.hash(&base), Box::new(base))));
        }
        work.payload_bytes = work.encode();
        work
    }

    /// The kernel whose pages this one works on too.
    const fn pages_like(self) -> Self {
        match self {
            Self::EncodeBatch | Self::DecodeBatch => Self::EncodeMix,
            Self::EncodeWindow | Self::DecodeWindow => Self::EncodeZstd,
            other => other,
        }
    }

    const fn is_batch(self) -> bool {
        matches!(
            self,
            Self::EncodeBatch | Self::DecodeBatch | Self::EncodeWindow | Self::DecodeWindow
        )
    }

    const fn has_window(self) -> bool {
        matches!(self, Self::EncodeWindow | Self::DecodeWindow)
    }
}

/// The pages of a batch: those of the extent, out of order.
const fn batch_number(index: u64) -> u64 {
    index * 37 % PAGES_PER_RUN
}

/// A kernel with its data.
#[derive(Debug)]
pub struct Work {
    kernel: Kernel,
    news: Vec<u8>,
    bases: Vec<Option<(PageHash, Box<Page>)>>,
    hashes: Vec<PageHash>,
    hasher: PageHasher,
    encoder: Encoder,
    decoder: Decoder,
    baseline: Baseline,
    payload: Vec<u8>,
    payload_bytes: usize,
}

/// The sink's versions: the work's bases.
struct Held<'a> {
    bases: &'a [Option<(PageHash, Box<Page>)>],
    is_batch: bool,
}

impl Bases for Held<'_> {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        let mut indices = 0..PAGES_PER_RUN;
        let index =
            if self.is_batch { indices.find(|index| batch_number(*index) == page)? } else { page };
        let (hash, base) = self.bases.get(index as usize)?.as_ref()?;
        out.copy_from_slice(&base[..]);
        (version == VERSION + index).then_some(*hash)
    }
}

impl Work {
    /// Bytes of the extent's payload.
    #[must_use]
    pub const fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Does the kernel's work once and returns a number that depends on all of it.
    ///
    /// # Panics
    /// If the codec refuses its own payload.
    pub fn run(&mut self) -> u64 {
        let pages = self.news.as_chunks::<PAGE_BYTES>().0;
        match self.kernel {
            Kernel::Zero => pages.iter().map(|page| u64::from(is_zero(black_box(page)))).sum(),
            Kernel::Hash => {
                pages.iter().map(|page| u64::from(self.hasher.hash(black_box(page)).0[0])).sum()
            }
            Kernel::HashAll => {
                self.hasher.hash_all(black_box(pages), &mut self.hashes);
                self.hashes.iter().map(|hash| u64::from(hash.0[0])).sum()
            }
            Kernel::Sample => {
                pages.iter().map(|page| u64::from(looks_random(black_box(page)))).sum()
            }
            Kernel::Runs => {
                let mut room = [0; RUNS_PAGE_BYTES_MAX];
                let mut total = 0;
                for (new, base) in pages.iter().zip(&self.bases) {
                    let base = base.as_ref().map_or(new, |(_, base)| base);
                    total += encode_runs(black_box(base), new, &mut room).unwrap_or(0) as u64;
                }
                total
            }
            Kernel::Baseline => {
                let mut total = 0;
                for page in self.news.as_chunks::<PAGE_BYTES>().0 {
                    total += self.baseline.page_bytes(page) as u64;
                }
                total
            }
            Kernel::EncodeRuns
            | Kernel::EncodePrefix
            | Kernel::EncodeZstd
            | Kernel::EncodeRaw
            | Kernel::EncodeMix
            | Kernel::EncodeBatch
            | Kernel::EncodeWindow => self.encode() as u64,
            Kernel::DecodeRuns
            | Kernel::DecodePrefix
            | Kernel::DecodeZstd
            | Kernel::DecodeRaw
            | Kernel::DecodeMix
            | Kernel::DecodeBatch
            | Kernel::DecodeWindow => self.decode(),
        }
    }

    fn encode(&mut self) -> usize {
        let mut bases = [None; EXTENT_PAGES];
        for (index, (room, base)) in bases.iter_mut().zip(&self.bases).enumerate() {
            *room = base.as_ref().map(|(hash, page)| BaseIn {
                version: VERSION + index as u64,
                hash: *hash,
                page,
            });
        }
        let (pages, hashes, bases) = (&self.news[..], &self.hashes[..], &bases[..]);
        let coding = Coding::Full { zstd_level: 1 };
        if self.kernel.is_batch() {
            let numbers: [u64; EXTENT_PAGES] =
                std::array::from_fn(|index| batch_number(index as u64));
            let input = BatchInput { numbers: &numbers, pages, hashes, bases, coding };
            let window =
                self.kernel.has_window().then(|| LongWindowEncoder::new(WINDOW_LOG, 1..=1));
            let mut window = window.and_then(Result::ok);
            let (hasher, out) = (&self.hasher, &mut self.payload);
            return self.encoder.encode_batch(hasher, &input, window.as_mut(), out).bytes;
        }
        let input = ExtentInput { first_page: 0, mask: u64::MAX, pages, hashes, bases, coding };
        self.encoder.encode(&self.hasher, &input, &mut self.payload).bytes
    }

    fn decode(&mut self) -> u64 {
        let payload = &self.payload[..self.payload_bytes];
        let is_batch = self.kernel.is_batch();
        let mut bases = Held { bases: &self.bases, is_batch };
        let (decoder, key) = (&mut self.decoder, &self.hasher);
        let hash = if is_batch {
            let window = self.kernel.has_window().then(|| LongWindowDecoder::new(WINDOW_LOG));
            let mut window = window.and_then(Result::ok);
            decoder
                .decode_batch(key, payload, PAGES_PER_RUN, &mut bases, window.as_mut())
                .map(|batch| batch.hashes[0])
        } else {
            decoder.decode(key, payload, PAGES_PER_RUN, &mut bases).map(|extent| extent.hashes[0])
        };
        assert!(hash.is_ok(), "the codec refuses its own payload");
        hash.map_or(0, |hash| u64::from(hash.0[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_runs_and_repeats_itself() {
        for (name, kernel) in KERNELS {
            let (mut one, mut two) = (kernel.prepare(), kernel.prepare());
            let first = one.run();
            assert_eq!(first, two.run(), "{name}");
            assert_eq!(first, one.run(), "{name}");
        }
    }
}
