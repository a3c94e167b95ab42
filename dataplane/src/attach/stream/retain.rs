//! What a stream source has sent: kept coded until it is held at the sink, counted until the VMM
//! there took it.
//!
//! One per session, on its shard's thread; all sizes are fixed when it is made. A part is named
//! from [`Retained::keep`] until it is both held (an ack) and delivered; what a dead stream carried
//! goes out again with the same bytes under the same position. The rule of the bound: the parts
//! that are not delivered count for at most the agreed bytes in whole units, so the sink always
//! has room for them. Each channel may use an equal share of that, so that a VMM that does not
//! read one channel stops only that one.
//!
//! What is under way is bounded twice: as bytes, which the path has to carry, and as what pages
//! come to at the sink ([`Retained::keep`]), which its VMM has to take. Pages that the sink has
//! already are a few bytes each: of those alone, a path's worth would be seconds of the VMM's time,
//! and the guest's pause would wait for it.

use super::meter::Meter;
use super::pool::{Chain, Pool};
use dwcp_ffi::arena::ArenaError;
use dwcp_proto::ids::{ChannelId, Position};
use dwcp_proto::time::Nanos;
use dwcp_proto::window::{PathReport, SendMark, Window, WindowConfig};
use dwcp_proto::wire::frame::StreamKind;
use dwcp_proto::wire::limits::{
    CHANNELS_MAX, HELD_UNIT_BYTES, STREAM_PAYLOAD_BYTES_MAX, UNDELIVERED_BYTES_MIN, held_bytes,
};
use std::collections::VecDeque;

const NONE: u32 = u32::MAX;

/// The least share of a channel in the window while it has nothing under way: with less, a slow
/// link would carry many channels in tiny frames.
const SHARE_BYTES_MIN: u64 = 64 << 10;

/// Bounds of what pages under way come to at the sink. The least is 10 ms of a slow VMM; the first
/// is more than what the first bytes come to, usually; the most is a quarter of a second of a fast
/// one.
const PAGES_BYTES_FLOOR: u64 = 1 << 20;
const PAGES_BYTES_START: u64 = 16 << 20;
const PAGES_BYTES_MAX: u64 = 1 << 30;

/// A part of the stream as it was first sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) channel: ChannelId,
    pub(crate) kind: StreamKind,
    pub(crate) position: Position,
}

#[derive(Debug)]
struct Entry {
    part: Part,
    /// The coded bytes, until the sink holds them.
    chain: Option<Chain>,
    /// The coded bytes' length, and what they count for.
    bytes: u64,
    counted: u64,
    mark: SendMark,
    /// What its pages come to at the sink, if it has any.
    pages: Option<(u64, SendMark)>,
    /// The channel's next undelivered part, or the next free entry.
    next: u32,
    delivered: bool,
    place: Place,
}

/// Where a part is, as far as its source knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With a stream: its ack or its loss will name it.
    InFlight,
    /// Waiting to be sent again.
    Queued,
    /// At the sink.
    Held,
}

/// The undelivered parts of a channel, in order.
#[derive(Clone, Copy, Debug)]
struct Channel {
    head: u32,
    tail: u32,
    /// The position of the next new part.
    next: Position,
    /// How many parts were delivered.
    delivered: u64,
    counted: u64,
}

/// What the sink said that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("position {position} of channel {channel} was never sent, or was said to be delivered")]
pub(crate) struct NeverSent {
    channel: ChannelId,
    position: Position,
}

/// All that a session has sent and that is not yet held or not yet delivered.
#[derive(Debug)]
pub(crate) struct Retained {
    pool: Pool,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    channels: Vec<Channel>,
    resend: VecDeque<u32>,
    window: Window,
    /// The same for what pages come to at the sink, and how much of that is undelivered.
    pages_window: Window,
    pages_undelivered: u64,
    meter: Meter,
    undelivered_max: u64,
    /// Undelivered bytes, as they are and as they count.
    undelivered: u64,
    counted: u64,
}

