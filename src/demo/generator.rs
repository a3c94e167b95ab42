//! What the demo's memory holds: a pure function of the seed, the page number and a version.
//!
//! Called by the filler and the writer thread; holds no state but its word list.
//!
//! Neighbouring pages belong together, as in a guest, so each block of [`BLOCK_PAGES`] pages has
//! one kind. The mix, with the order-0 entropy of a kind's bytes and what plain zstd level 1 makes
//! of a page by itself (measured over 64 MiB; a test holds both
//! to a tenth):
//!
//! | kind | share | bits per byte | zstd-1 per page |
//! |---|---|---|---|
//! | zero: never touched | 10 % | 0.0 | 215 x |
//! | text: log lines | 18 % | 4.9 | 2.1 x |
//! | records: rows of a table | 28 % | 3.9 | 2.3 x |
//! | counters: small numbers | 10 % | 2.2 | 3.0 x |
//! | pointers: a heap | 14 % | 3.1 | 3.0 x |
//! | duplicate: one of 1,024 shared pages | 12 % | 4.9 | 2.5 x |
//! | random: encrypted or compressed | 8 % | 8.0 | 1.0 x |
//! | all | 100 % | 4.5 | 2.5 x |
//!
//! For comparison: plain zstd-1 per page made 2.5 x of the memory of real guests under load.

use super::rng::{Rng, mix};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = dwcp_codec::PAGE_BYTES;
/// Pages of one kind in a row.
pub(crate) const BLOCK_PAGES: u64 = 8;
/// Bytes of one row of a record page.
pub(crate) const RECORD_BYTES: usize = 128;

/// Words of the text; a power of two.
const WORDS: usize = 1024;
/// The longest word, and the step in which words are copied.
const WORD_BYTES_MAX: usize = 16;
/// How many different pages the duplicates are copies of.
const SHARED_PAGES: u64 = 1024;
/// Subjects of random streams that belong to no page have this bit set.
const NO_PAGE: u64 = 1 << 63;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// All zero.
    Zero,
    /// Lines of a log.
    Text,
    /// Rows of a table.
    Records,
    /// Small numbers, eight bytes each.
    Counters,
    /// Pointers, lengths and empty slots.
    Pointers,
    /// A copy of a shared page.
    Duplicate,
    /// Random bytes.
    Random,
}

/// Each kind with its share of the blocks in percent.
pub(crate) const MIX: [(PageKind, u32); 7] = [
    (PageKind::Zero, 10),
    (PageKind::Text, 18),
    (PageKind::Records, 28),
    (PageKind::Counters, 10),
    (PageKind::Pointers, 14),
    (PageKind::Duplicate, 12),
    (PageKind::Random, 8),
];

/// The source of the demo's pages.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    seed: u64,
    words: Vec<([u8; WORD_BYTES_MAX], usize)>,
}

