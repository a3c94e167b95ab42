//! The local sockets of a shard's stream sessions, and the watches that tell when to try them.
//!
//! One table per shard, on its thread. A socket is read and written without ever blocking, and only
//! when there is reason to think that it will do: after a try that did, or after a watch reported.
//! A place is used again only when no watch of it is under way, so that a report never reaches a
//! stranger. Never keeps data: what the socket does not take stays with the caller.

use crate::link::Link;
use dwcp_ffi::uring::Interest;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// A socket's place in its shard's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PipeId(u16);

/// What came of reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now; a watch will tell.
    Later,
    /// The other side closed.
    Ended,
    /// The socket failed with this error number.
    Failed(i32),
}

/// What is known of one direction of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// A try may succeed.
    Ready,
    /// A try did not succeed; nobody watches yet.
    Blocked,
    /// A watch is under way.
    Watched,
}

#[derive(Debug)]
struct Place {
    socket: Option<UnixStream>,
    read: Direction,
    write: Direction,
}

impl Place {
    fn is_vacant(&self) -> bool {
        let watched = self.read == Direction::Watched || self.write == Direction::Watched;
        self.socket.is_none() && !watched
    }
}

/// All local sockets of a shard.
#[derive(Debug)]
pub(crate) struct Pipes {
    places: Vec<Place>,
}

impl Pipes {
    /// Watches that may be under way for so many sockets.
    pub(crate) const fn watches_max(pipes_max: usize) -> usize {
        2 * pipes_max
    }

    /// An empty table.
    pub(crate) fn new(pipes_max: usize) -> Self {
        assert!(pipes_max <= usize::from(u16::MAX), "a place is 16 bits wide");
        let vacant = || Place { socket: None, read: Direction::Ready, write: Direction::Ready };
        Self { places: (0..pipes_max).map(|_| vacant()).collect() }
    }

    /// Takes a connected socket over; `None` when the table is full or the kernel refuses it.
    pub(crate) fn add(&mut self, socket: OwnedFd) -> Option<PipeId> {
        let at = self.places.iter().position(Place::is_vacant)?;
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true).ok()?;
        let (read, write) = (Direction::Ready, Direction::Ready);
        self.places[at] = Place { socket: Some(socket), read, write };
        Some(PipeId(at as u16))
    }

    /// True when a read may bring something.
    pub(super) fn is_readable(&self, id: PipeId) -> bool {
        let place = &self.places[usize::from(id.0)];
        place.socket.is_some() && place.read == Direction::Ready
    }

    /// Reads what is there, at most as much as `out` holds.
    pub(super) fn read(&mut self, id: PipeId, out: &mut [u8]) -> Moved {
        let place = &mut self.places[usize::from(id.0)];
        let Some(socket) = &mut place.socket else { return Moved::Ended };
        if place.read != Direction::Ready {
            return Moved::Later;
        }
        moved(socket.read(out), &mut place.read)
    }

    /// Writes as much as the socket takes.
    pub(super) fn write(&mut self, id: PipeId, parts: &[IoSlice<'_>]) -> Moved {
        let place = &mut self.places[usize::from(id.0)];
        let Some(socket) = &mut place.socket else { return Moved::Ended };
        if place.write != Direction::Ready {
            return Moved::Later;
        }
        match socket.write_vectored(parts) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Moved::Ended,
            other => moved(other, &mut place.write),
        }
    }

    /// Tells the VMM that nothing more will be written.
    pub(super) fn end_writing(&mut self, id: PipeId) {
        if let Some(socket) = &self.places[usize::from(id.0)].socket {
            // Refused only when the VMM is gone already.
            let _gone = socket.shutdown(Shutdown::Write);
        }
    }

    /// Ends both directions and closes the socket.
    pub(crate) fn close(&mut self, id: PipeId) {
        if let Some(socket) = self.places[usize::from(id.0)].socket.take() {
            // The kernel keeps a watched file open; shutting down ends the watch.
            let _gone = socket.shutdown(Shutdown::Both);
        }
    }

    /// Watches what a try found not ready.
    pub(crate) fn watch(&mut self, link: &mut impl Link) {
        for (at, place) in self.places.iter_mut().enumerate() {
            let Some(socket) = &place.socket else { continue };
            let name = 2 * at as u32;
            if place.read == Direction::Blocked
                && link.watch(socket.as_fd(), name, Interest::Readable)
            {
                place.read = Direction::Watched;
            }
            if place.write == Direction::Blocked
                && link.watch(socket.as_fd(), name + 1, Interest::Writable)
            {
                place.write = Direction::Watched;
            }
        }
    }

    /// A watch ended.
    pub(crate) fn ready(&mut self, name: u32) {
        let place = &mut self.places[name as usize / 2];
        let direction = if name.is_multiple_of(2) { &mut place.read } else { &mut place.write };
        assert!(*direction == Direction::Watched, "a report of a watch that was not asked for");
        *direction = Direction::Ready;
    }
}

/// What the kernel's answer means for the direction.
fn moved(outcome: std::io::Result<usize>, direction: &mut Direction) -> Moved {
    match outcome {
        Ok(0) => Moved::Ended,
        Ok(bytes) => Moved::Bytes(bytes),
        // A signal is as good as a try that may succeed next time.
        Err(error) if error.kind() == ErrorKind::Interrupted => Moved::Later,
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            *direction = Direction::Blocked;
            Moved::Later
        }
        Err(error) => Moved::Failed(error.raw_os_error().unwrap_or(0)),
    }
}
