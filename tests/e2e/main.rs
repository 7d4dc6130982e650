//! A real cluster: API server, scheduler, controllers, and nodes with kubelet, containerd and runc, all on this machine.
//!
//! Flow: the run enters a *room* ([`room`]): pids, mounts and network of its own, with no way out. There a
//! [`case::Case`] has a [`cluster::Cluster`], shared or of its own; a [`node::Node`] is a set of namespaces within the
//! room. Images are made by hand ([`image`]): no registry is asked.
//!
//! Guarantees: nothing outlives the run, whatever ends it, and nothing of the machine is changed: no interface, no
//! firewall, no sysctl ([`room`] and [`inside`] say how). Runs at the same time do not meet.
//!
//! Needs: CAP_SYS_ADMIN, containerd, runc, a static busybox, CNI plugins, iptables, conntrack, iproute2; and Kubernetes'
//! programs, which `../cluster/kubernetes/build` builds, with Go, when they are not there yet. Without them a test says
//! `SKIPPED` on stderr and counts as ignored; `JANUS_SKIP_IS_FAILURE=1` makes that a failure.
//!
//! # Which module tests what
//!
//! | Module | Tests |
//! |---|---|
//! | [`demo`] | nothing that others do not: it shows what a user would do and see |
//! | [`guarding`] | a guard on pods: who is denied, and what the guard says of it |
//! | [`changes`] | guards that change, and labels by which pods come under them |
//! | [`life`] | pods and containers that come and go under a guard |
//! | [`volumes`] | volumes that the kubelet writes to, under a guard that denies everybody |
//! | [`faults`] | what fails while guards are in force: janusd, the leading controller, a kubelet, the API server |
//! | [`rollouts`] | new versions of Janus, while guards are in force |
//! | [`rights`] | what Janus may do: what it does |
//! | [`monitoring`] | Prometheus, with the configuration, alerts and dashboard of `deploy/` |
//! | [`annotations`] | the component annotate-pods |
//! | [`uninstall`] | how Janus goes, with its controller and without |
//! | [`nodes`] | what the harness promises to the other modules |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod annotations;
#[path = "../cluster/binaries.rs"]
#[allow(dead_code, reason = "the tests without nodes use the rest of it")]
mod binaries;
mod case;
mod changes;
mod cluster;
mod demo;
#[path = "../cluster/deputy.rs"]
#[allow(dead_code, reason = "the tests without nodes use the rest of it")]
mod deputy;
mod faults;
mod guarding;
#[path = "../pods/image.rs"]
mod image;
mod inside;
mod janus;
mod life;
mod monitoring;
mod network;
mod node;
mod nodes;
mod own;
#[path = "../cluster/pki.rs"]
mod pki;
mod probe;
#[path = "../cluster/program.rs"]
mod program;
mod rights;
mod rollouts;
mod room;
#[path = "../cluster/server.rs"]
#[allow(dead_code, reason = "the tests without nodes use the rest of it")]
mod server;
mod tenant;
mod uninstall;
#[path = "../cluster/user.rs"]
#[allow(dead_code, reason = "the tests without nodes use the rest of it")]
mod user;
mod volumes;
#[path = "../kernel/watchdog.rs"]
mod watchdog;

use std::ffi::OsString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::thread::{CapabilitySet, capabilities};

use binaries::Set;
use case::Case;
use watchdog::Watchdog;

/// Modules with tests.
const MODULES: [&[Test]; 12] = [
    // They count what runs on a node: before there is more than they have started.
    nodes::TESTS,
    demo::TESTS,
    guarding::TESTS,
    changes::TESTS,
    life::TESTS,
    volumes::TESTS,
    faults::TESTS,
    rollouts::TESTS,
    rights::TESTS,
    monitoring::TESTS,
    annotations::TESTS,
    uninstall::TESTS,
];

fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match words.first().and_then(|word| word.to_str()) {
        Some(deputy::WORD) => deputy::main(),
        Some(room::WORD) => room::main(),
        Some(inside::WORD) => inside::main(),
        Some(room::TESTS) => {
            words.remove(0);
            run(&words, None)
        }
        _ => run_in_room(&words),
    }
}

