//! Seeded pages: text, records, noise, and changed versions of them.
//!
//! Fixed data, so that instruction counts of two builds can be compared. The text has 4096 words of
//! random letters; zstd-1 brings it to about a third.

use dwcp_codec::{PAGE_BYTES, Page};

/// A small seeded generator (SplitMix64's constants).
#[derive(Clone, Debug)]
pub struct Noise(pub u64);

impl Noise {
    /// The next 64 bits.
    pub const fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }
}

/// Makes pages.
#[derive(Debug)]
pub struct Pages {
    noise: Noise,
    words: Vec<Vec<u8>>,
}

impl Pages {
    /// The pages of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut noise = Noise(seed);
        let words = (0..4096)
            .map(|_| {
                let length = 3 + noise.below(8);
                (0..length).map(|_| b'a' + (noise.below(26) * noise.below(26) / 26) as u8).collect()
            })
            .collect();
        Self { noise, words }
    }

    /// A page of words, frequent ones and rare ones.
    pub fn text(&mut self) -> Page {
        let mut page = [b' '; PAGE_BYTES];
        let mut at = 0;
        while at < PAGE_BYTES {
            let rank = self.noise.below(self.words.len()) * self.noise.below(1000) / 1000;
            let word = &self.words[rank];
            let length = word.len().min(PAGE_BYTES - at);
            page[at..at + length].copy_from_slice(&word[..length]);
            at += length + 1;
        }
        page
    }

    /// A page of random bytes.
    pub fn random(&mut self) -> Page {
        std::array::from_fn(|_| self.noise.word() as u8)
    }

    /// `base` with a dozen changed words of eight bytes.
    pub fn touched(&mut self, base: &Page) -> Page {
        let mut page = *base;
        for _ in 0..12 {
            let at = self.noise.below(PAGE_BYTES / 8) * 8;
            page[at..at + 8].copy_from_slice(&self.noise.word().to_le_bytes());
        }
        page
    }

    /// `base` with fresh text in three places, which moves what follows.
    pub fn moved(&mut self, base: &Page) -> Page {
        let fresh = self.text();
        let mut bytes = base.to_vec();
        for _ in 0..3 {
            let at = self.noise.below(PAGE_BYTES - 100);
            let length = 1 + self.noise.below(40);
            bytes.splice(at..at, fresh[at..at + length].iter().copied());
        }
        let mut page = [0; PAGE_BYTES];
        page.copy_from_slice(&bytes[..PAGE_BYTES]);
        page
    }
}
