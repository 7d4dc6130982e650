//! `janusd guard`: enforces manifests on this machine, without a cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::engine::Engine;
use super::{DONE, Failed, REFUSED, read_manifests};
use crate::admin::{self, Admin, Guards, Reports};
use crate::events::EventFormat;
use crate::guard::{Guard, Roots};
use crate::line::Printable;
use crate::manifest;
use crate::policy::{GuardName, GuardSpec};
use crate::root::{Root, RootError};

/// SIGINT and SIGTERM end within a second; this leaves time for the rest of the way out.
const PATIENCE: Duration = Duration::from_millis(700);

/// What to guard, and how to tell.
#[derive(Debug, Clone)]
pub struct Options {
    /// Manifests; `-` is stdin.
    pub files: Vec<PathBuf>,
    /// Where paths are relative to.
    pub place: RootPlace,
    /// Where to serve metrics.
    pub admin_listen: Option<SocketAddr>,
    /// How event lines look.
    pub event_format: EventFormat,
}

/// Which root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootPlace {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A process's root.
    Process(i32),
}

impl RootPlace {
    fn open(&self) -> Result<Root, Failed> {
        let opened = match self {
            RootPlace::Directory(path) => Root::of_directory(path),
            RootPlace::Process(pid) => Root::of_process(*pid),
        };
        opened.map_err(|error| match (self, &error) {
            (_, RootError::Denied { .. }) => Failed::running(error),
            (RootPlace::Process(_), _) => Failed::refused(format!("--pid: {error}")),
            (RootPlace::Directory(_), _) => Failed::refused(format!("--root: {error}")),
        })
    }
}

/// Runs until a signal; gives the exit status.
pub fn run(options: Options) -> u8 {
    match try_run(options) {
        Ok(()) => DONE,
        Err(failed) => {
            failed.report();
            failed.status
        }
    }
}

fn try_run(options: Options) -> Result<(), Failed> {
    let specs = load(&options.files)?;
    // Before rights are checked: a bad argument is one whoever runs it.
    options.place.open()?;
    let engine = Engine::start(options.event_format, specs.len() as u64)?;
    engine.confine();
    // One too many is known before the first is armed.
    engine.capacity.admit(specs.len().saturating_sub(1)).map_err(Failed::running)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| Failed::running(format!("async runtime: {error}")))?;
    let reports: Arc<Reports> = Arc::default();
    let admin = Admin { metrics: Arc::default(), ready: false.into(), guards: reports.clone() };
    let guards = parking_lot::Mutex::default();
    let watch = Arc::new(Roster { engine, options, admin: Arc::new(admin), reports, guards });
    let result = runtime.block_on(watch.clone().serve(specs));
    watch.admin.ready.store(false, Ordering::Release);
    watch.engine.shared.stopping.store(true, Ordering::Relaxed);
    // Whatever blocking call is still under way gives up by itself: surveys look at the flag just set.
    runtime.shutdown_timeout(PATIENCE / 2);
    let clean = watch.stop();
    match Arc::try_unwrap(watch) {
        Ok(watch) => watch.engine.finish(clean, PATIENCE / 2),
        // A survey that did not give up: the process ends without it.
        Err(_) => tracing::error!("a survey is still under way"),
    }
    result
}

/// Parses all manifests, or none.
fn load(files: &[PathBuf]) -> Result<Vec<GuardSpec>, Failed> {
    let sources = read_manifests(files)?;
    let borrowed = sources.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()));
    manifest::parse_all(borrowed)
        .map_err(|errors| Failed { status: REFUSED, lines: errors.iter().map(ToString::to_string).collect() })
}