/// The parts that may be undelivered at a time: each counts for a unit at least.
pub(super) const fn parts_max(undelivered_bytes_max: u64) -> usize {
    pool_bytes(undelivered_bytes_max) / HELD_UNIT_BYTES
}

/// The memory for payloads at either end: what may be undelivered and one record.
pub(super) const fn pool_bytes(undelivered_bytes_max: u64) -> usize {
    let bound = if undelivered_bytes_max < UNDELIVERED_BYTES_MIN {
        UNDELIVERED_BYTES_MIN
    } else {
        undelivered_bytes_max
    };
    held_bytes(bound as usize) + held_bytes(STREAM_PAYLOAD_BYTES_MAX)
}

/// Memory of a [`Retained`].
pub(super) const fn retained_bytes(undelivered_bytes_max: u64) -> usize {
    // Besides its entry a part has a place in the list of free ones and in the queue of what is
    // sent again; a unit has its successor.
    let per_part = size_of::<Option<Entry>>() + 4 * size_of::<u32>();
    pool_bytes(undelivered_bytes_max) + parts_max(undelivered_bytes_max) * per_part
}

impl Retained {
    pub(super) fn new(undelivered_bytes_max: u64, backlog: Nanos) -> Result<Self, ArenaError> {
        let undelivered_max = undelivered_bytes_max.max(UNDELIVERED_BYTES_MIN);
        let parts = parts_max(undelivered_bytes_max);
        let pages = WindowConfig {
            floor_bytes: PAGES_BYTES_FLOOR,
            start_bytes: PAGES_BYTES_START,
            ..WindowConfig::with_backlog(PAGES_BYTES_MAX, backlog)
        };
        let none = Channel { head: NONE, tail: NONE, next: Position(0), delivered: 0, counted: 0 };
        Ok(Self {
            pool: Pool::new(pool_bytes(undelivered_bytes_max))?,
            entries: (0..parts).map(|_| None).collect(),
            free: (0..parts as u32).rev().collect(),
            channels: vec![none; usize::from(CHANNELS_MAX)],
            resend: VecDeque::with_capacity(parts),
            window: Window::new(WindowConfig::with_backlog(undelivered_max, backlog)),
            pages_window: Window::new(pages),
            pages_undelivered: 0,
            meter: Meter::new(),
            undelivered_max,
            undelivered: 0,
            counted: 0,
        })
    }

    /// The longest payload that a channel, one of `channels` open ones, may send now as a new part;
    /// 0 when it has to wait. A whole record may exceed the bound by what it is longer than the
    /// room that is left, if it is the only channel's.
    pub(super) fn room(&self, channel: ChannelId, channels: usize) -> usize {
        let fits = held_bytes(STREAM_PAYLOAD_BYTES_MAX) <= self.pool.free_bytes();
        let behind = self.pages_undelivered >= self.pages_window.window_bytes();
        if self.free.is_empty() || !fits || behind || self.counted >= self.undelivered_max {
            return 0;
        }
        let window = self.window.window_bytes();
        let longest = self.window.record_bytes(STREAM_PAYLOAD_BYTES_MAX as u64) as usize;
        if channels <= 1 {
            return if self.undelivered < window { longest } else { 0 };
        }
        let channels = channels as u64;
        let share = (window / channels).max(SHARE_BYTES_MIN).min(self.undelivered_max / channels);
        let left = share.saturating_sub(self.channels[usize::from(channel.0)].counted);
        // Shares grow when a channel ends, while its last parts still count.
        let left = left.min(self.undelivered_max - self.counted) as usize;
        (left / HELD_UNIT_BYTES * HELD_UNIT_BYTES).min(longest)
    }

    /// The position that the channel's next new part will have.
    pub(super) fn next_position(&self, channel: ChannelId) -> Position {
        self.channels[usize::from(channel.0)].next
    }

