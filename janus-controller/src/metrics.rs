//! Counters of the controller. Labels are static words, so that nobody outside can make series.

mod process;
mod text;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use text::prometheus_text;

use process::OwnProcess;

/// Seconds that a call to a daemon takes: from a millisecond to its deadline.
const CALL_SECONDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0];
/// Seconds from a container's start to its guard in force. The kubelet tells a start's time in whole seconds.
const LATENCY_SECONDS: [f64; 9] = [1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0];

/// A label's words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$item_doc])* $item),* }

        impl $name {
            const ALL: &[$name] = &[$($name::$item),*];
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                match self { $($name::$item => $word.encode(encoder)),* }
            }
        }
    };
}

words! {
    /// How a call to a daemon went.
    Outcome {
        /// Carried out.
        Ok = "ok",
        /// Refused by the daemon.
        Refused = "refused",
    }
}
words! {
    /// How things stand with the daemon of a node.
    DaemonState {
        /// It answers.
        Answering = "answering",
        /// It does not, for less than three resyncs.
        Lost = "lost",
        /// Nor for longer.
        Stale = "stale",
    }
}
words! {
    /// Pods, summed over guards.
    PodState {
        /// Selected, with a started container.
        Observable = "observable",
        /// Of those, guarded.
        Guarded = "guarded",
    }
}
words! {
    /// What the periodic look at a daemon's state found amiss.
    Difference {
        /// A unit that should be there.
        Missing = "missing",
        /// A unit of an older generation.
        Outdated = "outdated",
        /// A container that the daemon had not named.
        Containers = "containers",
        /// A unit that nobody wants.
        Leftover = "leftover",
    }
}
words! {
    /// What is watched.
    Resource {
        /// JanusGuards.
        Guards = "janusguards",
        /// Pods.
        Pods = "pods",
    }
}
words! {
    /// What is written to the API server.
    Written {
        /// A guard's status.
        Status = "status",
        /// A guard's finalizers.
        Finalizers = "finalizers",
        /// An event.
        Event = "event",
        /// A pod's annotation.
        Annotation = "annotation",
    }
}
words! {
    /// How a write went.
    WriteResult {
        /// Written.
        Ok = "ok",
        /// Not written.
        Failed = "failed",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    result: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDaemonState {
    state: DaemonState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPodState {
    state: PodState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: Difference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResource {
    resource: Resource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWrite {
    what: Written,
    result: WriteResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

/// All of them.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<OfResult, Counter>,
    reconcile_seconds: Histogram,
    daemons: Family<OfDaemonState, Gauge>,
    lost: Family<OfReason, Counter>,
    pods: Family<OfPodState, Gauge>,
    latency: Histogram,
    leader: Gauge,
    differences: Family<OfKind, Counter>,
    watch_errors: Family<OfResource, Counter>,
    writes: Family<OfWrite, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}

impl Metrics {
    /// Registers them. Those whose labels are known are there from the start, at 0.
    pub fn new() -> Arc<Metrics> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(OwnProcess::new()));
        let janus = registry.sub_registry_with_prefix("janus");
        let mut metrics = Metrics {
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(CALL_SECONDS),
            daemons: Family::default(),
            lost: Family::default(),
            pods: Family::default(),
            latency: Histogram::new(LATENCY_SECONDS),
            leader: Gauge::default(),
            differences: Family::default(),
            watch_errors: Family::default(),
            writes: Family::default(),
            registry: Registry::default(),
        };
        let of = janus.sub_registry_with_prefix("controller");
        of.register("reconciles", "Calls that told a daemon of a difference", metrics.reconciles.clone());
        of.register("reconcile_seconds", "Time that such a call took", metrics.reconcile_seconds.clone());
        of.register("daemons", "Nodes with a janusd", metrics.daemons.clone());
        of.register("daemon_losses", "Times that a daemon could not be reached", metrics.lost.clone());
        of.register("pods", "Pods, summed over guards", metrics.pods.clone());
        of.register("guard_latency_seconds", "From a container's start to its guard in force", metrics.latency.clone());
        of.register("leader", "Whether this replica leads", metrics.leader.clone());
        of.register(
            "state_differences",
            "What the periodic look found amiss, and repaired",
            metrics.differences.clone(),
        );
        of.register("watch_errors", "Watches that broke, objects that could not be used", metrics.watch_errors.clone());
        of.register("writes", "Writes to the API server", metrics.writes.clone());
        let build = prometheus_client::metrics::info::Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", option_env!("JANUS_REVISION").unwrap_or("unknown")),
        ]);
        janus.register("build", "What this is", build);
        for result in Outcome::ALL {
            drop(metrics.reconciles.get_or_create(&OfResult { result: *result }));
        }
        for state in DaemonState::ALL {
            drop(metrics.daemons.get_or_create(&OfDaemonState { state: *state }));
        }
        for state in PodState::ALL {
            drop(metrics.pods.get_or_create(&OfPodState { state: *state }));
        }
        for kind in Difference::ALL {
            drop(metrics.differences.get_or_create(&OfKind { kind: *kind }));
        }
        for resource in Resource::ALL {
            drop(metrics.watch_errors.get_or_create(&OfResource { resource: *resource }));
        }
        for what in Written::ALL {
            for result in WriteResult::ALL {
                drop(metrics.writes.get_or_create(&OfWrite { what: *what, result: *result }));
            }
        }
        metrics.registry = registry;
        Arc::new(metrics)
    }

    /// A call that told a daemon of a difference.
    pub fn reconciled(&self, result: Outcome, took: Duration) {
        self.reconciles.get_or_create(&OfResult { result }).inc();
        self.reconcile_seconds.observe(took.as_secs_f64());
    }

    /// How many daemons are in a state.
    pub fn daemons(&self, state: DaemonState, count: i64) {
        self.daemons.get_or_create(&OfDaemonState { state }).set(count);
    }

    /// A daemon could not be reached; `word` is one of ours.
    pub fn daemon_lost(&self, word: &'static str) {
        self.lost.get_or_create(&OfReason { reason: word }).inc();
    }

    /// How many pods are in a state.
    pub fn pods(&self, state: PodState, count: i64) {
        self.pods.get_or_create(&OfPodState { state }).set(count);
    }

    /// A container was guarded so many seconds after it started.
    pub fn guarded_after(&self, seconds: i64) {
        // Far below 2^52.
        #[allow(clippy::cast_precision_loss, reason = "seconds")]
        self.latency.observe(seconds as f64);
    }

    /// Whether this replica leads. One that does not knows of no daemons and no pods.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            DaemonState::ALL.iter().for_each(|state| self.daemons(*state, 0));
            PodState::ALL.iter().for_each(|state| self.pods(*state, 0));
        }
    }

    /// The periodic look found something amiss.
    pub fn differs(&self, kind: Difference) {
        self.differences.get_or_create(&OfKind { kind }).inc();
    }

    /// A watch broke, or brought something that is of no use.
    pub fn watch_failed(&self, resource: Resource) {
        self.watch_errors.get_or_create(&OfResource { resource }).inc();
    }

    /// Something was written to the API server, or was not.
    pub fn written(&self, what: Written, well: bool) {
        let result = if well { WriteResult::Ok } else { WriteResult::Failed };
        self.writes.get_or_create(&OfWrite { what, result }).inc();
    }

    /// All of it, as OpenMetrics.
    ///
    /// # Errors
    /// A metric that cannot be encoded.
    pub fn open_metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_leads_no_more_tells_of_no_pods_and_daemons() {
        let metrics = Metrics::new();
        metrics.leads(true);
        DaemonState::ALL.iter().for_each(|state| metrics.daemons(*state, 3));
        PodState::ALL.iter().for_each(|state| metrics.pods(*state, 3));
        metrics.leads(false);
        let text = metrics.open_metrics().unwrap();
        let of =
            |line: &&str| line.starts_with("janus_controller_daemons{") || line.starts_with("janus_controller_pods{");
        let lines: Vec<&str> = text.lines().filter(of).collect();
        assert!(lines.len() == 5 && lines.iter().all(|line| line.ends_with(" 0")), "{lines:?}");
    }

    #[test]
    fn the_names_of_the_contract() {
        let metrics = Metrics::new();
        metrics.reconciled(Outcome::Ok, Duration::from_millis(3));
        metrics.guarded_after(2);
        metrics.leads(true);
        let text = metrics.open_metrics().unwrap();
        for line in [
            "janus_controller_reconciles_total{result=\"ok\"} 1",
            "janus_controller_reconcile_seconds_count 1",
            "janus_controller_daemons{state=\"answering\"} 0",
            "janus_controller_pods{state=\"guarded\"} 0",
            "janus_controller_guard_latency_seconds_count 1",
            "janus_controller_leader 1",
            "janus_build_info{version=",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
