//! The counters of the contract (section 5).
//!
//! Handles are resolved when a guard starts; counting is one atomic addition. Labels are the guard's own names and words
//! from fixed lists, never a tenant's string.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::container;
use crate::guard::ProblemReason;
use crate::policy::{Decision, Event, Failure, GuardName, Outcome, Response};
use crate::process::own;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuardLabels {
    namespace: String,
    guard: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    namespace: String,
    guard: String,
    event: Word,
    response: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    namespace: String,
    guard: String,
    reason: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: Word,
}

/// A label value from a fixed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Word(&'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

/// What a guard's mark can lie on, as `janus_marks{kind}` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MarkCounts {
    /// Files and directories.
    pub inode: u64,
    /// Mounts.
    pub mount: u64,
    /// File systems.
    pub filesystem: u64,
}

impl MarkCounts {
    /// Both.
    #[must_use]
    pub fn plus(self, other: MarkCounts) -> MarkCounts {
        MarkCounts {
            inode: self.inode + other.inode,
            mount: self.mount + other.mount,
            filesystem: self.filesystem + other.filesystem,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.inode + self.mount + self.filesystem
    }
}

/// The state of a guard, as `janus_guards{state}` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardState {
    /// Being armed for the first time.
    Starting,
    /// In force.
    Guarding,
    /// In force, with something that cannot be guarded.
    Degraded,
    /// In force, and being brought up to date.
    Updating,
    /// On its way out.
    Draining,
    /// Not in force; it will be tried again.
    Failed,
}

impl GuardState {
    const ALL: [GuardState; 6] = [
        GuardState::Starting,
        GuardState::Guarding,
        GuardState::Degraded,
        GuardState::Updating,
        GuardState::Draining,
        GuardState::Failed,
    ];

    const fn word(self) -> &'static str {
        match self {
            GuardState::Starting => "starting",
            GuardState::Guarding => "guarding",
            GuardState::Degraded => "degraded",
            GuardState::Updating => "updating",
            GuardState::Draining => "draining",
            GuardState::Failed => "failed",
        }
    }
}

/// Why a connection was not let in, as `janus_connections_refused_total{reason}` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Turned {
    /// There was no client certificate.
    Absent,
    /// It has expired.
    Expired,
    /// It is of no CA that we know, or broken.
    Untrusted,
    /// It is not the controller's.
    WrongName,
    /// It is not made for clients.
    WrongPurpose,
    /// The handshake, or the first call, took too long.
    Timeout,
    /// It was no handshake that we understand, or the client broke it off.
    Protocol,
    /// There were too many connections, and it was the one to make room.
    TooMany,
}

impl Turned {
    const ALL: [Turned; 8] = [
        Turned::Absent,
        Turned::Expired,
        Turned::Untrusted,
        Turned::WrongName,
        Turned::WrongPurpose,
        Turned::Timeout,
        Turned::Protocol,
        Turned::TooMany,
    ];

    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            Turned::Absent => "certificate-absent",
            Turned::Expired => "certificate-expired",
            Turned::Untrusted => "certificate-untrusted",
            Turned::WrongName => "certificate-name",
            Turned::WrongPurpose => "certificate-purpose",
            Turned::Timeout => "timeout",
            Turned::Protocol => "protocol",
            Turned::TooMany => "too-many",
        }
    }
}

/// What became of guards that were to change hands, as `janus_handover_total{result}` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handover {
    /// They came from another janusd, and none was without somebody who answers.
    Taken,
    /// They were to come, and did not: they are armed from scratch, once whoever drives this daemon sends them.
    Missed,
    /// They went to another janusd.
    Given,
    /// They were to go, and did not: they are here as before.
    Kept,
}

impl Handover {
    const ALL: [Handover; 4] = [Handover::Taken, Handover::Missed, Handover::Given, Handover::Kept];

    const fn word(self) -> &'static str {
        match self {
            Handover::Taken => "taken",
            Handover::Missed => "missed",
            Handover::Given => "given",
            Handover::Kept => "kept",
        }
    }
}

