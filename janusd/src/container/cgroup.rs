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

/// Whose a process is, by the names of its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The pod.
    pub pod: PodUid,
    /// What of it.
    pub part: Part,
}

/// A part of a pod: a cgroup below the pod's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// A container.
    Container {
        /// The runtime's id: 32 to 64 hexadecimal digits.
        id: Arc<str>,
        /// The runtime.
        runtime: Runtime,
    },
    /// A process of the runtime's own, which it keeps in the pod's cgroup.
    Helper,
    /// Neither, as far as we know: the name of the cgroup, escaped and cut short.
    Unknown(Arc<str>),
}

/// Names of cgroups that are not known are told up to this length, in characters.
const LONGEST_NAME: usize = 80;

/// Tells, `node` being the home of the node's first process ([`Home::outermost`]). `None`: it belongs to no pod of the
/// kubelet's, or its cgroup namespace hides which.
pub fn tell(cgroups: &Cgroups, node: Option<&Home>) -> Option<Told> {
    tell_home(&Home::outermost(cgroups, node)?)
}

/// The same of a home.
pub fn tell_home(home: &Home) -> Option<Told> {
    let (pod, part) = home.names();
    Some(Told { pod: told_pod(pod)?, part: told_part(part) })
}

/// The pod whose cgroup has this name, if a pod's has.
pub fn told_pod(name: &[u8]) -> Option<PodUid> {
    let name = std::str::from_utf8(name).ok()?;
    match name.strip_suffix(".slice") {
        // A UID holds no underscore: systemd takes the dash for itself.
        Some(slice) => PodUid::new(&slice[slice.rfind("-pod")? + 4..].replace('_', "-")),
        None => PodUid::new(name.strip_prefix("pod")?),
    }
}

/// What a cgroup in a pod's is, by its name.
pub fn told_part(name: &[u8]) -> Part {
    let unknown = || Part::Unknown(name.escape_ascii().map(char::from).take(LONGEST_NAME).collect::<String>().into());
    let Ok(text) = std::str::from_utf8(name) else { return unknown() };
    let text = text.strip_suffix(".scope").unwrap_or(text);
    let (kind, id) = text.rsplit_once(['-', ':']).map_or((None, text), |(kind, id)| (Some(kind), id));
    if !((32..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))) {
        return unknown();
    }
    let runtime = match kind {
        None => Runtime::Unsaid,
        Some("cri-containerd") => Runtime::Containerd,
        Some("crio") => Runtime::Crio,
        Some("docker") => Runtime::Docker,
        Some("crio-conmon") => return Part::Helper,
        Some(_) => return unknown(),
    };
    Part::Container { id: id.into(), runtime }
}

/// What lies beside pods' cgroups, in a directory of the kubelet's, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A pod's cgroup.
    Pod(PodUid),
    /// A container's, which its runtime has put beside the pod's instead of into it: it does not use systemd, and was told
    /// systemd's names.
    Scattered(PodUid),
    /// The pods of a class of quality of service.
    Class,
    /// None of these.
    Other,
}

/// Tells what it is.
pub fn told_entry(name: &[u8]) -> Entry {
    if let Some(pod) = told_pod(name) {
        return Entry::Pod(pod);
    }
    let at = name.windows(7).position(|word| word == b".slice:");
    if let Some(pod) = at.and_then(|at| told_pod(&name[..at + 6])) {
        return Entry::Scattered(pod);
    }
    let class = name.strip_suffix(b".slice").unwrap_or(name);
    if class.ends_with(b"burstable") || class.ends_with(b"besteffort") { Entry::Class } else { Entry::Other }
}

/// The directory in which the kubelet has put a pod's cgroup. `None`: the pod's is at the top.
pub fn parent(pod: &[u8]) -> Option<&[u8]> {
    let at = pod.iter().rposition(|byte| *byte == b'/')?;
    Some(&pod[..at]).filter(|parent| !parent.is_empty())
}

