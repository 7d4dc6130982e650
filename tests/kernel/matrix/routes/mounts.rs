//! Other mounts and other roots.

use std::env::set_current_dir;
use std::fs;
use std::io;
use std::os::unix::fs::chroot;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_move, move_mount, open_tree,
    unmount,
};
use rustix::process::pivot_root;

use super::super::room::Room;
use super::super::stage::{Answer, Attempt, answer_beyond, attempt, in_child, once_then, reach, reach_at};
use crate::agent::enter_new_mount_namespace;
use crate::raw;

pub(crate) fn bind_of_the_file(room: &Room) -> io::Result<Attempt> {
    let (target, here) = (room.target(), room.at("here"));
    fs::write(&here, "")?;
    let there = here.clone();
    once_then(move || Ok(mount_bind(&target, &here)?), move || reach(&there))
}

pub(crate) fn bind_of_the_directory(room: &Room) -> io::Result<Attempt> {
    let (parent, beside) = (room.parent(), room.at("beside"));
    let there = beside.join(room.file_name());
    once_then(move || Ok(mount_bind(&parent, &beside)?), move || reach(&there))
}

/// Of all that lies beside the room, or above.
pub(crate) fn bind_of_a_parent(room: &Room) -> io::Result<Attempt> {
    let (above, beside) = (above(room), room.at("beside"));
    let there = room.target_in(&beside.join(room.dir.file_name().unwrap_or_default()));
    once_then(move || Ok(mount_bind(&above, &beside)?), move || reach(&there))
}

fn above(room: &Room) -> PathBuf {
    room.dir.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Of the whole tree of mounts.
pub(crate) fn recursive_bind(room: &Room) -> io::Result<Attempt> {
    let beside = room.at("beside");
    let there = room.target_in(&beside.join(room.dir.strip_prefix("/").unwrap_or(&room.dir)));
    // In a namespace that ends with the attempt: all mounts of the node, again and again, are too many to keep.
    attempt(move || {
        enter_new_mount_namespace()?;
        mount_bind_recursive("/", &beside)?;
        reach(&there)
    })
}

pub(crate) fn moved_mount(room: &Room) -> io::Result<Attempt> {
    let (parent, first, second) = (room.parent(), room.at("beside"), room.at("tree"));
    let there = second.join(room.file_name());
    once_then(
        move || {
            mount_bind(&parent, &first)?;
            Ok(mount_move(&first, &second)?)
        },
        move || reach(&there),
    )
}

const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

pub(crate) fn detached_tree(room: &Room) -> io::Result<Attempt> {
    let (parent, name) = (room.parent(), room.file_name());
    attempt(move || reach_at(&open_tree(CWD, &parent, CLONE)?, &name))
}

pub(crate) fn attached_tree(room: &Room) -> io::Result<Attempt> {
    let (parent, beside) = (room.parent(), room.at("beside"));
    let there = beside.join(room.file_name());
    once_then(
        move || {
            let tree = open_tree(CWD, &parent, CLONE)?;
            Ok(move_mount(&tree, "", CWD, &beside, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
        },
        move || reach(&there),
    )
}

pub(crate) fn new_mount_namespace(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        enter_new_mount_namespace()?;
        reach(&target)
    })
}

pub(crate) fn new_user_namespace(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || in_child("user-namespace", &[&target]))
}

pub(crate) fn changed_root(room: &Room) -> io::Result<Attempt> {
    let (dir, there) = (room.dir.clone(), Path::new("/").join(room.tail()));
    attempt(move || {
        chroot(&dir)?;
        set_current_dir("/")?;
        reach(&there)
    })
}

pub(crate) fn pivoted_root(room: &Room) -> io::Result<Attempt> {
    let (dir, there) = (room.dir.clone(), Path::new("/").join(room.tail()));
    attempt(move || {
        enter_new_mount_namespace()?;
        mount_bind(&dir, &dir)?;
        set_current_dir(&dir)?;
        pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        set_current_dir("/")?;
        reach(&there)
    })
}

/// An overlay of one's own, with the guarded directory as a lower layer: the kernel opens the file for it.
pub(crate) fn overlay_above(room: &Room) -> io::Result<Attempt> {
    let (parent, there) = (room.parent(), room.at("beside"));
    attempt(move || in_child("overlay", &[&parent, Path::new("/etc"), &there]))
}

/// By the node, through the container's root.
pub(crate) fn loop_device(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&room.through_root());
    attempt(move || {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--read-only"]).arg(&path).env("LC_ALL", "C");
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            super::super::world::run(Command::new("losetup").arg("--detach").arg(device))?;
            return Ok(Answer::Passed);
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("Operation not permitted") { Ok(Answer::Denied) } else { Err(io::Error::other(said)) }
    })
}

/// By the node. It is no swap space, which the kernel can tell only when it has opened it.
pub(crate) fn swap(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&room.through_root());
    attempt(move || answer_beyond(raw::swap_on(path.as_os_str()), &[Errno::INVAL]))
}