/// What became of the start of a container runtime, as `janus_starts_total{result}` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// There was nothing to wait for.
    Passed,
    /// It was held until every guard was in force.
    Held(Duration),
    /// It was held, and answered so by failure policy.
    Late(Response, Duration),
    /// It could not be read: the kernel has denied it.
    Failed,
    /// A container was started by a runtime that is not gated.
    Unwatched,
}

impl Start {
    const WORDS: [&str; 6] = ["passed", "held", "late-allowed", "late-denied", "failed", "unwatched"];

    const fn word(self) -> &'static str {
        match self {
            Start::Passed => "passed",
            Start::Held(_) => "held",
            Start::Late(Response::Allow, _) => "late-allowed",
            Start::Late(Response::Deny, _) => "late-denied",
            Start::Failed => "failed",
            Start::Unwatched => "unwatched",
        }
    }

    const fn waited(self) -> Option<Duration> {
        match self {
            Start::Held(waited) | Start::Late(_, waited) => Some(waited),
            Start::Passed | Start::Failed | Start::Unwatched => None,
        }
    }
}

/// Values of `janus_handover_guards_total{result}`.
const HANDED_OVER: [&str; 2] = ["whole", "anew"];

/// Of a family that has one member, once it is there at all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    reason: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: Word,
}

/// All metric families of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    events: Family<EventLabels, Counter>,
    response_seconds: Family<GuardLabels, Histogram>,
    fallbacks: Family<ReasonLabels, Counter>,
    log_dropped: Family<GuardLabels, Counter>,
    problems: Family<ReasonLabels, Counter>,
    worker_restarts: Family<GuardLabels, Counter>,
    workers_abandoned: Family<GuardLabels, Counter>,
    identities: Family<GuardLabels, Gauge>,
    identity_bytes: Family<GuardLabels, Gauge>,
    identities_dropped: Family<GuardLabels, Counter>,
    guards: Family<StateLabels, Gauge>,
    marks: Family<KindLabels, Gauge>,
    refused: Family<WhyLabels, Counter>,
    reloads: Family<ResultLabels, Counter>,
    handovers: Family<ResultLabels, Counter>,
    handed_over: Family<ResultLabels, Counter>,
    starts: Family<ResultLabels, Counter>,
    start_held_seconds: Family<NoLabels, Histogram>,
    start_runtimes: Family<NoLabels, Gauge>,
    finds: Finds,
}

/// From a bare answer on one CPU (10 µs) to what a person notices; seconds.
const BOUNDS: [f64; 13] = [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 0.5, 1.0];

/// A histogram without a lock, which the library's has: a worker that is stopped while it holds one would stop whoever
/// answers in its place, and the scraper.
#[derive(Debug, Clone, Default)]
struct Histogram(Arc<Observed>);

