//! Secrets that both ends of one control channel share and nobody else: TLS exporters.
//!
//! Runs on the control thread. A plaintext channel has no secret: its streams carry plain records,
//! and its page hash is keyed by a constant.

use super::channel::Transport;
use dwcp_dataplane::port::HashKey;
use dwcp_proto::ids::{Incarnation, LinkEpoch, StreamId};
use dwcp_proto::wire::keys::{
    Direction, DirectionKey, EXPORTED_BYTES, PAGE_HASH_LABEL, STREAM_KEY_LABEL, StreamKeys,
    key_context,
};
use std::cell::RefCell;
use std::rc::Rc;

/// Derives secrets of one control channel.
#[derive(Clone)]
pub(crate) struct Exporter(Rc<RefCell<Transport>>);

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exporter(..)")
    }
}

/// The channel can't derive a secret.
#[derive(Debug, thiserror::Error)]
#[error("the control channel can't derive keys: {0}")]
pub struct ExporterFailed(#[from] rustls::Error);

impl Exporter {
    pub(crate) fn new(transport: Rc<RefCell<Transport>>) -> Self {
        Self(transport)
    }

    /// `BYTES` secret bytes for `label` and `context`; `None` on a plaintext channel.
    fn derive<const BYTES: usize>(
        &self,
        label: &[u8],
        context: &[u8],
    ) -> Result<Option<[u8; BYTES]>, ExporterFailed> {
        let out = [0; BYTES];
        Ok(match &*self.0.borrow() {
            Transport::Client(tls) => {
                Some(tls.get_ref().1.export_keying_material(out, label, Some(context))?)
            }
            Transport::Server(tls) => {
                Some(tls.get_ref().1.export_keying_material(out, label, Some(context))?)
            }
            Transport::Plain(_) => None,
        })
    }

    /// The key of the page hash of this channel's sessions.
    pub(crate) fn page_hash_key(&self) -> Result<HashKey, ExporterFailed> {
        Ok(HashKey(self.derive(PAGE_HASH_LABEL, b"")?.unwrap_or([0; 32])))
    }

    /// The keys of one incarnation of a stream. `dialled` tells which end of the link we are.
    pub(crate) fn stream_keys(
        &self,
        epoch: LinkEpoch,
        stream: StreamId,
        incarnation: Incarnation,
        dialled: bool,
    ) -> Result<StreamKeys, ExporterFailed> {
        let key = |direction| {
            let context = key_context(epoch, stream, incarnation, direction);
            let exported = self.derive::<EXPORTED_BYTES>(STREAM_KEY_LABEL, &context)?;
            Ok::<_, ExporterFailed>(exported.map(|bytes| DirectionKey::from_exported(&bytes)))
        };
        let outward = key(Direction::SourceToSink)?.unwrap_or(DirectionKey::Plain);
        let inward = key(Direction::SinkToSource)?.unwrap_or(DirectionKey::Plain);
        Ok(if dialled {
            StreamKeys { send: outward, receive: inward }
        } else {
            StreamKeys { send: inward, receive: outward }
        })
    }
}
