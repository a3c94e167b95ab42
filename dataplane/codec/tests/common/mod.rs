//! Seeded pages and extents for the tests of the codec, and a sink's bases.

use dwcp_codec::{
    BaseIn, Bases, Coding, EXTENT_PAGES, ExtentInput, HashKey, PAGE_BYTES, Page, PageHash,
    PageHasher,
};

/// A small seeded generator.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn random_page(&mut self) -> Page {
        std::array::from_fn(|_| self.next() as u8)
    }

    pub(crate) fn text_page(&mut self) -> Page {
        const WORDS: [&[u8]; 8] =
            [b"region ", b"page ", b"extent ", b"of ", b"the ", b"sink ", b"a ", b"round, "];
        let mut page = [0; PAGE_BYTES];
        let mut at = 0;
        while at < PAGE_BYTES {
            let word = WORDS[self.below(WORDS.len())];
            let length = word.len().min(PAGE_BYTES - at);
            page[at..at + length].copy_from_slice(&word[..length]);
            at += length;
            // Numbers between the words keep the text from being trivial to compress.
            for digit in page.iter_mut().skip(at).take(3) {
                *digit = b'0' + (self.next() % 10) as u8;
                at += 1;
            }
        }
        page
    }
}

/// What a page of a test extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Absent,
    Zero,
    ZeroWithBase,
    Text,
    Random,
    SameAsBase,
    FewBytes,
    Shifted,
    Rewritten,
    Unrelated,
    MagicBase,
}

pub(crate) const KINDS: [Kind; 11] = [
    Kind::Absent,
    Kind::Zero,
    Kind::ZeroWithBase,
    Kind::Text,
    Kind::Random,
    Kind::SameAsBase,
    Kind::FewBytes,
    Kind::Shifted,
    Kind::Rewritten,
    Kind::Unrelated,
    Kind::MagicBase,
];

/// An extent with its bases, owned.
pub(crate) struct Extent {
    pub(crate) first_page: u64,
    pub(crate) mask: u64,
    pub(crate) pages: Vec<u8>,
    pub(crate) hashes: Vec<PageHash>,
    pub(crate) bases: Vec<Option<(u64, PageHash, Box<Page>)>>,
}

pub(crate) fn hasher() -> PageHasher {
    PageHasher::new(&HashKey([42; 32]))
}

fn make(kind: Kind, noise: &mut Noise) -> (Page, Option<Page>) {
    let text = noise.text_page();
    let mut new = text;
    match kind {
        Kind::Absent | Kind::Zero => ([0; PAGE_BYTES], None),
        Kind::ZeroWithBase => ([0; PAGE_BYTES], Some(text)),
        Kind::Text => (text, None),
        Kind::Random => (noise.random_page(), None),
        Kind::SameAsBase => (text, Some(text)),
        Kind::FewBytes => {
            for _ in 0..=noise.below(30) {
                new[noise.below(PAGE_BYTES)] = noise.next() as u8;
            }
            (new, Some(text))
        }
        Kind::Shifted => {
            new.rotate_right(1 + noise.below(100));
            (new, Some(text))
        }
        Kind::Rewritten => (noise.random_page(), Some(noise.random_page())),
        Kind::Unrelated => (text, Some(noise.text_page())),
        Kind::MagicBase => {
            let mut base = text;
            base[..4].copy_from_slice(&0xec30_a437_u32.to_le_bytes());
            new.rotate_right(3);
            (new, Some(base))
        }
    }
}

impl Extent {
    /// The extent that `kinds` describe: the i-th is page i.
    pub(crate) fn new(first_page: u64, kinds: &[Kind], seed: u64) -> Self {
        assert!(kinds.len() <= EXTENT_PAGES);
        let hasher = hasher();
        let mut noise = Noise(seed);
        let mut extent = Self { first_page, mask: 0, pages: vec![], hashes: vec![], bases: vec![] };
        let mut version = noise.next() >> noise.below(60);
        for (bit, kind) in kinds.iter().enumerate() {
            if *kind == Kind::Absent {
                continue;
            }
            let (page, base) = make(*kind, &mut noise);
            version = version.wrapping_add(noise.next() % 100).wrapping_sub(50);
            extent.mask |= 1 << bit;
            extent.pages.extend_from_slice(&page);
            extent.hashes.push(hasher.hash(&page));
            extent.bases.push(base.map(|base| (version, hasher.hash(&base), Box::new(base))));
        }
        extent
    }

    pub(crate) fn bases_in(&self) -> Vec<Option<BaseIn<'_>>> {
        self.bases
            .iter()
            .map(|base| {
                base.as_ref().map(|(version, hash, page)| BaseIn {
                    version: *version,
                    hash: *hash,
                    page,
                })
            })
            .collect()
    }

    pub(crate) fn input<'a>(
        &'a self,
        bases: &'a [Option<BaseIn<'a>>],
        coding: Coding,
    ) -> ExtentInput<'a> {
        ExtentInput {
            first_page: self.first_page,
            mask: self.mask,
            pages: &self.pages,
            hashes: &self.hashes,
            bases,
            coding,
        }
    }
}

/// The sink's side: knows exactly the extent's bases.
impl Bases for &Extent {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        let bit = page.checked_sub(self.first_page).filter(|bit| *bit < 64)?;
        if self.mask >> bit & 1 == 0 {
            return None;
        }
        let before = (self.mask & ((1 << bit) - 1)).count_ones() as usize;
        let (held, hash, base) = self.bases[before].as_ref()?;
        if *held != version {
            return None;
        }
        out.copy_from_slice(&base[..]);
        Some(*hash)
    }
}
