//! Pods and containers, as a kubelet has the runtime make them.
//!
//! A pod's cgroup is `/<node>/kubepods/besteffort/pod<uid>`, its directory `/var/lib/kubelet/pods/<uid>`, with the
//! kubelet's layout of volumes in it. Pods are on the node's network, so that no CNI plugin is needed.
//!
//! In a container runs a shell, the *app*, that takes commands from a FIFO and tells what came of them: its children
//! are the container's own processes. An `exec` is a session from outside.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::cri::{
    HOST_TO_CONTAINER, LinuxSandbox, Mount, Namespaces, NewContainer, SandboxConfig, SandboxMetadata, SandboxSecurity,
    namespace,
};
use crate::image;
use crate::inside::Output;
use crate::node::Node;
use crate::watchdog::wait_until;

/// Where the FIFOs are, in a container.
const CONTROL: &str = "/control";

/// One line a command, one line an answer: exit status and output.
const APP: &str = "exec 3<>/control/ask 4<>/control/told
while IFS= read -r line <&3 && [ \"$line\" != END ]; do output=$(eval \"$line\" 2>&1); echo \"$? \"$output >&4; done";

/// How long the app may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an act gave: what was written, or what the process complained of.
pub(crate) type Outcome = Result<String, String>;

/// What programs and the runtime say of EPERM, in lower case.
const DENIED: &str = "operation not permitted";

/// The kubelet's directories for volumes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Volume {
    Secret(&'static str),
    ConfigMap(&'static str),
    EmptyDir(&'static str),
    /// A directory of the node, outside of the pod's.
    HostPath(&'static str),
    /// The kubelet's own hosts file, mounted on `/etc/hosts`.
    EtcHosts,
    /// The executable of an agent, mounted on `/busybox`.
    Agent,
}

impl Volume {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Volume::Secret(name) | Volume::ConfigMap(name) | Volume::EmptyDir(name) | Volume::HostPath(name) => name,
            Volume::EtcHosts => "etc-hosts",
            Volume::Agent => "agent",
        }
    }

    /// Where a container finds it.
    fn inside(self) -> String {
        match self {
            Volume::EtcHosts => "/etc/hosts".to_owned(),
            Volume::Agent => "/busybox".to_owned(),
            _ => format!("/volumes/{}", self.name()),
        }
    }
}

/// What a pod is made of.
pub(crate) struct Plan {
    /// Containers share the pod's pid namespace.
    pub(crate) shared_pids: bool,
    /// A static pod: its cgroup and its directory go by the hash of its manifest, not by its UID.
    pub(crate) from_file: bool,
    /// Which of the node's runtimes has it; empty: the default one.
    pub(crate) runtime: &'static str,
}

pub(crate) const PLAIN: Plan = Plan { shared_pids: false, from_file: false, runtime: "" };

/// A pod.
pub(crate) struct Pod {
    pub(crate) node: Arc<Node>,
    pub(crate) name: String,
    /// As the API server knows it.
    pub(crate) uid: String,
    /// As the kubelet's files and cgroups have it.
    pub(crate) kubelet_uid: String,
    sandbox: String,
    config: SandboxConfig,
}

impl Pod {
    /// Starts the sandbox: a pod without containers.
    pub(crate) fn start(node: &Arc<Node>, plan: &Plan) -> Pod {
        let number = node.number();
        let uid = format!("5a1f0b6e-8f5c-4f0e-9f3d-{number:012x}");
        let kubelet_uid = if plan.from_file { format!("{number:032x}") } else { uid.clone() };
        let name = format!("pod-{number}");
        let labels = [
            ("io.kubernetes.pod.uid", kubelet_uid.as_str()),
            ("io.kubernetes.pod.name", &name),
            ("io.kubernetes.pod.namespace", "default"),
        ];
        let pid = if plan.shared_pids { namespace::POD } else { namespace::CONTAINER };
        let namespaces = Namespaces { network: namespace::NODE, pid, ipc: namespace::POD };
        let config = SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: name.clone(),
                uid: kubelet_uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: String::new(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<HashMap<_, _>>(),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("{}/kubepods/besteffort/pod{kubelet_uid}", node.cgroup()),
                security: Some(SandboxSecurity { namespaces: Some(namespaces) }),
            }),
        };
        let sandbox = node.cri.run_sandbox(config.clone(), plan.runtime);
        let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {error}"));
        Pod { node: Arc::clone(node), name, uid, kubelet_uid, sandbox, config }
    }

    /// Where a volume lies on the node.
    pub(crate) fn on_node(&self, volume: Volume) -> String {
        let directory = format!("/var/lib/kubelet/pods/{}", self.kubelet_uid);
        match volume {
            Volume::Secret(name) => format!("{directory}/volumes/kubernetes.io~secret/{name}"),
            Volume::ConfigMap(name) => format!("{directory}/volumes/kubernetes.io~configmap/{name}"),
            Volume::EmptyDir(name) => format!("{directory}/volumes/kubernetes.io~empty-dir/{name}"),
            Volume::HostPath(name) => format!("/var/lib/node-data/{name}"),
            Volume::EtcHosts => format!("{directory}/etc-hosts"),
            Volume::Agent => self.node.scratch("busybox").to_string_lossy().into_owned(),
        }
    }

    /// Makes a volume, as the kubelet does before it has containers made.
    pub(crate) fn make(&self, volume: Volume) {
        let path = self.on_node(volume);
        let word = match volume {
            Volume::Secret(_) => "secret",
            Volume::ConfigMap(_) => "configmap",
            Volume::EmptyDir(_) | Volume::HostPath(_) => "empty-dir",
            Volume::EtcHosts => "etc-hosts",
            Volume::Agent => return,
        };
        let output = self.node.kubelet(word, &path);
        assert_eq!(output.code, Some(0), "{output:?}");
    }

    /// Starts a container with the app in it, and waits until that listens.
    pub(crate) fn start_app(&self, name: &str, volumes: &[Volume]) -> App {
        let control = self.control(name);
        let container = self.start_container(name, 0, &["/bin/sh", "-c", APP], volumes, Some(&control));
        App::listening(container, &self.node.path(&control))
    }

    /// The same container again, as the kubelet restarts it: another ID, nothing of the old root.
    pub(crate) fn restart_app(&self, ended: &App, volumes: &[Volume]) -> App {
        let (name, attempt) = (&ended.container.name, ended.container.attempt + 1);
        let control = self.control(name);
        let container = self.start_container(name, attempt, &["/bin/sh", "-c", APP], volumes, Some(&control));
        App::listening(container, &self.node.path(&control))
    }

    /// The same container again, with a script that tells one line at `/control/told`: and that line.
    pub(crate) fn restart_script(&self, ended: &App, script: &str) -> (App, String) {
        let (name, attempt) = (&ended.container.name, ended.container.attempt + 1);
        let control = self.control(name);
        let container = self.start_container(name, attempt, &["/bin/sh", "-c", script], &[], Some(&control));
        let app = App::of(container, &self.node.path(&control));
        let told = app.line(script);
        (app, told)
    }

    /// Starts a container with a command of its own.
    pub(crate) fn start_command(&self, name: &str, command: &[&str], volumes: &[Volume]) -> Container {
        self.start_container(name, 0, command, volumes, None)
    }

    /// Makes the FIFOs: their directory, as the node has it.
    fn control(&self, container: &str) -> String {
        let control = format!("/var/lib/control/{}/{container}-{}", self.name, self.node.number());
        let ours = self.node.path(&control);
        fs::create_dir_all(&ours).unwrap();
        for name in ["ask", "told"] {
            mknodat(CWD, ours.join(name), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        }
        control
    }

    fn start_container(
        &self,
        name: &str,
        attempt: u32,
        command: &[&str],
        volumes: &[Volume],
        control: Option<&str>,
    ) -> Container {
        let mut container = self.make_container(name, attempt, command, volumes, control);
        container.started = Instant::now();
        container.start().unwrap_or_else(|error| panic!("{error}"));
        container
    }

    /// Makes a container with a command of its own, and does not start it.
    pub(crate) fn make_command(&self, name: &str, command: &[&str], volumes: &[Volume]) -> Container {
        self.make_container(name, 0, command, volumes, None)
    }

    fn make_container(
        &self,
        name: &str,
        attempt: u32,
        command: &[&str],
        volumes: &[Volume],
        control: Option<&str>,
    ) -> Container {
        let mount = |host_path: String, container_path: String| Mount {
            container_path,
            host_path,
            readonly: false,
            propagation: HOST_TO_CONTAINER,
        };
        let control = control.map(|path| mount(path.to_owned(), CONTROL.to_owned()));
        let mounts =
            volumes.iter().map(|volume| mount(self.on_node(*volume), volume.inside())).chain(control).collect();
        let new = NewContainer {
            name: name.to_owned(),
            attempt,
            image: image::NAME.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            mounts,
        };
        let cri = &self.node.cri;
        let id = cri.create_container(&self.sandbox, &self.config, &new).unwrap_or_else(|error| panic!("{error}"));
        Container { node: Arc::clone(&self.node), name: name.to_owned(), id, attempt, started: Instant::now() }
    }

    /// The node's shell on a path: root, outside of every pod.
    pub(crate) fn host(&self, command: &[&str]) -> Outcome {
        outcome(self.node.run(command[0], &command[1..]))
    }

    /// A path of a container as the node's processes may write it.
    pub(crate) fn through(&self, container: &Container, path: &str) -> String {
        format!("/proc/{}/root{path}", container.pid())
    }

    /// Ends it, with all its containers.
    pub(crate) fn end(&self) {
        self.node.cri.stop_sandbox(&self.sandbox).unwrap_or_else(|error| panic!("{error}"));
        self.node.cri.remove_sandbox(&self.sandbox).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Pod {
    /// Also when its test fails: the next one finds an empty node. What cannot be removed ends with the node.
    fn drop(&mut self) {
        let _ended_before = self.node.cri.stop_sandbox(&self.sandbox);
        let _removed_before = self.node.cri.remove_sandbox(&self.sandbox);
    }
}

pub(crate) fn outcome(output: Output) -> Outcome {
    if output.code == Some(0) { Ok(output.stdout) } else { Err(format!("{:?} {}", output.code, output.stderr)) }
}

/// A started container.
pub(crate) struct Container {
    node: Arc<Node>,
    pub(crate) name: String,
    pub(crate) id: String,
    attempt: u32,
    /// When the runtime was told to start it.
    pub(crate) started: Instant,
}

impl Container {
    /// Has the runtime start it.
    pub(crate) fn start(&self) -> Result<(), String> {
        self.node.cri.start_container(&self.id).map_err(|error| error.to_string())
    }

    /// Its first process, as the node counts.
    pub(crate) fn pid(&self) -> u32 {
        let (_, pid) = self.node.cri.status(&self.id).unwrap_or_else(|error| panic!("{error}"));
        pid.expect("a container that runs")
    }

    /// `kubectl exec`.
    pub(crate) fn exec(&self, command: &[&str]) -> Outcome {
        let executed = self.node.cri.exec(&self.id, command).map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if executed.exit_code == 0 { Ok(text(&executed.stdout)) } else { Err(text(&executed.stderr)) }
    }

    /// `kubectl exec cat`.
    pub(crate) fn exec_cat(&self, path: &str) -> Outcome {
        self.exec(&["cat", path])
    }

    /// Kills it, and waits until the runtime knows.
    pub(crate) fn kill(&self) {
        self.node.cri.stop_container(&self.id).unwrap_or_else(|error| panic!("{error}"));
        self.ended();
    }

    /// Waits until it has ended: its exit code.
    pub(crate) fn ended(&self) -> i32 {
        let mut code = None;
        wait_until(PATIENCE, || {
            let (status, _) = self.node.cri.status(&self.id).unwrap_or_else(|error| panic!("{error}"));
            code = (status.state == crate::cri::EXITED).then_some(status.exit_code);
            code.is_some()
        });
        code.expect("a container that has ended")
    }

    pub(crate) fn remove(&self) {
        self.node.cri.remove_container(&self.id).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A container whose first process does what it is told.
pub(crate) struct App {
    container: Container,
    ask: File,
    told: File,
}

impl std::ops::Deref for App {
    type Target = Container;
    fn deref(&self) -> &Container {
        &self.container
    }
}

impl App {
    fn of(container: Container, control: &Path) -> App {
        let open = |name: &str| {
            // For both directions: neither end waits for the other to open it.
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            File::from(rustix::fs::open(control.join(name), flags, Mode::empty()).unwrap())
        };
        App { container, ask: open("ask"), told: open("told") }
    }

    fn listening(container: Container, control: &Path) -> App {
        let app = App::of(container, control);
        assert_eq!(app.act("echo here"), Ok("here".to_owned()));
        app
    }

    /// A command of the container's own: its output, on one line.
    pub(crate) fn act(&self, command: &str) -> Outcome {
        (&self.ask).write_all(format!("{command}\n").as_bytes()).unwrap();
        let line = self.line(command);
        let (status, output) = line.split_once(' ').unwrap_or((&line, ""));
        if status == "0" { Ok(output.to_owned()) } else { Err(output.to_owned()) }
    }

    /// Has its first process end by itself, and waits for that.
    pub(crate) fn end(&self) {
        (&self.ask).write_all(b"END\n").unwrap();
        assert_eq!(self.ended(), 0);
    }

    /// The next line that it tells.
    fn line(&self, about: &str) -> String {
        let mut answer = Vec::new();
        let answered = wait_until(PATIENCE, || {
            let mut some = [0; 4096];
            while let Ok(length @ 1..) = (&self.told).read(&mut some) {
                answer.extend_from_slice(&some[..length]);
            }
            answer.ends_with(b"\n")
        });
        assert!(answered, "no answer of {} to {about:?}", self.container.name);
        String::from_utf8_lossy(&answer).trim_end().to_owned()
    }

    pub(crate) fn cat(&self, path: &str) -> Outcome {
        self.act(&format!("cat {path}"))
    }
}

/// The kernel refused, with EPERM: EACCES says something else.
pub(crate) fn is_denied(outcome: &Outcome) -> bool {
    outcome.as_ref().is_err_and(|said| said.to_lowercase().contains(DENIED))
}