    /// Keeps a new part that is about to be sent, and gives it a name and its position. Its pages
    /// come to `pages_bytes` at the sink.
    ///
    /// # Panics
    /// When [`Retained::room`] had said that there is none.
    pub(super) fn keep(
        &mut self,
        channel: ChannelId,
        kind: StreamKind,
        payload: &[u8],
        pages_bytes: u64,
        now: Nanos,
    ) -> (u32, Part) {
        let (Some(name), Some(chain)) = (self.free.pop(), self.pool.put(payload)) else {
            panic!("a part is sent only while there is room to keep it")
        };
        let (bytes, counted) = (payload.len() as u64, held_bytes(payload.len()) as u64);
        let mark = self.window.on_sent(now, self.undelivered, bytes);
        let pages = (pages_bytes > 0).then(|| {
            let mark = self.pages_window.on_sent(now, self.pages_undelivered, pages_bytes);
            (pages_bytes, mark)
        });
        self.pages_undelivered += pages_bytes;
        if self.counted == 0 {
            self.meter.start(now);
        }
        let list = &mut self.channels[usize::from(channel.0)];
        let part = Part { channel, kind, position: list.next };
        list.next = list.next.next();
        list.counted += counted;
        let before = std::mem::replace(&mut list.tail, name);
        if before == NONE {
            list.head = name;
        }
        self.undelivered += bytes;
        self.counted += counted;
        if let Some(Some(before)) = self.entries.get_mut(before as usize) {
            before.next = name;
        }
        let chain = Some(chain);
        let (delivered, place) = (false, Place::InFlight);
        let next = NONE;
        let entry = Entry { part, chain, bytes, counted, mark, pages, next, delivered, place };
        self.entries[name as usize] = Some(entry);
        (name, part)
    }

    /// The sink holds the part: its bytes are not needed any more.
    pub(super) fn acked(&mut self, name: u32) {
        self.entry(name).place = Place::Held;
        self.drop_bytes(name);
        self.release(name);
    }

    /// The part's stream died: it goes out again, unless it was delivered meanwhile.
    pub(super) fn lost(&mut self, name: u32) {
        let entry = self.entry(name);
        if entry.delivered {
            entry.place = Place::Held;
            self.release(name);
        } else {
            entry.place = Place::Queued;
            self.resend.push_back(name);
        }
    }

    /// True when a part waits to be sent again.
    pub(super) fn wants_resend(&self) -> bool {
        !self.resend.is_empty()
    }

    /// The next part that is to be sent again, copied to the start of `out`.
    pub(super) fn resend(&mut self, out: &mut [u8]) -> Option<(u32, Part, usize)> {
        loop {
            let name = self.resend.pop_front()?;
            let entry = self.entry(name);
            if entry.delivered {
                entry.place = Place::Held;
                self.release(name);
                continue;
            }
            entry.place = Place::InFlight;
            let part = entry.part;
            let Some(Some(Entry { chain: Some(chain), .. })) = self.entries.get(name as usize)
            else {
                panic!("a part that is not held keeps its bytes")
            };
            return Some((name, part, self.pool.copy(chain, out)));
        }
    }

