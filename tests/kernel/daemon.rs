//! `janusd` as a user starts it: its command line, its two streams, its signals, its end.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::agent;
use crate::case::{Case, free_address};
use crate::container::{Container, Directory};
use crate::metrics::Metrics;
use crate::watchdog::{Watch, kernel_pid, wait_until};

/// What is tested; JANUS_TEST_JANUSD names another build of it, so that figures need no second build of everything.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("JANUS_TEST_JANUSD").map_or_else(|| env!("CARGO_BIN_EXE_janusd").into(), PathBuf::from)
}

/// How long janusd may take to put a guard in force, and to hand over a line or a count.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is guarded.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    Pid(u32),
    Root(&'a Path),
}

impl<'a> From<&'a Container> for Target<'a> {
    fn from(container: &'a Container) -> Self {
        Target::Pid(container.pid)
    }
}

impl<'a> From<&'a Directory> for Target<'a> {
    fn from(directory: &'a Directory) -> Self {
        Target::Root(&directory.path)
    }
}

/// `janusd guard`, or in a control nothing at all.
pub(crate) struct Janusd(Option<Running>);

impl Janusd {
    pub(crate) fn absent() -> Janusd {
        Janusd(None)
    }

    pub(crate) fn start(case: &Case, target: Target<'_>, manifest: &str, arguments: &[&str]) -> Janusd {
        Janusd::start_on(case, None, target, manifest, arguments)
    }

    /// The same, in the mount namespace of a process that stands for the node.
    pub(crate) fn start_on(
        case: &Case,
        node: Option<u32>,
        target: Target<'_>,
        manifest: &str,
        arguments: &[&str],
    ) -> Janusd {
        let file = case.scratch("guard.yaml");
        fs::write(&file, manifest).unwrap();
        let admin = free_address();
        let mut command = match node {
            None => Command::new(program()),
            Some(pid) => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args([agent::WORD, "enter", &pid.to_string()]).arg(program());
                command
            }
        };
        command.arg("guard").arg("-f").arg(&file).arg("--admin-listen").arg(admin.to_string()).args(arguments);
        match target {
            Target::Pid(pid) => command.arg("--pid").arg(pid.to_string()),
            Target::Root(root) => command.arg("--root").arg(root),
        };
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        case.watch.process(process.id());
        let stdout = Lines::collect(process.stdout.take().unwrap());
        let stderr = Lines::collect(process.stderr.take().unwrap());
        let mut running = Running { process, stdout, stderr, admin, manifest: file };
        let ended = |running: &mut Running| running.process.try_wait().unwrap();
        wait_until(PATIENCE, || running.times_ready() > 0 || ended(&mut running).is_some());
        assert!(running.times_ready() > 0, "janusd is not ready: {:?}", ended(&mut running));
        Janusd(Some(running))
    }

    /// What only a real janusd can be asked.
    pub(crate) fn running(&self) -> Option<&Running> {
        self.0.as_ref()
    }

    /// Has it read another manifest, and waits until that is in force.
    pub(crate) fn update(&self, manifest: &str) {
        let Some(running) = &self.0 else { return };
        let before = running.times_ready();
        running.rewrite(manifest);
        running.signal(Signal::HUP);
        assert!(wait_until(PATIENCE, || running.times_ready() > before), "no `ready:` after SIGHUP");
    }

    /// Ends it with signals, and asserts that it ends well and soon.
    pub(crate) fn end<const N: usize>(&mut self, signals: [Signal; N]) {
        let Some(running) = &mut self.0 else { return };
        let asked = Instant::now();
        for signal in signals {
            running.signal(signal);
        }
        let status = running.wait(PATIENCE);
        assert_eq!(status.and_then(|status| status.code()), Some(0), "after {signals:?}: {status:?}");
        let elapsed = asked.elapsed();
        assert!(elapsed < Duration::from_secs(1), "took {elapsed:?} to end after {signals:?}");
    }

    /// Whether it has ended without being asked to.
    pub(crate) fn ended_by_itself(&mut self) -> bool {
        self.0.as_mut().is_some_and(|running| running.wait(Duration::ZERO).is_some())
    }

    /// `kill -9`, with no chance to say goodbye.
    pub(crate) fn kill(&mut self) {
        let Some(running) = &mut self.0 else { return };
        running.signal(Signal::KILL);
        assert!(running.wait(PATIENCE).is_some(), "janusd outlives SIGKILL");
    }
}

