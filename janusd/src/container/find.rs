//! Finds the containers of pods, and goes on looking.
//!
//! One thread for the process, `janus-find`. It looks at a pod when it is to be watched, when something appears in its
//! cgroup ([`Tree`]), when the first process of one of its containers ends, and then again at growing intervals for as long
//! as there is something that is no container yet: its cgroup is there before its processes are. At rest it does nothing.
//! Every [`SLOWEST`], as long as any pod is watched, it goes through all of procfs, so that a container is found however it
//! came; one that is found only then is *late*, counted and told. Where cgroups cannot be watched, that is said, and going
//! through procfs is all there is. Whoever watches is told the whole list whenever it has changed.
//!
//! A container counts once its root is its own: while a runtime prepares it, its first process still has the node's. What
//! does not come to count is told, with a reason.
//!
//! Caveat: a runtime that keeps a container's processes elsewhere (kata, gVisor) is told by its cgroup's name or not at all.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};

use super::cgroup::{self, Part, PodUid, Runtime};
use super::examine::{Examined, Gathered, Node, NotReached, named, tick};
pub use super::examine::{MOST_CONTAINERS, PIVOT};
use super::first::Member;
use super::tree::{Parts, Tree, Unwatched};
use crate::doorbell::{self, Mailbox, Speaker};
use crate::root::Root;

/// How often all of procfs is gone through, where cgroups are watched.
pub const SLOWEST: Duration = Duration::from_secs(15);
/// The same where they are not.
pub const BLIND: Duration = Duration::from_secs(1);
/// It takes at most one part in so many of a CPU's time, of which little is spent in much time where others want it too...
const SCAN_SHARE: u32 = 1000;
/// ... where they are not ...
const BLIND_SHARE: u32 = 100;
/// ... and while something has just begun there ...
const BEGIN_SHARE: u32 = 10;
/// ... but it is done no later than this.
const LATEST: Duration = Duration::from_secs(30);
/// Where something has just begun, it is looked at again after this, then after a quarter more each time: so that it is
/// never seen later than by a fifth of the time that it took.
const QUICKEST: Duration = Duration::from_millis(2);
/// Looking at one pod takes at most one part in so many of the time, however many processes it has.
const POD_SHARE: u32 = 4;
/// Where cgroups are not watched, what has not changed while the intervals grew to this is left to the next look at
/// everything.
const CALM: Duration = Duration::from_secs(1);
/// A container that has no root of its own after this is told of as unreachable.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// A name that is not known is looked for at growing intervals, up to this.
const NAME_PAUSE: Duration = Duration::from_secs(60);

/// A container that has started.
#[derive(Debug)]
pub struct Container {
    /// The runtime's id: another one after a restart.
    pub id: Arc<str>,
    /// The runtime, if its cgroup's name tells.
    pub runtime: Runtime,
    /// Its name in the pod; `None`: not known.
    pub name: Option<Arc<str>>,
    /// Its first process, as our pid namespace numbers it.
    pub init: i32,
    /// Its root: that of its first process.
    pub root: Root,
}

/// What there is of a pod.
#[derive(Debug, Default)]
pub struct Sighting {
    /// Its containers, without its sandbox.
    pub containers: Vec<Arc<Container>>,
    /// Its sandboxes, which are no containers of its spec and are never guarded.
    pub sandboxes: BTreeSet<Arc<str>>,
    /// Containers whose root could not be reached, by id, and why.
    pub unreachable: BTreeMap<Arc<str>, String>,
}

impl Sighting {
    fn same(&self, other: &Sighting) -> bool {
        let key = |it: &Sighting| -> Vec<_> {
            it.containers.iter().map(|it| (it.id.clone(), it.init, it.name.clone())).collect()
        };
        key(self) == key(other) && self.sandboxes == other.sandboxes && self.unreachable == other.unreachable
    }
}

/// Whom to tell. Called on the finder's thread: must not block.
pub type Deliver = Box<dyn Fn(Arc<Sighting>) + Send>;

impl Tally {
    /// So far.
    pub fn counts(&self) -> Counts {
        Counts {
            late: self.late.load(Ordering::Relaxed),
            too_large: self.too_large.load(Ordering::Relaxed),
            blind: self.blind.load(Ordering::Relaxed),
        }
    }
}

enum Message {
    Watch(u64, PodUid, Deliver),
    Forget(u64),
    Look,
    Hurry(PodUid),
}

