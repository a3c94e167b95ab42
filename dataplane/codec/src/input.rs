//! What the coder is given: the pages of one payload, their hashes and bases, and how to code them.
//!
//! Plain borrowed values, made by a shard for each call of the encoder. There are two forms of
//! payload: an extent, whose pages are neighbours named by a mask, and a batch, whose pages are any
//! that a stream session brings at one time. All but the head is the same for both.

use crate::hash::PageHash;
use crate::page::Page;

/// How pages are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// The cheapest class for each page.
    Full {
        /// The zstd level; kept within what the encoder was made for. Without effect where a long
        /// window is used, since its level is its own.
        zstd_level: i32,
    },
    /// Every page as it is.
    Passthrough,
}

/// A version of a page that the sink holds for certain.
#[derive(Clone, Copy, Debug)]
pub struct BaseIn<'a> {
    /// The version's number: what the sink got it with (the sequence of a frame, or the position
    /// in a stream session).
    pub version: u64,
    /// The hash of its bytes.
    pub hash: PageHash,
    /// Its bytes.
    pub page: &'a Page,
}

/// The pages of one extent that are to be sent. Pages that the sink already holds (same hash) must
/// have been left out: the coder takes every page of the mask for a changed one.
#[derive(Clone, Copy, Debug)]
pub struct ExtentInput<'a> {
    /// The extent's first page, a multiple of 64.
    pub first_page: u64,
    /// Bit i: page `first_page + i` is to be sent. Not 0.
    pub mask: u64,
    /// The pages of the mask, joined, ascending.
    pub pages: &'a [u8],
    /// Their hashes.
    pub hashes: &'a [PageHash],
    /// For each of them the base that it may be coded against, if the sink holds one.
    pub bases: &'a [Option<BaseIn<'a>>],
    /// How.
    pub coding: Coding,
}

/// Up to 64 pages of a stream session, in the order in which they came. What is said of unchanged
/// pages in [`ExtentInput`] holds here too.
#[derive(Clone, Copy, Debug)]
pub struct BatchInput<'a> {
    /// The pages' numbers, from 1 to 64 of them, in any order, each at most once.
    pub numbers: &'a [u64],
    /// The pages, joined, in that order.
    pub pages: &'a [u8],
    /// Their hashes.
    pub hashes: &'a [PageHash],
    /// For each of them the base that it may be coded against, if the sink holds one.
    pub bases: &'a [Option<BaseIn<'a>>],
    /// How.
    pub coding: Coding,
}
