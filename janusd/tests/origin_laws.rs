//! Origins: a table of scenes, and laws over a small model of the kernel that knows who really descends from whom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use janusd::policy::Origin;
use janusd::process::facts::{Cgroups, Stat};
use janusd::process::origin::{Container, Found, Home, Identity, MOST_SEEN, Processes, Seen, classify};
use proptest::prelude::*;

const HOST: u64 = 1;
const CONTAINER: u64 = 2;
/// The node's PID 1, the runtime's shim, the container's init.
const SYSTEMD: i32 = 1;
const SHIM: i32 = 2;

#[derive(Debug, Clone)]
struct Task {
    parent: i32,
    session: i32,
    start: u64,
    namespace: u64,
    cgroup: &'static str,
    /// It descends from the container's init: what an origin of Owner claims.
    own: bool,
    /// It descends from a process that was brought into the container from outside.
    entered: bool,
}

/// Forks, sessions, exits, adoption and the reuse of numbers, as the kernel does them.
#[derive(Debug)]
struct Kernel {
    tasks: BTreeMap<i32, Task>,
    now: u64,
    /// A parent that is found gone, once: its child is read before it is adopted.
    vanished: Option<i32>,
    init: i32,
    private: bool,
}

const OURS: &str = "/kubepods/burstable/pod1/app";
const SIDECAR: &str = "/kubepods/burstable/pod1/sidecar";
const OTHER_POD: &str = "/kubepods/besteffort/pod2/app";

impl Kernel {
    fn new(private: bool) -> Kernel {
        let mut kernel = Kernel { tasks: BTreeMap::new(), now: 1, vanished: None, init: 0, private };
        let task = |parent, session| Task {
            parent,
            session,
            start: 1,
            namespace: HOST,
            cgroup: "/",
            own: false,
            entered: false,
        };
        kernel.tasks.insert(SYSTEMD, task(0, SYSTEMD));
        kernel.tasks.insert(SHIM, task(SYSTEMD, SHIM));
        let init = kernel.fork(SHIM);
        kernel.init = init;
        kernel.setsid(init);
        let task = kernel.tasks.get_mut(&init).unwrap();
        (task.own, task.cgroup) = (true, OURS);
        if private {
            task.namespace = CONTAINER;
        }
        kernel
    }

    fn container(&self) -> Container {
        let init = &self.tasks[&self.init];
        let init_cgroups = Cgroups::parse(format!("0::{}\n", init.cgroup).as_bytes());
        Container {
            init: Identity { pid: self.init, start: init.start },
            pid_namespace: init.namespace,
            private: self.private,
            home: Home::of(&init_cgroups),
        }
    }

    fn number(&self) -> i32 {
        let taken = |pid: &i32| self.tasks.iter().any(|(other, task)| other == pid || task.session == *pid);
        (3..).find(|pid| !taken(pid)).unwrap()
    }

    fn fork(&mut self, of: i32) -> i32 {
        let pid = self.number();
        self.now += 1;
        let task = Task { parent: of, start: self.now, ..self.tasks[&of].clone() };
        self.tasks.insert(pid, task);
        pid
    }

    fn setsid(&mut self, pid: i32) {
        self.tasks.get_mut(&pid).unwrap().session = pid;
    }

    /// setns into the container, then fork: as `runc exec` and nsenter do.
    fn enter(&mut self, from: i32, cgroup: bool) -> i32 {
        let pid = self.fork(from);
        let namespace = self.tasks[&self.init].namespace;
        let task = self.tasks.get_mut(&pid).unwrap();
        task.namespace = namespace;
        task.entered = true;
        if cgroup {
            task.cgroup = OURS;
        }
        pid
    }

    /// A child that is PID 1 of a new pid namespace.
    fn unshare(&mut self, of: i32) -> i32 {
        let pid = self.fork(of);
        self.now += 1;
        self.tasks.get_mut(&pid).unwrap().namespace = 100 + self.now;
        pid
    }

