//! Who acts: leader election over one `coordination.k8s.io/v1` Lease.
//!
//! # Flow
//!
//! [`Election::run`] looks at the Lease and writes it as [`candidate`] decides, and tells by a watch channel how things
//! stand. Whoever gets a [`Leadership`] asks [`Leadership::may_act`] before each call that changes something, puts
//! [`Leadership::epoch`] into it, and ends what it does when [`Leadership::lost`] resolves.
//!
//! # Guarantees
//!
//! - No two may act at once. A leader may act for 10 s after it **sent** the last renewal that succeeded. Others take the
//!   Lease when they have not seen it change for 15 s, on their own clock, counted from when they were **answered**; and
//!   they saw the renewal after it had been sent. That leaves 5 s between the two, or clocks that differ by a third in
//!   speed. What clocks show is never compared.
//! - Every leadership has an epoch of its own, larger than any before it: `leaseTransitions` + 1, which grows with each
//!   taking, also by a process that had it before. A call that is on its way when its leader is deposed is refused by a
//!   daemon that has heard of the next one.
//! - A leader that dies is followed within the lease, a retry and a few requests: 15 s + 2.4 s. One that ends in order
//!   releases the Lease, and is followed within a retry.
//! - A process that was stopped (SIGSTOP, a sleeping machine) may not act when it goes on: the clock has gone on.
//!
//! # Assumptions
//!
//! - The API server is linearizable for reads without a resourceVersion, and refuses a write over an older one.
//! - An identity is used by one process, once: [`identity`].
//!
//! # Caveats
//!
//! - `may_act` is asked before a call is made. When the call arrives is for the epoch to answer.
//! - The Lease is never deleted by us. Where a person does so, its leader stops at its next renewal, 2 s later. Those who
//!   had seen it make it anew and wait for 15 s before they lead, while a process that starts in these 2 s leads at once.
//!   The new one begins at minutes since 1970, or above the highest that its maker has seen: an epoch that was used
//!   before could come back only where leaders had changed more than once a minute since the Lease was made.
//! - Without election (`elect: false`) the Lease is taken from whoever has it. That one stops at its next renewal, 2 s
//!   later; until then the epoch decides. It is for one replica, which need not wait for its predecessor's lease.

pub mod candidate;
mod clock;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use clock::Moment;
pub use store::{ApiStore, Store, StoreError};

use candidate::{Candidate, Failed, Kind, Step, Timing, Write};

/// Whose election, and for whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Like no other process's, past ones included: see [`identity`].
    pub identity: String,
    /// Wait for a holder's lease to run out. Else the Lease is taken at once.
    pub elect: bool,
    /// [`Timing::USUAL`], unless a test has no time.
    pub timing: Timing,
}

/// An identity for this process, that begins with its pod's name: a container that restarts keeps its pod's name, and must
/// not take its predecessor's lease for its own.
///
/// # Errors
/// The system has no randomness to give.
pub fn identity(pod: &str) -> Result<String, NoRandomness> {
    Ok(format!("{pod}_{:016x}", random()?))
}

/// The system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

fn random() -> Result<u64, NoRandomness> {
    let mut bytes = [0; 8];
    // The provider is here for TLS anyway.
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// How things stand.
#[derive(Debug, Clone)]
pub enum Standing {
    /// Another acts, or nobody does.
    Standby {
        /// Who has the Lease, as last seen; this process too, when it could not renew it.
        holder: Option<String>,
    },
    /// This process acts.
    Leading(Leadership),
}

/// The right to act, for as long as it lasts. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Leadership {
    epoch: u64,
    /// [`Moment::nanoseconds`]; 0 once it is lost.
    until: Arc<AtomicU64>,
    lost: CancellationToken,
}

impl Leadership {
    /// What daemons compare: larger than that of every leadership before.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it may act now. One reading of the clock: ask before each call that changes something.
    pub fn may_act(&self) -> bool {
        Moment::now().nanoseconds() < self.until.load(Ordering::Acquire)
    }

    /// Resolves once it is lost for good, also when the election ends. After that [`Leadership::may_act`] is false.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// One that lasts, for tests of whoever needs one.
    pub fn for_ever(epoch: u64) -> Leadership {
        Leadership { epoch, until: Arc::new(AtomicU64::new(u64::MAX)), lost: CancellationToken::new() }
    }

    fn extend(&self, until: Moment) {
        self.until.store(until.nanoseconds(), Ordering::Release);
    }

    fn revoke(&self) {
        self.until.store(0, Ordering::Release);
        self.lost.cancel();
    }
}

/// A candidate and its Lease. Does nothing until [`Election::run`]; dropped, it leads no more.
#[derive(Debug)]
pub struct Election<S> {
    store: S,
    config: Config,
    candidate: Candidate,
    standing: Announced,
    /// As last read or written.
    lease: Option<Lease>,
    /// The last failure that the log was told of.
    told: Option<String>,
}

impl Election<ApiStore> {
    /// An election by way of the API server, and where it tells how things stand.
    pub fn new(client: kube::Client, config: Config) -> (Election<ApiStore>, watch::Receiver<Standing>) {
        let store = ApiStore::new(client, &config.namespace, &config.name);
        Election::over(store, config)
    }
}

impl<S: Store> Election<S> {
    /// An election over any Lease.
    pub fn over(store: S, config: Config) -> (Election<S>, watch::Receiver<Standing>) {
        let (sender, receiver) = watch::channel(Standing::Standby { holder: None });
        let candidate = Candidate::new(config.identity.clone(), config.elect, config.timing);
        let standing = Announced { sender, leadership: None };
        (Election { store, config, candidate, standing, lease: None, told: None }, receiver)
    }

