//! Why there is no channel to a peer, or no longer: typed, with a stable code that is also the
//! label of the counter of refusals.
//!
//! Pure values, made by the tasks of this folder, counted and logged by whoever ends the channel.

use crate::api::{ApiCode, ApiError};
use dwcp_dataplane::port::StreamEnd;
use dwcp_proto::negotiate::Refusal;
use dwcp_proto::wire::WireError;
use dwcp_proto::wire::peer::PeerError as MessageError;
use rustls::{AlertDescription, CertificateError};
use std::io;

/// Why there is no channel to a peer, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No TCP connection.
    #[error("{address} can't be reached: {source}")]
    Dial {
        /// The address.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The peer took too long.
    #[error("the peer did not finish {what} in time")]
    Timeout {
        /// What it should have done.
        what: &'static str,
    },
    /// TLS failed, here or there.
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::Error),
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer said nothing for too long.
    #[error("the peer was silent for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The peer's HELLO or preface is wrong.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The peer's message is wrong.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A message that is right in form and not allowed now.
    #[error("the peer sent a message that is not allowed now ({what})")]
    OutOfPlace {
        /// The message.
        what: &'static str,
    },
    /// The HELLOs do not agree.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer wants to talk without TLS.
    #[error("the peer speaks plaintext, this daemon TLS only")]
    PlaintextRefused,
    /// The peer wants TLS, this daemon has no certificates.
    #[error("the peer speaks TLS, this daemon was started for plaintext only")]
    TlsRefused,
    /// The first byte belongs to nothing that we know.
    #[error("the first byte {byte:#04x} begins nothing that this port serves")]
    FirstByte {
        /// The byte.
        byte: u8,
    },
    /// The peer's certificate names no host.
    #[error("the peer's certificate names no host")]
    Nameless,
    /// Too many connections have not yet said who they are.
    #[error("too many connections are waiting to be checked")]
    PendingTooMany,
    /// A stream for no link, or a second one for the same place.
    #[error("the stream belongs to no link that waits for it")]
    StreamUnknown,
    /// A peer asked to end the connection.
    #[error("the peer ended the connection: {reason}")]
    Goodbye {
        /// Its reason.
        reason: String,
    },
    /// The peer refused the link.
    #[error("the peer refused the link ({code}): {message}")]
    LinkRefused {
        /// Its code.
        code: String,
        /// Its reason.
        message: String,
    },
    /// More messages wait than a live peer would leave.
    #[error("the peer does not read its control channel")]
    DoesNotRead,
    /// A lane lost all its streams.
    #[error("every stream of lane {lane} is gone: {cause}")]
    LaneLost {
        /// The lane.
        lane: u16,
        /// Why its last stream ended.
        cause: StreamEnd,
    },
    /// No room for another link.
    #[error("this daemon has as many links as it serves ({links_max})")]
    LinksTooMany {
        /// The limit.
        links_max: usize,
    },
    /// The link wants more streams than its shards have room for.
    #[error("the link wants {streams} streams, this daemon has room for {streams_max}")]
    StreamsTooMany {
        /// How many it wants.
        streams: u16,
        /// What there is room for, of this link on its lanes.
        streams_max: u16,
    },
    /// A peer wants to resume a link that is not here.
    #[error("there is no link here that could be resumed like this")]
    ResumeUnknown,
    /// The token was never given for this link.
    #[error("the token for resuming the link is wrong")]
    ResumeTokenWrong,
    /// The token was used before.
    #[error("the token for resuming the link was used before")]
    ResumeTokenStale,
    /// Another peer than the link's shows its token, or answers in its place.
    #[error("another peer than the link's wants to resume it")]
    ResumeWrongPeer,
    /// The HELLOs of another connection agree on something else than the link has.
    #[error("the peer has not the version, features and limits any more that the link began with")]
    ResumeAgreement,
    /// What moves stood still and its peer said nothing.
    #[error("nothing is heard of the peer while the guest or the region's owner stands still")]
    Blackout,
    /// No other connection took the place of the lost one in time.
    #[error("no connection took the place of the lost one within {seconds} s ({cause})")]
    ResumeWindow {
        /// The window.
        seconds: u64,
        /// How the connection was lost.
        cause: String,
    },
    /// A parked link that no session waits for.
    #[error("no session waits for the lost link any more")]
    ResumeUnwanted,
    /// Keys can't be derived from the channel.
    #[error(transparent)]
    Keys(#[from] super::exporter::ExporterFailed),
    /// This daemon stops.
    #[error("this daemon is stopping")]
    Stopping,
}

