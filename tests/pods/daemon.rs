//! The daemon under test, `janusd serve` on the node: guards on pods, their state, their decisions and event lines, over
//! gRPC in plain text. In a control nothing at all.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use janus_proto::v1;
use janus_proto::v1::get_guard_state_response::Part;
use janus_proto::v1::janusd_client::JanusdClient;
use janus_proto::v1::watch_events_response::Part as Watched;
use rustix::process::Signal;
use serde_json::Value;
use tonic::transport::Channel;

use crate::node::{Node, Streams};
use crate::pod::Pod;
use crate::watchdog::wait_until;
use crate::wire;

/// How long the daemon may take for anything: a container is found after two seconds at the latest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Beyond the ten seconds after which a call is answered with what there is.
const CALL: Duration = Duration::from_secs(15);

const NODE: &str = "node-a";
const GUARD: &str = "0b8f3f5e-1111-4222-8333-944455556666";

pub(crate) struct Janusd(Option<Running>);

struct Running {
    node: Arc<Node>,
    pid: u32,
    streams: Streams,
    admin: String,
    client: JanusdClient<Channel>,
    decisions: Arc<Mutex<Vec<v1::Decision>>>,
    generation: AtomicI64,
}

/// How a guard is.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) phase: v1::GuardPhase,
    /// Selected containers that have started: name, id, whether the guard is in force there.
    pub(crate) containers: Vec<(String, String, bool)>,
    /// Reasons.
    pub(crate) problems: Vec<String>,
    pub(crate) marks: u64,
    /// Answers that were denials.
    pub(crate) denied: u64,
}

impl Janusd {
    pub(crate) fn absent() -> Janusd {
        Janusd(None)
    }

    pub(crate) fn start(node: &Arc<Node>) -> Janusd {
        Janusd::start_with(node, &[])
    }

    /// What it says of starts is in its log.
    pub(crate) fn start_with(node: &Arc<Node>, more: &[&str]) -> Janusd {
        let [listen, admin] = free_addresses();
        let agents = ["kubelet", "busybox"].map(|name| node.scratch(name).to_string_lossy().into_owned());
        let mut arguments = vec![
            "RUST_LOG=info,janusd::gate=debug",
            env!("CARGO_BIN_EXE_janusd"),
            "serve",
            "--insecure",
            "--listen",
            &listen,
            "--admin-listen",
            &admin,
            "--node-name",
            NODE,
            "--event-format",
            "json",
            "--node-agent",
            &agents[0],
            "--node-agent",
            &agents[1],
        ];
        arguments.extend(more);
        let (pid, streams) = node.spawn("env", &arguments);
        let client = JanusdClient::new(wire::connect_tcp(&listen));
        // From here on it is ended whatever happens.
        let running = Running {
            node: Arc::clone(node),
            pid,
            streams,
            admin,
            client,
            decisions: Arc::default(),
            generation: AtomicI64::new(1),
        };
        let serves = wait_until(PATIENCE, || running.states().is_ok() || running.node.ended(pid));
        assert!(serves && !running.node.ended(pid), "no daemon: {}", running.streams.stderr());
        running.watch();
        Janusd(Some(running))
    }

    /// Puts a guard on a pod, or another one in its place. Containers that have started are guarded by then: the answer.
    /// `None`: the control.
    pub(crate) fn guard(&self, pod: &Pod, manifest: &str) -> Option<State> {
        let state = self.create(pod, manifest)?;
        assert_eq!(state.phase, v1::GuardPhase::InForce, "{state:?}; {}", self.said());
        Some(state)
    }

    /// The same, where some of it cannot be in force.
    pub(crate) fn create(&self, pod: &Pod, manifest: &str) -> Option<State> {
        let running = self.0.as_ref()?;
        let request = v1::CreateGuardRequest {
            caller: caller(),
            guard: guard_ref(running.generation.fetch_add(1, Ordering::Relaxed)),
            pod: pod_ref(pod),
            spec: Some(spec(manifest)),
            container_ids: Vec::new(),
        };
        let mut client = running.client.clone();
        let answer = wire::wait_for(CALL, async move { client.create_guard(request).await });
        let answer = answer.unwrap_or_else(|status| panic!("{status}: {}", running.streams.stderr()));
        let state = State::from(answer.into_inner().state.expect("a state"));
        assert!(state.containers.iter().all(|(_, _, in_force)| *in_force), "{state:?}");
        Some(state)
    }

    /// Lifts the guard, and once more what is lifted.
    pub(crate) fn lift(&self, pod: &Pod) {
        let Some(running) = &self.0 else { return };
        for time in 1..=2 {
            let request = v1::DestroyGuardRequest {
                caller: caller(),
                guard: guard_ref(running.generation.load(Ordering::Relaxed)),
                pod: pod_ref(pod),
            };
            let mut client = running.client.clone();
            let answer = wire::wait_for(CALL, async move { client.destroy_guard(request).await });
            let answer = answer.unwrap_or_else(|status| panic!("{time}: {status}: {}", running.streams.stderr()));
            assert!(answer.into_inner().lifted, "{time}: {}", running.streams.stderr());
        }
        assert!(self.state(pod).is_none());
    }

