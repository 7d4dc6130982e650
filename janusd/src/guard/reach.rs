//! Which kind of mark a mount gets. Pure, and the table that README's "what is gated" rests on.

pub use crate::root::fstype::{Refusal, refused};

/// What is known about a mount that a rule reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountFacts<'a> {
    /// File system type, without a subtype.
    pub fstype: &'a str,
    /// The file system is also mounted on the node itself, elsewhere than in the kubelet's directory for a pod.
    pub on_node: bool,
    /// The mount belongs to a mount namespace other than the node's: a mark on it reaches the container's view only.
    pub own_mount: bool,
    /// The volume is the pod's alone: it lies in the kubelet's directory for a pod, or is the container's root.
    pub pods_own: bool,
    /// It is mounted on the container's `/dev`.
    pub dev: bool,
    /// A layer of the overlay lies on a file system that is refused.
    pub refused_layer: bool,
}

/// How a mount is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// One mark on the file system: everything in it, by whatever mount.
    Filesystem,
    /// One mark on the mount: everything that is opened through it. `inodes`: and marks on what is there, which hold
    /// against those who come by another mount.
    Mount {
        /// Whether inode marks are laid as well.
        inodes: bool,
    },
    /// Marks on files and directories only: the rest of the machine shares this file system and this mount.
    Inodes,
    /// Not gated.
    Refused(Refusal),
}

/// Chooses.
pub fn reach(mount: &MountFacts<'_>) -> Reach {
    if let Some(refusal) = refused(mount.fstype) {
        return Reach::Refused(refusal);
    }
    if mount.refused_layer {
        return Reach::Refused(Refusal::CanHang);
    }
    if mount.dev {
        return Reach::Refused(Refusal::Devices);
    }
    match mount.fstype {
        "overlay" | "tmpfs" | "ramfs" if !mount.on_node => Reach::Filesystem,
        _ if mount.own_mount => Reach::Mount { inodes: mount.pods_own },
        _ => Reach::Inodes,
    }
}

/// Whether a path is inside the kubelet's directory for one pod, in a part that is the pod's alone: the volumes of
/// Secret, ConfigMap, projected, downward-api and emptyDir, and the files that kubelet makes (`etc-hosts`, termination
/// logs). hostPath and PVC volumes lie elsewhere, or may be shared.
pub fn pods_own(path: &[u8]) -> bool {
    let mut segments = path.split(|b| *b == b'/');
    if !segments.by_ref().any(|s| s == b"pods") {
        return false;
    }
    let rest: Vec<&[u8]> = segments.collect();
    match rest.as_slice() {
        [_, b"volumes" | b"volume-subpaths", ..] => rest.iter().any(|s| {
            matches!(
                *s,
                b"kubernetes.io~secret"
                    | b"kubernetes.io~configmap"
                    | b"kubernetes.io~projected"
                    | b"kubernetes.io~downward-api"
                    | b"kubernetes.io~empty-dir"
            )
        }),
        [_, b"etc-hosts"] | [_, b"containers", ..] => true,
        _ => false,
    }
}

/// The layers that an overlay's mount options name, as the process that mounted it wrote them.
pub fn overlay_layers(options: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = Vec::new();
    for option in split_unescaped(options, b',') {
        let Some(at) = option.iter().position(|b| *b == b'=') else { continue };
        let (key, value) = (&option[..at], &option[at + 1..]);
        match key {
            b"upperdir" | b"lowerdir+" | b"datadir+" => layers.push(plain(value)),
            b"lowerdir" => layers.extend(
                split_unescaped(value, b':').into_iter().filter(|layer| !layer.is_empty()).map(|layer| plain(&layer)),
            ),
            _ => {}
        }
    }
    layers
}

fn split_unescaped(text: &[u8], at: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut escaped = false;
    for byte in text {
        if *byte == at && !escaped {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(*byte);
        }
        escaped = *byte == b'\\' && !escaped;
    }
    parts
}

fn plain(escaped: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter().copied();
    while let Some(byte) = bytes.next() {
        out.extend(if byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(fstype: &str) -> MountFacts<'_> {
        MountFacts { fstype, on_node: false, own_mount: true, pods_own: false, dev: false, refused_layer: false }
    }

    #[test]
    fn the_table() {
        use Reach::{Filesystem, Inodes, Mount, Refused};
        let of = |f: MountFacts<'_>| reach(&f);
        assert_eq!(of(facts("overlay")), Filesystem);
        assert_eq!(of(facts("tmpfs")), Filesystem);
        // A hostPath of the node's own tmpfs: the container's view only.
        assert_eq!(of(MountFacts { on_node: true, ..facts("tmpfs") }), Mount { inodes: false });
        // The node's own overlay or tmpfs, through the node's own mount.
        assert_eq!(of(MountFacts { on_node: true, own_mount: false, ..facts("overlay") }), Inodes);
        assert_eq!(of(facts("ext4")), Mount { inodes: false });
        assert_eq!(of(MountFacts { pods_own: true, ..facts("xfs") }), Mount { inodes: true });
        assert_eq!(of(MountFacts { own_mount: false, pods_own: true, ..facts("btrfs") }), Inodes);
        assert_eq!(of(facts("fuse")), Refused(Refusal::CanHang));
        assert_eq!(of(facts("proc")), Refused(Refusal::Virtual));
        assert_eq!(of(facts("brandnewnetfs")), Refused(Refusal::Unknown));
        assert_eq!(of(MountFacts { dev: true, ..facts("tmpfs") }), Refused(Refusal::Devices));
        assert_eq!(of(MountFacts { refused_layer: true, ..facts("overlay") }), Refused(Refusal::CanHang));
    }

    #[test]
    fn what_kubelet_makes_for_one_pod() {
        for own in [
            "/var/lib/kubelet/pods/1-2/volumes/kubernetes.io~secret/s",
            "/pods/1-2/volumes/kubernetes.io~empty-dir/v/sub",
            "/pods/1-2/etc-hosts",
            "/pods/1-2/containers/app/f00",
            "/pods/1-2/volume-subpaths/x/kubernetes.io~configmap/app/0",
        ] {
            assert!(pods_own(own.as_bytes()), "{own}");
        }
        for other in ["/srv/data", "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pvc/mount", "/pods", "/pods/1"] {
            assert!(!pods_own(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn layers() {
        let of = |o: &str| {
            overlay_layers(o.as_bytes()).into_iter().map(|l| String::from_utf8(l).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of("rw,lowerdir=/a:/b\\:c,upperdir=/u\\,v,workdir=/w"), ["/a", "/b:c", "/u,v"]);
        assert_eq!(of("rw,lowerdir=/a::/data,index=off"), ["/a", "/data"]);
        assert_eq!(of("rw"), [""; 0]);
    }
}
