//! Speed, as ratios to a floor measured in the same run: `cargo test --release -p janusd --test kernel -- --bench floor`.
//!
//! The floor of an answered open is a loop that reads events and writes back allow, and does nothing else ([`Bare`]).
//! Floor and guard take turns, several rounds of each, so that whatever else the machine does meets both; what is printed
//! is the median of the rounds, and their spread. Nothing fails here for being slow, but for `short`, which CI runs: its
//! bounds are ratios, and generous.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::case::Case;
use crate::container::Agent;
use crate::daemon::Janusd;
use crate::protocol::{Act, Timing, execute, open};
use crate::raw::{self, BareGroup, Mark};
use crate::watchdog::{kernel_pid, wait_until};

/// What a guard in use looks like: thirty rules, three of them globs, an exception, the default line, metrics on.
fn real_policy() -> String {
    let allowed: Vec<String> = (0..13).map(|n| format!("/srv/app/static/{n}")).collect();
    let denied: Vec<String> = (0..13).map(|n| format!("/srv/app/private/{n}")).collect();
    crate::manifest::guard(&[&format!(
        "{{allow: [/public, {}], deny: [{}, '/srv/**/*.key', '/home/*/.ssh', '/etc/{{shadow,gshadow}}'], \
             events: [open], except: [{{origins: [Session]}}], tags: {{team: web}}}}",
        allowed.join(", "),
        denied.join(", ")
    )])
}

/// How a bare loop answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// One write and one close an event.
    EventByEvent,
    /// All that was read in one writev, and closed in one call.
    Batched,
}

/// A loop that allows everything, in this process.
struct Bare {
    stop: Arc<rustix::fd::OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Bare {
    /// Marks `path`, and answers for it. `cpu`: where it runs, if that matters.
    fn start(path: &Path, mark: Mark, manner: Manner, cpu: Option<usize>) -> Bare {
        let group = BareGroup::new().unwrap();
        group.mark(path, mark).unwrap();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            if let Some(cpu) = cpu {
                pin(0, cpu);
            }
            let mut events = raw::BareEvents::default();
            loop {
                let mut fds = [PollFd::new(&group, PollFlags::IN), PollFd::new(&*stopped, PollFlags::IN)];
                poll(&mut fds, None).unwrap();
                if !fds[1].revents().is_empty() {
                    return;
                }
                group.read(&mut events).unwrap();
                match manner {
                    Manner::EventByEvent => group.allow_one_by_one(&events).unwrap(),
                    Manner::Batched => group.allow_all(&events).unwrap(),
                }
            }
        });
        Bare { stop, thread: Some(thread) }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A thread to a CPU; 0 is whoever calls.
fn pin(thread: u32, cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let thread = (thread != 0).then(|| kernel_pid(thread));
    sched_setaffinity(thread, &cpus).unwrap();
}

fn pin_all(process: u32, cpu: usize) {
    for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
        let thread = thread.file_name().to_string_lossy().parse().unwrap();
        pin(thread, cpu);
    }
}

/// Figures of several rounds.
#[derive(Default, Clone)]
struct Rounds(Vec<f64>);

impl Rounds {
    fn add(&mut self, figure: f64) {
        self.0.push(figure);
        self.0.sort_by(f64::total_cmp);
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn spread(&self) -> (f64, f64) {
        (self.0[0], self.0[self.0.len() - 1])
    }
}

/// One row of the table. `bound`: the ratio at which the goal is met, at most or at least.
struct Row {
    what: String,
    unit: &'static str,
    goal: Goal,
    floor: Rounds,
    figure: Rounds,
}

#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    fn new(what: &str, unit: &'static str, goal: Goal) -> Row {
        Row { what: what.to_owned(), unit, goal, floor: Rounds::default(), figure: Rounds::default() }
    }

    fn ratio(&self) -> f64 {
        self.figure.median() / self.floor.median()
    }

    fn print(&self) {
        let ratio = self.ratio();
        let (goal, met) = match self.goal {
            Goal::AtMost(bound) => (format!("<= {bound}"), ratio <= bound),
            Goal::AtLeast(bound) => (format!(">= {bound}"), ratio >= bound),
        };
        let (least, most) = self.figure.spread();
        println!(
            "  {:<66} {:>9.2} {:>9.2} {:<5} {:>6.2}x {:>8} {:<6} {:>9.2} to {:.2}",
            self.what,
            self.floor.median(),
            self.figure.median(),
            self.unit,
            ratio,
            goal,
            if met { "met" } else { "MISSED" },
            least,
            most,
        );
    }
}

