//! Memory for payloads of many lengths: equal units, chained. What a source keeps until it is
//! acknowledged and what a sink holds until its turn lie here.
//!
//! One per stream session, on its shard's thread, of fixed size. A payload takes whole units, so
//! free memory never falls apart, and both ends can count the same. A [`Chain`] is given back to
//! the pool that made it, exactly once; dropping the pool frees all.

use dwcp_ffi::arena::{Arena, ArenaError, Lease};
use dwcp_proto::wire::limits::HELD_UNIT_BYTES;

const NONE: u32 = u32::MAX;

/// A payload in the pool.
#[derive(Debug)]
pub(super) struct Chain {
    first: u32,
    bytes: usize,
}

impl Chain {
    /// The payload's length.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Equal units of memory.
#[derive(Debug)]
pub(super) struct Pool {
    memory: Lease,
    /// For each unit the one behind it, in its payload or among the free ones.
    next: Vec<u32>,
    free: u32,
    free_units: usize,
}

/// Memory for parts of a guest: left out of core dumps, and given back to the kernel with the
/// session.
pub(super) fn guest_memory(bytes: usize) -> Result<Lease, ArenaError> {
    match Arena::new(bytes, 1, false)?.lease() {
        Some(memory) => Ok(memory),
        None => unreachable!("a new arena of one slot has it free"),
    }
}

impl Pool {
    /// A pool of so many bytes, in whole units.
    pub(super) fn new(bytes: usize) -> Result<Self, ArenaError> {
        let units = bytes / HELD_UNIT_BYTES;
        let memory = guest_memory(units * HELD_UNIT_BYTES)?;
        assert!(units > 0 && units < NONE as usize, "the arena's bound is below this");
        let mut next: Vec<u32> = (1..=units as u32).collect();
        next[units - 1] = NONE;
        Ok(Self { memory, next, free: 0, free_units: units })
    }

    /// Bytes that are free.
    pub(super) const fn free_bytes(&self) -> usize {
        self.free_units * HELD_UNIT_BYTES
    }

    /// Bytes that payloads take.
    pub(super) fn used_bytes(&self) -> usize {
        (self.next.len() - self.free_units) * HELD_UNIT_BYTES
    }

    /// Copies a payload in; `None` when it does not fit.
    pub(super) fn put(&mut self, payload: &[u8]) -> Option<Chain> {
        let units = payload.len().div_ceil(HELD_UNIT_BYTES);
        if units > self.free_units {
            return None;
        }
        let first = if units == 0 { NONE } else { self.free };
        let mut last = NONE;
        for part in payload.chunks(HELD_UNIT_BYTES) {
            last = self.free;
            let at = last as usize * HELD_UNIT_BYTES;
            self.memory[at..at + part.len()].copy_from_slice(part);
            self.free = self.next[last as usize];
        }
        if last != NONE {
            self.next[last as usize] = NONE;
        }
        self.free_units -= units;
        Some(Chain { first, bytes: payload.len() })
    }

    /// Frees a payload's memory.
    pub(super) fn free(&mut self, chain: Chain) {
        let mut unit = chain.first;
        while unit != NONE {
            let next = self.next[unit as usize];
            self.next[unit as usize] = self.free;
            self.free = unit;
            self.free_units += 1;
            unit = next;
        }
    }

    /// The payload in order, in pieces as long as its units lie side by side.
    pub(super) fn parts(&self, chain: &Chain) -> impl Iterator<Item = &[u8]> {
        let (mut unit, mut left) = (chain.first, chain.bytes);
        std::iter::from_fn(move || {
            if unit == NONE {
                return None;
            }
            let start = unit as usize * HELD_UNIT_BYTES;
            let mut bytes = 0;
            loop {
                bytes += HELD_UNIT_BYTES.min(left - bytes);
                let next = self.next[unit as usize];
                let beside = next == unit + 1;
                unit = next;
                if !beside {
                    break;
                }
            }
            left -= bytes;
            Some(&self.memory[start..start + bytes])
        })
    }

    /// Copies the payload to the start of `out` and returns its length.
    pub(super) fn copy(&self, chain: &Chain, out: &mut [u8]) -> usize {
        let mut at = 0;
        for part in self.parts(chain) {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_pool_takes_nothing_and_loses_nothing() {
        let mut pool = Pool::new(3 * HELD_UNIT_BYTES).unwrap();
        let a = pool.put(&[1; HELD_UNIT_BYTES + 1]).unwrap();
        assert!(pool.put(&[2; HELD_UNIT_BYTES + 1]).is_none());
        let b = pool.put(&[3; HELD_UNIT_BYTES]).unwrap();
        let empty = pool.put(&[]).unwrap();
        assert_eq!((pool.free_bytes(), pool.parts(&empty).count()), (0, 0));
        let mut out = [0; 2 * HELD_UNIT_BYTES];
        assert_eq!(pool.copy(&a, &mut out), HELD_UNIT_BYTES + 1);
        assert!(out[..=HELD_UNIT_BYTES].iter().all(|&byte| byte == 1));
        pool.free(a);
        pool.free(empty);
        assert_eq!(pool.free_bytes(), 2 * HELD_UNIT_BYTES);
        pool.free(b);
        assert_eq!(pool.used_bytes(), 0);
    }

    proptest! {
        #[test]
        fn payloads_keep_their_bytes_whatever_comes_and_goes(
            steps in prop::collection::vec((any::<bool>(), 0..20_000usize), 1..60),
        ) {
            let mut pool = Pool::new(16 * HELD_UNIT_BYTES).unwrap();
            let mut held: Vec<(Chain, Vec<u8>)> = Vec::new();
            for (index, (remove, size)) in steps.into_iter().enumerate() {
                if remove && !held.is_empty() {
                    let (chain, _) = held.remove(size % held.len());
                    pool.free(chain);
                } else {
                    let payload: Vec<u8> = (0..size).map(|at| (at * 7 + index) as u8).collect();
                    let taken = size.next_multiple_of(HELD_UNIT_BYTES);
                    let fits = taken <= pool.free_bytes();
                    let chain = pool.put(&payload);
                    prop_assert_eq!(chain.is_some(), fits);
                    held.extend(chain.map(|chain| (chain, payload)));
                }
                for (chain, payload) in &held {
                    prop_assert_eq!(&pool.parts(chain).collect::<Vec<_>>().concat(), payload);
                }
            }
        }
    }
}
