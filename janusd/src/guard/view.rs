//! Names: what the container calls a file that somebody opened, perhaps elsewhere and through another mount. Pure.
//!
//! The kernel tells the path of an opened file as seen from the root of the mount tree in which it was opened: a bind
//! mount, another mount namespace or the node's own view of a container's root each give another string for the same
//! file. So a path is first taken back to its place in the file system (the [`Tree`] of the mount it came through), and
//! from there to every name under which the guarded root shows that place ([`Place`]).

use super::site::SiteId;

/// One mount, as paths that were opened through it read: which part of which file system appears where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The file system, by its mountinfo device number.
    pub device: (u32, u32),
    /// Which directory (or file) of it is mounted.
    pub root: Vec<u8>,
    /// The mountpoint, seen from the root of the mount tree.
    pub at: Vec<u8>,
}

/// A part of a file system that the guarded root shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file system.
    pub device: (u32, u32),
    /// Which directory (or file) of it.
    pub root: Vec<u8>,
    /// Its path inside the guarded root.
    pub at: Vec<u8>,
}

/// A mount of a guarded root, whose paths can be read without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Showing {
    /// Its id, as `statx` gives it.
    pub mount: u64,
    /// How its paths read.
    pub tree: Tree,
    /// Guarded directories on it bear near marks: only there may files be left to the kernel.
    pub watched: bool,
}

/// What a guarded root shows.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Its mounts.
    pub mounts: Vec<Showing>,
    /// What they show, in no particular order.
    pub places: Vec<Place>,
}

/// Room for the names of one file; kept between events so that a steady stream allocates nothing.
#[derive(Debug, Default)]
pub struct Names {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Whose names they are.
    site: Option<SiteId>,
}

impl Names {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.site = None;
    }

    /// Forgets all, and takes another's names from now on.
    pub fn begin(&mut self, site: SiteId) {
        self.clear();
        self.site = Some(site);
    }

    /// Whose names they are.
    pub fn site(&self) -> Option<SiteId> {
        self.site
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// In the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }

    /// Adds a name unless it is there.
    pub fn push(&mut self, name: &[u8]) {
        self.push_joined(name, b"");
    }

    /// Adds `at` + `below`, where `below` is empty or begins with a slash.
    fn push_joined(&mut self, at: &[u8], below: &[u8]) {
        let start = self.bytes.len();
        if at != b"/" || below.is_empty() {
            self.bytes.extend_from_slice(at);
        }
        self.bytes.extend_from_slice(below);
        let known = self.iter().any(|name| name == &self.bytes[start..]);
        if known {
            self.bytes.truncate(start);
        } else {
            self.ends.push(self.bytes.len());
        }
    }
}

impl View {
    /// Adds every name that the guarded root has for the file which reads as `path` through `tree`: none, when the root
    /// does not show it. False when `path` is not below the tree's mountpoint: the mount was moved, or a directory above
    /// it renamed, and the tree has to be looked up anew.
    pub fn names(&self, tree: &Tree, path: &[u8], names: &mut Names) -> bool {
        let Some(below_mount) = below(&tree.at, path) else { return false };
        for place in self.places.iter().filter(|place| place.device == tree.device) {
            // The file is at tree.root + below_mount in the file system, and the place begins at place.root.
            if let Some(rest) = below(&place.root, &tree.root) {
                // The mount shows something inside the place: rest, then what is below the mount.
                if rest.is_empty() {
                    names.push_joined(&place.at, below_mount);
                } else {
                    let start = names.bytes.len();
                    names.bytes.extend_from_slice(rest);
                    names.bytes.extend_from_slice(below_mount);
                    let joined = names.bytes.split_off(start);
                    names.push_joined(&place.at, &joined);
                }
            } else if let Some(deeper) = below(&tree.root, &place.root) {
                // The mount shows more than the place: the file has to be inside it.
                if let Some(rest) = below(deeper, below_mount) {
                    names.push_joined(&place.at, rest);
                }
            }
        }
        true
    }
}

/// What of `path` lies below `base`: empty for `base` itself, else with its leading slash.
pub fn below<'a>(base: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if base == b"/" {
        return if path == b"/" { Some(&[]) } else { path.starts_with(b"/").then_some(path) };
    }
    path.strip_prefix(base).filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// `base` with `rest` below it, where `rest` is empty or begins with a slash.