impl Generator {
    /// The pages of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::of(seed, NO_PAGE, 0);
        Self { seed, words: (0..WORDS).map(|_| word(&mut rng)).collect() }
    }

    /// The seed.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// What page `page` holds.
    pub(crate) fn kind(&self, page: u64) -> PageKind {
        let block = page / BLOCK_PAGES;
        let mut draw = Rng::of(self.seed, NO_PAGE | 1, block).below(100);
        for (kind, share) in MIX {
            if draw < share {
                return kind;
            }
            draw -= share;
        }
        PageKind::Random
    }

    /// Where the heap's pointers point.
    pub(crate) fn arena(&self) -> u64 {
        0x7f00_0000_0000 | ((mix(self.seed) & 0xff) << 28)
    }

    /// Writes page `page` to `out`: version 0 is the first content, others are later ones of the
    /// same kind.
    pub(crate) fn fill(&self, page: u64, version: u64, out: &mut [u8]) {
        assert_eq!(out.len(), PAGE_BYTES, "a page has a fixed size");
        let mut rng = Rng::of(self.seed, page, version);
        match self.kind(page) {
            PageKind::Zero => out.fill(0),
            PageKind::Text => self.text(&mut rng, out),
            PageKind::Records => {
                for (row, record) in (0_u64..).zip(out.chunks_exact_mut(RECORD_BYTES)) {
                    self.record(&mut rng, page * 32 + row, record);
                }
            }
            PageKind::Counters => {
                out.as_chunks_mut().0.iter_mut().for_each(|slot| *slot = counter(&mut rng));
            }
            PageKind::Pointers => self.pointers(&mut rng, out),
            PageKind::Duplicate => {
                let shared = rng.next() % SHARED_PAGES;
                let mut rng = Rng::of(self.seed, NO_PAGE | 2, shared);
                if shared.is_multiple_of(2) {
                    self.text(&mut rng, out);
                } else {
                    self.pointers(&mut rng, out);
                }
            }
            PageKind::Random => {
                let words = out.as_chunks_mut().0.iter_mut();
                words.for_each(|slot| *slot = rng.next().to_le_bytes());
            }
        }
    }

    /// Fills `out` with the lines of a log.
    pub(crate) fn text(&self, rng: &mut Rng, out: &mut [u8]) {
        const LEVELS: [&[u8]; 4] = [b" info ", b" info ", b" debug ", b" warn "];
        let mut at = 0;
        let mut column = 0;
        while at < out.len() {
            if column == 0 {
                let mut stamp = *b"2026-04-12T10:00:00.000000";
                let mut digits = rng.next() % 100_000_000;
                for place in [25, 24, 23, 22, 21, 20, 18, 17] {
                    stamp[place] = b'0' + (digits % 10) as u8;
                    digits /= 10;
                }
                at = put(out, at, &stamp);
                at = put(out, at, LEVELS[(rng.next() & 3) as usize]);
            }
            at = put(out, at, self.word(rng));
            column = (column + 1) % 12;
            at = put(out, at, if column == 0 { b"\n" } else { b" " });
        }
    }

    /// Writes one row of a table to the [`RECORD_BYTES`] of `out`.
    pub(crate) fn record(&self, rng: &mut Rng, id: u64, out: &mut [u8]) {
        assert_eq!(out.len(), RECORD_BYTES, "a record has a fixed size");
        out.fill(0);
        put(out, 0, &id.to_le_bytes());
        let stamp = 1_776_000_000_000_000 + (rng.next() >> 30);
        put(out, 8, &stamp.to_le_bytes());
        put(out, 16, &[1, 0, (rng.next() & 3) as u8, 0]);
        put(out, 20, &(rng.below(100_000)).to_le_bytes());
        let at = put(out, 24, self.word(rng));
        put(out, at, self.word(rng));
        put(out, 56, &rng.next().to_le_bytes());
        put(out, 64, &rng.next().to_le_bytes());
        put(out, 80, self.word(rng));
        put(out, 96, &(rng.next() >> 44).to_le_bytes());
    }

    /// Fills `out` with the slots of a heap.
    fn pointers(&self, rng: &mut Rng, out: &mut [u8]) {
        let arena = self.arena();
        for slot in out.as_chunks_mut().0 {
            *slot = pointer(rng, arena);
        }
    }

    /// A word, the early ones of the list more often.
    fn word(&self, rng: &mut Rng) -> &[u8] {
        let draw = rng.next();
        let (first, second) = (draw & 0x3ff, (draw >> 10) & 0x3ff);
        // The product of two draws favours small numbers, as word frequencies do.
        let (word, bytes) = &self.words[((first * second) >> 10) as usize];
        &word[..*bytes]
    }
}

/// A counter's value: most are small, some are unused.
pub(crate) fn counter(rng: &mut Rng) -> [u8; 8] {
    let draw = rng.next();
    let bits = (draw & 31).min(24);
    let value = if draw & 0x60 == 0 { 0 } else { (draw >> 16) & ((1 << bits) - 1) };
    value.to_le_bytes()
}

/// A slot of a heap: a pointer, a length or nothing.
pub(crate) fn pointer(rng: &mut Rng, arena: u64) -> [u8; 8] {
    let draw = rng.next();
    let value = match draw & 7 {
        0..=3 => arena | ((draw >> 24) & 0x00ff_fff0),
        4 => (draw >> 24) & 0xff,
        _ => 0,
    };
    value.to_le_bytes()
}

/// A word of two to five syllables.
fn word(rng: &mut Rng) -> ([u8; WORD_BYTES_MAX], usize) {
    const STARTS: &[u8; 16] = b"bcdfghklmnprstvw";
    const VOWELS: &[u8; 8] = b"aeiouaei";
    let mut bytes = [0; WORD_BYTES_MAX];
    let mut at = 0;
    for _ in 0..1 + rng.below(4) {
        let draw = rng.next();
        bytes[at] = STARTS[(draw & 15) as usize];
        bytes[at + 1] = VOWELS[((draw >> 4) & 7) as usize];
        at += 2;
        if draw & 0x100 != 0 {
            bytes[at] = STARTS[((draw >> 9) & 15) as usize];
            at += 1;
        }
    }
    (bytes, at)
}

