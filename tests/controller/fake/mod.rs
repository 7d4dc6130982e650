//! Fake daemons: any number of them behind one port, told apart by the address that was dialled.
//!
//! Flow: [`Fleet::start`] listens on every address of the loopback network, all of which is 127.0.0.0/8. Each
//! [`Daemon`] has one of these addresses, as a pod's IP; [`door`] sees which one a connection came to and takes it to that
//! daemon, [`service`] answers from its [`books`], in its [`temper`].
//!
//! Guarantees: what a daemon accepts, refuses, holds and tells is what janusd would, since wire and state machine are
//! janusd's own. What is simulated is the kernel (a step is done when the temper says so) and the container runtime (a test
//! says which containers have started).

mod books;
mod calls;
mod door;
mod refuse;
mod service;
mod temper;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use janus_proto::v1;
use janus_proto::v1::janusd_server::JanusdServer;
use janusd::wire::Create;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use self::books::Books;
use self::calls::Reigns;
use self::service::Service;
use crate::certificates::Authority;

pub(crate) use self::books::{Held, Key};
pub(crate) use self::calls::{Call, Counts, Reign, Verb};
pub(crate) use self::temper::{Break, Certificate, Garbage, Hang, Temper, Trouble, Which, absent, not_gated};

/// Calls that each daemon remembers.
const REMEMBERED: usize = 10_000;
/// The largest message that janusd reads.
const LARGEST_MESSAGE: usize = 2 * 1024 * 1024;

/// Daemons, and what they serve on.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// None once it is being dropped.
    runtime: Option<Runtime>,
}

struct Shared {
    daemons: RwLock<HashMap<IpAddr, Arc<Daemon>>>,
    reigns: Mutex<Reigns>,
    /// Something has changed in some daemon's books.
    changes: watch::Sender<u64>,
    /// One spec in memory, however many daemons hold it.
    specs: Mutex<HashMap<String, Arc<v1::GuardSpec>>>,
    remembered: AtomicUsize,
}

