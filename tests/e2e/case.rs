//! One run of one test, in a room: its cluster.

use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::cluster::Cluster;
use crate::janus::{Janus, deploy};
use crate::program::Output;
use crate::watchdog::Watch;

pub(crate) struct Case {
    /// Kubernetes' programs.
    pub(crate) programs: &'static Path,
    pub(crate) watch: Watch,
}

/// How many nodes the cluster of the run has.
pub(crate) const NODES: u8 = 2;

static SHARED: Mutex<Option<Arc<Cluster>>> = Mutex::new(None);

/// Janus in that cluster.
static INSTALLED: Mutex<Option<Arc<Janus>>> = Mutex::new(None);

impl Case {
    /// The cluster of this run, with [`NODES`] nodes. Other tests use it as well: leave it as it was.
    pub(crate) fn cluster(&self) -> Arc<Cluster> {
        // A test that failed to start it does not keep the next one from trying.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nor does one whose cluster was killed because it hung.
        drop(shared.take_if(|cluster| cluster.has_ended()));
        let cluster = Arc::clone(shared.get_or_insert_with(|| Arc::new(self.own_cluster(NODES))));
        cluster.end_with(&self.watch);
        cluster
    }

    /// Janus in the cluster of this run, as the default overlay installs it.
    pub(crate) fn janus(&self) -> Arc<Janus> {
        self.janus_telling(&|_, _| ())
    }

    /// The same; each command that it takes is told, if it takes any.
    pub(crate) fn janus_telling(&self, told: &dyn Fn(&str, &Output)) -> Arc<Janus> {
        let cluster = self.cluster();
        let mut installed = INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(installed.take_if(|janus| !Arc::ptr_eq(&janus.cluster, &cluster)));
        let install = || Arc::new(Janus::install(cluster, &deploy().join("overlays/default"), told));
        Arc::clone(installed.get_or_insert_with(install))
    }

    /// A cluster of this test's own.
    pub(crate) fn own_cluster(&self, nodes: u8) -> Cluster {
        let cluster = Cluster::start(self.programs, nodes);
        cluster.end_with(&self.watch);
        cluster
    }
}

/// Janus was taken from the cluster: who wants it next installs it again.
pub(crate) fn uninstalled() {
    drop(INSTALLED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
}

/// Takes the cluster of this run down, if there is one.
pub(crate) fn end_shared() {
    uninstalled();
    drop(SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
}
