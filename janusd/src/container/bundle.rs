//! What a runtime left on the disk for a container: what it is called in its pod.
//!
//! Read from the runtime's state directories, never from the container. A name that cannot be read is not known, and the
//! container is guarded all the same.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

/// A bundle is larger than this only by mistake. Bytes.
const LARGEST: u64 = 1024 * 1024;

/// Where runtimes keep bundles, `{}` being the container's id.
const PLACES: [&str; 4] = [
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json",
    "run/containers/storage/overlay-containers/{}/userdata/config.json",
    "var/lib/docker/containers/{}/config.v2.json",
];

/// What a bundle says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The container's name in its pod; none for a sandbox.
    pub name: Option<String>,
    /// It is the pod's sandbox (the pause container), and no container of the pod's spec.
    pub sandbox: bool,
}

/// An OCI runtime's `config.json`, or docker's `config.v2.json`.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default, rename = "Config")]
    config: Option<DockerConfig>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default, rename = "Labels")]
    labels: BTreeMap<String, String>,
}

/// Takes a bundle apart. `None`: it is of no container of the kubelet's.
pub fn parse(json: &[u8]) -> Option<Bundle> {
    let document: Document = serde_json::from_slice(json).ok()?;
    let said = |key: &str| {
        let label = || document.config.as_ref().and_then(|config| config.labels.get(key));
        document.annotations.get(key).or_else(label).map(String::as_str)
    };
    let kinds = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType", "io.kubernetes.docker.type"];
    let kind = kinds.into_iter().find_map(said);
    let names = ["io.kubernetes.cri.container-name", "io.kubernetes.container.name"];
    let name = names.into_iter().find_map(said).filter(|name| is_label(name));
    match kind? {
        "sandbox" | "podsandbox" => Some(Bundle { name: None, sandbox: true }),
        _ => Some(Bundle { name: Some(name?.to_owned()), sandbox: false }),
    }
}

/// A container's name is a DNS label.
fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Reads the bundle of a container below a root of the node's. `None`: there is none, or none that says what it is.
pub fn read(root: BorrowedFd<'_>, container: &str) -> Option<Bundle> {
    PLACES.iter().find_map(|place| {
        let path = place.replace("{}", container);
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(root, OsStr::from_bytes(path.as_bytes()), flags, Mode::empty(), inside).ok()?;
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(LARGEST).read_to_end(&mut bytes).ok()?;
        parse(&bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn named(name: &str) -> Option<Bundle> {
        Some(Bundle { name: Some(name.to_owned()), sandbox: false })
    }

    #[test]
    fn each_runtime() {
        let containerd = r#"{"ociVersion":"1.0.2","process":{"args":["sh"]},"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container"}}"#;
        assert_eq!(parse(containerd.as_bytes()), named("app"));
        let crio =
            r#"{"annotations":{"io.kubernetes.container.name":"app","io.kubernetes.cri-o.ContainerType":"container"}}"#;
        assert_eq!(parse(crio.as_bytes()), named("app"));
        let docker = r#"{"ID":"x","Config":{"Labels":{"io.kubernetes.container.name":"app","io.kubernetes.docker.type":"container"}}}"#;
        assert_eq!(parse(docker.as_bytes()), named("app"));
        for kind in
            ["\"io.kubernetes.cri.container-type\":\"sandbox\"", "\"io.kubernetes.cri-o.ContainerType\":\"sandbox\""]
        {
            let json = format!("{{\"annotations\":{{{kind}}}}}");
            assert_eq!(parse(json.as_bytes()), Some(Bundle { name: None, sandbox: true }));
        }
        let docker =
            r#"{"Config":{"Labels":{"io.kubernetes.container.name":"POD","io.kubernetes.docker.type":"podsandbox"}}}"#;
        assert!(parse(docker.as_bytes()).is_some_and(|bundle| bundle.sandbox));
    }

    #[test]
    fn what_says_nothing() {
        for json in [
            "",
            "{}",
            "[]",
            "{\"annotations\":{}}",
            "{\"annotations\":null}",
            r#"{"annotations":{"io.kubernetes.cri.container-type":"container"}}"#,
            r#"{"annotations":{"io.kubernetes.cri.container-name":"a\nb","io.kubernetes.cri.container-type":"container"}}"#,
        ] {
            assert_eq!(parse(json.as_bytes()), None, "{json}");
        }
    }

    #[test]
    fn is_read_below_its_root_only() {
        let root = tempfile::tempdir().unwrap();
        let bundle = root.path().join("run/containerd/io.containerd.runtime.v2.task/k8s.io/cafe");
        std::fs::create_dir_all(&bundle).unwrap();
        let json = r#"{"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container"}}"#;
        std::fs::write(root.path().join("elsewhere.json"), json).unwrap();
        // An absolute symlink is taken from that root.
        std::os::unix::fs::symlink("/elsewhere.json", bundle.join("config.json")).unwrap();
        let opened = std::fs::File::open(root.path()).unwrap();
        assert_eq!(read(opened.as_fd(), "cafe"), named("app"));
        assert_eq!(read(opened.as_fd(), "c0de"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _bundle = parse(&bytes);
        }
    }
}
