//! A cluster's network: a bridge in the room, to which its nodes are plugged.
//!
//! Every cluster of a room has addresses of its own: nodes `10.123.K.10` and up, pods `10.200+K.NODE.0/24`. The room
//! reaches all of them, and none of them reaches anything outside of the room.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::node::Node;
use crate::program::run;

const LIMIT: Duration = Duration::from_secs(10);

pub(crate) struct Network(u8);

impl Network {
    pub(crate) fn new() -> Network {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let network = Network(NEXT.fetch_add(1, Ordering::Relaxed));
        ip("link set lo up");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        ip(&format!("link add {} type bridge", network.bridge()));
        ip(&format!("addr add {}/24 dev {}", network.gateway(), network.bridge()));
        ip(&format!("link set {} up", network.bridge()));
        network
    }

    fn bridge(&self) -> String {
        format!("lan{}", self.0)
    }

    fn cable(&self, node: u8) -> String {
        format!("lan{}node{node}", self.0)
    }

    /// The room's own address.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 123, self.0, 1)
    }

    pub(crate) fn node(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 123, self.0, 10 + node)
    }

    pub(crate) fn pods_of(&self, node: u8) -> String {
        format!("10.{}.{node}.0/24", 200 + self.0)
    }

    pub(crate) fn pods(&self) -> String {
        format!("10.{}.0.0/16", 200 + self.0)
    }

    pub(crate) fn plug(&self, node: &Node) {
        let (number, address, cable) = (node.plan.number, node.plan.address, self.cable(node.plan.number));
        let namespace = node.deputy.first();
        ip(&format!("link add {cable} master {} type veth peer name eth0 netns {namespace}", self.bridge()));
        ip(&format!("link set {cable} up"));
        let inside = |command: &str| node.run("ip", &command.split(' ').collect::<Vec<_>>()).success();
        inside("link set lo up");
        inside(&format!("addr add {address}/24 dev eth0"));
        inside("link set eth0 up");
        inside(&format!("route add default via {}", self.gateway()));
        node.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).success();
        ip(&format!("route add {} via {address}", self.pods_of(number)));
    }

    /// Pulls a node's cable, or puts it back.
    pub(crate) fn set_plugged(&self, node: u8, plugged: bool) {
        ip(&format!("link set {} {}", self.cable(node), if plugged { "up" } else { "down" }));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Its cables went with the nodes, its routes with the cables.
        ip(&format!("link delete {}", self.bridge()));
    }
}

fn ip(command: &str) {
    let mut program = Command::new("ip");
    program.args(command.split(' '));
    run(program, "", LIMIT).unwrap().success();
}
