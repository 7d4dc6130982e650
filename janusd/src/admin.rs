//! The admin server: `/metrics`, `/livez`, `/readyz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;

use crate::guard::Report;
use crate::metrics::{GuardState, MarkCounts, Metrics, prometheus_text};
use crate::policy::GuardName;
use crate::registry::Census;

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

/// Serves until `listener` fails; drop the future to end.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: tokio::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin);
    axum::serve(listener, routes).await
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
