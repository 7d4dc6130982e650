//! Puts a worker to a guard: the first one, and any that takes the place of one that is lost.

use std::sync::Arc;

use super::board::Station;
use super::groups::Groups;
use super::inbox::Inbox;
use super::keeper::Errand;
use super::known::Fingerprints;
use super::rescue::Client;
use super::supervisor::{Place, Ward};
use super::worker::{Command, Desk, Orders, Worker};
use super::{Shared, StartError};
use crate::doorbell::{self, Speaker};
use crate::metrics::GuardMetrics;

/// What every worker of a guard has in common.
#[derive(Debug)]
pub(super) struct Crew {
    /// What their threads are called.
    pub(super) name: String,
    pub(super) shared: Shared,
    pub(super) metrics: GuardMetrics,
    pub(super) fingerprints: Fingerprints,
    /// Who is told when one of them is stuck.
    pub(super) keeper: Speaker<Errand>,
}

/// A worker at work, and groups of its own.
#[derive(Debug)]
pub(super) struct Hand {
    pub(super) ward: Ward,
    pub(super) worker: Speaker<Command>,
    pub(super) station: Arc<Station>,
    pub(super) groups: Groups,
}

impl Crew {
    /// Starts a worker on new groups, with no marks. `audit`: answers may go to the kernel's audit log.
    pub(super) fn hire(&self, audit: bool, orders: Arc<Orders>, place: Place) -> Result<Hand, StartError> {
        self.hire_for(Groups::new(&self.shared.features, audit)?, false, orders, place)
    }

    /// Starts a worker on groups that another process still reads: it waits to be told that this one may.
    pub(super) fn hire_heir(&self, groups: Groups, orders: Arc<Orders>, place: Place) -> Result<Hand, StartError> {
        self.hire_for(groups, true, orders, place)
    }

    fn hire_for(&self, groups: Groups, parked: bool, orders: Arc<Orders>, place: Place) -> Result<Hand, StartError> {
        let resource = |what| move |source| StartError::Resource { what, source };
        let clone = || groups.try_clone().map_err(resource("a share of the groups"));
        let (worker, mailbox) = doorbell::channel().map_err(resource("an eventfd"))?;
        let desk = Arc::new(Desk {
            metrics: self.metrics.clone(),
            lines: self.shared.lines.clone(),
            pool: self.shared.known.clone(),
            watched: self.shared.watched.clone(),
            lookups: self.shared.lookups.clone(),
            replies: worker.clone(),
            features: self.shared.features,
            fingerprints: self.fingerprints.clone(),
            kin: self.shared.kin.clone(),
            watchdog: self.shared.watchdog.bell(),
            agents: self.shared.agents.clone(),
        });
        let inbox = Inbox::new(clone()?, desk, orders.judge.clone());
        let station = inbox.board.station.clone();
        station.set_parked(parked);
        let hand = Worker::new(inbox, mailbox, orders).map_err(|(source, _)| resource("/proc/self/fd")(source))?;
        let client = Client {
            station: station.clone(),
            groups: clone()?,
            metrics: self.metrics.clone(),
            kin: self.shared.kin.clone(),
            dismissed: false.into(),
        };
        let watch = self.shared.watchdog.watch(client, self.keeper.clone());
        let ward = self
            .shared
            .supervisor
            .adopt(self.name.clone(), clone()?, hand, watch, place)
            .map_err(resource("a worker thread"))?;
        Ok(Hand { ward, worker, station, groups })
    }
}
