//! An API server of the tests' own: etcd and kube-apiserver on this machine, for whoever asks.
//!
//! [`Kind::Alone`]: nothing else runs. No controller makes service accounts in new namespaces, collects garbage or
//! empties a namespace that was deleted; no kubelet starts a pod, or lets one go (delete pods with a grace period of 0).
//! Pods can be created as they are, on any node, and given any status.
//!
//! Owns: its port, for as long as it lives; certificates; everything in its deputy's scratch directory.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket, sockopt};
use rustix::process::{PidfdFlags, Signal, pidfd_open};
use serde_json::{Value, json};

use crate::deputy::{Deputy, Process};
use crate::pki::Authority;
use crate::user::{Door, User};
use crate::watchdog::{Watch, kernel_pid, wait_until};

/// How long it may take to answer, on a machine that builds something meanwhile.
const START: Duration = Duration::from_secs(100);

/// How long a process may take to go.
const STOP: Duration = Duration::from_secs(10);

const SERVICES: &str = "10.0.0.0/24";

/// The address of the service `kubernetes`.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Whose requests are noted, in a cluster: what Janus's own pods ask.
const AUDITED: [&str; 2] =
    ["system:serviceaccount:janus-system:janus-controller", "system:serviceaccount:janus-system:janus-certificates"];

const AUDIT_LOG: &str = "audit.log";

/// What an API server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only to be talked with, from this machine.
    Alone,
    /// For nodes, which reach it at this address.
    Cluster(Ipv4Addr),
}

pub(crate) struct ApiServer {
    pub(crate) deputy: Deputy,
    pub(crate) authority: Authority,
    programs: PathBuf,
    kind: Kind,
    port: Port,
    address: String,
    admin: User,
    etcd: Process,
    server: Mutex<Process>,
}

/// A port of ours, whether the server runs or not: nobody else is given it, and meanwhile connections are refused.
struct Port {
    number: u16,
    _held: OwnedFd,
}

impl ApiServer {
    /// An empty one.
    pub(crate) fn start(programs: &Path, kind: Kind) -> ApiServer {
        let started = Instant::now();
        let deputy = Deputy::start();
        let authority = Authority::new();
        let port = Port::take();
        write_files(deputy.scratch(), &authority, kind);
        let etcd = deputy.spawn(&etcd(programs, deputy.scratch()));
        let server = Mutex::new(deputy.spawn(&kube_apiserver(programs, deputy.scratch(), kind, port.number)));
        let address = format!("https://127.0.0.1:{}", port.number);
        let door = Door { address: &address, scratch: deputy.scratch(), programs };
        let admin = User::with_certificate(door, "admin", &authority.client("admin", Some("system:masters")));
        let programs = programs.to_owned();
        let server = ApiServer { deputy, authority, programs, kind, port, address, admin, etcd, server };
        server.wait_until_ready();
        let _lost = writeln!(std::io::stderr(), "API server: {:.1} s", started.elapsed().as_secs_f32());
        server
    }

    /// Who may do anything.
    pub(crate) fn admin(&self) -> &User {
        &self.admin
    }

    /// Someone with a certificate, who may do nothing until told otherwise.
    pub(crate) fn user(&self, name: &str) -> User {
        User::with_certificate(self.door(), name, &self.authority.client(name, None))
    }

    /// Who belongs to the cluster, and reaches the server from its nodes.
    pub(crate) fn member(&self, name: &str, group: Option<&str>) -> User {
        let host = match self.kind {
            Kind::Alone => Ipv4Addr::LOCALHOST,
            Kind::Cluster(address) => address,
        };
        let address = format!("https://{host}:{}", self.port.number);
        let door = Door { address: &address, ..self.door() };
        User::with_certificate(door, &name.replace(':', "-"), &self.authority.client(name, group))
    }

    /// Kubernetes' programs.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// What a pod's service account may do, with a token as a pod gets it. The account must be there.
    pub(crate) fn service_account(&self, namespace: &str, name: &str) -> User {
        let token = self.admin.kubectl(&["-n", namespace, "create", "token", name]).success();
        User::with_token(self.door(), &format!("{namespace}-{name}"), token.trim())
    }