fn header() {
    println!(
        "\n  {:<66} {:>9} {:>9} {:<5} {:>7} {:>8} {:<6} {:>12}",
        "", "floor", "figure", "", "ratio", "goal", "", "spread"
    );
}

fn microseconds(timing: &Timing) -> (f64, f64) {
    (timing.median as f64 / 1e3, timing.percentile_99 as f64 / 1e3)
}

/// One opener at a time, pinned: the bare loop against the guard, allowed by a real policy; denied against allowed.
pub(crate) fn one_opener(case: &Case) {
    let (rounds, opens) = (7, 5_000);
    header();
    for (name, cpu) in [("one CPU", 0), ("two CPUs", 1)] {
        let container = case.container_named(&format!("one-{cpu}"));
        pin(container.pid, 0);
        let file = container.seen_from_host("/public");
        let mut median = Row::new(&format!("allowed open, real policy, {name}, p50"), "µs", Goal::AtMost(1.15));
        let mut tail = Row::new(&format!("allowed open, real policy, {name}, p99"), "µs", Goal::AtMost(1.3));
        let mut denied = Row::new(&format!("denied open against an allowed one, {name}, p50"), "µs", Goal::AtMost(1.0));
        for _ in 0..rounds {
            let bare = Bare::start(&file, Mark::Inode, Manner::Batched, Some(cpu));
            let (p50, p99) = microseconds(&container.time(open("/public"), opens));
            median.floor.add(p50);
            tail.floor.add(p99);
            drop(bare);
            let janusd = case.guard(&container, &real_policy());
            pin_all(pid(&janusd), cpu);
            let allowed = microseconds(&container.time(open("/public"), opens));
            median.figure.add(allowed.0);
            tail.figure.add(allowed.1);
            denied.floor.add(allowed.0);
            denied.figure.add(microseconds(&container.time(open("/etc/shadow"), opens)).0);
        }
        [median, tail, denied].iter().for_each(Row::print);
    }
}

fn pid(janusd: &Janusd) -> u32 {
    janusd.running().expect("a bench has no control").pid()
}

/// Two hundred openers at once, opens a second.
pub(crate) fn many_openers(case: &Case) {
    let [batched, single] = crowd(case, 5, Duration::from_secs(1));
    header();
    batched.print();
    single.print();
}

fn crowd(case: &Case, rounds: usize, each: Duration) -> [Row; 2] {
    let container = case.container();
    let file = container.seen_from_host("/public");
    let rate = |agent: &Agent| {
        let load = agent.start_openers(200, &["/public"]);
        let (from, before) = (Instant::now(), load.opened());
        wait_until(each, || false);
        let rate = (load.opened() - before) as f64 / from.elapsed().as_secs_f64();
        load.stop();
        rate
    };
    let mut batched = Row::new("200 openers, against the bare batched loop", "/s", Goal::AtLeast(0.85));
    let mut single = Row::new("200 openers, against the bare loop event by event", "/s", Goal::AtLeast(30.0));
    for _ in 0..rounds {
        for (row, manner) in [(&mut batched, Manner::Batched), (&mut single, Manner::EventByEvent)] {
            let _bare = Bare::start(&file, Mark::Inode, manner, None);
            row.floor.add(rate(&container));
        }
        let _janusd = case.guard(&container, &real_policy());
        let figure = rate(&container);
        batched.figure.add(figure);
        single.figure.add(figure);
    }
    [batched, single]
}

