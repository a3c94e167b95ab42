//! A TCP proxy between a source and a sink: it cuts, holds, slows down and tampers.
//!
//! One thread accepts, two carry each connection; all end with the proxy. It tells the control
//! channel from data streams by the first byte, as the daemons do, and never sees a key.

use super::records::{Tamper, next_piece, tampered};
use super::{SOON, wait_until};
use dwcp_ffi::sys::tcp::set_receive_buffer;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// The control channel.
    Control,
    /// A data stream.
    Data,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the source.
    Forth,
    /// From the sink.
    Back,
}

/// What is known of one channel in one way, over all its connections.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Bytes passed on.
    passed: u64,
    /// Pieces that wait because the flow is held.
    waiting: u64,
    /// How many bytes in all may pass; `None` for any number.
    limit: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    target: Option<SocketAddr>,
    flows: [[Flow; 2]; 2],
    /// Connections of an older generation end.
    generation: u64,
    refusing: bool,
    stopping: bool,
    tamper: Option<Tamper>,
    tampered: u64,
    /// Goes on in place of the next record with pages.
    injected: Option<Vec<u8>>,
    /// What the source has said since it is recorded, by channel; its connections one behind the
    /// other.
    recorded: Option<[Vec<u8>; 2]>,
    bytes_per_second: Option<u64>,
    /// When the slowed-down flow may pass on more.
    next_at: Option<Instant>,
    /// Both ends of every connection of this generation.
    sockets: Vec<(Channel, TcpStream)>,
}

impl State {
    fn flow(&mut self, channel: Channel, way: Way) -> &mut Flow {
        &mut self.flows[channel as usize][way as usize]
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the proxy panics")
    }
}

/// The proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port and carries to `target`.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        shared.state().target = Some(target);
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Self { shared, address, accepting: Some(accepting) }
    }

    /// Where the source dials.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Carries new connections elsewhere: the sink has come back on another port.
    pub(crate) fn set_target(&self, target: SocketAddr) {
        self.shared.state().target = Some(target);
    }

    /// Ends all connections at once.
    pub(crate) fn cut(&self) {
        let mut state = self.shared.state();
        state.generation += 1;
        for (_, socket) in state.sockets.drain(..) {
            // It fails only if it is closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.shared.changed.notify_all();
    }

    /// Ends the newest data stream alone.
    pub(crate) fn cut_one_stream(&self) {
        let mut state = self.shared.state();
        let newest = state.sockets.iter().rposition(|(channel, _)| *channel == Channel::Data);
        let index = newest.expect("a data stream");
        // The two ends of a connection stand side by side, in this order: from, to.
        for (_, socket) in state.sockets.drain(index - 1..=index) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether new connections are ended at once.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.shared.state().refusing = refusing;
    }

    /// Stops reading one channel in one way.
    pub(crate) fn hold(&self, channel: Channel, way: Way) {
        self.hold_after(channel, way, 0);
    }

    /// Stops reading after so many more bytes.
    pub(crate) fn hold_after(&self, channel: Channel, way: Way, bytes: u64) {
        let mut state = self.shared.state();
        let flow = state.flow(channel, way);
        flow.limit = Some(flow.passed + bytes);
    }

    /// Waits until something waits because of a hold.
    pub(crate) fn wait_held(&self, channel: Channel, way: Way) {
        wait_until("something to hold", SOON, || {
            self.shared.state().flow(channel, way).waiting > 0
        });
    }

    /// Reads on in one channel and way.
    pub(crate) fn release(&self, channel: Channel, way: Way) {
        self.shared.state().flow(channel, way).limit = None;
        self.shared.changed.notify_all();
    }

    /// Reads on everywhere.
    pub(crate) fn release_all(&self) {
        for channel in [Channel::Control, Channel::Data] {
            for way in [Way::Forth, Way::Back] {
                self.release(channel, way);
            }
        }
    }

    /// The bytes passed on so far.
    pub(crate) fn passed(&self, channel: Channel, way: Way) -> u64 {
        self.shared.state().flow(channel, way).passed
    }

    /// Carries no more than so many bytes of data per second.
    pub(crate) fn slow_down(&self, bytes_per_second: u64) {
        self.shared.state().bytes_per_second = Some(bytes_per_second);
    }

    /// Does this to the next record with pages.
    pub(crate) fn tamper(&self, how: Tamper) {
        self.shared.state().tamper = Some(how);
    }

    /// Sends this in place of the next record with pages.
    pub(crate) fn inject(&self, record: Vec<u8>) {
        self.shared.state().injected = Some(record);
    }

    /// Keeps all that the source says from now on.
    pub(crate) fn record(&self) {
        self.shared.state().recorded = Some(Default::default());
    }

    /// What the source has said on a channel since then.
    pub(crate) fn recorded(&self, channel: Channel) -> Vec<u8> {
        let state = self.shared.state();
        state.recorded.as_ref().expect("it records")[channel as usize].clone()
    }

    /// How many records were tampered with.
    pub(crate) fn tampered(&self) -> u64 {
        self.shared.state().tampered
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().stopping = true;
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the proxy panicked");
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut carriers = Vec::new();
    while let Ok((from, _)) = listener.accept() {
        if shared.state().stopping {
            break;
        }
        let shared = Arc::clone(shared);
        // A connection that fails is what the daemons see as a cut.
        carriers.push(std::thread::spawn(move || drop(carry(from, &shared))));
    }
    carriers.into_iter().for_each(|carrier| carrier.join().expect("no carrier panics"));
}

/// Carries one connection until either end closes it or the proxy cuts it.
fn carry(from: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    from.set_nodelay(true)?;
    from.set_read_timeout(Some(SOON))?;
    let mut first = [0];
    if from.peek(&mut first)? == 0 {
        return Ok(());
    }
    from.set_read_timeout(None)?;
    let channel = if first[0] == b'D' { Channel::Data } else { Channel::Control };
    let (target, slow) = {
        let state = shared.state();
        if state.refusing || state.stopping {
            return Ok(());
        }
        (state.target.expect("a target"), state.bytes_per_second.is_some())
    };
    let to = TcpStream::connect(target)?;
    to.set_nodelay(true)?;
    if slow {
        // What waits in the proxy's own socket is a queue that a real slow path would not have.
        set_receive_buffer(from.as_fd(), 64 << 10)?;
    }
    let generation = {
        let mut state = shared.state();
        state.sockets.push((channel, from.try_clone()?));
        state.sockets.push((channel, to.try_clone()?));
        state.generation
    };
    let pump = |from: &TcpStream, to: &TcpStream, way| -> io::Result<Pump> {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        Ok(Pump { from, to, channel, way, generation, shared: Arc::clone(shared) })
    };
    let (forth, back) = (pump(&from, &to, Way::Forth)?, pump(&to, &from, Way::Back)?);
    let back = std::thread::spawn(move || back.run());
    forth.run();
    back.join().expect("no pump panics");
    Ok(())
}

/// One way of one connection.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    channel: Channel,
    way: Way,
    generation: u64,
    shared: Arc<Shared>,
}