    fn exit(&mut self, pid: i32) {
        if pid == SYSTEMD || pid == SHIM || pid == self.init {
            return;
        }
        let Some(gone) = self.tasks.remove(&pid) else { return };
        let children: Vec<i32> = self.of(pid);
        // PID 1 of its namespace takes along all of it, and the namespaces that were made in it.
        let nested = gone.namespace > 100;
        if nested && self.tasks.get(&gone.parent).is_none_or(|parent| parent.namespace != gone.namespace) {
            let mut doomed = vec![pid];
            while let Some(dying) = doomed.pop() {
                doomed.extend(self.of(dying));
                self.tasks.remove(&dying);
            }
            return;
        }
        for child in children {
            let reaper = match gone.namespace {
                CONTAINER => self.init,
                HOST => SHIM,
                nested => self
                    .tasks
                    .iter()
                    .find(|(_, task)| {
                        task.namespace == nested
                            && self.tasks.get(&task.parent).is_some_and(|parent| parent.namespace != nested)
                    })
                    .map(|(pid, _)| *pid)
                    .unwrap(),
            };
            // A parent outside of the container whose child is inside hands it to a reaper outside.
            if let Some(child) = self.tasks.get_mut(&child) {
                child.parent = reaper;
            }
        }
    }

    fn of(&self, parent: i32) -> Vec<i32> {
        self.tasks.iter().filter(|(_, task)| task.parent == parent).map(|(pid, _)| *pid).collect()
    }

    fn ask(&mut self, pid: i32, seen: &mut Seen) -> Found {
        let container = self.container();
        (0..3).find_map(|_| classify(pid, Some(&container), seen, self).ok()).unwrap()
    }

    fn origin(&mut self, pid: i32) -> (Origin, bool) {
        let found = self.ask(pid, &mut Seen::default());
        (found.origin, found.maybe.is_some())
    }
}

impl Processes for Kernel {
    fn stat(&mut self, pid: i32) -> Option<Stat> {
        if self.vanished == Some(pid) {
            self.vanished = None;
            return None;
        }
        let task = self.tasks.get(&pid)?;
        Some(Stat { parent: task.parent, session: task.session, start: task.start })
    }

    fn pid_namespace(&mut self, pid: i32) -> Option<u64> {
        Some(self.tasks.get(&pid)?.namespace)
    }

    fn cgroups(&mut self, pid: i32) -> Option<Cgroups> {
        Some(Cgroups::parse(format!("4:memory:/elsewhere\n0::{}\n", self.tasks.get(&pid)?.cgroup).as_bytes()))
    }
}

#[test]
fn the_containers_own() {
    for private in [true, false] {
        let mut kernel = Kernel::new(private);
        let init = kernel.init;
        assert_eq!(kernel.origin(init), (Origin::Owner, false));
        let child = kernel.fork(init);
        let grandchild = kernel.fork(child);
        assert_eq!(kernel.origin(grandchild), (Origin::Owner, false));
        // A session of its own, with its parent alive.
        kernel.setsid(grandchild);
        assert_eq!(kernel.origin(grandchild), (Origin::Owner, false));
        // Orphaned in the init's session.
        let orphan = kernel.fork(child);
        kernel.exit(child);
        assert_eq!(kernel.origin(orphan), (Origin::Owner, false));
        // Orphaned in a session whose leader lives, and was not orphaned itself.
        let leader = {
            let worker = kernel.fork(init);
            kernel.fork(worker)
        };
        kernel.setsid(leader);
        let middle = kernel.fork(leader);
        let orphan = kernel.fork(middle);
        kernel.exit(middle);
        assert_eq!(kernel.origin(orphan), (Origin::Owner, false), "private: {private}");
    }
}

#[test]
fn brought_in_from_outside() {
    let mut kernel = Kernel::new(true);
    let entered = kernel.enter(SHIM, true);
    kernel.setsid(entered);
    let shell = kernel.fork(entered);
    let command = kernel.fork(shell);
    assert_eq!(kernel.origin(entered), (Origin::Session, false));
    assert_eq!(kernel.origin(command), (Origin::Session, false));
    // Double-forked: PID 1's child, but its session's leader lives outside of the tree.
    kernel.exit(shell);
    assert_eq!(kernel.tasks[&command].parent, kernel.init);
    assert_eq!(kernel.origin(command), (Origin::Session, false));
    // And with the leader gone nothing tells any more.
    kernel.exit(entered);
    assert_eq!(kernel.origin(command), (Origin::Session, true));
    kernel.setsid(command);
    assert_eq!(kernel.origin(command), (Origin::Session, true));
    // Its descendants are what it is.
    let child = kernel.fork(command);
    assert_eq!(kernel.origin(child), (Origin::Session, true));
    // In a pid namespace of its own inside the container.
    let entered = kernel.enter(SHIM, true);
    let nested = kernel.unshare(entered);
    assert_eq!(kernel.origin(nested), (Origin::Session, false));
    // nsenter: in the host's cgroup.
    let entered = kernel.enter(SYSTEMD, false);
    assert_eq!(kernel.origin(entered), (Origin::Session, false));
}