#[derive(Debug, Default)]
struct Observed {
    /// By bound, and above all of them.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.0.counts[at].fetch_add(1, Ordering::Relaxed);
        // 584 years.
        self.0.nanoseconds.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut buckets = [(f64::MAX, 0); BOUNDS.len() + 1];
        let bounds = BOUNDS.iter().chain([&f64::MAX]);
        for (bucket, (bound, count)) in buckets.iter_mut().zip(bounds.zip(&self.0.counts)) {
            *bucket = (*bound, count.load(Ordering::Relaxed));
        }
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = self.0.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let events = Family::default();
        let response_seconds = Family::default();
        let (fallbacks, log_dropped, problems) = (Family::default(), Family::default(), Family::default());
        let (worker_restarts, guards, marks) = (Family::default(), Family::default(), Family::default());
        let workers_abandoned = Family::default();
        registry.register(
            "janus_guard_events",
            "Permission events that the guard answered. Janus's own accesses are answered and not counted",
            Family::clone(&events),
        );
        registry.register(
            "janus_guard_response_seconds",
            "Time from reading an event from the kernel to its answer",
            Family::clone(&response_seconds),
        );
        registry.register(
            "janus_guard_fallbacks",
            "Events that could not be judged and were answered by failurePolicy, or denied by the kernel",
            Family::clone(&fallbacks),
        );
        registry.register(
            "janus_guard_log_dropped",
            "Event lines that were dropped because their reader was slow",
            Family::clone(&log_dropped),
        );
        registry.register(
            "janus_guard_problems",
            "Times that something was found which the guard cannot guard as written",
            Family::clone(&problems),
        );
        registry.register(
            "janus_guard_worker_restarts",
            "Times that the guard's thread died and was replaced",
            Family::clone(&worker_restarts),
        );
        registry.register(
            "janus_guard_workers_abandoned",
            "Times that the guard's thread was stuck for good, and another took its place",
            Family::clone(&workers_abandoned),
        );
        let (identities, identity_bytes, identities_dropped) =
            (Family::default(), Family::default(), Family::default());
        registry.register(
            "janus_guard_identities",
            "Files that the guard knows by identity, so that another name gets the same answer",
            Family::clone(&identities),
        );
        registry.register("janus_guard_identity_bytes", "What they take, bytes", Family::clone(&identity_bytes));
        registry.register(
            "janus_guard_identities_dropped",
            "Files that could not be learned because the guard knows as many as it may",
            Family::clone(&identities_dropped),
        );
        registry.register(
            "janus_log_held_back",
            "Log lines that were counted instead of told, since there were too many of their kind",
            crate::flood::HELD_BACK.clone(),
        );
        registry.register("janus_guards", "Guards by state", Family::clone(&guards));
        registry.register("janus_marks", "fanotify marks by kind", Family::clone(&marks));
        let (refused, reloads) = (Family::default(), Family::default());
        registry.register(
            "janus_connections_refused",
            "Connections to the gRPC port that were not let in",
            Family::clone(&refused),
        );
        registry.register(
            "janus_certificate_reloads",
            "Times that changed certificate files were read again",
            Family::clone(&reloads),
        );
        let (handovers, handed_over) = (Family::default(), Family::default());
        registry.register(
            "janus_handover",
            "Times that guards were to come from another janusd, or to go to one",
            Family::clone(&handovers),
        );
        registry.register(
            "janus_handover_guards",
            "Guards that came from another janusd: with what they had in force, or armed anew beside it",
            Family::clone(&handed_over),
        );
        let (starts, start_held_seconds, start_runtimes) = (Family::default(), Family::default(), Family::default());
        registry.register(
            "janus_starts",
            "Times that a container runtime was executed, by what was answered; unwatched: containers of a runtime that is \
             not gated",
            Family::clone(&starts),
        );
        registry.register(
            "janus_start_held_seconds",
            "How long starts were held that were held",
            Family::clone(&start_held_seconds),
        );
        registry.register(
            "janus_start_runtimes",
            "Container runtimes whose starts are held for guards",
            Family::clone(&start_runtimes),
        );
        registry.register(
            "janus_build",
            "The running janusd",
            Info::new(vec![
                ("version", env!("CARGO_PKG_VERSION")),
                ("revision", option_env!("JANUS_REVISION").unwrap_or("unknown")),
            ]),
        );
        registry.register_collector(Box::new(OwnProcess { started: own::started() }));
        let finds = Finds::default();
        registry.register_collector(Box::new(finds.clone()));
        Metrics {
            registry,
            finds,
            events,
            response_seconds,
            fallbacks,
            log_dropped,
            problems,
            worker_restarts,
            workers_abandoned,
            identities,
            identity_bytes,
            identities_dropped,
            guards,
            marks,
            refused,
            reloads,
            handovers,
            handed_over,
            starts,
            start_held_seconds,
            start_runtimes,
        }
    }
}

/// janusd itself, as every Prometheus client names it. Read at each scrape.
#[derive(Debug)]
struct OwnProcess {
    /// Seconds since the epoch.
    started: Option<f64>,
}

/// How well containers are found, where any are looked for.
#[derive(Debug, Clone, Default)]
struct Finds(Arc<OnceLock<Arc<container::Tally>>>);