impl Pump {
    fn run(mut self) {
        // A failure ends the connection, in both ways, like the end of either side.
        let _ = self.pass_on();
        let _ = self.to.shutdown(Shutdown::Both);
        let _ = self.from.shutdown(Shutdown::Both);
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let by_records = self.channel == Channel::Data && self.way == Way::Forth;
        let mut first = true;
        loop {
            let mut piece = if by_records {
                next_piece(&mut self.from, first)?
            } else {
                let mut piece = vec![0; 64 << 10];
                let count = self.from.read(&mut piece)?;
                piece.truncate(count);
                piece
            };
            if piece.is_empty() || !self.may_pass(piece.len()) {
                return Ok(());
            }
            let mut last = false;
            if by_records && !first && Tamper::wants(&piece) {
                let how = self.shared.state().tamper.take();
                if let Some(injected) = self.shared.state().injected.take() {
                    piece = injected;
                }
                if let Some(how) = how {
                    let from = &mut self.from;
                    (piece, last) = tampered(how, piece, || next_piece(from, false))?;
                    self.shared.state().tampered += 1;
                }
            }
            first = false;
            if self.way == Way::Forth
                && let Some(recorded) = &mut self.shared.state().recorded
            {
                recorded[self.channel as usize].extend_from_slice(&piece);
            }
            self.write(&piece)?;
            if last {
                return Ok(());
            }
        }
    }

    /// Waits while the flow is held; false when the connection is cut.
    fn may_pass(&self, bytes: usize) -> bool {
        let (channel, way) = (self.channel, self.way);
        let mut state = self.shared.state();
        loop {
            if state.generation != self.generation {
                return false;
            }
            let flow = state.flow(channel, way);
            if flow.limit.is_none_or(|limit| flow.passed < limit) {
                flow.passed += bytes as u64;
                return true;
            }
            flow.waiting += 1;
            state = self.shared.changed.wait(state).expect("no thread of the proxy panics");
            state.flow(channel, way).waiting -= 1;
        }
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        for part in piece.chunks(16 << 10) {
            if self.channel == Channel::Data && self.way == Way::Forth {
                self.wait_turn(part.len());
            }
            self.to.write_all(part)?;
        }
        Ok(())
    }

    /// Keeps to the rate, which all streams share.
    fn wait_turn(&self, bytes: usize) {
        let mut state = self.shared.state();
        let Some(rate) = state.bytes_per_second else { return };
        let now = Instant::now();
        let at = state.next_at.map_or(now, |at| at.max(now));
        let nanos = bytes as u64 * 1_000_000_000 / rate;
        state.next_at = Some(at + Duration::from_nanos(nanos));
        drop(state);
        while let Some(left) = at.checked_duration_since(Instant::now()).filter(|l| !l.is_zero()) {
            std::thread::park_timeout(left);
        }
    }
}