/// The way to the finder's thread.
#[derive(Debug, Clone)]
pub struct Finder {
    messages: Speaker<Message>,
    next: Arc<AtomicU64>,
    tally: Arc<Tally>,
}

/// How well containers are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Containers that nothing had told of, and that going through all of procfs has found.
    pub late: u64,
    /// Times that a container's cgroups were more than are read, so that procfs had to be gone through.
    pub too_large: u64,
    /// Cgroups are not watched, or not all of them: a container may go unseen for [`BLIND`], or longer where going through
    /// procfs takes long.
    pub blind: bool,
}

/// What the finder counts, for whoever reads it while it counts.
#[derive(Debug, Default)]
pub struct Tally {
    late: AtomicU64,
    too_large: AtomicU64,
    blind: AtomicBool,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Message::Watch(..) => "Watch",
            Message::Forget(_) => "Forget",
            Message::Look => "Look",
            Message::Hurry(_) => "Hurry",
        })
    }
}

/// The thread, to be joined.
#[derive(Debug)]
pub struct FinderThread(JoinHandle<()>);

/// A pod is watched for as long as this is kept.
#[derive(Debug)]
pub struct Watch {
    number: u64,
    messages: Speaker<Message>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread is gone, and with it what it watched.
        let _gone = self.messages.send(Message::Forget(self.number));
    }
}

impl Finder {
    /// Starts the thread. It ends when every `Finder` and every [`Watch`] is gone.
    ///
    /// # Errors
    /// The kernel's, when no thread, eventfd or epoll can be had. An inotify instance that cannot be had is no error: that
    /// is said, and procfs is gone through.
    pub fn start() -> std::io::Result<(Finder, FinderThread)> {
        Finder::start_with(Tree::new())
    }

    /// As [`Finder::start`], watching no cgroups.
    ///
    /// # Errors
    /// As there.
    pub fn start_blind() -> std::io::Result<(Finder, FinderThread)> {
        Finder::start_with(Tree::blind())
    }

    fn start_with(tree: Tree) -> std::io::Result<(Finder, FinderThread)> {
        let (messages, mailbox) = doorbell::channel()?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&events, &mailbox, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        if let Some(inotify) = tree.events() {
            epoll::add(&events, inotify, epoll::EventData::new_u64(TREE), epoll::EventFlags::IN)?;
        }
        let tally = Arc::new(Tally::default());
        let search = Search {
            mailbox,
            tree,
            node: Node::default(),
            pods: HashMap::new(),
            watches: HashMap::new(),
            inits: Inits { events, of: HashMap::new(), next: FIRST_INIT },
            tally: tally.clone(),
            lacked: None,
            scan: Instant::now(),
            rest: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("janus-find".into()).spawn(move || search.run())?;
        Ok((Finder { messages, next: Arc::default(), tally }, FinderThread(thread)))
    }

    /// Watches a pod, by the UID in the names of its cgroups. `deliver` is told at once, and whenever something changes.
    pub fn watch(&self, pod: PodUid, deliver: Deliver) -> Watch {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // The thread ends only after every Finder has gone.
        let _never = self.messages.send(Message::Watch(number, pod, deliver));
        Watch { number, messages: self.messages.clone() }
    }

    /// Goes through everything, at once unless that has just been done: somebody knows that something has begun.
    pub fn look(&self) {
        let _never = self.messages.send(Message::Look);
    }

    /// Looks at this pod, now: somebody waits for what there is in it.
    pub fn hurry(&self, pod: PodUid) {
        let _never = self.messages.send(Message::Hurry(pod));
    }

    /// How well containers are found.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}

impl FinderThread {
    /// Waits for its end; drop every [`Finder`] and [`Watch`] first.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the container finder panicked");
        }
    }
}

/// The node's cgroups as its first process sees them: seen from a cgroup namespace of our own, the cgroups of other pods
/// cannot all be told. For the calling thread, and those that it starts from now on: call it before any is started.
///
/// # Errors
/// The kernel's: there is no such process in sight, or no CAP_SYS_ADMIN.
pub fn join_node_cgroups() -> std::io::Result<()> {
    let namespace = rustix::fs::open(c"/proc/1/ns/cgroup", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))?)
}

/// What is polled: messages, cgroups, and from here on the first process of a container.
const BELL: u64 = 0;
const TREE: u64 = 1;
const FIRST_INIT: u64 = 2;