    /// The sink's VMM took every part of the channel through `position`. Returns their bytes.
    pub(super) fn delivered(
        &mut self,
        channel: ChannelId,
        position: Position,
        now: Nanos,
    ) -> Result<u64, NeverSent> {
        let list = self.channels[usize::from(channel.0)];
        if position >= list.next {
            return Err(NeverSent { channel, position });
        }
        let (mut bytes, mut newest) = (0, None);
        let (mut pages_bytes, mut newest_pages) = (0, None);
        // Saying the same again is allowed: the first time may have died with its stream.
        for _ in list.delivered..=position.0 {
            let name = self.channels[usize::from(channel.0)].head;
            let entry = self.entry(name);
            entry.delivered = true;
            let (next, counted) = (entry.next, entry.counted);
            bytes += entry.bytes;
            newest = Some(entry.mark);
            if let Some((bytes, mark)) = entry.pages {
                pages_bytes += bytes;
                newest_pages = Some(mark);
            }
            let list = &mut self.channels[usize::from(channel.0)];
            list.head = next;
            if next == NONE {
                list.tail = NONE;
            }
            list.delivered += 1;
            list.counted -= counted;
            self.counted -= counted;
            self.drop_bytes(name);
            self.release(name);
        }
        self.undelivered -= bytes;
        self.pages_undelivered -= pages_bytes;
        if let Some(mark) = newest_pages {
            self.pages_window.on_acked(now, pages_bytes, mark);
        }
        if let Some(mark) = newest {
            self.window.on_acked(now, bytes, mark);
            self.meter.delivered(now, bytes);
        }
        Ok(bytes)
    }

    /// Bytes that are sent and not delivered.
    pub(super) const fn undelivered_bytes(&self) -> u64 {
        self.undelivered
    }

    /// The rate at which the sink's VMM takes the parts; 0 before it is known.
    pub(super) const fn rate_bytes_per_second(&self) -> u64 {
        self.meter.rate_bytes_per_second()
    }

    /// Takes what the link's streams say of the path.
    pub(super) fn set_path(&mut self, path: PathReport) {
        self.window.set_path(path);
        // The path's rate is one of bytes that it carries.
        self.pages_window.set_path(PathReport { rate: 0, in_startup: false, ..path });
    }

    /// The window of undelivered bytes: its round trip, its backlog.
    pub(super) const fn window(&self) -> &Window {
        &self.window
    }

    fn entry(&mut self, name: u32) -> &mut Entry {
        match self.entries.get_mut(name as usize) {
            Some(Some(entry)) => entry,
            _ => panic!("part {name} is not kept"),
        }
    }

    fn drop_bytes(&mut self, name: u32) {
        if let Some(chain) = self.entry(name).chain.take() {
            self.pool.free(chain);
        }
    }