/// A running `janusd guard`.
pub(crate) struct Running {
    process: Child,
    stdout: Lines,
    stderr: Lines,
    admin: SocketAddr,
    manifest: PathBuf,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(kernel_pid(self.pid()), signal).unwrap();
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait_until(limit, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        status
    }

    /// Replaces the manifest file as an editor does: janusd never sees half of it.
    pub(crate) fn rewrite(&self, manifest: &str) {
        let aside = self.manifest.with_extension("new");
        fs::write(&aside, manifest).unwrap();
        fs::rename(aside, &self.manifest).unwrap();
    }

    /// The guards and marks of every `ready: <n> guards, <m> marks` so far.
    pub(crate) fn ready(&self) -> Vec<(u64, u64)> {
        self.stderr.all().iter().filter_map(|line| parse_ready(&String::from_utf8_lossy(line))).collect()
    }

    pub(crate) fn times_ready(&self) -> usize {
        self.ready().len()
    }

    /// What it said on stderr, lossily.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.stderr.all().join(&b'\n')).into_owned()
    }

    /// Waits until stderr holds all of `words`, on one line.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) {
        let said = || self.said().lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(wait_until(PATIENCE, said), "no line with {words:?} on stderr");
    }

    /// The event lines so far, as bytes.
    pub(crate) fn lines(&self) -> Vec<Vec<u8>> {
        self.stdout.all()
    }

    /// From now on nobody takes lines out of the pipe.
    pub(crate) fn stop_reading_lines(&self) {
        self.stdout.paused.store(true, Ordering::Relaxed);
    }

    /// Waits for an event line, and gives it.
    #[track_caller]
    pub(crate) fn line(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        wait_until(PATIENCE, || {
            let lines = self.lines();
            found = lines.iter().map(|line| String::from_utf8_lossy(line)).find(|line| wanted(line)).map(Into::into);
            found.is_some()
        });
        let lines = || self.lines().iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>();
        found.unwrap_or_else(|| panic!("no line {what} among {:#?}", lines()))
    }

    /// Waits for a line that holds all of `words`.
    #[track_caller]
    pub(crate) fn line_with(&self, words: &[&str]) -> String {
        self.line(&format!("with {words:?}"), |line| words.iter().all(|word| line.contains(word)))
    }

    /// The counters, now.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.admin)
    }

    /// The status and body of a route of the admin server.
    pub(crate) fn get(&self, route: &str) -> (u16, String) {
        crate::metrics::get(self.admin, route)
    }

    /// How many events were answered, of those with these labels.
    pub(crate) fn events(&self, labels: &[(&str, &str)]) -> u64 {
        self.metrics().sum("janus_guard_events_total", labels)
    }

    /// Waits until that is `expected`: counts are handed over after the answer.
    #[track_caller]
    pub(crate) fn counts(&self, labels: &[(&str, &str)], expected: u64) {
        let mut counted = 0;
        wait_until(PATIENCE, || {
            counted = self.events(labels);
            counted == expected
        });
        assert_eq!(counted, expected, "events with {labels:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _lost = writeln!(std::io::stderr(), "--- janusd said:\n{}\n---", self.said());
        }
        let _ended_before = self.process.kill();
        let _reaped = self.process.wait();
        self.stdout.paused.store(false, Ordering::Relaxed);
    }
}

fn parse_ready(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.split_once("ready: ")?;
    let (guards, marks) = counts.split_once(" guards, ")?;
    Some((guards.parse().ok()?, marks.trim_end().strip_suffix(" marks")?.parse().ok()?))
}

