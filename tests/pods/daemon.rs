//! The daemon under test, on the node: guards on pods, their state, their event lines. In a control nothing at all.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::guards::{Ask, State, Told};
use crate::inside;
use crate::node::{Node, Streams};
use crate::pod::Pod;
use crate::watchdog::wait_until;

/// How long the daemon may take for anything: a container is found after two seconds at the latest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Janusd(Option<Running>);

struct Running {
    node: Arc<Node>,
    pid: u32,
    streams: Streams,
    connection: Mutex<BufReader<UnixStream>>,
}

impl Janusd {
    pub(crate) fn absent() -> Janusd {
        Janusd(None)
    }

    pub(crate) fn start(node: &Arc<Node>) -> Janusd {
        let socket = format!("/run/guards-{}", node.number());
        let agents = ["kubelet", "busybox"].map(|name| node.scratch(name).to_string_lossy().into_owned());
        let program = std::env::current_exe().unwrap();
        let (pid, streams) = node.spawn(program, &[inside::WORD, "guards", &socket, &agents[0], &agents[1]]);
        let mut connected = None;
        wait_until(PATIENCE, || {
            connected = UnixStream::connect(node.path(&socket)).ok();
            connected.is_some() || node.ended(pid)
        });
        let Some(connected) = connected else { panic!("no daemon: {}", streams.stderr()) };
        connected.set_read_timeout(Some(PATIENCE)).unwrap();
        let connection = Mutex::new(BufReader::new(connected));
        Janusd(Some(Running { node: Arc::clone(node), pid, streams, connection }))
    }

    /// Puts a guard on a pod, or another one in its place. Containers that have started are guarded by then.
    pub(crate) fn guard(&self, pod: &Pod, manifest: &str) {
        let Some(running) = &self.0 else { return };
        running.done(&Ask::Create(pod.kubelet_uid.clone(), pod.name.clone(), manifest.to_owned()));
    }

    /// Lifts the guard.
    pub(crate) fn lift(&self, pod: &Pod) {
        let Some(running) = &self.0 else { return };
        running.done(&Ask::Destroy(pod.kubelet_uid.clone()));
    }

    /// The guard's state. `None`: the control.
    pub(crate) fn state(&self, pod: &Pod) -> Option<State> {
        let running = self.0.as_ref()?;
        match running.ask(&Ask::State(pod.kubelet_uid.clone())) {
            Told::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the guard is in force in these containers and no others, by name.
    #[track_caller]
    pub(crate) fn in_force(&self, pod: &Pod, names: &[&str]) {
        if self.0.is_none() {
            return;
        }
        let mut state = None;
        let reached = wait_until(PATIENCE, || {
            state = self.state(pod);
            let Some(State { containers, .. }) = &state else { return false };
            let mut found: Vec<&str> = containers.iter().map(|(name, ..)| name.as_str()).collect();
            found.sort_unstable();
            found == names && containers.iter().all(|(_, _, in_force)| *in_force)
        });
        assert!(reached, "not in force in {names:?}: {state:?}; {}", self.said());
    }

    /// Event lines, as JSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let Some(running) = &self.0 else { return Vec::new() };
        let stdout = running.streams.stdout();
        // The last one may not be whole yet.
        let whole = stdout.rfind('\n').map_or("", |end| &stdout[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// Waits for a line with these values.
    #[track_caller]
    pub(crate) fn line_with(&self, values: &[(&str, &str)]) {
        if self.0.is_none() {
            return;
        }
        let fits = |line: &Value| values.iter().all(|(key, value)| line[*key] == *value);
        let found = wait_until(PATIENCE, || self.lines().iter().any(fits));
        assert!(found, "no line with {values:?} in {:#?}", self.lines());
    }

    /// What it has said on stderr.
    pub(crate) fn said(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |running| running.streams.stderr())
    }
}

impl Running {
    fn ask(&self, ask: &Ask) -> Told {
        let mut connection = self.connection.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        writeln!(connection.get_mut(), "{}", serde_json::to_string(ask).unwrap()).unwrap();
        let mut line = String::new();
        connection.read_line(&mut line).unwrap_or_else(|error| panic!("{ask:?}: {error}: {}", self.streams.stderr()));
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{ask:?}: {error}: {}", self.streams.stderr()))
    }

    fn done(&self, ask: &Ask) {
        let told = self.ask(ask);
        assert!(matches!(told, Told::Done), "{told:?}");
    }
}

impl Drop for Running {
    /// Also when its test fails: no guard outlives its test.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _lost = writeln!(std::io::stderr(), "the daemon said: {}", self.streams.stderr());
        }
        self.node.signal(self.pid, Signal::TERM);
        if !wait_until(PATIENCE, || self.node.ended(self.pid)) {
            self.node.signal(self.pid, Signal::KILL);
        }
    }
}
