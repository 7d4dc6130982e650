//! The containers of a pod, found by their cgroups and guarded from then on.
//!
//! The cgroups are real, laid out as a kubelet does with either driver, below one of the test's own in the `pids` hierarchy
//! and in the unified one; the containers are agents.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use janusd::commands::engine::Engine;
use janusd::container::find::{PATIENCE, PIVOT, SLOWEST};
use janusd::container::{Counts, Finder, FinderThread, PodUid, Sighting, Watch};
use janusd::events::EventFormat;
use janusd::metrics::Metrics;
use janusd::node::PodGuard;
use parking_lot::Mutex;

use crate::case::{Case, Janus};
use crate::container::Agent;
use crate::kernel_tests;
use crate::manifest::guard_with;
use crate::watchdog::wait_until;

kernel_tests! {
    found_guarded_and_found_again,
    only_once_its_root_is_its_own.without_control().lasting(60),
    while_it_is_prepared.without_control().lasting(60),
    with_the_old_root_over_it.without_control(),
    sessions_do_not_move_up.without_control().lasting(60),
    what_a_container_makes_is_its_own.without_control(),
    noticed_as_it_begins.without_control().lasting(120),
    by_looking_alone.without_control().lasting(60),
    what_nothing_told_of_is_found_late.without_control().lasting(90),
    however_much_it_makes_below_its_cgroup.without_control().lasting(60),
    nothing_to_do_at_rest.without_control().lasting(60),
    pods_that_come_and_go_leave_nothing.without_control().lasting(60),
    the_kubelets_directories_move.without_control().lasting(90),
}

pub(crate) const UID: &str = "5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80";
const SOON: Duration = Duration::from_secs(10);

/// How cgroups are laid out.
#[derive(Debug, Clone, Copy)]
struct Layout {
    hierarchy: &'static str,
    /// The names are systemd's.
    systemd: bool,
}

impl Layout {
    /// Those that this machine has.
    fn all() -> Vec<Layout> {
        let mounted = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .filter(|it| Path::new(it).join("cgroup.procs").exists());
        mounted.flat_map(|hierarchy| [false, true].map(|systemd| Layout { hierarchy, systemd })).collect()
    }
}

/// A pod's cgroup, removed at the end.
pub(crate) struct PodCgroup {
    layout: Layout,
    top: PathBuf,
    pod: PathBuf,
}

impl PodCgroup {
    pub(crate) fn new(case: &Case) -> PodCgroup {
        PodCgroup::laid_out(case, *Layout::all().first().expect("a cgroup hierarchy"), "")
    }

    fn laid_out(case: &Case, layout: Layout, kubelet: &str) -> PodCgroup {
        let unique = case
            .scratch("")
            .parent()
            .and_then(Path::file_name)
            .map_or_else(String::new, |it| it.to_string_lossy().into_owned());
        let name = format!("janus-test-{}-{unique}-{:?}{kubelet}", std::process::id(), case.janus).to_lowercase();
        let top = Path::new(layout.hierarchy).join(name);
        let class = if layout.systemd { "kubepods.slice/kubepods-besteffort.slice" } else { "kubepods/besteffort" };
        let cgroup = PodCgroup { layout, pod: top.join(class).join(layout.pod(UID)), top };
        fs::create_dir_all(&cgroup.pod).unwrap();
        cgroup
    }

    pub(crate) fn container(&self, id: char, pid: u32) -> String {
        let id = id.to_string().repeat(64);
        self.part(&self.layout.container(&id), pid);
        id
    }

    fn part(&self, name: &str, pid: u32) {
        join(&self.pod.join(name), pid);
    }

    /// Another pod's.
    fn beside(&self, uid: &str, id: char, pid: u32) {
        join(
            &self.pod.with_file_name(self.layout.pod(uid)).join(self.layout.container(&id.to_string().repeat(64))),
            pid,
        );
    }