/// A container that is running.
#[derive(Debug)]
struct Known {
    container: Arc<Container>,
    /// It is the pod's sandbox, and nobody is told of it.
    sandbox: bool,
    /// What its end is polled by.
    event: u64,
    parent: i32,
    /// When its name is looked for again, if it is not known, and how long after that.
    name_due: Instant,
    name_pause: Duration,
}

/// What does not count as a container yet.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    why: NotReached,
}

impl Waiting {
    fn is_told(&self) -> bool {
        !self.why.may_pass() || self.since.elapsed() >= PATIENCE
    }
}

/// The first processes of containers, whose ends are polled.
#[derive(Debug)]
struct Inits {
    events: OwnedFd,
    of: HashMap<u64, (PodUid, Arc<str>)>,
    next: u64,
}

impl Inits {
    fn add(&mut self, pod: &PodUid, id: &Arc<str>, root: &Root) -> std::io::Result<u64> {
        let event = self.next;
        self.poll(root, event)?;
        self.next += 1;
        self.of.insert(event, (pod.clone(), id.clone()));
        Ok(event)
    }

    fn poll(&self, root: &Root, event: u64) -> std::io::Result<()> {
        if let Root::Process { pidfd, .. } = root {
            epoll::add(&self.events, pidfd, epoll::EventData::new_u64(event), epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    /// Whoever was told of it may hold a duplicate of its pidfd, so it is not enough to close ours.
    fn unpoll(&self, root: &Root) {
        if let Root::Process { pidfd, .. } = root {
            // It was added, so it is there.
            let _never = epoll::delete(&self.events, pidfd);
        }
    }

    fn let_go(&mut self, known: &Known) {
        self.of.remove(&known.event);
        self.unpoll(&known.container.root);
    }
}

#[derive(Default)]
struct Pod {
    watchers: HashMap<u64, Deliver>,
    told: Option<Arc<Sighting>>,
    known: BTreeMap<Arc<str>, Known>,
    waiting: BTreeMap<Arc<str>, Waiting>,
    /// There is a cgroup, or may be one, whose container is not known.
    expecting: bool,
    /// First processes that have ended, and in which tick that was seen.
    ended: BTreeMap<Arc<str>, u64>,
    due: Option<Instant>,
    pause: Duration,
}

impl Pod {
    fn soon(&mut self) {
        self.due = Some(Instant::now());
        self.pause = QUICKEST;
    }

    /// When to look next, now that it has been looked at, which took so much.
    fn later(&mut self, blind: bool, took: Duration) {
        let pause = self.pause.clamp(QUICKEST, SLOWEST).max(took * (POD_SHARE - 1));
        self.pause = pause + pause / 4;
        let more = self.expecting || !self.waiting.is_empty() || blind && pause < CALM;
        self.due = more.then(|| Instant::now() + pause);
    }

    fn sighting(&self) -> Sighting {
        let containers = self.known.values().filter(|known| !known.sandbox).map(|known| known.container.clone());
        let sandboxes = self.known.iter().filter(|(_, known)| known.sandbox).map(|(id, _)| id.clone());
        let unreachable = self.waiting.iter().filter(|(_, it)| it.is_told());
        Sighting {
            containers: containers.collect(),
            sandboxes: sandboxes.collect(),
            unreachable: unreachable.map(|(id, it)| (id.clone(), it.why.to_string())).collect(),
        }
    }

    fn tell(&mut self) {
        let sighting = self.sighting();
        if self.told.as_ref().is_some_and(|told| told.same(&sighting)) {
            return;
        }
        let sighting = Arc::new(sighting);
        self.told = Some(sighting.clone());
        for deliver in self.watchers.values() {
            deliver(sighting.clone());
        }
    }

    /// Looks for the names that are not known yet.
    fn name(&mut self, node: &Node, inits: &Inits) {
        let now = Instant::now();
        let nameless = self.known.values_mut().filter(|known| !known.sandbox && known.container.name.is_none());
        for known in nameless.filter(|known| known.name_due <= now) {
            known.name_pause = (known.name_pause * 2).min(NAME_PAUSE);
            known.name_due = now + known.name_pause;
            let Some(bundle) = node.describe(&known.container.id, known.parent) else { continue };
            known.sandbox = bundle.sandbox;
            let Ok(root) = known.container.root.try_clone() else { continue };
            // The old pidfd would stay polled for as long as anybody has it; this one is the same process's.
            if inits.poll(&root, known.event).is_err() {
                continue;
            }
            inits.unpoll(&known.container.root);
            let Container { id, runtime, init, .. } = &*known.container;
            let (id, runtime, init) = (id.clone(), *runtime, *init);
            let name = bundle.name.map(Arc::from);
            known.container = Arc::new(Container { id, runtime, name, init, root });
        }
    }
}

/// What processes have been gathered of a pod, by container.
type Parted = BTreeMap<Arc<str>, Gathered>;

struct Search {
    mailbox: Mailbox<Message>,
    tree: Tree,
    node: Node,
    pods: HashMap<PodUid, Pod>,
    watches: HashMap<u64, PodUid>,
    inits: Inits,
    tally: Arc<Tally>,
    /// What was last said of cgroups that are not watched.
    lacked: Option<Unwatched>,
    /// When all of procfs is gone through next.
    scan: Instant,
    /// Not before this, whatever has begun.
    rest: Instant,
}

impl Search {
    fn run(mut self) {
        self.tree.find_hierarchies();
        self.node = Node::here();
        loop {
            match std::panic::catch_unwind(AssertUnwindSafe(|| self.search())) {
                Ok(()) => return,
                Err(_) => {
                    // What it was about is in the panic's own message.
                    tracing::error!("the container finder panicked; it goes on");
                    std::thread::park_timeout(CALM);
                }
            }
        }
    }

    fn search(&mut self) {
        while self.wait() {
            let now = Instant::now();
            let due = |pod: &Pod| pod.due.is_some_and(|due| due <= now);
            let due: Vec<PodUid> = self.pods.iter().filter(|(_, pod)| due(pod)).map(|(uid, _)| uid.clone()).collect();
            if !self.pods.is_empty()
                && (self.scan <= now || self.is_blind() && self.blind_due().is_some_and(|it| it <= now))
            {
                self.look_at_all();
            } else if !self.is_blind() {
                for uid in due {
                    self.look_at(&uid);
                }
            }
        }
    }

    fn is_blind(&self) -> bool {
        self.tree.lacks().is_some()
    }

    /// When everything is looked at for the sake of single pods. Of those of which nothing has been told, somebody waits to
    /// hear; the others can wait for so long that the rest of the node gets its share.
    fn blind_due(&self) -> Option<Instant> {
        let due = |pod: &Pod| pod.due.map(|due| if pod.told.is_none() { due } else { due.max(self.rest) });
        self.pods.values().filter_map(due).min()
    }

    /// Until something has happened or is due, and takes note of it. False: nobody is there any more.
    fn wait(&mut self) -> bool {
        let due = if self.is_blind() { self.blind_due() } else { self.pods.values().filter_map(|pod| pod.due).min() };
        let due = due.into_iter().chain(Some(self.scan)).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now())).filter(|_| !self.pods.is_empty());
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        let mut happened = Vec::with_capacity(64);
        // EINTR: it is as if nothing had.
        let _count = epoll::wait(&self.inits.events, spare_capacity(&mut happened), timeout.as_ref());
        for event in happened {
            match event.data.u64() {
                BELL => {
                    if !self.hear() {
                        return false;
                    }
                }
                TREE => {
                    let stirred = self.tree.take();
                    self.stir(stirred);
                }
                init => self.ended(init),
            }
        }
        true
    }

    fn stir(&mut self, pods: HashSet<PodUid>) {
        for uid in pods {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.soon();
            }
        }
    }

