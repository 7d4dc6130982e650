//! A deputy: a process of this binary that starts programs for the tests, here or in namespaces of their own, and ends
//! them when the tests end.
//!
//! Flow: one JSON value a line, requests in, replies out. What programs write that are left running goes to files in the
//! deputy's scratch directory.
//!
//! Guarantees: when the tests' end of the pipe closes, even because the tests were killed, the deputy kills what it has
//! started, and the scratch directory is removed. When the deputy itself is killed the kernel kills the programs.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::program::{self, Output};
use crate::watchdog::{kernel_pid, wait_until};

/// The argument that makes the test binary a deputy.
pub(crate) const WORD: &str = "__deputy";

/// How long it may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Runs a program to its end, or kills it at the limit; it reads the text.
    Run(Program, String, Duration),
    /// Starts a program and leaves it running; its output goes to two files.
    Start(Program, Log),
    /// Sends a signal to what was started.
    Signal(u32, i32),
    /// How what was started has ended, if it has.
    Ended(u32),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// Its pid, or that of the first process of its namespace, as whoever started it counts.
    Serving(u32),
    Ran(Output),
    Started(u32),
    Done,
    Ended(Option<String>),
    Failed(String),
}

/// What of a [`Command`] reaches the deputy. The directory is the deputy's, and so are its other variables.
#[derive(Debug, Serialize, Deserialize)]
struct Program {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

/// Where a program writes to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Log {
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Program {
    fn of(command: &Command) -> Program {
        let set = |(name, value): (&OsStr, Option<&OsStr>)| Some((name.to_owned(), value?.to_owned()));
        Program {
            program: command.get_program().to_owned(),
            arguments: command.get_args().map(OsString::from).collect(),
            variables: command.get_envs().filter_map(set).collect(),
        }
    }
}

/// The tests' side.
#[derive(Clone)]
pub(crate) struct Deputy(Arc<Served>);

struct Served {
    scratch: PathBuf,
    /// What the tests have started: the deputy, or whoever started that.
    process: Mutex<Child>,
    first: u32,
    line: Mutex<Line>,
}

/// The pipe to the deputy. Replies come through a thread, so that every wait can have a deadline.
struct Line {
    /// None: taken down.
    requests: Option<ChildStdin>,
    replies: mpsc::Receiver<String>,
    started: u32,
}

impl Deputy {
    /// One on this machine.
    pub(crate) fn start() -> Deputy {
        // From here on it is the deputy's to remove.
        let scratch = TempDir::with_prefix("janus-cluster-").unwrap().keep();
        let mut launcher = Command::new(std::env::current_exe().unwrap());
        launcher.arg(WORD).arg(&scratch);
        Deputy::launch(&mut launcher, scratch)
    }

    /// One that a program makes, which sees to it that `scratch` is removed.
    pub(crate) fn launch(launcher: &mut Command, scratch: PathBuf) -> Deputy {
        launcher.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Whoever interrupts the tests does not interrupt the one that cleans up after them.
        let mut process = launcher.process_group(0).spawn().unwrap();
        let requests = process.stdin.take();
        let replies = lines(BufReader::new(process.stdout.take().unwrap()));
        let mut line = Line { requests, replies, started: 0 };
        let Reply::Serving(first) = line.reply(PATIENCE) else { panic!("no deputy") };
        Deputy(Arc::new(Served { scratch, process: Mutex::new(process), first, line: Mutex::new(line) }))
    }

    /// Its pid, or that of the first process of its namespace: once that is killed all it has started ends.
    pub(crate) fn first(&self) -> u32 {
        self.0.first
    }

    /// A directory that ends with it. Paths in it are short enough for sockets.
    pub(crate) fn scratch(&self) -> &Path {
        &self.0.scratch
    }

