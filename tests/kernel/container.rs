//! The test's side of an agent, and the places where agents act: a container, a directory of the disk.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::agent;
use crate::matrix::races::Raced;
use crate::matrix::room::Room;
use crate::matrix::stage::{Cue, Played};
use crate::protocol::{Act, Openers, Outcome, Reply, Request, Tally, Timing, open};
use crate::root;
use crate::watchdog::{Watch, kernel_pid, wait_until};

/// A process that acts for the test.
pub(crate) struct Agent {
    process: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    /// The process that serves: `process` itself, or a container's PID 1, which is its child.
    serving: Option<OwnedFd>,
    /// Its pid, as the host counts.
    pub(crate) pid: u32,
}

impl Agent {
    pub(crate) fn start(watch: &Watch, mode: &[&Path]) -> Agent {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(agent::WORD)
            .args(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary can be started again");
        watch.process(process.id());
        let pipes = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut agent = Agent { process, pipes: RefCell::new(pipes), serving: None, pid: 0 };
        let Reply::Serving(pid) = agent.reply() else { panic!("an agent that does not say its pid") };
        agent.pid = pid;
        agent.serving = pidfd_open(kernel_pid(pid), PidfdFlags::empty()).ok();
        watch.process(pid);
        agent
    }

    fn reply(&self) -> Reply {
        let mut line = String::new();
        self.pipes.borrow_mut().1.read_line(&mut line).expect("an agent that answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("agent {}: {error}: {line:?}", self.pid))
    }

    fn ask(&self, request: &Request) -> Reply {
        let line = serde_json::to_string(request).unwrap();
        writeln!(self.pipes.borrow_mut().0, "{line}").expect("an agent that listens");
        self.reply()
    }

    /// One act, and what came of it.
    pub(crate) fn act(&self, act: Act) -> Outcome {
        self.after([], act)
    }

    /// An act straight after others, with no turn of the test's own between: those must succeed.
    pub(crate) fn after<const N: usize>(&self, before: [Act; N], last: Act) -> Outcome {
        let acts: Vec<Act> = before.into_iter().chain([last]).collect();
        outcome_of_last(&acts, self.ask(&Request::Perform(acts.clone())))
    }

    /// The same, as seen in a mount namespace made for this.
    pub(crate) fn after_in_new_mount_namespace<const N: usize>(&self, before: [Act; N], last: Act) -> Outcome {
        let acts: Vec<Act> = before.into_iter().chain([last]).collect();
        outcome_of_last(&acts, self.ask(&Request::PerformInNewMountNamespace(acts.clone())))
    }

    /// A preparation: it must succeed.
    pub(crate) fn prepare<const N: usize>(&self, acts: [Act; N]) {
        for act in acts {
            let outcome = self.act(act.clone());
            assert!(outcome.is_ok(), "{act:?}: {outcome:?}");
        }
    }

    pub(crate) fn open(&self, path: impl AsRef<Path>) -> Outcome {
        self.act(open(path.as_ref()))
    }

    /// How long an act takes.
    pub(crate) fn time(&self, act: Act, times: usize) -> Timing {
        let Reply::Timed(timing) = self.ask(&Request::Time(act, times)) else { panic!("no time") };
        timing
    }

    /// A route of the matrix: to be prepared, or to be tried.
    pub(crate) fn play(&self, cue: Cue) -> Played {
        let Reply::Played(played) = self.ask(&Request::Play(cue)) else { panic!("no answer to a cue") };
        played
    }

    /// A race, run to its end.
    pub(crate) fn race(&self, room: Room) -> Result<Raced, String> {
        let Reply::Raced(raced) = self.ask(&Request::Race(room)) else { panic!("no tally of a race") };
        raced
    }

    /// Threads that open `paths` until they are stopped, and do so by now.
    pub(crate) fn start_openers(&self, threads: usize, paths: &[impl AsRef<Path>]) -> Load<'_> {
        let load = self.load(Openers { threads, paths: names(paths), once: false });
        // Anybody may be stuck already, so nobody insists on all of them.
        assert!(wait_until(Duration::from_secs(5), || load.opened() > 0), "no opener got an answer");
        load
    }

    /// Threads that open one path each, once.
    pub(crate) fn start_openers_once(&self, threads: usize, paths: &[impl AsRef<Path>]) -> Load<'_> {
        self.load(Openers { threads, paths: names(paths), once: true })
    }

    fn load(&self, openers: Openers) -> Load<'_> {
        assert!(matches!(self.ask(&Request::StartOpeners(openers)), Reply::Started));
        Load { agent: self }
    }
}