    /// Ends the name once nobody will use it again.
    fn release(&mut self, name: u32) {
        let entry = self.entry(name);
        if entry.delivered && entry.place == Place::Held {
            self.entries[name as usize] = None;
            self.free.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: ChannelId = ChannelId(0);
    const NOW: Nanos = Nanos(1);

    fn retained() -> Retained {
        Retained::new(UNDELIVERED_BYTES_MIN, Nanos::from_millis(50)).unwrap()
    }

    fn keep(retained: &mut Retained, byte: u8, bytes: usize) -> u32 {
        retained.keep(CHANNEL, StreamKind::Opaque, &vec![byte; bytes], 0, NOW).0
    }

    #[test]
    fn a_part_is_free_when_it_is_held_and_delivered_in_either_order() {
        let mut retained = retained();
        let (a, b) = (keep(&mut retained, 1, 5000), keep(&mut retained, 2, 10));
        let parts = retained.free.len() + 2;
        retained.acked(a);
        assert_eq!(retained.undelivered_bytes(), 5010, "held is not delivered");
        assert_eq!(retained.delivered(CHANNEL, Position(1), NOW), Ok(5010));
        assert_eq!(retained.delivered(CHANNEL, Position(1), NOW), Ok(0), "said again");
        assert!(retained.delivered(CHANNEL, Position(2), NOW).is_err(), "never sent");
        assert_eq!(retained.free.len(), parts - 1);
        retained.acked(b);
        assert_eq!((retained.free.len(), retained.pool.used_bytes()), (parts, 0));
    }

    #[test]
    fn what_a_dead_stream_carried_goes_out_again_as_it_was() {
        let mut retained = retained();
        let names = [1, 2, 3].map(|byte| keep(&mut retained, byte, 9000));
        names.iter().for_each(|&name| retained.lost(name));
        assert_eq!(retained.delivered(CHANNEL, Position(0), NOW), Ok(9000), "it had come");
        let mut out = vec![0; 9000];
        for (byte, name) in (2..).zip(&names[1..]) {
            let (again, part, bytes) = retained.resend(&mut out).unwrap();
            assert_eq!((again, part.position.0, bytes), (*name, u64::from(byte) - 1, 9000));
            assert!(out.iter().all(|&found| found == byte));
        }
        assert!(retained.resend(&mut out).is_none() && !retained.wants_resend());
        names[1..].iter().for_each(|&name| retained.acked(name));
        assert_eq!(retained.delivered(CHANNEL, Position(2), NOW), Ok(18_000));
        assert_eq!(retained.pool.used_bytes(), 0);
    }

    #[test]
    fn pages_that_cost_nothing_to_carry_wait_for_the_vmm_that_takes_them() {
        const PAGES_BYTES: u64 = 64 * 4096;
        // A path of 10 ms, and a VMM that takes 200 MB/s of pages.
        let (rtt, each) = (Nanos::from_millis(10), Nanos(PAGES_BYTES * 5));
        let mut retained = retained();
        let mut under_way = VecDeque::new();
        let (mut now, mut free_at, mut position) = (Nanos(0), Nanos(0), 0);
        let mut most = 0;
        while now < Nanos(10 * Nanos::SECOND.0) {
            while retained.room(CHANNEL, 1) > 0 {
                let (name, _) =
                    retained.keep(CHANNEL, StreamKind::Pages, &[7; 300], PAGES_BYTES, now);
                retained.acked(name);
                free_at = free_at.max(now) + each;
                under_way.push_back(free_at + rtt);
            }
            if now > Nanos(Nanos::SECOND.0) {
                most = most.max(under_way.len());
            }
            now = under_way.pop_front().unwrap();
            retained.delivered(CHANNEL, Position(position), now).unwrap();
            position += 1;
        }
        let behind = Nanos(each.0 * most as u64);
        assert!(behind <= Nanos::from_millis(100), "{behind:?} of work before the VMM");
        let rate = position * PAGES_BYTES / 10;
        assert!(rate > 190_000_000, "it is kept busy: {rate}");
    }

    #[test]
    fn one_channel_never_takes_more_than_its_share() {
        let mut retained = retained();
        let mut sent = 0;
        loop {
            let room = retained.room(CHANNEL, 2);
            if room == 0 {
                break;
            }
            sent += room as u64;
            keep(&mut retained, 1, room);
        }
        assert!(sent > 0 && sent <= UNDELIVERED_BYTES_MIN / 2);
        assert!(retained.room(ChannelId(1), 2) > 0, "the other one goes on");
    }

    #[test]
    fn the_bound_holds_when_shares_grow() {
        let mut retained = retained();
        for channels in (2..=5).rev() {
            for channel in 0..channels {
                loop {
                    let room = retained.room(ChannelId(channel), channels.into());
                    if room == 0 {
                        break;
                    }
                    let payload = vec![1; room];
                    retained.keep(ChannelId(channel), StreamKind::Opaque, &payload, 0, NOW);
                }
            }
            assert!(retained.counted <= UNDELIVERED_BYTES_MIN, "{channels} channels");
        }
        assert_eq!(retained.room(CHANNEL, 1), 0);
    }

    #[test]
    fn the_undelivered_bytes_keep_their_bound() {
        let mut retained = retained();
        let mut count = 0;
        while retained.room(CHANNEL, 1) > 0 {
            // Even the shortest parts are bounded: each counts for a unit.
            let name = keep(&mut retained, 1, 1);
            retained.acked(name);
            count += 1;
        }
        assert_eq!(count as u64, UNDELIVERED_BYTES_MIN / HELD_UNIT_BYTES as u64);
    }
}
