//! What a client may ask: one enum, one table of methods, and all validation.
//!
//! Pure. `server` hands lines in, the core gets requests that can't be wrong in form. Unknown
//! members are refused, so that a misspelt option is never ignored in silence.

use super::errors::{ApiCode, ApiError};
use super::notification::Topic;
use super::vm::{VmAttach, VmMigrate};
use crate::limits::{ACCEPT_FROM_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX};
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::resolve::RunAt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that a client may ask.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Makes memory known under a name; descriptors come with the bytes.
    RegionRegister(RegionRegister),
    /// Forgets a region.
    RegionRelease {
        /// Its name.
        name: String,
    },
    /// Lists the regions.
    RegionList,
    /// Opens a session and its link.
    SessionOpen(SessionOpen),
    /// Runs one pre-copy round.
    SessionRound {
        /// The session.
        session: SessionId,
    },
    /// Runs the last round, verifies and commits.
    SessionFinish {
        /// The session.
        session: SessionId,
    },
    /// Gives a session up.
    SessionAbort {
        /// The session.
        session: SessionId,
    },
    /// Ends the doubt of a session by an operator's word.
    SessionResolve {
        /// The session.
        session: SessionId,
        /// Who runs.
        run: RunAt,
    },
    /// Makes a virtual machine known.
    VmAttach(Box<VmAttach>),
    /// Forgets a virtual machine.
    VmDetach {
        /// Its name.
        name: String,
    },
    /// Lists the virtual machines.
    VmList,
    /// Moves a virtual machine to a peer.
    VmMigrate(Box<VmMigrate>),
    /// Keeps an image, whose descriptor comes with the bytes.
    StoreAdd {
        /// What it is called.
        name: String,
        /// Whose guests it may serve.
        trust_domain: String,
    },
    /// Lists what is kept of guests.
    StoreList,
    /// Tells the store's counters.
    StoreStats,
    /// Removes what is kept of a guest, or of all.
    StoreRemove(KeptName),
    /// Shows one session.
    SessionShow {
        /// The session.
        session: SessionId,
    },
    /// Shows all sessions.
    SessionList,
    /// The daemon at a glance.
    Status,
    /// What the daemon is and runs on.
    DaemonInfo,
    /// Links and streams.
    NetShow,
    /// Every setting.
    ConfigGet,
    /// Changes a live setting.
    ConfigSet {
        /// The setting.
        name: String,
        /// Its new value.
        value: Value,
    },
    /// Asks for notifications.
    Subscribe {
        /// Which ones.
        topics: Vec<Topic>,
        /// Of which session; of all if absent.
        session: Option<SessionId>,
    },
    /// Ends all notifications.
    Unsubscribe,
    /// The OpenRPC document.
    Discover,
}

/// What is to be removed of what is kept of guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptName {
    /// What is kept of this one.
    Name(String),
    /// Everything.
    All,
}

/// The end of a session that a region serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its pages are sent.
    Source,
    /// Pages are written into it.
    Sink,
}

impl Role {
    /// The word for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

/// How changed pages of a source region are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DirtyName {
    /// A bitmap that the region's owner sets, passed as the second descriptor.
    Bitmap,
    /// Every page is read and compared in each round.
    #[default]
    Compare,
}

/// How a session's pages are coded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodingName {
    /// The cheapest of all ways for each extent.
    #[default]
    Full,
    /// Every page as it is.
    Passthrough,
}

/// The parameters of `region.register`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRegister {
    /// The region's name on this host.
    pub name: String,
    /// Which end it serves.
    pub role: Role,
    /// How changed pages are found.
    pub dirty: Option<DirtyName>,
    /// Host names that may send into a sink region.
    #[serde(default)]
    pub accept_from: Vec<String>,
}

/// The parameters of `session.open`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionOpen {
    /// The source region.
    pub region: String,
    /// The peer.
    pub peer: PeerAddress,
    /// The sink's region; the same name if absent.
    pub sink_region: Option<String>,
    /// How pages are coded.
    #[serde(default)]
    pub coding: CodingName,
    /// The zstd level; the daemon's setting if absent.
    pub zstd_level: Option<i32>,
    /// Also measure plain zstd-1 per page, for comparisons.
    #[serde(default)]
    pub measure_baseline: bool,
}

/// Where a peer listens, and optionally the only host name to accept there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct PeerAddress {
    /// The only host name to accept.
    pub expected_name: Option<String>,
    /// `HOST:PORT`, resolved when it is dialled.
    pub address: String,
}

impl TryFrom<String> for PeerAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const FORM: &str = "a peer is HOST:PORT or NAME@HOST:PORT";
        if text.len() > 300 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(FORM);
        }
        let (name, address) = match text.split_once('@') {
            Some((name, address)) if name_is_plain(name) => (Some(name.to_owned()), address),
            Some(_) => return Err(FORM),
            None => (None, text.as_str()),
        };
        let (host, port) = address.rsplit_once(':').ok_or(FORM)?;
        let port_is_good = port.parse::<u16>().is_ok_and(|p| p != 0);
        if host.is_empty() || !port_is_good {
            return Err(FORM);
        }
        Ok(Self { expected_name: name, address: address.to_owned() })
    }
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = &self.expected_name {
            write!(f, "{name}@")?;
        }
        f.write_str(&self.address)
    }
}