/// The guards that run.
struct Roster {
    engine: Engine,
    options: Options,
    admin: Arc<Admin>,
    reports: Arc<Reports>,
    guards: parking_lot::Mutex<BTreeMap<GuardName, Guard>>,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Roster {
    async fn serve(self: Arc<Self>, specs: Vec<GuardSpec>) -> Result<(), Failed> {
        let signals = |kind| signal(kind).map_err(|error| Failed::running(format!("signals: {error}")));
        // Before anything is armed, so that no signal is missed.
        let mut signals = Signals {
            interrupt: signals(SignalKind::interrupt())?,
            terminate: signals(SignalKind::terminate())?,
            hang_up: signals(SignalKind::hangup())?,
        };
        let mut server = match self.options.admin_listen {
            None => None,
            Some(address) => {
                let listener = tokio::net::TcpListener::bind(address)
                    .await
                    .map_err(|error| Failed::running(format!("--admin-listen {address}: {error}")))?;
                Some(tokio::spawn(admin::serve(listener, self.admin.clone())))
            }
        };
        let mut arming = Some(self.clone().apply_elsewhere(specs, true));
        loop {
            tokio::select! {
                _ = signals.interrupt.recv() => return Ok(()),
                _ = signals.terminate.recv() => return Ok(()),
                _ = signals.hang_up.recv() => match self.reload() {
                    // One at a time: a reload that comes while another is under way waits for it.
                    Ok(specs) => {
                        if let Some(arming) = arming.take() {
                            settle(arming.await)?;
                        }
                        arming = Some(self.clone().apply_elsewhere(specs, false));
                    }
                    Err(failed) => {
                        failed.report();
                        eprintln!("error: the manifests were not read again; what was in force stays");
                    }
                },
                done = if_any(arming.as_mut()) => {
                    arming = None;
                    settle(done)?;
                }
                ended = if_any(server.as_mut()) => {
                    return Err(Failed::running(format!("--admin-listen: the server ended: {ended:?}")));
                }
            }
        }
    }

    fn reload(&self) -> Result<Vec<GuardSpec>, Failed> {
        if self.options.files.iter().any(|file| file == Path::new("-")) {
            return Err(Failed::refused("stdin cannot be read again"));
        }
        load(&self.options.files)
    }

    fn apply_elsewhere(self: Arc<Self>, specs: Vec<GuardSpec>, first: bool) -> Arming {
        tokio::task::spawn_blocking(move || self.apply(specs, first))
    }

    /// Starts what is new, updates what is there, stops what is gone; says when all is in force.
    fn apply(&self, specs: Vec<GuardSpec>, first: bool) -> Result<(), Failed> {
        let mut guards = self.guards.lock();
        let mut failed = Vec::new();
        let wanted: Vec<GuardName> = specs.iter().map(|spec| spec.name().clone()).collect();
        for spec in specs {
            let name = spec.name().clone();
            if let Err(error) = self.apply_one(&mut guards, spec) {
                failed.push(format!("{}: {error}", Printable(&name.to_string())));
            }
        }
        let gone: Vec<GuardName> = guards.keys().filter(|name| !wanted.contains(name)).cloned().collect();
        for name in gone {
            if let Some(guard) = guards.remove(&name) {
                self.reports.0.lock().remove(&name);
                if !guard.stop(PATIENCE) {
                    failed.push(format!("{}: did not stop in time", Printable(&name.to_string())));
                }
            }
        }
        let (count, marks) = (guards.len(), self.reports.marks().total());
        drop(guards);
        let failed = Failed { status: super::FAILED, lines: failed };
        if failed.lines.is_empty() {
            self.admin.ready.store(true, Ordering::Release);
            eprintln!("ready: {count} guards, {marks} marks");
            Ok(())
        } else if first {
            Err(failed)
        } else {
            failed.report();
            Ok(())
        }
    }

    fn apply_one(&self, guards: &mut BTreeMap<GuardName, Guard>, spec: GuardSpec) -> Result<(), String> {
        let name = spec.name().clone();
        if let Some(guard) = guards.get(&name) {
            return guard.update(Arc::new(spec)).map_err(|error| error.to_string());
        }
        self.engine.capacity.admit(guards.len()).map_err(|error| error.to_string())?;
        let root = self.options.place.open().map_err(|failed| failed.lines.join("; "))?;
        let metrics = self.admin.metrics.guard(&name);
        let guard = Guard::start(Arc::new(spec), Roots::One(root), None, metrics, &self.engine.shared)
            .map_err(|error| error.to_string())?;
        self.reports.0.lock().insert(name.clone(), guard.reports());
        guards.insert(name, guard);
        Ok(())
    }

    /// Stops all guards, side by side. False when one did not stop in time.
    fn stop(&self) -> bool {
        let guards = std::mem::take(&mut *self.guards.lock());
        guards.values().for_each(Guard::begin_stop);
        let deadline = Instant::now() + PATIENCE;
        let mut clean = true;
        for guard in guards.into_values() {
            clean &= guard.stop(deadline.saturating_duration_since(Instant::now()));
        }
        clean
    }
}

type Arming = tokio::task::JoinHandle<Result<(), Failed>>;

fn settle(done: Result<Result<(), Failed>, tokio::task::JoinError>) -> Result<(), Failed> {
    done.map_err(|error| Failed::running(format!("arming panicked: {error}")))?
}

/// Waits for a task, for ever if there is none.
async fn if_any<T>(task: Option<&mut tokio::task::JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}
