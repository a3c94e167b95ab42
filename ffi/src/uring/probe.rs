//! What this kernel's io_uring can do, found out by asking it once at start.
//!
//! Called by the doctor and before the first ring is made, on any thread. It makes a small ring of
//! its own, tries each part and drops the ring again; nothing is found out by failure later.

use super::error::{UringError, kernel, setup_error};
use super::{BUFFER_GROUP, builder};
use crate::mapping::Mapping;
use io_uring::{IoUring, opcode, squeue, types};
use std::num::NonZeroUsize;

/// One part of io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name in the kernel's interface.
    pub name: &'static str,
    /// True when this kernel has it.
    pub present: bool,
    /// False when there is a fallback for it.
    pub required: bool,
    /// The kernel that brought it.
    pub since: &'static str,
}

/// How many parts are asked for.
const FEATURES: usize = 12;

/// The answer of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    features: [Feature; FEATURES],
}

/// The names of the parts that make up zero copy; without them sends are plain.
const SEND_ZC: &str = "IORING_OP_SEND_ZC";
const SEND_ZC_REPORT: &str = "IORING_SEND_ZC_REPORT_USAGE";

/// `zc_flags` that asks the kernel to say whether it copied (linux/io_uring.h).
pub(super) const ZC_REPORT_USAGE: u16 = 1 << 3;

impl Probe {
    /// Asks the kernel.
    ///
    /// # Errors
    /// [`UringError`]: there is no io_uring at all for this process, or no memory for the ring.
    pub fn run() -> Result<Self, UringError> {
        const ENTRIES: u32 = 4;
        // A plain ring first: it tells "no io_uring" from "a part of it is missing".
        let plain = IoUring::new(ENTRIES).map_err(|error| setup_error(error, ENTRIES))?;
        let mut opcodes = io_uring::Probe::new();
        plain.submitter().register_probe(&mut opcodes).map_err(kernel("IORING_REGISTER_PROBE"))?;
        let part = |name, present, since| Feature { name, present, required: true, since };
        let op = |name, code, since| part(name, opcodes.is_supported(code), since);
        let ours = builder(2 * ENTRIES).build(ENTRIES);
        let defer = part("IORING_SETUP_DEFER_TASKRUN", ours.is_ok(), "6.1");
        let mut ring = ours.unwrap_or(plain);
        let optional = |feature| Feature { required: false, ..feature };
        let zero_copy = optional(op(SEND_ZC, opcode::SendZc::CODE, "6.0"));
        let reports = zero_copy.present && has_usage_report(&mut ring);
        Ok(Self {
            features: [
                defer,
                part("IORING_FEAT_NODROP", ring.params().is_feature_nodrop(), "5.5"),
                part("IORING_FEAT_EXT_ARG", ring.params().is_feature_ext_arg(), "5.11"),
                op("IORING_OP_SEND", opcode::Send::CODE, "5.6"),
                op("IORING_OP_RECV", opcode::Recv::CODE, "5.6"),
                op("IORING_OP_POLL_ADD", opcode::PollAdd::CODE, "5.1"),
                op("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel2::CODE, "5.19"),
                part("IORING_REGISTER_FILES2 (sparse)", has_sparse_files(&ring), "5.19"),
                part("IORING_REGISTER_PBUF_RING", has_buffer_ring(&ring), "5.19"),
                part("IORING_REGISTER_SYNC_CANCEL", has_sync_cancel(&ring), "6.0"),
                zero_copy,
                optional(part(SEND_ZC_REPORT, reports, "6.2")),
            ],
        })
    }

    /// Every part that was asked for.
    #[must_use]
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// True when sends can avoid the copy and the kernel says whether they did. Whether a network
    /// device really spares the copy shows only in use: loopback, TUN and veth always copy.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        let has = |name| self.features.iter().any(|part| part.name == name && part.present);
        has(SEND_ZC) && has(SEND_ZC_REPORT)
    }

    /// Refuses a kernel that lacks a part without a fallback, by the name of the first.
    ///
    /// # Errors
    /// [`UringError::Missing`].
    pub fn require(&self) -> Result<(), UringError> {
        match self.features.iter().find(|part| part.required && !part.present) {
            Some(part) => Err(UringError::Missing { feature: part.name, since: part.since }),
            None => Ok(()),
        }
    }
}

/// A table of one empty place.
fn has_sparse_files(ring: &IoUring) -> bool {
    ring.submitter().register_files_sparse(1).is_ok()
}

/// Cancelling in an empty ring finds nothing, which is an answer; a kernel without it says EINVAL.
fn has_sync_cancel(ring: &IoUring) -> bool {
    let none = ring
        .submitter()
        .register_sync_cancel(Some(types::Timespec::new()), types::CancelBuilder::any());
    none.map_or_else(|error| error.raw_os_error() == Some(libc::ENOENT), |()| true)
}

/// A ring of one provided buffer.
fn has_buffer_ring(ring: &IoUring) -> bool {
    const PAGE: NonZeroUsize = NonZeroUsize::new(crate::PAGE_BYTES).expect("a page is not empty");
    let Ok(memory) = Mapping::anonymous(PAGE) else { return false };
    let submitter = ring.submitter();
    // SAFETY: one entry takes 16 bytes of the page, which lives until the group is unregistered
    // below or, should that fail, until the kernel has dropped its own pin on the page.
    let made =
        unsafe { submitter.register_buf_ring_with_flags(memory.address(), 1, BUFFER_GROUP, 0) };
    made.is_ok() && submitter.unregister_buf_ring(BUFFER_GROUP).is_ok()
}

/// A send of nothing on no file: a kernel that does not know the flag says EINVAL before it looks
/// for the file, one that knows it says EBADF.
fn has_usage_report(ring: &mut IoUring) -> bool {
    let nothing =
        opcode::SendZc::new(types::Fd(-1), std::ptr::null(), 0).zc_flags(ZC_REPORT_USAGE).build();
    push_one(ring, &nothing) && ring.submit_and_wait(1).is_ok() && {
        ring.completion().any(|answer| answer.result() == -libc::EBADF)
    }
}

/// Queues one operation that names no memory.
fn push_one(ring: &mut IoUring, entry: &squeue::Entry) -> bool {
    let mut queue = ring.submission();
    // SAFETY: the only caller's operation has no buffer and no file.
    unsafe { queue.push(entry) }.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_what_is_required_or_the_missing_part_is_named() {
        match Probe::run() {
            Ok(probe) => {
                for part in probe.features() {
                    eprintln!("{part:?}");
                }
                match probe.require() {
                    Ok(()) => assert!(probe.features().iter().all(|p| p.present || !p.required)),
                    Err(error) => eprintln!("passed over: {error}"),
                }
            }
            Err(error) => eprintln!("passed over: {error}"),
        }
    }

    #[test]
    fn a_kernel_that_lacks_a_part_is_refused_by_its_name() {
        let Ok(probe) = Probe::run() else { return eprintln!("passed over: no io_uring") };
        for index in 0..FEATURES {
            let mut poorer = probe;
            poorer.features.iter_mut().for_each(|part| part.present = true);
            poorer.features[index].present = false;
            let part = poorer.features[index];
            match poorer.require() {
                Err(UringError::Missing { feature, since }) => {
                    assert_eq!((feature, since), (part.name, part.since));
                }
                other => assert!(other.is_ok() && !part.required && !poorer.zero_copy()),
            }
        }
    }
}