    /// The guard's state. `None`: the control, or no guard.
    pub(crate) fn state(&self, pod: &Pod) -> Option<State> {
        let states = self.0.as_ref()?.states().unwrap_or_else(|status| panic!("{status}: {}", self.said()));
        let state = states.into_iter().find(|state| state.pod.as_ref().is_some_and(|of| of.uid == pod.uid));
        state.map(State::from)
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

    /// A counter or gauge, by name and labels as its line has them. 0: the control.
    #[track_caller]
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let Some(running) = &self.0 else { return 0.0 };
        let mut stream = TcpStream::connect(&running.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: janusd\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {sample} in {text}"))
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

    /// Waits for a decision on a path in a container, as the wire has it.
    #[track_caller]
    pub(crate) fn decision(&self, container: &str, path: &str, origin: v1::Origin, response: v1::Response) {
        let Some(running) = &self.0 else { return };
        let fits = |one: &v1::Decision| {
            one.container == container
                && one.path == path.as_bytes()
                && one.origin() == origin
                && one.response() == response
        };
        let found = wait_until(PATIENCE, || running.decisions().iter().any(fits));
        assert!(found, "no {origin:?} {response:?} of {path} in {:#?}", running.decisions());
    }

    /// Sends it a signal, if it is there.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(running) = &self.0 {
            running.node.signal(running.pid, signal);
        }
    }

    /// What it has said on stderr.
    pub(crate) fn said(&self) -> String {
        self.0.as_ref().map_or_else(String::new, |running| running.streams.stderr())
    }
}

impl Running {
    fn states(&self) -> Result<Vec<v1::GuardState>, tonic::Status> {
        let mut client = self.client.clone();
        wire::wait_for(CALL, async move {
            let request = v1::GetGuardStateRequest { digest: Vec::new() };
            let mut stream = client.get_guard_state(request).await?.into_inner();
            let (mut told, mut states) = (None, Vec::new());
            while let Some(message) = stream.message().await? {
                match message.part {
                    Some(Part::Header(header)) => told = Some(header.guards as usize),
                    Some(Part::Guard(state)) => states.push(state),
                    None => panic!("neither header nor guard"),
                }
            }
            assert_eq!(told, Some(states.len()));
            Ok(states)
        })
    }

    /// Collects decisions until the daemon goes.
    fn watch(&self) {
        let (mut client, decisions) = (self.client.clone(), Arc::clone(&self.decisions));
        let stream = wire::wait_for(CALL, async move { client.watch_events(v1::WatchEventsRequest::default()).await });
        let mut stream = stream.unwrap_or_else(|status| panic!("{status}: {}", self.streams.stderr())).into_inner();
        wire::spawn(async move {
            // An error is the daemon's end.
            while let Ok(Some(message)) = stream.message().await {
                if let Some(Watched::Decision(decision)) = message.part {
                    decisions.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(decision);
                }
            }
        });
    }

    fn decisions(&self) -> Vec<v1::Decision> {
        self.decisions.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl From<v1::GuardState> for State {
    fn from(state: v1::GuardState) -> State {
        let marks = state.marks.unwrap_or_default();
        let counters = state.counters.clone().unwrap_or_default();
        let denied = counters.events.iter().filter(|count| count.response() == v1::Response::Deny);
        State {
            phase: state.phase(),
            problems: state.problems.iter().map(|problem| problem.reason.clone()).collect(),
            marks: marks.inode + marks.mount + marks.filesystem,
            denied: denied.map(|count| count.count).sum(),
            containers: state.containers.into_iter().map(|one| (one.name, one.id, one.in_force)).collect(),
        }
    }
}

fn caller() -> Option<v1::Caller> {
    Some(v1::Caller { epoch: 1, node: NODE.to_owned() })
}

fn guard_ref(generation: i64) -> Option<v1::GuardRef> {
    Some(v1::GuardRef { uid: GUARD.to_owned(), namespace: "default".to_owned(), name: "g".to_owned(), generation })
}

fn pod_ref(pod: &Pod) -> Option<v1::PodRef> {
    let cgroup_uid = if pod.uid == pod.kubelet_uid { String::new() } else { pod.kubelet_uid.clone() };
    Some(v1::PodRef { uid: pod.uid.clone(), cgroup_uid, namespace: "default".to_owned(), name: pod.name.clone() })
}

/// What of a manifest these tests use, as a controller writes it.
fn spec(manifest: &str) -> v1::GuardSpec {
    let manifest: BTreeMap<String, Value> = serde_saphyr::from_str(manifest).unwrap();
    let spec = &manifest["spec"];
    let failure_policy = match spec["failurePolicy"].as_str() {
        Some("Deny") => v1::FailurePolicy::Deny,
        Some("Allow") | None => v1::FailurePolicy::Allow,
        Some(other) => panic!("{other}"),
    };
    v1::GuardSpec {
        containers: words(&spec["containers"]),
        subjects: spec["subjects"].as_array().unwrap().iter().map(subject).collect(),
        log_format: String::new(),
        enforcement: v1::Enforcement::Enforce.into(),
        failure_policy: failure_policy.into(),
    }
}

fn subject(subject: &Value) -> v1::Subject {
    use v1::Event::{Access, Execute, Open};
    let events = words(&subject["events"]).into_iter().flat_map(|word| match word.as_str() {
        "open" => vec![Open],
        "access" => vec![Access],
        "execute" => vec![Execute],
        "all" => vec![Open, Access, Execute],
        other => panic!("{other}"),
    });
    for key in subject.as_object().unwrap().keys() {
        assert!(["deny", "allow", "events", "autoAllowOwner"].contains(&key.as_str()), "{key} is not translated");
    }
    v1::Subject {
        deny: words(&subject["deny"]),
        allow: words(&subject["allow"]),
        events: events.map(i32::from).collect(),
        log: v1::LogPolicy::All.into(),
        auto_allow_owner: subject["autoAllowOwner"].as_bool().unwrap_or(false),
        ..Default::default()
    }
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Nobody listens there yet. The node is on our network.
fn free_addresses() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
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
