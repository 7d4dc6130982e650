//! The same file under another name.

use std::fs::{self, Permissions, hard_link};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, renameat_with};

use super::super::room::{Room, SECRET};
use super::super::stage::{Attempt, attempt, drop_caches, once_then, reach};

pub(crate) fn hard_link_before(room: &Room) -> io::Result<Attempt> {
    let alias = room.at("alias");
    hard_link(room.target(), &alias)?;
    attempt(move || reach(&alias))
}

pub(crate) fn hard_link_after(room: &Room) -> io::Result<Attempt> {
    let (target, alias) = (room.target(), room.at("alias"));
    let made = alias.clone();
    once_then(move || hard_link(&target, &made), move || reach(&alias))
}

/// In another directory, and the guarded name is gone.
pub(crate) fn hard_link_instead(room: &Room) -> io::Result<Attempt> {
    let (target, alias) = (room.target(), room.at("beside/alias"));
    let made = alias.clone();
    once_then(
        move || {
            hard_link(&target, &made)?;
            fs::remove_file(&target)?;
            drop_caches();
            Ok(())
        },
        move || reach(&alias),
    )
}

pub(crate) fn renamed(room: &Room) -> io::Result<Attempt> {
    moved(room, room.tail(), "beside/elsewhere", "beside/elsewhere")
}

pub(crate) fn exchanged(room: &Room) -> io::Result<Attempt> {
    let (target, public) = (room.target(), room.at("public"));
    let other = public.clone();
    once_then(move || Ok(renameat_with(CWD, &target, CWD, &other, RenameFlags::EXCHANGE)?), move || reach(&public))
}

pub(crate) fn directory_renamed(room: &Room) -> io::Result<Attempt> {
    room.make_afresh()?;
    moved(room, "denied", "elsewhere", "elsewhere/sub/file")
}

pub(crate) fn subdirectory_moved_out(room: &Room) -> io::Result<Attempt> {
    room.make_afresh()?;
    moved(room, "denied/sub", "beside/sub", "beside/sub/file")
}

pub(crate) fn parent_renamed(room: &Room) -> io::Result<Attempt> {
    room.make_afresh()?;
    let mut name = room.dir.file_name().unwrap_or_default().to_owned();
    name.push("-renamed");
    let (dir, elsewhere) = (room.dir.clone(), room.dir.with_file_name(name));
    let path = room.target_in(&elsewhere);
    once_then(move || fs::rename(&dir, &elsewhere), move || reach(&path))
}

pub(crate) fn moved_in(room: &Room) -> io::Result<Attempt> {
    fs::write(room.at("aside"), SECRET)?;
    moved(room, "aside", "denied/sub/moved", "denied/sub/moved")
}

pub(crate) fn tree_moved_in(room: &Room) -> io::Result<Attempt> {
    room.make_afresh()?;
    moved(room, "tree", "denied/tree", "denied/tree/x/file")
}

fn moved(room: &Room, from: &str, to: &str, then: &str) -> io::Result<Attempt> {
    let (from, to, then) = (room.at(from), room.at(to), room.at(then));
    once_then(
        move || {
            fs::rename(&from, &to)?;
            drop_caches();
            Ok(())
        },
        move || reach(&then),
    )
}

pub(crate) fn linked_in(room: &Room) -> io::Result<Attempt> {
    let (aside, inside) = (room.at("aside"), room.at("denied/sub/linked"));
    fs::write(&aside, SECRET)?;
    let made = inside.clone();
    once_then(move || hard_link(&aside, &made), move || reach(&inside))
}

/// By the name outside, once the other was seen inside.
pub(crate) fn linked_in_by_its_old_name(room: &Room) -> io::Result<Attempt> {
    let (aside, inside) = (room.at("aside"), room.at("denied/sub/linked"));
    fs::write(&aside, SECRET)?;
    let old = aside.clone();
    once_then(
        move || {
            hard_link(&aside, &inside)?;
            let _seen = reach(&inside)?;
            Ok(())
        },
        move || reach(&old),
    )
}

/// Made with no name at all, written, then given the guarded one.
pub(crate) fn nameless_linked_in(room: &Room) -> io::Result<Attempt> {
    let (dir, target) = (room.dir.clone(), room.target());
    let there = target.clone();
    once_then(
        move || {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = rustix::fs::open(&dir, flags, Mode::from_raw_mode(0o644))?;
            rustix::io::write(&file, SECRET.as_bytes())?;
            fs::remove_file(&target)?;
            let name = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
            Ok(linkat(CWD, name, CWD, &target, AtFlags::SYMLINK_FOLLOW)?)
        },
        move || reach(&there),
    )
}

/// One name is copied up, by changing its mode, and the caches dropped; one is opened.
fn copied_up(room: &Room, touched: &str, opened: &str, before: bool) -> io::Result<Attempt> {
    let (touched, opened) = (room.at(touched), room.at(opened));
    let copy_up = move || {
        fs::set_permissions(&touched, Permissions::from_mode(0o600))?;
        drop_caches();
        Ok(())
    };
    if before {
        copy_up()?;
        return attempt(move || reach(&opened));
    }
    once_then(copy_up, move || reach(&opened))
}

pub(crate) fn other_name(room: &Room) -> io::Result<Attempt> {
    let path = room.at("twin");
    attempt(move || reach(&path))
}

pub(crate) fn copied_up_before(room: &Room) -> io::Result<Attempt> {
    copied_up(room, room.tail(), room.tail(), true)
}

pub(crate) fn copied_up_after(room: &Room) -> io::Result<Attempt> {
    copied_up(room, room.tail(), room.tail(), false)
}

pub(crate) fn other_name_after_copy_up(room: &Room) -> io::Result<Attempt> {
    copied_up(room, "file", "twin", false)
}

pub(crate) fn other_name_copied_up(room: &Room) -> io::Result<Attempt> {
    copied_up(room, "twin", "twin", false)
}

pub(crate) fn after_copy_up_of_the_other_name(room: &Room) -> io::Result<Attempt> {
    copied_up(room, "twin", "file", false)
}

pub(crate) fn other_name_after_copy_up_before(room: &Room) -> io::Result<Attempt> {
    copied_up(room, "file", "twin", true)
}

pub(crate) fn other_name_copied_up_before(room: &Room) -> io::Result<Attempt> {
    copied_up(room, "twin", "twin", true)
}
