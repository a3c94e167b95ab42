//! The link emulator: two network devices in two namespaces, and a thread for each way between
//! them.
//!
//! Made and owned by [`super::Net`]; changed live from any thread. The threads run before all
//! ordinary ones of the machine where that is allowed, since a link that is late because a
//! compiler is busy measures the compiler. The devices go away with the relay.

mod direction;
mod loss;
mod packet;
mod shaper;
mod stats;

pub use stats::LinkStats;

use super::error::LabError;
use super::link_spec::LinkSpec;
use super::netns;
use direction::{Direction, Shared};
use dwcp_ffi::poll::{Waker, waker};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// One end of a link: a device to be made in a namespace.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) namespace: String,
    pub(super) device: String,
}

/// Changes one way of a link; it may outlive the link, and then changes nothing.
#[derive(Clone, Debug)]
pub(super) struct WayControl {
    shared: Arc<Shared>,
    waker: Waker,
}

impl WayControl {
    pub(super) fn set(&self, words: &str) -> Result<(), LabError> {
        self.shared.spec.lock().unwrap_or_else(PoisonError::into_inner).apply(words)?;
        self.shared.version.fetch_add(1, Ordering::Release);
        self.waker.wake();
        Ok(())
    }
}

/// One way through a link. What is changed holds for packets from then on; what is under way keeps
/// its time.
#[derive(Debug)]
pub struct Way {
    control: WayControl,
    thread: Option<JoinHandle<()>>,
}

impl Way {
    /// Changes what the words name, such as `rate=100m loss=0.01`; see [`LinkSpec::HELP`].
    ///
    /// # Errors
    /// A word is not understood; then nothing is changed.
    pub fn set(&self, words: &str) -> Result<(), LabError> {
        self.control.set(words)
    }

    pub(super) fn control(&self) -> WayControl {
        self.control.clone()
    }

    /// What it does to packets now.
    #[must_use]
    pub fn spec(&self) -> LinkSpec {
        self.control.shared.spec.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.control.shared.counters.snapshot()
    }

    fn start(from: &Arc<File>, to: &Arc<File>, spec: LinkSpec) -> std::io::Result<Self> {
        let (waker, wake) = waker()?;
        let shared = Arc::new(Shared {
            spec: Mutex::new(spec),
            version: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            counters: stats::Counters::default(),
        });
        let direction = Direction::new(from.clone(), to.clone(), shared.clone(), wake);
        let thread = std::thread::Builder::new().name("lab-link".to_owned());
        let thread = Some(thread.spawn(move || direction.run())?);
        Ok(Self { control: WayControl { shared, waker }, thread })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.control.shared.stops.store(true, Ordering::Release);
        self.control.waker.wake();
        let outcome = self.thread.take().map(JoinHandle::join);
        assert!(
            !matches!(outcome, Some(Err(_))) || std::thread::panicking(),
            "a thread of the link emulator panicked"
        );
    }
}

/// A link: both ways.
#[derive(Debug)]
pub struct Link {
    there: Way,
    back: Way,
}

impl Link {
    /// Makes the devices, which still are to be given addresses, and starts the threads.
    pub(super) fn start(ends: [End; 2], spec: &LinkSpec) -> Result<Self, LabError> {
        let [a, b] = ends;
        let failed = |source| LabError::Link {
            device: a.device.clone(),
            namespace: a.namespace.clone(),
            source,
        };
        let (from, to) = (Arc::new(device(&a)?), Arc::new(device(&b)?));
        let there = Way::start(&from, &to, spec.clone()).map_err(failed)?;
        // The ways must not lose the same segments of what they carry.
        let spec = LinkSpec { seed: spec.seed.wrapping_add(1 << 32), ..spec.clone() };
        let back = Way::start(&to, &from, spec).map_err(failed)?;
        Ok(Self { there, back })
    }

    /// From the node that the link's name has first to the other.
    #[must_use]
    pub fn there(&self) -> &Way {
        &self.there
    }

    /// The other way.
    #[must_use]
    pub fn back(&self) -> &Way {
        &self.back
    }

    /// Changes both ways, see [`Way::set`].
    ///
    /// # Errors
    /// A word is not understood; then nothing is changed.
    pub fn set(&self, words: &str) -> Result<(), LabError> {
        self.there.set(words)?;
        self.back.set(words)
    }
}

/// Makes the device of one end.
fn device(end: &End) -> Result<File, LabError> {
    let name = end.device.clone();
    let made = netns::enter(&end.namespace, move || dwcp_ffi::lab::tun(&name))?;
    made.map_err(|source| LabError::Link {
        device: end.device.clone(),
        namespace: end.namespace.clone(),
        source,
    })
}
