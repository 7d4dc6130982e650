//! Finds the containers of pods, and goes on looking.
//!
//! One thread for the process, `janus-find`. It looks through procfs when a pod is to be watched, when the first process of
//! a container ends, for a while at short intervals where something has just begun, and every few seconds as long as any
//! pod is watched, so that a container is found however it came. Whoever watches is told the whole list whenever it has
//! changed.
//!
//! A container counts once its root is its own: while a runtime prepares it, its first process still has the node's.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::bundle::{self, Bundle};
use super::cgroup::{self, PodUid, Runtime};
use crate::doorbell::{self, Mailbox, Speaker};
use crate::process::facts::{self, Cgroups, Stat};
use crate::root::mountinfo;
use crate::root::{Root, RootError};

/// How long a container may go unseen, at most, when nothing says that it has come.
pub const SLOWEST: Duration = Duration::from_secs(2);
/// Where something has just begun, it is looked at again after this, then after twice as long, up to [`SLOWEST`].
const QUICKEST: Duration = Duration::from_millis(5);
/// Containers of one pod that are told of. No pod has as many; more are left out, and that is said.
pub const MOST_CONTAINERS: usize = 256;

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
    /// Containers whose root could not be reached, by id, and why.
    pub unreachable: BTreeMap<Arc<str>, String>,
}

impl Sighting {
    fn same(&self, other: &Sighting) -> bool {
        let key = |it: &Sighting| -> Vec<_> {
            it.containers.iter().map(|it| (it.id.clone(), it.init, it.name.clone())).collect()
        };
        key(self) == key(other) && self.unreachable == other.unreachable
    }
}

/// Whom to tell. Called on the finder's thread: must not block.
pub type Deliver = Box<dyn Fn(Arc<Sighting>) + Send>;

enum Message {
    Watch(u64, PodUid, Deliver),
    Forget(u64),
    Look,
}

/// The way to the finder's thread.
#[derive(Debug, Clone)]
pub struct Finder {
    messages: Speaker<Message>,
    next: Arc<AtomicU64>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Message::Watch(..) => "Watch",
            Message::Forget(_) => "Forget",
            Message::Look => "Look",
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
    /// The kernel's, when no thread or eventfd can be had.
    pub fn start() -> std::io::Result<(Finder, FinderThread)> {
        let (messages, mailbox) = doorbell::channel()?;
        let search = Search { mailbox, pods: HashMap::new() };
        let thread = std::thread::Builder::new().name("janus-find".into()).spawn(move || search.run())?;
        Ok((Finder { messages, next: Arc::default() }, FinderThread(thread)))
    }

    /// Watches a pod, by the UID in the names of its cgroups. `deliver` is told at once, and whenever something changes.
    pub fn watch(&self, pod: PodUid, deliver: Deliver) -> Watch {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // The thread ends only after every Finder has gone.
        let _never = self.messages.send(Message::Watch(number, pod, deliver));
        Watch { number, messages: self.messages.clone() }
    }

