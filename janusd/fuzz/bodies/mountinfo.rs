//! Any bytes as `/proc/PID/mountinfo`, and as the names in it: no name makes or hides a mount, and what is read is read the
//! same when it is written again.

use std::fmt::Write;

use janusd::root::mountinfo::{Mount, parse};

/// # Panics
/// When the parser breaks a promise.
pub(crate) fn run(data: &[u8]) {
    let mounts = parse(data);
    assert!(mounts.len() <= data.split(|byte| *byte == b'\n').count());
    let taken: usize = mounts.iter().map(|it| it.root.len() + it.mountpoint.len() + it.options.len()).sum();
    assert!(taken <= data.len());
    for mount in &mounts {
        assert!(!mount.fstype.contains(['.', ' ', '\n']));
        assert_eq!(parse(&line(mount, b"none")), std::slice::from_ref(mount));
    }
    // A container mounts what it likes where it likes: the kernel escapes it.
    let hostile = Mount {
        id: 7,
        major: 0,
        minor: 42,
        root: data.to_vec(),
        mountpoint: data.to_vec(),
        fstype: "tmpfs".to_owned(),
        options: b"rw".to_vec(),
    };
    let plain =
        Mount { id: 8, root: b"/".to_vec(), mountpoint: b"/".to_vec(), fstype: "proc".to_owned(), ..hostile.clone() };
    let both = [line(&hostile, data), line(&plain, data)].concat();
    assert_eq!(parse(&both), [hostile, plain]);
}

fn line(mount: &Mount, source: &[u8]) -> Vec<u8> {
    let Mount { id, major, minor, root, mountpoint, fstype, options } = mount;
    let head = format!("{id} 1 {major}:{minor} ");
    let kind = format!(" rw,relatime shared:1 - {fstype} ");
    [head.as_bytes(), &escape(root), b" ", &escape(mountpoint), kind.as_bytes(), &escape(source), b" ", options, b"\n"]
        .concat()
}

/// As the kernel does (`mangle`).
fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in name {
        if b" \t\n\\#".contains(byte) {
            let mut octal = String::new();
            write!(octal, "\\{byte:03o}").expect("writing to memory");
            out.extend(octal.into_bytes());
        } else {
            out.push(*byte);
        }
    }
    out
}