    fn hear(&mut self) -> bool {
        self.mailbox.quiet();
        loop {
            match self.mailbox.take() {
                Ok(Some(Message::Watch(number, uid, deliver))) => {
                    self.watches.insert(number, uid.clone());
                    // Whoever begins to watch hears how it is now, not how it was when something last happened.
                    if self.pods.get(&uid).is_some_and(|pod| pod.told.is_some()) && !self.is_blind() {
                        self.look_at(&uid);
                    }
                    let pod = self.pods.entry(uid.clone()).or_default();
                    match &pod.told {
                        Some(told) => deliver(told.clone()),
                        None => {
                            pod.soon();
                            self.tree.want(uid);
                        }
                    }
                    pod.watchers.insert(number, deliver);
                }
                Ok(Some(Message::Forget(number))) => self.forget(number),
                Ok(Some(Message::Look)) => self.scan = self.scan.min(self.rest),
                Ok(Some(Message::Hurry(uid))) if self.is_blind() => {
                    // It is all there is; once for as many as have been asked for meanwhile.
                    if self.pods.contains_key(&uid) {
                        self.scan = Instant::now();
                    }
                }
                Ok(Some(Message::Hurry(uid))) => self.look_at(&uid),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(uid) = self.watches.remove(&number) else { return };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        pod.watchers.remove(&number);
        if !pod.watchers.is_empty() {
            return;
        }
        self.tree.forget(&uid);
        for known in self.pods.remove(&uid).into_iter().flat_map(|pod| pod.known.into_values()) {
            self.inits.let_go(&known);
        }
    }

    /// The first process of a container has ended.
    fn ended(&mut self, event: u64) {
        let Some((uid, id)) = self.inits.of.get(&event).cloned() else { return };
        let Some(pod) = self.pods.get_mut(&uid) else { return };
        let Some(known) = pod.known.remove(&id) else { return };
        self.inits.let_go(&known);
        if let Some(now) = tick() {
            if pod.ended.len() >= MOST_CONTAINERS {
                pod.ended.clear();
            }
            pod.ended.insert(id, now);
        }
        pod.soon();
        pod.tell();
    }

    /// Goes through all of procfs.
    fn look_at_all(&mut self) {
        let before = spent();
        // Should anything go wrong from here on.
        self.scan = Instant::now() + SLOWEST;
        let mut stirred = self.tree.read_again();
        let blind = self.is_blind();
        let mut all: HashMap<PodUid, Parted> = HashMap::new();
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
            self.gather(pid, None, &mut all);
        }
        // What came meanwhile has been told of, and is not late.
        stirred.extend(self.tree.take());
        self.stir(stirred);
        let took = spent().saturating_sub(before);
        self.rest = Instant::now() + took * BEGIN_SHARE;
        let (pause, share) = if self.is_blind() { (BLIND, BLIND_SHARE) } else { (SLOWEST, SCAN_SHARE) };
        self.scan = Instant::now() + pause.max(took * share).min(LATEST);
        self.say_what_is_lacking();
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            let parts = all.remove(&uid).unwrap_or_default();
            let Some(pod) = self.pods.get(&uid) else { continue };
            // Nothing had told of it, and nobody was looking.
            let missed = !blind && pod.due.is_none() && pod.told.is_some();
            let before: BTreeSet<Arc<str>> = pod.known.keys().cloned().collect();
            let sees = self.tree.sees(&uid);
            self.settle(&uid, spent(), parts, |_, waiting| sees && matches!(waiting.why, NotReached::Hidden));
            for (id, known) in self.pods.get(&uid).into_iter().flat_map(|pod| &pod.known) {
                if missed && !known.sandbox && !before.contains(id) {
                    self.tally.late.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(pod = uid.as_str(), container = %id, "a container was found late");
                }
            }
        }
    }

