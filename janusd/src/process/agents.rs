//! The node's own agents: the kubelet and the container runtime, which no guard denies. A kubelet that is denied can
//! neither rotate a Secret nor take a pod down.
//!
//! An agent is told by the identity of its executable, which is looked for once: among the processes that run on the
//! node, and at the usual paths. It counts only in the node's mount namespace and outside of every pod's cgroup, so that no
//! container becomes one by bringing a program along.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::facts::Cgroups;
use super::look::{File, NodeAgents, alive};
use super::origin::Home;
use crate::fanotify::Features;
use crate::policy::Failure;

/// Names of executables, when a process of the node runs one.
const NAMES: [&str; 22] = [
    "kubelet",
    "containerd",
    "containerd-shim",
    "containerd-shim-runc-v1",
    "containerd-shim-runc-v2",
    "crio",
    "conmon",
    "conmonrs",
    "dockerd",
    "cri-dockerd",
    "docker-init",
    "docker-proxy",
    "runc",
    "crun",
    "youki",
    "runsc",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "rke2",
    "k0s",
    "hyperkube",
];
/// Programs that run for a moment only, so that none may be running now.
const BRIEF: [&str; 6] = ["runc", "crun", "youki", "conmon", "containerd-shim-runc-v2", "kubelet"];
/// Where they are.
const DIRECTORIES: [&str; 8] = [
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/libexec/crio",
    "/opt/bin",
    "/var/lib/rancher/k3s/data/current/bin",
    "/var/lib/rancher/rke2/bin",
];

/// An agent that was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("--node-agent {}: {source}", path.display())]
pub struct AgentsError {
    path: PathBuf,
    source: std::io::Error,
}

/// The executables of the node's agents.
#[derive(Debug)]
pub struct Agents {
    files: HashSet<File>,
}

impl Agents {
    /// Finds them on the node, as its first process sees it, and adds those at `more`.
    ///
    /// # Errors
    /// [`AgentsError`].
    pub fn find(more: &[PathBuf], features: &Features) -> Result<Agents, AgentsError> {
        let mut files = HashSet::new();
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
            let exe = PathBuf::from(format!("/proc/{pid}/exe"));
            let Ok(path) = std::fs::read_link(&exe) else { continue };
            let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| NAMES.contains(&name));
            if named && on_node(pid) == Some(true) {
                files.extend(identity(&exe, features));
            }
        }
        for directory in DIRECTORIES {
            for name in BRIEF {
                let path = Path::new(directory).join(name);
                files.extend(identity(&below_node(&path), features));
            }
        }
        for path in more {
            let file = open(&below_node(path)).and_then(|file| {
                File::of(file.as_fd(), features).ok_or_else(|| std::io::Error::other("it cannot be looked at"))
            });
            files.insert(file.map_err(|source| AgentsError { path: path.clone(), source })?);
        }
        Ok(Agents { files })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl NodeAgents for Agents {
    fn holds(&self, pid: i32, features: &Features) -> Result<bool, Failure> {
        // Of a pid namespace that we do not see.
        let Some(number) = Pid::from_raw(pid).filter(|_| pid > 0) else { return Ok(false) };
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|_| Failure::ProcessLookup)?;
        // A kernel thread has no executable.
        let Some(file) = identity(Path::new(&format!("/proc/{pid}/exe")), features) else { return Ok(false) };
        let holds = self.files.contains(&file) && on_node(pid).ok_or(Failure::ProcessLookup)?;
        if alive(&pidfd) { Ok(holds) } else { Err(Failure::ProcessLookup) }
    }
}

/// Whether a process is in the node's mount namespace and in no pod's cgroup. `None`: it is gone.
fn on_node(pid: i32) -> Option<bool> {
    let its = namespace(&pid.to_string())?;
    let cgroups = Cgroups::parse(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?);
    let nodes = namespace("1").or_else(|| namespace("self"));
    Some(nodes.is_some_and(|nodes| nodes == its) && Home::of(&cgroups).is_none())
}

/// The node's is its first process's; ours, where that one cannot be looked at.
fn namespace(process: &str) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}

/// A path of the node, whose root need not be ours.
fn below_node(path: &Path) -> PathBuf {
    match namespace("1") {
        Some(_) => Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    }
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

fn identity(path: &Path, features: &Features) -> Option<File> {
    File::of(open(path).ok()?.as_fd(), features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_one_if_it_is_said_so() {
        let features = Features::default();
        let own = std::env::current_exe().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let agents = Agents::find(std::slice::from_ref(&own), &features).unwrap();
        assert_eq!(agents.holds(pid, &features), Ok(on_node(pid).unwrap()));
        let others = Agents::find(&[], &features).unwrap();
        assert_eq!(others.holds(pid, &features), Ok(false));
        // The same program, another file.
        let copy = tempfile::NamedTempFile::new().unwrap();
        std::fs::copy(&own, copy.path()).unwrap();
        let agents = Agents::find(&[copy.path().to_owned()], &features).unwrap();
        assert_eq!(agents.holds(pid, &features), Ok(false));
        let absent = Agents::find(&[PathBuf::from("/nowhere/kubelet")], &features);
        assert!(absent.unwrap_err().to_string().contains("/nowhere/kubelet"));
        assert_eq!(others.holds(0, &features), Ok(false));
    }
}
