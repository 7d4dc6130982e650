//! What every command that enforces needs: rights, limits, and the threads that guards share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::Failed;
use crate::container::join_node_cgroups;
use crate::events::relay::{Relay, RelayThread};
use crate::events::{EventFormat, LineWriter, Place};
use crate::fanotify::Features;
use crate::guard::kin::Kin;
use crate::guard::known::Pool;
use crate::guard::lookup::{LookupThread, Lookups};
use crate::guard::supervisor::{Supervisor, SupervisorThread};
use crate::guard::watch::{WatchThread, Watches};
use crate::guard::watchdog::{self, Watchdog, WatchdogThread};
use crate::guard::{Shared, WORKER_PREFIX, Wrapping};
use crate::limits::{self, Capacity};
use crate::process::agents::Agents;
use crate::process::look::NodeAgents;
use crate::rights;

/// The threads that guards share, and the way to end them.
#[derive(Debug)]
pub struct Engine {
    /// For guards.
    pub shared: Shared,
    /// How many guards fit.
    pub capacity: Capacity,
    supervisor: SupervisorThread,
    watchdog: WatchdogThread,
    /// Ends once the kernel lets go of what was probed.
    closing: std::thread::JoinHandle<()>,
    lookups: LookupThread,
    watches: WatchThread,
    lines: LineWriter,
    relay: Option<(Relay, RelayThread)>,
}

/// How long the last event lines may take when their end cannot be told.
const LEFT_BEHIND: Duration = Duration::from_millis(100);

/// Capabilities that enforcement needs.
pub const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
];

/// The names of needed capabilities that this process lacks.
pub fn missing_capabilities() -> Vec<&'static str> {
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    NEEDED.iter().filter(|(capability, _)| !held.contains(*capability)).map(|(_, name)| *name).collect()
}

/// A worker's panic is told by the supervisor, from its own thread: the usual message would be written by the worker
/// itself, to a stderr whose reader may be waiting for that worker's answer.
fn keep_workers_panics_quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let worker = std::thread::current().name().is_some_and(|name| name.starts_with(WORKER_PREFIX));
        if !worker {
            usual(panic);
        }
    }));
}

/// Where lines say they come from when there is no cluster.
pub fn local_place() -> Place {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Place { pod: "local".to_owned(), node }
}

/// How the engine is to run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How event lines look.
    pub format: EventFormat,
    /// Where they say that they come from.
    pub place: Place,
    /// How many guards to make room for.
    pub guards: u64,
    /// How many fanotify groups there are beside those of guards.
    pub groups: u64,
    /// More executables that are the node's agents.
    pub agents: Vec<PathBuf>,
    /// Decisions can be watched: [`Engine::relay`].
    pub watched: bool,
    /// Where limits may be raised.
    pub sysctl: PathBuf,
}

impl Engine {
    /// [`Engine::set_up`] without a cluster.
    ///
    /// # Errors
    /// Likewise.
    pub fn start(format: EventFormat, guards: u64) -> Result<Engine, Failed> {
        let sysctl = limits::SYSCTL.into();
        Engine::set_up(Setup {
            format,
            place: local_place(),
            guards,
            groups: 0,
            agents: Vec::new(),
            watched: false,
            sysctl,
        })
    }

