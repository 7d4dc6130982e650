//! gRPC for tests that are not async: one thread runs all calls, and every wait has a deadline.

use std::future::Future;
use std::path::Path;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Handle};
use tonic::Status;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// The thread's runtime; it ends with this process.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        handle
    })
}

/// Runs a call to its end, or to the deadline.
pub(crate) fn wait_for<T: Send + 'static>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let (done, outcome) = mpsc::channel();
    runtime().spawn(async move {
        let late = |_elapsed| Err(Status::deadline_exceeded("not answered in time"));
        let _nobody_waits = done.send(tokio::time::timeout(limit, call).await.unwrap_or_else(late));
    });
    outcome.recv().unwrap_or_else(|_panicked| Err(Status::internal("the call panicked")))
}

/// A channel that connects to a socket when it is first used.
pub(crate) fn connect_unix(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let _within = runtime().enter();
    // The name is no address: the connector knows where to go.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

/// A channel that connects to an address when it is first used.
pub(crate) fn connect_tcp(address: &str) -> Channel {
    let _within = runtime().enter();
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// Runs until it ends, or this process does.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    runtime().spawn(task);
}