    /// Looks at once, and for a while more often: somebody knows that something has begun.
    pub fn look(&self) {
        let _never = self.messages.send(Message::Look);
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

struct Watched {
    pod: PodUid,
    deliver: Deliver,
    told: Option<Arc<Sighting>>,
}

struct Search {
    mailbox: Mailbox<Message>,
    pods: HashMap<u64, Watched>,
}

impl Search {
    fn run(mut self) {
        let mut pause = QUICKEST;
        let mut due = Instant::now();
        loop {
            let ended = self.wait(due);
            self.mailbox.quiet();
            let mut now = ended;
            loop {
                match self.mailbox.take() {
                    Ok(Some(Message::Watch(number, pod, deliver))) => {
                        self.pods.insert(number, Watched { pod, deliver, told: None });
                        now = true;
                    }
                    Ok(Some(Message::Forget(number))) => drop(self.pods.remove(&number)),
                    Ok(Some(Message::Look)) => now = true,
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
            if now {
                pause = QUICKEST;
            }
            if (now || Instant::now() >= due) && !self.pods.is_empty() {
                if self.look() {
                    pause = QUICKEST;
                }
                due = Instant::now() + pause;
                pause = (pause * 2).min(SLOWEST);
            }
        }
    }

    /// Until something is said or due, or the first process of a container that was told of has ended: then true.
    fn wait(&self, due: Instant) -> bool {
        let left = due.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::from_borrowed_fd(self.mailbox.as_fd(), PollFlags::IN)];
        for told in self.pods.values().filter_map(|watched| watched.told.as_ref()) {
            for container in &told.containers {
                if let Root::Process { pidfd, .. } = &container.root {
                    fds.push(PollFd::new(pidfd, PollFlags::IN));
                }
            }
        }
        let timeout = Some(&timeout).filter(|_| !self.pods.is_empty());
        poll(&mut fds, timeout).is_ok() && fds.iter().skip(1).any(|fd| !fd.revents().is_empty())
    }

    /// Looks at everything, and tells whom it concerns. True when something has changed, or is about to.
    fn look(&mut self) -> bool {
        let mut found = Found::default();
        found.scan(|pod| self.pods.values().any(|watched| watched.pod == *pod));
        let mut changing = found.beginning;
        for watched in self.pods.values_mut() {
            let sighting = found.sighting(&watched.pod, watched.told.as_deref());
            if watched.told.as_ref().is_none_or(|told| !told.same(&sighting)) {
                let sighting = Arc::new(sighting);
                watched.told = Some(sighting.clone());
                (watched.deliver)(sighting);
                changing = true;
            }
        }
        changing
    }
}

/// A process of a container.
#[derive(Debug, Clone, Copy)]
struct Member {
    pid: i32,
    stat: Stat,
    innermost: Option<i32>,
}

/// What procfs shows.
#[derive(Default)]
struct Found {
    members: BTreeMap<(PodUid, Arc<str>), (Runtime, Vec<Member>)>,
    /// There is a container that is being prepared.
    beginning: bool,
}

impl Found {
    fn scan(&mut self, wanted: impl Fn(&PodUid) -> bool) {
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
            let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
            let Some(told) = read("cgroup").and_then(|bytes| cgroup::tell(&Cgroups::parse(&bytes), None)) else {
                continue;
            };
            let cgroup::Part::Container { id, runtime } = told.part else { continue };
            if !wanted(&told.pod) {
                continue;
            }
            let Some(stat) = read("stat").and_then(|bytes| Stat::parse(&bytes)) else { continue };
            let innermost = read("status").and_then(|bytes| facts::innermost_pid(&bytes));
            let entry = self.members.entry((told.pod, id)).or_insert_with(|| (runtime, Vec::new()));
            entry.1.push(Member { pid, stat, innermost });
        }
    }

    fn sighting(&mut self, pod: &PodUid, before: Option<&Sighting>) -> Sighting {
        let mut sighting = Sighting::default();
        let of_pod = self.members.iter().filter(|((whose, _), _)| whose == pod);
        for ((_, id), (runtime, members)) in of_pod {
            let known = before.and_then(|before| before.containers.iter().find(|container| container.id == *id));
            if let Some(known) = known.filter(|known| known.root.alive() && known.name.is_some()) {
                sighting.containers.push(known.clone());
                continue;
            }
            if sighting.containers.len() >= MOST_CONTAINERS {
                sighting.unreachable.insert(id.clone(), format!("the pod has more than {MOST_CONTAINERS} containers"));
                break;
            }
            let Some(init) = first(members) else { continue };
            match enter(init.pid) {
                Ok(Some(root)) => match describe(id, init.stat.parent) {
                    Some(Bundle { sandbox: true, .. }) => {}
                    bundle => {
                        let name = bundle.and_then(|bundle| bundle.name).map(Arc::from);
                        let (id, runtime, init) = (id.clone(), *runtime, init.pid);
                        sighting.containers.push(Arc::new(Container { id, runtime, name, init, root }));
                    }
                },
                Ok(None) => self.beginning = true,
                // It has ended meanwhile.
                Err(RootError::NoProcess(_) | RootError::Ended(_)) => self.beginning = true,
                Err(error) => {
                    sighting.unreachable.insert(id.clone(), error.to_string());
                }
            }
        }
        sighting
    }
}

/// A container's first process: its PID 1; where it shares a pid namespace, the oldest one that has no parent in the
/// container.
fn first(members: &[Member]) -> Option<Member> {
    let inside = |pid: i32| members.iter().any(|member| member.pid == pid);
    let heads = || members.iter().filter(|member| !inside(member.stat.parent));
    let own = heads().filter(|member| member.innermost == Some(1) && member.pid != 1);
    own.min_by_key(|member| member.stat.start).or_else(|| heads().min_by_key(|member| member.stat.start)).copied()
}

/// The root of a container's first process. `None`: it is still the node's.
fn enter(pid: i32) -> Result<Option<Root>, RootError> {
    let root = Root::of_process(pid)?;
    let shown = |process: &str| {
        let mounts = mountinfo::parse(&std::fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default());
        mounts.into_iter().rfind(|mount| mount.mountpoint == b"/").map(|mount| (mount.device(), mount.root))
    };
    let its = shown(&pid.to_string());
    let nodes = ["1", "self"].into_iter().any(|process| shown(process) == its);
    // Only now: the number was its own throughout.
    if !root.alive() {
        return Err(RootError::Ended(pid));
    }
    Ok(Some(root).filter(|_| its.is_some() && !nodes))
}

/// The bundle, as the node shows it: to the container's parent (a shim of the runtime's, or whoever adopted it), to the
/// node's first process, to us.
fn describe(id: &str, parent: i32) -> Option<Bundle> {
    let views = [parent.to_string(), "1".to_owned(), "self".to_owned()];
    views.iter().filter(|process| *process != "0").find_map(|process| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root: OwnedFd = rustix::fs::open(format!("/proc/{process}/root"), flags, Mode::empty()).ok()?;
        bundle::read(root.as_fd(), id)
    })
}
