//! `janusd serve`: the node daemon.
//!
//! The composition root: what there is of engine, finder, registry, gRPC and admin server is made here, and ended here in
//! the reverse order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use janus_proto::v1::FILE_DESCRIPTOR_SET;
use janus_proto::v1::janusd_server::JanusdServer;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;
use tonic::{Request, Status};

use super::engine::{Engine, Setup};
use super::{DONE, Failed};
use crate::admin::{self, Admin};
use crate::container::Finder;
use crate::events::relay::Relay;
use crate::events::{self, EventFormat};
use crate::gate::{Gate, GateThread, Settings};
use crate::handover::give::{GiveThread, Host};
use crate::handover::place::Place;
use crate::handover::take::{self, Home};
use crate::limits::{Capacity, GUARDS_MEANT};
use crate::metrics::Metrics;
use crate::node::NodeEnforcer;
use crate::policy::{check_dns_label, check_dns_subdomain};
use crate::registry::{Bounds, Registry};
use crate::server::entrance::{self, Visit};
use crate::server::tls::{Door, Files};
use crate::server::{Facts, LARGEST_MESSAGE, Service};

/// SIGTERM ends within five seconds: so long for the guards, and as much again for the threads behind them.
const PATIENCE: Duration = Duration::from_secs(2);
/// Calls of one connection at once: those beyond wait.
const CALLS: u32 = 64;
/// A client that does not answer is gone.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What to serve, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// gRPC.
    pub listen: SocketAddr,
    /// Metrics and probes.
    pub admin_listen: SocketAddr,
    /// This node's name.
    pub node: String,
    /// The controller's namespace.
    pub namespace: String,
    /// Certificates; `None`: plain text.
    pub files: Option<Files>,
    /// Where guards change hands; `None`: they do not.
    pub state_dir: Option<PathBuf>,
    /// More executables that are the node's agents.
    pub agents: Vec<PathBuf>,
    /// How starts of containers are held for guards; `None`: they are not.
    pub starts: Option<Settings>,
    /// How event lines look.
    pub event_format: EventFormat,
    /// Where limits may be raised.
    pub sysctl: PathBuf,
}

/// Serves until SIGINT or SIGTERM; gives the exit status.
pub fn run(options: Options) -> u8 {
    match serve(options) {
        Ok(()) => DONE,
        Err(failed) => {
            failed.report();
            failed.status
        }
    }
}

