//! Hundreds of guards in one process: what they take, from the start of the first to the end of the last.
//!
//! Flow: this binary starts itself again as `__crowd measure`, in a mount namespace of its own, so that nothing else of the
//! test run is in its memory and no mount is left behind. There it makes roots of one [`Kind`], arms a guard on each from
//! a few threads, as `janusd` does, and says what it saw on one line. A root of kind `containers` is a process
//! (`__crowd root`) with its own mounts and its own root.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use janusd::commands::engine::Engine;
use janusd::events::EventFormat;
use janusd::guard::{Guard, Roots};
use janusd::metrics::Metrics;
use janusd::root::Root;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Signal, pivot_root, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::agent::enter_new_mount_namespace;
use crate::manifest;
use crate::watchdog::Watch;

/// The argument that makes the test binary a crowd, or a member of one.
pub(crate) const WORD: &str = "__crowd";

/// Threads that arm side by side.
const ARMING: usize = 3;

/// What is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Directories of one disk.
    Directories,
    /// A tmpfs each.
    Tmpfs,
    /// A process each, with a mount namespace and a tmpfs as its root.
    Containers,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Directories, Kind::Tmpfs, Kind::Containers];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Directories => "directories",
            Kind::Tmpfs => "tmpfs",
            Kind::Containers => "containers",
        }
    }
}

/// What a process takes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Takes {
    pub(crate) rss_kb: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
    /// Of user and system time, seconds.
    pub(crate) cpu: f64,
}

impl Takes {
    fn now() -> Takes {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap_or_default()
        };
        Takes {
            rss_kb: field("VmRSS"),
            threads: field("Threads"),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count() as u64,
            // Last: counting descriptors takes time as well.
            cpu: Takes::cpu(),
        }
    }

    fn cpu() -> f64 {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
    }
}

/// What a crowd has seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Guards that are in force.
    pub(crate) guards: usize,
    /// Why others are not.
    pub(crate) refused: Vec<String>,
    pub(crate) armed_seconds: f64,
    pub(crate) arming_cpu: f64,
    pub(crate) marks: u64,
    pub(crate) before: Takes,
    pub(crate) after: Takes,
    pub(crate) idle_seconds: f64,
    pub(crate) idle_cpu: f64,
    pub(crate) stopped_seconds: f64,
    pub(crate) all_stopped: bool,
    /// After the last one has ended.
    pub(crate) left: Takes,
}

