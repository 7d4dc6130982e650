//! `/proc/PID/cgroup`, and behind the first NUL what a container has made below its own cgroup: whatever that is called, it
//! stays that container's.

use janusd::container::cgroup::{Entry, Part, Told, mounts_hierarchy, parent, tell, told_entry, told_part, told_pod};
use janusd::process::facts::Cgroups;
use janusd::process::origin::Home;

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mut halves = data.splitn(2, |&byte| byte == 0);
    let file = halves.next().unwrap_or_default();
    // The kernel lets no cgroup's name hold a newline.
    let below: Vec<u8> = halves.next().unwrap_or(b"x").iter().copied().filter(|byte| *byte != b'\n').collect();
    let cgroups = Cgroups::parse(file);
    if let Some(told) = tell(&cgroups, None) {
        bounded(&told);
        let home = Home::outermost(&cgroups, None).expect("it was told by its home");
        // Nothing is a pod's that is no deeper than the node's own.
        assert_ne!(Home::outermost(&cgroups, Some(&home)), Some(home));
    }
    for (hierarchy, path) in cgroups.iter() {
        alone(hierarchy, path, &below);
        name(path);
        path.split(|byte| *byte == b'/').for_each(name);
        // Mounts have other words beside these.
        let options = [b"rw,".as_slice(), hierarchy, b",xattr"].concat();
        assert!(hierarchy.is_empty() || mounts_hierarchy(&options, hierarchy));
    }
    name(file);
}

fn alone(hierarchy: &[u8], path: &[u8], below: &[u8]) {
    let of = |path: &[u8]| Cgroups::parse(&[b"1:".as_slice(), hierarchy, b":", path, b"\n"].concat());
    let Some(home) = Home::outermost(&of(path), None) else { return };
    let inner = of(&[path, b"/", below].concat());
    assert_eq!(Home::outermost(&inner, None).as_ref(), Some(&home), "it poses as another");
    assert_eq!(tell(&inner, None), tell(&of(path), None));
    assert!(home.holds(&of(path)) && home.holds(&inner));
    assert!(path.starts_with(home.pod().1));
}

fn bounded(told: &Told) {
    let pod = told.pod.as_str();
    assert!((1..=63).contains(&pod.len()) && pod.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    part(&told.part);
}

fn part(part: &Part) {
    match part {
        // It becomes part of a path.
        Part::Container { id, .. } => {
            assert!((32..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        Part::Unknown(name) => assert!(name.len() <= 80 && !name.bytes().any(|byte| !(b' '..=b'~').contains(&byte))),
        Part::Helper => {}
    }
}

fn name(name: &[u8]) {
    part(&told_part(name));
    match told_entry(name) {
        Entry::Pod(pod) => assert_eq!(told_pod(name), Some(pod)),
        Entry::Scattered(pod) => assert!(told_pod(name).is_none() && !pod.as_str().is_empty()),
        Entry::Class | Entry::Other => {}
    }
    if let Some(above) = parent(name) {
        let last = name.strip_prefix(above).expect("it lies above").strip_prefix(b"/").expect("it is a directory");
        assert!(!above.is_empty() && !last.contains(&b'/'));
    }
}