impl Collector for Finds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(container::Counts { late, too_large, blind }) = self.0.get().map(|tally| tally.counts()) else {
            return Ok(());
        };
        let counters = [
            ("janus_containers_found_late", "Containers that nothing had told of, found by going through procfs", late),
            (
                "janus_containers_too_large",
                "Times that a container had more cgroups than are read, so that procfs was gone through",
                too_large,
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let gauge = ConstGauge::new(i64::from(blind));
        let help = "1 while cgroups cannot all be watched, and containers are found by going through procfs";
        gauge.encode(encoder.encode_descriptor("janus_finder_blind", help, None, gauge.metric_type())?)
    }
}

impl Collector for OwnProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let taken = own::Taken::now();
        let cpu = ConstCounter::new(taken.cpu.as_secs_f64());
        let help = "User and system time of this process, seconds";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)?;
        let gauges = [
            ("process_resident_memory_bytes", "Memory that this process has", taken.resident),
            ("process_virtual_memory_bytes", "Memory that this process may address", taken.addressed),
            ("process_threads", "Threads of this process", taken.threads),
            ("process_open_fds", "Descriptors of this process", taken.open_files),
            ("process_max_fds", "Descriptors that this process may have", Some(taken.most_open_files)),
        ];
        let gauges = gauges.into_iter().map(|(name, help, value)| (name, help, value.map(|value| value as f64)));
        let started = ("process_start_time_seconds", "When this process started, seconds since 1970", self.started);
        for (name, help, value) in gauges.chain([started]) {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

impl Metrics {
    /// Containers are looked for, and this counts how.
    pub fn finds(&self, tally: Arc<container::Tally>) {
        // A process has one finder.
        let _once = self.finds.0.set(tally);
    }

    /// The handles of one guard, each at zero if it is new.
    pub fn guard(&self, name: &GuardName) -> GuardMetrics {
        let labels = GuardLabels { namespace: name.namespace.clone(), guard: name.name.clone() };
        let reason = |reason: &'static str| ReasonLabels {
            namespace: name.namespace.clone(),
            guard: name.name.clone(),
            reason: Word(reason),
        };
        let event = |event: Event, response: Outcome| {
            let labels = EventLabels {
                namespace: name.namespace.clone(),
                guard: name.name.clone(),
                event: Word(event.word()),
                response: Word(response.label()),
            };
            self.events.get_or_create(&labels).clone()
        };
        GuardMetrics {
            events: Event::ALL.map(|e| Outcome::ALL.map(|r| event(e, r))),
            response_seconds: self.response_seconds.get_or_create(&labels).clone(),
            fallbacks: Failure::ALL.map(|f| self.fallbacks.get_or_create(&reason(f.word())).clone()),
            log_dropped: self.log_dropped.get_or_create(&labels).clone(),
            worker_restarts: self.worker_restarts.get_or_create(&labels).clone(),
            workers_abandoned: self.workers_abandoned.get_or_create(&labels).clone(),
            identities: Share::of(&self.identities.get_or_create(&labels)),
            identity_bytes: Share::of(&self.identity_bytes.get_or_create(&labels)),
            identities_dropped: self.identities_dropped.get_or_create(&labels).clone(),
            problems: self.problems.clone(),
            labels,
            tally: Arc::default(),
        }
    }

    /// Forgets a guard that is in no pod any more: its series end. What it has counted is lost, as with any that ends.
    pub fn forget(&self, name: &GuardName) {
        let labels = GuardLabels { namespace: name.namespace.clone(), guard: name.name.clone() };
        let reason = |reason: &'static str| ReasonLabels {
            namespace: name.namespace.clone(),
            guard: name.name.clone(),
            reason: Word(reason),
        };
        for (event, response) in Event::ALL.into_iter().flat_map(|event| Outcome::ALL.map(|it| (event, it))) {
            self.events.remove(&EventLabels {
                namespace: name.namespace.clone(),
                guard: name.name.clone(),
                event: Word(event.word()),
                response: Word(response.label()),
            });
        }
        self.response_seconds.remove(&labels);
        for failure in Failure::ALL {
            self.fallbacks.remove(&reason(failure.word()));
        }
        for problem in ProblemReason::ALL {
            self.problems.remove(&reason(problem.word()));
        }
        self.log_dropped.remove(&labels);
        self.worker_restarts.remove(&labels);
        self.workers_abandoned.remove(&labels);
        self.identities.remove(&labels);
        self.identity_bytes.remove(&labels);
        self.identities_dropped.remove(&labels);
    }

    /// Brings the counters of the gRPC port into being, each at zero.
    pub fn serves(&self) {
        for turned in Turned::ALL {
            drop(self.refused.get_or_create(&WhyLabels { reason: Word(turned.word()) }));
        }
        for result in ["ok", "failed"] {
            drop(self.reloads.get_or_create(&ResultLabels { result: Word(result) }));
        }
        for handover in Handover::ALL {
            drop(self.handovers.get_or_create(&ResultLabels { result: Word(handover.word()) }));
        }
        for result in HANDED_OVER {
            drop(self.handed_over.get_or_create(&ResultLabels { result: Word(result) }));
        }
    }

    /// Brings the counters of starts into being, each at zero.
    pub fn holds_starts(&self) {
        for word in Start::WORDS {
            drop(self.starts.get_or_create(&ResultLabels { result: Word(word) }));
        }
        drop(self.start_held_seconds.get_or_create(&NoLabels {}));
        self.runtimes_gated(0);
    }

    /// A container runtime was executed.
    pub fn start(&self, start: Start) {
        self.starts.get_or_create(&ResultLabels { result: Word(start.word()) }).inc();
        if let Some(waited) = start.waited() {
            self.start_held_seconds.get_or_create(&NoLabels {}).observe(waited.as_secs_f64());
        }
    }

    /// So many runtimes are gated.
    pub fn runtimes_gated(&self, count: usize) {
        self.start_runtimes.get_or_create(&NoLabels {}).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A connection was not let in.
    pub fn tls_refused(&self, turned: Turned) {
        self.refused.get_or_create(&WhyLabels { reason: Word(turned.word()) }).inc();
    }

    /// Changed certificates were read, and are used or not.
    pub fn tls_reloaded(&self, used: bool) {
        self.reloads.get_or_create(&ResultLabels { result: Word(if used { "ok" } else { "failed" }) }).inc();
    }

    /// Guards were to change hands.
    pub fn handed_over(&self, handover: Handover) {
        self.handovers.get_or_create(&ResultLabels { result: Word(handover.word()) }).inc();
    }

    /// So many guards came with all that they had in force, and so many had to be armed anew.
    pub fn inherited(&self, whole: usize, anew: usize) {
        for (result, count) in HANDED_OVER.into_iter().zip([whole, anew]) {
            self.handed_over.get_or_create(&ResultLabels { result: Word(result) }).inc_by(count as u64);
        }
    }

    /// Sets `janus_guards` and `janus_marks`.
    pub fn set_totals(&self, states: impl IntoIterator<Item = GuardState>, marks: &MarkCounts) {
        let states: Vec<GuardState> = states.into_iter().collect();
        for state in GuardState::ALL {
            let count = states.iter().filter(|s| **s == state).count();
            self.guards.get_or_create(&StateLabels { state: Word(state.word()) }).set(count as i64);
        }
        for (kind, count) in [("inode", marks.inode), ("mount", marks.mount), ("filesystem", marks.filesystem)] {
            self.marks.get_or_create(&KindLabels { kind: Word(kind) }).set(count.cast_signed());
        }
    }

    /// All of it as OpenMetrics text.
    ///
    /// # Errors
    /// None that writing to a string could have.
    pub fn open_metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// OpenMetrics text as the older Prometheus text format (version 0.0.4): a counter's family bears the name of its
/// samples, there is no `# UNIT`, no `# EOF` and no `info` type.
pub fn prometheus_text(open_metrics: &str) -> String {
    let mut counters: Vec<&str> = Vec::new();
    let mut infos: Vec<&str> = Vec::new();
    for line in open_metrics.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            match kind {
                "counter" => counters.push(name),
                "info" => infos.push(name),
                _ => {}
            }
        }
    }
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        let renamed = ["# HELP ", "# TYPE "].into_iter().find_map(|tag| {
            let (name, rest) = line.strip_prefix(tag)?.split_once(' ')?;
            if counters.contains(&name) {
                Some(format!("{tag}{name}_total {rest}"))
            } else if infos.contains(&name) {
                Some(format!("{tag}{name}_info {}", if rest == "info" { "gauge" } else { rest }))
            } else {
                None
            }
        });
        text.push_str(renamed.as_deref().unwrap_or(line));
        text.push('\n');
    }
    text
}