    fn say_what_is_lacking(&mut self) {
        let lacks = self.tree.lacks().cloned();
        self.tally.blind.store(lacks.is_some(), Ordering::Relaxed);
        if lacks == self.lacked {
            return;
        }
        match &lacks {
            // Nothing is amiss: there is nothing to watch.
            Some(Unwatched::NoPod | Unwatched::Unasked) => {}
            Some(why) => {
                tracing::warn!(%why, "cgroups cannot all be watched: containers are found by looking, and later");
            }
            None => tracing::info!("cgroups of pods are watched"),
        }
        self.lacked = lacks;
    }

    /// Looks at the processes that are listed in a pod's cgroup.
    fn look_at(&mut self, uid: &PodUid) {
        let before = spent();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let running = |name: &[u8]| match cgroup::told_part(name) {
            Part::Container { id, .. } => pod.known.contains_key(&id),
            Part::Helper => true,
            Part::Unknown(_) => false,
        };
        let parts = self.tree.parts(uid, |name| !running(name));
        pod.expecting = match &parts {
            Parts::Nowhere => false,
            Parts::Scattered => true,
            Parts::Here(below) => !below.is_empty(),
        };
        let below = match parts {
            Parts::Here(below) => below,
            Parts::Nowhere | Parts::Scattered => {
                if matches!(parts, Parts::Scattered) {
                    self.scan = self.scan.min(self.rest);
                }
                pod.later(false, spent().saturating_sub(before));
                pod.tell();
                return;
            }
        };
        let mut all = HashMap::new();
        let mut left_out = BTreeSet::new();
        for part in below {
            let Some((name, runtime)) = named(cgroup::told_part(&part.name)) else { continue };
            if !part.whole {
                self.tally.too_large.fetch_add(1, Ordering::Relaxed);
                self.scan = self.scan.min(self.rest);
                left_out.insert(name);
                continue;
            }
            for pid in part.processes.iter().filter(|pid| **pid != 0) {
                self.gather(*pid, Some(uid), &mut all);
            }
            if part.processes.contains(&0) {
                let gathered = all.entry(uid.clone()).or_default().entry(name).or_default();
                (gathered.runtime, gathered.hidden) = (runtime, true);
            }
        }
        self.settle(uid, before, all.remove(uid).unwrap_or_default(), |id, _| left_out.contains(id));
    }