    /// Runs a program to its end, or kills it at the limit.
    pub(crate) fn run(&self, command: &Command, stdin: &str, limit: Duration) -> Output {
        let request = Request::Run(Program::of(command), stdin.to_owned(), limit);
        match self.0.line().ask(&request, limit + PATIENCE) {
            Reply::Ran(output) => output,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// Starts a program.
    pub(crate) fn spawn(&self, command: &Command) -> Process {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut line = self.0.line();
        line.started += 1;
        let log = self.scratch().join(format!("{name}-{}", line.started));
        let log = Log { stdout: log.with_extension("out"), stderr: log.with_extension("err") };
        match line.ask(&Request::Start(Program::of(command), log.clone()), PATIENCE) {
            Reply::Started(pid) => Process { deputy: self.clone(), pid, log },
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// Kills it, as an accident would.
    pub(crate) fn kill(&self) {
        let mut process = self.0.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        process.kill().unwrap();
        process.wait().unwrap();
        self.0.line().requests = None;
    }
}

impl Served {
    fn line(&self) -> std::sync::MutexGuard<'_, Line> {
        // A test that has panicked meanwhile does not keep the others from cleaning up.
        self.line.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn end(&self) {
        // It reads to the end of this pipe; everything else follows.
        let Some(requests) = self.line().requests.take() else { return };
        drop(requests);
        let mut process = self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut status = None;
        wait_until(2 * PATIENCE, || {
            status = process.try_wait().ok().flatten();
            status.is_some()
        });
        if status.is_none_or(|status| !status.success()) {
            // What it has started dies with it.
            let _ended_since = process.kill();
            let _reaped = process.wait();
            let _lost = writeln!(io::stderr(), "{}: not cleaned up: {status:?}", self.scratch.display());
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

impl Line {
    fn ask(&mut self, request: &Request, limit: Duration) -> Reply {
        let requests = self.requests.as_mut().expect("the deputy was taken down");
        writeln!(requests, "{}", serde_json::to_string(request).unwrap()).expect("the deputy listens");
        self.reply(limit)
    }

    fn reply(&mut self, limit: Duration) -> Reply {
        let line = self.replies.recv_timeout(limit).expect("the deputy answers");
        serde_json::from_str(&line).unwrap()
    }
}

fn lines(stream: impl BufRead + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in stream.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A program that a deputy has started. It runs until it ends, or is ended, or the deputy is.
pub(crate) struct Process {
    deputy: Deputy,
    pub(crate) pid: u32,
    log: Log,
}

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        let reply = self.deputy.0.line().ask(&Request::Signal(self.pid, signal.as_raw()), PATIENCE);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn ended(&self) -> Option<String> {
        match self.deputy.0.line().ask(&Request::Ended(self.pid), PATIENCE) {
            Reply::Ended(how) => how,
            other => panic!("{other:?}"),
        }
    }

    /// Ends it, and waits until it has ended: how.
    pub(crate) fn end(&self, signal: Signal, limit: Duration) -> String {
        if self.ended().is_none() {
            self.signal(signal);
        }
        let mut how = None;
        wait_until(limit, || {
            how = self.ended();
            how.is_some()
        });
        how.unwrap_or_else(|| panic!("{signal:?} has not ended it within {limit:?}: {}", self.stderr()))
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.log.stdout)
    }

    /// What it has written so far.
    pub(crate) fn stderr(&self) -> String {
        read(&self.log.stderr)
    }
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

/// The deputy's side, for one on this machine.
pub(crate) fn main() -> ExitCode {
    let Some(scratch) = std::env::args_os().nth(2).map(PathBuf::from) else { return ExitCode::FAILURE };
    match serve(std::process::id()).and(fs::remove_dir_all(&scratch)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _lost = writeln!(io::stderr(), "{}: {error}", scratch.display());
            ExitCode::FAILURE
        }
    }
}

/// Does what the tests ask for, until they ask for no more.
pub(crate) fn serve(first: u32) -> io::Result<()> {
    let mut started = BTreeMap::new();
    let served = answer_all(first, &mut started);
    for process in started.values_mut() {
        // Ended already, most likely.
        let _ended = process.kill();
        let _reaped = process.wait();
    }
    served
}

fn answer_all(first: u32, started: &mut BTreeMap<u32, Child>) -> io::Result<()> {
    let mut replies = io::stdout();
    let mut reply = |reply: &Reply| -> io::Result<()> {
        writeln!(replies, "{}", serde_json::to_string(reply)?)?;
        replies.flush()
    };
    reply(&Reply::Serving(first))?;
    for line in io::stdin().lock().lines() {
        let answer = perform(serde_json::from_str(&line?)?, started);
        reply(&answer.unwrap_or_else(|error| Reply::Failed(error.to_string())))?;
    }
    Ok(())
}

fn perform(request: Request, started: &mut BTreeMap<u32, Child>) -> io::Result<Reply> {
    match request {
        Request::Run(program, stdin, limit) => {
            let mut command = Command::new(program.program);
            command.args(program.arguments).envs(program.variables);
            program::run(command, &stdin, limit).map(Reply::Ran)
        }
        Request::Start(program, log) => {
            // It is this thread that must stay: the signal comes when the thread that started the program ends.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program.program).args(program.arguments);
            command.envs(program.variables).stdin(Stdio::null());
            command.stdout(File::create(log.stdout)?).stderr(File::create(log.stderr)?);
            let process = command.spawn()?;
            let pid = process.id();
            started.insert(pid, process);
            Ok(Reply::Started(pid))
        }
        Request::Signal(pid, signal) => {
            let signal = Signal::from_named_raw(signal).ok_or_else(|| io::Error::other("no such signal"))?;
            kill_process(kernel_pid(pid), signal)?;
            Ok(Reply::Done)
        }
        Request::Ended(pid) => {
            let status = match started.get_mut(&pid) {
                Some(process) => process.try_wait()?,
                None => return Err(io::Error::other("not started here")),
            };
            Ok(Reply::Ended(status.map(|status| status.to_string())))
        }
    }
}
