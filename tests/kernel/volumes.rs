//! A container's volumes: a tmpfs as a Secret is, directories of the node's disk as ConfigMaps, emptyDirs and hostPaths
//! are.
//!
//! Guarantee shown: a volume that is the pod's alone is guarded against every process of the node; one that others may
//! hold is guarded through the container's mounts, and no other holder is ever denied (contract 1, meaning, point 2).

use std::time::Duration;

use crate::case::Case;
use crate::manifest;
use crate::protocol::{
    bind, create, hard_link, make_directories, open, read, rename, reopen, replace, rotate, symlink, unmount, write,
};
use crate::root::{CONFIG_MAP, EMPTY_DIR, PLAIN_VOLUME};
use crate::watchdog::wait_until;

crate::kernel_tests![
    secret_by_its_key,
    secret_after_each_rotation,
    secret_key_made_later,
    secret_by_other_names,
    secret_from_elsewhere,
    config_map_after_each_rotation,
    disk_volume,
    disk_volume_new_and_replaced_files,
    disk_volume_of_others,
    empty_dir_against_the_whole_node,
    empty_dir_hard_link,
    mount_of_a_tmpfs,
    mount_of_a_disk_volume,
    mount_of_the_root,
    root_rule_does_not_stop_at_volumes,
    guarded_volumes_can_be_unmounted,
];

const TOKEN: &str = "{deny: [/s/token], events: [open]}";

/// The rule names a symlink of the AtomicWriter layout, the event never shows that name.
fn secret_by_its_key(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TOKEN]));
    for path in ["/s/token", "/s/..data/token", "/s/..2026_11_23_07_33_24.2418249251/token"] {
        case.denied(container.open(path));
    }
    for path in ["/s/ca.crt", "/s/..data/ca.crt", "/s", "/secret"] {
        case.allowed(container.open(path));
    }
}

/// The kubelet writes a new version and swaps `..data`: denied at the first open after it.
fn secret_after_each_rotation(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TOKEN]));
    for _ in 0..20 {
        case.denied(container.after([rotate("/s")], open("/s/token")));
        case.allowed(container.open("/s/ca.crt"));
    }
    case.denied(container.open("/s/..data/token"));
}

/// A key that the Secret gets while it is guarded.
fn secret_key_made_later(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/s/password], events: [open]}"]));
    case.denied(container.after(
        [
            write("/s/staged", "new"),
            rename("/s/staged", "/s/..2026_11_23_07_33_24.2418249251/password"),
            symlink("..data/password", "/s/password"),
        ],
        open("/s/password"),
    ));
    case.allowed(container.open("/s/token"));
}

/// Symlinks, hard links, `O_PATH`, bind mounts and a new mount namespace.
fn secret_by_other_names(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&[TOKEN]));
    case.denied(container.act(reopen("/s/token")));
    case.denied(container.after([symlink("/s/token", "/way-in")], open("/way-in")));
    case.denied(container.after([hard_link("/s/..data/token", "/s/alias")], open("/s/alias")));
    case.denied(container.after([bind("/s", "/bound")], open("/bound/token")));
    case.denied(container.after_in_new_mount_namespace([], open("/s/token")));
}

/// The host, through the container's root.
fn secret_from_elsewhere(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&[TOKEN]));
    case.denied(host.open(container.seen_from_host("/s/token")));
    case.allowed(host.open(container.seen_from_host("/s/ca.crt")));
}

/// The same layout on the disk, where no filesystem mark can be.
fn config_map_after_each_rotation(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/c/token], events: [open]}"]));
    case.denied(container.open("/c/token"));
    let volume = container.on_disk(CONFIG_MAP);
    for _ in 0..20 {
        // The kubelet writes from the host, not through the container's mounts.
        host.prepare([rotate(&volume)]);
        case.denied(container.open("/c/token"));
        case.allowed(container.open("/c/ca.crt"));
    }
}

/// A directory of the disk, mounted into the container.
fn disk_volume(case: &Case) {
    let container = case.container();
    let host = case.host();
    let subject = "{deny: [/vol/file, /vol/sub], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/vol/file", "/vol/sub", "/vol/sub/file"] {
        case.denied(container.open(path));
        case.denied(host.open(container.seen_from_host(path)));
    }
    case.denied(container.act(reopen("/vol/file")));
    case.denied(container.after([symlink("/vol/sub", "/way-in")], open("/way-in/file")));
    case.denied(container.after([hard_link("/vol/file", "/vol/alias")], open("/vol/alias")));
    case.allowed(container.open("/vol/other"));
}

