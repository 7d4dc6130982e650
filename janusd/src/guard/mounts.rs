//! The mounts of a guarded root, each with the [`Reach`] that was chosen for it.

use std::os::fd::{AsFd, BorrowedFd};

use super::reach::{self, MountFacts, Reach, Refusal};
use super::survey::SurveyError;
use super::view::{Place, Showing, Tree, View, below, join};
use crate::fanotify::Features;
use crate::fanotify::look::{self, Stat};
use crate::root::Root;
use crate::root::mountinfo::{self, Mount};
use crate::root::resolve::{Gate, open_in};

/// One mount of the root, with what the survey decided about it.
pub(super) struct Surveyable {
    pub(super) mount: Mount,
    /// Its mountpoint as strings of its mount tree have it.
    pub(super) tree_at: Vec<u8>,
    /// Its mountpoint inside the root; `/` for the mount on which the root lies.
    pub(super) at: Vec<u8>,
    /// What of it shows at `at`.
    pub(super) shown: Vec<u8>,
    /// Its id as `statx` gives it; `None`: hidden under another mount, or not looked at.
    pub(super) id: Option<u64>,
    pub(super) reach: Reach,
}

impl Surveyable {
    /// Whether both show some file of the same file system. True of a mount and itself.
    pub(super) fn overlaps(&self, other: &Surveyable) -> bool {
        self.mount.device() == other.mount.device()
            && (below(&self.shown, &other.shown).is_some() || below(&other.shown, &self.shown).is_some())
    }
}

pub(super) struct Mounts {
    all: Vec<Surveyable>,
    own: bool,
}

impl Mounts {
    pub(super) fn read(root: &Root, root_fd: BorrowedFd<'_>, features: &Features) -> Result<Mounts, SurveyError> {
        let ours = parse("/proc/self/mountinfo");
        let nodes = parse("/proc/1/mountinfo");
        let listed = root.mountinfo()?;
        // What strings of the root's mount tree begin with: "/" after pivot_root, more in a chroot or a plain directory.
        let prefix = look::Names::new()?.of(root_fd)?.to_vec();
        let root_id = look::mountinfo_id(root_fd)?;
        let of_process = matches!(root, Root::Process { .. });
        let own_namespace = of_process && !shares_node_namespace(root);

        let mut found: Vec<(Mount, Vec<u8>)> = listed
            .into_iter()
            .map(|mount| {
                // A process's mountinfo is relative to its root.
                let rest = if mount.mountpoint == b"/" { &b""[..] } else { &mount.mountpoint };
                let tree_at = if of_process { join(&prefix, rest) } else { mount.mountpoint.clone() };
                (mount, tree_at)
            })
            .collect();
        if !found.iter().any(|(mount, _)| mount.id == root_id) {
            // The process is chrooted inside a mount that its own mountinfo does not list.
            let above = ours.iter().chain(&nodes).find(|mount| mount.id == root_id);
            let above = above.ok_or(SurveyError::RootMount)?;
            found.push((above.clone(), above.mountpoint.clone()));
        }

        let facts = Node { ours: &ours, nodes: &nodes, own_namespace };
        let mut mounts = Vec::new();
        for (mount, tree_at) in found {
            let (at, shown) = if let Some(rest) = below(&prefix, &tree_at) {
                (if rest.is_empty() { b"/".to_vec() } else { rest.to_vec() }, mount.root.clone())
            } else if mount.id == root_id {
                let Some(rest) = below(&tree_at, &prefix) else { continue };
                (b"/".to_vec(), join(&mount.root, rest))
            } else {
                continue;
            };
            let reach = facts.reach(&mount, &at);
            let id = match reach {
                // Never stepped on: a FUSE server could keep us there.
                Reach::Refused(_) => None,
                _ => open_in(root_fd, &at)
                    .ok()
                    .filter(|file| look::mountinfo_id(file.as_fd()).is_ok_and(|id| id == mount.id))
                    .and_then(|file| look::stat(file.as_fd(), features).ok())
                    .map(|stat| stat.mount),
            };
            mounts.push(Surveyable { mount, tree_at, at, shown, id, reach });
        }
        Ok(Mounts { all: mounts, own: own_namespace })
    }

    /// Whether they are in a mount namespace of the root's own.
    pub(super) fn own(&self) -> bool {
        self.own
    }

