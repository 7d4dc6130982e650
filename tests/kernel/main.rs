//! The real kernel: routes, meaning, load, updates and deaths, against the `janusd` binary.
//!
//! Flow: a [`case::Case`] builds a container or a directory, starts `janusd` on it, and has *agents* (this same binary,
//! started again as `__agent`) open, read, list and execute files there. janusd never denies itself and this process
//! keeps out of the guarded places, so every answer that a test sees was given to an agent.
//!
//! Guarantees: nothing outlives its test (mounts live in the agents' own mount namespaces, processes die with their
//! parent, a watchdog ends a test that hangs); and every test that sees a denial is run a second time as its own
//! *control*, without janusd, where whatever must be denied must succeed: a test that cannot fail fails.
//!
//! Needs: CAP_SYS_ADMIN, except `input`. Without it a test says `SKIPPED` on stderr and counts as ignored;
//! `JANUS_SKIP_IS_FAILURE=1` makes that a failure. `JANUS_TEST_SECONDS` shortens the load tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod agent;
mod atomic_writer;
mod case;
mod commands;
mod container;
mod crowd;
mod daemon;
mod directory;
mod fapolicyd;
mod faults;
mod floods;
mod floor;
mod found;
mod fuse;
mod hammer;
mod ignored;
mod in_process;
mod input;
mod life;
mod limits;
mod lines;
mod load;
mod manifest;
mod matrix;
mod meaning;
mod measure;
mod metrics;
mod patterns;
mod pods;
mod protocol;
mod raw;
mod rights;
mod root;
mod routes;
mod serve;
mod stuck;
mod update;
mod volumes;
mod watchdog;
mod who;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::thread::{CapabilitySet, capabilities};

use case::{Case, Janus};
use watchdog::Watchdog;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == agent::WORD) {
        return agent::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == who::WORD) {
        return who::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == crowd::WORD) {
        return crowd::main();
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == rights::WORD) {
        return rights::main();
    }
    let mut arguments = Arguments::from_args();
    // Few CPUs, and latency is asserted.
    arguments.test_threads.get_or_insert(1);
    let modules = [
        input::TESTS,
        commands::TESTS,
        routes::TESTS,
        volumes::TESTS,
        directory::TESTS,
        meaning::TESTS,
        who::TESTS,
        patterns::TESTS,
        pods::TESTS,
        found::TESTS,
        serve::TESTS,
        serve::faults::TESTS,
        serve::handover::TESTS,
        serve::hangs::TESTS,
        serve::held::TESTS,
        serve::strangers::TESTS,
        lines::TESTS,
        update::TESTS,
        ignored::TESTS,
        life::TESTS,
        faults::TESTS,
        limits::TESTS,
        rights::TESTS,
        floods::TESTS,
        stuck::TESTS,
        load::TESTS,
        matrix::readme::TESTS,
        matrix::TESTS,
        matrix::races::TESTS,
    ];
    let mut trials: Vec<Trial> = modules.into_iter().flatten().flat_map(Test::trials).collect();
    trials.extend(measure::MEASURES.iter().map(measure::trial));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One test, as its module lists it.
struct Test {
    name: &'static str,
    run: fn(&Case),
    /// Whether it needs CAP_SYS_ADMIN.
    privileged: bool,
    /// Whether it has a control: the same run without janusd.
    control: bool,
    deadline: Duration,
    /// A program that not every machine has.
    program: Option<&'static str>,
}

impl Test {
    /// A test of denials on the real kernel, with its control.
    const fn kernel(name: &'static str, run: fn(&Case)) -> Test {
        Test { name, run, privileged: true, control: true, deadline: Duration::from_secs(30), program: None }
    }

    /// A test that denies nothing: it only runs commands.
    const fn command(name: &'static str, run: fn(&Case)) -> Test {
        Test { name, run, privileged: false, control: false, deadline: Duration::from_secs(30), program: None }
    }

    const fn privileged(self) -> Test {
        Test { privileged: true, ..self }
    }

    /// Without a control: for what is true by itself when there is no janusd.
    const fn without_control(self) -> Test {
        Test { control: false, ..self }
    }

    const fn lasting(self, seconds: u64) -> Test {
        Test { deadline: Duration::from_secs(seconds), ..self }
    }

    const fn needing(self, program: &'static str) -> Test {
        Test { program: Some(program), ..self }
    }

    fn trials(&'static self) -> Vec<Trial> {
        let short = self.name.strip_prefix("kernel::").unwrap_or(self.name);
        let mut trials = vec![self.trial(short.to_owned(), Janus::Guards)];
        if self.control {
            trials.push(self.trial(format!("{short}::control"), Janus::Absent).with_kind("control"));
        }
        trials
    }

    fn trial(&'static self, name: String, janus: Janus) -> Trial {
        Trial::ignorable_test(name.clone(), move || {
            let lacks = if self.privileged && !may_mount_and_mark() {
                Some("CAP_SYS_ADMIN")
            } else {
                self.program.filter(|program| !is_installed(program))
            };
            if let Some(lack) = lacks {
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
        let watchdog = Watchdog::start(self.deadline);
        let case = Case::new(janus, watchdog.watch());
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)(&case)));
        drop(case);
        match (watchdog.stop(), outcome) {
            (true, _) => Err(Failed::from(format!("not done after {:?}: its processes were killed", self.deadline))),
            (false, Ok(())) => Ok(Completion::Completed),
            (false, Err(panic)) => resume_unwind(panic),
        }
    }
}

/// The tests of a module, by function name.
macro_rules! kernel_tests {
    ($($name:ident $(.$method:ident($($argument:expr)?))*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::kernel(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($argument)?))*
        ),*];
    };
}
/// As [`kernel_tests`], for tests that only run commands.
macro_rules! command_tests {
    ($($name:ident $(.$method:ident($($argument:expr)?))*),* $(,)?) => {
        pub(crate) const TESTS: &[crate::Test] = &[$(
            crate::Test::command(concat!(module_path!(), "::", stringify!($name)), $name)$(.$method($($argument)?))*
        ),*];
    };
}
use {command_tests, kernel_tests};

fn may_mount_and_mark() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|at| at.join(program).exists()))
}