/// The lines of a stream, as they come.
pub(crate) struct Lines {
    collected: Arc<Mutex<Vec<Vec<u8>>>>,
    paused: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Lines {
    pub(crate) fn collect(stream: impl Read + Send + 'static) -> Lines {
        let lines = Lines { collected: Arc::default(), paused: Arc::default(), ended: Arc::default() };
        let (collected, paused) = (Arc::clone(&lines.collected), Arc::clone(&lines.paused));
        let ended = Arc::clone(&lines.ended);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                collected.lock().unwrap().push(line);
                wait_until(Duration::MAX, || !paused.load(Ordering::Relaxed));
            }
            ended.store(true, Ordering::Release);
        });
        lines
    }

    fn at_end(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// What has come so far, lossily.
    pub(crate) fn text(&self) -> String {
        self.all().iter().map(|line| String::from_utf8_lossy(line).into_owned() + "\n").collect()
    }

    fn all(&self) -> Vec<Vec<u8>> {
        self.collected.lock().unwrap().clone()
    }
}

/// A `janusd` command that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Refused: exit 2, and stderr names all of these.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not named: {self:#?}");
        }
        assert!(!self.stderr.contains("ready:"), "something was enforced: {self:#?}");
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
    }
}

/// Runs a command of janusd to its end; the watchdog sees to it that there is one.
pub(crate) fn run<A: AsRef<OsStr>>(watch: &Watch, arguments: &[A], stdin: &[u8]) -> Ended {
    finish(watch, Command::new(program()).args(arguments), stdin)
}

/// The same, with its temporary files elsewhere.
pub(crate) fn run_with_temporary<A: AsRef<OsStr>>(watch: &Watch, arguments: &[A], temporary: &Path) -> Ended {
    finish(watch, Command::new(program()).args(arguments).env("TMPDIR", temporary), b"")
}

/// The same, without CAP_SYS_ADMIN.
pub(crate) fn run_without_rights<A: AsRef<OsStr>>(watch: &Watch, arguments: &[A]) -> Ended {
    let mut command = Command::new(std::env::current_exe().unwrap());
    finish(watch, command.args([agent::WORD, "unprivileged"]).arg(program()).args(arguments), b"")
}

/// Who runs a janusd that has little.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poor {
    /// Nobody else's, so that the kernel counts nobody else's groups with it.
    pub(crate) user: u32,
    pub(crate) open_files: Option<u32>,
}

/// Runs a command of janusd as such a user, until what it has said on stderr is enough (then it gets SIGTERM), or to its
/// end.
pub(crate) fn run_poorly<A: AsRef<OsStr>>(
    watch: &Watch,
    poor: &Poor,
    arguments: &[A],
    mut until: impl FnMut(&str) -> bool,
) -> Ended {
    let (user, files) = (poor.user.to_string(), poor.open_files.unwrap_or_default().to_string());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([agent::WORD, "poor", &user, &files]).arg(program()).args(arguments);
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    watch.process(process.id());
    let (stdout, stderr) =
        (Lines::collect(process.stdout.take().unwrap()), Lines::collect(process.stderr.take().unwrap()));
    wait_until(Duration::MAX, || process.try_wait().unwrap().is_some() || until(&stderr.text()));
    // It may have ended by itself.
    let _gone = kill_process(kernel_pid(process.id()), Signal::TERM);
    let status = process.wait().unwrap();
    // The last lines are on their way to us.
    wait_until(PATIENCE, || stdout.at_end() && stderr.at_end());
    Ended { code: status.code(), stdout: stdout.text(), stderr: stderr.text() }
}

fn finish(watch: &Watch, command: &mut Command, stdin: &[u8]) -> Ended {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    watch.process(process.id());
    // It may well end without having read this.
    let _unread = process.stdin.take().unwrap().write_all(stdin);
    let output = process.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