pub fn join(base: &[u8], rest: &[u8]) -> Vec<u8> {
    if base == b"/" && !rest.is_empty() { rest.to_vec() } else { [base, rest].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OVERLAY: (u32, u32) = (0, 40);
    const DISK: (u32, u32) = (254, 0);

    fn tree(device: (u32, u32), root: &str, at: &str) -> Tree {
        Tree { device, root: root.into(), at: at.into() }
    }

    fn container() -> View {
        let place = |device, root: &str, at: &str| Place { device, root: root.into(), at: at.into() };
        View {
            mounts: Vec::new(),
            places: vec![
                place(OVERLAY, "/", "/"),
                place(DISK, "/pods/1/vol", "/data"),
                place(DISK, "/pods/1/vol/sub", "/sub"),
                place(DISK, "/pods/1/hosts", "/etc/hosts"),
            ],
        }
    }

    fn named(tree: &Tree, path: &str) -> Vec<String> {
        let mut names = Names::default();
        container().names(tree, path.as_bytes(), &mut names);
        names.iter().map(|n| String::from_utf8(n.to_vec()).unwrap()).collect()
    }

    #[test]
    fn every_way_in() {
        // Through the container's own root.
        assert_eq!(named(&tree(OVERLAY, "/", "/"), "/etc/secret"), ["/etc/secret"]);
        assert_eq!(named(&tree(OVERLAY, "/", "/"), "/"), ["/"]);
        // The node's view of the same overlay.
        assert_eq!(named(&tree(OVERLAY, "/", "/run/rootfs"), "/run/rootfs/etc/secret"), ["/etc/secret"]);
        assert_eq!(named(&tree(OVERLAY, "/", "/run/rootfs"), "/run/rootfs"), ["/"]);
        // A bind mount of a directory, and of one file.
        assert_eq!(named(&tree(OVERLAY, "/etc", "/mnt"), "/mnt/secret"), ["/etc/secret"]);
        assert_eq!(named(&tree(OVERLAY, "/etc/secret", "/mnt/x"), "/mnt/x"), ["/etc/secret"]);
        // A volume by both of its names, from the node's disk.
        assert_eq!(named(&tree(DISK, "/", "/var/kubelet"), "/var/kubelet/pods/1/vol/sub/f"), ["/data/sub/f", "/sub/f"]);
        assert_eq!(named(&tree(DISK, "/pods/1/vol/sub", "/sub"), "/sub/f"), ["/data/sub/f", "/sub/f"]);
        assert_eq!(named(&tree(DISK, "/", "/"), "/pods/1/hosts"), ["/etc/hosts"]);
        // What the container does not show.
        assert_eq!(named(&tree(DISK, "/", "/"), "/pods/1/volume"), [""; 0]);
        assert_eq!(named(&tree(DISK, "/", "/"), "/etc/secret"), [""; 0]);
        assert_eq!(named(&tree(OVERLAY, "/", "/run/rootfs"), "/elsewhere"), [""; 0]);
    }

    proptest! {
        /// Through whatever mount of the overlay a file is opened, its name is the same.
        #[test]
        fn the_way_does_not_matter(
            file in "(/[a-c]{1,2}){1,5}",
            cut in 0usize..5,
            at in "(/[x-z]{1,2}){1,3}",
        ) {
            let splits: Vec<usize> = file.match_indices('/').map(|(i, _)| i).collect();
            let cut = splits[cut % splits.len()];
            let (root, rest) = (if cut == 0 { "/" } else { &file[..cut] }, &file[cut..]);
            prop_assert_eq!(named(&tree(OVERLAY, root, &at), &format!("{at}{rest}")), [file]);
        }

        #[test]
        fn below_undoes_join(base in "(/[a-b]{1,2}){1,3}", rest in "(/[a-b]{1,2}){0,3}") {
            for base in [base.as_bytes(), b"/"] {
                let joined = join(base, rest.as_bytes());
                prop_assert_eq!(below(base, &joined), Some(rest.as_bytes()));
            }
        }
    }
}