fn serve(options: Options) -> Result<(), Failed> {
    let wrong = |flag: &str, reason: String| Failed::refused(format!("{flag}: {reason}"));
    check_dns_subdomain(&options.node).map_err(|reason| wrong("--node-name", reason))?;
    check_dns_label(&options.namespace).map_err(|reason| wrong("--namespace", reason))?;
    let client = ServerName::try_from(format!("janus-controller.{}.svc", options.namespace))
        .map_err(|error| wrong("--namespace", error.to_string()))?;
    let door = options.files.clone().map(|files| Door::open(files, client)).transpose();
    let door = door.map_err(|error| wrong("--tls-cert, --tls-key, --tls-client-ca", error.to_string()))?;
    let place = options.state_dir.as_deref().map(Place::take).transpose();
    let place = place.map_err(|error| wrong("--state-dir", error.to_string()))?;
    let engine = Engine::set_up(Setup {
        format: options.event_format,
        place: events::Place { pod: String::new(), node: options.node.clone() },
        guards: GUARDS_MEANT,
        groups: options.starts.is_some().into(),
        agents: options.agents.clone(),
        watched: true,
        sysctl: options.sysctl.clone(),
    })?;
    engine.confine();
    let failed = |what: &'static str| move |error: std::io::Error| Failed::running(format!("{what}: {error}"));
    let (finder, finder_thread) = Finder::start().map_err(failed("finder thread"))?;
    let metrics: Arc<Metrics> = Arc::default();
    metrics.serves();
    metrics.finds(finder.tally().clone());
    let bounds = bounds(&engine.capacity);
    // Before any guard: what is enrolled is waited for from the beginning.
    let (gate, gate_thread) = gate(&options, &engine, &finder, &metrics).unzip();
    let enforcer = NodeEnforcer {
        shared: engine.shared.clone(),
        capacity: engine.capacity,
        finder: finder.clone(),
        gate,
        metrics: metrics.clone(),
    };
    let (registry, registry_thread) = Registry::start(enforcer, bounds).map_err(failed("registry thread"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(failed("async runtime"))?;
    let relay = engine.relay().ok_or_else(|| Failed::running("decisions cannot be watched"))?;
    let facts =
        Facts { node: options.node.clone(), bounds, audits: engine.shared.features.audit, started: SystemTime::now() };
    let kin = engine.shared.kin.clone();
    let admin = Arc::new(Admin { metrics, ready: false.into(), guards: Arc::new(registry.census()) });
    let giving = place.map(|place| {
        let metrics = &admin.metrics;
        let home = Home { registry: &registry, metrics, kin: &kin, node: &options.node, runtime: &runtime };
        let heir = take::take(place.others, &home);
        let holder = place.holder.and_then(|holder| take::take_held(holder, &home));
        let share = gate_thread.as_ref().and_then(|gate| gate.group().try_clone().ok());
        GiveThread::start(
            place.listener,
            heir,
            holder,
            Host {
                registry: registry.clone(),
                admin: admin.clone(),
                kin: kin.clone(),
                watchdog: engine.shared.watchdog.clone(),
                gate: share,
            },
        )
    });
    let giving = giving.transpose().map_err(failed("hand-over thread"))?;
    if door.is_none() {
        tracing::warn!("--insecure: whoever reaches {} may lift every guard of this node", options.listen);
    }
    let result = runtime.block_on(async {
        let way_out = async {
            admin.ready.store(false, Ordering::Release);
            // Surveys give up.
            engine.shared.stopping.store(true, Ordering::Relaxed);
            tokio::time::timeout(PATIENCE, registry.drain()).await.is_ok()
        };
        let house = House { options: &options, registry: registry.clone(), relay, facts, admin: admin.clone() };
        house.run(door, way_out).await
    });
    if let Some(giving) = giving {
        giving.end();
    }
    // What is left are lines: their readers, and those of the log, may have stopped reading.
    let deadline = Instant::now() + PATIENCE / 2;
    runtime.shutdown_timeout(PATIENCE / 4);
    registry_thread.end();
    if let Some(gate_thread) = gate_thread {
        gate_thread.end();
    }
    drop(registry);
    drop(finder);
    let (drained, result) = result;
    let clean = drained;
    if clean {
        finder_thread.join();
    }
    engine.finish(clean, deadline.saturating_duration_since(Instant::now()));
    result
}

/// The gate of starts, if there is to be one and it can be had: guards do without, as they do where the runtime is not known.
fn gate(options: &Options, engine: &Engine, finder: &Finder, metrics: &Arc<Metrics>) -> Option<(Gate, GateThread)> {
    let Some(settings) = &options.starts else {
        tracing::info!("starts are not held: containers may begin before their guards are in force");
        return None;
    };
    match Gate::start(settings, engine.shared.features, finder.clone(), metrics.clone()) {
        Ok(gate) => Some(gate),
        Err(error) => {
            tracing::error!(%error, "starts are not held: containers may begin before their guards are in force");
            None
        }
    }
}

/// No namespace takes more than half of what there is.
fn bounds(capacity: &Capacity) -> Bounds {
    let guards = capacity.guards.min(GUARDS_MEANT).try_into().unwrap_or(u32::MAX);
    Bounds { guards, of_namespace: (guards / 2).max(1) }
}

struct House<'a> {
    options: &'a Options,
    registry: Registry,
    relay: Relay,
    facts: Facts,
    admin: Arc<Admin>,
}

impl House<'_> {
    /// Serves until a signal comes; then the guards take the way out, while calls that are under way get their answers.
    /// Whether the guards are out, and how it went.
    async fn run(self, door: Option<Door>, way_out: impl Future<Output = bool>) -> (bool, Result<(), Failed>) {
        tokio::pin!(way_out);
        let mut drained = None;
        let result = self.serve(door, async { drained = Some(way_out.as_mut().await) }).await;
        match drained {
            Some(drained) => (drained, result),
            None => (way_out.await, result),
        }
    }

    async fn serve(self, door: Option<Door>, way_out: impl Future<Output = ()>) -> Result<(), Failed> {
        let House { options, registry, relay, facts, admin } = self;
        let signals = |kind| signal(kind).map_err(|error| Failed::running(format!("signals: {error}")));
        let (mut interrupt, mut terminate) = (signals(SignalKind::interrupt())?, signals(SignalKind::terminate())?);
        let listener = listen("--listen", options.listen).await?;
        let admin_listener = listen("--admin-listen", options.admin_listen).await?;
        let (closing, closed) = watch::channel(false);
        let (connections, incoming) = mpsc::channel(1);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<JanusdServer<Service>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| Failed::running(format!("reflection: {error}")))?;
        let registry_draining = registry.clone();
        let service = Service::new(registry, relay, facts, closed.clone());
        let mut until_closed = closed.clone();
        let noted = InterceptorLayer::new(|call: Request<()>| {
            call.extensions().get::<Visit>().inspect(|visit| visit.calls());
            Ok::<_, Status>(call)
        });
        let server = Server::builder()
            .layer(noted)
            .concurrency_limit_per_connection(CALLS as usize)
            .max_concurrent_streams(CALLS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE / 2))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(JanusdServer::new(service).max_decoding_message_size(LARGEST_MESSAGE))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
                // Its sender lives as long as this function.
                let _closing = until_closed.wait_for(|closing| *closing).await;
            });
        let accepting = entrance::accept(listener, door, admin.metrics.clone(), connections);
        let telling = admin::serve(admin_listener, admin.clone());
        tokio::pin!(server, accepting, telling);
        if !registry_draining.draining() {
            admin.ready.store(true, Ordering::Release);
        }
        tracing::info!(grpc = %options.listen, admin = %options.admin_listen, node = options.node, "serving");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            ended = &mut server => return Err(Failed::running(format!("--listen: the server ended: {ended:?}"))),
            () = &mut accepting => return Err(Failed::running("--listen: the listener ended")),
            () = &mut telling => return Err(Failed::running("--admin-listen: the server ended")),
        }
        tracing::info!("draining");
        admin.ready.store(false, Ordering::Release);
        health.set_not_serving::<JanusdServer<Service>>().await;
        closing.send_replace(true);
        // Calls under way, and scrapes, as long as there is time; new connections are not taken.
        let last_calls = async {
            tokio::select! {
                ended = &mut server => if let Err(error) = ended {
                    tracing::warn!(%error, "the server did not end well");
                },
                () = &mut telling => {}
            }
        };
        let ((), in_time) = tokio::join!(way_out, tokio::time::timeout(PATIENCE / 2, last_calls));
        if in_time.is_err() {
            tracing::warn!("calls were cut off");
        }
        Ok(())
    }
}

async fn listen(flag: &str, address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(|error| Failed::running(format!("{flag} {address}: {error}")))
}
