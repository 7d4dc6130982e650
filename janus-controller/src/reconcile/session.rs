//! One connection to one daemon: calls under way, when to look at its state again, what it refused.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use janus_proto::v1;
use tokio::time::Instant;

use super::driver::Pace;
use super::port::{CallError, Daemon, State};
use super::turns::Turn;
use crate::core::plan::Desired;
use crate::core::spec::Features;
use crate::core::unit::{UnitId, Wanted};

/// Container IDs in one call, which is what a daemon takes.
const MOST_CONTAINERS: usize = 256;
/// How soon a daemon is asked again while something there is on its way.
const SOON: Duration = Duration::from_secs(1);
/// A digest is no longer than this, or it is none of ours.
const LONGEST_DIGEST: usize = 64;
/// The longest wait between two tries of anything.
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// Longer than any look.
const LOOK: Duration = Duration::from_secs(300);

/// How a call ended.
pub(super) enum Answer {
    Created { unit: UnitId, sent: u64, generation: i64, result: Result<Box<v1::GuardState>, CallError>, took: Duration },
    Destroyed { unit: UnitId, result: Result<bool, CallError>, took: Duration },
    Looked { result: Result<State, CallError> },
}

/// Which call a unit has under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Create,
    Destroy,
}

/// A unit whose last call was refused.
pub(super) struct Retry {
    pub(super) at: Instant,
    /// What was refused: something else is not waited for.
    pub(super) sent: u64,
    pub(super) delays: ExponentialBackoff,
}

/// What there is only while a daemon is connected.
pub(super) struct Session<D: Daemon> {
    pub(super) daemon: D,
    pub(super) calls: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Units with a call under way, and which.
    pub(super) busy: HashMap<UnitId, Doing>,
    /// Units whose call was under way at some time since the last look was asked for.
    pub(super) touched: HashSet<UnitId>,
    pub(super) retries: HashMap<UnitId, Retry>,
    /// A turn that has come.
    pub(super) turn: Option<Turn>,
    /// A turn that is waited for. One at a time: so nodes take turns, whatever they have to tell.
    pub(super) waiting: Option<BoxFuture<'static, Turn>>,
    pub(super) looking: bool,
    /// Whether the look under way is the periodic one: what it finds amiss is a difference.
    pub(super) periodic: bool,
    pub(super) digest: Vec<u8>,
    /// Whether the look under way names a state that may be the same still.
    pub(super) named: bool,
    pub(super) look_at: Instant,
    pub(super) resync_at: Instant,
    pub(super) hurry: u32,
    /// `None` until the first look.
    pub(super) features: Option<Features>,
}

impl<D: Daemon> Session<D> {
    pub(super) fn new(daemon: D) -> Session<D> {
        let now = Instant::now();
        Session {
            daemon,
            calls: FuturesUnordered::new(),
            busy: HashMap::new(),
            touched: HashSet::new(),
            retries: HashMap::new(),
            turn: None,
            waiting: None,
            looking: false,
            periodic: false,
            digest: Vec::new(),
            named: false,
            look_at: now,
            resync_at: now,
            hurry: 0,
            features: None,
        }
    }

    pub(super) fn look_if_due(&mut self, now: Instant) {
        if self.looking || self.look_at > now {
            return;
        }
        self.looking = true;
        self.periodic = self.resync_at <= now;
        // It ends by itself, and sets the time of the next.
        self.look_at = now + LOOK;
        self.touched = self.busy.keys().cloned().collect();
        let (daemon, digest) = (self.daemon.clone(), std::mem::take(&mut self.digest));
        self.named = !digest.is_empty();
        self.calls.push(Box::pin(async move { Answer::Looked { result: daemon.state(digest).await } }));
    }

    pub(super) fn next_look(&mut self, unsettled: bool, pace: Pace) {
        self.looking = false;
        let now = Instant::now();
        if self.periodic {
            // Daemons are not all asked at one moment.
            self.resync_at = now + pace.resync.mul_f64(0.9 + 0.2 * fastrand::f64());
        }
        self.hurry = if unsettled { self.hurry.saturating_add(1) } else { 0 };
        let soon = SOON * 2_u32.saturating_pow(self.hurry.min(6));
        self.look_at = if unsettled { self.resync_at.min(now + soon) } else { self.resync_at };
    }

    /// A unit's call has ended.
    pub(super) fn ended(&mut self, unit: &UnitId) {
        self.busy.remove(unit);
        // The digest names a state that the call has changed.
        self.digest = Vec::new();
        self.hurry = 0;
        if !self.looking {
            self.look_at = self.look_at.min(Instant::now() + SOON);
        }
    }

    pub(super) fn put_off(&mut self, unit: &UnitId, sent: u64, pace: Pace) {
        let (now, fresh) = (Instant::now(), || pace.retries());
        let retry = self.retries.entry(unit.clone()).or_insert_with(|| Retry { at: now, sent, delays: fresh() });
        if retry.sent != sent {
            retry.sent = sent;
            retry.delays = fresh();
        }
        retry.at = now + retry.delays.next().unwrap_or(pace.resync);
    }

    /// The name of the state that was told, for the next look.
    pub(super) fn keep_digest(&mut self, digest: Vec<u8>) {
        // What was left out of this look must not be left out of the next one as well.
        let whole = self.touched.is_empty() && digest.len() <= LONGEST_DIGEST;
        self.digest = if whole { digest } else { Vec::new() };
    }

    /// Whether the daemon has told its state, and nothing is on its way to it that is not desired.
    pub(super) fn obeys(&self, desired: &Desired) -> bool {
        let wanted = |(unit, doing): (&UnitId, &Doing)| *doing == Doing::Destroy || desired.units.contains_key(unit);
        self.features.is_some() && self.busy.iter().all(wanted)
    }
}

/// A turn that is waited for, once it has come; never, if none is.
pub(super) async fn comes(waiting: &mut Option<BoxFuture<'static, Turn>>) -> Turn {
    match waiting {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}

pub(super) fn create_request(caller: v1::Caller, wanted: &Wanted) -> v1::CreateGuardRequest {
    let Wanted { order, pod } = wanted;
    let containers = wanted.containers().take(MOST_CONTAINERS);
    v1::CreateGuardRequest {
        caller: Some(caller),
        guard: Some(v1::GuardRef {
            uid: order.uid.to_string(),
            namespace: order.namespace.to_string(),
            name: order.name.to_string(),
            generation: order.generation,
        }),
        pod: Some(v1::PodRef {
            uid: pod.uid.to_string(),
            cgroup_uid: pod.cgroup_uid.as_deref().unwrap_or_default().to_owned(),
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
        }),
        spec: Some(order.spec.clone()),
        container_ids: containers
            .map(|it| v1::ContainerId { name: it.name.to_string(), id: it.id.to_string() })
            .collect(),
    }
}

impl Pace {
    /// Between two tries to reach a daemon: one that is back is reached within a resync.
    pub(super) fn reconnects(self) -> ExponentialBackoff {
        delays(Duration::from_millis(250), self.resync / 2)
    }

    /// Between two tries of what a daemon refuses.
    pub(super) fn retries(self) -> ExponentialBackoff {
        delays(Duration::from_secs(1), self.resync)
    }
}

fn delays(least: Duration, most: Duration) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(least)
        .with_max_delay(most.clamp(least, LONGEST_DELAY))
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}