/// What one guard in one pod adds to a gauge that is a sum over all its pods. Dropped, it takes it back.
#[derive(Debug)]
struct Share {
    sum: Gauge,
    own: AtomicI64,
}

impl Share {
    fn of(sum: &Gauge) -> Arc<Share> {
        Arc::new(Share { sum: sum.clone(), own: AtomicI64::new(0) })
    }

    fn set(&self, value: usize) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.sum.inc_by(value - self.own.swap(value, Ordering::Relaxed));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The handles of one guard in one pod. What it takes is given back when the last clone goes.
#[derive(Debug, Clone)]
pub struct GuardMetrics {
    events: [[Counter<u64, AtomicU64>; 3]; 3],
    response_seconds: Histogram,
    fallbacks: [Counter<u64, AtomicU64>; Failure::ALL.len()],
    log_dropped: Counter,
    worker_restarts: Counter,
    workers_abandoned: Counter,
    identities: Arc<Share>,
    identity_bytes: Arc<Share>,
    identities_dropped: Counter,
    problems: Family<ReasonLabels, Counter>,
    labels: GuardLabels,
    tally: Arc<Tally>,
}

/// What one guard in one pod has answered. Metrics are sums over all the pods of a guard; the wire tells of each.
#[derive(Debug)]
pub struct Tally {
    since: SystemTime,
    events: [[AtomicU64; Outcome::ALL.len()]; Event::ALL.len()],
    fallbacks: [AtomicU64; Failure::ALL.len()],
    lines_dropped: AtomicU64,
    restarts: AtomicU64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            since: SystemTime::now(),
            events: Default::default(),
            fallbacks: Default::default(),
            lines_dropped: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// Since when it counts.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// How many of each kind were answered how.
    pub fn events(&self) -> impl Iterator<Item = (Event, Outcome, u64)> {
        let of = |event: Event| Outcome::ALL.map(|outcome| (event, outcome));
        let all = Event::ALL.into_iter().flat_map(of);
        all.map(|(event, outcome)| {
            (event, outcome, self.events[event as usize][outcome as usize].load(Ordering::Relaxed))
        })
    }