    /// Checks rights, makes room for so many guards, probes the kernel, starts the shared threads.
    ///
    /// # Errors
    /// Status 1, naming the missing capability or what could not be had.
    pub fn set_up(setup: Setup) -> Result<Engine, Failed> {
        let Setup { format, place, guards, groups, agents, watched, sysctl } = setup;
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(Failed::running(format!("missing capability: {} (run as root)", missing.join(", "))));
        }
        let capacity = limits::prepare(&limits::Node { sysctl: &sysctl, ..limits::Node::here() }, guards, groups);
        keep_workers_panics_quiet();
        // Before any thread is started, and while it is still allowed.
        if let Err(error) = join_node_cgroups() {
            const LACK: &str =
                "the cgroup namespace of the node's first process cannot be joined: pods may not be told";
            // One machine's guards are in no pod, as a rule.
            if watched { tracing::warn!(%error, "{LACK}") } else { tracing::debug!(%error, "{LACK}") }
        }
        let mut probes = Vec::new();
        let features = Features::probe_leaving(&mut probes);
        let agents = Agents::find(&agents, &features).map_err(Failed::running)?;
        let failed = |what: &str, error: std::io::Error| Failed::running(format!("{what}: {error}"));
        // Aside: a start that waits for that is one that openers wait for.
        let closing = std::thread::Builder::new().name("janus-close".into()).spawn(move || drop(probes));
        let closing = closing.map_err(|e| failed("a thread", e))?;
        let (supervisor, supervisor_thread) = Supervisor::start().map_err(|e| failed("supervisor thread", e))?;
        let (watchdog, watchdog_thread) =
            Watchdog::start(watchdog::DEADLINE).map_err(|e| failed("watchdog thread", e))?;
        let (lookups, lookup_thread) = Lookups::start().map_err(|e| failed("lookup thread", e))?;
        let (watches, watch_thread) = Watches::start()
            .map_err(|e| failed("inotify instance or its thread (fs.inotify.max_user_instances)", e))?;
        let (lines, line_writer) =
            LineWriter::start(std::io::stdout(), format, place).map_err(|e| failed("line thread", e))?;
        let (lines, relay) = if watched {
            let (lines, relay, thread) = Relay::start(lines).map_err(|e| failed("relay thread", e))?;
            (lines, Some((relay, thread)))
        } else {
            (lines, None)
        };
        let watched = relay.as_ref().map(|(relay, _)| relay.watched().clone()).unwrap_or_default();
        let shared = Shared {
            features,
            supervisor,
            watchdog,
            lookups,
            watches,
            lines,
            known: Pool::default(),
            watched,
            wants_everything: format == EventFormat::Json,
            stopping: Arc::new(AtomicBool::new(false)),
            agents: Some(agents)
                .filter(|agents| !agents.is_empty())
                .map(|agents| Arc::new(agents) as Arc<dyn NodeAgents>),
            kin: Kin::default(),
            wrap: Wrapping::default(),
        };
        Ok(Engine {
            shared,
            capacity,
            supervisor: supervisor_thread,
            watchdog: watchdog_thread,
            closing,
            lookups: lookup_thread,
            watches: watch_thread,
            lines: line_writer,
            relay,
        })
    }

    /// Where decisions can be watched, if they can.
    pub fn relay(&self) -> Option<Relay> {
        self.relay.as_ref().map(|(relay, _)| relay.clone())
    }

    /// Gives up the system calls that no guard needs. Not for a command that starts a process. A kernel or an architecture
    /// that has no filter is told of, and janusd goes on.
    pub fn confine(&self) {
        if let Err(error) = rights::confine() {
            tracing::warn!("janusd keeps rights that it does not need: {error}");
        }
    }

    /// Ends the shared threads; stop every guard first. `clean`: every guard has stopped, so the threads will end.
    pub fn finish(self, clean: bool, patience: Duration) {
        let Engine { shared, capacity: _, supervisor, watchdog, closing, lookups, watches, lines, relay } = self;
        shared.stopping.store(true, Ordering::Relaxed);
        drop(shared);
        if !clean {
            tracing::error!("a guard did not stop in time; what still waits is allowed by the kernel as janusd ends");
            return;
        }
        // Otherwise it hangs in the kernel, and ends with the process.
        if closing.is_finished() && closing.join().is_err() {
            tracing::error!("the thread that closes what was probed panicked");
        }
        // What was left behind keeps the way to lookups and lines open: those threads do not end before the process.
        let all_ended = supervisor.join();
        watchdog.join();
        watches.join();
        let patience = if all_ended { patience } else { patience.min(LEFT_BEHIND) };
        if all_ended {
            lookups.join();
            if let Some((relay, thread)) = relay {
                drop(relay);
                thread.join();
            }
        }
        if !lines.finish(patience) {
            tracing::warn!("event lines were lost: nobody read them");
        }
    }
}
