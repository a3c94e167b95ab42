//! A bounded ring between one producing and one consuming thread.
//!
//! Made by whoever sets up the two threads; then each half moves to its thread. Neither half is
//! `Clone`, and both work through `&mut self`, so that there is one producer and one consumer at
//! any time. No lock, no allocation after [`ring`], no waiting: a full ring returns the value.

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most values that a ring may hold: a bound on what a wrong configuration can allocate.
pub const CAPACITY_MAX: usize = 1 << 20;

/// The value that did not fit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

impl<T> std::error::Error for Full<T> {}

/// Own cache lines for one side's index: 128 bytes, as CPUs prefetch lines in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// What both halves share. `head` and `tail` count values from the start and wrap at `usize::MAX`;
/// the slots from `head` to `tail` hold values, all others are empty.
struct Shared<T> {
    head: Padded<AtomicUsize>,
    tail: Padded<AtomicUsize>,
    producer_gone: AtomicBool,
    consumer_gone: AtomicBool,
    capacity: usize,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is written by the producer alone while it is empty and read by the consumer alone
// while it is full; the release stores of `tail` and `head` hand it over. Values cross threads, so
// they must be Send.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: the ring owns its values; sending it sends them.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The slot that count `index` falls on.
    fn slot(&self, index: usize) -> *mut MaybeUninit<T> {
        // The number of slots is a power of two, so that counts that wrap still map in order.
        self.slots[index & (self.slots.len() - 1)].get()
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = *self.tail.0.get_mut();
        let mut head = *self.head.0.get_mut();
        while head != tail {
            let slot = self.slot(head);
            // SAFETY: both halves are gone (this is the last reference), so no one else accesses
            // the slot.
            let value = unsafe { &mut *slot };
            // SAFETY: slots from head to tail hold values that nobody took; each is dropped once.
            unsafe { value.assume_init_drop() };
            head = head.wrapping_add(1);
        }
    }
}

/// The half that puts values in.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// The consumer's index as last seen: reading it anew costs a cache miss.
    head_seen: usize,
}

/// The half that takes values out.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// The producer's index as last seen.
    tail_seen: usize,
}

/// Makes a ring that holds up to `capacity` values.
///
/// # Panics
/// When `capacity` is zero or above [`CAPACITY_MAX`]: sizes come from a checked configuration.
#[must_use]
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity > 0 && capacity <= CAPACITY_MAX, "a ring of {capacity} values");
    let slots =
        (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let shared = Arc::new(Shared {
        head: Padded(AtomicUsize::new(0)),
        tail: Padded(AtomicUsize::new(0)),
        producer_gone: AtomicBool::new(false),
        consumer_gone: AtomicBool::new(false),
        capacity,
        slots,
    });
    (Producer { shared: Arc::clone(&shared), head_seen: 0 }, Consumer { shared, tail_seen: 0 })
}

impl<T> Producer<T> {
    /// Puts a value in.
    ///
    /// # Errors
    /// The ring is full: the value comes back.
    pub fn push(&mut self, value: T) -> Result<(), Full<T>> {
        let tail = self.shared.tail.0.load(Ordering::Relaxed);
        if tail.wrapping_sub(self.head_seen) == self.shared.capacity {
            self.head_seen = self.shared.head.0.load(Ordering::Acquire);
            if tail.wrapping_sub(self.head_seen) == self.shared.capacity {
                return Err(Full(value));
            }
        }
        let slot = self.shared.slot(tail);
        // SAFETY: the slot is empty (fewer than `capacity` values lie from head to tail) and the
        // consumer does not touch it before the release store below; there is one producer, since
        // it is not Clone and this method takes `&mut self`.
        unsafe { slot.write(MaybeUninit::new(value)) };
        self.shared.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// How many values are in the ring; the consumer may be taking some at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        let tail = self.shared.tail.0.load(Ordering::Relaxed);
        tail.wrapping_sub(self.shared.head.0.load(Ordering::Acquire))
    }

    /// True when the consumer had taken everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values more would fit at least.
    #[must_use]
    pub fn room(&self) -> usize {
        self.shared.capacity - self.len()
    }

