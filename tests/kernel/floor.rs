//! Speed, as ratios to a floor measured in the same run, in one table: `cargo test --release --workspace --test kernel --
//! --bench table`.
//!
//! The floor of an answered open is a loop that reads events and writes back allow, and does nothing else ([`Bare`]).
//! Floor and guard take turns, several rounds of each, so that whatever else the machine does meets both; what is printed
//! is the medians, their ratio, and the least and the greatest ratio of a round. Nothing fails here for being slow, but for `short`, which CI runs: its
//! bounds are ratios, and generous.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use janusd::policy::{Bindings, Event, Policy, Question};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::case::Case;
use crate::container::Agent;
use crate::daemon::{Janusd, Target};
use crate::fapolicyd::Fapolicyd;
use crate::protocol::{Act, Timing, execute, open};
use crate::raw::{self, BareGroup, Mark};
use crate::watchdog::{kernel_pid, wait_until};

/// What a guard in use looks like: thirty rules, three of them globs, an exception, the default line, metrics on.
fn real_policy() -> String {
    policy("except: [{origins: [Session]}], ")
}

/// The same with nobody excepted.
fn plain_policy() -> String {
    policy("")
}

fn policy(except: &str) -> String {
    let allowed: Vec<String> = (0..13).map(|n| format!("/srv/app/static/{n}")).collect();
    let denied: Vec<String> = (0..12).map(|n| format!("/srv/app/private/{n}")).collect();
    crate::manifest::guard(&[&format!(
        "{{allow: [/public, {}], deny: [/secret, {}, '/srv/**/*.key', '/home/*/.ssh', '/etc/{{shadow,gshadow}}'], \
             events: [open], {except}tags: {{team: web}}}}",
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

/// One row of the table: a figure against its floor, in rounds that were measured one after the other.
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    goal: Goal,
    /// Floor and figure of each round.
    rounds: Vec<(f64, f64)>,
}

/// When the goal is met.
#[derive(Clone, Copy)]
enum Goal {
    /// The figure is at most so many times the floor.
    AtMost(f64),
    /// The figure is at least so many times the floor.
    AtLeast(f64),
    /// The figure itself is at most that: it has no floor.
    Within(f64),
    /// None: it is told for comparison.
    Told,
    /// Neither: it is told.
    Alone,
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

impl Row {
    fn new(what: &str, unit: &'static str, goal: Goal) -> Row {
        Row { what: what.to_owned(), unit, goal, rounds: Vec::new() }
    }

    fn add(&mut self, floor: f64, figure: f64) {
        self.rounds.push((floor, figure));
    }

    fn floor(&self) -> f64 {
        median(self.rounds.iter().map(|(floor, _)| *floor))
    }

    fn figure(&self) -> f64 {
        median(self.rounds.iter().map(|(_, figure)| *figure))
    }

    /// Of the medians.
    fn ratio(&self) -> f64 {
        self.figure() / self.floor()
    }

    /// The least and the greatest ratio of a round.
    fn spread(&self) -> (f64, f64) {
        let ratios = || self.rounds.iter().map(|(floor, figure)| figure / floor);
        (ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max))
    }

    fn print(&self) {
        let (goal, met) = match self.goal {
            Goal::AtMost(bound) => (format!("<= {bound}x"), Some(self.ratio() <= bound)),
            Goal::AtLeast(bound) => (format!(">= {bound}x"), Some(self.ratio() >= bound)),
            Goal::Within(bound) => (format!("<= {bound}"), Some(self.figure() <= bound)),
            Goal::Told | Goal::Alone => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "met" } else { "MISSED" });
        let against = if matches!(self.goal, Goal::Within(_) | Goal::Alone) {
            [String::new(), String::new(), String::new()]
        } else {
            let (least, most) = self.spread();
            [format!("{:.2}", self.floor()), format!("{:.2}x", self.ratio()), format!("{least:.2} to {most:.2}")]
        };
        let [floor, ratio, spread] = against;
        println!(
            "  {:<62} {floor:>10} {:>10.2} {:<6} {ratio:>7} {goal:>8} {met:<6} {spread:>14}",
            self.what,
            self.figure(),
            self.unit,
        );
    }
}

fn header() {
    println!(
        "\n  {:<62} {:>10} {:>10} {:<6} {:>7} {:>8} {:<6} {:>14}",
        "medians of several rounds", "floor", "figure", "", "ratio", "goal", "", "ratio, spread"
    );
}

fn microseconds(timing: &Timing) -> (f64, f64) {
    (timing.median as f64 / 1e3, timing.percentile_99 as f64 / 1e3)
}

/// Everything that has a goal, in one table.
pub(crate) fn table(case: &Case) {
    println!("\n  {}", machine());
    header();
    for rows in [one_opener, many_openers, unasked, execs, tree, thousand_guards, core, peer] {
        rows(case).iter().for_each(Row::print);
    }
}

/// Some rows of it.
pub(crate) fn part(case: &Case, rows: fn(&Case) -> Vec<Row>) {
    header();
    rows(case).iter().for_each(Row::print);
}

/// What all this was measured on.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map_or("", |(_, it)| it);
    let kernel = rustix::system::uname();
    format!("{cpus} CPUs,{model}; Linux {}", kernel.release().to_string_lossy())
}

/// One opener at a time, pinned: the bare loop against the guard, allowed by a real policy; denied against allowed.
pub(crate) fn one_opener(case: &Case) -> Vec<Row> {
    let (rounds, opens) = (7, 5_000);
    let mut rows = Vec::new();
    for (name, cpu) in [("one CPU", 0), ("two CPUs", 1)] {
        let container = case.container_named(&format!("one-{cpu}"));
        pin(container.pid, 0);
        let file = container.seen_from_host("/public");
        let row = |what: &str, goal| Row::new(&format!("{what}, {name}"), "µs", goal);
        let mut median = row("allowed open, real policy, p50", Goal::AtMost(1.15));
        let mut tail = row("allowed open, real policy, p99", Goal::AtMost(1.3));
        let mut denied = row("denied open against an allowed one, p50", Goal::AtMost(1.0));
        let mut weighed = row("denied open, an exception weighed, p50", Goal::Told);
        for _ in 0..rounds {
            let bare = Bare::start(&file, Mark::Inode, Manner::Batched, Some(cpu));
            let floor = microseconds(&container.time(open("/public"), opens));
            drop(bare);
            let janusd = case.guard(&container, &real_policy());
            pin_all(pid(&janusd), cpu);
            let allowed = microseconds(&container.time(open("/public"), opens));
            median.add(floor.0, allowed.0);
            tail.add(floor.1, allowed.1);
            // What some are excepted from.
            case.denied(container.open("/secret"));
            weighed.add(allowed.0, microseconds(&container.time(open("/secret"), opens / 10)).0);
            drop(janusd);
            let janusd = case.guard(&container, &plain_policy());
            pin_all(pid(&janusd), cpu);
            let allowed = microseconds(&container.time(open("/public"), opens));
            case.denied(container.open("/secret"));
            denied.add(allowed.0, microseconds(&container.time(open("/secret"), opens)).0);
        }
        rows.extend([median, tail, denied, weighed]);
    }
    rows
}

fn pid(janusd: &Janusd) -> u32 {
    janusd.running().expect("a bench has no control").pid()
}

/// Two hundred openers at once, opens a second.
pub(crate) fn many_openers(case: &Case) -> Vec<Row> {
    crowd(case, 5, Duration::from_secs(1)).into()
}

fn rate(agent: &Agent, path: &Path, each: Duration) -> f64 {
    let load = agent.start_openers(200, &[path]);
    let (from, before) = (Instant::now(), load.opened());
    wait_until(each, || false);
    let rate = (load.opened() - before) as f64 / from.elapsed().as_secs_f64();
    load.stop();
    rate
}

fn crowd(case: &Case, rounds: usize, each: Duration) -> [Row; 2] {
    let container = case.container();
    let file = container.seen_from_host("/public");
    let rate = || rate(&container, Path::new("/public"), each);
    let mut batched = Row::new("200 openers, against the bare batched loop", "/s", Goal::AtLeast(0.85));
    let mut single = Row::new("200 openers, against the bare loop event by event", "/s", Goal::AtLeast(30.0));
    for _ in 0..rounds {
        let [together, apart] = [Manner::Batched, Manner::EventByEvent].map(|manner| {
            let _bare = Bare::start(&file, Mark::Inode, manner, None);
            rate()
        });
        let _janusd = case.guard(&container, &real_policy());
        let figure = rate();
        batched.add(together, figure);
        single.add(apart, figure);
    }
    [batched, single]
}

/// Opens that need no answer of ours, against opens without any guard.
pub(crate) fn unasked(case: &Case) -> Vec<Row> {
    let (rounds, opens) = (7, 20_000);
    let quiet = "{deny: [/denied], allow: [/public, /bin], events: [open], log: Denied}";
    let container = case.container_named("unasked");
    pin(container.pid, 0);
    // Elsewhere in the tree than what is denied: a sibling is always asked about.
    let mut unnamed = Row::new("file that no rule names, file-system mark, repeated", "µs", Goal::AtMost(1.15));
    let mut allowed = Row::new("allowed file, log: Denied, nobody excepted, repeated", "µs", Goal::AtMost(1.15));
    let [named, unruled] = ["/bin/true", "/etc/passwd"].map(open);
    for _ in 0..rounds {
        let p50 = |act: &Act| microseconds(&container.time(act.clone(), opens)).0;
        let floors = [p50(&unruled), p50(&named)];
        let _janusd = case.guard(&container, &crate::manifest::guard(&[quiet]));
        // Until then a file may be too fresh for the kernel to be told to answer by itself.
        wait_until(Duration::from_millis(2100), || false);
        for act in [&unruled, &named] {
            container.time(act.clone(), 10);
        }
        unnamed.add(floors[0], p50(&unruled));
        allowed.add(floors[1], p50(&named));
    }
    let directory = case.directory_named("unnamed");
    pin(directory.pid, 0);
    let far = directory.at("/far");
    fs::create_dir(&far).unwrap();
    fs::write(far.join("file"), "").unwrap();
    let named = far.join("file");
    let mut inode = Row::new("file that no rule names, inode marks on its file system", "µs", Goal::AtMost(1.02));
    for _ in 0..rounds {
        let floor = microseconds(&directory.time(open(&named), opens)).0;
        let _janusd = case.guard(&directory, &crate::manifest::guard(&["{deny: [/secret], events: [open]}"]));
        inode.add(floor, microseconds(&directory.time(open(&named), opens)).0);
    }
    vec![unnamed, allowed, inode]
}

/// An exec of an allowed program, under a guard on execution.
pub(crate) fn execs(case: &Case) -> Vec<Row> {
    let (rounds, execs) = (7, 200);
    let policy = crate::manifest::guard(&["{allow: [/bin/true], deny: [/bin/sh], events: [execute]}"]);
    let mut rows = Vec::new();
    let at_most = Goal::AtMost(1.1);
    for (number, (name, cpu, mark, goal)) in [
        ("one CPU, against no guard", 0, None, at_most),
        ("two CPUs, against the bare loop", 1, Some(Mark::Execute), at_most),
        // A guard has to ask about the open as well, or `ld.so program` would go unseen.
        ("two CPUs, the bare loop asked twice too", 1, Some(Mark::Both), Goal::Told),
    ]
    .into_iter()
    .enumerate()
    {
        let container = case.container_named(&format!("exec-{number}"));
        pin(container.pid, 0);
        let program = container.seen_from_host("/bin/true");
        let run: Act = execute("/bin/true", []);
        let mut row = Row::new(&format!("exec of an allowed program, {name}"), "µs", goal);
        for _ in 0..rounds {
            let bare = mark.map(|mark| Bare::start(&program, mark, Manner::Batched, Some(cpu)));
            let floor = microseconds(&container.time(run.clone(), execs)).0;
            drop(bare);
            let janusd = case.guard(&container, &policy);
            pin_all(pid(&janusd), cpu);
            row.add(floor, microseconds(&container.time(run.clone(), execs)).0);
        }
        rows.push(row);
    }
    rows
}

/// Arming a tree of 100,000 files.
fn tree(case: &Case) -> Vec<Row> {
    let seen = crate::measure::tree(case);
    let mut arming = Row::new("arming a tree of 100,000 files, an entry", "µs", Goal::Within(10.0));
    arming.add(1.0, seen.microseconds);
    let mut memory = Row::new("its memory in janusd, an entry", "bytes", Goal::Alone);
    memory.add(1.0, seen.bytes);
    vec![arming, memory]
}

/// A thousand guards in one process, each on a process with a root of its own.
fn thousand_guards(case: &Case) -> Vec<Row> {
    let seen = crate::measure::so_many_guards(case, crate::crowd::Kind::Containers, 1000);
    let row = |what: &str, unit, bound, figure| {
        let mut row = Row::new(&format!("1,000 guards: {what}"), unit, Goal::Within(bound));
        row.add(1.0, figure);
        row
    };
    vec![
        row("armed in", "s", 1.0, seen.armed_seconds),
        row("RSS in all", "MiB", 64.0, seen.after.rss_kb as f64 / 1024.0),
        row("idle, of a CPU", "%", 0.1, 100.0 * seen.idle_cpu / seen.idle_seconds),
    ]
}

/// The decision alone, of a thousand rules (`cargo bench --bench decide` tells more).
fn core(_: &Case) -> Vec<Row> {
    let mut row = Row::new("decision core alone, 1,000 rules", "µs", Goal::Within(1.0));
    let subjects: Vec<String> = (0..8)
        .map(|at| {
            let paths = |what: &str, count| {
                (0..count).map(|path| format!("/srv/{at}/{what}/{path}")).collect::<Vec<_>>().join(", ")
            };
            format!("{{allow: [{}], deny: [{}], events: [open]}}", paths("static", 100), paths("private", 25))
        })
        .collect();
    let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
    let manifest = crate::manifest::guard(&subjects);
    let spec = janusd::manifest::parse("bench", manifest.as_bytes()).unwrap().remove(0);
    let policy = Policy::new(&spec, &Bindings::default());
    for _ in 0..7 {
        let (times, names) = (100_000, [b"/srv/7/static/99/css/site/main.css".as_slice()]);
        let question = Question { event: Event::Open, directory: false, names: &names, mount: None, who: None };
        let started = Instant::now();
        for _ in 0..times {
            black_box(policy.decide(black_box(&question)));
        }
        row.add(1.0, started.elapsed().as_secs_f64() * 1e6 / f64::from(times));
    }
    vec![row]
}

/// fapolicyd, where it is installed: two hundred openers of one file, under it and under janusd.
pub(crate) fn peer(case: &Case) -> Vec<Row> {
    let Some(peer) = Fapolicyd::prepare(case) else { return Vec::new() };
    let mut many = Row::new("200 openers, against fapolicyd", "/s", Goal::Told);
    let mut one = Row::new("one opener, against fapolicyd, p50", "µs", Goal::Told);
    let agent = case.host();
    let each = Duration::from_secs(1);
    let policy = crate::manifest::guard(&["{allow: [/file], deny: [/denied], events: [open]}"]);
    for _ in 0..5 {
        let running = peer.start();
        let floors = (rate(&agent, &peer.file, each), microseconds(&agent.time(open(&peer.file), 5_000)).0);
        drop(running);
        let _janusd = case.guard(Target::Root(&peer.place), &policy);
        many.add(floors.0, rate(&agent, &peer.file, each));
        one.add(floors.1, microseconds(&agent.time(open(&peer.file), 5_000)).0);
    }
    vec![many, one]
}

/// What CI runs: a short form, which fails when a ratio is worse than a bound that noise does not reach.
pub(crate) fn short(case: &Case) {
    header();
    let [batched, single] = crowd(case, 3, Duration::from_millis(400));
    batched.print();
    single.print();
    assert!(batched.ratio() >= 0.25, "200 openers: {:.2} of the bare batched loop", batched.ratio());
    let container = case.container_named("short");
    let file = container.seen_from_host("/public");
    let mut median = Row::new("allowed open, real policy, p50", "µs", Goal::AtMost(1.15));
    for _ in 0..5 {
        let bare = Bare::start(&file, Mark::Inode, Manner::Batched, None);
        let floor = microseconds(&container.time(open("/public"), 2_000)).0;
        drop(bare);
        let _janusd = case.guard(&container, &real_policy());
        median.add(floor, microseconds(&container.time(open("/public"), 2_000)).0);
    }
    median.print();
    assert!(median.ratio() <= 3.0, "one opener: {:.2} times the bare loop", median.ratio());
}
