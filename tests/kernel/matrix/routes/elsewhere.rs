//! By the node, and not through the container's root: layers, other mounts of the same, what lies beneath.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};
use rustix::mount::{MountFlags, mount};

use super::super::room::{Room, SECRET};
use super::super::stage::{Answer, Attempt, Held, attempt, once_then, reach};
use super::super::world::run;
use crate::agent::enter_new_mount_namespace;

fn layer(room: &Room, layer: &str) -> PathBuf {
    room.scratch.join("layers").join(layer).join(room.dir.strip_prefix("/").unwrap_or(&room.dir))
}

pub(crate) fn lower_layer(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&layer(room, "lower"));
    attempt(move || reach(&path))
}

/// The container has copied the file up.
pub(crate) fn hold_copied_up(room: &Room) -> io::Result<Held> {
    fs::set_permissions(room.target(), fs::Permissions::from_mode(0o600))?;
    Ok(Box::new(()))
}

pub(crate) fn upper_layer(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&layer(room, "upper"));
    attempt(move || reach(&path))
}

/// Another overlay, of the same layers.
pub(crate) fn second_overlay(room: &Room) -> io::Result<Attempt> {
    let layers = room.scratch.join("layers");
    let here = room.scratch.join(format!("second-{}", Room::name(&room.route, room.guard)));
    fs::create_dir(&here)?;
    let path = room.target_in(&here.join(room.dir.strip_prefix("/").unwrap_or(&room.dir)));
    attempt(move || {
        enter_new_mount_namespace()?;
        let [upper, lower] = ["upper", "lower"].map(|layer| layers.join(layer));
        let options = std::ffi::CString::new(format!("lowerdir={}:{}", upper.display(), lower.display()))?;
        mount("overlay", &here, "overlay", MountFlags::empty(), options.as_c_str())?;
        reach(&path)
    })
}

fn on_node(room: &Room) -> io::Result<PathBuf> {
    room.on_node.clone().ok_or_else(|| io::Error::other("does not lie on the node"))
}

pub(crate) fn other_holder(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&on_node(room)?);
    attempt(move || reach(&path))
}

pub(crate) fn other_holder_in_new_mount_namespace(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&on_node(room)?);
    attempt(move || {
        enter_new_mount_namespace()?;
        reach(&path)
    })
}

pub(crate) fn other_holders_hard_link(room: &Room) -> io::Result<Attempt> {
    let dir = on_node(room)?;
    let alias = dir.with_file_name(format!("alias-{}", Room::name(&room.route, room.guard)));
    let (target, made) = (room.target_in(&dir), alias.clone());
    once_then(move || fs::hard_link(&target, &made), move || reach(&alias))
}

/// Another holder replaces the file; the container opens it.
pub(crate) fn replaced_by_another_holder(room: &Room) -> io::Result<Attempt> {
    let dir = on_node(room)?;
    let (aside, target) = (dir.join("aside"), room.target_in(&dir));
    let path = room.target_in(&room.through_root());
    once_then(
        move || {
            fs::write(&aside, SECRET)?;
            fs::rename(&aside, &target)
        },
        move || reach(&path),
    )
}

/// A snapshot is a copy.
pub(crate) fn snapshot(room: &Room) -> io::Result<Attempt> {
    let (whole, dir) = (room.scratch.join("mounted"), on_node(room)?);
    let copy = whole.join(format!("snapshot-{}", Room::name(&room.route, room.guard)));
    let path = room.target_in(&copy.join(dir.strip_prefix(&whole).map_err(io::Error::other)?));
    once_then(
        move || run(Command::new("btrfs").args(["subvolume", "snapshot"]).arg(&whole).arg(&copy)),
        move || reach(&path),
    )
}

/// The bytes of the disk, by its device or image.
pub(crate) fn block_device(room: &Room) -> io::Result<Attempt> {
    let image = room.scratch.join("image");
    attempt(move || {
        let file = File::open(&image)?;
        let mut offset = 0;
        // Most of the image is a hole.
        while let Ok(start) = seek(&file, SeekFrom::Data(offset)) {
            offset = seek(&file, SeekFrom::Hole(start))?;
            let mut piece = vec![0; usize::try_from(offset - start).map_err(io::Error::other)?];
            file.read_exact_at(&mut piece, start)?;
            if memmem(&piece, SECRET.as_bytes()) {
                return Ok(Answer::Passed);
            }
        }
        Err(io::Error::other("the bytes are not in the image"))
    })
}

fn memmem(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').any(|line| line.ends_with(&wanted[..wanted.len() - 1]))
}
