//! The harness itself: what a node leaves behind.

use std::fs;
use std::path::PathBuf;

use crate::case::Case;
use crate::inside::cgroup_directories;
use crate::node::Node;
use crate::pod::{PLAIN, Pod, Volume};

crate::pod_tests![leaves_nothing_behind.without_control()];

/// A node that is taken down with a pod on it leaves no process, mount, cgroup or file.
fn leaves_nothing_behind(_: &Case) {
    let node = std::sync::Arc::new(Node::start());
    let pod = Pod::start(&node, &PLAIN);
    pod.make(Volume::Secret("s"));
    let app = pod.start_app("app", &[Volume::Secret("s")]);
    let pids = fs::read_link(format!("/proc/{}/ns/pid", node.init)).unwrap();
    assert!(processes().any(|(_, namespace)| namespace == pids));
    let (scratch, cgroup) = (node.scratch(""), node.cgroup());
    let directories = cgroup_directories(cgroup.trim_start_matches('/'));
    assert!(directories.iter().any(|directory| directory.exists()) && scratch.exists());
    assert_eq!(app.cat("/volumes/s/token"), Ok("token 0".to_owned()));
    node.end();
    let left: Vec<_> = directories.iter().filter(|directory| directory.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!scratch.exists());
    let name = scratch.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&name), "{mounts}");
    // Containers have pid namespaces of their own, which end with the node's.
    let left = processes().find(|(_, namespace)| *namespace == pids);
    assert_eq!(left, None);
}

/// Processes, each with its pid namespace.
fn processes() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| Some((entry.path(), fs::read_link(entry.path().join("ns/pid")).ok()?)))
}