/// Opens that need no answer of ours, against opens without any guard; and execs.
pub(crate) fn unasked(case: &Case) {
    let (rounds, opens) = (7, 20_000);
    header();
    let quiet = "{deny: [/denied], allow: [/public], events: [open], log: Denied}";
    let container = case.container();
    pin(container.pid, 0);
    // Elsewhere in the tree than what is denied: a sibling is always asked about.
    let mut unnamed = Row::new("file that no rule names, file-system mark, repeated", "µs", Goal::AtMost(1.15));
    for _ in 0..rounds {
        unnamed.floor.add(microseconds(&container.time(open("/bin/true"), opens)).0);
        let _janusd = case.guard(&container, &crate::manifest::guard(&[quiet]));
        wait_until(Duration::from_millis(2100), || false);
        container.time(open("/bin/true"), 10);
        unnamed.figure.add(microseconds(&container.time(open("/bin/true"), opens)).0);
    }
    unnamed.print();
    let directory = case.directory();
    pin(directory.pid, 0);
    let far = directory.at("/far");
    fs::create_dir(&far).unwrap();
    fs::write(far.join("file"), "").unwrap();
    let named = far.join("file");
    let mut inode = Row::new("file that no rule names, inode marks on its file system", "µs", Goal::AtMost(1.02));
    for _ in 0..rounds {
        inode.floor.add(microseconds(&directory.time(open(&named), opens)).0);
        let _janusd = case.guard(&directory, &crate::manifest::guard(&["{deny: [/secret], events: [open]}"]));
        inode.figure.add(microseconds(&directory.time(open(&named), opens)).0);
    }
    inode.print();
}

/// An exec of an allowed program, under a guard on execution.
pub(crate) fn execs(case: &Case) {
    let (rounds, execs) = (7, 200);
    header();
    let policy = crate::manifest::guard(&["{allow: [/bin/true], deny: [/bin/sh], events: [execute]}"]);
    for (name, cpu) in [("one CPU, against no guard", 0), ("two CPUs, against the bare loop", 1)] {
        let container = case.container_named(&format!("exec-{cpu}"));
        pin(container.pid, 0);
        let program = container.seen_from_host("/bin/true");
        let run: Act = execute("/bin/true", []);
        let mut row = Row::new(&format!("exec of an allowed program, {name}, p50"), "µs", Goal::AtMost(1.1));
        for _ in 0..rounds {
            let bare = (cpu == 1).then(|| Bare::start(&program, Mark::Execute, Manner::Batched, Some(cpu)));
            row.floor.add(microseconds(&container.time(run.clone(), execs)).0);
            drop(bare);
            let janusd = case.guard(&container, &policy);
            pin_all(pid(&janusd), cpu);
            row.figure.add(microseconds(&container.time(run.clone(), execs)).0);
        }
        row.print();
    }
}

/// What CI runs: a short form, which fails when a ratio is worse than a bound that noise does not reach.
pub(crate) fn short(case: &Case) {
    let [batched, single] = crowd(case, 3, Duration::from_millis(400));
    batched.print();
    single.print();
    assert!(batched.ratio() >= 0.25, "200 openers: {:.2} of the bare batched loop", batched.ratio());
    let container = case.container_named("short");
    let file = container.seen_from_host("/public");
    let mut median = Row::new("allowed open, real policy, p50", "µs", Goal::AtMost(1.15));
    for _ in 0..5 {
        let bare = Bare::start(&file, Mark::Inode, Manner::Batched, None);
        median.floor.add(microseconds(&container.time(open("/public"), 2_000)).0);
        drop(bare);
        let _janusd = case.guard(&container, &real_policy());
        median.figure.add(microseconds(&container.time(open("/public"), 2_000)).0);
    }
    median.print();
    assert!(median.ratio() <= 3.0, "one opener: {:.2} times the bare loop", median.ratio());
}
