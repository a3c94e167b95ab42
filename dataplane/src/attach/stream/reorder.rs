//! What a stream sink holds until its turn comes: parts of the stream by channel and position.
//!
//! One per session, on its shard's thread; all sizes are fixed when it is made and follow from the
//! bound that both ends agreed on. A source that keeps the bound never overflows it.

use super::pool::{Chain, Pool};
use super::retain::{parts_max, pool_bytes};
use dwcp_ffi::arena::ArenaError;
use dwcp_proto::ids::{ChannelId, Position};
use dwcp_proto::wire::frame::StreamKind;
use dwcp_proto::wire::limits::CHANNELS_MAX;

const EMPTY: u32 = u32::MAX;

/// A part that is held.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) kind: StreamKind,
    pub(super) chain: Chain,
}

/// What came of a part that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is held now.
    Held,
    /// It had come before.
    Duplicate,
    /// There is no room: the source broke the bound.
    Overflow,
}

/// The parts that wait.
#[derive(Debug)]
pub(super) struct Reorder {
    pool: Pool,
    held: Vec<Option<Held>>,
    free: Vec<u32>,
    /// For each channel a ring of places, by position.
    rings: Vec<u32>,
    parts_max: usize,
    /// The most that was ever held.
    high_water_bytes: usize,
}

/// Memory of a [`Reorder`].
pub(super) const fn reorder_bytes(undelivered_bytes_max: u64) -> usize {
    let per_part =
        size_of::<Option<Held>>() + 2 * size_of::<u32>() + CHANNELS_MAX as usize * size_of::<u32>();
    pool_bytes(undelivered_bytes_max) + parts_max(undelivered_bytes_max) * per_part
}

impl Reorder {
    pub(super) fn new(undelivered_bytes_max: u64) -> Result<Self, ArenaError> {
        let parts_max = parts_max(undelivered_bytes_max);
        Ok(Self {
            pool: Pool::new(pool_bytes(undelivered_bytes_max))?,
            held: (0..parts_max).map(|_| None).collect(),
            free: (0..parts_max as u32).rev().collect(),
            rings: vec![EMPTY; parts_max * usize::from(CHANNELS_MAX)],
            parts_max,
            high_water_bytes: 0,
        })
    }

    /// Takes in a part of a channel whose next part to be handled is `next`.
    pub(super) fn hold(
        &mut self,
        channel: ChannelId,
        next: Position,
        position: Position,
        (kind, payload): (StreamKind, &[u8]),
    ) -> Taken {
        let Some(ahead) = position.0.checked_sub(next.0) else { return Taken::Duplicate };
        if ahead >= self.parts_max as u64 {
            return Taken::Overflow;
        }
        let at = self.ring_slot(channel, position);
        if self.rings[at] != EMPTY {
            return Taken::Duplicate;
        }
        let Some(name) = self.free.pop() else { return Taken::Overflow };
        let Some(chain) = self.pool.put(payload) else {
            self.free.push(name);
            return Taken::Overflow;
        };
        self.held[name as usize] = Some(Held { kind, chain });
        self.rings[at] = name;
        self.high_water_bytes = self.high_water_bytes.max(self.pool.used_bytes());
        Taken::Held
    }

    /// True when the part at `position` is here.
    pub(super) fn has(&self, channel: ChannelId, position: Position) -> bool {
        self.rings[self.ring_slot(channel, position)] != EMPTY
    }

    /// Takes out the part at `position`, which is the channel's next. Its memory stays until
    /// [`Reorder::free`].
    pub(super) fn take(&mut self, channel: ChannelId, position: Position) -> Option<Held> {
        let at = self.ring_slot(channel, position);
        let name = std::mem::replace(&mut self.rings[at], EMPTY);
        let held = self.held.get_mut(name as usize)?.take()?;
        self.free.push(name);
        Some(held)
    }

    /// Holds the bytes of a part that was begun and not finished; `None` when there is no room.
    pub(super) fn put(&mut self, payload: &[u8]) -> Option<Chain> {
        let chain = self.pool.put(payload)?;
        self.high_water_bytes = self.high_water_bytes.max(self.pool.used_bytes());
        Some(chain)
    }

    /// Frees the memory of a part.
    pub(super) fn free(&mut self, chain: Chain) {
        self.pool.free(chain);
    }

    /// The pieces of a part's payload.
    pub(super) fn parts(&self, chain: &Chain) -> impl Iterator<Item = &[u8]> {
        self.pool.parts(chain)
    }

    /// Copies a part's payload to the start of `out` and returns its length.
    pub(super) fn copy(&self, chain: &Chain, out: &mut [u8]) -> usize {
        self.pool.copy(chain, out)
    }

    /// The most that was ever held, in whole units.
    pub(super) const fn high_water_bytes(&self) -> usize {
        self.high_water_bytes
    }

    fn ring_slot(&self, channel: ChannelId, position: Position) -> usize {
        let within = (position.0 % self.parts_max as u64) as usize;
        usize::from(channel.0) * self.parts_max + within
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_proto::wire::limits::{HELD_UNIT_BYTES, UNDELIVERED_BYTES_MIN};

    const CHANNEL: ChannelId = ChannelId(3);

    fn hold(reorder: &mut Reorder, next: u64, position: u64, payload: &[u8]) -> Taken {
        let part = (StreamKind::Opaque, payload);
        reorder.hold(CHANNEL, Position(next), Position(position), part)
    }

    #[test]
    fn parts_come_out_by_position_whatever_order_they_come_in() {
        let mut reorder = Reorder::new(UNDELIVERED_BYTES_MIN).unwrap();
        for position in [3, 1, 0, 2] {
            assert_eq!(hold(&mut reorder, 0, position, &[position as u8; 5000]), Taken::Held);
        }
        assert_eq!(hold(&mut reorder, 0, 2, b"again"), Taken::Duplicate);
        for position in 0..4 {
            let held = reorder.take(CHANNEL, Position(position)).unwrap();
            let bytes: Vec<u8> = reorder.parts(&held.chain).flatten().copied().collect();
            assert_eq!(bytes, vec![position as u8; 5000]);
            reorder.free(held.chain);
        }
        assert!(reorder.take(CHANNEL, Position(4)).is_none());
        assert_eq!(hold(&mut reorder, 4, 1, b"late"), Taken::Duplicate);
        assert_eq!(reorder.high_water_bytes(), 8 * HELD_UNIT_BYTES);
    }

    #[test]
    fn a_source_that_breaks_the_bound_is_found_out() {
        let mut reorder = Reorder::new(UNDELIVERED_BYTES_MIN).unwrap();
        let parts = reorder.parts_max as u64;
        assert_eq!(hold(&mut reorder, 0, parts, b"x"), Taken::Overflow, "too far ahead");
        for position in 0..parts {
            assert_eq!(hold(&mut reorder, 0, position, b"x"), Taken::Held);
        }
        let other = (StreamKind::Opaque, &b"x"[..]);
        let taken = reorder.hold(ChannelId(0), Position(0), Position(0), other);
        assert_eq!(taken, Taken::Overflow, "all units are taken");
    }
}
