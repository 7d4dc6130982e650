//! Whose process is it: pod, container and runtime, of the names of its cgroups. Pure.
//!
//! The kubelet names a pod's cgroup `pod<uid>` (driver cgroupfs) or `kubepods[-<qos>]-pod<uid>.slice` with `_` for `-`
//! (driver systemd); the runtime names the container's below it `<id>`, `crio-<id>`, or `<runtime>-<id>.scope`.

use std::sync::Arc;

use crate::process::facts::Cgroups;
use crate::process::origin::Home;

/// A pod, as its cgroups are named: for a static pod not the UID that the API server knows it by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Letters, digits and dashes, at most 63.
    pub fn new(uid: &str) -> Option<PodUid> {
        let fits = !uid.is_empty() && uid.len() <= 63 && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        fits.then(|| PodUid(uid.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Who started a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd, by its CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
    /// docker, by cri-dockerd.
    Docker,
    /// The cgroup's name does not say: driver cgroupfs.
    Unsaid,
}

/// What the names of cgroups tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The pod.
    pub pod: PodUid,
    /// The runtime's id of the container: 32 to 64 hexadecimal digits.
    pub container: Arc<str>,
    /// The runtime.
    pub runtime: Runtime,
}

/// Tells. `None`: it belongs to no container of the kubelet's, or its cgroup namespace hides which.
pub fn tell(cgroups: &Cgroups) -> Option<Told> {
    let home = Home::of(cgroups)?;
    let (pod, container) = home.names();
    let (runtime, container) = told_container(std::str::from_utf8(container).ok()?)?;
    Some(Told { pod: told_pod(std::str::from_utf8(pod).ok()?)?, container: container.into(), runtime })
}

fn told_pod(name: &str) -> Option<PodUid> {
    match name.strip_suffix(".slice") {
        // A UID holds no underscore: systemd takes the dash for itself.
        Some(slice) => PodUid::new(&slice[slice.rfind("-pod")? + 4..].replace('_', "-")),
        None => PodUid::new(name.strip_prefix("pod")?),
    }
}

fn told_container(name: &str) -> Option<(Runtime, &str)> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (runtime, id) = match name.rsplit_once('-') {
        None => (Runtime::Unsaid, name),
        Some(("cri-containerd", id)) => (Runtime::Containerd, id),
        Some(("crio", id)) => (Runtime::Crio, id),
        Some(("docker", id)) => (Runtime::Docker, id),
        // `crio-conmon-<id>`: CRI-O's own process beside the container.
        Some(_) => return None,
    };
    let id_like = (32..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit());
    id_like.then_some((runtime, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80";
    const ID: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

    fn of(line: &str) -> Option<(String, String, Runtime)> {
        let told = tell(&Cgroups::parse(line.as_bytes()))?;
        Some((told.pod.as_str().to_owned(), told.container.to_string(), told.runtime))
    }

    #[test]
    fn every_form() {
        let slices = UID.replace('-', "_");
        for (path, runtime) in [
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Runtime::Unsaid),
            (format!("/k8s-node1/kubepods/pod{UID}/{ID}"), Runtime::Unsaid),
            (format!("/kubepods/besteffort/pod{UID}/crio-{ID}"), Runtime::Crio),
            // What a container makes below its own cgroup is its own.
            (format!("/kubepods/besteffort/pod{UID}/{ID}/inner/pod0/{}", ID.replace('c', "d")), Runtime::Unsaid),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slices}.slice/cri-containerd-{ID}.scope"
                ),
                Runtime::Containerd,
            ),
            (format!("/kubepods.slice/kubepods-pod{slices}.slice/crio-{ID}.scope/container"), Runtime::Crio),
            (
                format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slices}.slice/docker-{ID}.scope"),
                Runtime::Docker,
            ),
        ] {
            let expected = Some((UID.to_owned(), ID.to_owned(), runtime));
            for line in
                [format!("0::{path}"), format!("12:pids:{path}\n0::/\n"), format!("4:memory:/x\n3:cpu,cpuacct:{path}")]
            {
                if path.contains("/inner/pod0/") {
                    assert!(of(&line).is_some_and(|(_, id, _)| id.len() == 64), "{line}");
                } else {
                    assert_eq!(of(&line), expected, "{line}");
                }
            }
        }
        // A static pod.
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(of(&format!("0::/kubepods/pod{hash}/{ID}")).map(|told| told.0).as_deref(), Some(hash));
    }

    #[test]
    fn what_is_no_container() {
        let slices = UID.replace('-', "_");
        for path in [
            "/".to_owned(),
            "/../../..".to_owned(),
            "/system.slice/kubelet.service".to_owned(),
            format!("/kubepods/burstable/pod{UID}"),
            format!("/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/short"),
            format!("/kubepods/pod{UID}/{}", "g".repeat(64)),
            format!("/kubepods.slice/kubepods-pod{slices}.slice/crio-conmon-{ID}.scope"),
        ] {
            assert_eq!(of(&format!("0::{path}")), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _told = tell(&Cgroups::parse(&bytes));
        }

        #[test]
        fn any_names_end(pod in "[a-z0-9_.-]{0,80}", container in "[a-f0-9-]{0,80}(\\.scope)?") {
            let _told = of(&format!("0::/kubepods/pod{pod}/{container}"));
            let _told = of(&format!("0::/kubepods.slice/kubepods-pod{pod}.slice/{container}"));
        }
    }
}
