//! The ring of provided buffers: where the kernel puts what a multishot receive brings.
//!
//! Owned by one `Uring`, used on its thread. Entries are handed to the kernel by a release store of
//! the tail; a buffer named by a completion is ours until it is handed back. Traffic here is small
//! and inbound: acknowledgements and requests.

use super::BUFFER_GROUP;
use super::error::{UringError, kernel};
use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::MmapAdvise;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The most buffers that the kernel takes in one ring.
pub(super) const BUFFERS_MAX: u16 = 1 << 15;

/// Equal buffers and the ring that offers them.
pub(super) struct Buffers {
    entries: Mapping,
    memory: Mapping,
    count: u16,
    buffer_bytes: usize,
    /// The tail as we last stored it; the kernel only reads it.
    tail: u16,
}

impl Buffers {
    /// Makes `count` buffers (a power of two) and registers them with the ring.
    pub(super) fn register(
        ring: &IoUring,
        count: u16,
        buffer_bytes: u32,
    ) -> Result<Self, UringError> {
        assert!(count.is_power_of_two() && count <= BUFFERS_MAX, "{count} provided buffers");
        let buffer_bytes = buffer_bytes as usize;
        let pages = |bytes: usize| NonZeroUsize::new(bytes.next_multiple_of(PAGE_BYTES));
        let ring_bytes = pages(usize::from(count) * size_of::<BufRingEntry>());
        let data_bytes = pages(usize::from(count) * buffer_bytes);
        let (Some(ring_bytes), Some(data_bytes)) = (ring_bytes, data_bytes) else {
            panic!("provided buffers of no bytes");
        };
        let map = |bytes| {
            Mapping::anonymous(bytes).map_err(|errno| kernel("mmap of buffers")(errno.into()))
        };
        let (entries, memory) = (map(ring_bytes)?, map(data_bytes)?);
        for mapping in [&entries, &memory] {
            for advice in [MmapAdvise::MADV_DONTDUMP, MmapAdvise::MADV_DONTFORK] {
                mapping.advise(advice).map_err(|errno| kernel("madvise")(errno.into()))?;
            }
        }
        let submitter = ring.submitter();
        // SAFETY: the entries' mapping holds `count` entries, is page-aligned, and is dropped after
        // the ring: `Uring` declares the ring before the buffers.
        unsafe {
            submitter.register_buf_ring_with_flags(entries.address(), count, BUFFER_GROUP, 0)
        }
        .map_err(kernel("IORING_REGISTER_PBUF_RING"))?;
        let mut buffers = Self { entries, memory, count, buffer_bytes, tail: 0 };
        for id in 0..count {
            buffers.give_back(id);
        }
        Ok(buffers)
    }

    /// The bytes that a completion put into buffer `id`.
    pub(super) fn bytes(&self, id: u16, length: usize) -> &[u8] {
        assert!(id < self.count && length <= self.buffer_bytes, "the kernel named a wrong buffer");
        let base = self.memory.at(usize::from(id) * self.buffer_bytes);
        // SAFETY: the buffer lies in the mapping (asserted above), which `self` keeps; the kernel
        // does not touch it between the completion that named it and `give_back`, which takes
        // `&mut self` and so can't happen while this slice lives.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), length) }
    }

    /// Hands buffer `id` to the kernel. Called once for each completion that named it.
    pub(super) fn give_back(&mut self, id: u16) {
        assert!(id < self.count, "the kernel named a wrong buffer");
        let place = usize::from(self.tail & (self.count - 1));
        let entry: NonNull<BufRingEntry> =
            self.entries.at(place * size_of::<BufRingEntry>()).cast();
        let address = self.memory.at(usize::from(id) * self.buffer_bytes).as_ptr() as u64;
        // SAFETY: the entry is beyond the tail that the kernel knows, so it is ours alone; it lies
        // in the mapping, which is zeroed at first, aligned and of `count` entries. The reference
        // covers entry 0's tail word too, which the kernel only reads.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.shared_tail().store(self.tail, Ordering::Release);
    }

    /// The word through which the kernel sees how far the entries reach.
    fn shared_tail(&self) -> &AtomicU16 {
        let first = self.entries.base().cast::<BufRingEntry>();
        // SAFETY: the first entry of a registered ring, alive with `self`; the call only computes
        // an address in it.
        let tail = unsafe { BufRingEntry::tail(first.as_ptr()) };
        // SAFETY: the word is aligned, lives with the mapping, is written by this side alone and
        // only through this function; the kernel reads it.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }
    }
}
