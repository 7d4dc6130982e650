//! janus-controller against fake daemons that speak the real wire and keep their own books.
//!
//! Flow: a [`fake::Fleet`] is any number of daemons behind one port; a [`world::World`] makes guards, pods and nodes in an
//! API server and plays the kubelet; the controller is a process of its own ([`process`]). In the end the daemons' books are
//! compared with [`expected`], which works out from the objects alone what has to stand in them.
//!
//! # Which module tests what
//!
//! | Module | Tests |
//! |---|---|
//! | [`faithful`] | that the fake daemons do as the proto says |
//! | [`paper_laws`] | that the API server of paper does as a real one |
//! | [`conditions`] | what a guard's status says when one thing is otherwise, and what is not sent then |
//! | [`chaos`] | that everything is as it should be again, whatever has happened meanwhile |
//! | [`replicas`] | that of two controllers never both act |
//! | [`sim`] | time and memory with thousands of nodes |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "tests of the cluster use the rest of it")]
#[path = "../cluster/binaries.rs"]
mod binaries;
mod certificates;
mod chance;
mod chaos;
mod conditions;
#[allow(dead_code, reason = "tests of the cluster use the rest of it")]
#[path = "../cluster/deputy.rs"]
mod deputy;
mod expected;
mod faithful;
#[allow(dead_code, unused_imports, reason = "a double can do more than the tests of today ask")]
mod fake;
mod host;
#[allow(dead_code, unused_imports, reason = "a double can do more than the tests of today ask")]
mod paper;
mod paper_laws;
#[path = "../cluster/pki.rs"]
mod pki;
mod process;
#[path = "../cluster/program.rs"]
mod program;
mod replicas;
#[allow(dead_code, reason = "tests of the cluster use the rest of it")]
#[path = "../cluster/server.rs"]
mod server;
mod sim;
mod stage;
#[allow(dead_code, reason = "tests of the cluster use the rest of it")]
#[path = "../cluster/user.rs"]
mod user;
#[allow(dead_code, reason = "tests of the cluster use the rest of it")]
#[path = "../kernel/watchdog.rs"]
mod watchdog;
mod world;

use std::io::Write;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use self::binaries::Set;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == deputy::WORD) {
        return deputy::main();
    }
    let mut arguments = Arguments::from_args();
    // Few CPUs, and tests that measure time.
    arguments.test_threads.get_or_insert(1);
    let modules = [faithful::TESTS, paper_laws::TESTS, conditions::TESTS, chaos::TESTS, replicas::TESTS, sim::TESTS];
    let trials = modules.into_iter().flatten().map(Test::trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One test, as its module lists it.
struct Test {
    name: &'static str,
    run: fn(),
    /// Too long for every day.
    long: bool,
    /// Needs a real API server.
    real: bool,
}

impl Test {
    const fn new(name: &'static str, run: fn()) -> Test {
        Test { name, run, long: false, real: false }
    }

    const fn long(self) -> Test {
        Test { long: true, ..self }
    }

    const fn real(self) -> Test {
        Test { real: true, ..self }
    }

    fn trial(&'static self) -> Trial {
        let name = self.name.strip_prefix("controller::").unwrap_or(self.name);
        let run = move || {
            if self.real
                && let Err(lack) = binaries::kubernetes(Set::Api)
            {
                // Straight to stderr: a skipped test must not look like one that passed.
                writeln!(std::io::stderr(), "SKIPPED {name}: needs {lack}")?;
                return match std::env::var_os("JANUS_SKIP_IS_FAILURE") {
                    Some(value) if value == "1" => Err(Failed::from("skipped, and JANUS_SKIP_IS_FAILURE is set")),
                    _ => Ok(Completion::ignored_with(format!("needs {lack}"))),
                };
            }
            (self.run)();
            Ok(Completion::Completed)
        };
        Trial::ignorable_test(name, run).with_ignored_flag(self.long)
    }
}

/// The tests of a module, by function name.
macro_rules! controller_tests {
    ($($name:ident $(.$method:ident())*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::new(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method())*
        ),*];
    };
}
use controller_tests;

/// Straight to stderr: a run is long, and who waits wants to see it.
fn say(line: &str) {
    let _lost = writeln!(std::io::stderr(), "{line}");
}
