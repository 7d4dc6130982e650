//! Hundreds of guards over the wire: pods whose one container is a process with a small root of its own, in a cgroup as a
//! kubelet names it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use futures::StreamExt;
use janus_proto::v1;

use super::certificates::Authority;
use super::client::{Client, create_one, lift, spec, uid};
use super::{SOON, Serve, phase};
use crate::case::Case;
use crate::crowd::start_root;
use crate::metrics::Metrics;
use crate::stuck::groups;
use crate::watchdog::wait_until;

/// Calls at once, as the daemon takes them on one connection.
const AT_ONCE: usize = 64;

/// Pods with one container each.
pub(super) struct Pods {
    top: PathBuf,
    pub(super) containers: Vec<Child>,
}

impl Pods {
    pub(super) fn start(case: &Case, count: usize) -> Pods {
        let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let hierarchy = hierarchies.into_iter().find(|it| it.join("cgroup.procs").exists()).expect("cgroups");
        let unique = case.scratch("");
        let unique = unique.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().to_lowercase();
        let mut pods = Pods { top: hierarchy.join(format!("{unique}-crowd")), containers: Vec::new() };
        for number in 0..count {
            let cgroup = pods.top.join(format!("kubepods/pod{}/{number:064x}", uid(0xb, number)));
            fs::create_dir_all(&cgroup).unwrap();
            let container = start_root().unwrap();
            case.watch.process(container.id());
            fs::write(cgroup.join("cgroup.procs"), container.id().to_string()).unwrap();
            pods.containers.push(container);
        }
        pods
    }

    /// A guard on one of them.
    pub(super) fn guard(&self, number: usize, spec: v1::GuardSpec) -> v1::CreateGuardRequest {
        create_one(number, number % self.containers.len(), spec)
    }

    /// A file of one of them, as the node may write it.
    pub(super) fn file(&self, number: usize, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.containers[number].id()))
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for container in &mut self.containers {
            // It may have been killed by the watchdog.
            let _ended = container.kill();
            let _reaped = container.wait();
        }
        fn remove(directory: &Path) -> bool {
            let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
            below.filter(|path| path.is_dir()).all(|path| remove(&path)) && fs::remove_dir(directory).is_ok()
        }
        wait_until(SOON, || remove(&self.top));
    }
}

/// Creates all of them, many at once; gives the states, and how long each call took.
pub(super) async fn create_all(
    client: &Client,
    requests: &[v1::CreateGuardRequest],
) -> (Vec<v1::GuardState>, Vec<Duration>) {
    let calls = requests.iter().map(|request| {
        let mut client = client.clone();
        async move {
            let asked = Instant::now();
            let state = client.create(request.clone()).await.unwrap_or_else(|status| panic!("{status:?}"));
            (state, asked.elapsed())
        }
    });
    let mut answers: Vec<_> = futures::stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
    answers.sort_by_key(|(_, took)| *took);
    answers.into_iter().unzip()
}

/// What a guard of an application would be: two subjects, four rules.
fn usual() -> v1::GuardSpec {
    let mut spec = spec(&["/app/keys", "/etc/*shadow"]);
    spec.subjects[0].allow = vec!["/app/keys/public".into()];
    spec.subjects[0].log = v1::LogPolicy::Denied.into();
    spec.subjects.push(v1::Subject {
        deny: vec!["/app/data".into()],
        events: vec![v1::Event::Open.into(), v1::Event::Access.into()],
        log: v1::LogPolicy::None.into(),
        auto_allow_owner: true,
        ..Default::default()
    });
    spec
}

/// What a process takes.
struct Takes {
    status: String,
    /// User and system time of all its threads that are left, seconds.
    cpu: f64,
}

impl Takes {
    fn of(pid: u32) -> Takes {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let ran = |thread: fs::DirEntry| -> Option<u64> {
            // One that has ended meanwhile.
            fs::read_to_string(thread.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
        };
        let cpu = threads.filter_map(ran).sum::<u64>() as f64 / 1e9;
        Takes { status: fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), cpu }
    }