/// Whether a mount with these options is of a hierarchy as `/proc/PID/cgroup` names it: by its controllers, or by nothing
/// for the unified one, whose mounts have no options here.
pub fn mounts_hierarchy(options: &[u8], hierarchy: &[u8]) -> bool {
    if hierarchy.is_empty() || options.is_empty() {
        return hierarchy == options;
    }
    hierarchy
        .split(|byte| *byte == b',')
        .all(|controller| options.split(|byte| *byte == b',').any(|it| it == controller))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "5a1f0b6e-8f5c-4f0e-9f3d-6f5b2c1d7e80";
    const ID: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

    fn told(line: &str) -> Option<Told> {
        tell(&Cgroups::parse(line.as_bytes()), None)
    }

    fn container(runtime: Runtime) -> Option<Told> {
        Some(Told { pod: PodUid::new(UID).unwrap(), part: Part::Container { id: ID.into(), runtime } })
    }

    #[test]
    fn every_form() {
        let slices = UID.replace('-', "_");
        let other = ID.replace('c', "d");
        for (path, runtime) in [
            (format!("/kubepods/burstable/pod{UID}/{ID}"), Runtime::Unsaid),
            (format!("/k8s-node1/kubepods/pod{UID}/{ID}"), Runtime::Unsaid),
            (format!("/kubepods/besteffort/pod{UID}/crio-{ID}"), Runtime::Crio),
            // What a container makes below its own cgroup is its own, whatever it calls it.
            (format!("/kubepods/besteffort/pod{UID}/{ID}/inner"), Runtime::Unsaid),
            (format!("/kubepods/besteffort/pod{UID}/{ID}/kubepods/pod0/{other}"), Runtime::Unsaid),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slices}.slice/cri-containerd-{ID}.scope"
                ),
                Runtime::Containerd,
            ),
            (
                format!(
                    "/k8s_node1.slice/k8s_node1-kubepods.slice/k8s_node1-kubepods-pod{slices}.slice/crio-{ID}.scope"
                ),
                Runtime::Crio,
            ),
            (format!("/kubepods.slice/kubepods-pod{slices}.slice/crio-{ID}.scope/container"), Runtime::Crio),
            (
                format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{slices}.slice/docker-{ID}.scope"),
                Runtime::Docker,
            ),
            // Names for systemd, in the hands of a runtime that does not use it.
            (format!("/kubepods-besteffort-pod{slices}.slice:cri-containerd:{ID}"), Runtime::Containerd),
            (format!("/system.slice/x.service/kubepods-pod{slices}.slice:crio:{ID}/below"), Runtime::Crio),
            // Seen from a sibling's cgroup namespace.
            (format!("/../kubepods-besteffort-pod{slices}.slice/cri-containerd-{ID}.scope"), Runtime::Containerd),
        ] {
            for line in
                [format!("0::{path}"), format!("12:pids:{path}\n0::/\n"), format!("4:memory:/x\n3:cpu,cpuacct:{path}")]
            {
                assert_eq!(told(&line), container(runtime), "{line}");
            }
        }
        // A static pod.
        let hash = "0123456789abcdef0123456789abcdef";
        let told = told(&format!("0::/kubepods/pod{hash}/{ID}")).unwrap();
        assert_eq!(told.pod.as_str(), hash);
    }

    #[test]
    fn what_is_in_no_pod() {
        for path in [
            "/".to_owned(),
            "/../../..".to_owned(),
            "/system.slice/kubelet.service".to_owned(),
            format!("/kubepods/burstable/pod{UID}"),
            format!("/pod{UID}/{ID}"),
            // Seen from a sibling's cgroup namespace, it cannot be told.
            format!("/../pod{UID}/{ID}"),
            format!("/kubepods/pod../{ID}"),
        ] {
            assert_eq!(told(&format!("0::{path}")), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_container() {
        let slices = UID.replace('-', "_");
        let part = |path: String| told(&format!("0::{path}")).unwrap().part;
        let unknown = |name: &str| Part::Unknown(name.into());
        assert_eq!(part(format!("/kubepods/pod{UID}/short")), unknown("short"));
        assert_eq!(part(format!("/kubepods/pod{UID}/{}", "G".repeat(64))), unknown(&"G".repeat(64)));
        assert_eq!(part(format!("/kubepods/pod{UID}/{}", "x".repeat(200))), unknown(&"x".repeat(LONGEST_NAME)));
        assert_eq!(part(format!("/kubepods/pod{UID}/kata_{ID}")), unknown(&format!("kata_{ID}")));
        assert_eq!(part(format!("/kubepods/pod{UID}/a\u{1b}b")), unknown("a\\x1bb"));
        assert_eq!(part(format!("/kubepods.slice/kubepods-pod{slices}.slice/crio-conmon-{ID}.scope")), Part::Helper);
    }

    /// A node that is a container of another's: its pods are told, and what is around them is not.
    #[test]
    fn a_node_in_a_pod() {
        let outer = format!("/kubepods/pod99/{}", ID.replace('c', "d"));
        let node = Home::of(&Cgroups::parse(format!("4:pids:{outer}/init.scope\n0::/\n").as_bytes()));
        let tell = |path: &str| tell(&Cgroups::parse(format!("4:pids:{path}\n0::/\n").as_bytes()), node.as_ref());
        assert_eq!(tell(&format!("{outer}/kubelet/kubepods/pod{UID}/{ID}")), container(Runtime::Unsaid));
        assert_eq!(tell(&format!("{outer}/kubepods/pod{UID}/{ID}/kubepods/pod1/{ID}")), container(Runtime::Unsaid));
        assert_eq!(tell(&format!("{outer}/kubelet")), None);
        assert_eq!(tell(&outer), None);
        // Not the node's: a sibling of it.
        assert_eq!(tell(&format!("/kubepods/pod{UID}/{ID}")), container(Runtime::Unsaid));
    }

    #[test]
    fn what_lies_beside_pods() {
        let slices = UID.replace('-', "_");
        let uid = || PodUid::new(UID).unwrap();
        for (name, entry) in [
            (format!("pod{UID}"), Entry::Pod(uid())),
            (format!("kubepods-burstable-pod{slices}.slice"), Entry::Pod(uid())),
            (format!("kubepods-besteffort-pod{slices}.slice:cri-containerd:{ID}"), Entry::Scattered(uid())),
            ("burstable".to_owned(), Entry::Class),
            ("kubepods-besteffort.slice".to_owned(), Entry::Class),
            ("k8s_n1-kubepods-burstable.slice".to_owned(), Entry::Class),
            ("kubepods".to_owned(), Entry::Other),
            ("kubepods.slice".to_owned(), Entry::Other),
            ("x.slice:y:z".to_owned(), Entry::Other),
            (format!("cri-containerd-{ID}.scope"), Entry::Other),
            (ID.to_owned(), Entry::Other),
            ("cgroup.procs".to_owned(), Entry::Other),
        ] {
            assert_eq!(told_entry(name.as_bytes()), entry, "{name}");
        }
    }

    #[test]
    fn hierarchies_by_their_options() {
        for (options, hierarchy) in [
            ("", ""),
            ("rw,cpu,cpuacct", "cpu,cpuacct"),
            ("rw,cpu,cpuacct", "cpuacct,cpu"),
            ("rw,xattr,name=systemd", "name=systemd"),
        ] {
            assert!(mounts_hierarchy(options.as_bytes(), hierarchy.as_bytes()), "{options} {hierarchy}");
        }
        for (options, hierarchy) in
            [("rw,cpu,cpuacct", ""), ("", "pids"), ("rw,cpuset", "cpu"), ("rw,cpu", "cpu,cpuacct")]
        {
            assert!(!mounts_hierarchy(options.as_bytes(), hierarchy.as_bytes()), "{options} {hierarchy}");
        }
    }

    /// Where a kubelet puts a pod, whatever its driver: the prefix, the class, the UID.
    fn a_pods_cgroup() -> impl Strategy<Value = (String, Option<String>, String, String)> {
        let class = prop::option::of(prop::sample::select(vec!["burstable", "besteffort"]));
        ("(/[a-z0-9]{1,8}){0,3}", class, "[a-z0-9]{1,8}(-[a-z0-9]{1,8}){0,4}", any::<bool>()).prop_map(
            |(prefix, class, uid, systemd)| {
                let (top, class, pod) = if systemd {
                    let dashed = class.map_or(String::new(), |class| format!("-{class}"));
                    let pod = format!("kubepods{dashed}-pod{}.slice", uid.replace('-', "_"));
                    ("kubepods.slice", class.map(|_| format!("kubepods{dashed}.slice")), pod)
                } else {
                    ("kubepods", class.map(str::to_owned), format!("pod{uid}"))
                };
                (format!("{prefix}/{top}"), class, pod, uid)
            },
        )
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _told = tell(&Cgroups::parse(&bytes), None);
            let _entry = told_entry(&bytes);
            let _parent = parent(&bytes);
            let _mounted = mounts_hierarchy(&bytes, b"cpu");
        }

        /// What is told of a process in a pod, and what is told of the directories that lead there, is the same.
        #[test]
        fn directories_tell_what_processes_tell((top, class, pod, uid) in a_pods_cgroup()) {
            let above = class.iter().fold(top.clone(), |path, class| format!("{path}/{class}"));
            let home = Home::outermost(&Cgroups::parse(format!("0::{above}/{pod}/{ID}\n").as_bytes()), None).unwrap();
            let told = tell_home(&home).unwrap();
            prop_assert_eq!(told.pod.as_str(), &uid);
            prop_assert_eq!(told_entry(pod.as_bytes()), Entry::Pod(told.pod));
            prop_assert_eq!(parent(home.pod().1), Some(above.as_bytes()));
            if let Some(class) = class {
                prop_assert_eq!(told_entry(class.as_bytes()), Entry::Class);
                prop_assert_eq!(parent(above.as_bytes()), Some(top.as_bytes()));
            }
            let scattered = told_entry(format!("{pod}:crio:{ID}").as_bytes());
            prop_assert_eq!(matches!(scattered, Entry::Scattered(_)), pod.ends_with(".slice"));
        }

        /// No container's name is taken for a pod's, or for what holds pods.
        #[test]
        fn no_container_is_an_entry(id in "[a-f0-9]{32,64}", form in prop::sample::select(vec![
            "{}", "crio-{}", "crio-{}.scope", "cri-containerd-{}.scope", "docker-{}.scope", "crio-conmon-{}.scope",
        ])) {
            prop_assert_eq!(told_entry(form.replace("{}", &id).as_bytes()), Entry::Other);
        }

        #[test]
        fn any_names_end(pod in "[a-z0-9_.-]{0,80}", container in "[a-f0-9-]{0,80}(\\.scope)?") {
            let _told = told(&format!("0::/kubepods/pod{pod}/{container}"));
            let _told = told(&format!("0::/kubepods.slice/kubepods-pod{pod}.slice/{container}"));
        }

        /// Whatever a container makes below its cgroup: it stays that container.
        #[test]
        fn no_container_becomes_another(below in "(/(kubepods(-besteffort)?(.slice)?|pod[0-9]|kubepods-pod1.slice|[a-f]{64}|x)){0,6}") {
            prop_assert_eq!(told(&format!("0::/kubepods/pod{UID}/{ID}{below}")), container(Runtime::Unsaid));
        }
    }
}
