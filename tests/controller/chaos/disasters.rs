//! What goes wrong, and what of it can be mended.

use std::sync::Arc;
use std::time::Duration;

use janus_proto::v1;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{Chaos, NODES, THIEF, node_name};
use crate::expected::on_the_wire;
use crate::fake::{Break, Daemon, Garbage, Hang};
use crate::host::Host;
use crate::paper::Faults;
use crate::world::persist;

impl Chaos {
    pub(super) async fn disaster(&mut self) {
        match self.chance.among(0..100) {
            0..10 => self.restart_daemon(false),
            10..20 => self.restart_daemon(true),
            20..32 => self.replace_daemon().await,
            32..40 => self.lose_daemon().await,
            40..48 => self.silence_daemon(),
            48..60 => self.spoil_daemon(),
            60..68 => self.cut_connections(),
            68..78 => self.restart_controller(),
            78..84 => self.restart_server().await,
            84..92 => self.end_watches().await,
            92..96 => self.spoil_server(),
            _ => self.steal_lease().await,
        }
    }

    fn some_daemon(&mut self) -> Option<(String, String, Arc<Daemon>)> {
        let all: Vec<_> = self.world.daemons.iter().collect();
        let of = |(node, daemons): &(&String, &Vec<(String, Arc<Daemon>)>)| {
            daemons.iter().map(|(pod, daemon)| ((*node).clone(), pod.clone(), daemon.clone())).collect::<Vec<_>>()
        };
        let all: Vec<_> = all.iter().flat_map(of).collect();
        self.chance.pick(&all).cloned()
    }

    fn restart_daemon(&mut self, leftovers: bool) {
        let Some((node, _, daemon)) = self.some_daemon() else { return };
        let with = if leftovers { " with leftovers" } else { "" };
        self.tell(format!("daemon on {node} restarted{with}"));
        daemon.restart();
        if !leftovers {
            return;
        }
        let pods: Vec<_> = self.world.pods.iter().filter(|pod| pod.node == node).cloned().collect();
        for number in 0..self.chance.among(1..5) {
            // Of a guard that nobody knows, in a pod that somebody may know.
            let pod = self.chance.pick(&pods);
            let uid = pod.map_or(format!("gone-{number}"), |pod| pod.uid.clone());
            let namespace = pod.map_or("default".to_owned(), |pod| pod.namespace.clone());
            let guard = format!("leftover-{}", self.chance.among(0..1000));
            daemon.leave(leftover(&node, &namespace, &guard, &uid));
        }
    }

    async fn replace_daemon(&mut self) {
        let Some((node, old, daemon)) = self.some_daemon() else { return };
        match self.chance.among(0..3) {
            0 => {
                self.tell(format!("daemon on {node} ({old}) deleted, then another one"));
                self.depose(&node, &old).await;
                // Addresses are reused.
                let new = if self.chance.percent(50) {
                    self.deposed.remove(&daemon.ip);
                    self.world.add_daemon_at(&node, &daemon).await
                } else {
                    self.world.add_daemon(&node).await
                };
                new.unwrap();
            }
            1 => {
                self.tell(format!("another daemon on {node} beside {old}, which is then deleted"));
                self.world.add_daemon(&node).await.unwrap();
                self.depose(&node, &old).await;
            }
            _ => {
                self.tell(format!("another daemon on {node} beside {old}, which is not ready any more"));
                self.world.add_daemon(&node).await.unwrap();
                self.world.set_ready(&old, false).await.unwrap();
            }
        }
    }

    async fn depose(&mut self, node: &str, pod: &str) {
        if let Some(gone) = self.world.remove_daemon(node, pod).await.unwrap() {
            self.deposed.insert(gone.ip, u64::MAX);
        }
    }

    /// For now there is none on the node, or an older one.
    async fn lose_daemon(&mut self) {
        let Some((node, pod, _)) = self.some_daemon() else { return };
        self.tell(format!("daemon on {node} ({pod}) deleted"));
        self.depose(&node, &pod).await;
    }

    fn silence_daemon(&mut self) {
        let Some((node, _, daemon)) = self.some_daemon() else { return };
        let how = self.chance.among(0..3);
        self.tell(format!("daemon on {node} silent ({how})"));
        daemon.temper(|temper| match how {
            0 => temper.down = true,
            1 => temper.hang = Hang::Calls,
            _ => temper.hang = Hang::Handshakes,
        });
    }