    /// How many could not be judged, and why.
    pub fn fallbacks(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::ALL.into_iter().zip(&self.fallbacks).map(|(failure, count)| (failure, count.load(Ordering::Relaxed)))
    }

    /// Adds what another process has counted of the same guard in the same pod.
    pub fn add(&self, counts: &Counts) {
        for (event, outcome, count) in &counts.events {
            self.events[*event as usize][*outcome as usize].fetch_add(*count, Ordering::Relaxed);
        }
        for (failure, count) in &counts.fallbacks {
            if let Some(at) = Failure::ALL.iter().position(|it| it == failure) {
                self.fallbacks[at].fetch_add(*count, Ordering::Relaxed);
            }
        }
        self.lines_dropped.fetch_add(counts.lines_dropped, Ordering::Relaxed);
        self.restarts.fetch_add(counts.worker_restarts, Ordering::Relaxed);
    }

    /// What it has counted; what it does not count is zero.
    pub fn count(&self) -> Counts {
        Counts {
            events: self.events().collect(),
            fallbacks: self.fallbacks().collect(),
            lines_dropped: self.lines_dropped(),
            worker_restarts: self.restarts(),
            ..Counts::default()
        }
    }

    /// Event lines that were dropped.
    pub fn lines_dropped(&self) -> u64 {
        self.lines_dropped.load(Ordering::Relaxed)
    }