fn names(paths: &[impl AsRef<Path>]) -> Vec<OsString> {
    paths.iter().map(|path| path.as_ref().into()).collect()
}

fn outcome_of_last(acts: &[Act], reply: Reply) -> Outcome {
    let Reply::Performed(index, outcome) = reply else { panic!("{acts:?} answered with {reply:?}") };
    let outcome = outcome.map_err(Errno::from_raw_os_error);
    assert_eq!(index + 1, acts.len(), "stopped at {:?}: {outcome:?}", acts.get(index));
    outcome
}

impl Drop for Agent {
    /// PID 1 of a container takes all of its namespace with it; whoever started it reaps it and ends.
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            let _ended_before = pidfd_send_signal(serving, Signal::KILL);
        }
        if !wait_until(Duration::from_secs(2), || matches!(self.process.try_wait(), Ok(Some(_)) | Err(_))) {
            let _ended_since = self.process.kill();
            let _reaped = self.process.wait();
        }
    }
}

/// Openers at work in an agent.
pub(crate) struct Load<'a> {
    agent: &'a Agent,
}

impl Load<'_> {
    /// How many opens have been answered so far.
    pub(crate) fn opened(&self) -> u64 {
        let Reply::Opened(count) = self.agent.ask(&Request::Opened) else { panic!("no count of opens") };
        count
    }

    /// How many of the agent's threads wait in the kernel for an answer (state D).
    pub(crate) fn waiting(&self) -> usize {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.agent.pid)) else {
            return 0;
        };
        let waits = |stat: &String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D"));
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok()).filter(waits).count()
    }

    /// Tells them to stop, and waits until every one has.
    pub(crate) fn stop(self) -> Tally {
        self.ended(&Request::StopOpeners)
    }

    /// Waits until every one has opened once.
    pub(crate) fn join(self) -> Tally {
        self.ended(&Request::AwaitOpeners)
    }

    fn ended(&self, request: &Request) -> Tally {
        let Reply::Stopped(tally) = self.agent.ask(request) else { panic!("no tally") };
        tally
    }
}

/// A container: see [`root`] for what is in it.
pub(crate) struct Container {
    agent: Agent,
    scratch: PathBuf,
}

impl Container {
    pub(crate) fn start(watch: &Watch, scratch: PathBuf) -> Container {
        fs::create_dir(&scratch).unwrap();
        let agent = Agent::start(watch, &["container".as_ref(), &scratch]);
        Container { agent, scratch }
    }

    /// One that has its emptyDir in common with another.
    pub(crate) fn start_beside(watch: &Watch, scratch: PathBuf, other: &Container) -> Container {
        fs::create_dir(&scratch).unwrap();
        let volumes = Path::new(root::EMPTY_DIR).parent().unwrap();
        fs::create_dir_all(scratch.join(volumes.parent().unwrap())).unwrap();
        std::os::unix::fs::symlink(other.scratch.join(volumes), scratch.join(volumes)).unwrap();
        let agent = Agent::start(watch, &["container".as_ref(), &scratch]);
        Container { agent, scratch }
    }

    /// One with an empty root and the pid namespace of the node, by an agent of the mode `bare` or `half`.
    pub(crate) fn start_bare(watch: &Watch, mode: &str, scratch: &Path) -> Agent {
        fs::create_dir(scratch).unwrap();
        Agent::start(watch, &[mode.as_ref(), scratch])
    }

    /// A path of the container as the host may write it.
    pub(crate) fn seen_from_host(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Where a volume of the container lies on the disk.
    pub(crate) fn on_disk(&self, volume: &str) -> PathBuf {
        self.scratch.join(volume)
    }
}

impl Deref for Container {
    type Target = Agent;
    fn deref(&self) -> &Agent {
        &self.agent
    }
}

/// A plain directory of the node's disk, filled like a container's root, and a process of the host that acts in it.
pub(crate) struct Directory {
    agent: Agent,
    pub(crate) path: PathBuf,
}

impl Directory {
    pub(crate) fn start(watch: &Watch, path: PathBuf) -> Directory {
        fs::create_dir(&path).unwrap();
        root::fill(&path).unwrap();
        Directory { agent: host(watch), path }
    }

    /// A path of the guarded root, as the host sees it.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        root::below(&self.path, Path::new(path))
    }
}

impl Deref for Directory {
    type Target = Agent;
    fn deref(&self) -> &Agent {
        &self.agent
    }
}

/// A process of the host.
pub(crate) fn host(watch: &Watch) -> Agent {
    Agent::start(watch, &["host".as_ref()])
}
