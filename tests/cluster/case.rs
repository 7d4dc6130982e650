//! One run of one test: its API server, its runtime.

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::server::{ApiServer, Kind};
use crate::watchdog::Watch;

/// The definition that is deployed.
const CRD: &str = include_str!("../../deploy/base/crd.yaml");

pub(crate) struct Case {
    /// Kubernetes' programs.
    pub(crate) programs: &'static Path,
    pub(crate) watch: Watch,
}

static SHARED: Mutex<Option<Arc<ApiServer>>> = Mutex::new(None);

impl Case {
    /// The API server of this run, with the JanusGuard CRD. Other tests use it as well: keep to a namespace of your own.
    pub(crate) fn api(&self) -> Arc<ApiServer> {
        // A test that failed to start it does not keep the next one from trying.
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Nor does one whose server was killed because it hung.
        drop(shared.take_if(|server| server.has_ended()));
        let server = Arc::clone(shared.get_or_insert_with(|| Arc::new(self.own_api())));
        server.end_with(&self.watch);
        server
    }

    /// An API server of this test's own, with the JanusGuard CRD: for tests that stop it, or look at the whole of it.
    pub(crate) fn own_api(&self) -> ApiServer {
        let server = ApiServer::start(self.programs, Kind::Alone);
        server.end_with(&self.watch);
        server.admin().apply(CRD);
        let established = ["wait", "--for=condition=Established", "--timeout=20s", "crd", "--all"];
        server.admin().kubectl(&established).success();
        server
    }

    /// A namespace that no other test has.
    pub(crate) fn namespace(&self, api: &ApiServer) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        api.admin().kubectl(&["create", "namespace", &name]).success();
        name
    }

    /// Runs async code to its end, within a limit.
    #[track_caller]
    pub(crate) fn within<T>(&self, limit: Duration, code: impl Future<Output = T>) -> T {
        let outcome = runtime().block_on(async { tokio::time::timeout(limit, code).await });
        outcome.unwrap_or_else(|_elapsed| panic!("not done within {limit:?}"))
    }
}

/// Takes the API server of this run down, if there is one.
pub(crate) fn end_shared() {
    drop(SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take());
}

/// One for the whole run, since clients belong to the runtime in which they were made.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}
