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
use crate::metrics::{MarkCounts, Metrics, prometheus_text};
use crate::policy::GuardName;

/// What the admin server tells of.
#[derive(Debug, Default)]
pub struct Admin {
    /// The counters.
    pub metrics: Metrics,
    /// Whether every guard is in force.
    pub ready: AtomicBool,
    /// The guards.
    pub guards: Mutex<BTreeMap<GuardName, Arc<Mutex<Report>>>>,
}

impl Admin {
    /// All marks of all guards.
    pub fn marks(&self) -> MarkCounts {
        self.guards.lock().values().map(|report| report.lock().marks).fold(MarkCounts::default(), MarkCounts::plus)
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
    if admin.ready.load(Ordering::Acquire) {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let states: Vec<_> = admin.guards.lock().values().map(|report| report.lock().state).collect();
    admin.metrics.set_totals(states, &admin.marks());
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
