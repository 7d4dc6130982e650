//! Names: paths, descriptors of directories, symlinks, handles.

use std::env::set_current_dir;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::super::room::Room;
use super::super::situation::Situation::OneFile;
use super::super::stage::{
    Answer, Attempt, Held, all_alike, answer, attempt, directory_fd, path_fd, reach, reach_at, reached,
};
use crate::agent::enter_new;
use crate::raw;

pub(crate) fn own_path(room: &Room) -> io::Result<Attempt> {
    let target = room.target();
    attempt(move || reach(&target))
}

pub(crate) fn untidy(room: &Room) -> io::Result<Attempt> {
    let (dir, tail) = (room.dir.display(), room.tail());
    let ways = [format!("{dir}//{tail}"), format!("{dir}/./{tail}"), format!("{dir}/beside/../{tail}")];
    attempt(move || all_alike(ways.iter().map(|way| (way.clone(), reach(Path::new(way))))))
}

pub(crate) fn relative(room: &Room) -> io::Result<Attempt> {
    let (parent, name) = (room.parent(), room.file_name());
    attempt(move || {
        set_current_dir(&parent)?;
        reach(&name)
    })
}

pub(crate) fn directory_opened_before(room: &Room) -> io::Result<Attempt> {
    let (parent, name) = (directory_fd(&room.parent())?, room.file_name());
    attempt(move || reach_at(&parent, &name))
}

pub(crate) fn directory_by_o_path(room: &Room) -> io::Result<Attempt> {
    let (parent, name) = (room.parent(), room.file_name());
    attempt(move || reach_at(&path_fd(&parent)?, &name))
}

pub(crate) fn own_cwd_link(room: &Room) -> io::Result<Attempt> {
    let (parent, name) = (room.parent(), room.file_name());
    attempt(move || {
        set_current_dir(&parent)?;
        reach(&Path::new("/proc/thread-self/cwd").join(&name))
    })
}

pub(crate) fn own_root_link(room: &Room) -> io::Result<Attempt> {
    let path = format!("/proc/thread-self/root{}", room.target().display());
    attempt(move || reach(Path::new(&path)))
}

/// By the node.
pub(crate) fn root_of_a_process(room: &Room) -> io::Result<Attempt> {
    let path = room.target_in(&room.through_root());
    attempt(move || reach(&path))
}

/// A thread of the container that stays in the target's directory.
pub(crate) fn hold_cwd(room: &Room) -> io::Result<Held> {
    let (told, there) = mpsc::channel();
    let parent = room.parent();
    std::thread::spawn(move || {
        let moved = enter_new(rustix::thread::UnshareFlags::FS).and_then(|()| set_current_dir(&parent));
        let _nobody_asks = told.send(moved);
        loop {
            std::thread::park();
        }
    });
    there.recv().map_err(io::Error::other)??;
    Ok(Box::new(()))
}

/// By the node, through such a thread.
pub(crate) fn cwd_of_a_process(room: &Room) -> io::Result<Attempt> {
    let name = room.file_name();
    let wanted = in_room(room, &room.parent());
    let path = found(&format!("/proc/{}/task", room.pid), "cwd", &wanted)?.join(name);
    attempt(move || reach(&path))
}

/// What a link of procfs to a path of the room ends with.
pub(crate) fn in_room(room: &Room, path: &Path) -> PathBuf {
    let name = room.dir.file_name().unwrap_or_default();
    Path::new(name).join(path.strip_prefix(&room.dir).unwrap_or(path))
}

/// The entry of a directory of procfs whose link leads to something that ends so.
pub(crate) fn found(directory: &str, link: &str, ending: &Path) -> io::Result<PathBuf> {
    fs::read_dir(directory)?
        .flatten()
        .map(|entry| if link.is_empty() { entry.path() } else { entry.path().join(link) })
        .find(|path| fs::read_link(path).is_ok_and(|target| target.ends_with(ending)))
        .ok_or_else(|| io::Error::other(format!("nothing in {directory} leads to {}", ending.display())))
}

