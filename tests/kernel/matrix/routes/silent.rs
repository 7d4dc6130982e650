//! What the kernel asks nobody about: no content comes out, or there is no event.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::SystemTime;

use rustix::fs::{CWD, FileType, Mode, OFlags, Timespec, Timestamps, makedev, mknodat, utimensat};

use super::super::room::Room;
use super::super::stage::{Attempt, answer, attempt, path_fd};

pub(crate) fn stat(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || answer(fs::metadata(&target)))
}

pub(crate) fn o_path(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || answer(path_fd(&target)))
}

pub(crate) fn change_mode(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || answer(fs::set_permissions(&target, Permissions::from_mode(0o600))))
}

pub(crate) fn change_times(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let now = Timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: 0 };
        let times = Timestamps { last_access: now, last_modification: now };
        answer(utimensat(CWD, &target, &times, rustix::fs::AtFlags::empty()))
    })
}

/// By path: the content goes, and nobody was asked.
pub(crate) fn truncate(room: &Room) -> io::Result<Attempt> {
    let path = room.target();
    attempt(move || {
        let outcome = answer(crate::raw::truncate(path.as_os_str()))?;
        match fs::metadata(&path)?.len() {
            0 => Ok(outcome),
            length => Err(io::Error::other(format!("{outcome:?}, and {length} bytes are left"))),
        }
    })
}

pub(crate) fn rename(room: &Room) -> io::Result<Attempt> {
    let (target, to) = (room.target(), room.at("elsewhere"));
    attempt(move || answer(fs::rename(&target, &to)))
}

pub(crate) fn unlink(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || answer(fs::remove_file(&target)))
}

pub(crate) fn link(room: &Room) -> io::Result<Attempt> {
    let (target, to) = (room.target(), room.at("alias"));
    attempt(move || answer(fs::hard_link(&target, &to)))
}

pub(crate) fn make_entries(room: &Room) -> io::Result<Attempt> {
    let parent = room.parent();
    attempt(move || answer(fs::create_dir(parent.join("new")).and_then(|()| symlink("anything", parent.join("link")))))
}

pub(crate) fn fifo(room: &Room) -> io::Result<Attempt> {
    let fifo = room.parent().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    attempt(move || answer(rustix::fs::open(&fifo, OFlags::RDWR | OFlags::NONBLOCK, Mode::empty())))
}

pub(crate) fn device(room: &Room) -> io::Result<Attempt> {
    let null = room.parent().join("null");
    mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 3))?;
    attempt(move || answer(File::open(&null)))
}

pub(crate) fn socket(room: &Room) -> io::Result<Attempt> {
    let parent = room.parent();
    std::env::set_current_dir(&parent)?;
    let listener = UnixListener::bind("socket")?;
    attempt(move || {
        let _listens = &listener;
        std::env::set_current_dir(&parent)?;
        answer(UnixStream::connect("socket"))
    })
}