    /// Takes part until `shutdown`, then lets go of the Lease: another may act a moment later, so whatever acts has to have
    /// ended by then. Needs three seconds at most for that.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let step = self.candidate.step(Moment::now());
            self.announce();
            let done = async {
                match step {
                    Step::Wait(until) => self.wait(until).await,
                    Step::Look(patience) => self.look(patience).await,
                    Step::Write(write, patience) => self.write(&write, patience).await,
                }
            };
            if shutdown.run_until_cancelled(done).await.is_none() {
                break;
            }
        }
        self.standing.revoke();
        let patience = self.config.timing.attempt();
        match tokio::time::timeout(patience, self.release()).await.map_err(|_| StoreError::Timeout).flatten() {
            Ok(true) => tracing::info!("released the Lease"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the Lease is not released: another waits until it has run out"),
        }
    }

    async fn wait(&self, until: Moment) {
        let now = Moment::now();
        // Not in step with others. A renewal has time for it, and a leadership that ends does not wait: its end is known
        // to whoever asks.
        let jitter = random().map_or(0.0, |random| (random % 1024) as f64 / 1024.0);
        tokio::time::sleep(until.since(now) + self.config.timing.retry().mul_f64(jitter / 5.0)).await;
    }

    async fn look(&mut self, patience: Duration) {
        let sent = Moment::now();
        match answer(patience, self.store.get()).await {
            Ok(lease) => {
                let now = Moment::now();
                let looked = self.candidate.looked(lease.as_ref().map(store::record), now, minutes());
                self.lease = lease;
                match looked {
                    Ok(()) => self.told = None,
                    Err(error) => self.tell(&error),
                }
            }
            Err(error) => self.failed(&error, sent),
        }
    }

    async fn write(&mut self, write: &Write, patience: Duration) {
        let sent = Moment::now();
        match answer(patience, self.put(write)).await {
            Ok(lease) => {
                self.candidate.wrote(write, store::record(&lease), sent, Moment::now());
                self.lease = Some(lease);
                self.told = None;
            }
            Err(error) => self.failed(&error, sent),
        }
    }

    async fn put(&self, write: &Write) -> Result<Lease, StoreError> {
        let Config { namespace, name, identity, timing, .. } = &self.config;
        let who = store::Holder { namespace, name, identity, timing };
        // The candidate has seen what is kept here, and nothing else.
        let lease = store::written(self.lease.as_ref(), write, &who, Timestamp::now());
        match write.over {
            Some(_) => self.store.replace(&lease).await,
            None => self.store.create(&lease).await,
        }
    }

    /// Whether there was something to let go of.
    async fn release(&mut self) -> Result<bool, StoreError> {
        loop {
            // A renewal may have been on its way: what is known is not what is there.
            self.lease = self.store.get().await?;
            let Some(record) = self.lease.as_ref().map(store::record) else { return Ok(false) };
            if record.holder.as_ref() != Some(&self.config.identity) {
                return Ok(false);
            }
            match self.put(&Write { over: Some(record.version), kind: Kind::Release }).await {
                Err(StoreError::Conflict) => {}
                released => return released.map(|_| true),
            }
        }
    }

    fn failed(&mut self, error: &StoreError, sent: Moment) {
        let failed = error.failed();
        self.candidate.failed(failed, sent, Moment::now());
        match failed {
            Failed::Conflict => tracing::debug!("another wrote the Lease first"),
            Failed::Unknown => self.tell(error),
        }
    }

    /// The same failure once, until something succeeds.
    fn tell(&mut self, error: &dyn std::error::Error) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            tracing::warn!(error = text, "no luck with the Lease");
            self.told = Some(text);
        }
    }

    fn announce(&mut self) {
        let now = Moment::now();
        match (self.candidate.lead(now), self.standing.leadership.clone()) {
            (Some(lead), Some(leadership)) if leadership.epoch == lead.epoch() => leadership.extend(lead.until()),
            (Some(lead), before) => {
                if before.is_some() {
                    self.standing.revoke();
                }
                tracing::info!(epoch = lead.epoch(), identity = self.config.identity, "leading");
                self.standing.lead(lead.epoch(), lead.until());
            }
            (None, Some(leadership)) => {
                let why = self.candidate.loss().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(epoch = leadership.epoch, why, "leading no more");
                self.standing.revoke();
                self.standing.stand_by(self.candidate.holder());
            }
            (None, None) => self.standing.stand_by(self.candidate.holder()),
        }
    }
}

async fn answer<T>(patience: Duration, request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(patience, request).await.map_err(|_| StoreError::Timeout).flatten()
}

/// Since 1970.
fn minutes() -> i32 {
    i32::try_from(Timestamp::now().as_second() / 60).unwrap_or_default()
}

/// What the others have been told. Takes it back when it goes.
#[derive(Debug)]
struct Announced {
    sender: watch::Sender<Standing>,
    leadership: Option<Leadership>,
}

impl Announced {
    fn lead(&mut self, epoch: u64, until: Moment) {
        let until = Arc::new(AtomicU64::new(until.nanoseconds()));
        let leadership = Leadership { epoch, until, lost: CancellationToken::new() };
        self.leadership = Some(leadership.clone());
        self.sender.send_replace(Standing::Leading(leadership));
    }

    fn stand_by(&self, holder: Option<&str>) {
        self.sender.send_if_modified(|standing| {
            if matches!(standing, Standing::Standby { holder: told } if told.as_deref() == holder) {
                return false;
            }
            *standing = Standing::Standby { holder: holder.map(ToOwned::to_owned) };
            true
        });
    }

    fn revoke(&mut self) {
        if let Some(leadership) = self.leadership.take() {
            leadership.revoke();
            self.stand_by(None);
        }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.revoke();
    }
}
