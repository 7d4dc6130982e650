//! A real API server: etcd and kube-apiserver, as the controller and kubectl meet them. No nodes; for these there is
//! `tests/e2e`.
//!
//! Flow: a [`case::Case`] has an [`server::ApiServer`], shared or of its own, on a port of this machine; tests talk with
//! it through `kube` or `kubectl`, as whichever [`user::User`] they need.
//!
//! Guarantees: nothing outlives the run ([`deputy`] says how); runs at the same time do not meet.
//!
//! Needs: Kubernetes' programs, which `kubernetes/build` builds, with Go, when they are not there yet. Where it cannot, a
//! test says `SKIPPED` on stderr and counts as ignored; `JANUS_SKIP_IS_FAILURE=1` makes that a failure. No privileges.
//!
//! # Which module tests what
//!
//! | Module | Tests |
//! |---|---|
//! | [`basics`] | what the harness promises to the other modules |
//! | [`definition`] | the CRD as users meet it: `kubectl get`, `explain`, defaults |
//! | [`deploy`] | what `deploy/` makes: taken by the server, its policies and rights, certificates |
//! | [`vectors`] | what the API server accepts and refuses, against `tests/vectors` |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod basics;
#[allow(dead_code, reason = "tests with nodes use the rest of it")]
mod binaries;
mod case;
mod definition;
mod deploy;
#[allow(dead_code, reason = "tests with nodes use the rest of it")]
mod deputy;
mod pki;
mod program;
#[allow(dead_code, reason = "tests with nodes use the rest of it")]
mod server;
#[allow(dead_code, reason = "tests with nodes use the rest of it")]
mod user;
mod vectors;
#[path = "../kernel/watchdog.rs"]
mod watchdog;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use binaries::Set;
use case::Case;
use watchdog::Watchdog;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == deputy::WORD) {
        return deputy::main();
    }
    let mut arguments = Arguments::from_args();
    // Few CPUs, and one API server.
    arguments.test_threads.get_or_insert(1);
    let modules = [basics::TESTS, definition::TESTS, deploy::TESTS, vectors::TESTS];
    let trials = modules.into_iter().flatten().map(Test::trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    case::end_shared();
    conclusion.exit_code()
}

/// One test, as its module lists it.
struct Test {
    name: &'static str,
    run: fn(&Case),
    deadline: Duration,
}

impl Test {
    /// A test may take this long: it starts an API server where there is none yet.
    const fn new(name: &'static str, run: fn(&Case)) -> Test {
        Test { name, run, deadline: Duration::from_secs(120) }
    }

    #[allow(dead_code, reason = "for modules to come")]
    const fn lasting(self, seconds: u64) -> Test {
        Test { deadline: Duration::from_secs(seconds), ..self }
    }

    fn trial(&'static self) -> Trial {
        let name = self.name.strip_prefix("cluster::").unwrap_or(self.name);
        Trial::ignorable_test(name.to_owned(), move || match binaries::kubernetes(Set::Api) {
            Ok(programs) => self.run_watched(programs),
            Err(lack) => {
                // Straight to stderr: a skipped test must not look like one that passed.
                writeln!(std::io::stderr(), "SKIPPED {name}: needs {lack}")?;
                match std::env::var_os("JANUS_SKIP_IS_FAILURE") {
                    Some(value) if value == "1" => Err(Failed::from("skipped, and JANUS_SKIP_IS_FAILURE is set")),
                    _ => Ok(Completion::ignored_with(format!("needs {lack}"))),
                }
            }
        })
    }

    fn run_watched(&self, programs: &'static Path) -> Result<Completion, Failed> {
        let watchdog = Watchdog::start(self.deadline);
        let case = Case { programs, watch: watchdog.watch() };
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&case)));
        match (watchdog.stop(), outcome) {
            (true, _) => Err(Failed::from(format!("not done after {:?}: its API server was killed", self.deadline))),
            (false, Ok(())) => Ok(Completion::Completed),
            (false, Err(panic)) => resume_unwind(panic),
        }
    }
}

/// The tests of a module, by function name.
macro_rules! cluster_tests {
    ($($name:ident $(.$method:ident($($argument:expr)?))*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($argument)?))*
        ),*];
    };
}
use cluster_tests;