#[test]
fn a_daemon_that_was_seen() {
    let mut kernel = Kernel::new(true);
    let init = kernel.init;
    let spawn = |kernel: &mut Kernel, seen: &mut Seen, early: bool| {
        let middle = kernel.fork(init);
        let daemon = kernel.fork(middle);
        if early {
            assert_eq!(kernel.ask(daemon, seen).origin, Origin::Owner);
        }
        kernel.exit(middle);
        kernel.setsid(daemon);
        daemon
    };
    let mut seen = Seen::default();
    let daemon = spawn(&mut kernel, &mut seen, true);
    assert_eq!(kernel.ask(daemon, &mut seen), Found { origin: Origin::Owner, maybe: None });
    let child = kernel.fork(daemon);
    assert_eq!(kernel.ask(child, &mut seen).origin, Origin::Owner);
    let unseen = spawn(&mut kernel, &mut seen, false);
    assert_eq!(kernel.ask(unseen, &mut seen), Found { origin: Origin::Session, maybe: Some(Origin::Owner) });
    // Another process under a number that was seen.
    kernel.exit(daemon);
    kernel.exit(child);
    let mut entered = daemon - 1;
    while entered != daemon {
        entered = kernel.enter(SHIM, true);
    }
    assert_eq!(kernel.ask(entered, &mut seen).origin, Origin::Session);
}

#[test]
fn others() {
    let mut kernel = Kernel::new(true);
    let host = kernel.fork(SYSTEMD);
    assert_eq!(kernel.origin(host), (Origin::Node, false));
    for (cgroup, origin) in [
        (SIDECAR, Origin::Pod),
        (OTHER_POD, Origin::Node),
        ("/kubepods/burstable/pod1", Origin::Pod),
        ("/kubepods/burstable/pod11/app", Origin::Node),
        ("/kubepods/burstable/pod1/appendix", Origin::Pod),
        // `runc init` on its way in.
        (OURS, Origin::Session),
    ] {
        kernel.tasks.get_mut(&host).unwrap().cgroup = cgroup;
        assert_eq!(kernel.origin(host), (origin, false), "{cgroup}");
    }
    // A shared pid namespace: the container is found by cgroup, and an exec is told from nothing.
    let mut kernel = Kernel::new(false);
    let entered = kernel.enter(SHIM, true);
    kernel.setsid(entered);
    assert_eq!(kernel.origin(entered), (Origin::Session, true));
    let sidecar = kernel.fork(SHIM);
    kernel.tasks.get_mut(&sidecar).unwrap().cgroup = SIDECAR;
    assert_eq!(kernel.origin(sidecar), (Origin::Pod, false));
    // No container: everything is the node's.
    let init = kernel.init;
    let found = classify(init, None, &mut Seen::default(), &mut kernel).unwrap();
    assert_eq!(found, Found { origin: Origin::Node, maybe: None });
}

/// Where the init began no session (`unshare` from a shell), being in its session proves nothing by itself.
#[test]
fn a_container_without_a_session() {
    let mut kernel = Kernel::new(true);
    let init = kernel.init;
    kernel.tasks.get_mut(&init).unwrap().session = SHIM;
    let child = kernel.fork(init);
    assert_eq!(kernel.origin(child), (Origin::Owner, false));
    let host = kernel.fork(SHIM);
    assert_eq!(kernel.tasks[&host].session, kernel.tasks[&init].session);
    assert_eq!(kernel.origin(host), (Origin::Node, false));
    let entered = kernel.enter(SHIM, false);
    assert_eq!(kernel.origin(entered), (Origin::Session, false));
    kernel.setsid(child);
    assert_eq!(kernel.origin(child), (Origin::Session, true));
}

#[test]
fn an_ancestor_that_goes_meanwhile() {
    let mut kernel = Kernel::new(true);
    let init = kernel.init;
    let middle = kernel.fork(init);
    let child = kernel.fork(middle);
    kernel.setsid(child);
    let container = kernel.container();
    kernel.vanished = Some(middle);
    assert!(classify(child, Some(&container), &mut Seen::default(), &mut kernel).is_err());
    // A parent that is younger than its child is somebody else.
    kernel.tasks.get_mut(&middle).unwrap().start = kernel.now + 1;
    assert!(classify(child, Some(&container), &mut Seen::default(), &mut kernel).is_err());
    assert!(classify(99, Some(&container), &mut Seen::default(), &mut kernel).is_err());
}