    fn field(&self, name: &str) -> u64 {
        let line = self.status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap_or_default()
    }

    fn mib(&self, name: &str) -> f64 {
        self.field(name) as f64 / 1024.0
    }
}

/// Raised by janusd, and put back here: this machine is not ours.
const GROUPS: &str = "/proc/sys/fs/fanotify/max_user_groups";

/// Five hundred guards, created and lifted over gRPC and TLS.
pub(crate) fn served(case: &Case) {
    const GUARDS: usize = 500;
    let groups_before = fs::read_to_string(GROUPS).unwrap();
    let pods = Pods::start(case, GUARDS);
    let authority = Authority::new();
    let serve = Serve::start(case, &authority);
    let pid = serve.process.id();
    let requests: Vec<_> = (0..GUARDS).map(|number| pods.guard(number, usual())).collect();
    let host = case.host();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(serve.grpc, &authority.controller()).await.unwrap();
        let before = Takes::of(pid);
        let started = Instant::now();
        let (states, took) = create_all(&client, &requests).await;
        let armed = started.elapsed();
        let behind: Vec<_> = states.iter().filter(|state| phase(state) != v1::GuardPhase::InForce).collect();
        assert!(behind.is_empty(), "{} are not in force: {:?}", behind.len(), behind[0]);
        let sited = states.iter().filter(|state| state.containers.iter().any(|it| it.in_force)).count();
        assert_eq!(sited, GUARDS, "containers in force");
        let busy = Takes::of(pid).cpu - before.cpu;
        for number in [0, GUARDS / 2, GUARDS - 1] {
            case.denied(host.open(pods.file(number, "/app/keys/server.key")));
            case.allowed(host.open(pods.file(number, "/app/main")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (idle_from, idled) = (Takes::of(pid), Instant::now());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let idle = Takes::of(pid);
        let idle_share = 100.0 * (idle.cpu - idle_from.cpu) / idled.elapsed().as_secs_f64();
        let marks = Metrics::read(serve.admin).sum("janus_marks", &[]);
        println!("\n  {GUARDS} guards, each on a pod of its own with one container, {AT_ONCE} calls at once");
        println!(
            "  armed in {:.2} s, {busy:.2} s of CPU; a call took {:.0} ms (median), {:.0} ms (longest)",
            armed.as_secs_f64(),
            took[took.len() / 2].as_secs_f64() * 1e3,
            took[took.len() - 1].as_secs_f64() * 1e3,
        );
        println!(
            "  RSS {:.1} MiB (before {:.1}, peak {:.1}), {} threads (before {}), {marks} marks, idle {idle_share:.3} %",
            idle.mib("VmRSS"),
            before.mib("VmRSS"),
            idle.mib("VmHWM"),
            idle.field("Threads"),
            before.field("Threads"),
        );
        let lifting = Instant::now();
        let calls = requests.iter().map(|request| {
            let mut client = client.clone();
            async move { client.destroy(lift(request)).await }
        });
        let lifted: Vec<_> = futures::stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
        assert!(lifted.into_iter().all(|lifted| lifted.unwrap()));
        let lifted = lifting.elapsed();
        let left = || {
            let metrics = Metrics::read(serve.admin);
            let threads = Takes::of(pid).field("Threads");
            (metrics.sum("janus_guards", &[]), metrics.sum("janus_marks", &[]), groups(&pid.to_string()).len(), threads)
        };
        assert!(wait_until(SOON, || left() == (0, 0, 0, before.field("Threads"))), "left: {:?}", left());
        println!(
            "  lifted in {:.2} s; guards, marks, groups, threads left: {:?}; RSS {:.1} MiB",
            lifted.as_secs_f64(),
            left(),
            Takes::of(pid).mib("VmRSS"),
        );
    });
    // Nothing to be done about it if the machine has no such file any more.
    let _lost = fs::File::options().write(true).open(GROUPS).and_then(|mut at| at.write_all(groups_before.as_bytes()));
}
