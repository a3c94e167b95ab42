//! Counters and histograms with one writer and any number of readers.
//!
//! A shard owns the writers, the control thread the readers. Nothing locks, and nothing allocates
//! after the constructors. A writer is not `Clone` and not `Sync`, so that a plain load and store
//! make an addition; readers may see a value that is a moment old, never a torn one. Values that
//! are read together are not one snapshot of one instant.

use std::array;
use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The cells of one block on cache lines of their own (128 bytes: lines are prefetched in pairs),
/// so that a reader of one shard's counters never slows another shard's writer.
#[repr(align(128))]
struct Block<const N: usize>([AtomicU64; N]);

/// Adds to a cell that this thread alone writes.
fn add_alone(cell: &AtomicU64, count: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

/// The one writer of a block of counters. It can move to another thread, not be shared with one.
pub struct CounterWriter<const N: usize> {
    block: Arc<Block<N>>,
    not_sync: PhantomData<Cell<()>>,
}

/// A reader of a block of counters.
#[derive(Clone)]
pub struct CounterReader<const N: usize> {
    block: Arc<Block<N>>,
}

/// Makes a block of `N` counters, all zero.
#[must_use]
pub fn counters<const N: usize>() -> (CounterWriter<N>, CounterReader<N>) {
    let block = Arc::new(Block(array::from_fn(|_| AtomicU64::new(0))));
    (CounterWriter { block: Arc::clone(&block), not_sync: PhantomData }, CounterReader { block })
}

impl<const N: usize> CounterWriter<N> {
    /// Adds `count` to counter `index`, wrapping at the end of `u64`.
    ///
    /// # Panics
    /// When `index` is not below `N`.
    pub fn add(&self, index: usize, count: u64) {
        add_alone(&self.block.0[index], count);
    }

    /// Sets counter `index`, for values that go up and down.
    ///
    /// # Panics
    /// When `index` is not below `N`.
    pub fn set(&self, index: usize, value: u64) {
        self.block.0[index].store(value, Ordering::Relaxed);
    }

    /// The value of counter `index`.
    ///
    /// # Panics
    /// When `index` is not below `N`.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.block.0[index].load(Ordering::Relaxed)
    }
}

impl<const N: usize> CounterReader<N> {
    /// The value of counter `index`.
    ///
    /// # Panics
    /// When `index` is not below `N`.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.block.0[index].load(Ordering::Relaxed)
    }

    /// All values, each as it is when it is read.
    #[must_use]
    pub fn snapshot(&self) -> [u64; N] {
        array::from_fn(|index| self.get(index))
    }
}

impl<const N: usize> fmt::Debug for CounterWriter<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.block.0.iter().map(|c| c.load(Ordering::Relaxed))).finish()
    }
}

impl<const N: usize> fmt::Debug for CounterReader<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

/// Values below this have a cell each; above, each power of two is cut into as many cells. The
/// middle of a cell is then at most 1/32 (3.2 %) from any value in it.
const CELLS_PER_POWER: usize = 16;
const CELLS_PER_POWER_LOG2: u32 = CELLS_PER_POWER.ilog2();

/// 16 exact cells, then 16 for each of the powers 2^4 to 2^63.
pub const HISTOGRAM_CELLS: usize = CELLS_PER_POWER * (64 - CELLS_PER_POWER_LOG2 as usize + 1);

/// The cell that a value falls in.
fn cell_of(value: u64) -> usize {
    if value < CELLS_PER_POWER as u64 {
        return value as usize;
    }
    let shift = value.ilog2() - CELLS_PER_POWER_LOG2;
    // The leading bit is implied by the power; the next four bits choose the cell.
    let within = (value >> shift) as usize - CELLS_PER_POWER;
    CELLS_PER_POWER * (shift as usize + 1) + within
}

/// The middle of a cell.
fn value_of(cell: usize) -> u64 {
    if cell < CELLS_PER_POWER {
        return cell as u64;
    }
    let shift = cell / CELLS_PER_POWER - 1;
    let lowest = ((CELLS_PER_POWER + cell % CELLS_PER_POWER) as u64) << shift;
    lowest + ((1u64 << shift) >> 1)
}

/// The one writer of a histogram.
pub struct HistogramWriter {
    block: Arc<Block<HISTOGRAM_CELLS>>,
    not_sync: PhantomData<Cell<()>>,
}

/// A reader of a histogram.
#[derive(Clone)]
pub struct HistogramReader {
    block: Arc<Block<HISTOGRAM_CELLS>>,
}

/// Makes an empty histogram of fixed log-linear cells over all of `u64`.
#[must_use]
pub fn histogram() -> (HistogramWriter, HistogramReader) {
    let block = Arc::new(Block(array::from_fn(|_| AtomicU64::new(0))));
    (
        HistogramWriter { block: Arc::clone(&block), not_sync: PhantomData },
        HistogramReader { block },
    )
}

impl HistogramWriter {
    /// Counts one value.
    pub fn record(&self, value: u64) {
        add_alone(&self.block.0[cell_of(value)], 1);
    }
}

impl HistogramReader {
    /// The cells that hold something, lowest first: the middle of the cell, at most 3.2 % from what
    /// was recorded, and how many values fell in it.
    pub fn cells(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let loaded = self.block.0.iter().map(|cell| cell.load(Ordering::Relaxed)).enumerate();
        loaded.filter(|&(_, count)| count > 0).map(|(cell, count)| (value_of(cell), count))
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.cells().map(|(_, count)| count).sum()
    }
}

impl fmt::Debug for HistogramWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HistogramWriter")
    }
}

impl fmt::Debug for HistogramReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.cells()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    #[test]
    fn readers_see_what_the_writer_counts_and_never_go_back() {
        const COUNT: u64 = 200_000;
        let (writer, reader) = counters::<3>();
        let watching = reader.clone();
        let counting = thread::spawn(move || {
            for i in 0..COUNT {
                writer.add(0, 1);
                writer.set(1, i);
            }
            writer
        });
        let mut newest = 0;
        while newest < COUNT {
            let seen = watching.get(0);
            assert!(seen >= newest && seen <= COUNT);
            newest = seen;
            thread::yield_now();
        }
        let writer = counting.join().unwrap();
        assert_eq!(reader.snapshot(), [COUNT, COUNT - 1, 0]);
        assert_eq!(writer.get(0), COUNT);
        writer.set(2, u64::MAX);
        writer.add(2, 2);
        assert_eq!(reader.get(2), 1);
    }

    #[test]
    fn a_block_shares_no_cache_line_with_its_neighbours() {
        assert_eq!(align_of::<Block<1>>(), 128);
        assert_eq!(size_of::<Block<1>>(), 128);
    }

    #[test]
    fn cells_cover_all_values_without_gap_or_overlap() {
        assert_eq!(cell_of(0), 0);
        assert_eq!(cell_of(u64::MAX), HISTOGRAM_CELLS - 1);
        for cell in 0..HISTOGRAM_CELLS {
            assert_eq!(cell_of(value_of(cell)), cell);
        }
    }

    proptest! {
        #[test]
        fn a_cell_is_within_six_percent_of_its_values(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let (writer, reader) = histogram();
            writer.record(value);
            let cells: Vec<_> = reader.cells().collect();
            prop_assert_eq!(cells.len(), 1);
            prop_assert_eq!((cells[0].1, reader.count()), (1, 1));
            prop_assert!(cells[0].0.abs_diff(value) as f64 <= value as f64 * 0.06);
        }

        #[test]
        fn cells_keep_the_order_of_values(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(cell_of(a.min(b)) <= cell_of(a.max(b)), true);
        }
    }
}