/// Arms so many guards, leaves them alone for `idle`, stops them.
pub(crate) fn run(watch: &Watch, scratch: &Path, kind: Kind, guards: usize, idle: Duration) -> Seen {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([WORD, "measure", kind.word(), &guards.to_string(), &idle.as_millis().to_string()])
        .arg(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    watch.process(child.id());
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "the crowd failed: {said}");
    serde_json::from_str(said.trim()).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

pub(crate) fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome =
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from).and_then(|()| match words[..] {
            ["measure", kind, guards, idle, scratch] => {
                let kind = Kind::ALL.into_iter().find(|known| known.word() == kind).unwrap();
                measure(kind, guards.parse().unwrap(), Duration::from_millis(idle.parse().unwrap()), scratch.as_ref())
            }
            ["root"] => be_root(),
            _ => Err(io::Error::other(format!("unknown crowd {words:?}"))),
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "crowd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A small root, with what a guard of an application would name.
fn fill(root: &Path) -> io::Result<()> {
    for directory in ["etc", "app/keys", "app/data", "proc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for file in ["etc/passwd", "etc/shadow", "app/main", "app/keys/server.key", "app/data/rows"] {
        fs::write(root.join(file), file)?;
    }
    Ok(())
}

/// A container: its own mounts, its own root; ends with its stdin.
fn be_root() -> io::Result<()> {
    enter_new_mount_namespace()?;
    // Over something that every machine has; nobody but us sees it.
    let root = Path::new("/mnt");
    mount("tmpfs", root, "tmpfs", MountFlags::empty(), None)?;
    fill(root)?;
    std::env::set_current_dir(root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")?;
    println!("there");
    io::stdin().read_to_end(&mut Vec::new()).map(drop)
}

/// A process with a small root of its own; it ends when its stdin is closed.
pub(crate) fn start_root() -> io::Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([WORD, "root"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said)?;
    Ok(child)
}

enum Place {
    Directory(PathBuf),
    Process(Child),
}

impl Place {
    fn new(kind: Kind, at: PathBuf) -> io::Result<Place> {
        if kind == Kind::Containers {
            return Ok(Place::Process(start_root()?));
        }
        fs::create_dir(&at)?;
        if kind == Kind::Tmpfs {
            mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None)?;
        }
        fill(&at)?;
        Ok(Place::Directory(at))
    }

    fn root(&self) -> Root {
        match self {
            Place::Directory(path) => Root::of_directory(path).unwrap(),
            Place::Process(child) => Root::of_process(child.id().cast_signed()).unwrap(),
        }
    }
}

const SUBJECTS: [&str; 2] = [
    "{deny: [/app/keys, '/etc/*shadow'], allow: [/app/keys/public], events: [open], log: Denied}",
    "{deny: [/app/data], events: [open, access], log: None, except: [{origins: [Owner]}]}",
];

fn measure(kind: Kind, guards: usize, idle: Duration, scratch: &Path) -> io::Result<()> {
    enter_new_mount_namespace()?;
    let places: Vec<Place> = (0..guards)
        .map(|number| Place::new(kind, scratch.join(format!("root-{number}"))))
        .collect::<io::Result<_>>()?;
    let specs: Vec<_> = (0..guards)
        .map(|number| {
            let text = manifest::guard_with(&format!("guard-{number}"), &[], &SUBJECTS);
            Arc::new(janusd::manifest::parse("crowd", text.as_bytes()).unwrap().remove(0))
        })
        .collect();
    let engine = Engine::start(EventFormat::Guard, guards as u64).unwrap_or_else(|failed| panic!("{:?}", failed.lines));
    let metrics = Metrics::default();
    let before = Takes::now();

    let (next, started) = (AtomicUsize::new(0), Instant::now());
    let arm = || {
        let mut armed = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(spec) = specs.get(number) else { return armed };
            let handles = metrics.guard(spec.name());
            armed.push(
                Guard::start(spec.clone(), Roots::One(places[number].root()), None, handles, &engine.shared)
                    .map_err(|error| error.to_string()),
            );
        }
    };
    let armed: Vec<Result<Guard, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ARMING).map(|_| scope.spawn(arm)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let armed_seconds = started.elapsed().as_secs_f64();
    let (mut in_force, mut refused) = (Vec::new(), Vec::new());
    for guard in armed {
        match guard {
            Ok(guard) => in_force.push(guard),
            Err(error) => refused.push(error),
        }
    }
    let armed_cpu = Takes::cpu();
    // What arming left to be done in the background is not idleness.
    std::thread::sleep(Duration::from_millis(500));
    let after = Takes::now();
    let idled = Instant::now();
    std::thread::sleep(idle);
    let (idle_seconds, idle_cpu) = (idled.elapsed().as_secs_f64(), Takes::cpu() - after.cpu);

    let marks = in_force.iter().map(|guard| guard.report().marks.total()).sum();
    let count = in_force.len();
    let stopping = Instant::now();
    in_force.iter().for_each(Guard::begin_stop);
    let mut all_stopped = true;
    for guard in in_force {
        all_stopped &= guard.stop(Duration::from_secs(10));
    }
    let stopped_seconds = stopping.elapsed().as_secs_f64();
    let left = Takes::now();
    engine.finish(all_stopped, Duration::from_secs(1));
    let seen = Seen {
        guards: count,
        refused,
        armed_seconds,
        arming_cpu: armed_cpu - before.cpu,
        marks,
        before,
        after,
        idle_seconds,
        idle_cpu,
        stopped_seconds,
        all_stopped,
        left,
    };
    for place in places {
        if let Place::Process(mut child) = place {
            drop(child.stdin.take());
            child.wait()?;
        }
    }
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}