/// What comes later on the disk volume, made by the container or by another holder.
fn disk_volume_new_and_replaced_files(case: &Case) {
    let container = case.container();
    let host = case.host();
    let subject = "{deny: [/vol/file, /vol/later, /vol/sub], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    let volume = container.on_disk(PLAIN_VOLUME);
    for turn in 0..20 {
        case.denied(container.after([replace("/vol/file", "new")], open("/vol/file")));
        let (there, here) = (volume.join(format!("sub/{turn}/deep")), format!("/vol/sub/{turn}/deep"));
        host.prepare([make_directories(&there), write(there.join("file"), "new")]);
        case.denied(container.open(format!("{here}/file")));
    }
    host.prepare([replace(volume.join("file"), "new"), write(volume.join("later"), "new")]);
    case.denied(container.open("/vol/file"));
    case.denied(container.open("/vol/later"));
}

/// Who holds the same directory otherwise is never denied.
fn disk_volume_of_others(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/vol], events: [all]}"]));
    let volume = container.on_disk(PLAIN_VOLUME);
    case.denied(container.open("/vol/file"));
    case.allowed(host.act(read(volume.join("file"))));
    case.allowed(host.act(write(volume.join("sub/new"), "new")));
    case.denied(container.open("/vol/sub/new"));
}

/// An emptyDir is the pod's alone: the node's own name for it is no way around.
fn empty_dir_against_the_whole_node(case: &Case) {
    let container = case.container();
    let host = case.host();
    let subject = "{deny: [/e/file, /e/sub], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    let volume = container.on_disk(EMPTY_DIR);
    for file in ["file", "sub", "sub/file"] {
        case.denied(container.open(format!("/e/{file}")));
        case.denied(host.open(container.seen_from_host(&format!("/e/{file}"))));
        case.denied(host.open(volume.join(file)));
    }
    case.allowed(container.open("/e/other"));
    case.allowed(host.open(volume.join("other")));
    case.denied(container.after_in_new_mount_namespace([bind("/e", "/bound")], open("/bound/file")));
    case.denied(container.after([make_directories("/e/sub/new/deep")], create("/e/sub/new/deep/file")));
}

/// A second name on the disk of a denied file of the pod's own volume.
fn empty_dir_hard_link(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/e/file], events: [open]}"]));
    let volume = container.on_disk(EMPTY_DIR);
    case.denied(host.after([hard_link(volume.join("file"), volume.join("alias"))], open(volume.join("alias"))));
    case.denied(container.open("/e/alias"));
}

/// `mount: true` on a file of a tmpfs: all that lies on that mountpoint, and nothing else.
fn mount_of_a_tmpfs(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/s/token], mount: true, events: [open]}"]));
    for path in ["/s/token", "/s/ca.crt", "/s"] {
        case.denied(container.open(path));
    }
    case.denied(container.act(create("/s/new")));
    for path in ["/secret", "/vol/file", "/c/token", "/"] {
        case.allowed(container.open(path));
    }
}

/// `mount: true` on the disk: the container's view only.
fn mount_of_a_disk_volume(case: &Case) {
    let container = case.container();
    let host = case.host();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/vol/sub], mount: true, events: [open]}"]));
    for path in ["/vol", "/vol/file", "/vol/other", "/vol/sub/file"] {
        case.denied(container.open(path));
        case.denied(host.open(container.seen_from_host(path)));
    }
    case.allowed(host.open(container.on_disk(PLAIN_VOLUME).join("file")));
    case.allowed(container.open("/e/file"));
    case.allowed(container.open("/secret"));
}

/// `mount: true` on a file of the root stands for the root, not for what is mounted in it.
fn mount_of_the_root(case: &Case) {
    let container = case.container();
    let _janusd = case.guard(&container, &manifest::guard(&["{deny: [/secret], mount: true, events: [open]}"]));
    for path in ["/secret", "/public", "/denied/sub/file"] {
        case.denied(container.open(path));
    }
    for path in ["/s/token", "/vol/file"] {
        case.allowed(container.open(path));
    }
}

/// A recursive rule on `/` reaches into the volumes: a directory stands for all below it.
fn root_rule_does_not_stop_at_volumes(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/], allow: [/public], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    for path in ["/secret", "/s/token", "/vol/sub/file", "/e/file", "/c/token"] {
        case.denied(container.open(path));
    }
    case.allowed(container.open("/public"));
}

/// Marks keep nothing busy: a volume that is guarded can be unmounted, as on the pod's end.
fn guarded_volumes_can_be_unmounted(case: &Case) {
    let container = case.container();
    let subject = "{deny: [/s/token, /vol/file], events: [open]}";
    let _janusd = case.guard(&container, &manifest::guard(&[subject]));
    case.denied(container.open("/s/token"));
    case.denied(container.open("/vol/file"));
    for volume in ["/s", "/vol"] {
        let gone = wait_until(Duration::from_secs(2), || container.act(unmount(volume)).is_ok());
        assert!(gone, "{volume} is kept busy");
    }
}