    /// The most values that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// True when the consumer was dropped: nothing that is pushed will be taken.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.consumer_gone.load(Ordering::Acquire)
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest value out.
    pub fn pop(&mut self) -> Option<T> {
        let head = self.shared.head.0.load(Ordering::Relaxed);
        if head == self.tail_seen {
            self.tail_seen = self.shared.tail.0.load(Ordering::Acquire);
            if head == self.tail_seen {
                return None;
            }
        }
        let slot = self.shared.slot(head);
        // SAFETY: head is before tail, so the producer filled this slot and released it; there is
        // one consumer, since it is not Clone and this method takes `&mut self`.
        let full = unsafe { slot.read() };
        // SAFETY: the slot held a value, and the store below makes it empty, so that the value is
        // taken once.
        let value = unsafe { full.assume_init() };
        self.shared.head.0.store(head.wrapping_add(1), Ordering::Release);
        Some(value)
    }

    /// How many values are in the ring; the producer may be adding some at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        let head = self.shared.head.0.load(Ordering::Relaxed);
        self.shared.tail.0.load(Ordering::Acquire).wrapping_sub(head)
    }

    /// True when there was nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The most values that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.capacity
    }

    /// True when the producer was dropped. What it had pushed before can still be taken: pop until
    /// `None` after this said true, then the ring is finished.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.producer_gone.load(Ordering::Acquire)
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone.store(true, Ordering::Release);
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.consumer_gone.store(true, Ordering::Release);
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_full_ring_returns_the_value() {
        // 3 is no power of two: the ring must still hold exactly three.
        let (mut producer, mut consumer) = ring(3);
        for round in 0..10 {
            for i in 0..3 {
                assert_eq!(producer.push(Box::new(round * 3 + i)), Ok(()));
            }
            assert_eq!(producer.push(Box::new(99)), Err(Full(Box::new(99))));
            assert_eq!((producer.len(), producer.room(), consumer.len()), (3, 0, 3));
            for i in 0..3 {
                assert_eq!(consumer.pop(), Some(Box::new(round * 3 + i)));
            }
            assert_eq!(consumer.pop(), None);
        }
    }

    #[test]
    fn values_left_in_the_ring_are_dropped_once() {
        let witness = Arc::new(());
        let (mut producer, mut consumer) = ring(8);
        for _ in 0..8 {
            producer.push(Arc::clone(&witness)).unwrap();
        }
        drop(consumer.pop());
        drop(consumer.pop());
        producer.push(Arc::clone(&witness)).unwrap();
        assert_eq!(Arc::strong_count(&witness), 8);
        drop(producer);
        assert!(consumer.is_closed());
        drop(consumer.pop());
        assert_eq!(Arc::strong_count(&witness), 7);
        drop(consumer);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn indices_that_wrap_keep_the_order() {
        let (mut producer, mut consumer) = ring(4);
        let near_end = usize::MAX - 5;
        producer.shared.head.0.store(near_end, Ordering::Relaxed);
        producer.shared.tail.0.store(near_end, Ordering::Relaxed);
        producer.head_seen = near_end;
        consumer.tail_seen = near_end;
        for i in 0..20 {
            producer.push(i).unwrap();
            producer.push(i + 100).unwrap();
            assert_eq!((consumer.pop(), consumer.pop()), (Some(i), Some(i + 100)));
        }
        for i in 0..4 {
            producer.push(i).unwrap();
        }
        assert_eq!(producer.push(4), Err(Full(4)));
    }

    #[test]
    fn two_threads_hammering_lose_and_reorder_nothing() {
        const COUNT: u64 = 300_000;
        let (mut producer, mut consumer) = ring::<Box<u64>>(7);
        let pushing = thread::spawn(move || {
            for i in 0..COUNT {
                let mut value = Box::new(i);
                while let Err(Full(back)) = producer.push(value) {
                    assert!(!producer.is_closed());
                    value = back;
                    thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            match consumer.pop() {
                Some(value) => {
                    assert_eq!(*value, next);
                    next += 1;
                }
                None => thread::yield_now(),
            }
        }
        pushing.join().unwrap();
        assert!(consumer.is_closed());
        assert_eq!(consumer.pop(), None);
    }
}