impl PeerError {
    /// From an I/O error that may carry one of TLS.
    pub(crate) fn from_io(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (tls, error.kind()) {
            (Some(tls), _) => Self::Tls(tls.clone()),
            (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Self::Closed,
            _ => Self::Io(error),
        }
    }

    /// True when the path failed, and neither end wanted it: the link may go on over another.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Timeout { .. }
            | Self::Io(_)
            | Self::Closed
            | Self::Silent { .. }
            | Self::DoesNotRead => true,
            Self::LaneLost { cause, .. } => !matches!(cause, StreamEnd::Protocol { .. }),
            _ => false,
        }
    }

    /// True when the peer's host says that nobody listens there: its daemon is gone, and with it
    /// all that a link could go on with.
    pub(crate) fn is_nobody(&self) -> bool {
        matches!(self, Self::Dial { source, .. }
            if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// The stable code, also the label of the counter.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dial { .. } => "peer_unreachable",
            Self::Timeout { .. } => "peer_timeout",
            Self::Tls(error) => tls_code(error),
            Self::Io(_) => "peer_connection_failed",
            Self::Closed => "peer_closed",
            Self::Silent { .. } => "peer_silent",
            Self::Wire(error) => error.code(),
            Self::Message(error) => error.code(),
            Self::OutOfPlace { .. } => "peer_message_out_of_place",
            Self::Refused(refusal) => refusal.code(),
            Self::PlaintextRefused => "plaintext_refused",
            Self::TlsRefused => "tls_refused",
            Self::FirstByte { .. } => "first_byte_unknown",
            Self::Nameless => "certificate_nameless",
            Self::PendingTooMany => "pending_too_many",
            Self::StreamUnknown => "stream_unknown",
            Self::Goodbye { .. } => "peer_goodbye",
            Self::LinkRefused { .. } => "link_refused",
            Self::DoesNotRead => "peer_does_not_read",
            Self::LaneLost { .. } => "lane_lost",
            Self::LinksTooMany { .. } => "links_too_many",
            Self::StreamsTooMany { .. } => "streams_too_many",
            Self::ResumeUnknown => "resume_unknown",
            Self::ResumeTokenWrong => "resume_token_wrong",
            Self::ResumeTokenStale => "resume_token_stale",
            Self::ResumeWrongPeer => "resume_wrong_peer",
            Self::ResumeAgreement => "resume_agreement",
            Self::Blackout => "blackout_max",
            Self::ResumeWindow { .. } => "resume_window",
            Self::ResumeUnwanted => "resume_unwanted",
            Self::Keys(_) => "keys_failed",
            Self::Stopping => "stopping",
        }
    }

    /// The answer to a client that needed the channel.
    pub(crate) fn to_api(&self) -> ApiError {
        let code = match self {
            Self::Dial { .. } | Self::Timeout { .. } | Self::Closed | Self::Io(_) => {
                ApiCode::PeerUnreachable
            }
            Self::Tls(_) | Self::Nameless | Self::PlaintextRefused | Self::TlsRefused => {
                ApiCode::PeerIdentity
            }
            Self::Refused(Refusal::Version { .. }) => ApiCode::PeerVersion,
            Self::Refused(_) | Self::LinkRefused { .. } => ApiCode::PeerRefused,
            Self::Stopping => ApiCode::Stopping,
            Self::LinksTooMany { .. } | Self::StreamsTooMany { .. } => ApiCode::Busy,
            _ => ApiCode::LinkLost,
        };
        let error = ApiError::new(code, self.to_string()).with("peer_code", self.code());
        match self {
            Self::LinkRefused { code, .. } => error.with("refused_code", code.as_str()),
            _ => error,
        }
    }
}

/// Tells apart what an operator can mend: whose certificate is wrong, and how.
fn tls_code(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(certificate) => {
            match certificate {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "certificate_expired"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "certificate_not_valid_yet"
                }
                CertificateError::Revoked => "certificate_revoked",
                // An issuer of the same name with another key shows up as a bad signature.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "certificate_untrusted"
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => "certificate_wrong_name",
                CertificateError::InvalidPurpose
                | CertificateError::InvalidPurposeContext { .. } => "certificate_wrong_role",
                _ => "certificate_bad",
            }
        }
        rustls::Error::NoCertificatesPresented => "certificate_missing",
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => "our_certificate_expired",
            AlertDescription::CertificateRevoked => "our_certificate_revoked",
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "our_certificate_untrusted"
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnsupportedCertificate => "our_certificate_refused",
            AlertDescription::ProtocolVersion => "tls_version",
            _ => "tls_alert",
        },
        _ => "tls_failed",
    }
}
