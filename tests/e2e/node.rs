//! The tests' side of a node: kubelet, containerd and kube-proxy on it, and whatever a test has run there.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::deputy::{Deputy, Process};
use crate::image;
use crate::inside;
use crate::pki::Pair;
use crate::program::Output;
use crate::room;
use crate::watchdog::wait_until;

/// How long containerd may take to answer its first call.
const CONTAINERD: Duration = Duration::from_secs(30);

/// How long a program may run on a node.
const RUN: Duration = Duration::from_secs(30);

/// How long a process may take to go.
const STOP: Duration = Duration::from_secs(10);

/// Where Debian has the plugins of a network.
pub(crate) const CNI: &str = "/usr/lib/cni";

/// A negative `oom_score_adj` needs CAP_SYS_RESOURCE, which not every root has.
const CONTAINERD_CONFIG: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "PAUSE"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "PLUGINS"
    conf_dir = "SCRATCH/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#;

/// What a node is to be.
pub(crate) struct Plan {
    pub(crate) number: u8,
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// Of its pods, such as `10.200.1.0/24`.
    pub(crate) pods: String,
    /// Of all pods.
    pub(crate) all_pods: String,
    pub(crate) programs: PathBuf,
    pub(crate) ca: PathBuf,
    /// As whom the kubelet and kube-proxy talk with the API server.
    pub(crate) kubelet: PathBuf,
    pub(crate) proxy: PathBuf,
    pub(crate) serving: Pair,
}

pub(crate) struct Node {
    pub(crate) plan: Plan,
    pub(crate) deputy: Deputy,
    daemons: Mutex<Daemons>,
}

/// `None`: not started yet.
#[derive(Default)]
struct Daemons {
    containerd: Option<Process>,
    kubelet: Option<Process>,
    proxy: Option<Process>,
}

impl Node {
    /// The namespaces, without anything in them.
    pub(crate) fn new(plan: Plan) -> Node {
        let scratch = tempfile::TempDir::with_prefix(format!("{}-", plan.name)).unwrap().keep();
        let deputy = Deputy::launch(&mut inside::launcher(&scratch, &plan.name), scratch);
        Node { plan, deputy, daemons: Mutex::default() }
    }

    /// The container runtime.
    pub(crate) fn start_containerd(&self) {
        let scratch = self.deputy.scratch();
        fs::create_dir_all(scratch.join("cni")).unwrap();
        fs::write(scratch.join("cni/10-bridge.conflist"), self.cni().to_string()).unwrap();
        let config = CONTAINERD_CONFIG
            .replace("PAUSE", image::NAME)
            .replace("PLUGINS", CNI)
            .replace("SCRATCH", &scratch.to_string_lossy());
        fs::write(scratch.join("containerd.toml"), config).unwrap();
        self.run_containerd();
    }

    fn run_containerd(&self) {
        let mut command = Command::new("containerd");
        command.arg("-c").arg(self.deputy.scratch().join("containerd.toml"));
        let containerd = self.deputy.spawn(&command);
        let socket = PathBuf::from(format!("/proc/{}/root/run/containerd/containerd.sock", self.deputy.first()));
        let mut last = None;
        let answers = wait_until(CONTAINERD, || {
            assert!(containerd.ended().is_none(), "containerd has ended: {}", containerd.stderr());
            // ctr is not cheap: it is not asked before there is a socket.
            last = socket.exists().then(|| self.run("ctr", &["version"]));
            last.as_ref().is_some_and(|output| output.code == Some(0))
        });
        assert!(answers, "containerd does not answer: {last:?}: {}", containerd.stderr());
        self.daemons().containerd = Some(containerd);
    }

    /// Takes an image from an archive.
    pub(crate) fn import(&self, archive: &Path) {
        self.run("ctr", &["-n", "k8s.io", "images", "import", archive.to_str().unwrap()]).success();
    }

    /// The kubelet and kube-proxy.
    pub(crate) fn start_kubernetes(&self) {
        let scratch = self.deputy.scratch();
        for (name, text) in [("kubelet.crt", &self.plan.serving.certificate), ("kubelet.key", &self.plan.serving.key)] {
            fs::write(scratch.join(name), text).unwrap();
        }
        // No name server: nothing in these clusters is looked up.
        fs::write(scratch.join("resolv.conf"), "").unwrap();
        fs::create_dir_all(self.static_pods()).unwrap();
        fs::write(scratch.join("kubelet.json"), self.kubelet_config().to_string()).unwrap();
        self.start_kubelet();
        let mut proxy = Command::new(self.plan.programs.join("kube-proxy"));
        proxy.arg(format!("--kubeconfig={}", self.plan.proxy.display()));
        proxy
            .arg(format!("--cluster-cidr={}", self.plan.all_pods))
            .arg(format!("--hostname-override={}", self.plan.name));
        // What is one for the whole machine stays as it is.
        proxy.args(["--proxy-mode=iptables", "--conntrack-max-per-core=0", "--oom-score-adj=0"]);
        proxy.args(["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"]);
        self.daemons().proxy = Some(self.deputy.spawn(&proxy));
    }

    pub(crate) fn start_kubelet(&self) {
        let mut kubelet = Command::new(self.plan.programs.join("kubelet"));
        kubelet.arg(format!("--config={}", self.deputy.scratch().join("kubelet.json").display()));
        kubelet.arg(format!("--kubeconfig={}", self.plan.kubelet.display()));
        kubelet.arg(format!("--node-ip={}", self.plan.address));
        self.daemons().kubelet = Some(self.deputy.spawn(&kubelet));
    }

    /// Kills it, and leaves the pods running.
    pub(crate) fn kill_kubelet(&self) {
        let kubelet = self.daemons().kubelet.take().expect("it was started");
        kubelet.end(Signal::KILL, STOP);
    }

    /// Kills it, starts it again, and waits until it answers. Containers run on.
    pub(crate) fn restart_containerd(&self) {
        let containerd = self.daemons().containerd.take().expect("it was started");
        containerd.end(Signal::KILL, STOP);
        self.run_containerd();
    }

    /// Where manifests of static pods go.
    pub(crate) fn static_pods(&self) -> PathBuf {
        self.deputy.scratch().join("manifests")
    }

    /// Runs a program on the node to its end, half a minute at most.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.deputy.run(Command::new(program).args(arguments), "", RUN)
    }

    /// What the kubelet has to say.
    pub(crate) fn kubelet_log(&self) -> String {
        let log = self.daemons().kubelet.as_ref().map(Process::stderr).unwrap_or_default();
        String::from_utf8_lossy(&log.as_bytes()[log.len().saturating_sub(8000)..]).into_owned()
    }

    fn daemons(&self) -> MutexGuard<'_, Daemons> {
        self.daemons.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn cni(&self) -> Value {
        json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [{
                "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.deputy.scratch().join("ipam"),
                    "ranges": [[{"subnet": self.plan.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        })
    }

    fn kubelet_config(&self) -> Value {
        let scratch = self.deputy.scratch();
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "address": "0.0.0.0",
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": self.plan.ca},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": scratch.join("kubelet.crt"),
            "tlsPrivateKeyFile": scratch.join("kubelet.key"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", room::cgroup(scratch)),
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "resolvConf": scratch.join("resolv.conf"),
            "staticPodPath": self.static_pods(),
            "fileCheckFrequency": "1s",
            // The disk is the machine's: how full it is says nothing about the node.
            "evictionHard": {
                "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
                "nodefs.inodesFree": "1%", "imagefs.inodesFree": "1%",
            },
            // Nowhere could an image be had again.
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "4s",
            "nodeLeaseDurationSeconds": 8,
        })
    }
}
