//! Random bytes that go through two carriers for as long as somebody wants, checked as they arrive.
//!
//! One thread writes where a VMM would, one reads where the other would and notes how much came in
//! each step of time. Both end when the owner stops or drops the load.

use super::carriers::Carriers;
use super::curve::Curve;
use super::error::{BenchError, io};
use dwcp_tools::lab::wait_for;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Short enough to see a gap of one round trip.
const STEP: Duration = Duration::from_millis(5);

/// How often a thread that waits looks whether it should end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Longer than that nobody waits beyond the time that was asked for.
const BOUND_BEYOND: Duration = Duration::from_secs(60);

const PIECE_BYTES: usize = 256 << 10;

/// Bytes that can't be made smaller (xorshift64).
#[must_use]
pub fn random_bytes(count: usize) -> Arc<[u8]> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..count / 8).flat_map(|_| next()).collect()
}

#[derive(Debug, Default)]
struct Shared {
    stops: AtomicBool,
    offered: AtomicU64,
    arrived: AtomicU64,
}

/// A load that is under way.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    started: Instant,
    writing: Option<JoinHandle<Result<(), BenchError>>>,
    reading: Option<JoinHandle<Result<Curve, BenchError>>>,
}

impl Load {
    /// Begins to send `data`, again and again.
    ///
    /// # Errors
    /// The carriers don't take it.
    pub fn start(carriers: &Carriers, data: &Arc<[u8]>) -> Result<Self, BenchError> {
        let shared = Arc::new(Shared::default());
        let started = Instant::now();
        let near = UnixStream::connect(carriers.entry()).map_err(io("the source's socket"))?;
        let (far, _) = carriers.exit.accept().map_err(io("the sink's socket"))?;
        near.set_write_timeout(Some(LOOK_INTERVAL)).map_err(io("a bound of waiting"))?;
        far.set_read_timeout(Some(LOOK_INTERVAL)).map_err(io("a bound of waiting"))?;
        let (to_write, to_read) = (data.clone(), data.clone());
        let (writer, reader) = (shared.clone(), shared.clone());
        let writing = std::thread::spawn(move || write(near, &to_write, &writer));
        let reading = std::thread::spawn(move || read(far, &to_read, &reader, started));
        Ok(Self { shared, started, writing: Some(writing), reading: Some(reading) })
    }

    /// Waits until so much time has passed since it began.
    ///
    /// # Errors
    /// A signal came.
    pub fn wait_until(&self, seconds: f64) -> Result<(), BenchError> {
        self.watch_until(seconds, |_| ())
    }

    /// The same; `each` is called some fifty times a second.
    ///
    /// # Errors
    /// A signal came.
    pub fn watch_until(&self, seconds: f64, mut each: impl FnMut(&Self)) -> Result<(), BenchError> {
        // Who ended before its time says so when it is stopped.
        let is_over = || self.writing.as_ref().is_none_or(JoinHandle::is_finished);
        let bound = Duration::from_secs_f64(seconds) + BOUND_BEYOND;
        wait_for("time", bound, || {
            each(self);
            Ok((is_over() || self.elapsed_s() >= seconds).then_some(()))
        })?;
        Ok(())
    }

    /// The time since it began.
    #[must_use]
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Bytes that were taken and have not arrived.
    #[must_use]
    pub fn under_way_bytes(&self) -> u64 {
        let arrived = self.shared.arrived.load(Ordering::Acquire);
        self.shared.offered.load(Ordering::Acquire).saturating_sub(arrived)
    }

    /// Ends it; what arrived when.
    ///
    /// # Errors
    /// A carrier ended it before, or other bytes arrived than were sent.
    pub fn stop(mut self) -> Result<Curve, BenchError> {
        self.shared.stops.store(true, Ordering::Release);
        let written = self.writing.take().map(join);
        let read = self.reading.take().map(join);
        written.unwrap_or(Ok(()))?;
        read.unwrap_or_else(|| Ok(Curve::default()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both look for it before long; what they say is of no interest any more.
        self.shared.stops.store(true, Ordering::Release);
        drop(self.writing.take().map(JoinHandle::join));
        drop(self.reading.take().map(JoinHandle::join));
    }
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn write(mut near: UnixStream, data: &[u8], shared: &Shared) -> Result<(), BenchError> {
    let mut at = 0;
    while !shared.stops.load(Ordering::Acquire) {
        let piece = &data[at..data.len().min(at + PIECE_BYTES)];
        match near.write(piece) {
            Ok(count) => {
                at = (at + count) % data.len();
                shared.offered.fetch_add(count as u64, Ordering::AcqRel);
            }
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(io("writing at the source")(error)),
        }
    }
    Ok(())
}

fn read(
    mut far: UnixStream,
    data: &[u8],
    shared: &Shared,
    started: Instant,
) -> Result<Curve, BenchError> {
    let mut curve = Curve { step_s: STEP.as_secs_f64(), bytes: Vec::new() };
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at: u64 = 0;
    let note = |curve: &mut Curve, count: usize| {
        let step = (started.elapsed().as_nanos() / STEP.as_nanos()) as usize;
        curve.bytes.resize((step + 1).max(curve.bytes.len()), 0);
        curve.bytes[step] += count as u64;
    };
    while !shared.stops.load(Ordering::Acquire) {
        match far.read(&mut buffer) {
            Ok(0) => return Err(io("reading at the sink")(ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                if !is_at(data, at, &buffer[..count]) {
                    return Err(BenchError::Differs { at });
                }
                at += count as u64;
                shared.arrived.store(at, Ordering::Release);
                note(&mut curve, count);
            }
            Err(error) if is_wait(&error) => {}
            Err(error) => return Err(io("reading at the sink")(error)),
        }
    }
    // What stood still to the end is a part of the curve too.
    note(&mut curve, 0);
    Ok(curve)
}

/// Whether these bytes are those of the endless repetition of `data` at this place.
fn is_at(data: &[u8], at: u64, mut bytes: &[u8]) -> bool {
    let mut at = (at % data.len() as u64) as usize;
    while !bytes.is_empty() {
        let count = bytes.len().min(data.len() - at);
        if bytes[..count] != data[at..at + count] {
            return false;
        }
        bytes = &bytes[count..];
        at = 0;
    }
    true
}

fn is_wait(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_seen_wherever_they_are() {
        let data = random_bytes(64);
        let twice = [&data[..], &data[..]].concat();
        assert!(is_at(&data, 0, &twice) && is_at(&data, 64 * 7 + 5, &twice[5..100]));
        for at in 0..100 {
            let mut wrong = twice[..100].to_vec();
            wrong[at] ^= 1;
            assert!(!is_at(&data, 64, &wrong), "{at}");
        }
    }
}