    pub(super) fn view(&self) -> View {
        let guarded = || self.all.iter().filter(|m| !matches!(m.reach, Reach::Refused(_)));
        View {
            mounts: guarded()
                .filter_map(|m| {
                    let tree = Tree { device: m.mount.device(), root: m.mount.root.clone(), at: m.tree_at.clone() };
                    let watched = matches!(m.reach, Reach::Filesystem | Reach::Mount { inodes: true });
                    Some(Showing { mount: m.id?, tree, watched })
                })
                .collect(),
            places: guarded()
                .map(|m| Place { device: m.mount.device(), root: m.shown.clone(), at: m.at.clone() })
                .collect(),
        }
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Surveyable> {
        self.all.iter()
    }

    /// The mount on which a path (free of symlinks) lies: the deepest, and of several on one mountpoint the last.
    pub(super) fn holding(&self, path: &[u8]) -> Option<&Surveyable> {
        self.all.iter().filter(|m| below(&m.at, path).is_some()).max_by_key(|m| m.at.len())
    }
}

impl Gate for Mounts {
    fn enter(&self, file: BorrowedFd<'_>, stat: &Stat) -> bool {
        // A mount that has come since the list was read is not entered: its coming starts another survey.
        let harmless = |reach| !matches!(reach, Reach::Refused(Refusal::CanHang | Refusal::Unknown | Refusal::Virtual));
        self.all.iter().any(|m| m.id == Some(stat.mount))
            || look::mountinfo_id(file).is_ok_and(|id| self.all.iter().any(|m| m.mount.id == id && harmless(m.reach)))
    }
}

fn parse(path: &str) -> Vec<Mount> {
    // Without hostPID there may be no process 1 that we can read; then there is nothing to compare with.
    std::fs::read(path).map(|bytes| mountinfo::parse(&bytes)).unwrap_or_default()
}

/// Whether the root's mounts are the node's own.
pub(super) fn shares_node_namespace(root: &Root) -> bool {
    let Root::Process { pid, .. } = root else { return true };
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let its = namespace(&pid.as_raw_nonzero().to_string());
    // In doubt it is the node's: inode marks reach fewer.
    its.is_none() || its == namespace("self") || its == namespace("1")
}

/// What is mounted on the node.
struct Node<'a> {
    ours: &'a [Mount],
    nodes: &'a [Mount],
    own_namespace: bool,
}

impl Node<'_> {
    fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.ours.iter().chain(self.nodes)
    }

    fn reach(&self, mount: &Mount, at: &[u8]) -> Reach {
        let same = |other: &&Mount| other.device() == mount.device();
        // A container's root overlay is mounted on the node as well, by its runtime; it is the container's all the same,
        // unless it is the node's own root.
        let on_node = if at == b"/" && mount.fstype == "overlay" {
            self.mounts().filter(same).any(|other| other.mountpoint == b"/")
        } else {
            self.mounts().filter(same).any(|other| !reach::pods_own(&other.mountpoint))
        };
        let layers = reach::overlay_layers(&mount.options);
        let refused_layer = mount.fstype == "overlay" && layers.iter().any(|layer| self.refused(layer));
        reach::reach(&MountFacts {
            fstype: &mount.fstype,
            on_node,
            own_mount: self.own_namespace,
            // A root that shows what the node's own root shows is no container's: a process in a mount namespace of its
            // own, say.
            pods_own: reach::pods_own(&mount.root) || (at == b"/" && !self.is_root(mount)),
            dev: at == b"/dev",
            refused_layer,
        })
    }

    /// Whether the node's own root is the same part of the same file system.
    fn is_root(&self, mount: &Mount) -> bool {
        self.mounts().any(|o| o.mountpoint == b"/" && o.device() == mount.device() && o.root == mount.root)
    }

    /// Whether a path of the node lies on FUSE or a network file system. By name only: stepping there could hang.
    fn refused(&self, path: &[u8]) -> bool {
        let list = if self.nodes.is_empty() { self.ours } else { self.nodes };
        let holding = list.iter().filter(|m| below(&m.mountpoint, path).is_some()).max_by_key(|m| m.mountpoint.len());
        holding.is_some_and(|m| reach::refused(&m.fstype) == Some(Refusal::CanHang))
    }
}
