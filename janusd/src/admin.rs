//! The admin server: `/metrics`, `/livez`, `/readyz`.
//!
//! Anybody may ask, and nobody may keep a probe from its answer: a probe that goes unanswered has the daemon ended, and its
//! guards with it. So a connection has one answer and [`WHOLE`] to fetch it in, and there is always room for the next one
//! ([`Places`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::guard::Report;
use crate::metrics::{GuardState, MarkCounts, Metrics, prometheus_text};
use crate::places::Places;
use crate::policy::GuardName;
use crate::registry::Census;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long one may take, from its first byte to the last of its answer. A scrape is given up after as long.
const WHOLE: Duration = Duration::from_secs(10);

/// What the admin server tells of.
#[derive(Debug)]
pub struct Admin {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether the process does what it is there for; the guards' part of it is [`Guards::fault`].
    pub ready: AtomicBool,
    /// The guards.
    pub guards: Arc<dyn Guards>,
}

/// Whoever knows the guards of the process. Asked at every scrape: answers at once.
pub trait Guards: std::fmt::Debug + Send + Sync {
    /// The state of each.
    fn states(&self) -> Vec<GuardState>;
    /// All marks of all of them.
    fn marks(&self) -> MarkCounts;
    /// Why the process is not ready, for their part.
    fn fault(&self) -> Option<String>;
}

/// Guards by name, as a command without a cluster has them.
#[derive(Debug, Default)]
pub struct Reports(pub Mutex<BTreeMap<GuardName, Arc<Mutex<Report>>>>);

impl Guards for Reports {
    fn states(&self) -> Vec<GuardState> {
        self.0.lock().values().map(|report| report.lock().state).collect()
    }

    fn marks(&self) -> MarkCounts {
        self.0.lock().values().map(|report| report.lock().marks).fold(MarkCounts::default(), MarkCounts::plus)
    }

    fn fault(&self) -> Option<String> {
        None
    }
}

impl Guards for Census {
    fn states(&self) -> Vec<GuardState> {
        Census::states(self)
    }

    fn marks(&self) -> MarkCounts {
        Census::marks(self)
    }

    fn fault(&self) -> Option<String> {
        match self.dead() {
            0 => None,
            dead => Some(format!("{dead} guards have died and are not back yet")),
        }
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves for ever; drop the future to end.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin);
    let mut places = Places::new(CONNECTIONS);
    // Ended with this future, all of them.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                match ended {
                    // It may have been pushed out.
                    Ok(guest) => drop(places.leave(guest)),
                    Err(error) => tracing::error!(%error, "an answer of the admin server panicked"),
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, from)) => {
                let (held, pushed_out) = oneshot::channel::<()>();
                let (guest, _another) = places.enter(from.ip(), held);
                let answered = answer(stream, routes.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = answered => {}
                        _ = pushed_out => {}
                    }
                    guest
                });
            }
            Err(error) => {
                // No descriptor, or a connection that has gone again. Not at full speed, if it lasts.
                tracing::warn!(%error, "a connection to the admin server could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Answers once.
async fn answer(stream: TcpStream, routes: Router) {
    let mut http = http1::Builder::new();
    let serving = http.keep_alive(false).serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    match tokio::time::timeout(WHOLE, serving).await {
        Ok(Ok(())) => {}
        // Anybody may connect and say what they like.
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin server broke off"),
        Err(_) => tracing::debug!("a connection to the admin server took too long"),
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let not = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response();
    match admin.guards.fault() {
        _ if !admin.ready.load(Ordering::Acquire) => not("not ready".to_owned()),
        Some(fault) => not(fault),
        None => "ok\n".into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    admin.metrics.set_totals(admin.guards.states(), &admin.guards.marks());
    let text = match admin.metrics.open_metrics() {
        Ok(text) => text,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
    } else {
        ([(header::CONTENT_TYPE, PROMETHEUS)], prometheus_text(&text)).into_response()
    }
}