pub(crate) fn symlink_relative(room: &Room) -> io::Result<Attempt> {
    symlink(room.tail(), room.at("link"))?;
    let path = room.at("link");
    attempt(move || reach(&path))
}

pub(crate) fn symlink_absolute(room: &Room) -> io::Result<Attempt> {
    symlink(room.target(), room.at("link"))?;
    let path = room.at("link");
    attempt(move || reach(&path))
}

pub(crate) fn symlink_chain(room: &Room) -> io::Result<Attempt> {
    symlink(format!("../{}", room.tail()), room.at("beside/first"))?;
    symlink("beside/first", room.at("second"))?;
    symlink(room.at("second"), room.at("third"))?;
    let path = room.at("third");
    attempt(move || reach(&path))
}

pub(crate) fn symlink_in_the_middle(room: &Room) -> io::Result<Attempt> {
    symlink(room.parent(), room.at("way"))?;
    let path = room.at("way").join(room.file_name());
    attempt(move || reach(&path))
}

pub(crate) fn symlink_made_later(room: &Room) -> io::Result<Attempt> {
    let (target, link) = (room.target(), room.at("later"));
    super::super::stage::once_then(
        {
            let link = link.clone();
            move || symlink(&target, &link)
        },
        move || reach(&link),
    )
}

/// Every flag of openat2 gives what open gives; a name that is not cached is not opened either.
pub(crate) fn every_resolution(room: &Room) -> io::Result<Attempt> {
    let (dir, tail) = (room.dir.clone(), room.tail());
    // One file is a mount of its own.
    let one_mount = if room.situation == OneFile { ResolveFlags::empty() } else { ResolveFlags::NO_XDEV };
    attempt(move || {
        let dir = path_fd(&dir)?;
        let open = |flags| openat2(&dir, tail, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), flags);
        let flags = [
            ("NO_SYMLINKS", ResolveFlags::NO_SYMLINKS),
            ("NO_XDEV", one_mount),
            ("NO_MAGICLINKS", ResolveFlags::NO_MAGICLINKS),
            ("BENEATH", ResolveFlags::BENEATH),
            ("IN_ROOT", ResolveFlags::IN_ROOT),
            ("CACHED", ResolveFlags::CACHED),
        ];
        all_alike(flags.map(|(name, flag)| {
            let outcome = match open(flag) {
                // The lookup was refused for lack of a cached name, before any question of rights.
                Err(Errno::AGAIN) if name == "CACHED" => open(ResolveFlags::empty()),
                outcome => outcome,
            };
            (name.to_owned(), reached(outcome))
        }))
    })
}

/// Writing, both, appending, without caches, for ioctl only, without blocking.
pub(crate) fn every_mode(room: &Room) -> io::Result<Attempt> {
    let path = room.target();
    attempt(move || {
        let ways = [
            ("O_WRONLY", OFlags::WRONLY),
            ("O_RDWR", OFlags::RDWR),
            ("O_APPEND", OFlags::WRONLY | OFlags::APPEND),
            ("O_NONBLOCK", OFlags::RDONLY | OFlags::NONBLOCK),
            ("O_NOATIME", OFlags::RDONLY | OFlags::NOATIME),
            ("3", OFlags::WRONLY | OFlags::RDWR),
        ];
        all_alike(ways.map(|(name, flags)| {
            (name.to_owned(), answer(rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty())))
        }))
    })
}

pub(crate) fn io_uring(room: &Room) -> io::Result<Attempt> {
    let path = room.target();
    attempt(move || reached(raw::ring_open(path.as_os_str())))
}

pub(crate) fn handle(room: &Room) -> io::Result<Attempt> {
    let handle = raw::handle_of(room.target().as_os_str())?;
    // Any file on that mount does, opened before the guard.
    let mount = File::open(room.target())?;
    attempt(move || reached(raw::open_handle(mount.as_fd(), &handle)))
}

/// Lists the guarded directory, which an open of it comes before.
pub(crate) fn listed(room: &Room) -> io::Result<Attempt> {
    let parent = room.parent();
    attempt(move || answer(fs::read_dir(&parent).map(|_| Answer::Passed)))
}