    /// Lets a user act by these rules, in one namespace or (`None`) in the whole cluster.
    pub(crate) fn grant(&self, user: &str, namespace: Option<&str>, rules: &Value) {
        let kind = if namespace.is_some() { "Role" } else { "ClusterRole" };
        let metadata = json!({ "name": user, "namespace": namespace });
        let group = "rbac.authorization.k8s.io";
        let version = format!("{group}/v1");
        self.admin.apply(
            &json!({"apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules},
                {
                    "apiVersion": version, "kind": format!("{kind}Binding"), "metadata": metadata,
                    "roleRef": {"apiGroup": group, "kind": kind, "name": user},
                    "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
                },
            ]})
            .to_string(),
        );
    }

    /// Where it serves, for this machine.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn door(&self) -> Door<'_> {
        Door { address: &self.address, scratch: self.deputy.scratch(), programs: &self.programs }
    }

    /// Kills it. Until it is started again connections are refused.
    pub(crate) fn kill(&self) {
        self.server().end(Signal::KILL, STOP);
    }

    /// Starts it again, with all that etcd has kept, and waits until it serves.
    pub(crate) fn start_again(&self) {
        let command = kube_apiserver(&self.programs, self.deputy.scratch(), self.kind, self.port.number);
        let mut server = self.server();
        assert!(server.ended().is_some(), "it runs");
        *server = self.deputy.spawn(&command);
        drop(server);
        self.wait_until_ready();
    }

    /// Stops it from running, without ending it: connections are taken and never answered.
    pub(crate) fn freeze(&self) {
        self.server().signal(Signal::STOP);
    }

    /// Lets it run on.
    pub(crate) fn thaw(&self) {
        self.server().signal(Signal::CONT);
    }

    /// Whether one of its processes has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.etcd.ended().is_some() || self.server().ended().is_some()
    }

    /// Has a watchdog end it, with its test.
    pub(crate) fn end_with(&self, watch: &Watch) {
        watch.process(self.etcd.pid);
        watch.process(self.server().pid);
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> [OwnedFd; 2] {
        [self.etcd.pid, self.server().pid].map(|pid| pidfd_open(kernel_pid(pid), PidfdFlags::empty()).unwrap())
    }

    /// What the server has noted of each answer to those in [`AUDITED`], one JSON object a line.
    pub(crate) fn audit(&self) -> String {
        fs::read_to_string(self.deputy.scratch().join(AUDIT_LOG)).unwrap_or_default()
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = self.server().stderr();
        let from = log.len().saturating_sub(8000);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }

    fn server(&self) -> MutexGuard<'_, Process> {
        self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait_until_ready(&self) {
        let mut last = String::new();
        let ready = wait_until(START, || {
            assert!(!self.has_ended(), "ended: {}; etcd: {}", self.log(), self.etcd.stderr());
            // kubectl is not cheap: it is not asked before somebody listens.
            if std::net::TcpStream::connect(("127.0.0.1", self.port.number)).is_err() {
                return false;
            }
            let output = self.admin.kubectl(&["get", "--raw", "/readyz"]);
            last = format!("{output:?}");
            output.code == Some(0)
        });
        assert!(ready, "not ready within {START:?}: {last}: {}", self.log());
    }
}

impl Port {
    /// A socket that is bound and does not listen keeps the port; the server is told to share it.
    fn take() -> Port {
        let held = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseport(&held, true).unwrap();
        bind(&held, &SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = SocketAddr::try_from(getsockname(&held).unwrap()).unwrap();
        Port { number: address.port(), _held: held }
    }
}

fn write_files(at: &Path, authority: &Authority, kind: Kind) {
    let write = |name: &str, text: &str| fs::write(at.join(name), text).unwrap();
    let mut names = vec!["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "127.0.0.1"];
    let service = SERVICE.to_string();
    let reached_at = match kind {
        Kind::Alone => None,
        Kind::Cluster(address) => Some(address.to_string()),
    };
    names.push(&service);
    names.extend(reached_at.as_deref());
    let pairs = [
        ("apiserver", authority.server("kube-apiserver", None, &names)),
        ("kubelet-client", authority.client("kube-apiserver-kubelet-client", Some("system:masters"))),
    ];
    write("ca.crt", &authority.certificate());
    for (name, pair) in pairs {
        write(&format!("{name}.crt"), &pair.certificate);
        write(&format!("{name}.key"), &pair.key);
    }
    let audit = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": AUDITED}, {"level": "None"}],
    });
    write("audit.json", &audit.to_string());
    // Signs the tokens of service accounts.
    let key = KeyPair::generate().unwrap();
    write("tokens.key", &key.serialize_pem());
    write("tokens.pub", &key.public_key_pem());
}

fn etcd(programs: &Path, at: &Path) -> Command {
    let at = at.display();
    let mut etcd = Command::new(programs.join("etcd"));
    etcd.arg(format!("--data-dir={at}/etcd")).arg(format!("--listen-client-urls=unix://{at}/etcd.sock"));
    // Nobody is told to come by TCP, and no peer will; what is advertised must look like an address all the same.
    etcd.args(["--advertise-client-urls=http://127.0.0.111:0", "--listen-peer-urls=http://127.0.0.1:0"]);
    etcd.args(["--unsafe-no-fsync", "--log-level=warn"]);
    etcd
}

fn kube_apiserver(programs: &Path, at: &Path, kind: Kind, port: u16) -> Command {
    let at = at.display();
    let mut server = Command::new(programs.join("kube-apiserver"));
    for (flag, file) in [
        ("etcd-servers", "etcd.sock"),
        ("cert-dir", "made"),
        ("client-ca-file", "ca.crt"),
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("service-account-key-file", "tokens.pub"),
        ("service-account-signing-key-file", "tokens.key"),
    ] {
        let scheme = if flag == "etcd-servers" { "unix://" } else { "" };
        server.arg(format!("--{flag}={scheme}{at}/{file}"));
    }
    server.arg(format!("--secure-port={port}")).arg("--permit-port-sharing");
    server.arg(format!("--service-cluster-ip-range={SERVICES}"));
    server.args([
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
    ]);
    match kind {
        Kind::Alone => {
            server.args(["--bind-address=127.0.0.1", "--endpoint-reconciler-type=none"]);
            // Nobody is there who would make the account that it asks for.
            server.arg("--disable-admission-plugins=ServiceAccount");
        }
        Kind::Cluster(address) => {
            server.arg("--bind-address=0.0.0.0").arg(format!("--advertise-address={address}"));
            server.arg(format!("--audit-policy-file={at}/audit.json"));
            server.arg(format!("--audit-log-path={at}/{AUDIT_LOG}"));
        }
    }
    server
}