#[test]
fn homes() {
    let home = |text: &str| Home::of(&Cgroups::parse(text.as_bytes()));
    let systemd =
        "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ab.scope\n";
    assert!(home(systemd).unwrap().holds(&Cgroups::parse(format!("{}/below\n", systemd.trim_end()).as_bytes())));
    for made in [
        "3:memory:/kubepods/besteffort/pod1-2/0123\n",
        "0::/../../kubelet-kubepods-besteffort-pod1.slice/crio-ab.scope\n",
        "0::/system.slice/docker-kind.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod7.slice/x.scope\n",
        "1:cpu:/\n0::/\n4:pids:/kubepods/pod1/x\n",
    ] {
        assert!(home(made).is_some(), "{made}");
    }
    for other in [
        "0::/\n",
        "",
        "0::/user.slice/user-0.slice/session-1.scope\n",
        "0::/podman/pod1/x\n",
        "0::/kubepods/pod1\n",
        "0::/kubepods/podless\n",
        "0::/system.slice/docker-ab.scope\n",
    ] {
        assert!(home(other).is_none(), "{other}");
    }
    // What a container makes below its own cgroup is below its own.
    let forged = home("0::/kubepods/pod1/evil/kubepods/pod9/app\n").unwrap();
    assert!(!forged.holds(&Cgroups::parse(b"0::/kubepods/pod9/app\n")));
}

#[test]
fn what_was_seen_is_bounded() {
    let mut seen = Seen::default();
    let process = |pid| Identity { pid, start: 1 };
    let many = i32::try_from(MOST_SEEN).unwrap();
    for pid in 0..many * 2 {
        seen.remember(process(pid));
        seen.remember(process(0));
    }
    assert_eq!(seen.len(), MOST_SEEN);
    assert!(seen.knows(process(0)) && seen.knows(process(many * 2 - 1)) && !seen.knows(process(1)));
}

#[derive(Debug, Clone)]
enum Step {
    Fork(prop::sample::Index),
    Setsid(prop::sample::Index),
    Exit(prop::sample::Index),
    Enter(prop::sample::Index, bool),
    Unshare(prop::sample::Index),
    Ask(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => index().prop_map(Step::Fork),
        3 => index().prop_map(Step::Setsid),
        4 => index().prop_map(Step::Exit),
        2 => (index(), any::<bool>()).prop_map(|(of, cgroup)| Step::Enter(of, cgroup)),
        1 => index().prop_map(Step::Unshare),
        2 => index().prop_map(Step::Ask),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever processes do: none but the container's own is ever Owner, and one of its own that is not is undecided.
    #[test]
    fn nobody_becomes_an_owner(steps in prop::collection::vec(step(), 0..60), private: bool) {
        let mut kernel = Kernel::new(private);
        let mut seen = Seen::default();
        for step in steps {
            let pids: Vec<i32> = kernel.tasks.keys().copied().collect();
            let pick = |index: &prop::sample::Index| *index.get(&pids);
            match step {
                Step::Fork(of) => {
                    kernel.fork(pick(&of));
                }
                Step::Setsid(pid) => {
                    let pid = pick(&pid);
                    // As the kernel: whoever leads a group of processes may not, so no number is a session twice.
                    if !kernel.tasks.values().any(|task| task.session == pid) {
                        kernel.setsid(pid);
                    }
                }
                Step::Exit(pid) => kernel.exit(pick(&pid)),
                Step::Enter(from, cgroup) => {
                    let from = pick(&from);
                    if !kernel.tasks[&from].own && kernel.tasks[&from].namespace == HOST {
                        kernel.enter(from, cgroup || !private);
                    }
                }
                Step::Unshare(of) => {
                    kernel.unshare(pick(&of));
                }
                Step::Ask(pid) => {
                    kernel.ask(pick(&pid), &mut seen);
                }
            }
        }
        for pid in kernel.tasks.keys().copied().collect::<Vec<_>>() {
            let own = kernel.tasks[&pid].own;
            let found = kernel.ask(pid, &mut seen);
            if own {
                prop_assert!(found.origin == Origin::Owner || found.maybe == Some(Origin::Owner), "{pid} {found:?} {kernel:#?}");
            } else {
                prop_assert!(found.origin != Origin::Owner, "{pid} {found:?} {kernel:#?}");
                let entered = kernel.tasks[&pid].entered;
                prop_assert_eq!(found.origin, if entered { Origin::Session } else { Origin::Node });
            }
        }
    }
}