impl Fleet {
    /// Serves: over TLS, or in plain text if there is no authority.
    pub(crate) fn start(authority: Option<&Authority>) -> Fleet {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-daemons")
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Shared {
            daemons: RwLock::default(),
            reigns: Mutex::default(),
            changes: watch::Sender::new(0),
            specs: Mutex::default(),
            remembered: AtomicUsize::new(REMEMBERED),
        });
        let entered = runtime.enter();
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        drop(entered);
        let (sender, incoming) = mpsc::channel(64);
        let locks = authority.map(door::Locks::new);
        runtime.spawn(door::accept(listener, locks, shared.clone(), sender));
        let service = JanusdServer::new(Service::new(shared.clone())).max_decoding_message_size(LARGEST_MESSAGE);
        let server = Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(incoming));
        runtime.spawn(server);
        Fleet { shared, address, runtime: Some(runtime) }
    }

    /// What `--daemon-port` is to be.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on a new daemon remembers so many calls.
    pub(crate) fn remember(&self, calls: usize) {
        self.shared.remembered.store(calls, Ordering::Relaxed);
    }

    /// A new daemon on a node, at an address of its own.
    pub(crate) fn add(&self, node: &str) -> Arc<Daemon> {
        let mut daemons = self.shared.daemons.write();
        let mut number = u32::try_from(daemons.len()).unwrap();
        loop {
            // 127.1.0.1 and on; the last byte is never 0 or 255.
            let (net, host) = (number / 254, number % 254 + 1);
            let ip = Ipv4Addr::from_bits(0x7f01_0000 + (net << 8) + host);
            if let std::collections::hash_map::Entry::Vacant(place) = daemons.entry(ip.into()) {
                let log = self.shared.remembered.load(Ordering::Relaxed);
                return place.insert(Arc::new(Daemon::new(ip, node, log, self.shared.clone()))).clone();
            }
            number += 1;
        }
    }

    /// A new daemon at the address of an old one, which is gone for good: addresses of pods are reused.
    pub(crate) fn replace(&self, old: &Daemon, node: &str) -> Arc<Daemon> {
        old.temper(|temper| temper.down = true);
        let log = self.shared.remembered.load(Ordering::Relaxed);
        let new = Arc::new(Daemon::new(old.ip, node, log, self.shared.clone()));
        self.shared.daemons.write().insert(old.ip.into(), new.clone());
        new
    }

    /// The daemon at an address.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<Arc<Daemon>> {
        self.shared.daemons.read().get(&ip).cloned()
    }

    /// All of them.
    pub(crate) fn daemons(&self) -> Vec<Arc<Daemon>> {
        self.shared.daemons.read().values().cloned().collect()
    }

    /// Changes whenever any daemon's books may have changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// How many calls all daemons have had.
    pub(crate) fn counts(&self) -> Counts {
        self.daemons().iter().map(|daemon| daemon.counts()).fold(Counts::default(), Counts::plus)
    }

    /// Who led when.
    pub(crate) fn reigns(&self) -> Vec<Reign> {
        self.shared.reigns.lock().reigns().to_vec()
    }

    /// Calls that a daemon accepted after another one had accepted one of a later epoch. Nobody should ever see any.
    pub(crate) fn usurped(&self) -> Vec<Call> {
        self.shared.reigns.lock().usurped.clone()
    }

    /// What no controller should have done.
    pub(crate) fn breaches(&self) -> Vec<String> {
        let of = |daemon: &Arc<Daemon>| {
            let breaches = daemon.books.lock().breaches().to_vec();
            breaches.into_iter().map(|it| format!("{}: {it}", daemon.node)).collect::<Vec<_>>()
        };
        self.daemons().iter().flat_map(of).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One daemon.
pub(crate) struct Daemon {
    pub(crate) ip: Ipv4Addr,
    /// The node it is on, whatever it says.
    pub(crate) node: String,
    books: Mutex<Books>,
    /// Ends the connections that there are.
    cut: Mutex<CancellationToken>,
    /// Those that wait for something of this daemon's look again.
    turned: Notify,
    open: AtomicUsize,
    accepted: AtomicU64,
    shared: Arc<Shared>,
}

impl Daemon {
    fn new(ip: Ipv4Addr, node: &str, log: usize, shared: Arc<Shared>) -> Daemon {
        Daemon {
            ip,
            node: node.to_owned(),
            books: Mutex::new(Books::new(node, log)),
            cut: Mutex::default(),
            turned: Notify::new(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            shared,
        }
    }

    /// Changes how it behaves.
    pub(crate) fn temper(&self, change: impl FnOnce(&mut Temper)) {
        let down = self.alter(|books| {
            change(&mut books.temper);
            books.changed();
            books.temper.down
        });
        if down {
            self.cut();
        }
    }

    /// It has crashed and begins anew, at the same address, with nothing.
    pub(crate) fn restart(&self) {
        self.cut();
        self.alter(Books::restart);
    }

    /// It loses everything, and whoever is connected stays so.
    pub(crate) fn forget(&self) {
        self.alter(Books::restart);
    }

    /// Ends the connections that there are; others may come.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }

    /// Something that is in force before anybody has asked for it: what an old controller has left.
    pub(crate) fn leave(&self, request: v1::CreateGuardRequest) {
        let create = Create::try_from(request).unwrap();
        self.alter(|books| books.create(&create, Instant::now())).unwrap();
    }

    /// What it holds.
    pub(crate) fn held(&self) -> BTreeMap<Key, Held> {
        self.books.lock().held(Instant::now())
    }

    /// How many units are in force.
    pub(crate) fn in_force(&self) -> usize {
        self.books.lock().in_force(Instant::now())
    }

    /// The generation of a unit that is in force.
    pub(crate) fn generation(&self, unit: &Key) -> Option<i64> {
        self.books.lock().generation(unit, Instant::now())
    }

    /// The highest epoch that it has seen.
    pub(crate) fn epoch(&self) -> u64 {
        self.books.lock().epoch()
    }

    /// The last calls that change something, in their order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.books.lock().calls.last()
    }

    /// How many calls there were.
    pub(crate) fn counts(&self) -> Counts {
        self.books.lock().calls.counts
    }

    /// Connections now, and ever.
    pub(crate) fn connections(&self) -> (usize, u64) {
        (self.open.load(Ordering::Relaxed), self.accepted.load(Ordering::Relaxed))
    }

    /// A container has started in a pod, and the daemon knows its name.
    pub(crate) fn start_container(&self, pod: &str, name: &str, id: &str) {
        self.alter(|books| books.start_container(pod, name, id, true));
    }

    /// A container has started in a pod; its name is known once a call brings it.
    pub(crate) fn start_unnamed_container(&self, pod: &str, name: &str, id: &str) {
        self.alter(|books| books.start_container(pod, name, id, false));
    }

    /// A container has ended.
    pub(crate) fn end_container(&self, pod: &str, id: &str) {
        self.alter(|books| books.end_container(pod, id));
    }

    /// All of a pod's containers have ended.
    pub(crate) fn end_pod(&self, pod: &str) {
        self.alter(|books| books.end_pod(pod));
    }

    /// Guards stand in a container, or do not.
    pub(crate) fn stands_in(&self, pod: &str, id: &str, in_force: bool) {
        self.alter(|books| books.stands_in(pod, id, in_force));
    }

    /// From now on something is wrong with some units.
    pub(crate) fn trouble(&self, which: Which, trouble: Trouble) {
        self.alter(|books| books.trouble(which, trouble));
    }

    /// Nothing is wrong any more.
    pub(crate) fn no_trouble(&self) {
        self.alter(Books::no_trouble);
    }

    /// Changes the books, and tells whoever waits.
    fn alter<T>(&self, change: impl FnOnce(&mut Books) -> T) -> T {
        let changed = change(&mut self.books.lock());
        self.turned.notify_waiters();
        self.shared.changes.send_modify(|changes| *changes += 1);
        changed
    }

    fn current(&self) -> Temper {
        self.books.lock().temper.clone()
    }
}

/// Waits until `so`, looking again whenever a daemon's books have changed, and every so often besides: some things are true
/// because time has passed.
pub(crate) fn wait_until(deadline: Duration, mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if so() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