/// Outside of the room there is nothing to do but to list the tests, or to say why they cannot run.
fn run_in_room(words: &[OsString]) -> ExitCode {
    let arguments = Arguments::from_args();
    let is_run = |test: &&Test| arguments.filter.as_ref().is_none_or(|filter| test.short().contains(filter.as_str()));
    if arguments.list || !MODULES.into_iter().flatten().any(|test| is_run(&test)) {
        return run(words, None);
    }
    let lack = match lacks() {
        Some(lack) => lack,
        None => match binaries::kubernetes(Set::Full).and_then(|programs| own::build_janusd().map(|()| programs)) {
            Ok(programs) => match room::run_in_one(words, programs) {
                Ok(code) => return code,
                Err(error) => {
                    let _lost = writeln!(std::io::stderr(), "no room: {error}");
                    return ExitCode::FAILURE;
                }
            },
            Err(lack) => lack,
        },
    };
    run(words, Some(lack))
}

fn run(words: &[OsString], lack: Option<&'static str>) -> ExitCode {
    let mut arguments = Arguments::from_iter([OsString::from("e2e")].iter().chain(words));
    // Few CPUs, and one cluster.
    arguments.test_threads.get_or_insert(1);
    let trials = MODULES.into_iter().flatten().map(|test| test.trial(lack)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    case::end_shared();
    conclusion.exit_code()
}

/// One test, as its module lists it.
struct Test {
    name: &'static str,
    run: fn(&Case),
    deadline: Duration,
    /// A program that it needs besides what all need.
    program: Option<&'static str>,
}

impl Test {
    /// A test may take this long: it starts a cluster where there is none yet.
    const fn new(name: &'static str, run: fn(&Case)) -> Test {
        Test { name, run, deadline: Duration::from_secs(240), program: None }
    }

    #[allow(dead_code, reason = "for modules to come")]
    const fn lasting(self, seconds: u64) -> Test {
        Test { deadline: Duration::from_secs(seconds), ..self }
    }

    const fn needs(self, program: &'static str) -> Test {
        Test { program: Some(program), ..self }
    }

    fn short(&self) -> &'static str {
        self.name.strip_prefix("e2e::").unwrap_or(self.name)
    }

    fn trial(&'static self, lack: Option<&'static str>) -> Trial {
        let name = self.short();
        Trial::ignorable_test(name.to_owned(), move || {
            let own = || self.program.filter(|program| !is_installed(program));
            let lack = lack.or_else(|| binaries::kubernetes(Set::Full).err()).or_else(own);
            let Some(lack) = lack else { return self.run_watched(binaries::kubernetes(Set::Full)?) };
            // Straight to stderr: a skipped test must not look like one that passed.
            writeln!(std::io::stderr(), "SKIPPED {name}: needs {lack}")?;
            match std::env::var_os("JANUS_SKIP_IS_FAILURE") {
                Some(value) if value == "1" => Err(Failed::from("skipped, and JANUS_SKIP_IS_FAILURE is set")),
                _ => Ok(Completion::ignored_with(format!("needs {lack}"))),
            }
        })
    }

    fn run_watched(&self, programs: &'static Path) -> Result<Completion, Failed> {
        let watchdog = Watchdog::start(self.deadline);
        let case = Case { programs, watch: watchdog.watch() };
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&case)));
        match (watchdog.stop(), outcome) {
            (true, _) => Err(Failed::from(format!("not done after {:?}: its cluster was killed", self.deadline))),
            (false, Ok(())) => Ok(Completion::Completed),
            (false, Err(panic)) => resume_unwind(panic),
        }
    }
}

/// The tests of a module, by function name.
macro_rules! e2e_tests {
    ($($name:ident $(.$method:ident($($argument:expr)?))*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($argument)?))*
        ),*];
    };
}
use e2e_tests;

/// What this machine lacks.
fn lacks() -> Option<&'static str> {
    if !capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)) {
        return Some("CAP_SYS_ADMIN");
    }
    if !Path::new(image::BUSYBOX).exists() {
        return Some("busybox-static");
    }
    if !Path::new(node::CNI).join("bridge").exists() {
        return Some("containernetworking-plugins");
    }
    let programs = ["containerd", "ctr", "runc", "ip", "iptables", "conntrack", "setpriv"];
    programs.into_iter().find(|program| !is_installed(program))
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(program).exists()))
}