/// Copies `bytes` to `out` from `at` on, cut at its end. Returns where the next ones go.
fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let end = (at + bytes.len()).min(out.len());
    out[at..end].copy_from_slice(&bytes[..end - at]);
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 16_384;
    const ZSTD_BOUND: usize = 2 * PAGE_BYTES;

    fn page(generator: &Generator, page: u64, version: u64) -> Vec<u8> {
        let mut bytes = vec![0xa5; PAGE_BYTES];
        generator.fill(page, version, &mut bytes);
        bytes
    }

    /// Bytes after zstd-1 and a count of each byte value.
    struct Measured {
        pages: u64,
        zstd_bytes: u64,
        values: [u64; 256],
    }

    impl Measured {
        fn bits_per_byte(&self) -> f64 {
            let all = (self.pages * PAGE_BYTES as u64) as f64;
            let shares = self.values.iter().filter(|&&n| n > 0).map(|&n| n as f64 / all);
            shares.map(|p| -p * p.log2()).sum()
        }

        fn ratio(&self) -> f64 {
            (self.pages * PAGE_BYTES as u64) as f64 / self.zstd_bytes as f64
        }
    }

    fn measure(generator: &Generator, wanted: impl Fn(PageKind) -> bool) -> Measured {
        let mut context = zstd_safe::CCtx::create();
        let mut coded = vec![0; ZSTD_BOUND];
        let mut sum = Measured { pages: 0, zstd_bytes: 0, values: [0; 256] };
        for index in (0..PAGES).filter(|&index| wanted(generator.kind(index))) {
            let bytes = page(generator, index, 0);
            sum.pages += 1;
            sum.zstd_bytes += context.compress(&mut coded[..], &bytes, 1).unwrap() as u64;
            bytes.iter().for_each(|&byte| sum.values[usize::from(byte)] += 1);
        }
        sum
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let (one, again, other) = (Generator::new(1), Generator::new(1), Generator::new(2));
        let mut differing = 0;
        for index in 0..256 {
            assert_eq!(page(&one, index, 0), page(&again, index, 0), "page {index}");
            differing += u32::from(page(&one, index, 0) != page(&other, index, 0));
        }
        assert!(differing > 200, "{differing}");
    }

    #[test]
    fn a_new_version_of_a_page_keeps_its_kind_and_changes_its_bytes() {
        let generator = Generator::new(3);
        let records = (0..PAGES).find(|&page| generator.kind(page) == PageKind::Records).unwrap();
        assert_ne!(page(&generator, records, 0), page(&generator, records, 1));
        assert_eq!(page(&generator, records, 1)[..2], page(&generator, records, 0)[..2]);
    }

    #[test]
    fn the_shares_of_the_kinds_are_as_documented() {
        assert_eq!(MIX.iter().map(|(_, share)| share).sum::<u32>(), 100);
        let generator = Generator::new(1);
        for (kind, share) in MIX {
            let pages = (0..PAGES * 4).filter(|&page| generator.kind(page) == kind).count();
            let percent = pages as f64 * 100.0 / (PAGES * 4) as f64;
            assert!((percent - f64::from(share)).abs() < 1.5, "{kind:?}: {percent} %");
        }
    }

    #[test]
    fn entropy_and_zstd_1_ratio_are_as_documented() {
        const DOCUMENTED: [(PageKind, f64, f64); 7] = [
            (PageKind::Zero, 0.0, 215.0),
            (PageKind::Text, 4.9, 2.1),
            (PageKind::Records, 3.9, 2.3),
            (PageKind::Counters, 2.2, 3.0),
            (PageKind::Pointers, 3.1, 3.0),
            (PageKind::Duplicate, 4.9, 2.5),
            (PageKind::Random, 8.0, 1.0),
        ];
        let seed = 1;
        let generator = Generator::new(seed);
        let near = |got: f64, documented: f64| (got - documented).abs() <= documented * 0.1;
        for (kind, bits, ratio) in DOCUMENTED {
            let sum = measure(&generator, |other| other == kind);
            let (got_bits, got_ratio) = (sum.bits_per_byte(), sum.ratio());
            assert!(near(got_bits, bits), "seed {seed}, {kind:?}: {got_bits} bits per byte");
            assert!(near(got_ratio, ratio), "seed {seed}, {kind:?}: ratio {got_ratio}");
        }
        let all = measure(&generator, |_| true);
        assert!(near(all.bits_per_byte(), 4.5), "seed {seed}: {}", all.bits_per_byte());
        assert!(near(all.ratio(), 2.5), "seed {seed}: {}", all.ratio());
    }
}
