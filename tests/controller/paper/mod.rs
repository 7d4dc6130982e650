//! An API server of paper: holds objects in memory, and lists, watches and writes them as the real one does.
//!
//! For what the real one is too slow or too well-behaved for: a hundred thousand pods, and faults on demand. It checks
//! nothing: no schema, no rights, no namespaces. What its answers mean is tried on the real one, in `tests/cluster`.
//!
//! Flow: [`serve`] takes requests apart, [`store`] keeps the objects and what happened to them.

mod patch;
mod serve;
mod store;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use self::store::Store;

pub(crate) use self::store::Kind;

/// Who sends this header is spared from [`Faults`].
const SPARED: &str = "x-spared";

/// What goes wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Of so many writes one is answered with 409, and not done; 0: none.
    pub(crate) conflicts: u64,
    /// Of so many requests one is answered with 500, and not done; 0: none.
    pub(crate) errors: u64,
    /// Of so many writes one is done, and answered with 500; 0: none.
    pub(crate) lies: u64,
    /// Every request but those about Leases is answered with 429, and not done.
    pub(crate) busy: bool,
    /// Every request but those about Leases is never answered.
    pub(crate) silent: bool,
    /// From a request to its answer.
    pub(crate) slow: Duration,
}

pub(crate) struct Paper {
    desk: Arc<Desk>,
    address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
}

/// What requests are answered from.
struct Desk {
    store: Mutex<Store>,
    /// The version of the last change.
    news: watch::Sender<u64>,
    /// Grows when all watches are to end.
    watches: watch::Sender<u64>,
    faults: Mutex<Faults>,
    counted: Mutex<Counted>,
}

/// Requests so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    pub(crate) requests: u64,
    pub(crate) lists: u64,
    pub(crate) watches: u64,
    pub(crate) writes: u64,
    pub(crate) leases: u64,
}

impl Paper {
    pub(crate) fn start() -> Paper {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let desk = Arc::new(Desk {
            store: Mutex::new(Store::new()),
            news: watch::Sender::new(0),
            watches: watch::Sender::new(0),
            faults: Mutex::default(),
            counted: Mutex::default(),
        });
        let address = listener.local_addr().unwrap();
        let runtime = Mutex::new(Some(run(listener, &desk)));
        Paper { desk, address, runtime }
    }

    /// It is gone: connections are reset, and refused.
    pub(crate) fn stop(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            // A thread of its own may wait for that, whoever asks.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        }
    }

    /// It is back, with all it had; of what happened before it knows nothing.
    pub(crate) fn start_again(&self) {
        let mut runtime = self.runtime.lock();
        assert!(runtime.is_none(), "it runs");
        self.desk.store.lock().forget_history();
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        *runtime = Some(run(listener, &self.desk));
    }

    /// A kubeconfig for it, in `directory`.
    pub(crate) fn kubeconfig(&self, directory: &Path) -> PathBuf {
        let file = directory.join("kubeconfig");
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "paper",
            "clusters": [{ "name": "paper", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "paper", "user": {} }],
            "contexts": [{ "name": "paper", "context": { "cluster": "paper", "user": "paper" } }],
        });
        // A controller that has just been started may be reading it.
        let aside = directory.join("kubeconfig.new");
        std::fs::write(&aside, text.to_string()).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        file
    }

    /// The test's own client, which no fault is meant for.
    pub(crate) async fn client(&self, directory: &Path) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(directory)).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.proxy_url = None;
        config.headers.push((SPARED.parse().unwrap(), "yes".parse().unwrap()));
        Client::try_from(config).unwrap()
    }

    /// What is to go wrong from now on.
    pub(crate) fn faults(&self, faults: Faults) {
        *self.desk.faults.lock() = faults;
    }

    /// Ends all watches; with `forget` they cannot be taken up where they were.
    pub(crate) fn end_watches(&self, forget: bool) {
        if forget {
            self.desk.store.lock().forget_history();
        }
        self.desk.watches.send_modify(|ends| *ends += 1);
    }

    /// Requests so far.
    pub(crate) fn counted(&self) -> Counted {
        *self.desk.counted.lock()
    }

    /// Puts an object there, as if it had been created, or in the place of the one of its name.
    pub(crate) fn put(&self, kind: Kind, object: Value) -> Value {
        let put = self.desk.store.lock().put(kind, object);
        self.desk.tell();
        put
    }

    /// Removes an object, whatever its finalizers say.
    pub(crate) fn remove(&self, kind: Kind, namespace: &str, name: &str) {
        self.desk.store.lock().remove(kind, namespace, name);
        self.desk.tell();
    }

    /// An object.
    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.desk.store.lock().get(kind, namespace, name)
    }

    /// All of a kind.
    pub(crate) fn all(&self, kind: Kind) -> Vec<Value> {
        self.desk.store.lock().all(kind)
    }
}

impl Desk {
    /// Whoever watches looks again.
    fn tell(&self) {
        self.news.send_modify(|news| *news += 1);
    }
}

impl Drop for Paper {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

fn run(listener: std::net::TcpListener, desk: &Arc<Desk>) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("paper")
        .enable_all()
        .build()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    drop(entered);
    let routes = axum::Router::new().fallback(serve::answer).with_state(desk.clone());
    runtime.spawn(async move { axum::serve(listener, routes).await });
    runtime
}