    fn spoil_daemon(&mut self) {
        let Some((node, _, daemon)) = self.some_daemon() else { return };
        let how = self.chance.among(0..14);
        self.tell(format!("daemon on {node} spoilt ({how})"));
        daemon.temper(|temper| match how {
            0 => temper.before = Duration::from_millis(300),
            1 => temper.after = Duration::from_millis(300),
            2 => temper.settle = Duration::from_millis(500),
            3 => temper.lift = Duration::from_millis(500),
            4 => temper.node = Some("elsewhere".to_owned()),
            5 => temper.draining = true,
            6 => temper.breaks = Some(Break::Fails(1)),
            7 => temper.breaks = Some(Break::Ends(0)),
            8 => temper.breaks = Some(Break::Resets(1)),
            9 => temper.garbage = Some(Garbage::NoHeader),
            10 => temper.garbage = Some(Garbage::Flood(50)),
            11 => temper.garbage = Some(Garbage::Numbers),
            12 => temper.garbage = Some(Garbage::Texts),
            _ => temper.garbage = Some(Garbage::Bytes),
        });
    }

    fn cut_connections(&mut self) {
        self.tell("connections cut".to_owned());
        for daemon in self.world.fleet.daemons() {
            if self.chance.percent(50) {
                daemon.cut();
            }
        }
    }

    fn restart_controller(&mut self) {
        let elect = self.chance.percent(20);
        self.tell(format!("controller killed, and started (elect: {elect})"));
        if let Some(mut controller) = self.controller.take() {
            assert!(!controller.has_ended(), "the controller has ended: {}", controller.log());
            controller.kill();
        }
        self.start_controller(elect);
    }

    async fn restart_server(&mut self) {
        self.tell("API server restarted".to_owned());
        self.unwatched = 2;
        self.host.restart(Duration::from_millis(self.chance.among(1..1500) as u64)).await;
        persist(Duration::from_secs(20), async || self.world.objects().await).await;
    }

    async fn end_watches(&mut self) {
        self.unwatched = 2;
        let forget = self.chance.percent(50);
        match &self.host {
            Host::Paper(paper, _) => {
                paper.end_watches(forget);
                self.tell(format!("watches ended (forgotten: {forget})"));
            }
            Host::Real(_) => {
                self.tell("API server hung".to_owned());
                self.host.hang(Duration::from_millis(self.chance.among(1..3000) as u64)).await;
            }
        }
    }

    fn spoil_server(&mut self) {
        let how = self.chance.among(0..3);
        if let Host::Paper(paper, _) = &self.host {
            paper.faults(match how {
                0 => Faults { conflicts: 2, ..Faults::default() },
                1 => Faults { errors: 3, ..Faults::default() },
                _ => Faults { lies: 2, ..Faults::default() },
            });
            self.unwatched = 2;
            self.tell(format!("API server spoilt ({how})"));
        }
    }

    /// Somebody else takes the Lease, and is never heard of again.
    async fn steal_lease(&mut self) {
        let leases = self.world.lease_api();
        let Some(lease) = leases.get_opt("janus-controller").await.unwrap() else { return };
        self.tell("Lease stolen".to_owned());
        let transitions = lease.spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let now = format!("{:.6}", k8s_openapi::jiff::Timestamp::now());
        let stolen = json!({ "spec": { "holderIdentity": THIEF, "leaseTransitions": transitions + 1,
            "acquireTime": now, "renewTime": now } });
        leases.patch("janus-controller", &PatchParams::default(), &Patch::Merge(stolen)).await.unwrap();
        self.leaderless = true;
    }

    /// What can be mended is; what is gone stays so.
    pub(super) async fn mend(&mut self) {
        if let Host::Paper(paper, _) = &self.host {
            paper.faults(Faults::default());
        }
        for daemons in self.world.daemons.values() {
            for (_, daemon) in daemons {
                daemon.temper(|temper| *temper = Default::default());
            }
        }
        // A node is without a daemon for a round at most, now and then.
        for node in (0..NODES).map(node_name) {
            if self.world.daemons.get(&node).is_none_or(Vec::is_empty) && self.chance.percent(70) {
                self.tell(format!("a daemon on {node} again"));
                self.world.add_daemon(&node).await.unwrap();
            }
        }
    }
}

/// A guard of an older world.
fn leftover(node: &str, namespace: &str, guard: &str, pod: &str) -> v1::CreateGuardRequest {
    let spec = json!({ "selector": {}, "subjects": [{ "deny": ["/old"], "events": ["open"] }] });
    v1::CreateGuardRequest {
        caller: Some(v1::Caller { epoch: 1, node: node.to_owned() }),
        guard: Some(v1::GuardRef {
            uid: format!("uid-of-{guard}"),
            namespace: namespace.to_owned(),
            name: guard.to_owned(),
            generation: 1,
        }),
        pod: Some(v1::PodRef {
            uid: pod.to_owned(),
            cgroup_uid: String::new(),
            namespace: namespace.to_owned(),
            name: "some-pod".to_owned(),
        }),
        spec: Some(on_the_wire(&serde_json::from_value(spec).unwrap())),
        container_ids: Vec::new(),
    }
}