impl Request {
    /// The name of the method that asks this.
    #[must_use]
    pub const fn method(&self) -> &'static str {
        match self {
            Self::RegionRegister(_) => "region.register",
            Self::RegionRelease { .. } => "region.release",
            Self::RegionList => "region.list",
            Self::SessionOpen(_) => "session.open",
            Self::SessionRound { .. } => "session.round",
            Self::SessionFinish { .. } => "session.finish",
            Self::SessionAbort { .. } => "session.abort",
            Self::SessionResolve { .. } => "session.resolve",
            Self::VmAttach(_) => "vm.attach",
            Self::VmDetach { .. } => "vm.detach",
            Self::VmList => "vm.list",
            Self::StoreAdd { .. } => "store.add",
            Self::StoreList => "store.list",
            Self::StoreStats => "store.stats",
            Self::StoreRemove(_) => "store.remove",
            Self::VmMigrate(_) => "vm.migrate",
            Self::SessionShow { .. } => "session.show",
            Self::SessionList => "session.list",
            Self::Status => "status",
            Self::DaemonInfo => "daemon.info",
            Self::NetShow => "net.show",
            Self::ConfigGet => "config.get",
            Self::ConfigSet { .. } => "config.set",
            Self::Subscribe { .. } => "subscribe",
            Self::Unsubscribe => "unsubscribe",
            Self::Discover => "rpc.discover",
        }
    }
}

pub(super) fn wrong_params(message: impl Into<String>) -> ApiError {
    ApiError::new(ApiCode::ParamsInvalid, message)
}

pub(super) fn read<P: DeserializeOwned>(params: Value) -> Result<P, ApiError> {
    if !params.is_object() {
        return Err(wrong_params("params must be an object with named members"));
    }
    serde_json::from_value(params).map_err(|e| wrong_params(e.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

pub(super) fn nothing(params: Value, request: Request) -> Result<Request, ApiError> {
    read::<NoParams>(params).map(|NoParams {}| request)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionParam {
    session: SessionId,
}

pub(super) fn session(params: Value, make: fn(SessionId) -> Request) -> Result<Request, ApiError> {
    read::<SessionParam>(params).map(|p| make(p.session))
}

/// True for a name of a region, host or setting: short, printable, without separators.
pub(crate) fn name_is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

pub(super) fn check_name(name: &str) -> Result<(), ApiError> {
    if name_is_plain(name) {
        return Ok(());
    }
    Err(wrong_params(format!(
        "a name has 1 to {NAME_BYTES_MAX} letters, digits, dots, dashes or underscores"
    )))
}

pub(super) fn parse_register(params: Value) -> Result<Request, ApiError> {
    let register: RegionRegister = read(params)?;
    check_name(&register.name)?;
    register.accept_from.iter().try_for_each(|name| check_name(name))?;
    match register.role {
        Role::Source if !register.accept_from.is_empty() => {
            Err(wrong_params("accept_from is for sink regions"))
        }
        Role::Sink if register.dirty.is_some() => Err(wrong_params("dirty is for source regions")),
        _ if register.accept_from.len() > ACCEPT_FROM_MAX => {
            Err(wrong_params(format!("accept_from names at most {ACCEPT_FROM_MAX} hosts")))
        }
        _ => Ok(Request::RegionRegister(register)),
    }
}

pub(super) fn parse_store_add(params: Value) -> Result<Request, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        name: String,
        trust_domain: String,
    }
    let Params { name, trust_domain } = read(params)?;
    check_name(&name)?;
    check_name(&trust_domain)?;
    Ok(Request::StoreAdd { name, trust_domain })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreRemove {
    name: Option<String>,
}

pub(super) fn parse_store_remove(params: Value) -> Result<Request, ApiError> {
    let StoreRemove { name } = read(params)?;
    name.iter().try_for_each(|name| check_name(name))?;
    Ok(Request::StoreRemove(name.map_or(KeptName::All, KeptName::Name)))
}

/// The only parameter of what is done to something by its name.
pub(super) fn read_name(params: Value) -> Result<String, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        name: String,
    }
    let Params { name } = read(params)?;
    check_name(&name).map(|()| name)
}

pub(super) fn parse_release(params: Value) -> Result<Request, ApiError> {
    Ok(Request::RegionRelease { name: read_name(params)? })
}

pub(super) fn parse_open(params: Value) -> Result<Request, ApiError> {
    let open: SessionOpen = read(params)?;
    check_name(&open.region)?;
    open.sink_region.iter().try_for_each(|name| check_name(name))?;
    if open.zstd_level.is_some_and(|level| !(1..=19).contains(&level)) {
        return Err(wrong_params("zstd_level is 1 to 19"));
    }
    if open.zstd_level.is_some() && open.coding == CodingName::Passthrough {
        return Err(wrong_params("zstd_level has no meaning with coding \"passthrough\""));
    }
    Ok(Request::SessionOpen(open))
}

pub(super) fn parse_set(params: Value) -> Result<Request, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        name: String,
        value: Value,
    }
    let Params { name, value } = read(params)?;
    check_name(&name)?;
    // Settings are numbers and short words; nothing longer is kept until the core hears of it.
    let long = value.as_str().is_some_and(|text| text.len() > VALUE_BYTES_MAX);
    if long || value.is_array() || value.is_object() {
        return Err(wrong_params("value is a number, a boolean or a short text"));
    }
    Ok(Request::ConfigSet { name, value })
}

pub(super) fn parse_subscribe(params: Value) -> Result<Request, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Params {
        topics: Vec<Topic>,
        session: Option<SessionId>,
    }
    let Params { mut topics, session } = read(params)?;
    topics.sort_unstable();
    topics.dedup();
    if topics.is_empty() {
        return Err(wrong_params("topics must name at least one topic"));
    }
    Ok(Request::Subscribe { topics, session })
}
