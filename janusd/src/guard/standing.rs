//! A root that a guard stands in: what its keeper keeps of it between surveys, and how its marks are taken away once it
//! has gone.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::judge::SiteRules;
use super::marks::Ledger;
use super::problem::Problem;
use super::reach;
use super::site::{SiteId, SiteReport};
use super::view::{Place, below, join};
use super::watch::Watcher;
use super::worker::Post;
use crate::process::look::Anchor;
use crate::root::Root;
use crate::root::mountinfo::{self, Mount};
use crate::root::resolve::open_in;

/// A root, and what is known of it.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) site: SiteId,
    pub(super) id: Arc<str>,
    pub(super) name: Option<Arc<str>>,
    pub(super) root: Root,
    pub(super) anchor: Arc<Anchor>,
    pub(super) ledger: Ledger,
    pub(super) watcher: Watcher,
    /// Tells of changes to its mounts. Holds the mount namespace: closed as soon as the root's process has ended.
    pub(super) mountinfo: Option<File>,
    pub(super) ended: bool,
    /// What the worker judges by, once surveyed.
    pub(super) rules: Option<Arc<SiteRules>>,
    /// It shows an overlay.
    pub(super) overlay: bool,
    /// It bears no wide marks.
    pub(super) near_only: bool,
    /// The file system that goes with it.
    pub(super) own_device: Option<(u32, u32)>,
    pub(super) problems: BTreeSet<Problem>,
    /// The last survey was made, by the guard's present rules.
    pub(super) in_force: bool,
}

impl Standing {
    /// Not surveyed yet.
    pub(super) fn new(
        site: SiteId,
        id: Arc<str>,
        name: Option<Arc<str>>,
        root: Root,
        anchor: Anchor,
        watcher: Watcher,
    ) -> Standing {
        Standing {
            site,
            id,
            name,
            // Without it, changes to mounts go unnoticed until something else brings a survey; and a root whose mounts
            // cannot be read cannot be surveyed either, which is said.
            mountinfo: File::open(root.mountinfo_path()).ok(),
            root,
            anchor: Arc::new(anchor),
            ledger: Ledger::default(),
            watcher,
            ended: false,
            rules: None,
            overlay: false,
            near_only: false,
            own_device: None,
            problems: BTreeSet::new(),
            in_force: false,
        }
    }

    pub(super) fn post(&self) -> Post {
        Post { site: self.site, container: self.name.clone(), anchor: self.anchor.clone() }
    }

    pub(super) fn report(&self) -> SiteReport {
        SiteReport { id: self.id.clone(), name: self.name.clone(), in_force: self.in_force }
    }

    /// What problems call it: nothing, if it is a guard's one root.
    pub(super) fn label(&self) -> Option<Arc<str>> {
        self.name.clone().or_else(|| Some(self.id.clone()).filter(|id| !id.is_empty()))
    }
}

/// Finds, on the node, what a root showed at a path, once the root itself cannot be entered any more: in whatever mount of
/// the node shows the same part of the same file system.
pub(super) struct OnNode {
    places: Vec<Place>,
    views: Vec<(OwnedFd, Vec<Mount>)>,
}

impl OnNode {
    pub(super) fn new(places: &[Place]) -> OnNode {
        let view = |process: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let process = Path::new("/proc").join(process);
            let root = rustix::fs::open(process.join("root"), flags, Mode::empty()).ok()?;
            let mounts = mountinfo::parse(&std::fs::read(process.join("mountinfo")).ok()?);
            Some((root, mounts))
        };
        OnNode { places: places.to_vec(), views: ["1", "self"].into_iter().filter_map(view).collect() }
    }

    pub(super) fn find(&self, path: &[u8]) -> Vec<OwnedFd> {
        let holding = self.places.iter().filter(|place| below(&place.at, path).is_some());
        let Some(place) = holding.max_by_key(|place| place.at.len()) else { return Vec::new() };
        let Some(inside) = below(&place.at, path).map(|rest| join(&place.root, rest)) else { return Vec::new() };
        let opened = self.views.iter().flat_map(|(root, mounts)| {
            let inside = &inside;
            mounts
                .iter()
                .filter(|mount| mount.device() == place.device && reach::refused(&mount.fstype).is_none())
                .filter_map(move |mount| {
                    let rest = below(&mount.root, inside)?;
                    open_in(root.as_fd(), &join(&mount.mountpoint, rest)).ok()
                })
        });
        opened.collect()
    }
}
