//! What the shell needs of others: daemons, and the mandate to act.

use std::net::IpAddr;

use janus_proto::v1;

use crate::core::reason::Reason;

/// Whoever reaches daemons.
pub trait Daemons: Clone + Send + Sync + 'static {
    /// One that has been reached.
    type Daemon: Daemon;

    /// Connects. Bounded in time by itself.
    fn connect(&self, address: IpAddr) -> impl Future<Output = Result<Self::Daemon, Lost>> + Send;
}

/// One daemon. Calls are bounded in time by themselves; dropping a call cancels it.
pub trait Daemon: Clone + Send + Sync + 'static {
    /// Resolves once the connection is no more.
    fn closed(&self) -> impl Future<Output = ()> + Send;
    /// GetGuardState, read to its end.
    fn state(&self, digest: Vec<u8>) -> impl Future<Output = Result<State, CallError>> + Send;
    /// CreateGuard.
    fn create(&self, request: v1::CreateGuardRequest)
    -> impl Future<Output = Result<v1::GuardState, CallError>> + Send;
    /// DestroyGuard: whether it is lifted already.
    fn destroy(&self, request: v1::DestroyGuardRequest) -> impl Future<Output = Result<bool, CallError>> + Send;
}

/// All that a daemon says.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Its header.
    pub header: v1::StateHeader,
    /// Its units, as many as the header promised; none if `unchanged`.
    pub guards: Vec<v1::GuardState>,
}

/// A daemon that cannot be reached, or is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{word}: {text}")]
pub struct Lost {
    /// One word, for metrics.
    pub word: &'static str,
    /// For the log.
    pub text: String,
}

/// A call that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The connection, or the daemon, is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The daemon answered, and said no.
    #[error("{cause:?}: {message}")]
    Refused {
        /// Why.
        cause: Refused,
        /// In its words.
        message: String,
    },
}

/// Why a daemon said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A field that schema and CEL let through.
    Invalid,
    /// A newer leader has called it.
    StaleEpoch,
    /// It has seen a newer generation, or this one with another spec.
    StaleGeneration,
    /// It is another node's.
    WrongNode,
    /// Its kernel lacks a feature.
    Kernel,
    /// A limit.
    Limit,
    /// It is about to go.
    Draining,
    /// The pod, or a root of it, is not there.
    NotThere,
    /// Anything else.
    Other,
}

impl Refused {
    /// What the status says of it.
    pub const fn reason(self) -> Reason {
        match self {
            Refused::Invalid => Reason::RefusedByDaemon,
            Refused::Kernel => Reason::KernelLacksFeature,
            Refused::Limit => Reason::LimitReached,
            Refused::Draining => Reason::Arming,
            Refused::NotThere => Reason::RootUnreachable,
            Refused::StaleEpoch | Refused::StaleGeneration | Refused::WrongNode | Refused::Other => Reason::NotInForce,
        }
    }
}

/// The mandate to change something.
pub trait Lead: Clone + Send + Sync + 'static {
    /// Grows with every change of the leader; at least 1.
    fn epoch(&self) -> u64;
    /// Whether it still holds. Cheap: asked before each call.
    fn may_act(&self) -> bool;
}
