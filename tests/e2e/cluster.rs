//! A cluster: the API server, what makes a cluster of it, and nodes.
//!
//! Pods have addresses that this room reaches as well ([`network`]); there are no names. Pods find the API server as
//! they do everywhere, by the service `kubernetes`.
//!
//! [`network`]: crate::network

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::deputy::Process;
use crate::image;
use crate::network::Network;
use crate::node::{Node, Plan};
use crate::server::{ApiServer, Kind};
use crate::user::User;
use crate::watchdog::{Watch, wait_until};

/// How long the nodes may take to become ready.
const READY: Duration = Duration::from_secs(90);

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) api: ApiServer,
    controllers: Process,
    scheduler: Process,
    network: Network,
}

impl Cluster {
    /// One with this many nodes, `node1` and so on. They have the image [`image::NAME`].
    pub(crate) fn start(programs: &Path, nodes: u8) -> Cluster {
        let started = Instant::now();
        let network = Network::new();
        let api = ApiServer::start(programs, Kind::Cluster(network.gateway()));
        let control = [
            ("kube-controller-manager", controller_manager(&api)),
            ("kube-scheduler", Command::new(programs.join("kube-scheduler"))),
        ];
        let [controllers, scheduler] = control.map(|(name, mut command)| {
            let user = api.member(&format!("system:{name}"), None);
            for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
                command.arg(format!("--{flag}={}", user.kubeconfig().display()));
            }
            command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
            // Several clusters may be in one room, and nobody asks them for metrics.
            command.arg("--secure-port=0");
            api.deputy.spawn(&command)
        });
        let proxy = api.member("system:kube-proxy", None);
        let image = api.deputy.scratch().join("image.tar");
        image::write(&api.deputy.scratch().join("image"), &image).unwrap();
        let nodes = std::thread::scope(|scope| {
            let start = |number| start_node(&api, &network, &proxy, &image, number);
            let nodes: Vec<_> = (1..=nodes).map(|number| scope.spawn(move || start(number))).collect();
            nodes.into_iter().map(|node| node.join().unwrap()).collect()
        });
        let cluster = Cluster { nodes, api, controllers, scheduler, network };
        cluster.wait_until_ready();
        let _lost = writeln!(std::io::stderr(), "cluster: {:.1} s", started.elapsed().as_secs_f32());
        cluster
    }

    pub(crate) fn admin(&self) -> &User {
        self.api.admin()
    }

    /// Whether something of it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.api.has_ended() || self.controllers.ended().is_some() || self.scheduler.ended().is_some()
    }

    /// Has a watchdog end it, with its test.
    pub(crate) fn end_with(&self, watch: &Watch) {
        self.api.end_with(watch);
        self.nodes.iter().for_each(|node| watch.process(node.deputy.first()));
    }

    /// Gives an image to every node.
    pub(crate) fn import(&self, archive: &Path) {
        self.nodes.iter().for_each(|node| node.import(archive));
    }

    /// Cuts a node off from everything but itself, or joins it again.
    pub(crate) fn set_plugged(&self, node: &Node, plugged: bool) {
        self.network.set_plugged(node.plan.number, plugged);
    }

    fn wait_until_ready(&self) {
        let template = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        let mut last = String::new();
        let ready = wait_until(READY, || {
            last = self.admin().kubectl(&["get", "nodes", "-o", template]).success();
            last.split_whitespace().filter(|status| *status == "True").count() == self.nodes.len()
        });
        let log = || self.nodes.iter().map(Node::kubelet_log).collect::<String>();
        assert!(ready, "nodes are not ready within {READY:?}: {last}: {}", log());
        // A namespace's first pod needs it, and a controller makes it.
        let account = || self.admin().kubectl(&["get", "serviceaccount", "default"]).code == Some(0);
        assert!(wait_until(READY, account), "{}", self.controllers.stderr());
    }
}

fn controller_manager(api: &ApiServer) -> Command {
    let at = api.deputy.scratch().display();
    let mut command = Command::new(api.programs().join("kube-controller-manager"));
    command.arg(format!("--root-ca-file={at}/ca.crt"));
    command.arg(format!("--service-account-private-key-file={at}/tokens.key"));
    command.args(["--use-service-account-credentials", "--allocate-node-cidrs=false"]);
    // A lost node is noticed within a test's patience.
    command.args(["--node-monitor-period=1s", "--node-monitor-grace-period=16s"]);
    command
}

fn start_node(api: &ApiServer, network: &Network, proxy: &User, image: &Path, number: u8) -> Node {
    let name = format!("node{number}");
    let address = network.node(number);
    let user = format!("system:node:{name}");
    let serving = api.authority.server(&user, Some("system:nodes"), &[&name, &address.to_string()]);
    let node = Node::new(Plan {
        number,
        address,
        pods: network.pods_of(number),
        all_pods: network.pods(),
        programs: api.programs().to_owned(),
        ca: api.deputy.scratch().join("ca.crt"),
        kubelet: api.member(&user, Some("system:nodes")).kubeconfig().to_owned(),
        proxy: proxy.kubeconfig().to_owned(),
        serving,
        name,
    });
    network.plug(&node);
    node.start_containerd();
    node.import(image);
    node.start_kubernetes();
    node
}

/// The programs that a test's own image needs: a binary, and the libraries that it is linked with.
pub(crate) fn archive_of(scratch: &Path, name: &str, binary: &Path) -> PathBuf {
    let archive = scratch.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    image::write_program(&scratch.join("image"), &archive, name, binary).unwrap();
    archive
}