    fn remove(&self, name: &str) {
        assert!(wait_until(SOON, || fs::remove_dir(self.pod.join(name)).is_ok()));
    }
}

impl Layout {
    fn pod(self, uid: &str) -> String {
        if self.systemd {
            format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"))
        } else {
            format!("pod{uid}")
        }
    }

    fn container(self, id: &str) -> String {
        if self.systemd { format!("cri-containerd-{id}.scope") } else { id.to_owned() }
    }
}

fn join(cgroup: &Path, pid: u32) {
    fs::create_dir_all(cgroup).unwrap();
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        fn remove(directory: &Path) -> bool {
            let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            below.filter(|path| path.is_dir()).all(|path| remove(&path)) && fs::remove_dir(directory).is_ok()
        }
        // Its processes end a moment after they are killed.
        wait_until(SOON, || remove(&self.top));
    }
}

/// A guard is there first; a container is guarded once it is found, and again when another takes its place.
fn found_guarded_and_found_again(case: &Case) {
    let pod = PodCgroup::new(case);
    let (finder, thread) = Finder::start().unwrap();
    let engine = (case.janus == Janus::Guards)
        .then(|| Engine::start(EventFormat::Guard, 1).unwrap_or_else(|failed| panic!("{:?}", failed.lines)));
    let manifest = guard_with("g", &[], &["{deny: [/secret], events: [open], log: None, autoAllowOwner: false}"]);
    let spec = Arc::new(janusd::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0));
    let metrics = Metrics::default();
    let guard = engine.as_ref().map(|engine| {
        let uid = PodUid::new(UID).unwrap();
        let handles = metrics.guard(spec.name());
        PodGuard::start(spec.clone(), uid, "pod".into(), handles, &engine.shared, &finder).unwrap()
    });
    for (name, id) in [("first", 'a'), ("second", 'b')] {
        let container = match name {
            "first" => case.container(),
            _ => case.container_named(name),
        };
        case.allowed(container.open("/secret"));
        let id = pod.container(id, container.pid);
        let begun = Instant::now();
        case.becomes_denied(SOON, || container.open("/secret"));
        if let Some(guard) = &guard {
            eprintln!("guarded {:?} after it had its cgroup", begun.elapsed());
            assert!(wait_until(SOON, || guard.report().sites.iter().any(|site| *site.id == *id && site.in_force)));
        }
        case.allowed(container.open("/public"));
        drop(container);
        if let Some(guard) = &guard {
            assert!(wait_until(SOON, || guard.report().sites.is_empty()), "{:?}", guard.report());
        }
    }
    let clean = guard.is_none_or(|guard| guard.stop(SOON));
    if let Some(engine) = engine {
        engine.finish(clean, SOON);
    }
    drop(finder);
    thread.join();
}

/// What the finder says of a pod.
struct Seen {
    finder: Option<Finder>,
    watches: Vec<Watch>,
    thread: Option<FinderThread>,
    now: Arc<Mutex<Arc<Sighting>>>,
    initial: Arc<Sighting>,
}

impl Seen {
    fn start(uid: &str) -> Seen {
        Seen::start_with(uid, |_| {})
    }

    fn start_with(uid: &str, also: impl Fn(&Sighting) + Send + 'static) -> Seen {
        Seen::by(Finder::start().unwrap(), uid, also)
    }

    fn by((finder, thread): (Finder, FinderThread), uid: &str, also: impl Fn(&Sighting) + Send + 'static) -> Seen {
        let now: Arc<Mutex<Arc<Sighting>>> = Arc::default();
        let (tell, initial) = (now.clone(), now.lock().clone());
        let deliver = move |sighting: Arc<Sighting>| {
            also(&sighting);
            *tell.lock() = sighting;
        };
        let watch = finder.watch(PodUid::new(uid).unwrap(), Box::new(deliver));
        Seen { finder: Some(finder), watches: vec![watch], thread: Some(thread), now, initial }
    }

