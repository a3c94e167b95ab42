//! The start and the loop of a carrier's process.
//!
//! The same control thread as a daemon's, without a control socket and without a journal on disk.

use super::carry::Carry;
use super::run::{Inputs, on_this_thread, start};
use super::vm_host::QemuHost;
use crate::carry::{CarryConfig, CarryEvent, CarryReport, CarrySide, CarrySocket};
use crate::config::{ControlConfig, SettingsPort};
use crate::error::ControlError;
use dwcp_dataplane::port::ShardPort;
use dwcp_ffi::poll::WakeReceiver;

/// Carries migration streams on the calling thread until SIGTERM or SIGINT, or until a shard is
/// lost. The shards are told to stop before it returns; joining their threads is the caller's part.
///
/// # Errors
/// Something that it needs is missing or taken, or a shard ended by itself.
pub fn carry(
    config: ControlConfig,
    carry: CarryConfig,
    report: Box<dyn CarryReport>,
    settings: Box<dyn SettingsPort>,
    shards: Vec<ShardPort>,
    wake: WakeReceiver,
) -> Result<(), ControlError> {
    on_this_thread(async move {
        let mut ends = Inputs::open(wake)?;
        let host = Box::new(QemuHost(ends.vms.0.clone()));
        // Before the peer port, so that a taken path leaves no trace.
        let (socket, listen_unix) = match &carry.side {
            CarrySide::Source { listen_unix, .. } => {
                (Some(CarrySocket::bind(listen_unix)?), Some(listen_unix.clone()))
            }
            CarrySide::Sink { .. } => (None, None),
        };
        let mut core = start(config, settings, shards, host, &mut ends).await?;
        let mut carry = Carry::new(carry, report, ends.carry.0.clone());
        carry.report.report(&CarryEvent::Ready { listen_unix, listen: core.listen });
        core.carry = Some(Box::new(carry));
        core.open_carry_link();
        let serving =
            socket.map(|socket| tokio::task::spawn_local(socket.serve(ends.carry.0.clone())));
        let outcome = ends.serve(&mut core).await;
        if let Some(task) = serving {
            task.abort();
            // Its end removes the socket's file.
            let _ = task.await;
        }
        ends.stop(&mut core).await;
        outcome
    })
}