    /// Puts a process where it belongs, if it is of a pod that is watched, or of the one that is asked for.
    fn gather(&mut self, pid: i32, only: Option<&PodUid>, all: &mut HashMap<PodUid, Parted>) {
        let Some(home) = self.node.home_of(pid) else { return };
        self.tree.learn(&home);
        let Some(told) = cgroup::tell_home(&home).filter(|told| only.is_none_or(|only| *only == told.pod)) else {
            return;
        };
        let Some(pod) = self.pods.get(&told.pod) else { return };
        let Some((name, runtime)) = named(told.part).filter(|(name, _)| !pod.known.contains_key(name)) else { return };
        let gathered = all.entry(told.pod).or_default().entry(name).or_default();
        gathered.runtime = runtime;
        gathered.add(pid);
    }

    /// Makes of what was found what is told. `before`: what had been spent when the search for it began. `keep`: what was
    /// not looked at, and is as it was.
    fn settle(&mut self, uid: &PodUid, before: Duration, parts: Parted, keep: impl Fn(&Arc<str>, &Waiting) -> bool) {
        let blind = self.is_blind();
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.name(&self.node, &self.inits);
        pod.waiting.retain(|id, waiting| parts.contains_key(id) || keep(id, waiting));
        for (id, gathered) in parts {
            let waited = pod.waiting.get(&id).map_or(Duration::ZERO, |waiting| waiting.since.elapsed());
            let ended = pod.ended.get(&id).copied();
            let found = match self.node.examine(uid, &id, &gathered, ended, waited) {
                Examined::Is(..) if pod.known.len() >= MOST_CONTAINERS => Err(NotReached::TooManyContainers),
                Examined::Is(first, root) => begin(&self.node, &mut self.inits, uid, &id, &gathered, first, root),
                Examined::Not(why) => Err(why),
                Examined::Gone => {
                    // It is looked at again, or nothing of it is left.
                    pod.waiting.remove(&id);
                    continue;
                }
            };
            match found {
                Ok(known) => {
                    pod.waiting.remove(&id);
                    pod.known.insert(id, known);
                }
                Err(why) => {
                    let since = pod.waiting.get(&id).map_or_else(Instant::now, |waiting| waiting.since);
                    pod.waiting.insert(id, Waiting { since, why });
                }
            }
        }
        pod.later(blind, spent().saturating_sub(before));
        pod.tell();
    }
}

/// CPU time of this thread.
fn spent() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or_default())
}

fn begin(
    node: &Node,
    inits: &mut Inits,
    pod: &PodUid,
    id: &Arc<str>,
    gathered: &Gathered,
    first: Member,
    root: Root,
) -> Result<Known, NotReached> {
    let bundle = node.describe(id, first.stat.parent);
    let event = inits.add(pod, id, &root).map_err(NotReached::Unpolled)?;
    let sandbox = bundle.as_ref().is_some_and(|bundle| bundle.sandbox);
    let name = bundle.and_then(|bundle| bundle.name).map(Arc::from);
    let runtime = gathered.runtime.unwrap_or(Runtime::Unsaid);
    let container = Arc::new(Container { id: id.clone(), runtime, name, init: first.pid, root });
    let (parent, name_due, name_pause) = (first.stat.parent, Instant::now() + QUICKEST, QUICKEST);
    Ok(Known { container, sandbox, event, parent, name_due, name_pause })
}
