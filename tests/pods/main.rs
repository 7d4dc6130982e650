//! Real containers: containerd and runc, pods as a kubelet has them made, and guards on them.
//!
//! Flow: a [`node::Node`] is a pid and a mount namespace with a containerd of its own; a [`pod::Pod`] has sandbox,
//! cgroups and volumes as a kubelet lays them out; in its containers runs an image made by hand ([`image`]). The daemon
//! under test runs on the node ([`daemon`]). This process stays outside of it all and opens nothing that is guarded.
//!
//! Guarantees: nothing outlives the run ([`inside`] says how); each test that sees a denial is run a second time as its
//! own *control*, without the daemon, where whatever must be denied must succeed.
//!
//! Needs: CAP_SYS_ADMIN, containerd, runc and a static busybox. Without them a test says `SKIPPED` on stderr and counts
//! as ignored; `JANUS_SKIP_IS_FAILURE=1` makes that a failure.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod case;
mod cri;
mod daemon;
mod duties;
mod image;
mod inside;
mod kubelet;
mod life;
#[path = "../kernel/manifest.rs"]
#[allow(dead_code, reason = "the kernel tests use the rest of it")]
mod manifest;
mod node;
mod pod;
mod starts;
mod upkeep;
#[path = "../kernel/watchdog.rs"]
mod watchdog;
mod who;
mod wire;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::thread::{CapabilitySet, capabilities};

use case::{Case, Janus};
use node::Node;
use watchdog::Watchdog;

/// How long one test may take: it starts a node where there is none yet.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == inside::WORD) {
        return inside::main();
    }
    let mut arguments = Arguments::from_args();
    // Few CPUs, and one containerd.
    arguments.test_threads.get_or_insert(1);
    let modules = [upkeep::TESTS, life::TESTS, who::TESTS, duties::TESTS, starts::TESTS];
    let trials = modules.into_iter().flatten().flat_map(Test::trials).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    Node::end_shared();
    conclusion.exit_code()
}

/// One test, as its module lists it.
struct Test {
    name: &'static str,
    run: fn(&Case),
    /// Whether it has a control: the same run without the daemon.
    control: bool,
    /// How long one run may take.
    deadline: fn() -> Duration,
}

impl Test {
    /// A test of denials, with its control.
    const fn new(name: &'static str, run: fn(&Case)) -> Test {
        Test { name, run, control: true, deadline: || DEADLINE }
    }

    /// Without a control: for what is true by itself when there is no daemon.
    const fn without_control(self) -> Test {
        Test { control: false, ..self }
    }

    /// One that takes as long as it is asked to.
    const fn lasting(self, deadline: fn() -> Duration) -> Test {
        Test { deadline, ..self }
    }

    fn trials(&'static self) -> Vec<Trial> {
        let short = self.name.strip_prefix("pods::").unwrap_or(self.name);
        let mut trials = vec![self.trial(short.to_owned(), Janus::Guards)];
        if self.control {
            trials.push(self.trial(format!("{short}::control"), Janus::Absent).with_kind("control"));
        }
        trials
    }

    fn trial(&'static self, name: String, janus: Janus) -> Trial {
        Trial::ignorable_test(name.clone(), move || {
            if let Some(lack) = lacks() {
                // Straight to stderr: a skipped test must not look like one that passed.
                writeln!(std::io::stderr(), "SKIPPED {name}: needs {lack}")?;
                return match std::env::var_os("JANUS_SKIP_IS_FAILURE") {
                    Some(value) if value == "1" => Err(Failed::from("skipped, and JANUS_SKIP_IS_FAILURE is set")),
                    _ => Ok(Completion::ignored_with(format!("needs {lack}"))),
                };
            }
            self.run_watched(janus)
        })
    }

    fn run_watched(&self, janus: Janus) -> Result<Completion, Failed> {
        let deadline = (self.deadline)();
        let watchdog = Watchdog::start(deadline);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let node = Node::shared();
            watchdog.watch().process(node.init);
            (self.run)(&Case { janus, node });
        }));
        match (watchdog.stop(), outcome) {
            (true, _) => Err(Failed::from(format!("not done after {deadline:?}: its node was killed"))),
            (false, Ok(())) => Ok(Completion::Completed),
            (false, Err(panic)) => resume_unwind(panic),
        }
    }
}

/// The tests of a module, by function name.
macro_rules! pod_tests {
    ($($name:ident $(.$method:ident($($argument:expr)?))*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($argument)?))*
        ),*];
    };
}
use pod_tests;

/// What this machine lacks.
fn lacks() -> Option<&'static str> {
    if !capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN)) {
        return Some("CAP_SYS_ADMIN");
    }
    if !Path::new(image::BUSYBOX).exists() {
        return Some("busybox-static");
    }
    ["containerd", "ctr", "runc"].into_iter().find(|program| !is_installed(program))
}

fn is_installed(program: &str) -> bool {
    installed(program).is_some()
}

fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|at| at.join(program)).find(|at| at.exists())
}