    /// Times that the worker was replaced.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }
}

/// What was counted, as it goes from one process to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answers.
    pub events: Vec<(Event, Outcome, u64)>,
    /// What could not be judged.
    pub fallbacks: Vec<(Failure, u64)>,
    /// Of the histogram: by bound, not summed up.
    pub buckets: Vec<u64>,
    /// And the sum.
    pub nanoseconds: u64,
    /// Event lines.
    pub lines_dropped: u64,
    /// Workers that died.
    pub worker_restarts: u64,
    /// Workers that were left behind.
    pub workers_abandoned: u64,
    /// Files that could not be learned.
    pub identities_dropped: u64,
}

/// Counts the lines of one guard that are dropped.
#[derive(Debug, Clone)]
pub struct Dropped {
    all: Counter,
    own: Arc<Tally>,
}

impl Dropped {
    /// One more.
    pub fn inc(&self) {
        self.all.inc();
        self.own.lines_dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl GuardMetrics {
    /// What this guard in this pod has answered.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// An event was answered, `seconds` after it was read.
    pub fn answered(&self, event: Event, decision: &Decision, seconds: f64) {
        self.events[event as usize][decision.outcome() as usize].inc();
        self.tally.events[event as usize][decision.outcome() as usize].fetch_add(1, Ordering::Relaxed);
        self.response_seconds.observe(seconds);
        if let crate::policy::Reason::Failure(failure) = decision.reason {
            self.failed(failure, 1);
        }
    }

    /// Events could not be judged.
    pub fn failed(&self, failure: Failure, count: u64) {
        if let Some(at) = Failure::ALL.iter().position(|f| *f == failure) {
            self.fallbacks[at].inc_by(count);
            self.tally.fallbacks[at].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What the guard has counted in all its pods, and what it has in this one, for another process.
    pub fn count(&self) -> Counts {
        let all = Event::ALL.into_iter().flat_map(|event| Outcome::ALL.map(|outcome| (event, outcome)));
        let events = all.map(|(event, outcome)| (event, outcome, self.events[event as usize][outcome as usize].get()));
        let observed = &self.response_seconds.0;
        Counts {
            events: events.collect(),
            fallbacks: Failure::ALL.into_iter().zip(&self.fallbacks).map(|(it, count)| (it, count.get())).collect(),
            buckets: observed.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            nanoseconds: observed.nanoseconds.load(Ordering::Relaxed),
            lines_dropped: self.log_dropped.get(),
            worker_restarts: self.worker_restarts.get(),
            workers_abandoned: self.workers_abandoned.get(),
            identities_dropped: self.identities_dropped.get(),
        }
    }

    /// Adds what another process has counted. Buckets of other bounds are left out.
    pub fn add(&self, counts: &Counts) {
        for (event, outcome, count) in &counts.events {
            self.events[*event as usize][*outcome as usize].inc_by(*count);
        }
        for (failure, count) in &counts.fallbacks {
            if let Some(at) = Failure::ALL.iter().position(|it| it == failure) {
                self.fallbacks[at].inc_by(*count);
            }
        }
        let observed = &self.response_seconds.0;
        if counts.buckets.len() == observed.counts.len() {
            for (own, count) in observed.counts.iter().zip(&counts.buckets) {
                own.fetch_add(*count, Ordering::Relaxed);
            }
            observed.nanoseconds.fetch_add(counts.nanoseconds, Ordering::Relaxed);
        }
        self.log_dropped.inc_by(counts.lines_dropped);
        self.worker_restarts.inc_by(counts.worker_restarts);
        self.workers_abandoned.inc_by(counts.workers_abandoned);
        self.identities_dropped.inc_by(counts.identities_dropped);
    }

    /// An event line was dropped.
    pub fn line_dropped(&self) {
        self.log_dropped().inc();
    }

    /// The counter of dropped lines, for whoever writes them.
    pub fn log_dropped(&self) -> Dropped {
        Dropped { all: self.log_dropped.clone(), own: self.tally.clone() }
    }

    /// So many files are known by identity, in so many bytes.
    pub fn identities(&self, count: usize, bytes: usize) {
        self.identities.set(count);
        self.identity_bytes.set(bytes);
    }

    /// A file could not be learned.
    pub fn identity_dropped(&self) {
        self.identities_dropped.inc();
    }

    /// The worker was stuck, and left behind.
    pub fn worker_abandoned(&self) {
        self.workers_abandoned.inc();
    }

    /// The worker was replaced.
    pub fn worker_restarted(&self) {
        self.worker_restarts.inc();
        self.tally.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Something cannot be guarded.
    pub fn problem(&self, reason: &'static str) {
        let labels = ReasonLabels {
            namespace: self.labels.namespace.clone(),
            guard: self.labels.guard.clone(),
            reason: Word(reason),
        };
        self.problems.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_containers_are_found_where_they_are_looked_for() {
        let metrics = Metrics::default();
        let text = || metrics.open_metrics().unwrap();
        assert!(!text().contains("janus_finder_blind"));
        metrics.finds(Arc::default());
        for sample in
            ["janus_containers_found_late_total 0", "janus_containers_too_large_total 0", "janus_finder_blind 0"]
        {
            assert!(text().lines().any(|line| line == sample), "{}", text());
        }
    }
    use crate::policy::Reason;

    #[test]
    fn each_pod_of_a_guard_is_counted_for_itself_and_all_together() {
        let metrics = Metrics::default();
        let name = GuardName { namespace: "ns".to_owned(), name: "g".to_owned() };
        let (one, other) = (metrics.guard(&name), metrics.guard(&name));
        let denied = Decision { response: crate::policy::Response::Deny, ..Decision::ALLOW };
        let failed = Decision { reason: Reason::Failure(Failure::LookupBusy), ..Decision::ALLOW };
        one.answered(Event::Open, &denied, 1e-5);
        one.answered(Event::Access, &failed, 1e-5);
        other.answered(Event::Open, &denied, 1e-5);
        other.log_dropped().inc();
        let told = |tally: &Tally| tally.events().filter(|(.., count)| *count > 0).collect::<Vec<_>>();
        assert_eq!(
            told(&one.tally()),
            [(Event::Open, Outcome::Deny, 1), (Event::Access, Outcome::Allow, 1)],
            "of the one"
        );
        assert_eq!(told(&other.tally()), [(Event::Open, Outcome::Deny, 1)], "of the other");
        assert_eq!(one.tally().fallbacks().map(|(_, count)| count).sum::<u64>(), 1);
        assert_eq!((one.tally().lines_dropped(), other.tally().lines_dropped()), (0, 1));
        let text = metrics.open_metrics().unwrap();
        let sample = r#"janus_guard_events_total{namespace="ns",guard="g",event="open",response="deny"} 2"#;
        assert!(text.contains(sample), "{text}");
        metrics.forget(&name);
        let text = metrics.open_metrics().unwrap();
        assert!(!text.contains(r#"guard="g""#), "{text}");
    }

    #[test]
    fn what_a_guard_takes_is_the_sum_over_its_pods() {
        let metrics = Metrics::default();
        let name = GuardName { namespace: "ns".to_owned(), name: "g".to_owned() };
        let (one, other) = (metrics.guard(&name), metrics.guard(&name));
        let takes = |count: u64, bytes: u64| {
            let text = metrics.open_metrics().unwrap();
            let count = format!("janus_guard_identities{{namespace=\"ns\",guard=\"g\"}} {count}\n");
            let bytes = format!("janus_guard_identity_bytes{{namespace=\"ns\",guard=\"g\"}} {bytes}\n");
            assert!(text.contains(&count) && text.contains(&bytes), "{count}{bytes}{text}");
        };
        one.identities(5, 500);
        other.identities(2, 200);
        takes(7, 700);
        // Its worker and its keeper both have it; it may also become less.
        let again = one.clone();
        again.identities(1, 100);
        takes(3, 300);
        drop(one);
        takes(3, 300);
        drop(again);
        takes(2, 200);
        drop(other);
        takes(0, 0);
    }
}
