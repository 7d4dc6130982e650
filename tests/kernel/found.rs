//! The containers of a pod, found by their cgroups and guarded from then on.
//!
//! The cgroups are real, laid out as a kubelet does, below one of the test's own in the `pids` hierarchy (or the unified
//! one); the containers are agents.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use janusd::commands::engine::Engine;
use janusd::container::{Finder, PodUid, Sighting};
use janusd::events::EventFormat;
use janusd::metrics::Metrics;
use janusd::node::PodGuard;
use parking_lot::Mutex;

use crate::case::{Case, Janus};
use crate::kernel_tests;
use crate::manifest::guard_with;
use crate::watchdog::wait_until;

kernel_tests! {
    found_guarded_and_found_again,
    only_once_its_root_is_its_own.without_control(),
}

pub(crate) const UID: &str = "5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80";
const SOON: Duration = Duration::from_secs(10);

/// A pod's cgroup, removed at the end.
pub(crate) struct PodCgroup {
    top: PathBuf,
    pod: PathBuf,
}

impl PodCgroup {
    pub(crate) fn new(case: &Case) -> PodCgroup {
        let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let hierarchy =
            hierarchies.into_iter().find(|it| it.join("cgroup.procs").exists()).expect("a cgroup hierarchy");
        let unique = case
            .scratch("")
            .parent()
            .and_then(Path::file_name)
            .map_or_else(String::new, |it| it.to_string_lossy().into_owned());
        let name = format!("janus-test-{}-{unique}-{:?}", std::process::id(), case.janus).to_lowercase();
        let top = hierarchy.join(name);
        let pod = top.join("kubepods/besteffort").join(format!("pod{UID}"));
        fs::create_dir_all(&pod).unwrap();
        PodCgroup { top, pod }
    }

    pub(crate) fn container(&self, id: char, pid: u32) -> String {
        let id = id.to_string().repeat(64);
        let cgroup = self.pod.join(&id);
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        id
    }
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

/// A process of the node's in a container's cgroup is a container that is being prepared.
fn only_once_its_root_is_its_own(case: &Case) {
    let pod = PodCgroup::new(case);
    let (finder, thread) = Finder::start().unwrap();
    let seen: Arc<Mutex<Arc<Sighting>>> = Arc::default();
    let tell = seen.clone();
    let watch = finder.watch(PodUid::new(UID).unwrap(), Box::new(move |sighting| *tell.lock() = sighting));
    let preparing = case.host();
    pod.container('c', preparing.pid);
    let container = case.container();
    let id = pod.container('d', container.pid);
    assert!(wait_until(SOON, || !seen.lock().containers.is_empty()), "not found");
    let sighting = seen.lock().clone();
    let found: Vec<_> = sighting.containers.iter().map(|it| (it.id.to_string(), it.init.unsigned_abs())).collect();
    assert_eq!(found, [(id, container.pid)]);
    assert!(sighting.unreachable.is_empty() && sighting.containers[0].name.is_none(), "{sighting:?}");
    drop(container);
    assert!(wait_until(SOON, || seen.lock().containers.is_empty()), "its end was not noticed");
    drop((watch, finder));
    thread.join();
}
