//! A container that opens a file over and over, and logs each time that the answer is another one: what a pod sees of a
//! guard while nobody can exec into it, and for how long it was lifted.

use serde_json::{Value, json};

use crate::image;
use crate::janus::level;
use crate::tenant::{Opened, PATIENCE, Tenant, pod};

const NAME: &str = "probe";

/// Twenty times a second; the time is the kernel's, in seconds since it was started.
const SCRIPT: &str = r#"trap 'exit 0' TERM
while :; do
  if said=$(cat /etc/secret 2>&1); then now=read; else now="$said"; fi
  case $now in *"not permitted"*) now=denied;; esac
  if [ "$now" != "$last" ]; then read -r up idle < /proc/uptime; echo "$up $now"; last=$now; fi
  sleep 0.05
done"#;

/// An answer, and since when it was that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seen {
    pub(crate) at: f64,
    pub(crate) opened: Opened,
}

/// A pod of the label `app=NAME` that opens `/etc/secret` all the time, on a node.
pub(crate) fn probing(name: &str, node: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["nodeName"] = json!(node);
    let probe = json!({
        "name": NAME, "image": image::NAME, "imagePullPolicy": "Never", "command": ["/bin/sh", "-c", SCRIPT],
    });
    pod["spec"]["containers"].as_array_mut().unwrap().push(probe);
    pod
}

/// All that a pod's probe has seen.
pub(crate) fn seen(tenant: &Tenant, pod: &str) -> Vec<Seen> {
    let log = tenant.kubectl(&["logs", pod, "-c", NAME]).stdout;
    let line = |line: &str| {
        let (at, word) = line.split_once(' ')?;
        let opened = match word {
            "read" => Opened::Read,
            "denied" => Opened::Denied,
            other => panic!("neither read nor denied: {other}"),
        };
        Some(Seen { at: at.parse().ok()?, opened })
    };
    log.lines().filter_map(line).collect()
}

/// Waits until the probe has seen so many changes at least, and the last one was this.
pub(crate) fn wait_until_seen(tenant: &Tenant, pod: &str, changes: usize, opened: Opened) -> Vec<Seen> {
    let mut all = Vec::new();
    let holds = level(PATIENCE, || {
        all = seen(tenant, pod);
        all.len() >= changes && all.last().is_some_and(|last| last.opened == opened)
    });
    assert!(holds, "{pod} has seen {all:?}\n{}", tenant.janus.describe());
    all
}

/// The longest time for which it could read after it had been denied once.
pub(crate) fn longest_gap(all: &[Seen]) -> f64 {
    let denied = all.iter().skip_while(|seen| seen.opened == Opened::Read);
    let pairs = denied.clone().zip(denied.skip(1));
    pairs.filter(|(from, _)| from.opened == Opened::Read).map(|(from, to)| to.at - from.at).fold(0.0, f64::max)
}
