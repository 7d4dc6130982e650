//! The admin server: `/metrics`, `/livez`, `/readyz`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::{Metrics, prometheus_text};

/// What the admin server tells of.
#[derive(Debug)]
pub struct Admin {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether this replica stands by, or leads and has listed what it watches.
    pub ready: AtomicBool,
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until `listener` fails; drop the future to end.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: tokio::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    axum::serve(listener, routes(admin)).await
}

fn routes(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    if admin.ready.load(Ordering::Acquire) {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "watches are not listed yet\n").into_response()
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
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

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn ask(admin: &Arc<Admin>, path: &str, accept: Option<&str>) -> (StatusCode, String, String) {
        let mut request = Request::get(path);
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let answer = routes(admin.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let kind = answer.headers().get(header::CONTENT_TYPE).unwrap().to_str().unwrap().to_owned();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    fn admin(ready: bool) -> Arc<Admin> {
        Arc::new(Admin { metrics: Metrics::new(), ready: ready.into() })
    }

    #[tokio::test]
    async fn who_is_not_ready_lives() {
        let of = async |ready| {
            let admin = admin(ready);
            (ask(&admin, "/readyz", None).await.0, ask(&admin, "/livez", None).await.0)
        };
        assert_eq!(of(false).await, (StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK));
        assert_eq!(of(true).await, (StatusCode::OK, StatusCode::OK));
    }

    #[tokio::test]
    async fn metrics_are_told_in_the_form_that_is_asked_for() {
        let admin = admin(true);
        let (status, kind, text) = ask(&admin, "/metrics", None).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, PROMETHEUS));
        assert!(text.contains("# TYPE janus_controller_reconciles_total counter"), "{text}");
        assert!(text.contains("# TYPE janus_build_info gauge") && !text.contains("# EOF"), "{text}");
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
        let (status, kind, text) = ask(&admin, "/metrics", Some(accept)).await;
        assert_eq!((status, kind.as_str()), (StatusCode::OK, OPEN_METRICS));
        assert!(text.ends_with("# EOF\n") && text.contains("# TYPE janus_controller_reconciles counter"), "{text}");
    }
}