    /// Another pod, by the same finder.
    fn by_the_same(other: &Seen, uid: &str) -> Seen {
        let now: Arc<Mutex<Arc<Sighting>>> = Arc::default();
        let (tell, initial) = (now.clone(), now.lock().clone());
        let finder = other.finder.as_ref().unwrap();
        let watch = finder.watch(PodUid::new(uid).unwrap(), Box::new(move |sighting| *tell.lock() = sighting));
        Seen { finder: Some(finder.clone()), watches: vec![watch], thread: None, now, initial }
    }

    /// Something has been said.
    fn told(&self) -> bool {
        !Arc::ptr_eq(&self.now.lock(), &self.initial)
    }

    fn containers(&self) -> Vec<(String, u32)> {
        self.now.lock().containers.iter().map(|it| (it.id.to_string(), it.init.unsigned_abs())).collect()
    }

    #[track_caller]
    fn comes_to(&self, expected: &[(&str, u32)]) {
        let same = || self.containers().iter().map(|(id, init)| (id.as_str(), *init)).eq(expected.iter().copied());
        assert!(wait_until(SOON, same), "{:?} instead of {expected:?}", self.now.lock());
    }

    fn counts(&self) -> Counts {
        self.finder.as_ref().unwrap().tally().counts()
    }

    fn unreachable(&self, id: &str) -> Option<String> {
        self.now.lock().unreachable.get(id).cloned()
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.watches.clear();
        self.finder = None;
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

/// A process of the node's in a container's cgroup is a container that is being prepared; if it stays one, that is said,
/// and so is a cgroup that nobody knows. conmon's is known to be none.
fn only_once_its_root_is_its_own(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let hosts: Vec<_> = (0..3).map(|_| case.host()).collect();
    let preparing = pod.container('c', hosts[0].pid);
    pod.part(&format!("crio-conmon-{preparing}"), hosts[1].pid);
    pod.part("kata_overhead", hosts[2].pid);
    let container = case.container();
    let id = pod.container('d', container.pid);
    seen.comes_to(&[(&id, container.pid)]);
    let sighting = seen.now.lock().clone();
    assert!(sighting.unreachable.is_empty() && sighting.containers[0].name.is_none(), "{sighting:?}");
    assert!(wait_until(PATIENCE + SOON, || seen.now.lock().unreachable.len() == 2), "{:?}", seen.now.lock());
    assert!(seen.unreachable(&preparing).is_some_and(|why| why.contains("no root of its own")));
    assert!(seen.unreachable("kata_overhead").is_some_and(|why| why.contains("no runtime")));
    drop(hosts);
    drop(container);
    seen.comes_to(&[]);
    assert!(wait_until(SOON, || seen.now.lock().unreachable.is_empty()), "{:?}", seen.now.lock());
}

/// Processes that are put into their cgroup before they have a root, as a runtime does it, and that end at any time. None
/// is told of with the node's root.
fn while_it_is_prepared(case: &Case) {
    let pod = PodCgroup::new(case);
    let wrong = Arc::new(AtomicUsize::new(0));
    let count = wrong.clone();
    let node = fs::metadata("/").unwrap();
    let seen = Seen::start_with(UID, move |sighting| {
        for container in &sighting.containers {
            let Ok(root) = fs::metadata(format!("/proc/{}/root/", container.init)) else { continue };
            let alone =
                container.root.mountinfo().is_ok_and(|it| it.iter().filter(|it| it.mountpoint == b"/").count() == 1);
            let own = (root.dev(), root.ino()) != (node.dev(), node.ino()) && (alone || !container.root.alive());
            count.fetch_add(usize::from(!own), Ordering::Relaxed);
        }
    });
    for round in 0..24 {
        let scratch = case.scratch(&format!("round-{round}"));
        fs::create_dir(&scratch).unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([crate::agent::WORD, "bare"])
            .arg(&scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        case.watch.process(process.id());
        let id = format!("{round:02x}").repeat(32);
        pod.part(&id, process.id());
        if round % 2 == 0 {
            seen.comes_to(&[(&id, process.id())]);
        }
        process.kill().unwrap();
        process.wait().unwrap();
        pod.remove(&id);
    }
    seen.comes_to(&[]);
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
}

/// The node's mounts lie over the container's for a moment, while its root is changed: it does not count until they are
/// gone; but they are waited for no longer than a second, or a container could hide under such a mount.
fn with_the_old_root_over_it(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let other = case.bare_container("other");
    let other_id = pod.container('0', other.pid);
    seen.comes_to(&[(&other_id, other.pid)]);
    let container = case.half_a_container("half");
    let begun = Instant::now();
    let id = pod.container('a', container.pid);
    seen.comes_to(&[(&other_id, other.pid), (&id, container.pid)]);
    assert!(begun.elapsed() >= PIVOT, "found after {:?}", begun.elapsed());
}

/// A container that shares its pid namespace: what is younger is a session, also once the first process has ended. The
/// same container is found again when it starts again.
fn sessions_do_not_move_up(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let first = case.bare_container("first");
    // Start times have a resolution of 10 ms.
    wait_until(Duration::from_millis(30), || false);
    let session = case.bare_container("session");
    let id = pod.container('a', session.pid.min(first.pid));
    pod.container('a', session.pid.max(first.pid));
    seen.comes_to(&[(&id, first.pid)]);
    drop(first);
    seen.comes_to(&[]);
    assert!(wait_until(PATIENCE + SOON, || seen.unreachable(&id).is_some()), "{:?}", seen.now.lock());
    assert!(seen.containers().is_empty(), "{:?}", seen.now.lock());
    let again = case.container();
    pod.container('a', again.pid);
    seen.comes_to(&[(&id, again.pid)]);
    assert!(seen.unreachable(&id).is_none());
}

/// Cgroups below a container's are the container's, also if they pose as another pod's.
fn what_a_container_makes_is_its_own(case: &Case) {
    const VICTIM: &str = "11111111-8f5c-4f0e-9f3d-6f5b2c1d7e80";
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let victim = Seen::start(VICTIM);
    let container = case.container();
    let other = "e".repeat(64);
    let id = 'a'.to_string().repeat(64);
    pod.part(&format!("{id}/kubepods/pod{VICTIM}/{other}"), container.pid);
    seen.comes_to(&[(&id, container.pid)]);
    assert!(victim.containers().is_empty(), "{:?}", victim.now.lock());
}

/// Once the kubelet's directories are known a container is noticed as it begins, not when all is looked at again: in
/// whatever hierarchy, by whatever names.
fn noticed_as_it_begins(case: &Case) {
    for (at, layout) in Layout::all().into_iter().enumerate() {
        let pod = PodCgroup::laid_out(case, layout, "");
        let seen = Seen::start(UID);
        let first = case.bare_container(&format!("{at}-first"));
        let first_id = pod.container('0', first.pid);
        seen.comes_to(&[(&first_id, first.pid)]);
        for id in ['1', '2', '3'] {
            let container = case.bare_container(&format!("{at}-{id}"));
            let id = pod.container(id, container.pid);
            let begun = Instant::now();
            seen.comes_to(&[(&first_id, first.pid), (&id, container.pid)]);
            let found = begun.elapsed();
            drop(container);
            let ending = Instant::now();
            seen.comes_to(&[(&first_id, first.pid)]);
            eprintln!("{layout:?}: found after {found:?}, its end after {:?}", ending.elapsed());
            assert!(found < SLOWEST / 3, "{layout:?}: found after {found:?}");
        }
        // A pod that begins: its cgroup is not there yet when it is watched.
        let uid = "22222222-8f5c-4f0e-9f3d-6f5b2c1d7e80";
        let other = Seen::by_the_same(&seen, uid);
        assert!(wait_until(SOON, || other.told()));
        let container = case.bare_container(&format!("{at}-other"));
        pod.beside(uid, '4', container.pid);
        other.comes_to(&[(&"4".repeat(64), container.pid)]);
        assert_eq!(seen.counts(), Counts::default(), "{layout:?}");
    }
}

/// Where cgroups cannot be watched.
fn by_looking_alone(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::by(Finder::start_blind().unwrap(), UID, |_| {});
    assert!(wait_until(SOON, || seen.told()));
    for (id, name) in [('a', "first"), ('b', "second")] {
        let container = case.bare_container(name);
        let id = pod.container(id, container.pid);
        seen.comes_to(&[(&id, container.pid)]);
        drop(container);
        seen.comes_to(&[]);
    }
    assert_eq!(seen.counts(), Counts { blind: true, ..Counts::default() });
}

/// A second kubelet's directory, of which no process was known: what is in it is found all the same, and counted.
fn what_nothing_told_of_is_found_late(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let first = case.bare_container("first");
    let first_id = pod.container('0', first.pid);
    seen.comes_to(&[(&first_id, first.pid)]);
    let another = PodCgroup::laid_out(case, pod.layout, "-another");
    let container = case.bare_container("second");
    let id = another.container('1', container.pid);
    let found = || seen.containers() == [(first_id.clone(), first.pid), (id.clone(), container.pid)];
    assert!(wait_until(SLOWEST * 2 + SOON, found), "{:?}", seen.now.lock());
    assert_eq!(seen.counts(), Counts { late: 1, ..Counts::default() });
}

/// A container may make cgroups below its own: nobody is woken by them; and where they are more than are read, its first
/// process is told all the same, and none is taken for it that happens to be within the bounds.
fn however_much_it_makes_below_its_cgroup(case: &Case) {
    const DEEP: &str = "22222222-8f5c-4f0e-9f3d-6f5b2c1d7e80";
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let running = case.bare_container("running");
    let running_id = pod.container('0', running.pid);
    seen.comes_to(&[(&running_id, running.pid)]);
    let wakings = wakings("janus-find");
    for at in 0..500 {
        fs::create_dir(pod.pod.join(&running_id).join(format!("pod{at}"))).unwrap();
    }
    assert!(self::wakings("janus-find") - wakings < 10);
    let first = case.bare_container("first");
    // Start times have a resolution of 10 ms.
    wait_until(Duration::from_millis(30), || false);
    let session = case.bare_container("session");
    let id = "a".repeat(64);
    let other = pod.pod.with_file_name(format!("pod{DEEP}"));
    join(&other.join(&id).join(["d"; 12].join("/")), first.pid);
    join(&other.join(&id), session.pid);
    let deep = Seen::by_the_same(&seen, DEEP);
    deep.comes_to(&[(&id, first.pid)]);
    assert!(seen.counts().too_large > 0, "{:?}", seen.counts());
}

/// Pods whose containers run, and pods that have none yet: nothing is looked at, but for the look at everything.
fn nothing_to_do_at_rest(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let container = case.bare_container("first");
    let id = pod.container('0', container.pid);
    seen.comes_to(&[(&id, container.pid)]);
    let others: Vec<_> = (0..50).map(|at| Seen::by_the_same(&seen, &format!("{at:08}-8f5c"))).collect();
    assert!(wait_until(SOON, || others.iter().all(Seen::told)));
    let before = wakings("janus-find");
    wait_until(Duration::from_secs(5), || false);
    let woken = wakings("janus-find") - before;
    assert!(woken <= 2, "woken {woken} times");
}

/// A pod's cgroup that goes takes its watch with it, and one that comes again by its name is watched again.
fn pods_that_come_and_go_leave_nothing(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let uid = "22222222-8f5c-4f0e-9f3d-6f5b2c1d7e80";
    let other = Seen::by_the_same(&seen, uid);
    let first = case.bare_container("first");
    let first_id = pod.container('0', first.pid);
    seen.comes_to(&[(&first_id, first.pid)]);
    let path = pod.pod.with_file_name(pod.layout.pod(uid));
    let id = "a".repeat(64);
    // That of the first pod, and of the directories in which pods are.
    let watches = inotify_watches();
    for round in 0..5 {
        let container = case.bare_container(&format!("round-{round}"));
        pod.beside(uid, 'a', container.pid);
        other.comes_to(&[(&id, container.pid)]);
        assert_eq!(inotify_watches(), watches + 1);
        drop(container);
        other.comes_to(&[]);
        for gone in [path.join(&id), path.clone()] {
            assert!(wait_until(SOON, || fs::remove_dir(&gone).is_ok()));
        }
        assert!(wait_until(SOON, || inotify_watches() == watches), "{} instead of {watches}", inotify_watches());
    }
    assert_eq!(seen.counts(), Counts::default());
}

/// All of the kubelet's directories go, and others come elsewhere: that is noticed by the next look at everything.
fn the_kubelets_directories_move(case: &Case) {
    let pod = PodCgroup::new(case);
    let seen = Seen::start(UID);
    let first = case.bare_container("first");
    let first_id = pod.container('0', first.pid);
    seen.comes_to(&[(&first_id, first.pid)]);
    drop(first);
    seen.comes_to(&[]);
    drop(pod);
    let layout = *Layout::all().last().unwrap();
    let moved = PodCgroup::laid_out(case, layout, "-moved");
    let second = case.bare_container("second");
    let second_id = moved.container('1', second.pid);
    let found = || seen.containers() == [(second_id.clone(), second.pid)];
    assert!(wait_until(SLOWEST * 2 + SOON, found), "{:?}", seen.now.lock());
    assert!(wait_until(SOON, || !seen.counts().blind));
    let third = case.bare_container("third");
    let late = seen.counts().late;
    let third_id = moved.container('2', third.pid);
    seen.comes_to(&[(&second_id, second.pid), (&third_id, third.pid)]);
    assert_eq!(seen.counts().late, late);
}

/// Watches of all inotify instances of this process.
fn inotify_watches() -> usize {
    let infos = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let text = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    text.map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count()).sum()
}

/// Five hundred pods that are watched and do nothing: what the finder costs.
pub(crate) fn five_hundred_pods(case: &Case) {
    const PODS: usize = 500;
    let cgroups = PodCgroup::new(case);
    let uids: Vec<String> = (0..PODS).map(|pod| format!("{pod:08}-8f5c-4f0e-9f3d-6f5b2c1d7e80")).collect();
    let containers: Vec<Agent> = (0..PODS).map(|pod| case.bare_container(&format!("c{pod}"))).collect();
    let (finder, thread) = Finder::start().unwrap();
    let found = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let watches: Vec<Watch> = uids
        .iter()
        .map(|uid| {
            let found = found.clone();
            let tell = move |sighting: Arc<Sighting>| {
                found.fetch_add(sighting.containers.len(), Ordering::Relaxed);
            };
            finder.watch(PodUid::new(uid).unwrap(), Box::new(tell))
        })
        .collect();
    for (uid, container) in uids.iter().zip(&containers) {
        cgroups.beside(uid, 'a', container.pid);
    }
    assert!(wait_until(Duration::from_secs(60), || found.load(Ordering::Relaxed) == PODS), "{found:?}");
    println!("\n  {PODS} pods with a container each: all found after {:?}", begun.elapsed());
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|it| it.file_name().to_str().is_some_and(|it| it.parse::<u32>().is_ok()));
    println!("  processes on the node: {}", processes.count());
    wait_until(Duration::from_secs(3), || false);
    let (before, from) = (cpu("janus-find"), Instant::now());
    wait_until(Duration::from_secs(10), || false);
    let took = cpu("janus-find") - before;
    println!(
        "  idle: {:.2} ms of CPU in {:?}: {:.3} %",
        took * 1e3,
        from.elapsed(),
        took * 100.0 / from.elapsed().as_secs_f64()
    );
    let before = cpu("janus-find");
    finder.look();
    wait_until(Duration::from_secs(1), || false);
    println!("  going through all of procfs: {:.2} ms of CPU", (cpu("janus-find") - before) * 1e3);
    drop((watches, finder));
    thread.join();
}

/// From the cgroup's being there, and from the end of the container before it, to the guard in force.
pub(crate) fn a_container_starts(case: &Case) {
    const TIMES: usize = 20;
    let engine = Engine::start(EventFormat::Guard, 1).unwrap_or_else(|failed| panic!("{:?}", failed.lines));
    let manifest = guard_with("g", &[], &["{deny: [/secret], events: [open], log: None}"]);
    let spec = Arc::new(janusd::manifest::parse("test", manifest.as_bytes()).unwrap().remove(0));
    let metrics = Metrics::default();
    let start = |finder: &Finder| {
        let handles = metrics.guard(spec.name());
        PodGuard::start(spec.clone(), PodUid::new(UID).unwrap(), "pod".into(), handles, &engine.shared, finder).unwrap()
    };
    for layout in Layout::all() {
        let pod = PodCgroup::laid_out(case, layout, "");
        let (finder, thread) = Finder::start().unwrap();
        let guard = start(&finder);
        let in_force = |id: &str| guard.report().sites.iter().any(|site| *site.id == *id && site.in_force);
        let name = |at: usize| format!("{}-{}-{at}", layout.hierarchy.replace('/', "-"), layout.systemd);
        let id = |at: usize| format!("{at:02x}").repeat(32);
        let (mut starts, mut restarts, mut own) = (Vec::new(), Vec::new(), Vec::new());
        let mut container = case.container_named(&name(0));
        for at in 0..=TIMES {
            let begun = Instant::now();
            pod.part(&layout.container(&id(at)), container.pid);
            while !in_force(&id(at)) {
                assert!(begun.elapsed() < SOON, "{:?}", guard.report());
                std::thread::yield_now();
            }
            // The first one teaches where the kubelet's directories are.
            if at > 0 {
                starts.push(begun.elapsed());
            }
            if at == TIMES {
                break;
            }
            // It is killed, and as soon as it is gone the next one is there, before it is put into its cgroup.
            let killed = Instant::now();
            drop(container);
            container = case.container_named(&name(at + 1));
            own.push(killed.elapsed());
            pod.part(&layout.container(&id(TIMES + 1 + at)), container.pid);
            while !in_force(&id(TIMES + 1 + at)) {
                assert!(killed.elapsed() < SOON, "{:?}", guard.report());
                std::thread::yield_now();
            }
            restarts.push(killed.elapsed());
            drop(container);
            container = case.container_named(&format!("{}-next", name(at + 1)));
        }
        println!("\n  {layout:?}");
        println!("  cgroup there to guarded: {}", spread(starts));
        println!("  kill to the next container guarded: {}", spread(restarts));
        println!("  ... of which it took to end one and to make the other: {}", spread(own));
        drop(container);
        assert!(guard.stop(SOON));
        assert_eq!(finder.tally().counts().late, 0);
        drop(finder);
        thread.join();
    }
    engine.finish(true, SOON);
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    format!(
        "{:?} / {:?} / {:?} (min / median / max of {})",
        times[0],
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    )
}

/// A thread of ours.
fn thread(name: &str) -> PathBuf {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let mut of_name =
        tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    of_name.next().unwrap()
}

/// Seconds that it has run.
fn cpu(name: &str) -> f64 {
    let stat = fs::read_to_string(thread(name).join("schedstat")).unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// How often it has waited for something.
fn wakings(name: &str) -> u64 {
    let status = fs::read_to_string(thread(name).join("status")).unwrap();
    let waited = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    waited.unwrap().trim().parse().unwrap()
}
